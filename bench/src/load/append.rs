//! Clients that append to lists and read them, a few steps in a transaction, and the record of what each was told: the
//! history that [`crate::check::list_append`] judges.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use fastrand::Rng;
use tokio::task::JoinHandle;
use tokio_postgres::{Client, Config, NoTls, SimpleQueryMessage, Statement};
use trunkline_shared::service::clock;

use super::writers::{code_of, ends_session};
use crate::check::list_append::{History, Key, Level, Operation, Status, Transaction, Value};

/// So many lists are in use at once: few, so that transactions meet.
const LISTS: u64 = 5;
/// A list gets about so many values before another takes its place, since each read carries all of them.
const LENGTH: u64 = 40;
/// Steps of a transaction.
const STEPS: std::ops::RangeInclusive<usize> = 2..=4;
/// The pause after a transaction, which leaves two cores room for three servers.
pub const PACE: Duration = Duration::from_millis(5);
/// The pause after a connection that was refused.
const AGAIN: Duration = Duration::from_millis(20);
/// A transaction that takes longer is given up: longer than any hold of the router.
const LIMIT: Duration = Duration::from_secs(20);
/// So often the final read is tried.
const FINAL_TRIES: usize = 5;
/// Values of one client: fewer than any client appends in a run.
const VALUES: Value = 1_000_000_000;

const TABLE: &str = "DROP TABLE IF EXISTS lists; \
    CREATE TABLE lists (key int PRIMARY KEY, v bigint[] NOT NULL); GRANT ALL ON lists TO PUBLIC";
const READ: &str = "SELECT v FROM lists WHERE key = $1";
const APPEND: &str = "INSERT INTO lists VALUES ($1, ARRAY[$2::bigint]) \
    ON CONFLICT (key) DO UPDATE SET v = lists.v || excluded.v";

/// Makes the table, by a superuser's session in its database. Deadlocks, which drawn steps make often, end soon there; and
/// a read locks a part of the index instead of the whole small table, which would let hardly two transactions pass.
pub async fn prepare(direct: &Client, database: &str) -> Result<()> {
    let settings = format!(
        "ALTER DATABASE {database} SET deadlock_timeout = '20ms'; \
         ALTER DATABASE {database} SET enable_seqscan = off"
    );
    direct.batch_execute(&settings).await?;
    direct.batch_execute(TABLE).await?;
    Ok(())
}

/// What the clients were told.
#[derive(Debug, Default)]
pub struct Seen {
    /// Their transactions.
    pub history: History,
    /// Errors by SQLSTATE: empty if the connection just ended, `timeout` if no answer came.
    pub errors: BTreeMap<String, usize>,
}

/// The clients of one run.
#[derive(Debug)]
pub struct Appenders {
    stop: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<Seen>>,
}

impl Appenders {
    /// Starts this many, in pairs by each of these ways in turn, with this pause after each transaction; their steps are
    /// drawn by this number.
    pub fn start(
        ways: &[Config],
        level: Level,
        count: i32,
        seed: u64,
        pace: Duration,
    ) -> Appenders {
        let stop = Arc::new(AtomicBool::new(false));
        let appended = Arc::new(AtomicU64::new(0));
        // Of a pair one prepares its statements.
        let ways = ways.iter().flat_map(|way| [way, way]).cycle();
        let tasks = (0..count).zip(ways).map(|(number, way)| {
            let life = Life {
                pace,
                number,
                level,
                rng: Rng::with_seed(seed.wrapping_add(number.unsigned_abs().into())),
                next: Value::from(number) * VALUES,
                appended: appended.clone(),
                seen: Seen::default(),
            };
            tokio::spawn(life.live(way.clone(), stop.clone()))
        });
        let tasks = tasks.collect();
        Appenders { stop, tasks }
    }

    /// Ends them and returns what they saw.
    pub async fn finish(self) -> Result<Seen> {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Seen::default();
        for task in self.tasks {
            let seen = task.await?;
            all.history.transactions.extend(seen.history.transactions);
            for (code, count) in seen.errors {
                *all.errors.entry(code).or_default() += count;
            }
        }
        Ok(all)
    }
}

/// Reads every list that anybody appended to, in one transaction that begins after all of them.
pub async fn read_all(config: &Config, level: Level, history: &mut History) -> Result<()> {
    let operations = history.transactions.iter().flat_map(|one| &one.operations);
    let keys: BTreeSet<Key> = operations
        .map(|operation| match operation {
            Operation::Append(key, _) | Operation::Read(key, _) => *key,
        })
        .collect();
    let steps: Vec<_> = keys.into_iter().map(Step::Read).collect();
    let clients = history.transactions.iter().map(|one| one.client);
    let number = clients.max().map_or(0, |last| last + 1);
    let mut told = Vec::new();
    for _ in 0..FINAL_TRIES {
        let tried = async {
            let session = Session::open(config, false).await?;
            Ok::<_, tokio_postgres::Error>(attempt(&session, number, level, &steps).await)
        };
        match tokio::time::timeout(LIMIT, tried).await {
            Ok(Ok((transaction, heard))) if transaction.status != Status::Ok => {
                told.extend(heard.map(|heard| heard.code));
                history.transactions.push(transaction);
            }
            Ok(Ok((transaction, _))) => {
                history.transactions.push(transaction);
                return Ok(());
            }
            Ok(Err(error)) => told.push(code_of(&error)),
            Err(_) => told.push("timeout".to_owned()),
        }
    }
    bail!("the final read was answered {told:?}: without it nothing is known of what came last")
}

/// One step of a transaction to come.
#[derive(Clone, Copy, Debug)]
enum Step {
    Append(Key, Value),
    Read(Key),
}

/// A session, and how it asks.
struct Session {
    client: Client,
    /// Statements that were prepared; without them everything is a simple query.
    prepared: Option<[Statement; 2]>,
}

impl Session {
    async fn open(config: &Config, is_prepared: bool) -> Result<Session, tokio_postgres::Error> {
        let (client, connection) = config.connect(NoTls).await?;
        tokio::spawn(connection);
        let prepared = match is_prepared {
            true => Some([client.prepare(READ).await?, client.prepare(APPEND).await?]),
            false => None,
        };
        Ok(Session { client, prepared })
    }

    async fn append(&self, key: Key, value: Value) -> Result<(), tokio_postgres::Error> {
        match &self.prepared {
            Some([_, append]) => self
                .client
                .execute(append, &[&key, &value])
                .await
                .map(|_| ()),
            None => {
                let text = APPEND
                    .replace("$1", &key.to_string())
                    .replace("$2", &value.to_string());
                self.client.batch_execute(&text).await
            }
        }
    }

    async fn read(&self, key: Key) -> Result<Vec<Value>, tokio_postgres::Error> {
        if let Some([read, _]) = &self.prepared {
            let row = self.client.query_opt(read, &[&key]).await?;
            return Ok(row.map_or_else(Vec::new, |row| row.get(0)));
        }
        let text = READ.replace("$1", &key.to_string());
        let answer = self.client.simple_query(&text).await?;
        let row = answer.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0),
            _ => None,
        });
        Ok(row.map_or_else(Vec::new, list_of))
    }
}

/// A list as PostgreSQL prints an array. What is no number becomes a value that nobody appends, and is found as such.
fn list_of(text: &str) -> Vec<Value> {
    let values = text.trim_matches(['{', '}']).split(',');
    let values = values.filter(|value| !value.is_empty());
    values
        .map(|value| value.parse().unwrap_or(Value::MIN))
        .collect()
}

fn begin(level: Level) -> &'static str {
    match level {
        Level::ReadCommitted => "BEGIN ISOLATION LEVEL READ COMMITTED",
        Level::RepeatableRead => "BEGIN ISOLATION LEVEL REPEATABLE READ",
        Level::Serializable => "BEGIN ISOLATION LEVEL SERIALIZABLE",
    }
}

/// An error that a client heard.
struct Heard {
    /// Its SQLSTATE.
    code: String,
    /// The session ended with it, or nobody knows what it is at: there is nothing to roll back on it.
    is_end: bool,
}

/// One transaction, and the error if it met one.
async fn attempt(
    session: &Session,
    client: i32,
    level: Level,
    steps: &[Step],
) -> (Transaction, Option<Heard>) {
    let began = clock::now();
    let (mut operations, mut is_end_asked) = (Vec::new(), false);
    let run = async {
        session.client.batch_execute(begin(level)).await?;
        for step in steps {
            match *step {
                Step::Append(key, value) => {
                    operations.push(Operation::Append(key, value));
                    session.append(key, value).await?;
                }
                Step::Read(key) => {
                    let list = session.read(key).await?;
                    operations.push(Operation::Read(key, list));
                }
            }
        }
        is_end_asked = true;
        // The driver does not tell COMMIT from ROLLBACK in the answer: one that was answered otherwise than it was
        // done shows as a lost append.
        session.client.batch_execute("COMMIT").await
    };
    let answer = tokio::time::timeout(LIMIT, run).await;
    let end = clock::now();
    let (status, heard) = match &answer {
        Ok(Ok(())) => (Status::Ok, None),
        Ok(Err(error)) => {
            let answer = error.as_db_error();
            let told = answer.map(|answer| (answer.severity(), answer.code().code()));
            let heard = Heard {
                code: code_of(error),
                is_end: ends_session(error),
            };
            (status_of(is_end_asked, told), Some(heard))
        }
        Err(_) => {
            let heard = Heard {
                code: "timeout".to_owned(),
                is_end: true,
            };
            (status_of(is_end_asked, None), Some(heard))
        }
    };
    let transaction = Transaction {
        client,
        begin: began,
        end,
        status,
        operations,
    };
    (transaction, heard)
}

/// What an error proves, by its severity and SQLSTATE; nothing is an end without an answer. As long as its end was not
/// asked for, no transaction commits, whatever happens. After that an ERROR says that it did not, unless it says that
/// nobody knows, and 57P03 that it was never sent on.
fn status_of(is_end_asked: bool, told: Option<(&str, &str)>) -> Status {
    match (is_end_asked, told) {
        (false, _) => Status::Failed,
        (true, Some((_, "08007"))) => Status::Unknown,
        (true, Some(("ERROR", _) | (_, "57P03"))) => Status::Failed,
        (true, Some(_) | None) => Status::Unknown,
    }
}

/// One client.
struct Life {
    number: i32,
    level: Level,
    rng: Rng,
    pace: Duration,
    next: Value,
    /// By all clients.
    appended: Arc<AtomicU64>,
    seen: Seen,
}

impl Life {
    async fn live(mut self, config: Config, stop: Arc<AtomicBool>) -> Seen {
        let is_prepared = self.number % 2 == 0;
        while !stop.load(Ordering::Relaxed) {
            let open = tokio::time::timeout(LIMIT, Session::open(&config, is_prepared));
            let code = match open.await {
                Ok(Ok(session)) => {
                    self.ask(&session, &stop).await;
                    continue;
                }
                Ok(Err(error)) => code_of(&error),
                Err(_) => "timeout".to_owned(),
            };
            self.hears(code);
            tokio::time::sleep(AGAIN).await;
        }
        self.seen
    }

    /// Transactions until the session is of no use any more, or the run is over.
    async fn ask(&mut self, session: &Session, stop: &AtomicBool) {
        while !stop.load(Ordering::Relaxed) && !session.client.is_closed() {
            let steps = self.draw();
            let (transaction, heard) = attempt(session, self.number, self.level, &steps).await;
            self.seen.history.transactions.push(transaction);
            if let Some(Heard { code, is_end }) = heard {
                self.hears(code);
                if is_end || !self.roll_back(session).await {
                    return;
                }
            }
            tokio::time::sleep(self.pace).await;
        }
    }

    fn draw(&mut self) -> Vec<Step> {
        let first = self.appended.load(Ordering::Relaxed) / LENGTH;
        let mut steps = Vec::new();
        for _ in 0..self.rng.usize(STEPS) {
            let key = Key::try_from(first + self.rng.u64(..LISTS)).unwrap_or(Key::MAX);
            steps.push(match self.rng.bool() {
                true => {
                    self.next += 1;
                    self.appended.fetch_add(1, Ordering::Relaxed);
                    Step::Append(key, self.next)
                }
                false => Step::Read(key),
            });
        }
        steps
    }

    fn hears(&mut self, code: String) {
        *self.seen.errors.entry(code).or_default() += 1;
    }

    /// A transaction that failed is still open, unless its COMMIT did; whether the session can go on.
    async fn roll_back(&mut self, session: &Session) -> bool {
        let rollback = session.client.batch_execute("ROLLBACK");
        match tokio::time::timeout(LIMIT, rollback).await {
            Ok(Ok(())) => true,
            Ok(Err(error)) => {
                self.hears(code_of(&error));
                !session.client.is_closed()
            }
            Err(_) => {
                self.hears("timeout".to_owned());
                false
            }
        }
    }
}

/// A superuser's session by these settings.
pub async fn connect(config: &Config) -> Result<Client> {
    let opened = tokio::time::timeout(LIMIT, config.connect(NoTls)).await;
    let (client, connection) = opened.context("no answer to a log-in")??;
    tokio::spawn(connection);
    Ok(client)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_array_is_read_as_postgresql_prints_it() {
        assert_eq!(list_of("{1,20,-3}"), [1, 20, -3]);
        assert!(list_of("{}").is_empty());
        assert_eq!(list_of("{1,NULL}"), [1, Value::MIN]);
    }

    #[test]
    fn nothing_commits_whose_end_was_not_asked_for() {
        for told in [
            None,
            Some(("ERROR", "40001")),
            Some(("FATAL", "57P01")),
            Some(("ERROR", "08007")),
        ] {
            assert_eq!(status_of(false, told), Status::Failed, "{told:?}");
        }
    }

    #[test]
    fn after_its_commit_was_sent_only_an_error_that_says_so_means_that_it_failed() {
        for code in ["40001", "40P01", "25P02"] {
            assert_eq!(status_of(true, Some(("ERROR", code))), Status::Failed);
        }
        assert_eq!(status_of(true, Some(("FATAL", "57P03"))), Status::Failed);
        for told in [
            None,
            Some(("ERROR", "08007")),
            Some(("FATAL", "08007")),
            Some(("FATAL", "57P01")),
        ] {
            assert_eq!(status_of(true, told), Status::Unknown, "{told:?}");
        }
    }
}
