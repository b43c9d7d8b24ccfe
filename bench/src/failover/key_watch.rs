//! The leader key as an outside watcher sees it: each change with its time by the harness's clock.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Child;
use trunkline_shared::cluster::Moment;
use trunkline_shared::service::clock;

use crate::stack::etcd::Etcd;
use crate::stack::leader_key;

const LOOK: Duration = Duration::from_millis(2);

/// One change of the leader key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyChange {
    /// When the harness saw it.
    pub at: Moment,
    /// The new leader's name; nothing if the key ended.
    pub leader: Option<String>,
}

/// A running watch.
#[derive(Debug)]
pub struct KeyWatch {
    changes: Arc<Mutex<Vec<KeyChange>>>,
    _child: Child,
}

impl KeyWatch {
    /// Watches through one etcd member, which must stay reachable.
    pub fn start(etcd: &Etcd) -> Result<KeyWatch> {
        let mut child = etcd.watch(&leader_key())?;
        let output = child.stdout.take().context("etcdctl watch has no output")?;
        let changes = Arc::new(Mutex::new(Vec::new()));
        let seen = changes.clone();
        tokio::spawn(async move {
            let mut lines = BufReader::new(output).lines();
            while let Ok(Some(kind)) = lines.next_line().await {
                let at = clock::now();
                let leader = match kind.as_str() {
                    "DELETE" => None,
                    "PUT" => {
                        lines.next_line().await.ok();
                        lines.next_line().await.ok().flatten()
                    }
                    _ => continue,
                };
                let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
                seen.push(KeyChange { at, leader });
            }
        });
        Ok(KeyWatch {
            changes,
            _child: child,
        })
    }

    /// Everything seen so far.
    pub fn changes(&self) -> Vec<KeyChange> {
        self.changes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Waits for the first change after `since` that `wanted` accepts.
    pub async fn until(
        &self,
        what: &str,
        since: Moment,
        limit: Duration,
        wanted: impl Fn(&KeyChange) -> bool,
    ) -> Result<KeyChange> {
        let deadline = clock::now() + limit;
        loop {
            let found = self
                .changes()
                .into_iter()
                .find(|change| change.at >= since && wanted(change));
            if let Some(change) = found {
                return Ok(change);
            }
            if clock::now() >= deadline {
                bail!("the leader key did not show {what} within {limit:?}");
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}
