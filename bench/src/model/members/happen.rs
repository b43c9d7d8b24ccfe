//! What may happen next to the members and their store.

use trunkline_agent::lease::state::KeyCheck;

use super::turn::Members;
use super::{ACTS, Act, Change, FORKS, Member, Postgres, Remembers, SCALE, Stage, State, Wal};
use crate::model::checker::Steps;
use crate::model::look::{MEMBERS, epoch, number};
use crate::model::right::Right;
use crate::model::rule::Rule;

impl Members {
    /// Everything that may happen next.
    pub(in crate::model) fn steps(&self, state: &State, steps: &mut Steps<State>) {
        for who in 0..self.count {
            self.of_agent(state, who, steps);
            self.of_postgres(state, who, steps);
            if state.faults > 0 {
                self.faults(state, who, steps);
            }
        }
        self.of_router(state, steps);
        let is_due = |who: &Member| who.armed == Some(0) && who.postgres.may_write();
        if self.is(Rule::NoFence) || !state.members.iter().any(is_due) {
            steps.add("a moment passes", 0, false, self.later(state));
        }
        steps.map(|next| self.acknowledge(*next).canonical());
    }

    fn of_agent(&self, state: &State, who: u8, steps: &mut Steps<State>) {
        let member = &state.members[usize::from(who)];
        if let Some(act) = member.late {
            let mut next = *state;
            next.member(who).late = None;
            steps.add("is not heard by the store", who + 1, false, next);
            self.write(&mut next, who, act);
            steps.add("comes late to the store", who + 1, false, next);
        }
        if !member.is_agent_alive {
            let mut next = *state;
            let member = next.member(who);
            member.is_agent_alive = true;
            member.remembers.is_unchecked = true;
            return steps.add("starts its agent", who + 1, false, next);
        }
        let is_its = state.store.key.is_some_and(|(holder, _)| holder == who);
        if member.is_cut {
            let mut next = *state;
            next.member(who).is_cut = false;
            steps.add("reaches the store again", who + 1, false, next);
        } else if is_its || member.right.left().is_some() {
            steps.add("renews", who + 1, false, self.renews(state, who));
        }
        if member.is_idle() {
            let store = if member.is_cut {
                &state.behind
            } else {
                &state.store
            };
            for next in self.looks(state, who, store) {
                steps.add("looks", who + 1, false, next);
            }
        } else if self.may_go_on(state, member) {
            let mut next = *state;
            self.go_on(&mut next, who);
            steps.add(of_act(member.acts[0]), who + 1, false, next);
        }
        if let Some(change) = member
            .remembers
            .change
            .filter(|change| !change.is_over_time)
        {
            let mut next = *state;
            next.member(who).remembers.change = Some(Change {
                is_over_time: true,
                ..change
            });
            steps.add("has waited for long enough", who + 1, false, next);
        }
        if member.remembers.stands_back {
            let mut next = *state;
            next.member(who).remembers.stands_back = false;
            steps.add("has stood back for long enough", who + 1, false, next);
        }
    }

    /// Whether it is within the bounds of the model.
    fn may_go_on(&self, state: &State, member: &Member) -> bool {
        match member.acts[0] {
            act if member.is_cut && act.is_write() => false,
            Act::Acquire { .. } => state.epoch < self.epochs,
            Act::Claim { timeline, .. } => usize::from(timeline) < FORKS + 2,
            _ => true,
        }
    }

    /// One more leadership is the last within the bounds, or none is left: whether somebody leads in the end cannot be told.
    pub(in crate::model) fn is_near_bound(&self, state: &State) -> bool {
        state.epoch + 1 >= self.epochs || usize::from(state.store.claimed.0) >= FORKS
    }

    fn renews(&self, state: &State, who: u8) -> State {
        let mut next = *state;
        let found = match state.store.key {
            Some((holder, number)) if holder == who => {
                next.key_left = super::LEASE;
                KeyCheck::Mine(epoch(number))
            }
            Some(_) => KeyCheck::Other,
            None => KeyCheck::Missing,
        };
        if state.members[usize::from(who)].right.left().is_some() {
            self.renewed(&mut next, who, found);
        }
        next
    }

    fn of_postgres(&self, state: &State, who: u8, steps: &mut Steps<State>) {
        let member = &state.members[usize::from(who)];
        if member.armed == Some(0) && member.postgres.may_write() && !self.is(Rule::NoFence) {
            let mut next = *state;
            next.member(who).end(false);
            next.member(who).armed = None;
            steps.add("is killed by its fence", who + 1, false, next);
        }
        match member.postgres {
            Postgres::Primary | Postgres::Stopping => {
                if member.wal.at < self.writes {
                    let mut next = *state;
                    next.member(who).wal.at += 1;
                    steps.add("writes", who + 1, false, next);
                }
                for other in 0..number(MEMBERS) {
                    if state.may_receive(other, who) {
                        let mut next = *state;
                        next.member(other).wal = member.wal;
                        steps.add("receives everything", other + 1, false, next);
                    }
                }
                if member.postgres == Postgres::Stopping {
                    for (what, next) in stopped(state, who) {
                        steps.add(what, who + 1, false, next);
                    }
                }
            }
            Postgres::Promoting(timeline) => {
                steps.add(
                    "is promoted",
                    who + 1,
                    false,
                    self.promoted(state, who, timeline),
                );
            }
            Postgres::Replica | Postgres::Stopped { .. } => {}
        }
    }

    fn promoted(&self, state: &State, who: u8, timeline: u8) -> State {
        let mut next = *state;
        let wal = state.members[usize::from(who)].wal;
        if let Some(fork) = next.forks.get_mut(usize::from(timeline).saturating_sub(2)) {
            *fork = Some((wal.timeline, wal.at));
        }
        let member = next.member(who);
        member.postgres = Postgres::Primary;
        member.wal = Wal {
            timeline,
            at: wal.at,
        };
        if let Some(acknowledged) = state.acknowledged {
            next.flaws.is_lost |= !next.holds(next.members[usize::from(who)].wal, acknowledged);
        }
        next
    }

    /// As much is acknowledged as may be, where commits wait for standbys.
    fn acknowledge(&self, mut state: State) -> State {
        let (Some(known), Some(sync)) = (state.acknowledged, state.store.sync) else {
            return state;
        };
        let leader = &state.members[usize::from(sync.leader)];
        if leader.postgres != Postgres::Primary {
            return state;
        }
        let waits = (0..MEMBERS).filter(|who| sync.standbys & 1 << who != 0);
        let has = waits.map(|who| state.shared(state.members[who].wal, leader.wal));
        let at = has.min().unwrap_or(leader.wal.at);
        let now = Wal { at, ..leader.wal };
        if now > known && state.holds(leader.wal, known) && at >= known.at {
            state.acknowledged = Some(now);
        }
        state
    }

    fn faults(&self, state: &State, who: u8, steps: &mut Steps<State>) {
        let member = &state.members[usize::from(who)];
        let mut next = *state;
        next.faults -= 1;
        if member.is_agent_alive {
            let mut next = next;
            let member = next.member(who);
            member.is_agent_alive = false;
            member.right = Right::No;
            member.is_cut = false;
            member.remembers = Remembers::NOTHING;
            member.acts = [Act::Nothing; ACTS];
            steps.add("loses its agent", who + 1, true, next);
            let member = next.member(who);
            member.end(false);
            member.armed = None;
            member.late = None;
            steps.add("loses its node", who + 1, true, next);
        }
        if member.is_agent_alive && !member.is_cut {
            let mut next = next;
            next.member(who).is_cut = true;
            steps.add("reaches the store no more", who + 1, true, next);
        }
        if member.postgres.may_write() {
            let mut next = next;
            next.member(who).end(false);
            steps.add("crashes", who + 1, true, next);
        }
        let act = member.acts[0];
        if act.is_write() && member.late.is_none() {
            let mut given_up = next;
            let member = given_up.member(who);
            match (act, &mut member.remembers.change) {
                (Act::HandOver { .. }, Some(change)) if self.is(Rule::SilenceIsNo) => {
                    change.is_rolled_back = true;
                }
                (Act::Release { .. } | Act::HandOver { .. }, _) => {
                    member.right = SCALE.changed(member.right, |lease| lease.hand_over_sent());
                }
                (_, _) => {}
            }
            member.acts = [Act::Nothing; ACTS];
            member.late = Some(act);
            steps.add("gives a write up", who + 1, true, given_up);
        }
    }

    /// A tick later. Whoever lives and reaches the store has renewed its lease meanwhile.
    fn later(&self, state: &State) -> State {
        let mut next = *state;
        for who in 0..number(MEMBERS) {
            let member = state.members[usize::from(who)];
            let is_its = state.store.key.is_some_and(|(holder, _)| holder == who);
            let renews = member.is_agent_alive && !member.is_cut;
            if renews && (is_its || member.right.left().is_some()) {
                next = self.renews(&next, who);
            }
            if renews && member.right.left().is_some() {
                continue;
            }
            let member = next.member(who);
            member.right = SCALE.later(member.right);
            member.armed = member.armed.map(|left| left.saturating_sub(1));
            if is_its && !renews {
                next.key_left = next.key_left.saturating_sub(1);
            }
        }
        if next.key_left == 0 && !self.is(Rule::KeyOutlivesLease) {
            next.store.key = None;
        }
        next
    }
}

/// A planned stop has ended, with its last record sent to everybody, or to nobody.
fn stopped(state: &State, who: u8) -> [(&'static str, State); 2] {
    let mut next = *state;
    let member = next.member(who);
    member.wal.at += 1;
    member.postgres = Postgres::Stopped {
        was_primary: true,
        is_clean: true,
    };
    let wal = member.wal;
    let mut sent = next;
    for other in 0..number(MEMBERS) {
        if state.may_receive(other, who) {
            sent.member(other).wal = wal;
        }
    }
    [("has stopped", sent), ("has stopped unheard", next)]
}

/// The word for an action that is carried out.
fn of_act(act: Act) -> &'static str {
    match act {
        Act::Acquire { .. } => "runs for the key",
        Act::Release { .. } => "releases the key",
        Act::Claim { .. } => "claims a timeline",
        Act::WriteSync { .. } => "writes the sync record",
        Act::Promote(_) => "tells PostgreSQL to lead",
        Act::StartPrimary => "starts PostgreSQL as primary",
        Act::Announce { stage, .. } => match stage {
            Stage::HoldTransactions => "asks to hold transactions",
            Stage::HoldAll => "asks to hold everything",
            Stage::Stopped(_) => "says where its WAL ends",
        },
        Act::HandOver { .. } => "moves the key",
        _ => "acts",
    }
}
