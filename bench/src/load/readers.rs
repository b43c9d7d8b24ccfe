//! Readers on the read port, and idle sessions whose end is timed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::task::JoinHandle;
use tokio_postgres::{Client, Config, NoTls};
use trunkline_shared::cluster::Moment;
use trunkline_shared::service::clock;

use super::history::{Cut, longest};
use super::writers::{client_config, code_of};
use crate::stack::Stack;

/// The pause between two reads of one reader.
const PACE: Duration = Duration::from_millis(10);
/// The pause after a refused connection.
const BACKOFF: Duration = Duration::from_millis(10);
/// A read that takes longer is given up.
const LIMIT: Duration = Duration::from_secs(20);

/// What the readers saw.
#[derive(Clone, Debug, Default)]
pub struct Reads {
    /// When each read was answered.
    pub done: Vec<Moment>,
    /// Answers by a server that was not in recovery: a replica's port must not give them.
    pub by_primary: usize,
    /// The ends of connections.
    pub cuts: Vec<Cut>,
}

impl Reads {
    /// The longest time without an answer to anybody between two moments.
    pub fn longest_gap(&self, from: Moment, to: Moment) -> Duration {
        let mut stamps = self.done.clone();
        stamps.sort();
        longest(&stamps, from, to)
    }
}

/// The readers of one run.
#[derive(Debug)]
pub struct Readers {
    stop: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<Reads>>,
}

impl Readers {
    /// Starts this many on the router's read port.
    pub fn start(stack: &Stack, count: i32) -> Readers {
        let stop = Arc::new(AtomicBool::new(false));
        let config = client_config(&stack.router.address, stack.router.read_port);
        let tasks = (0..count)
            .map(|number| tokio::spawn(read(config.clone(), number, stop.clone())))
            .collect();
        Readers { stop, tasks }
    }

    /// Ends them and returns what they saw.
    pub async fn finish(self) -> Result<Reads> {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Reads::default();
        for task in self.tasks {
            let reads = task.await?;
            all.done.extend(reads.done);
            all.cuts.extend(reads.cuts);
            all.by_primary += reads.by_primary;
        }
        Ok(all)
    }
}

async fn read(config: Config, number: i32, stop: Arc<AtomicBool>) -> Reads {
    let mut reads = Reads::default();
    let mut session: Option<Client> = None;
    while !stop.load(Ordering::Relaxed) {
        let turn = async {
            let client = match session.take() {
                Some(client) => client,
                None => {
                    let (client, connection) = config.connect(NoTls).await?;
                    tokio::spawn(connection);
                    client
                }
            };
            let in_recovery: bool = client
                .query_one("SELECT pg_is_in_recovery()", &[])
                .await?
                .get(0);
            Ok::<_, tokio_postgres::Error>((client, in_recovery))
        };
        let code = match tokio::time::timeout(LIMIT, turn).await {
            Ok(Ok((client, in_recovery))) => {
                reads.done.push(clock::now());
                reads.by_primary += usize::from(!in_recovery);
                session = Some(client);
                tokio::time::sleep(PACE).await;
                continue;
            }
            Ok(Err(error)) => code_of(&error),
            Err(_) => "timeout".to_owned(),
        };
        reads.cuts.push(Cut {
            client: number,
            at: clock::now(),
            code,
        });
        tokio::time::sleep(BACKOFF).await;
    }
    reads
}

/// Idle sessions through the write port, each waiting for its end.
#[derive(Debug)]
pub struct IdleSessions {
    clients: Vec<Client>,
    ends: Vec<JoinHandle<Moment>>,
}

impl IdleSessions {
    /// Opens this many.
    pub async fn open(stack: &Stack, count: usize) -> Result<IdleSessions> {
        let config = client_config(&stack.router.address, stack.router.write_port);
        let (mut clients, mut ends) = (Vec::new(), Vec::new());
        for _ in 0..count {
            let (client, connection) = config
                .connect(NoTls)
                .await
                .context("cannot open an idle session")?;
            clients.push(client);
            ends.push(tokio::spawn(async move {
                connection.await.ok();
                clock::now()
            }));
        }
        Ok(IdleSessions { clients, ends })
    }

    /// When each of them ended; those that outlive `limit` are counted by the second value.
    pub async fn ended(self, limit: Duration) -> (Vec<Moment>, usize) {
        let deadline = tokio::time::Instant::now() + limit;
        let (mut ended, mut alive) = (Vec::new(), 0);
        for end in self.ends {
            match tokio::time::timeout_at(deadline, end).await {
                Ok(Ok(at)) => ended.push(at),
                Ok(Err(_)) | Err(_) => alive += 1,
            }
        }
        drop(self.clients);
        (ended, alive)
    }
}
