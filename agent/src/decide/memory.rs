//! The little that survives a turn.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use trunkline_shared::cluster::switchover::{ChangeParts, LeaderChange};
use trunkline_shared::cluster::topology::SwitchoverStage;
use trunkline_shared::cluster::{LeaderEpoch, Lsn, MemberName, Moment};

use super::callbacks::Told;
use super::store::PeerStore;
use super::sync_standbys::SyncNames;

/// Given to each decision and returned changed by it. Lost when the agent restarts: nothing safety
/// depends on may live here.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Memory {
    /// The next look is to ask the other members' agents.
    pub wants_peers: bool,
    /// The switchover in progress.
    pub switchover: Option<PlannedChange>,
    /// The change that made this member leader, until it is written down.
    pub unrecorded: Option<LeaderChange>,
    /// When the primary last crashed here: a second crash soon after fails over.
    pub crashed_at: Option<Moment>,
    /// When the last published position was written.
    pub status_at: Option<Moment>,
    /// When each slot was last wanted or used, for `member_slots_ttl`.
    pub slot_needed: BTreeMap<Arc<str>, Moment>,
    /// The slots that were wanted or used at the last look.
    pub slots_in_use: BTreeSet<Arc<str>>,
    /// When the leader's logical slots were last copied, which costs a restart.
    pub slots_copied_at: Option<Moment>,
    /// Why the last copy of logical slots was not made, until the next one is tried.
    pub slots_not_copied: Option<Arc<str>>,
    /// The leader key, where it is held, was not won in a race since the agent started, or a standby cluster was led
    /// by it: the checks of a race come before a promotion.
    pub is_key_unchecked: bool,
    /// The configuration, when it was last there, made this a standby cluster.
    pub is_standby_cluster: bool,
    /// The data here was found to have left the history of the cluster that this one replicates from.
    pub has_left_remote: bool,
    /// Since when a replica with the right upstream has not streamed.
    pub not_streaming_since: Option<Moment>,
    /// Since when a replica that holds more than the leader's history shares stands still, and how far it has replayed.
    pub reads_since: Option<(Moment, Lsn)>,
    /// Since when this member has held the lease without a primary.
    pub not_primary_since: Option<(LeaderEpoch, Moment)>,
    /// The epoch in which a crash was followed by a restart because nobody could take over: that start is
    /// not ended by `primary_start_timeout`, else the same would be found again.
    pub kept_after_crash: Option<LeaderEpoch>,
    /// Until when this member does not run for leader after having given the lease up.
    pub stands_back_until: Option<Moment>,
    /// Why the bootstrap in progress failed after its data was made: it is to be given up.
    pub bootstrap_failed: Option<Arc<str>>,
    /// What the operator's scripts were told last.
    pub told: Told,
    /// Since when a PostgreSQL that was killed does not die.
    pub kill_hangs_since: Option<Moment>,
    /// Since when no live fence was seen.
    pub fence_gone_since: Option<Moment>,
    /// Since when the upstream lacks the WAL that this replica needs, and from where on.
    pub wal_gone_since: Option<(Moment, Lsn)>,
    /// It was stopped because of that, to be copied anew.
    pub is_stopped_for_copy: bool,
    /// When the copy that an operator asked for was last ordered; the request stands until it runs.
    pub copy_ordered_at: Option<Moment>,
    /// When a change of leader was asked for because a volume is nearly full.
    pub asked_for_room: Option<Moment>,
    /// A restart was asked for and is not over.
    pub is_restarting: bool,
    /// The last restart that an operator asked of this member while it led.
    pub last_restart: Option<RestartSpan>,
    /// The leadership for which `pre_promote` was run last.
    pub pre_promoted: Option<LeaderEpoch>,
    /// Where every member that was registered lately is asked, and when it was last seen registered: a
    /// leader's record ends with its lease, just when it must be asked.
    pub former: BTreeMap<MemberName, Former>,
    /// What is known to have come before the setting of `synchronous_standby_names` that is in force.
    pub sync_note: Option<SyncNote>,
    /// In this epoch sessions were told that commits wait for somebody, and it never ceased to be so.
    pub commits_wait_since_in: Option<LeaderEpoch>,
    /// Since when the checkpoint after a promotion waits for the first synchronous standby.
    pub checkpoint_put_off_since: Option<Moment>,
    /// What this standby would begin to lead with, once it was seen in force.
    pub sync_ready: Option<SyncReady>,
    /// Since when this member, told to end, waits: as a synchronous standby to be released, as a leader for its key.
    pub leaving_since: Option<Moment>,
    /// Clients are let in once standbys have everything up to here.
    pub closed_until: Option<Lsn>,
    /// Since when no standby can be waited for.
    pub sync_lost_since: Option<Moment>,
    /// Since when this leader has seen records of its own kind only, while the settings do not speak of
    /// `failsafe_mode`.
    pub alone_since: Option<Moment>,
    /// Since when others speak against the DCS that this member sees and knows nothing else of.
    pub contradicted_since: Option<Moment>,
    /// Who did last, and what it knows: whoever falls silent then has taken nothing back.
    pub contradicted_by: Option<(MemberName, PeerStore)>,
    /// The last leader, if it was none of Trunkline, and when it was last seen to hold the key.
    pub foreign_led: Option<(MemberName, Moment)>,
}

impl Memory {
    /// Of an agent that starts, and was told by an earlier one whom to ask. How that came by the leader key, should it
    /// hold it, is not known.
    pub fn of_former(members: BTreeMap<MemberName, Arc<str>>, now: Moment) -> Self {
        let former = members.into_iter().map(|(name, api_url)| {
            let seen_at = now;
            (name, Former { api_url, seen_at })
        });
        Self {
            former: former.collect(),
            is_key_unchecked: true,
            ..Self::default()
        }
    }
}

/// From when to when a restart went on: what fell due meanwhile waited for it, and is not late for that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RestartSpan {
    /// When it was begun.
    pub began: Moment,
    /// When it was last seen in progress.
    pub seen: Moment,
}

/// A planned change of leader, or a restart for which routers hold their clients, as this member has followed it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedChange {
    /// What identifies it.
    pub id: u64,
    /// This member is to lead on once its PostgreSQL was restarted.
    pub is_restart: bool,
    /// The stage announced; `None` before that, while the checkpoint ahead is made.
    pub stage: Option<SwitchoverStage>,
    /// Since when it has been at this stage.
    pub since: Moment,
    /// The candidate streamed from this leader when the change was announced.
    pub was_streaming: bool,
    /// How long the parts took that are over.
    pub parts: ChangeParts,
    /// This member goes on as leader, whatever of the change still stands in the DCS.
    pub is_rolled_back: bool,
}

impl PlannedChange {
    /// Whether the old leader has announced its last position.
    pub fn has_stopped(&self) -> bool {
        match self.stage {
            Some(SwitchoverStage::Stopped { .. }) => true,
            Some(
                SwitchoverStage::HoldTransactions
                | SwitchoverStage::HoldAll
                | SwitchoverStage::Resume,
            )
            | None => false,
        }
    }
}

/// A member that is, or was, registered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Former {
    /// The URL of its agent.
    pub api_url: Arc<str>,
    /// When its record was last seen.
    pub seen_at: Moment,
}

/// A standby's `synchronous_standby_names` for the case that it is promoted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyncReady {
    /// The setting.
    pub names: SyncNames,
    /// Since when it was seen in force without a break.
    pub since: Moment,
}

/// A setting of `synchronous_standby_names` that was seen in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyncNote {
    /// In which epoch.
    pub epoch: LeaderEpoch,
    /// While the `sync` record had this revision.
    pub record: i64,
    /// The setting.
    pub names: SyncNames,
    /// Since when it was seen without a break.
    pub since: Moment,
    /// A position reached when every process had surely taken it up.
    pub at: Option<Lsn>,
}
