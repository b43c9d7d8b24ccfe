//! What belongs to a planned change of leader beside its record: how long it waits for transactions, and how long
//! its parts took.

use std::sync::Arc;
use std::time::Duration;

use super::{LeaderEpoch, MemberName};

/// How long a change of leader waits for the transactions that run when it begins, and what follows, as far as an
/// operator said it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Drain {
    /// How long routers hold new transactions until those that run have ended.
    pub timeout: Option<Duration>,
    /// What follows when they have not.
    pub on_timeout: Option<OnTimeout>,
}

/// What follows when transactions have not ended in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnTimeout {
    /// The change is called off and clients go on.
    GiveUp,
    /// The change goes on: stopping PostgreSQL ends them.
    Terminate,
}

impl OnTimeout {
    /// The word of the command line, the REST API and the `failover` record.
    pub fn word(self) -> &'static str {
        match self {
            OnTimeout::GiveUp => "give-up",
            OnTimeout::Terminate => "terminate",
        }
    }

    /// The one of that word.
    pub fn from_word(word: &str) -> Option<Self> {
        match word {
            "give-up" => Some(OnTimeout::GiveUp),
            "terminate" => Some(OnTimeout::Terminate),
            _ => None,
        }
    }
}

/// How long the parts of a change of leader took; `None` where a part was left out, or is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct ChangeParts {
    /// The checkpoint ahead, beside everything else.
    pub checkpoint: Option<Duration>,
    /// From the announcement until every router held new transactions and those that ran had ended.
    pub hold_transactions: Option<Duration>,
    /// Until every router held everything.
    pub hold_all: Option<Duration>,
    /// From the signal until the old leader's last position was announced.
    pub stop: Option<Duration>,
    /// Until the new leader held the key, by its own clock.
    pub hand_over: Option<Duration>,
    /// From the key until PostgreSQL accepted writes.
    pub promote: Option<Duration>,
}

impl ChangeParts {
    /// The parts in their order, each with its word.
    pub fn named(&self) -> [(&'static str, Option<Duration>); 6] {
        [
            ("checkpoint", self.checkpoint),
            ("hold_transactions", self.hold_transactions),
            ("hold_all", self.hold_all),
            ("stop", self.stop),
            ("hand_over", self.hand_over),
            ("promote", self.promote),
        ]
    }

    /// The part of that word.
    pub fn part_mut(&mut self, word: &str) -> Option<&mut Option<Duration>> {
        match word {
            "checkpoint" => Some(&mut self.checkpoint),
            "hold_transactions" => Some(&mut self.hold_transactions),
            "hold_all" => Some(&mut self.hold_all),
            "stop" => Some(&mut self.stop),
            "hand_over" => Some(&mut self.hand_over),
            "promote" => Some(&mut self.promote),
            _ => None,
        }
    }
}

/// A change of leader that has happened (`trunkline/history`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaderChange {
    /// The epoch that it began.
    pub epoch: LeaderEpoch,
    /// Who led before, where the change was planned.
    pub from: Option<MemberName>,
    /// Who leads since.
    pub to: MemberName,
    /// When the new leader accepted writes, as ISO 8601 text; empty before it is written down.
    pub at: Arc<str>,
    /// How long its parts took.
    pub parts: ChangeParts,
}
