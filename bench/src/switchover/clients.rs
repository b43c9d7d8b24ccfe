//! Clients of a pooled listener that write in every way: single statements, prepared ones, transactions of several
//! statements, COPY. Each remembers what it was told.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Result;
use futures_util::SinkExt;
use tokio::task::JoinHandle;
use tokio_postgres::{Client, Config, NoTls, Statement};
use trunkline_shared::cluster::Moment;
use trunkline_shared::service::clock;

use crate::load::history::{Cut, History, Outcome, Write};
use crate::load::writers::{code_of, outcome_of};

/// The pause after a write: sixteen clients then ask for about a thousand a second, which leaves two cores room for
/// three servers.
const PACE: Duration = Duration::from_millis(10);
/// A transaction stays open for so long between its statements.
const THINKS: Duration = Duration::from_millis(2);
/// Between two tries to connect.
const AGAIN: Duration = Duration::from_millis(20);
/// An answer that takes longer is given up: longer than any hold of the router.
const LIMIT: Duration = Duration::from_secs(20);

/// The table that they write.
pub const TABLE: &str =
    "CREATE TABLE moved (client int, seq bigint, part int); GRANT ALL ON moved TO PUBLIC";
/// What is in it: client, number, parts.
pub const ROWS: &str =
    "SELECT client, seq, count(*), count(DISTINCT part) FROM moved GROUP BY client, seq";

/// How a client writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// One statement, by the simple protocol.
    Simple,
    /// One statement that was prepared.
    Prepared,
    /// A transaction of two statements.
    Transaction,
    /// COPY of two rows.
    Copy,
}

impl Kind {
    /// The kind of a client of this number.
    pub fn of(client: i32) -> Kind {
        match client % 4 {
            0 => Kind::Simple,
            1 => Kind::Prepared,
            2 => Kind::Transaction,
            _ => Kind::Copy,
        }
    }

    /// Rows of one write.
    pub fn parts(self) -> i64 {
        match self {
            Kind::Simple | Kind::Prepared => 1,
            Kind::Transaction | Kind::Copy => 2,
        }
    }
}

/// When a write of any client was acknowledged last.
#[derive(Clone, Debug, Default)]
pub struct LastWrite(Arc<AtomicU64>);

impl LastWrite {
    /// That moment.
    pub fn done(&self) -> Moment {
        Moment(self.0.load(Ordering::Relaxed))
    }
}

/// The clients of one run.
pub struct Clients {
    stop: Arc<AtomicBool>,
    last: LastWrite,
    /// Each, and whether it is on the second router.
    tasks: Vec<(JoinHandle<History>, bool)>,
}

impl Clients {
    /// Starts this many; of each kind as many on the second router, where there is one.
    pub fn start(first: &Config, second: Option<&Config>, count: i32) -> Clients {
        let stop = Arc::new(AtomicBool::new(false));
        let last = LastWrite::default();
        let tasks = (0..count).map(|number| {
            let (config, is_second) = match second {
                Some(second) if number / 4 % 2 == 1 => (second, true),
                Some(_) | None => (first, false),
            };
            let task = tokio::spawn(live(config.clone(), number, stop.clone(), last.clone()));
            (task, is_second)
        });
        let tasks = tasks.collect();
        Clients { stop, last, tasks }
    }

    /// What tells of their last write while they run.
    pub fn last_write(&self) -> LastWrite {
        self.last.clone()
    }

    /// Ends them and returns what they saw, on the first router and on the second.
    pub async fn finish(self) -> Result<[History; 2]> {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = [History::default(), History::default()];
        for (task, is_second) in self.tasks {
            let history = task.await?;
            let own = &mut all[usize::from(is_second)];
            own.writes.extend(history.writes);
            own.cuts.extend(history.cuts);
        }
        Ok(all)
    }
}

async fn live(config: Config, number: i32, stop: Arc<AtomicBool>, last: LastWrite) -> History {
    let mut history = History::default();
    let mut seq = 0;
    while !stop.load(Ordering::Relaxed) {
        let Some((client, statement)) = connect(&config, number, &mut history).await else {
            tokio::time::sleep(AGAIN).await;
            continue;
        };
        while !stop.load(Ordering::Relaxed) && !client.is_closed() {
            seq += 1;
            let sent = clock::now();
            let written = tokio::time::timeout(LIMIT, write(&client, &statement, number, seq));
            let (outcome, code) = match written.await {
                Ok(Ok(())) => (Outcome::Acknowledged, None),
                Ok(Err(error)) => (outcome_of(&error), Some(code_of(&error))),
                Err(_) => (Outcome::Unknown, Some("timeout".to_owned())),
            };
            let done = clock::now();
            history.writes.push(Write {
                writer: number,
                seq,
                sent,
                done,
                outcome,
                position: 0,
            });
            let Some(code) = code else {
                last.0.fetch_max(done.0, Ordering::Relaxed);
                tokio::time::sleep(PACE).await;
                continue;
            };
            let is_timeout = code == "timeout";
            history.cuts.push(Cut {
                client: number,
                at: done,
                code,
            });
            if is_timeout {
                break;
            }
            // A transaction that failed is still open.
            if Kind::of(number) == Kind::Transaction {
                let _ = tokio::time::timeout(LIMIT, client.batch_execute("ROLLBACK")).await;
            }
        }
    }
    history
}

async fn connect(
    config: &Config,
    number: i32,
    history: &mut History,
) -> Option<(Client, Statement)> {
    let open = async {
        let (client, connection) = config.connect(NoTls).await?;
        tokio::spawn(connection);
        let statement = client
            .prepare("INSERT INTO moved VALUES ($1, $2, 1)")
            .await?;
        Ok::<_, tokio_postgres::Error>((client, statement))
    };
    let code = match tokio::time::timeout(LIMIT, open).await {
        Ok(Ok(session)) => return Some(session),
        Ok(Err(error)) => code_of(&error),
        Err(_) => "timeout".to_owned(),
    };
    history.cuts.push(Cut {
        client: number,
        at: clock::now(),
        code,
    });
    None
}

async fn write(
    client: &Client,
    statement: &Statement,
    number: i32,
    seq: i64,
) -> Result<(), tokio_postgres::Error> {
    let insert = |part: i32| format!("INSERT INTO moved VALUES ({number}, {seq}, {part})");
    match Kind::of(number) {
        Kind::Simple => client.batch_execute(&insert(1)).await,
        Kind::Prepared => client
            .execute(statement, &[&number, &seq])
            .await
            .map(|_| ()),
        Kind::Transaction => {
            client.batch_execute("BEGIN").await?;
            client.batch_execute(&insert(1)).await?;
            tokio::time::sleep(THINKS).await;
            client.batch_execute(&insert(2)).await?;
            client.batch_execute("COMMIT").await
        }
        Kind::Copy => {
            let sink = client.copy_in("COPY moved FROM STDIN").await?;
            let mut sink = std::pin::pin!(sink);
            let rows = format!("{number}\t{seq}\t1\n{number}\t{seq}\t2\n");
            sink.send(std::io::Cursor::new(rows.into_bytes())).await?;
            sink.finish().await.map(|_| ())
        }
    }
}
