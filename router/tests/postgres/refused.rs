//! What a client hears whom the router lets in and PostgreSQL does not.

use super::*;

/// A router that knows all of them.
async fn router(server: &Postgres, mode: Mode, wait: &str) -> Stack {
    let users = ["app", "locked", "gone", "full", "poor"];
    let known: String = users
        .map(|user| format!("\"{user}\" \"secret\"\n"))
        .concat();
    let sections = format!(
        "{known}\"other\" \"not this one\"\n---\nauth: {{file: x}}\npool: {{query_wait_timeout: {wait}}}\n"
    );
    let stack = Stack::start(Setup {
        mode,
        pooling: Some(sections),
        ..Setup::default()
    })
    .await;
    let address = SocketAddr::from(([127, 0, 0, 1], server.port));
    stack.lead("a", address).await;
    stack
}

/// SQLSTATE and words of the refusal, at log-in or at the first request.
async fn hears(stack: &Stack, user: &str, database: &str) -> (String, String) {
    let password = if user == "other" {
        "not this one"
    } else {
        "secret"
    };
    let mut config = Config::new();
    let config = config.host("127.0.0.1").port(stack.address.port());
    let config = config.user(user).password(password).dbname(database);
    let failed = match config.connect(NoTls).await {
        Err(failed) => failed,
        Ok((client, connection)) => {
            tokio::spawn(connection);
            client.simple_query("select 1").await.unwrap_err()
        }
    };
    let said = failed.as_db_error().unwrap();
    (said.code().code().to_owned(), said.message().to_owned())
}

#[test]
fn whom_postgresql_refuses_hears_its_words_at_once() {
    as_postgres(
        "refused::whom_postgresql_refuses_hears_its_words_at_once",
        async || {
            let server = Postgres::start();
            server.ask("create role other login password 'secret'");
            server.ask("create role gone login password 'secret' valid until 'yesterday'");
            server.ask("create role locked nologin password 'secret'");
            server.ask("create role poor login password 'secret'");
            server.ask("create database closed allow_connections false");
            server.ask("revoke connect on database app from public");
            for mode in [Mode::Transaction, Mode::Session, Mode::Statement] {
                // Nobody waits that long: what will not change by itself is told.
                let stack = router(&server, mode, "1h").await;
                for (user, database, code, words) in [
                    (
                        "other",
                        "postgres",
                        "28P01",
                        "password authentication failed for user \"other\"",
                    ),
                    (
                        "gone",
                        "postgres",
                        "28P01",
                        "password authentication failed for user \"gone\"",
                    ),
                    (
                        "locked",
                        "postgres",
                        "28000",
                        "role \"locked\" is not permitted to log in",
                    ),
                    ("app", "none", "3D000", "database \"none\" does not exist"),
                    (
                        "app",
                        "closed",
                        "55000",
                        "database \"closed\" is not currently accepting connections",
                    ),
                    (
                        "poor",
                        "app",
                        "42501",
                        "permission denied for database \"app\"",
                    ),
                ] {
                    let wanted = (code.to_owned(), words.to_owned());
                    assert_eq!(hears(&stack, user, database).await, wanted, "{mode:?}");
                }
            }
        },
    );
}

#[test]
fn who_waits_in_vain_hears_the_code_of_what_it_waited_for() {
    as_postgres(
        "refused::who_waits_in_vain_hears_the_code_of_what_it_waited_for",
        async || {
            let server = Postgres::start();
            server.ask("create role full login password 'secret' connection limit 0");
            for mode in [Mode::Transaction, Mode::Session, Mode::Statement] {
                let stack = router(&server, mode, "500ms").await;
                let (code, words) = hears(&stack, "full", "postgres").await;
                assert_eq!(code, "53300", "{words}");
                assert!(
                    words.contains("too many connections for role \"full\""),
                    "{words}"
                );
                assert!(words.contains("query_wait_timeout"), "{words}");
            }
        },
    );
}

#[test]
fn who_was_let_in_before_hears_at_its_first_request_that_it_is_not() {
    as_postgres(
        "refused::who_was_let_in_before_hears_at_its_first_request_that_it_is_not",
        async || {
            let server = Postgres::start();
            let stack = router(&server, Mode::Transaction, "1h").await;
            let one = connect(&stack, "one").await;
            assert_eq!(text(&one, "select 1").await, "1");
            server.ask("alter role app nologin");
            server.ask(
                "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'app'",
            );
            // A server that is idle may be met before its end is: it is not the words of PostgreSQL's log-in then.
            let words = "role \"app\" is not permitted to log in".to_owned();
            let mut looks = tokio::time::interval(std::time::Duration::from_millis(50));
            loop {
                looks.tick().await;
                let heard = hears(&stack, "app", "app").await;
                if heard.0 != "57P01" && heard.0 != "08007" {
                    assert_eq!(heard, ("28000".to_owned(), words));
                    break;
                }
            }
        },
    );
}
