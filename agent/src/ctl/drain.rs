//! The options of a change of leader, and of a restart of the leader, that say what becomes of transactions.

use std::time::Duration;

use clap::Args;
use trunkline_shared::cluster::quantity;
use trunkline_shared::cluster::switchover::{Drain, OnTimeout};

/// What becomes of transactions that run when the leader is to change, or to restart.
#[derive(Clone, Debug, Args)]
pub struct DrainArguments {
    /// How long routers hold new transactions until those that run have ended [default: 5s].
    #[arg(long, value_name = "TIME", value_parser = drain_timeout)]
    pub drain_timeout: Option<Duration>,
    /// What follows when they have not: give-up, and clients go on (the default but of a failover), or terminate, and the
    /// stop ends them.
    #[arg(long, value_name = "give-up|terminate", value_parser = on_timeout)]
    pub on_timeout: Option<OnTimeout>,
}

impl DrainArguments {
    /// As the request says it.
    pub fn drain(&self) -> Drain {
        Drain {
            timeout: self.drain_timeout,
            on_timeout: self.on_timeout,
        }
    }
}

fn drain_timeout(text: &str) -> Result<Duration, String> {
    quantity::duration(text).ok_or_else(|| format!("not {}", quantity::DURATION_FORMS))
}

fn on_timeout(text: &str) -> Result<OnTimeout, String> {
    OnTimeout::from_word(text).ok_or_else(|| "not give-up or terminate".to_owned())
}
