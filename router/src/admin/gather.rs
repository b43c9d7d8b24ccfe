//! What all cores have at one moment: each is asked and answers from what is its own, between two of its sessions'
//! steps. So nothing is counted twice within a core, and nothing is locked for it.

use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::timeout;

use crate::pool::view::{self as pools, PoolView};
use crate::roster::{self, RosterView};

/// How long a core may take to answer: it does between two steps of its sessions.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// What one core has.
#[derive(Clone, Default)]
pub struct CoreView {
    /// Its clients and what was done.
    pub roster: RosterView,
    /// Its pools.
    pub pools: Vec<PoolView>,
}

/// A core does not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("core {0} does not answer; what it does is not known")]
pub struct Silent(pub usize);

/// Asks all of them.
///
/// # Errors
/// One does not answer.
pub async fn gather(cores: &[Handle]) -> Result<Vec<CoreView>, Silent> {
    let asked: Vec<_> = cores.iter().map(|core| core.spawn(look())).collect();
    let mut views = Vec::with_capacity(asked.len());
    for (number, answer) in asked.into_iter().enumerate() {
        match timeout(ANSWER_WITHIN, answer).await {
            Ok(Ok(view)) => views.push(view),
            Ok(Err(_)) | Err(_) => return Err(Silent(number)),
        }
    }
    Ok(views)
}

async fn look() -> CoreView {
    CoreView {
        roster: roster::view(),
        pools: pools::view(),
    }
}

/// Servers that are open or being opened, of one database or of all.
pub fn servers(views: &[CoreView], database: Option<&str>) -> usize {
    let pools = views.iter().flat_map(|view| &view.pools);
    pools
        .filter(|pool| database.is_none_or(|own| *own == *pool.database))
        .map(|pool| pool.counts.connected() + pool.counts.connecting)
        .sum()
}

/// Servers that are to be closed as soon as they come free, of one database or of all.
pub fn old_servers(views: &[CoreView], database: Option<&str>) -> usize {
    let pools = views.iter().flat_map(|view| &view.pools);
    pools
        .filter(|pool| database.is_none_or(|own| *own == *pool.database))
        .flat_map(|pool| &pool.servers)
        .filter(|server| server.is_old)
        .count()
}
