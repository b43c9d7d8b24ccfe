//! What all cores have at one moment: each is asked and answers from what is its own, between two of its sessions'
//! steps. So nothing is counted twice within a core, and nothing is locked for it.

use std::sync::Arc;
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

/// Asks all of them everything.
///
/// # Errors
/// One does not answer.
pub async fn gather(cores: &[Handle]) -> Result<Vec<CoreView>, Silent> {
    let look = || CoreView {
        roster: roster::view(),
        pools: pools::view(),
    };
    ask(cores, look).await
}

/// Asks all of them this.
async fn ask<T: Send + 'static>(
    cores: &[Handle],
    what: impl Fn() -> T + Clone + Send + 'static,
) -> Result<Vec<T>, Silent> {
    let asked: Vec<_> = cores
        .iter()
        .map(|core| {
            let what = what.clone();
            core.spawn(async move { what() })
        })
        .collect();
    let mut answers = Vec::with_capacity(asked.len());
    for (number, answer) in asked.into_iter().enumerate() {
        match timeout(ANSWER_WITHIN, answer).await {
            Ok(Ok(answer)) => answers.push(answer),
            Ok(Err(_)) | Err(_) => return Err(Silent(number)),
        }
    }
    Ok(answers)
}

/// A database, or all.
pub type Which = Option<Arc<str>>;

/// Of which servers it is asked how many there are.
#[derive(Clone, Copy, Debug)]
pub enum Left {
    /// Of those that are open or being opened.
    All,
    /// Of those that are to be closed as soon as they come free.
    Old,
}

/// How many there are, of one database or of all: cheaper than [`gather`].
///
/// # Errors
/// One core does not answer.
pub async fn left(of: Left, cores: &[Handle], database: Which) -> Result<usize, Silent> {
    let count = move || match of {
        Left::All => pools::servers(database.as_deref()),
        Left::Old => pools::old_servers(database.as_deref()),
    };
    Ok(ask(cores, count).await?.into_iter().sum())
}
