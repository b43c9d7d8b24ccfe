//! Which of the operator's scripts a change of the local instance calls: Patroni's `on_start`, `on_stop`,
//! `on_restart` and `on_role_change`. `on_reload` follows a reload of settings, which no decision makes.

use std::collections::BTreeSet;

use trunkline_shared::cluster::topology::Initialize;

use super::decision::{Action, Decision, Reason};
use super::observation::{Local, Observation, RunningRole};

/// An event that calls a script.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Callback {
    /// PostgreSQL runs after it was stopped, or was found running by a new agent.
    Start,
    /// PostgreSQL has stopped.
    Stop,
    /// PostgreSQL runs again after a restart that was asked for.
    Restart,
    /// The settings of a running PostgreSQL were read again.
    Reload,
    /// A replica became a primary, or the other way round.
    RoleChange,
}

impl Callback {
    /// Every event.
    pub const ALL: [Callback; 5] = [
        Callback::Start,
        Callback::Stop,
        Callback::Restart,
        Callback::Reload,
        Callback::RoleChange,
    ];

    /// The script's first argument, and its key below `postgresql.callbacks`.
    pub fn word(self) -> &'static str {
        match self {
            Callback::Start => "on_start",
            Callback::Stop => "on_stop",
            Callback::Restart => "on_restart",
            Callback::Reload => "on_reload",
            Callback::RoleChange => "on_role_change",
        }
    }
}

/// The script's second argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallbackRole {
    /// It accepts writes.
    Primary,
    /// It is in recovery.
    Replica,
}

impl CallbackRole {
    /// Patroni's word.
    pub fn word(self) -> &'static str {
        match self {
            CallbackRole::Primary => "primary",
            CallbackRole::Replica => "replica",
        }
    }
}

/// What the scripts were told last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Told {
    /// Nothing since the agent started.
    #[default]
    Nothing,
    /// That PostgreSQL runs.
    Runs(CallbackRole),
    /// The same, and the operator asked for a restart: its stop calls nothing.
    Restarts(CallbackRole),
    /// That it has stopped, or nothing of a stop that belongs to a restart.
    Stopped {
        /// As what it ran before.
        was: CallbackRole,
        /// The operator asked for a restart.
        is_restart: bool,
    },
}

/// What the scripts are to know of the instance; `None` while it changes.
fn current(local: &Local) -> Option<Option<CallbackRole>> {
    match local {
        Local::Running(running) => match running.role {
            RunningRole::Primary { .. } => Some(Some(CallbackRole::Primary)),
            RunningRole::Replica { .. } if running.is_promoting => None,
            RunningRole::Replica { .. } => Some(Some(CallbackRole::Replica)),
        },
        Local::Stopped(_) | Local::Empty => Some(None),
        Local::Unknown(_)
        | Local::Starting { .. }
        | Local::Unresponsive { .. }
        | Local::Orphaned { .. } => None,
    }
}

fn event(told: Told, now: Option<CallbackRole>) -> (Told, Option<(Callback, CallbackRole)>) {
    match (told, now) {
        (Told::Nothing, None) => (told, None),
        (Told::Nothing, Some(role)) => (Told::Runs(role), Some((Callback::Start, role))),
        (Told::Runs(before), Some(role)) => {
            let event = (before != role).then_some((Callback::RoleChange, role));
            (Told::Runs(role), event)
        }
        (Told::Runs(was), None) => {
            let is_restart = false;
            let told = Told::Stopped { was, is_restart };
            (told, Some((Callback::Stop, was)))
        }
        (Told::Restarts(_), Some(_)) => (told, None),
        (Told::Restarts(was), None) => {
            let is_restart = true;
            (Told::Stopped { was, is_restart }, None)
        }
        (Told::Stopped { .. }, None) => (told, None),
        (Told::Stopped { was, is_restart }, Some(role)) => {
            let event = match (was == role, is_restart) {
                (false, _) => Callback::RoleChange,
                (true, true) => Callback::Restart,
                (true, false) => Callback::Start,
            };
            (Told::Runs(role), Some((event, role)))
        }
    }
}

/// Adds the script that what was seen calls, before everything else of the decision: its place in the
/// queue is taken at once and cannot fail.
pub(super) fn note(seen: &Observation, told: Told, mut decision: Decision) -> Decision {
    let is_cluster_made = seen
        .topology()
        .is_none_or(|topology| topology.initialize != Initialize::Running);
    let Some(now) = current(&seen.local).filter(|_| is_cluster_made) else {
        return decision;
    };
    let (mut told, event) = event(told, now);
    if let (Told::Runs(was), Reason::RestartRequested) = (told, decision.reason) {
        told = Told::Restarts(was);
    }
    decision.memory.told = told;
    if let Some((callback, role)) = event.filter(|(callback, _)| wants(seen, *callback)) {
        decision.actions.insert(0, Action::CallBack(callback, role));
    }
    decision
}

fn wants(seen: &Observation, callback: Callback) -> bool {
    let wanted: &BTreeSet<Callback> = &seen.me.callbacks;
    wanted.contains(&callback)
}
