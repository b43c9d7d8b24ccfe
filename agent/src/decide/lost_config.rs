//! The `config` key is gone: whoever leads writes it as it was (`patroni.md` 1, `patroni.dynamic.json`).

use std::borrow::Cow;
use std::sync::Arc;

use trunkline_shared::cluster::Topology;
use trunkline_shared::cluster::settings::{ClusterSettings, SynchronousMode};

use super::decision::{Action, Decision};
use super::memory::Memory;
use super::observation::{DcsView, LeaseView, Observation};

/// What is seen by a member that has nothing kept either, or something of before the mode was switched on: where the
/// record of a synchronous mode stands commits rely on it. By a plain default, or by what it has kept, whoever races would
/// not ask whether it has them. Whoever has nothing kept goes on by the record as leader, too.
/// Whether the cluster may be a standby is a question of its own.
pub(super) fn as_the_record_tells<'a>(
    seen: &'a Observation,
    memory: &Memory,
) -> Cow<'a, Observation> {
    let DcsView::Known { topology, age } = &seen.dcs else {
        return Cow::Borrowed(seen);
    };
    if memory.is_standby_cluster {
        return Cow::Borrowed(seen);
    }
    let Some(settings) = assumed(topology, seen.lost_config.is_some()) else {
        return Cow::Borrowed(seen);
    };
    let topology = Topology {
        settings: Some(Arc::new(settings)),
        ..Topology::clone(topology)
    };
    Cow::Owned(Observation {
        dcs: DcsView::Known {
            topology: Arc::new(topology),
            age: *age,
        },
        ..seen.clone()
    })
}

fn assumed(topology: &Topology, is_lost: bool) -> Option<ClusterSettings> {
    let kept = topology.settings.as_ref();
    let is_unknown = match kept {
        Some(kept) => is_lost && kept.synchronous_mode == SynchronousMode::Off,
        None => !topology.is_config_unreadable,
    };
    let sync = topology.sync.as_ref().filter(|_| is_unknown)?;
    sync.leader.as_ref()?;
    Some(ClusterSettings {
        synchronous_mode: match sync.quorum {
            0 => SynchronousMode::On,
            _ => SynchronousMode::Quorum,
        },
        ..ClusterSettings::clone(&topology.settings_or_default())
    })
}

/// Completes the decision of a leader that the DCS answers. Last, for nobody waits for it: every member goes by
/// what it remembers.
pub(super) fn note(seen: &Observation, mut decision: Decision) -> Decision {
    let LeaseView::Held(held) = &seen.lease else {
        return decision;
    };
    let is_answered = seen.is_dcs_fresh() && !held.is_by_failsafe && !held.is_key_missing;
    if seen.lost_config.is_some() && is_answered && !held.has_unresolved_hand_over {
        decision.actions.push(Action::RestoreConfig);
    }
    decision
}

#[cfg(test)]
mod tests {
    use trunkline_shared::cluster::MemberName;
    use trunkline_shared::cluster::sync_state::SyncState;

    use super::*;

    #[test]
    fn a_standing_record_tells_the_mode_where_nobody_knows_the_configuration() {
        let of = |quorum, leader: Option<&str>| Topology {
            sync: Some(SyncState {
                leader: leader.map(MemberName::new),
                standbys: vec![MemberName::new("b")],
                quorum,
                revision: 5,
            }),
            ..Topology::default()
        };
        let mode = |topology: &Topology| assumed(topology, false).map(|s| s.synchronous_mode);
        assert_eq!(mode(&of(0, Some("a"))), Some(SynchronousMode::On));
        assert_eq!(mode(&of(1, Some("a"))), Some(SynchronousMode::Quorum));
        assert_eq!(mode(&of(0, None)), None, "Patroni empties it");
        let mut known = of(0, Some("a"));
        known.settings = Some(Arc::default());
        assert_eq!(mode(&known), None);
        let told = assumed(&known, true).map(|s| s.synchronous_mode);
        assert_eq!(told, Some(SynchronousMode::On), "kept from before the mode");
    }
}
