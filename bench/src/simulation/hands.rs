//! What a hand does to the settings in a few worlds: synchronous mode is switched off and on again, or `config` is
//! overwritten with what is none. And worlds that last until a leader sets what no hand has set. Each by a source of
//! its own, so that what else strikes, and when, is the same in the worlds without.

use std::sync::Arc;

use fastrand::Rng;
use trunkline_shared::cluster::ClusterSettings;
use trunkline_shared::cluster::settings::SynchronousMode;
use trunkline_shared::cluster::topology::{Fact, FactKey};

use super::event::{SECOND, Time};
use super::plan::{Fault, FaultKind, Origin, Plan};
use super::store::Write;
use super::world::World;

/// One synchronous world in so many is asynchronous for a while.
const SWITCHED_OFF: u8 = 20;
/// In one world in so many the configuration cannot be read for a while.
const GARBLED: u8 = 50;
/// One world in so many of those whose settings do not speak of failsafe mode lasts until the leader does.
const LASTING: u8 = 125;
/// The leader switches failsafe mode on ten minutes after everybody has come back.
const LEADER_WAITS: Time = 660 * SECOND;

impl Plan {
    /// Called last: it goes by what is drawn.
    pub(super) fn draw_hands(&mut self, rng: &Rng) {
        if self.origin != Origin::Running || self.is_taken() {
            return;
        }
        let mut own = Rng::with_seed(rng.clone().u64(..) ^ 0x4A9D);
        let is_synchronous = self.synchronous_mode != SynchronousMode::Off;
        if own.u8(..SWITCHED_OFF) == 0 && is_synchronous {
            let lasts = own.u64(SECOND..20 * SECOND);
            self.strike_by_hand(&mut own, FaultKind::SyncSwitchedOff, lasts);
        }
        if own.u8(..GARBLED) == 0 {
            let lasts = own.u64(SECOND..15 * SECOND);
            self.strike_by_hand(&mut own, FaultKind::ConfigGarbled, lasts);
        }
        self.faults.sort_by_key(|fault| fault.at);
        if own.u8(..LASTING) == 0 && self.failsafe_mode.is_none() {
            self.go_on(&mut own);
        }
    }

    fn strike_by_hand(&mut self, own: &mut Rng, kind: FaultKind, lasts: Time) {
        let node = own.u8(..self.members);
        self.faults.push(Fault {
            at: own.u64(5 * SECOND..15 * SECOND),
            lasts,
            kind,
            node,
            other: (node + 1) % self.members,
            hits_leader: true,
        });
    }

    /// Nothing more happens before the mode is on; then it is needed.
    fn go_on(&mut self, own: &mut Rng) {
        let ttl = self.ttl.as_nanos() as Time;
        let at = self.ends + LEADER_WAITS;
        let lasts = ttl + own.u64(SECOND..ttl);
        self.faults.push(Fault {
            at,
            lasts,
            kind: FaultKind::DcsOutage,
            node: 0,
            other: 1,
            hits_leader: false,
        });
        self.ends = at + lasts + 5 * SECOND;
    }
}

impl World {
    /// Writes the settings changed; whether they are there, and another then.
    fn change_settings(&mut self, change: impl FnOnce(&mut ClusterSettings)) -> bool {
        let Some(settings) = self.store.head.settings.clone() else {
            return false;
        };
        let mut changed = ClusterSettings::clone(&settings);
        change(&mut changed);
        if changed == *settings {
            return false;
        }
        self.write_by_operator(FactKey::Settings, Fact::Settings(Arc::new(changed)));
        true
    }

    pub(super) fn set_pause(&mut self, is_paused: bool) -> bool {
        self.change_settings(|settings| settings.is_paused = is_paused)
    }

    /// The cluster becomes the standby of one that is silent, or stands on its own again.
    pub(super) fn set_standby(&mut self, is_standby: bool) -> bool {
        let section = is_standby.then(super::standby::section);
        let is_set = self.change_settings(|settings| settings.standby_cluster = section);
        if is_set && !is_standby {
            self.ledger.standby_ended = self.now;
        }
        is_set
    }

    pub(super) fn switch_synchronous_mode(&mut self, mode: SynchronousMode) -> bool {
        let is_set = self.change_settings(|settings| settings.synchronous_mode = mode);
        self.ledger.synchronous_was_ended |= is_set;
        is_set
    }

    pub(super) fn change_by_hand(&mut self, fault: Fault) -> bool {
        match fault.kind {
            FaultKind::SyncSwitchedOff => self.switch_synchronous_mode(SynchronousMode::Off),
            FaultKind::ConfigGarbled => self.garble_config(fault),
            _ => self.delete_config(),
        }
    }

    /// No agent remembers what it said, and one member has nothing beside which it was kept.
    fn garble_config(&mut self, fault: Fault) -> bool {
        let Some(settings) = self.store.head.settings.clone() else {
            return false;
        };
        self.store.lost_config = Some(settings);
        self.write_freely(Write::Delete(FactKey::Settings));
        let garbled = Fact::Unreadable(self.unreadable.clone());
        self.write_by_operator(FactKey::Settings, garbled);
        let lost = Fault {
            kind: FaultKind::DataLost,
            ..fault
        };
        self.replace_disk(lost);
        for node in 0..self.plan.members {
            self.kill_agent(node);
            self.start_agent(node);
        }
        true
    }
}
