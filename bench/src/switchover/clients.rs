//! Clients of a pooled listener that write in every way: single statements, prepared ones, transactions of several
//! statements, COPY. Each remembers what it was told.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Result, bail};
use futures_util::SinkExt;
use serde::Serialize;
use tokio::task::JoinHandle;
use tokio_postgres::{Client, Config, NoTls, SimpleQueryMessage, Statement};
use trunkline_shared::cluster::Moment;
use trunkline_shared::service::clock;

use crate::load::history::{Cut, History, Outcome, Write};
use crate::load::last_write::LastWrite;
use crate::load::writers::{self, code_of, ends_session, outcome_of};
use crate::stack::{APP, Stack};

/// The pause after a write: sixteen clients then ask for about a thousand a second, which leaves two cores room for
/// three servers.
const PACE: Duration = Duration::from_millis(10);
/// A transaction stays open for so long between its statements.
const THINKS: Duration = Duration::from_millis(2);
/// Between two tries to connect.
const AGAIN: Duration = Duration::from_millis(20);
/// An answer that takes longer is given up: longer than any hold of the router.
const LIMIT: Duration = Duration::from_secs(20);
/// Between two looks at whether all of them write.
const LOOK: Duration = Duration::from_millis(20);
/// Makes a server name the WAL position that a row was written behind.
const POSITION: &str = "RETURNING (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::bigint";

/// The table that they write.
pub const TABLE: &str =
    "CREATE TABLE moved (client int, seq bigint, part int); GRANT ALL ON moved TO PUBLIC";
/// What is in it of clients from the number `$1` on: client, number, parts.
pub const ROWS: &str = "SELECT client, seq, count(*), count(DISTINCT part) FROM moved \
    WHERE client >= $1 GROUP BY client, seq";

/// Makes the load's user, database and tables, on the leader itself.
pub async fn prepare(stack: &Stack, leader: usize) -> Result<()> {
    writers::prepare(stack, leader).await?;
    let direct = stack.members[leader].sql(APP).await?;
    direct.batch_execute(TABLE).await?;
    Ok(())
}

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

/// What a client asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// A session.
    Connect,
    /// That a statement is prepared, outside of a transaction.
    Prepare,
    /// A statement that is a transaction of its own.
    Statement,
    /// The beginning of a transaction.
    Begin,
    /// A statement within one.
    Inside,
    /// The end of one.
    Commit,
    /// A COPY, before its rows.
    CopyBegin,
    /// Its rows and its end.
    CopyEnd,
    /// The end of a transaction that has failed.
    Rollback,
}

/// An error as a client heard it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// The client's number.
    pub client: i32,
    /// The number of its write; of the last one, if it was for none.
    pub seq: i64,
    /// What it had asked for.
    pub request: Request,
    /// When the write began.
    pub began: Moment,
    /// When that request was handed over.
    pub sent: Moment,
    /// When the error came.
    pub at: Moment,
    /// Its SQLSTATE, `timeout` if no answer came, empty if the server said none.
    pub code: String,
    /// What the client's driver makes of it: the only trace of an answer that is not what was asked for.
    pub words: String,
    /// The session ended with it.
    pub is_fatal: bool,
}

/// What clients saw.
#[derive(Debug, Default)]
pub struct Seen {
    /// Writes, and the errors in the order in which each client heard them.
    pub history: History,
    /// The errors again, with what was asked for, and those of a ROLLBACK, too.
    pub told: Vec<Told>,
}

/// The clients of one run.
pub struct Clients {
    stop: Arc<AtomicBool>,
    /// Each, and whether it is on the second router.
    tasks: Vec<(JoinHandle<Seen>, bool)>,
    last: LastWrite,
}

impl Clients {
    /// Starts this many; of each kind as many on the second router, where there is one.
    pub fn start(first: &Config, second: Option<&Config>, count: i32) -> Clients {
        Clients::numbered(first, second, 0..count)
    }

    /// The same with these numbers, of which the first is a multiple of eight: so that the rows of one set of clients are
    /// told from those of another.
    pub fn numbered(first: &Config, second: Option<&Config>, numbers: Range<i32>) -> Clients {
        let stop = Arc::new(AtomicBool::new(false));
        let last = LastWrite::since(Moment::default(), numbers.len());
        let tasks = numbers.enumerate().map(|(place, number)| {
            let (config, is_second) = match second {
                Some(second) if number / 4 % 2 == 1 => (second, true),
                Some(_) | None => (first, false),
            };
            let told = last.clone();
            let note = move |at| told.note(place, at);
            let task = live(config.clone(), number, stop.clone(), note);
            (tokio::spawn(task), is_second)
        });
        let tasks = tasks.collect();
        Clients { stop, tasks, last }
    }

    /// What tells of their last writes while they run.
    pub fn last_write(&self) -> LastWrite {
        self.last.clone()
    }

    /// Waits until each of them was told, after this moment, that a write is committed.
    pub async fn until_all_write(&self, since: Moment, limit: Duration) -> Result<()> {
        let deadline = clock::now() + limit;
        loop {
            let late = self.last.stamps().filter(|last| *last <= since).count();
            if late == 0 {
                return Ok(());
            }
            if clock::now() >= deadline {
                bail!("{late} clients wrote nothing for {limit:?}");
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Ends them and returns what they saw, on the first router and on the second.
    pub async fn finish(self) -> Result<[History; 2]> {
        Ok(self.seen().await?.map(|seen| seen.history))
    }

    /// The same, with what each error was the answer to.
    pub async fn seen(mut self) -> Result<[Seen; 2]> {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = [Seen::default(), Seen::default()];
        for (task, is_second) in std::mem::take(&mut self.tasks) {
            let seen = task.await?;
            let own = &mut all[usize::from(is_second)];
            own.history.writes.extend(seen.history.writes);
            own.history.cuts.extend(seen.history.cuts);
            own.told.extend(seen.told);
        }
        Ok(all)
    }
}

impl Drop for Clients {
    /// Nobody goes on beside the next run.
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

async fn live(config: Config, number: i32, stop: Arc<AtomicBool>, note: impl Fn(Moment)) -> Seen {
    let mut life = Life {
        number,
        seq: 0,
        began: clock::now(),
        request: Request::Connect,
        sent: clock::now(),
        seen: Seen::default(),
    };
    while !stop.load(Ordering::Relaxed) {
        let Some((client, statement)) = life.connect(&config).await else {
            tokio::time::sleep(AGAIN).await;
            continue;
        };
        while !stop.load(Ordering::Relaxed) && !client.is_closed() {
            match life.write_one(&client, &statement).await {
                Heard::Acknowledged(at) => {
                    note(at);
                    tokio::time::sleep(PACE).await;
                }
                // What comes behind a FATAL is no answer any more, only the end of the session.
                Heard::Error if life.is_over() => break,
                Heard::Error => {}
                Heard::Nothing => break,
            }
        }
    }
    life.seen
}

/// How a write ended for its client.
enum Heard {
    Acknowledged(Moment),
    Error,
    /// The session is given up.
    Nothing,
}

/// One client: what it asks for now, and what it has seen.
struct Life {
    number: i32,
    seq: i64,
    began: Moment,
    request: Request,
    sent: Moment,
    seen: Seen,
}

impl Life {
    fn asks(&mut self, request: Request) {
        (self.request, self.sent) = (request, clock::now());
    }

    /// Whether what was heard last ended the session.
    fn is_over(&self) -> bool {
        self.seen.told.last().is_some_and(|told| told.is_fatal)
    }

    /// Notes an error of the request that was made last; no error at all is an answer that did not come.
    fn hears(&mut self, error: Option<&tokio_postgres::Error>) -> Moment {
        let at = clock::now();
        let code = error.map_or_else(|| "timeout".to_owned(), code_of);
        self.seen.told.push(Told {
            client: self.number,
            seq: self.seq,
            request: self.request,
            began: self.began,
            sent: self.sent,
            at,
            code: code.clone(),
            words: error.map_or_else(String::new, words_of),
            is_fatal: error.is_none_or(ends_session),
        });
        if self.request != Request::Rollback {
            let client = self.number;
            self.seen.history.cuts.push(Cut { client, at, code });
        }
        at
    }

    async fn connect(&mut self, config: &Config) -> Option<(Client, Statement)> {
        self.began = clock::now();
        let open = tokio::time::timeout(LIMIT, self.open(config)).await;
        match open {
            Ok(Ok(session)) => return Some(session),
            Ok(Err(error)) => self.hears(Some(&error)),
            Err(_) => self.hears(None),
        };
        None
    }

    async fn open(
        &mut self,
        config: &Config,
    ) -> Result<(Client, Statement), tokio_postgres::Error> {
        self.asks(Request::Connect);
        let (client, connection) = config.connect(NoTls).await?;
        tokio::spawn(connection);
        self.asks(Request::Prepare);
        let insert = format!("INSERT INTO moved VALUES ($1, $2, 1) {POSITION}");
        let statement = client.prepare(&insert).await?;
        Ok((client, statement))
    }

    async fn write_one(&mut self, client: &Client, statement: &Statement) -> Heard {
        self.seq += 1;
        self.began = clock::now();
        let written = tokio::time::timeout(LIMIT, self.write(client, statement)).await;
        let (done, outcome, position) = match &written {
            Ok(Ok(position)) => (clock::now(), Outcome::Acknowledged, *position),
            Ok(Err(error)) => (self.hears(Some(error)), outcome_of(error), 0),
            Err(_) => (self.hears(None), Outcome::Unknown, 0),
        };
        self.seen.history.writes.push(Write {
            writer: self.number,
            seq: self.seq,
            sent: self.began,
            done,
            outcome,
            position,
        });
        match written {
            Ok(Ok(_)) => Heard::Acknowledged(done),
            // The driver sends one more Sync behind a COPY that fails before its rows, whose answer it takes for that of
            // the next request, with any server (rust-postgres issue 789). A session on which a COPY failed is given up.
            Ok(Err(_)) if matches!(self.request, Request::CopyBegin | Request::CopyEnd) => {
                Heard::Nothing
            }
            Ok(Err(error)) if ends_session(&error) => Heard::Nothing,
            Ok(Err(_)) => {
                self.roll_back(client).await;
                Heard::Error
            }
            Err(_) => Heard::Nothing,
        }
    }

    /// A transaction that failed is still open.
    async fn roll_back(&mut self, client: &Client) {
        if Kind::of(self.number) != Kind::Transaction || client.is_closed() {
            return;
        }
        self.asks(Request::Rollback);
        match tokio::time::timeout(LIMIT, client.batch_execute("ROLLBACK")).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                self.hears(Some(&error));
            }
            Err(_) => {
                self.hears(None);
            }
        }
    }

    /// Writes as clients of this kind do; the WAL position if the server names one, else 0.
    async fn write(
        &mut self,
        client: &Client,
        statement: &Statement,
    ) -> Result<u64, tokio_postgres::Error> {
        let (number, seq) = (self.number, self.seq);
        let insert =
            |part: i32| format!("INSERT INTO moved VALUES ({number}, {seq}, {part}) {POSITION}");
        match Kind::of(number) {
            Kind::Simple => {
                self.asks(Request::Statement);
                Ok(named(&client.simple_query(&insert(1)).await?))
            }
            Kind::Prepared => {
                self.asks(Request::Statement);
                let row = client.query_one(statement, &[&number, &seq]).await?;
                Ok(u64::try_from(row.get::<_, i64>(0)).unwrap_or_default())
            }
            Kind::Transaction => {
                self.asks(Request::Begin);
                client.batch_execute("BEGIN").await?;
                self.asks(Request::Inside);
                client.batch_execute(&insert(1)).await?;
                tokio::time::sleep(THINKS).await;
                self.asks(Request::Inside);
                let position = named(&client.simple_query(&insert(2)).await?);
                self.asks(Request::Commit);
                client.batch_execute("COMMIT").await?;
                Ok(position)
            }
            Kind::Copy => {
                self.asks(Request::Prepare);
                let copy = client.prepare("COPY moved FROM STDIN").await?;
                self.asks(Request::CopyBegin);
                let sink = client.copy_in(&copy).await?;
                let mut sink = std::pin::pin!(sink);
                self.asks(Request::CopyEnd);
                let rows = format!("{number}\t{seq}\t1\n{number}\t{seq}\t2\n");
                sink.send(std::io::Cursor::new(rows.into_bytes())).await?;
                sink.as_mut().finish().await?;
                // The server commits at the Sync behind it, and a crash may send what was said before that: only what
                // comes next counts. The driver does not expect the end of a batch there, which is the good answer.
                match sink.finish().await {
                    Err(error) if error.as_db_error().is_some() || error.is_closed() => Err(error),
                    Ok(_) | Err(_) => Ok(0),
                }
            }
        }
    }
}

/// An error and its cause.
fn words_of(error: &tokio_postgres::Error) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

/// The WAL position in the answer to a simple statement, 0 if there is none.
fn named(answer: &[SimpleQueryMessage]) -> u64 {
    let row = answer.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0),
        _ => None,
    });
    row.and_then(|text| text.parse().ok()).unwrap_or_default()
}
