//! What an action does, where it is carried out: by the compares of the agent's transactions and the checks that it
//! makes in the same breath.

use trunkline_agent::decide::PROMOTE_NEEDS;
use trunkline_agent::lease::state::KeyCheck;

use super::{
    ACTS, Act, Announced, LEASE, LIMIT, Member, Postgres, SCALE, Stage, State, Store, Wal,
};
use crate::model::look::{NOW, epoch};
use crate::model::members::turn::Members;
use crate::model::right::Right;
use crate::model::rule::Rule;

/// What is to hold does not.
pub(super) struct Refused;

type Done = Result<(), Refused>;

fn when(holds: bool) -> Done {
    if holds { Ok(()) } else { Err(Refused) }
}

/// What a leader writes down, and nobody but its successors reads.
fn noted(state: &mut State, who: u8, act: Act) {
    let wal = state.members[usize::from(who)].wal;
    match act {
        Act::RecordHistory { .. } => state.store.recorded = wal.timeline,
        Act::Publish { at, .. } => state.store.published = Wal { at, ..wal },
        Act::ClearChange { .. } => state.store.change = None,
        _ => {}
    }
}

/// The same of a planned change.
fn write_change(state: &mut State, who: u8, act: Act) -> bool {
    let store = &mut state.store;
    match act {
        Act::Announce { stage, to, epoch } => {
            let is_before_stop = !matches!(stage, Stage::Stopped(_));
            if store.key != Some((who, epoch)) || is_before_stop && !store.is_asked {
                return false;
            }
            state.announced += 1;
            store.change = Some(Announced {
                stage,
                from: who,
                to,
                epoch,
                revision: state.announced,
            });
        }
        Act::HandOver { to, at, epoch } => {
            let candidate = &state.members[usize::from(to)];
            if store.key != Some((who, epoch)) || candidate.ready != Some(at) {
                return false;
            }
            let has_all = state.members[usize::from(who)].wal;
            state.epoch += 1;
            store.key = Some((to, state.epoch));
            store.published = has_all;
            state.key_left = LEASE;
            state.flaws.is_lost |= !state.holds(candidate.wal, has_all);
        }
        _ => return false,
    }
    true
}

impl Members {
    /// Carries out the next action, and those after it that nobody else sees.
    pub(super) fn go_on(&self, state: &mut State, who: u8) {
        loop {
            let act = state.members[usize::from(who)].acts[0];
            let done = self.perform(state, who, act);
            let member = state.member(who);
            match done {
                Ok(()) => {
                    member.acts.copy_within(1.., 0);
                    member.acts[ACTS - 1] = Act::Nothing;
                }
                Err(Refused) => member.acts = [Act::Nothing; ACTS],
            }
            let next = member.acts[0];
            if next == Act::Nothing || next.is_shared() {
                return;
            }
        }
    }

    fn perform(&self, state: &mut State, who: u8, act: Act) -> Done {
        when(!act.needs_store() || !state.members[usize::from(who)].is_cut)?;
        match act {
            Act::Nothing => Ok(()),
            Act::Acquire { .. }
            | Act::Release { .. }
            | Act::HandOver { .. }
            | Act::Announce { .. }
            | Act::Claim { .. }
            | Act::WriteSync { .. } => self.written_and_heard(state, who, act),
            Act::Confirm => self.confirm(state, who),
            Act::Reassert => self.reassert(state, who),
            Act::RecordHistory { epoch }
            | Act::Publish { epoch, .. }
            | Act::ClearChange { epoch } => {
                when(state.store.key == Some((who, epoch)))?;
                noted(state, who, act);
                Ok(())
            }
            Act::DropRequest => {
                state.store.is_asked = false;
                Ok(())
            }
            Act::Arm if self.is(Rule::PromotesUnarmed) => Ok(()),
            Act::Arm => {
                let member = state.member(who);
                member.armed = Some(member.right.left().ok_or(Refused)?);
                Ok(())
            }
            Act::Disarm => {
                let member = state.member(who);
                when(!member.postgres.may_write())?;
                member.armed = None;
                Ok(())
            }
            Act::Promote(_)
            | Act::StartReplica
            | Act::StartPrimary
            | Act::Stop { .. }
            | Act::StopToHandOver
            | Act::Rewind(_) => self.of_instance(state, who, act),
        }
    }

    /// What is done to the instance.
    fn of_instance(&self, state: &mut State, who: u8, act: Act) -> Done {
        let member = state.members[usize::from(who)];
        let is_stopped = matches!(member.postgres, Postgres::Stopped { .. });
        let becomes = match act {
            Act::Promote(timeline) => {
                when(self.may_become_writable(&member) && member.postgres == Postgres::Replica)?;
                Postgres::Promoting(timeline)
            }
            Act::StartPrimary => {
                when(self.may_become_writable(&member) && is_stopped)?;
                Postgres::Primary
            }
            Act::StartReplica => {
                when(is_stopped)?;
                Postgres::Replica
            }
            Act::StopToHandOver => {
                when(member.postgres == Postgres::Primary)?;
                let announced = state.store.change.map(|change| change.revision);
                let said_all = state.router.map(|router| router.said_all);
                state.flaws.is_unheld |= said_all.is_some() && said_all != announced;
                Postgres::Stopping
            }
            Act::Rewind(from) => {
                let from = state.members[usize::from(from)];
                when(is_stopped && from.postgres == Postgres::Primary)?;
                state.member(who).wal = from.wal;
                Postgres::Stopped {
                    was_primary: false,
                    is_clean: true,
                }
            }
            Act::Stop { is_immediate } => {
                state.member(who).end(!is_immediate);
                return Ok(());
            }
            _ => return Err(Refused),
        };
        state.member(who).postgres = becomes;
        Ok(())
    }

    /// The check of the same breath.
    fn may_become_writable(&self, member: &Member) -> bool {
        let is_right = match member.right {
            Right::Mine {
                left,
                is_unresolved: false,
                ..
            } => NOW.until(SCALE.ahead(left)) > PROMOTE_NEEDS,
            Right::Mine { .. } | Right::No | Right::Lost => false,
        };
        is_right && (member.armed.is_some() || self.is(Rule::PromotesUnarmed))
    }

    /// A write whose answer comes.
    fn written_and_heard(&self, state: &mut State, who: u8, act: Act) -> Done {
        let is_gift = matches!(act, Act::Release { .. } | Act::HandOver { .. });
        if is_gift {
            let member = state.member(who);
            member.right = SCALE.changed(member.right, |lease| lease.hand_over_sent());
        }
        let is_done = self.write(state, who, act);
        let taken = state.epoch;
        let member = state.member(who);
        member.right = match (act, is_done) {
            (Act::Acquire { .. }, true) => self.counted(SCALE.changed(member.right, |lease| {
                lease.acquired(epoch(taken), NOW, SCALE.ttl);
            })),
            (Act::Release { .. } | Act::HandOver { .. }, true) => {
                SCALE.changed(member.right, |lease| lease.given_up())
            }
            (Act::Release { .. } | Act::HandOver { .. }, false) => {
                SCALE.changed(member.right, |lease| lease.hand_over_failed())
            }
            (_, _) => member.right,
        };
        when(is_done)
    }

    /// A write reaches the store: whether its compares hold.
    pub(super) fn write(&self, state: &mut State, who: u8, act: Act) -> bool {
        let leads = |store: &Store, epoch| store.key == Some((who, epoch));
        let store = &mut state.store;
        match act {
            Act::Acquire { claimed, sync } => {
                let is_as_seen = claimed == store.claimed.0 || self.is(Rule::ClaimUncompared);
                let of_sync = store.sync.map_or(0, |sync| sync.revision);
                if store.key.is_some() || !is_as_seen || sync != of_sync {
                    return false;
                }
                state.epoch += 1;
                store.key = Some((who, state.epoch));
                state.key_left = LEASE;
                self.judge_taken(state, who);
            }
            Act::Release { epoch } => {
                if !leads(store, epoch) {
                    return false;
                }
                store.key = None;
                state.key_left = 0;
            }
            Act::Claim {
                timeline,
                parent,
                seen,
                epoch,
            } => {
                if !leads(store, epoch) || store.claimed.0 != seen {
                    return false;
                }
                store.claimed = (timeline, parent);
            }
            Act::WriteSync { seen, epoch } => {
                let Some(sync) = &mut store.sync else {
                    return false;
                };
                if store.key != Some((who, epoch)) || sync.revision != seen {
                    return false;
                }
                sync.leader = who;
                sync.standbys = 0;
                sync.revision += 1;
            }
            Act::Announce { .. } | Act::HandOver { .. } => return write_change(state, who, act),
            _ => return false,
        }
        true
    }

    /// What the next leader lacks of what was published, where commits wait for nobody.
    fn judge_taken(&self, state: &mut State, who: u8) {
        let member = &state.members[usize::from(who)];
        if state.acknowledged.is_some() || member.postgres != Postgres::Replica {
            return;
        }
        let has = state.shared(member.wal, state.store.published);
        let lacks = state.store.published.at.saturating_sub(has);
        state.flaws.is_lost |= lacks > LIMIT;
    }

    /// The key names this member: a keep-alive of its lease and a look at it.
    fn confirm(&self, state: &mut State, who: u8) -> Done {
        let Some((_, number)) = state.store.key.filter(|(holder, _)| *holder == who) else {
            return Err(Refused);
        };
        state.key_left = LEASE;
        self.renewed(state, who, KeyCheck::Mine(epoch(number)));
        Ok(())
    }

    /// What a renewal found, told at once.
    pub(super) fn renewed(&self, state: &mut State, who: u8, found: KeyCheck) {
        let member = state.member(who);
        let renewal = SCALE.renewal(0, found);
        member.right = self.counted(SCALE.changed(member.right, |lease| lease.renewed(renewal)));
        if let (Some(left), Some(_)) = (member.right.left(), member.armed) {
            member.armed = Some(left);
        }
    }

    fn reassert(&self, state: &mut State, who: u8) -> Done {
        let Right::Mine { epoch: held, .. } = state.members[usize::from(who)].right else {
            return Err(Refused);
        };
        when(state.store.key == Some((who, held)))?;
        state.epoch += 1;
        state.store.key = Some((who, state.epoch));
        state.key_left = LEASE;
        let taken = epoch(state.epoch);
        let member = state.member(who);
        member.right = self.counted(SCALE.changed(member.right, |lease| {
            lease.acquired(taken, NOW, SCALE.ttl);
        }));
        if let (Some(left), Some(_)) = (member.right.left(), member.armed) {
            member.armed = Some(left);
        }
        Ok(())
    }

    /// With the rule broken nothing is left unused of a lease.
    fn counted(&self, mut right: Right) -> Right {
        let whole = SCALE.ticks(NOW.until(SCALE.state(Right::No).deadline(NOW, SCALE.ttl)));
        if let (true, Right::Mine { left, .. }) = (self.is(Rule::NoMargin), &mut right)
            && *left == whole
        {
            *left = LEASE;
        }
        right
    }
}
