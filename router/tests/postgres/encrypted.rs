//! TLS between psql, the router and PostgreSQL.

use std::os::unix::fs::PermissionsExt;

use trunkline_router::config::tls::{TlsMode, TlsSection};
use trunkline_shared::service::tls::TlsFiles;

use super::support::certificates::Certificates;
use super::*;

/// psql at the router, by a connection string.
pub fn psql_by(server: &Postgres, stack: &Stack, more: &str) -> Command {
    let mut psql = command(server.bin.join("psql"));
    let port = stack.address.port();
    psql.args(["-X", "-Atq", "-v", "ON_ERROR_STOP=1", "-d"]);
    psql.arg(format!(
        "host=localhost hostaddr=127.0.0.1 port={port} user=app dbname=app {more}"
    ));
    psql
}

/// What psql says to this, or complains of.
pub async fn says(mut psql: Command, sql: &str) -> Result<String, String> {
    psql.args(["-c", sql]);
    let output = run(psql).await;
    let text = |bytes| String::from_utf8(bytes).unwrap().trim().to_owned();
    match output.status.success() {
        true => Ok(text(output.stdout)),
        false => Err(text(output.stderr)),
    }
}

#[test]
fn psql_speaks_tls_and_knows_the_router() {
    as_postgres(
        "encrypted::psql_speaks_tls_and_knows_the_router",
        async || {
            let server = Postgres::start();
            let ca = Certificates::new();
            let tls = TlsSection {
                mode: TlsMode::Require,
                files: ca.issue("router"),
                ..TlsSection::default()
            };
            for mode in [Mode::Transaction, Mode::Session] {
                let stack = server.router_with(mode, "", tls.clone()).await;
                let roots = format!("sslrootcert={}", ca.file("ca.crt").display());
                for sslmode in ["require", "verify-full"] {
                    let psql = psql_by(&server, &stack, &format!("sslmode={sslmode} {roots}"));
                    let rows = "select repeat('y', 3000) from generate_series(1, 1000)";
                    assert_eq!(says(psql, rows).await.unwrap().len(), 3001 * 1000 - 1);
                }
                let plain = psql_by(&server, &stack, "sslmode=disable");
                let refused = says(plain, "select 1").await.unwrap_err();
                assert!(refused.contains("no pg_hba.conf entry for host \"127.0.0.1\", user \"app\", database \"app\", no encryption"), "{refused}");
                let stranger = Certificates::new();
                let roots = format!("sslrootcert={}", stranger.file("ca.crt").display());
                let psql = psql_by(&server, &stack, &format!("sslmode=verify-ca {roots}"));
                let refused = says(psql, "select 1").await.unwrap_err();
                assert!(refused.contains("certificate verify failed"), "{refused}");
                let mut pgbench = command(server.bin.join("pgbench"));
                let port = stack.address.port();
                pgbench.args(["-i", "-q", "-I", "dtg"]);
                pgbench.arg(format!(
                    "host=localhost port={port} user=app dbname=app sslmode=require"
                ));
                let output = run(pgbench).await;
                assert!(output.status.success(), "{output:?}");
            }
        },
    );
}

/// PostgreSQL with TLS, that takes its own users by certificate or SCRAM over TLS only.
fn secure(server: &Postgres, ca: &Certificates, hba: &str) {
    secure_with(server, ca, hba, || ca.issue("server"));
}

fn secure_with(server: &Postgres, ca: &Certificates, hba: &str, issue: impl Fn() -> TlsFiles) {
    issue();
    for (from, to) in [
        ("server.crt", "server.crt"),
        ("server.key", "server.key"),
        ("ca.crt", "root.crt"),
    ] {
        fs::copy(ca.file(from), server.data().join(to)).unwrap();
    }
    fs::set_permissions(
        server.data().join("server.key"),
        fs::Permissions::from_mode(0o600),
    )
    .unwrap();
    let hba = format!("hostssl all postgres 127.0.0.1/32 scram-sha-256\n{hba}\n");
    fs::write(server.data().join("pg_hba.conf"), hba).unwrap();
    server.ask("alter system set ssl = on");
    server.ask("alter system set ssl_ca_file = 'root.crt'");
    server.ask("select pg_reload_conf()");
}

/// How the router's servers are encrypted, once PostgreSQL has taken the reload up.
async fn servers(stack: &Stack, server: &Postgres) -> Result<String, String> {
    let sql = "select ssl::text || ' ' || coalesce(client_dn, '') from pg_stat_ssl \
               where pid = pg_backend_pid()";
    let mut looks = tokio::time::interval(std::time::Duration::from_millis(50));
    loop {
        looks.tick().await;
        let said = says(psql_by(server, stack, "sslmode=disable"), sql).await;
        if !said
            .as_ref()
            .is_err_and(|why| why.contains("no pg_hba.conf entry") || why.contains("speaks no TLS"))
        {
            return said;
        }
    }
}

#[test]
fn postgresql_is_spoken_to_under_tls_and_known_by_its_certificate() {
    as_postgres(
        "encrypted::postgresql_is_spoken_to_under_tls_and_known_by_its_certificate",
        async || {
            let server = Postgres::start();
            let ca = Certificates::new();
            secure(&server, &ca, "hostssl all app 127.0.0.1/32 scram-sha-256");
            let roots = ca.file("ca.crt");
            let stranger = Certificates::new();
            let none = TlsSection::default;
            for (mode, ca) in [
                ("prefer", None),
                ("require", None),
                ("verify-ca", Some(&roots)),
                ("verify-full", Some(&roots)),
                ("verify-full", Some(&stranger.file("ca.crt"))),
            ] {
                let ca = ca.map_or(String::new(), |ca| format!(", ca: {}", ca.display()));
                let sections = format!("tls: {{server: {{mode: {mode}{ca}}}}}\n");
                let stack = server
                    .router_with(Mode::Transaction, &sections, none())
                    .await;
                let said = servers(&stack, &server).await;
                match ca.is_empty() || ca.contains(roots.to_str().unwrap()) {
                    true => assert_eq!(said.unwrap(), "true", "{mode}"),
                    false => assert!(said.unwrap_err().contains(
                        "TLS to PostgreSQL cannot be begun (tls.server): invalid peer certificate"
                    )),
                }
            }
            // The key of a cancel was told under TLS, and is not shown in the clear.
            let sections = "tls: {server: {mode: require}}\n";
            let stack = server
                .router_with(Mode::Transaction, sections, none())
                .await;
            let one = connect(&stack, "one").await;
            let token = one.cancel_token();
            let sleeping = tokio::spawn(async move {
                let failed = one.simple_query("select pg_sleep(600)").await.unwrap_err();
                (
                    failed.code().unwrap().code().to_owned(),
                    text(&one, "select 'on'").await,
                )
            });
            let running = "select count(*) from pg_stat_activity where query like '%pg_sleep(6%' \
                           and state = 'active' and pid <> pg_backend_pid()";
            let mut looks = tokio::time::interval(std::time::Duration::from_millis(20));
            while server.ask(running) != "1" {
                looks.tick().await;
            }
            token.cancel_query(NoTls).await.unwrap();
            assert_eq!(
                sleeping.await.unwrap(),
                ("57014".to_owned(), "on".to_owned())
            );
            // Both sides under TLS, large answers, statements prepared.
            let files = TlsSection {
                mode: TlsMode::Require,
                files: ca.issue("router"),
                ..none()
            };
            let stack = server.router_with(Mode::Transaction, sections, files).await;
            // libpq refuses an exchange that is not bound.
            let psql = psql_by(&server, &stack, "sslmode=require channel_binding=require");
            let rows = "select repeat('y', 3000) from generate_series(1, 1000)";
            assert_eq!(says(psql, rows).await.unwrap().len(), 3001 * 1000 - 1);
        },
    );
}

#[test]
fn postgresql_may_ask_for_the_routers_certificate() {
    as_postgres(
        "encrypted::postgresql_may_ask_for_the_routers_certificate",
        async || {
            let server = Postgres::start();
            let ca = Certificates::new();
            secure(&server, &ca, "hostssl all app 127.0.0.1/32 cert");
            let own = ca.issue("app");
            let sections = format!(
                "tls: {{server: {{mode: require, cert: {}, key: {}}}}}\n",
                own.certificate.unwrap().display(),
                own.key.unwrap().display()
            );
            let stack = server
                .router_with(Mode::Transaction, &sections, TlsSection::default())
                .await;
            assert_eq!(
                servers(&stack, &server).await.unwrap(),
                "true /O=Trunkline/CN=app"
            );
        },
    );
}

#[test]
fn below_verify_ca_no_certificate_keeps_anybody_from_postgresql() {
    as_postgres(
        "encrypted::below_verify_ca_no_certificate_keeps_anybody_from_postgresql",
        async || {
            let server = Postgres::start();
            let ca = Certificates::new();
            let (ssl, any) = ("hostssl", "host");
            let scram = |kind| format!("{kind} all app 127.0.0.1/32 scram-sha-256");
            let said = async |mode: &str| {
                let ca = ca.file("ca.crt");
                let sections = format!("tls: {{server: {{mode: {mode}, ca: {}}}}}\n", ca.display());
                let none = TlsSection::default();
                let stack = server.router_with(Mode::Transaction, &sections, none).await;
                servers(&stack, &server).await
            };
            // By PostgreSQL's own recipe, of version 1.
            secure_with(&server, &ca, &scram(ssl), || {
                ca.issue_as("server", "P-256", false)
            });
            for version in ["TLSv1.3", "TLSv1.2"] {
                server.ask(&format!(
                    "alter system set ssl_max_protocol_version = '{version}'"
                ));
                server.ask("select pg_reload_conf()");
                assert_eq!(said("prefer").await.unwrap(), "true", "{version}");
                assert_eq!(said("require").await.unwrap(), "true", "{version}");
            }
            let refused = said("verify-ca").await.unwrap_err();
            assert!(refused.contains("a certificate of version 1"), "{refused}");
            // Of a curve that the router does not speak. The demand is first: its words show that this certificate is
            // in force.
            let alone = scram(any);
            secure_with(&server, &ca, &alone, || {
                ca.issue_as("server", "P-521", true)
            });
            let mut looks = tokio::time::interval(std::time::Duration::from_millis(50));
            let refused = loop {
                looks.tick().await;
                if let Err(refused) = said("require").await {
                    break refused;
                }
            };
            assert!(refused.contains("use a key of ECDSA P-256"), "{refused}");
            assert_eq!(said("prefer").await.unwrap(), "false");
        },
    );
}
