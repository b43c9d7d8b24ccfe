//! Users that PostgreSQL is asked for.

use std::sync::Arc;

use tokio::task::JoinSet;
use trunkline_router::auth::lookup::GOOD_FOR;
use trunkline_shared::service::clock;

use super::encrypted::{psql_by, says};
use super::support::stack::{DEADLINE, startup};
use super::*;

/// A router that knows only who may ask, and by which method clients log in. The leader is not named yet.
async fn asking(more: &str, pool: &str) -> Stack {
    let sections = format!(
        "\"asker\" \"secret\"\n---\nauth: {{user: asker, file: x{more}}}\npool: {{default_pool_size: {SERVERS}{pool}}}\n"
    );
    Stack::start(Setup {
        mode: Mode::Transaction,
        pooling: Some(sections),
        ..Setup::default()
    })
    .await
}

async fn lead(stack: &Stack, server: &Postgres) {
    let address = SocketAddr::from(([127, 0, 0, 1], server.port));
    stack.lead("a", address).await;
}

/// Who somebody is to PostgreSQL, by the router.
async fn who(
    server: &Postgres,
    stack: &Stack,
    user: &str,
    password: &str,
) -> Result<String, String> {
    let mut psql = psql_by(server, stack, &format!("user={user} sslmode=disable"));
    psql.env("PGPASSWORD", password);
    says(psql, "select current_user").await
}

async fn assert_refused(server: &Postgres, stack: &Stack, user: &str, password: &str) {
    let said = who(server, stack, user, password).await.unwrap_err();
    let refused = "password authentication failed for user";
    assert!(said.contains(refused), "{user}: {said}");
}

/// How many connections ask.
const ASKERS: &str = "select count(*) from pg_stat_activity \
                      where application_name = 'trunkline-router auth_query' and usename = 'asker'";

#[test]
fn users_are_looked_up_and_a_changed_password_is_found() {
    as_postgres(
        "lookup::users_are_looked_up_and_a_changed_password_is_found",
        async || {
            let server = Postgres::start();
            server.ask("create role asker superuser login password 'secret'");
            server.ask("create role gone login password 'secret' valid until 'yesterday'");
            server.ask("create role locked nologin password 'secret'");
            server.ask("create role naked login");
            let stack = asking("", "").await;
            lead(&stack, &server).await;
            assert_eq!(who(&server, &stack, "app", "secret").await.unwrap(), "app");
            for (user, password) in [
                ("app", "wrong"),
                ("nobody", "secret"),
                ("gone", "secret"),
                ("locked", "secret"),
                ("naked", "secret"),
                (r"'x\' or true --'", "secret"),
                // PostgreSQL cuts it to the name of somebody else, who is not meant.
                (&"a".repeat(70), "secret"),
            ] {
                assert_refused(&server, &stack, user, password).await;
            }
            // The first attempt was answered with the salt of the old password, and looks again.
            server.ask("alter role app password 'new'");
            assert_refused(&server, &stack, "app", "new").await;
            assert_eq!(who(&server, &stack, "app", "new").await.unwrap(), "app");
            assert_refused(&server, &stack, "app", "secret").await;
            // So is one that is new, and was unknown a moment ago.
            server.ask("create role nobody login password 'secret'");
            assert_refused(&server, &stack, "nobody", "secret").await;
            assert_eq!(
                who(&server, &stack, "nobody", "secret").await.unwrap(),
                "nobody"
            );
            // One connection asks, and it is opened again when it was lost.
            assert_eq!(server.ask(ASKERS), "1");
            server.ask(&ASKERS.replace("count(*)", "pg_terminate_backend(pid)"));
            server.ask("create role late login password 'secret'");
            assert_eq!(
                who(&server, &stack, "late", "secret").await.unwrap(),
                "late"
            );
            // Who is dropped comes in no longer than an answer is good.
            server.ask("drop role late");
            let mut looks = tokio::time::interval(std::time::Duration::from_millis(500));
            let refused = async {
                loop {
                    looks.tick().await;
                    let said = who(&server, &stack, "late", "secret").await;
                    if said.is_err_and(|why| why.contains("password authentication failed")) {
                        return;
                    }
                }
            };
            let limit = GOOD_FOR + DEADLINE;
            tokio::time::timeout(limit, refused).await.unwrap();
        },
    );
}

#[test]
fn by_md5_a_changed_password_is_right_at_once() {
    as_postgres(
        "lookup::by_md5_a_changed_password_is_right_at_once",
        async || {
            let server = Postgres::start();
            let old = "set password_encryption = md5; create role old login password 'secret'";
            server.ask(old);
            server.ask("create role asker superuser login password 'secret'");
            let hba = "host all postgres,asker 127.0.0.1/32 scram-sha-256\nhost all all 127.0.0.1/32 md5\n";
            fs::write(server.data().join("pg_hba.conf"), hba).unwrap();
            server.ask("select pg_reload_conf()");
            let query = "select usename, passwd from pg_shadow where usename = $1";
            let stack = asking(&format!(", type: md5, query: \"{query}\""), "").await;
            lead(&stack, &server).await;
            assert_eq!(who(&server, &stack, "old", "secret").await.unwrap(), "old");
            server.ask("set password_encryption = md5; alter role old password 'new'");
            assert_eq!(who(&server, &stack, "old", "new").await.unwrap(), "old");
            assert_refused(&server, &stack, "old", "secret").await;
            // By the same type, who has a SCRAM verifier proves itself by SCRAM.
            assert_eq!(who(&server, &stack, "app", "secret").await.unwrap(), "app");
        },
    );
}

#[test]
fn no_search_path_of_anybody_changes_what_the_query_means() {
    as_postgres(
        "lookup::no_search_path_of_anybody_changes_what_the_query_means",
        async || {
            let server = Postgres::start();
            server.ask("create role asker superuser login password 'secret'");
            server.ask("create role boss superuser login password 'other'");
            server.ask("create schema evil");
            server.ask("create table evil.pg_authid as select rolname, rolpassword from pg_authid");
            server.ask(
                "update evil.pg_authid a set rolpassword = b.rolpassword from evil.pg_authid b \
                        where a.rolname = 'boss' and b.rolname = 'app'",
            );
            server.ask("alter role asker set search_path = evil, pg_catalog");
            server.ask("alter database postgres set search_path = evil, pg_catalog");
            let query = "select rolname, rolpassword from pg_authid where rolname = $1";
            let stack = asking(&format!(", query: \"{query}\""), "").await;
            lead(&stack, &server).await;
            let mut psql = psql_by(&server, &stack, "user=boss sslmode=disable");
            psql.env("PGOPTIONS", "-c search_path=evil,pg_catalog");
            let said = says(psql, "select 1").await.unwrap_err();
            let refused = "password authentication failed for user \"boss\"";
            assert!(said.contains(refused), "{said}");
        },
    );
}

#[test]
fn many_log_ins_of_one_user_are_one_question() {
    as_postgres(
        "lookup::many_log_ins_of_one_user_are_one_question",
        async || {
            let server = Postgres::start();
            server.ask("create role asker login password 'secret'");
            server.ask("create table asked (name text)");
            server.ask(
                "create function look(name text, out text, out text) security definer \
                        language plpgsql as $$ begin insert into public.asked values (name); \
                        select rolname, rolpassword into $2, $3 from pg_authid where rolname = name; end $$",
            );
            let stack = asking(", query: \"select * from public.look($1)\"", "").await;
            lead(&stack, &server).await;
            let began = clock::now();
            let stack = Arc::new(stack);
            let mut clients = JoinSet::new();
            for number in 0..30 {
                let stack = stack.clone();
                clients.spawn(async move { connect(&stack, &format!("client {number}")).await });
            }
            let clients = clients.join_all().await;
            for client in &clients {
                assert_eq!(text(client, "select current_user").await, "app");
            }
            let asked: u64 = server.ask("select count(*) from asked").parse().unwrap();
            // Once, and once more for each time that an answer was out of date.
            let most = 1 + clock::now().since(began).as_secs() / GOOD_FOR.as_secs();
            assert!((1..=most).contains(&asked), "asked {asked} times");
        },
    );
}

#[test]
fn who_leaves_while_it_is_looked_up_does_not_end_the_connection() {
    as_postgres(
        "lookup::who_leaves_while_it_is_looked_up_does_not_end_the_connection",
        async || {
            let server = Postgres::start();
            server.ask("create role asker login password 'secret'");
            server.ask(
                "create function look(name text, out text, out text) security definer \
                 language plpgsql as $$ begin if name = 'slow' then perform pg_sleep(1); end if; \
                 select rolname, rolpassword into $2, $3 from pg_authid where rolname = name; end $$",
            );
            let query = ", query: \"select * from public.look($1)\"";
            let stack = asking(query, "").await;
            lead(&stack, &server).await;
            assert_eq!(who(&server, &stack, "app", "secret").await.unwrap(), "app");
            let asker = ASKERS.replace("count(*)", "pid");
            let before = server.ask(&asker);
            let mut slow = stack.client().await;
            slow.send(&startup("slow")).await;
            let asked = format!("{ASKERS} and state = 'active'");
            let mut looks = tokio::time::interval(std::time::Duration::from_millis(20));
            while server.ask(&asked) != "1" {
                looks.tick().await;
            }
            drop(slow);
            server.ask("create role late login password 'secret'");
            assert_eq!(
                who(&server, &stack, "late", "secret").await.unwrap(),
                "late"
            );
            assert_eq!(server.ask(&asker), before);
        },
    );
}

#[test]
fn who_cannot_be_looked_up_yet_waits_and_hears_why() {
    as_postgres(
        "lookup::who_cannot_be_looked_up_yet_waits_and_hears_why",
        async || {
            let server = Postgres::start();
            server.ask("create role asker login password 'wrong'");
            let stack = asking("", "").await;
            let waiting = psql_by(&server, &stack, "sslmode=disable");
            let waiting = tokio::spawn(says(waiting, "select current_user"));
            // Nobody leads, then PostgreSQL is away; both are waited for.
            done(&mut server.control("stop"));
            lead(&stack, &server).await;
            let short = asking("", ", client_login_timeout: 300ms").await;
            lead(&short, &server).await;
            let said = who(&server, &short, "app", "secret").await.unwrap_err();
            let words =
                "users of cluster demo cannot be looked up now (auth.query): cannot connect";
            assert!(said.contains(words), "{said}");
            assert!(!said.contains("authentication failed"), "{said}");
            let mut start = server.control("start");
            done(start.arg("-l").arg(server.folder.path().join("log")));
            // The router's own user is refused: that will not change, and who it is is told to nobody.
            let said = waiting.await.unwrap().unwrap_err();
            let words = "(auth.query): PostgreSQL does not answer the router's question";
            assert!(said.contains(words), "{said}");
            assert!(!said.contains("asker"), "{said}");
            // It may not read what it asks for.
            server.ask("alter role asker password 'secret'");
            let stack = asking("", "").await;
            lead(&stack, &server).await;
            let said = who(&server, &stack, "app", "secret").await.unwrap_err();
            assert!(said.contains(words), "{said}");
            server.ask("alter role asker superuser");
            assert_eq!(who(&server, &stack, "app", "secret").await.unwrap(), "app");
        },
    );
}
