//! What happens to the second router in the middle of a change.

use std::time::Duration;

use anyhow::{Context, Result};
use clap::ValueEnum;
use rustix::process::Signal;
use serde::Serialize;

use crate::stack::namespaces;
use crate::stack::router::Router;

/// How long it is frozen or cut off: longer than its registration lasts.
const LASTS: Duration = Duration::from_secs(5);
/// It begins within this time of the command, so that it meets every step.
pub const WITHIN: Duration = Duration::from_millis(600);
const LIMIT: Duration = Duration::from_secs(10);

/// What happens to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Disturbance {
    /// SIGKILL; it is started again
    Kill,
    /// SIGSTOP, for longer than its registration lasts
    Freeze,
    /// No packet comes or goes, for as long; needs root
    Cut,
}

impl Disturbance {
    /// Waits, and does it to its end.
    pub async fn inflict(self, router: &mut Router, after: Duration) -> Result<()> {
        tokio::time::sleep(after).await;
        match self {
            Disturbance::Kill => {
                router.end(Signal::KILL, LIMIT).await?;
                router.start()
            }
            Disturbance::Freeze => {
                let id = router.id()?;
                id.signal(Signal::STOP);
                tokio::time::sleep(LASTS).await;
                id.signal(Signal::CONT);
                Ok(())
            }
            Disturbance::Cut => {
                let own = router.namespace.as_deref();
                let own = own.context("the router has no namespace of its own: this needs root")?;
                namespaces::cut(own).await?;
                tokio::time::sleep(LASTS).await;
                namespaces::heal(own).await
            }
        }
    }
}
