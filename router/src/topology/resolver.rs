//! Names in the members' records to addresses, beside the data path. The last good answer is kept.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::lookup_host;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use super::routing_table::RoutingTable;

/// How long one lookup may take.
const LOOKUP_TIME: Duration = Duration::from_secs(1);
/// How often a name is looked up again.
const LOOKUP_EVERY: Duration = Duration::from_secs(10);

/// The names in use and what they lead to.
#[derive(Default)]
pub struct Resolver {
    known: BTreeMap<Arc<str>, Vec<SocketAddr>>,
    wanted: BTreeSet<Arc<str>>,
    running: JoinSet<(Arc<str>, Vec<SocketAddr>)>,
    next: Option<Instant>,
    has_news: bool,
}

impl Resolver {
    /// Looks up the names of the table that are new.
    pub fn want(&mut self, table: &RoutingTable) {
        let readers = table.readers.values().map(|r| &r.address);
        let last = table.last.iter().map(|l| &l.address);
        for address in readers.chain(last) {
            let is_name = !address.is_empty() && address.parse::<SocketAddr>().is_err();
            if is_name && self.wanted.insert(address.clone()) {
                self.look_up(address.clone());
                self.next.get_or_insert(Instant::now() + LOOKUP_EVERY);
            }
        }
    }

    fn look_up(&mut self, address: Arc<str>) {
        self.running.spawn(async move {
            let found = match timeout(LOOKUP_TIME, lookup_host(&*address)).await {
                Ok(Ok(found)) => found.collect(),
                Ok(Err(_)) | Err(_) => Vec::new(),
            };
            (address, found)
        });
    }

    /// Waits until a name leads somewhere else than before.
    pub async fn resolved(&mut self) {
        loop {
            let next = self.next;
            let timer = async {
                match next {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                Some(done) = self.running.join_next() => {
                    if let Ok((address, found)) = done
                        && !found.is_empty()
                        && self.known.get(&address) != Some(&found)
                    {
                        self.known.insert(address, found);
                        self.has_news = true;
                        return;
                    }
                }
                () = timer => {
                    self.next = Some(Instant::now() + LOOKUP_EVERY);
                    for address in self.wanted.clone() {
                        self.look_up(address);
                    }
                }
                else => std::future::pending().await,
            }
        }
    }

    /// Whether something was resolved since the last call.
    pub fn take_news(&mut self) -> bool {
        std::mem::take(&mut self.has_news)
    }

    /// What is known.
    pub fn known(&self) -> &BTreeMap<Arc<str>, Vec<SocketAddr>> {
        &self.known
    }
}
