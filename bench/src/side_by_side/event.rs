//! What is done to each of them.

use std::fmt;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use rustix::process::Signal;
use serde::Serialize;
use trunkline_shared::cluster::Moment;
use trunkline_shared::service::clock;

use super::site::Site;
use crate::fault::{node, store};
use crate::switchover::clients::Clients;

/// Another member must lead, and clients write, within this.
const LIMIT: Duration = Duration::from_secs(180);
const LOOK: Duration = Duration::from_millis(100);

/// One of the faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Event {
    /// The operator moves leadership
    Switchover,
    /// The leader's postmaster is killed
    PostmasterKilled,
    /// The leader's node is cut off, until another member leads and clients write; needs root
    NodeCutOff,
    /// All of etcd is stopped
    EtcdOutage,
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Event::Switchover => "switchover",
            Event::PostmasterKilled => "postmaster killed",
            Event::NodeCutOff => "node cut off",
            Event::EtcdOutage => "etcd outage",
        })
    }
}

impl Event {
    /// Does it need nodes that can be cut apart?
    pub fn needs_namespaces(self) -> bool {
        match self {
            Event::NodeCutOff => true,
            Event::Switchover | Event::PostmasterKilled | Event::EtcdOutage => false,
        }
    }

    /// May acknowledged writes be lost, since replication is asynchronous and the leader's end sudden?
    pub fn may_lose(self) -> bool {
        match self {
            Event::PostmasterKilled | Event::NodeCutOff => true,
            Event::Switchover | Event::EtcdOutage => false,
        }
    }

    /// Does it, and ends it; says when it began.
    pub async fn inflict(
        self,
        site: &mut Site,
        load: &Clients,
        outage: Duration,
    ) -> Result<Moment> {
        match self {
            Event::Switchover => {
                let began = clock::now();
                site.switch_over().await?;
                Ok(began)
            }
            Event::PostmasterKilled => {
                let stack = site.stack();
                let leader = &stack.members[stack.leader().await?];
                let postmaster = leader.postmaster();
                let postmaster = postmaster.context("the leader has no postmaster")?;
                let began = clock::now();
                postmaster.signal(Signal::KILL);
                Ok(began)
            }
            Event::NodeCutOff => cut_off(site, load).await,
            Event::EtcdOutage => {
                let began = clock::now();
                store::stop_all(site.stack_mut()).await?;
                tokio::time::sleep(outage).await;
                store::start_all(site.stack_mut()).await?;
                Ok(began)
            }
        }
    }
}

/// The leader of the store is elsewhere, so that its election is not measured, too.
async fn cut_off(site: &mut Site, load: &Clients) -> Result<Moment> {
    let stack = site.stack();
    let old = stack.leader().await?;
    store::lead_from(stack, (old + 1) % stack.etcd.len()).await?;
    let began = clock::now();
    node::cut_off(&stack.members[old]).await?;
    let (last, mut elected) = (load.last_write(), None);
    while elected.is_none_or(|since| last.done() <= since) {
        if elected.is_none() && stack.leader().await.is_ok_and(|leader| leader != old) {
            elected = Some(clock::now());
        }
        if clock::now() >= began + LIMIT {
            let what = match elected {
                None => "no other member led",
                Some(_) => "no client wrote",
            };
            bail!("{what} within {LIMIT:?}");
        }
        tokio::time::sleep(LOOK).await;
    }
    node::reconnect(&stack.members[old]).await?;
    Ok(began)
}
