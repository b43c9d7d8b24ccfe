//! TLS between psql, the router and PostgreSQL.

use trunkline_router::config::tls::{TlsMode, TlsSection};

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
