//! Who is there in every row: clients that write rows, clients that append to lists and read them, readers on the read
//! ports; half of each on either router.

use std::ops::Range;
use std::time::Duration;

use anyhow::{Result, bail};
use tokio_postgres::Config;
use trunkline_shared::service::clock;

use super::lists::{LEVEL, Lists};
use crate::load::append::{self, Appenders};
use crate::load::writers;
use crate::serial::replicas::Readers;
use crate::stack::{APP, Stack};
use crate::switchover::clients::{Clients, Seen};

/// Clients of the lists, on all routers.
const APPENDERS: i32 = 4;
/// The pause after each of their transactions, and between two looks of a reader: they are to see what happens, and
/// leave two cores to the others.
const PACE: Duration = Duration::from_millis(25);
const READ_PACE: Duration = Duration::from_millis(150);
/// Every member has empty lists within this.
const CLEARED: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(20);

/// All of them.
pub struct Load {
    /// Those that write rows.
    pub clients: Clients,
    appenders: Appenders,
    readers: Vec<Readers>,
    /// How a client comes in, for the final read.
    config: Config,
}

impl Load {
    /// Starts them, by these ways in.
    pub fn start(
        stack: &Stack,
        first: &Config,
        second: Option<&Config>,
        numbers: Range<i32>,
        seed: u64,
    ) -> Load {
        let ways: Vec<_> = [Some(first), second]
            .into_iter()
            .flatten()
            .cloned()
            .collect();
        let routers = std::iter::once(&stack.router).chain(&stack.second_router);
        let readers = routers.map(|router| {
            let config = writers::client_config(&router.address, router.read_port);
            Readers::start(&config, 1, READ_PACE)
        });
        Load {
            clients: Clients::numbered(first, second, numbers),
            appenders: Appenders::start(&ways, LEVEL, APPENDERS, seed, PACE),
            readers: readers.collect(),
            config: first.clone(),
        }
    }

    /// The same on one server that nobody stands before.
    pub fn on_one_server(config: &Config, numbers: Range<i32>, seed: u64) -> Load {
        let ways = std::slice::from_ref(config);
        Load {
            clients: Clients::numbered(config, None, numbers),
            appenders: Appenders::start(ways, LEVEL, APPENDERS, seed, PACE),
            readers: Vec::new(),
            config: config.clone(),
        }
    }

    /// Ends them: what the clients saw by router, and the lists, if they could be read once more.
    pub async fn finish(self) -> Result<([Seen; 2], Result<Lists>)> {
        let seen = self.clients.seen().await?;
        let mut lists = Lists::default();
        for readers in self.readers {
            lists.looks.extend(readers.finish().await?.all);
        }
        let mut history = self.appenders.finish().await?.history;
        let read = append::read_all(&self.config, LEVEL, &mut history).await;
        lists.history = history;
        Ok((seen, read.map(|()| lists)))
    }
}

/// Empties the lists on every member: clients of the next row use the same keys.
pub async fn clear(stack: &Stack, leader: usize) -> Result<()> {
    let direct = stack.members[leader].sql(APP).await?;
    direct.batch_execute("DELETE FROM lists").await?;
    let deadline = clock::now() + CLEARED;
    for member in &stack.members {
        let direct = member.sql(APP).await?;
        loop {
            let left = direct.query_one("SELECT count(*) FROM lists", &[]).await?;
            if left.get::<_, i64>(0) == 0 {
                break;
            }
            if clock::now() >= deadline {
                let name = &member.name;
                bail!("{name} did not replay within {CLEARED:?} that the lists are empty");
            }
            tokio::time::sleep(LOOK).await;
        }
    }
    Ok(())
}
