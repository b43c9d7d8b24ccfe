//! The console before a real PostgreSQL: psql, and operators' orders while pgbench runs.

use super::*;

/// What the file says of operators.
const ADMIN: &str = "admin: {admin_users: app}\n";
/// What each of pgbench's clients does: far more than what is ordered meanwhile.
const TRANSACTIONS: &str = "4000";

fn console(server: &Postgres, port: u16, sql: &str) -> Command {
    let mut psql = server.psql(port, "app");
    psql.args(["-d", "pgbouncer", "-Atqc", sql]);
    psql
}

async fn told(server: &Postgres, port: u16, sql: &str) -> String {
    let output = run(console(server, port, sql)).await;
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{sql}: {said}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn pgbench(server: &Postgres, port: u16) -> Command {
    let mut pgbench = command(server.bin.join("pgbench"));
    let (port, clients) = (port.to_string(), CLIENTS.to_string());
    pgbench.args(["-h", "127.0.0.1", "-p", &port, "-U", "app", "-n"]);
    pgbench.args(["-M", "simple", "-c", &clients, "-j", &clients]);
    pgbench.args(["-t", TRANSACTIONS, "-f"]);
    pgbench
        .arg(server.folder.path().join("script.sql"))
        .arg("app");
    pgbench
}

/// Looks until what the console says is so.
async fn until(server: &Postgres, port: u16, sql: &str, is_so: impl Fn(&str) -> bool) {
    let looking = async {
        let mut looks = tokio::time::interval(std::time::Duration::from_millis(20));
        while !is_so(&told(server, port, sql).await) {
            looks.tick().await;
        }
    };
    let limit = support::stack::DEADLINE;
    tokio::time::timeout(limit, looking).await.unwrap();
}

/// A column of the row of database `app`, as `SHOW POOLS` counts from 0.
fn of_app(rows: &str, column: usize) -> usize {
    let row = rows.lines().find(|row| row.starts_with("app|app|"));
    let cell = row.and_then(|row| row.split('|').nth(column));
    cell.and_then(|cell| cell.parse().ok()).unwrap_or(0)
}

#[test]
fn pgbench_goes_on_after_pause_and_reconnect_without_an_error() {
    as_postgres(
        "console::pgbench_goes_on_after_pause_and_reconnect_without_an_error",
        async || {
            let server = Postgres::start();
            let stack = server
                .router_with(Mode::Transaction, ADMIN, TlsSection::default())
                .await;
            let port = stack.address.port();
            let script = "begin;\nselect 1;\nend;\n";
            fs::write(server.folder.path().join("script.sql"), script).unwrap();
            assert!(
                told(&server, port, "show version")
                    .await
                    .starts_with("PgBouncer 1.26.1")
            );

            let running = tokio::spawn(run(pgbench(&server, port)));
            for _ in 0..3 {
                let pools = |rows: &str| of_app(rows, 2) + of_app(rows, 3) == CLIENTS;
                until(&server, port, "show pools", pools).await;
                told(&server, port, "pause app").await;
                // Nothing is left at PostgreSQL, once its processes have ended.
                let here = "select count(*) from pg_stat_activity where usename = 'app'";
                let mut looks = tokio::time::interval(std::time::Duration::from_millis(20));
                while server.ask(here) != "0" {
                    looks.tick().await;
                }
                let all_wait = |rows: &str| of_app(rows, 3) == CLIENTS && of_app(rows, 2) == 0;
                until(&server, port, "show pools", all_wait).await;
                let rows = told(&server, port, "show pools").await;
                let servers: usize = (6..13).map(|column| of_app(&rows, column)).sum();
                assert_eq!(servers, 0, "{rows}");
                assert!(!running.is_finished());
                told(&server, port, "resume app").await;
                told(&server, port, "reconnect app").await;
                told(&server, port, "wait_close app").await;
            }
            let output = running.await.unwrap();
            let said = String::from_utf8_lossy(&output.stdout);
            let complaint = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{complaint}");
            assert!(said.contains("number of failed transactions: 0 "), "{said}");

            // Every transaction was counted, on whichever core it was.
            let done = CLIENTS * TRANSACTIONS.parse::<usize>().unwrap();
            let stats = told(&server, port, "show stats_totals").await;
            let row = stats.lines().find(|row| row.starts_with("app|")).unwrap();
            let counts: Vec<usize> = row.split('|').skip(1).map(|n| n.parse().unwrap()).collect();
            assert_eq!((counts[1], counts[2]), (done, 3 * done), "{row}");
        },
    );
}

#[test]
fn kill_ends_pgbench_and_resume_lets_the_next_one_in() {
    as_postgres(
        "console::kill_ends_pgbench_and_resume_lets_the_next_one_in",
        async || {
            let server = Postgres::start();
            let stack = server
                .router_with(Mode::Session, ADMIN, TlsSection::default())
                .await;
            let port = stack.address.port();
            let client = connect(&stack, "pinned").await;
            text(&client, "select 1").await;
            let rows = told(&server, port, "show clients").await;
            let row = rows.lines().find(|row| row.contains("|pinned|")).unwrap();
            assert!(row.contains("|session mode|"), "{row}");
            let servers = told(&server, port, "show servers").await;
            let own = text(&client, "select pg_backend_pid()").await;
            assert_eq!(servers.split('|').nth(16), Some(&*own), "{servers}");
            told(&server, port, "kill app").await;
            let failed = client.simple_query("select 1").await.unwrap_err();
            let is_told = failed.code().is_none_or(|code| code.code() == "57P01");
            assert!(failed.is_closed() || is_told, "{failed}");
            until(&server, port, "show servers", str::is_empty).await;
            told(&server, port, "resume app").await;
            let next = connect(&stack, "next").await;
            assert_eq!(text(&next, "select 'in'").await, "in");
        },
    );
}
