//! Pooled listeners before a real PostgreSQL: psql, pgbench and tokio-postgres. The newest installed version;
//! as root the test starts itself again as user `postgres`, since PostgreSQL does not run as root.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

#[path = "../../agent/tests/support/as_postgres.rs"]
mod as_postgres;
#[path = "postgres/cancelled_waits.rs"]
mod cancelled_waits;
#[path = "postgres/clusters.rs"]
mod clusters;
#[path = "postgres/console.rs"]
mod console;
#[path = "postgres/fleet.rs"]
mod fleet;
#[path = "postgres/refused.rs"]
mod refused;
#[path = "postgres/replication.rs"]
mod replication;
#[path = "postgres/settings.rs"]
mod settings;
#[path = "postgres/statements.rs"]
mod statements;
#[expect(dead_code, reason = "other tests use more of it")]
mod support {
    #[path = "../support/certificates.rs"]
    pub mod certificates;
    #[path = "../support/client.rs"]
    pub mod client;
    #[path = "../support/etcd.rs"]
    pub mod etcd;
    #[path = "../support/in_fleet.rs"]
    pub mod in_fleet;
    #[path = "../support/messages.rs"]
    pub mod messages;
    #[path = "../support/stack.rs"]
    pub mod stack;
}
#[path = "postgres/encrypted.rs"]
mod encrypted;
#[path = "postgres/lookup.rs"]
mod lookup;

use std::fs;
use std::future::Future;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use support::stack::{Setup, Stack};
use tempfile::TempDir;
use tokio_postgres::{Client, Config, NoTls, SimpleQueryMessage};
use trunkline_router::config::pooling::Mode;
use trunkline_router::config::tls::TlsSection;

/// More clients than servers: they must share.
const SERVERS: usize = 2;
const CLIENTS: usize = 6;
/// What each client of the identity test does.
const ROUNDS: usize = 60;

fn command(program: impl AsRef<Path>) -> Command {
    #[expect(
        clippy::disallowed_methods,
        reason = "the test runs PostgreSQL's own programs"
    )]
    let mut command = Command::new(program.as_ref());
    command.env("PGPASSWORD", "secret");
    command
}

fn done(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
    output
}

/// Runs the test as a user that PostgreSQL runs as.
fn as_postgres<F: Future<Output = ()>>(name: &str, test: impl FnOnce() -> F) {
    if !rustix::process::geteuid().is_root() {
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        runtime.worker_threads(2).enable_all();
        return runtime.build().unwrap().block_on(test());
    }
    as_postgres::run_again(name, &[]);
}

/// A running server, with a role `app` whose password is `secret`.
struct Postgres {
    folder: TempDir,
    bin: PathBuf,
    port: u16,
}

impl Postgres {
    fn start() -> Self {
        let mut versions: Vec<PathBuf> = fs::read_dir("/usr/lib/postgresql")
            .unwrap()
            .map(|entry| entry.unwrap().path().join("bin"))
            .filter(|bin| bin.join("initdb").exists())
            .collect();
        versions.sort();
        let bin = versions.pop().expect("PostgreSQL is installed");
        let folder = tempfile::tempdir().unwrap();
        let vacant = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = vacant.local_addr().unwrap().port();
        drop(vacant);
        let own = Self { folder, bin, port };
        let password = own.folder.path().join("password");
        fs::write(&password, "secret").unwrap();
        done(
            command(own.bin.join("initdb"))
                .arg("-D")
                .arg(own.data())
                .args(["-A", "scram-sha-256", "-U", "postgres", "--no-sync"])
                .arg(format!("--pwfile={}", password.display())),
        );
        let settings = format!(
            "port = {port}\nlisten_addresses = '127.0.0.1'\nfsync = off\nunix_socket_directories = ''\n"
        );
        fs::write(own.data().join("postgresql.auto.conf"), settings).unwrap();
        done(
            own.control("start")
                .arg("-l")
                .arg(own.folder.path().join("log")),
        );
        own.ask("create role app login password 'secret'");
        own.ask("create database app owner app");
        own
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn control(&self, what: &str) -> Command {
        let mut command = command(self.bin.join("pg_ctl"));
        command.args([what, "-w", "-s", "-m", "immediate", "-D"]);
        if what == "start" {
            command = self::command(self.bin.join("pg_ctl"));
            command.args(["start", "-w", "-s", "-D"]);
        }
        command.arg(self.data());
        command
    }

    fn ask(&self, sql: &str) -> String {
        let mut psql = self.psql(self.port, "postgres");
        let output = done(psql.args(["-d", "postgres", "-Atqc", sql]));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    fn psql(&self, port: u16, user: &str) -> Command {
        let mut command = command(self.bin.join("psql"));
        let port = port.to_string();
        command.args(["-X", "-h", "127.0.0.1", "-p", &port, "-U", user]);
        command
    }

    /// A router before it, that knows the verifier and not the password.
    async fn router(&self, mode: Mode) -> Stack {
        self.router_with(mode, "", TlsSection::default()).await
    }

    /// The same with more sections in its file, and with TLS.
    async fn router_with(&self, mode: Mode, sections: &str, tls: TlsSection) -> Stack {
        let stack = Stack::start(self.setup(mode, sections, tls)).await;
        let address = SocketAddr::from(([127, 0, 0, 1], self.port));
        stack.lead("a", address).await;
        stack
    }

    fn setup(&self, mode: Mode, sections: &str, tls: TlsSection) -> Setup {
        let verifier = self.ask("select rolpassword from pg_authid where rolname = 'app'");
        let pooling = format!(
            "\"app\" \"{verifier}\"\n---\nauth: {{file: x}}\npool: {{default_pool_size: {SERVERS}}}\n{sections}"
        );
        Setup {
            mode,
            pooling: Some(pooling),
            tls,
            ..Setup::default()
        }
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        let _ = self.control("stop").output();
    }
}

/// A program that connects by itself, beside the runtime that serves it.
async fn run(mut command: Command) -> Output {
    tokio::task::spawn_blocking(move || command.output().unwrap())
        .await
        .unwrap()
}

async fn connect(stack: &Stack, name: &str) -> Client {
    let mut config = Config::new();
    config
        .host("127.0.0.1")
        .port(stack.address.port())
        .user("app")
        .password("secret")
        .dbname("app")
        .application_name(name);
    let (client, connection) = config.connect(NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

async fn text(client: &Client, sql: &str) -> String {
    let answers = client.simple_query(sql).await.unwrap();
    let row = answers.iter().find_map(|answer| match answer {
        SimpleQueryMessage::Row(row) => row.get(0),
        _ => None,
    });
    row.unwrap_or_default().to_owned()
}

#[test]
fn psql_and_pgbench_work_through_every_mode() {
    as_postgres("psql_and_pgbench_work_through_every_mode", async || {
        let server = Postgres::start();
        for mode in [Mode::Transaction, Mode::Session, Mode::Statement] {
            let stack = server.router(mode).await;
            let port = stack.address.port();
            copies(&server, port).await;
            let script = match mode {
                Mode::Statement => "select x from t where x = 7 limit 1;\n",
                _ => "begin;\nupdate t set x = x where x = 1;\nend;\n",
            };
            let clients = match mode {
                Mode::Session => SERVERS,
                _ => CLIENTS,
            };
            for protocol in ["simple", "extended", "prepared"] {
                benches(&server, port, protocol, clients, script).await;
            }
            let kill = "select count(pg_terminate_backend(pid)) from pg_stat_activity \
                        where usename = 'app'";
            server.ask(kill);
        }
    });
}

/// psql with the right and a wrong password, and rows longer than any buffer.
async fn copies(server: &Postgres, port: u16) {
    let mut psql = server.psql(port, "app");
    psql.args(["-d", "app", "-v", "ON_ERROR_STOP=1", "-Atq"]);
    psql.args(["-c", "create table if not exists t (x int, y text)"]);
    let fill = "insert into t select g, repeat('y', 3000) from generate_series(1, 200) g";
    psql.args(["-c", fill, "-c", "copy t to stdout"]);
    let copied = run(psql).await;
    let said = String::from_utf8_lossy(&copied.stderr);
    assert!(copied.status.success(), "{said}");
    assert!(copied.stdout.len() > 600_000);
    let mut wrong = server.psql(port, "app");
    wrong
        .env("PGPASSWORD", "wrong")
        .args(["-d", "app", "-c", "select 1"]);
    let said = String::from_utf8(run(wrong).await.stderr).unwrap();
    let refused = "password authentication failed for user \"app\"";
    assert!(said.contains(refused), "{said}");
}

async fn benches(server: &Postgres, port: u16, protocol: &str, clients: usize, script: &str) {
    let file = server.folder.path().join("script.sql");
    fs::write(&file, script).unwrap();
    let (clients, port) = (clients.to_string(), port.to_string());
    let mut pgbench = command(server.bin.join("pgbench"));
    pgbench.args([
        "-h",
        "127.0.0.1",
        "-p",
        &port,
        "-U",
        "app",
        "-n",
        "-M",
        protocol,
    ]);
    // Each client a thread: pgbench waits for a PREPARE with all clients of its thread.
    pgbench.args(["-c", &clients, "-j", &clients, "-t", "30", "-f"]);
    pgbench.arg(&file).arg("app");
    let output = run(pgbench).await;
    let said = String::from_utf8_lossy(&output.stdout);
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{protocol}: {complaint}");
    assert!(said.contains("number of failed transactions: 0 "), "{said}");
}

#[test]
fn nothing_of_one_client_is_seen_by_another() {
    as_postgres("nothing_of_one_client_is_seen_by_another", async || {
        let server = Postgres::start();
        let stack = server.router(Mode::Transaction).await;
        let owner = connect(&stack, "owner").await;
        text(&owner, "create table seen (who text, n int)").await;
        let mut clients = Vec::new();
        for number in 0..CLIENTS {
            let client = connect(&stack, &format!("client {number}")).await;
            clients.push(tokio::spawn(live(client, number)));
        }
        for client in clients {
            client.await.unwrap();
        }
        let rows = CLIENTS * ROUNDS / 2;
        assert_eq!(
            text(&owner, "select count(*) from seen").await,
            rows.to_string()
        );
        let servers = server.ask("select count(*) from pg_stat_activity where usename = 'app'");
        assert!(
            servers.parse::<usize>().unwrap() <= SERVERS,
            "{servers} servers"
        );
    });
}

/// One client's life: whatever it asks, it sees only itself.
async fn live(client: Client, number: usize) {
    let zone = format!("Etc/GMT+{number}");
    let me = format!("client {number}");
    text(&client, &format!("set timezone = '{zone}'")).await;
    let own = client
        .prepare("select $1::text || current_setting('application_name')")
        .await
        .unwrap();
    for round in 0..ROUNDS {
        match (round + number) % 4 {
            0 => {
                let row = client.query_one(&own, &[&"x"]).await.unwrap();
                assert_eq!(row.get::<_, String>(0), format!("x{me}"));
            }
            1 => {
                text(&client, "begin").await;
                text(
                    &client,
                    &format!("insert into seen values ('{me}', {round})"),
                )
                .await;
                text(&client, "set local work_mem = '1MB'").await;
                text(&client, "commit").await;
            }
            2 => {
                let failed = client.simple_query("select 1/0").await.unwrap_err();
                assert_eq!(failed.code().unwrap().code(), "22012");
                assert_eq!(text(&client, "show timezone").await, zone);
            }
            _ => {
                let count =
                    "select count(*) from seen where who = current_setting('application_name')";
                let before: usize = text(&client, count).await.parse().unwrap();
                let insert = "insert into seen values (current_setting('application_name'), $1)";
                // Prepared under a name, used, closed.
                let number = i32::try_from(round).unwrap();
                assert_eq!(client.execute(insert, &[&number]).await.unwrap(), 1);
                let after: usize = text(&client, count).await.parse().unwrap();
                assert_eq!(after, before + 1);
            }
        }
        assert_eq!(text(&client, "show work_mem").await, "4MB");
    }
}

#[test]
fn a_cancel_ends_its_own_query_and_the_session_goes_on() {
    as_postgres(
        "a_cancel_ends_its_own_query_and_the_session_goes_on",
        async || {
            let server = Postgres::start();
            let stack = server.router(Mode::Transaction).await;
            let one = connect(&stack, "one").await;
            let two = connect(&stack, "two").await;
            let token = one.cancel_token();
            let running = "select count(*) from pg_stat_activity where query like '%pg_sleep(6%' \
                       and state = 'active' and pid <> pg_backend_pid()";
            let other = tokio::spawn(async move { text(&two, "select pg_sleep(6.5)").await });
            let sleeping = tokio::spawn(async move {
                let failed = one.simple_query("select pg_sleep(600)").await.unwrap_err();
                (failed.code().unwrap().code().to_owned(), one)
            });
            let mut looks = tokio::time::interval(std::time::Duration::from_millis(20));
            while server.ask(running) != "2" {
                looks.tick().await;
            }
            token.cancel_query(NoTls).await.unwrap();
            let (code, one) = sleeping.await.unwrap();
            assert_eq!(code, "57014");
            assert_eq!(text(&one, "select 'on'").await, "on");
            other.abort();
        },
    );
}
