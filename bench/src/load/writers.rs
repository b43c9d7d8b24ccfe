//! Writers: each appends rows (writer, number) through the router's write port and remembers what it was told.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Result;
use tokio::task::JoinHandle;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Config, NoTls, Statement};
use trunkline_shared::service::clock;

use super::history::{Cut, History, Outcome, Write};
use super::last_write::LastWrite;
use crate::stack::{APP, APP_PASSWORD, Stack};

/// The pause after an acknowledged write: eight writers then ask for about a thousand a second, which leaves
/// two cores room for three servers.
const PACE: Duration = Duration::from_millis(5);
/// The first pause after a refused connection; it doubles up to [`LONGEST_BACKOFF`].
const FIRST_BACKOFF: Duration = Duration::from_millis(2);
/// The longest pause between two tries to connect: it bounds what the client adds to a gap.
const LONGEST_BACKOFF: Duration = Duration::from_millis(50);
/// A statement or connection that takes longer is given up: longer than any hold of the router.
const LIMIT: Duration = Duration::from_secs(20);

/// Appends a row and names the WAL position it was written behind.
const APPEND: &str = "INSERT INTO ledger (writer, seq) VALUES ($1, $2) \
    RETURNING (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::bigint";

/// The writers of one run.
#[derive(Debug)]
pub struct Writers {
    shared: Arc<Shared>,
    tasks: Vec<JoinHandle<History>>,
}

/// What can be seen of the writers while they run.
#[derive(Debug)]
pub struct Shared {
    stop: AtomicBool,
    acknowledged: AtomicU64,
    last: LastWrite,
    cuts: AtomicU64,
}

impl Shared {
    /// Writes acknowledged so far.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// Connections ended or refused so far.
    pub fn cuts(&self) -> u64 {
        self.cuts.load(Ordering::Relaxed)
    }

    /// When the last write was acknowledged.
    pub fn last_write(&self) -> &LastWrite {
        &self.last
    }
}

/// The settings of a client of the load at one address.
pub fn client_config(address: &str, port: u16) -> Config {
    let mut config = Config::new();
    config
        .host(address)
        .port(port)
        .user(APP)
        .password(APP_PASSWORD)
        .dbname(APP);
    config
        .application_name("trunkline-bench")
        .connect_timeout(LIMIT);
    config
}

/// Makes the load's user, database and empty table, on the leader itself.
pub async fn prepare(stack: &Stack, leader: usize) -> Result<()> {
    let client = stack.members[leader].sql("postgres").await?;
    let exists = client
        .query_opt("SELECT 1 FROM pg_database WHERE datname = $1", &[&APP])
        .await?;
    if exists.is_none() {
        client
            .batch_execute(&format!(
                "CREATE ROLE {APP} LOGIN PASSWORD '{APP_PASSWORD}'"
            ))
            .await?;
        client
            .batch_execute(&format!("CREATE DATABASE {APP} OWNER {APP}"))
            .await?;
    }
    let client = stack.members[leader].sql(APP).await?;
    client
        .batch_execute(&format!(
            "DROP TABLE IF EXISTS ledger; \
             CREATE TABLE ledger (writer int, seq bigint, at timestamptz DEFAULT clock_timestamp(), \
             PRIMARY KEY (writer, seq)); ALTER TABLE ledger OWNER TO {APP}"
        ))
        .await?;
    Ok(())
}

impl Writers {
    /// Starts this many.
    pub fn start(stack: &Stack, count: i32) -> Writers {
        let shared = Arc::new(Shared {
            stop: AtomicBool::default(),
            acknowledged: AtomicU64::default(),
            last: LastWrite::since(clock::now(), 1),
            cuts: AtomicU64::default(),
        });
        let config = client_config(&stack.router.address, stack.router.write_port);
        let tasks = (0..count)
            .map(|number| tokio::spawn(write(config.clone(), number, shared.clone())))
            .collect();
        Writers { shared, tasks }
    }

    /// What can be seen of them while they run.
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Ends them and returns what they saw.
    pub async fn finish(self) -> Result<History> {
        self.shared.stop.store(true, Ordering::Relaxed);
        let mut all = History::default();
        for task in self.tasks {
            let history = task.await?;
            all.writes.extend(history.writes);
            all.cuts.extend(history.cuts);
        }
        Ok(all)
    }
}

async fn write(config: Config, writer: i32, shared: Arc<Shared>) -> History {
    let mut history = History::default();
    let mut backoff = FIRST_BACKOFF;
    let mut seq = 0;
    while !shared.stop.load(Ordering::Relaxed) {
        let code = match connect(&config).await {
            Ok((client, statement)) => {
                backoff = FIRST_BACKOFF;
                append(
                    &client,
                    &statement,
                    writer,
                    &mut seq,
                    &shared,
                    &mut history.writes,
                )
                .await
            }
            Err(code) => code,
        };
        if let Some(code) = code {
            history.cuts.push(Cut {
                client: writer,
                at: clock::now(),
                code,
            });
            shared.cuts.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(backoff).await;
            backoff = (backoff * 2).min(LONGEST_BACKOFF);
        }
    }
    history
}

/// A session with its statement ready, or the SQLSTATE of the refusal.
async fn connect(config: &Config) -> Result<(Client, Statement), Option<String>> {
    let open = async {
        let (client, connection) = config.connect(NoTls).await?;
        tokio::spawn(connection);
        let statement = client.prepare(APPEND).await?;
        Ok::<_, tokio_postgres::Error>((client, statement))
    };
    match tokio::time::timeout(LIMIT, open).await {
        Ok(Ok(session)) => Ok(session),
        Ok(Err(error)) => Err(Some(code_of(&error))),
        Err(_) => Err(Some("timeout".to_owned())),
    }
}

/// Appends rows until the session ends (its SQLSTATE is returned) or the run does (nothing is).
async fn append(
    client: &Client,
    statement: &Statement,
    writer: i32,
    seq: &mut i64,
    shared: &Shared,
    writes: &mut Vec<Write>,
) -> Option<String> {
    while !shared.stop.load(Ordering::Relaxed) {
        *seq += 1;
        let sent = clock::now();
        let number = *seq;
        let answer =
            tokio::time::timeout(LIMIT, client.query_one(statement, &[&writer, &number])).await;
        let done = clock::now();
        let position = match &answer {
            Ok(Ok(row)) => u64::try_from(row.get::<_, i64>(0)).unwrap_or(0),
            Ok(Err(_)) | Err(_) => 0,
        };
        let (outcome, code) = match &answer {
            Ok(Ok(_)) => (Outcome::Acknowledged, None),
            Ok(Err(error)) => (outcome_of(error), Some(code_of(error))),
            Err(_) => (Outcome::Unknown, Some("timeout".to_owned())),
        };
        writes.push(Write {
            writer,
            seq: *seq,
            sent,
            done,
            outcome,
            position,
        });
        if code.is_some() {
            return code;
        }
        shared.acknowledged.fetch_add(1, Ordering::Relaxed);
        shared.last.note(0, done);
        tokio::time::sleep(PACE).await;
    }
    None
}

/// Only an ERROR that does not itself say "unknown" proves that nothing was committed.
pub fn outcome_of(error: &tokio_postgres::Error) -> Outcome {
    match error.as_db_error() {
        Some(answer)
            if answer.severity() == "ERROR"
                && *answer.code() != SqlState::TRANSACTION_RESOLUTION_UNKNOWN =>
        {
            Outcome::Failed
        }
        Some(_) | None => Outcome::Unknown,
    }
}

/// The SQLSTATE, empty if the connection just ended.
pub fn code_of(error: &tokio_postgres::Error) -> String {
    error
        .code()
        .map(|code| code.code().to_owned())
        .unwrap_or_default()
}

/// Whether an error ended its session: whatever is asked on it then is answered by nobody.
pub fn ends_session(error: &tokio_postgres::Error) -> bool {
    let told = error.as_db_error().map(|told| told.severity());
    told.is_none_or(|severity| severity != "ERROR")
}
