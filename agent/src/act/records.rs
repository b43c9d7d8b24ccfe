//! Writes of this member to the DCS, each a transaction that compares what was seen.

use std::sync::Arc;

use trunkline_shared::cluster::switchover::{Drain, OnTimeout};
use trunkline_shared::cluster::topology::{
    ClaimedTimeline, FactKey, FailoverRequest, Initialize, Status, SwitchoverRecord,
};
use trunkline_shared::cluster::{Lsn, MemberName, SystemId};
use trunkline_shared::dcs::{Compare, Operation, Revision, Txn, records};

use super::{ActError, Actor};
use crate::decide::observation::{LeaseView, Observation};
use crate::lease::AsSeen;

/// The `status` record with this position; slots stay as they stand.
pub(super) fn status(seen: &Observation, optime: Lsn) -> String {
    let known = seen.topology().map(|t| t.status.clone());
    status_at(known.unwrap_or_default(), optime)
}

/// The same over a record that is known.
pub(super) fn status_at(known: Arc<Status>, optime: Lsn) -> String {
    records::status_to_json(&Status {
        // A position that was published bounds the loss of whoever leads next; only a running primary takes it back.
        optime: optime.max(known.optime),
        ..Status::clone(&known)
    })
}

/// What this member knows when it takes the leader key.
pub(super) fn as_seen(seen: &Observation) -> AsSeen {
    seen.topology()
        .map(|topology| AsSeen {
            claim: topology.claim_revision(),
            sync: topology.sync.as_ref().map_or(0, |sync| sync.revision),
            failsafe: topology.failsafe_revision,
        })
        .unwrap_or_default()
}

impl Actor {
    /// What to write as `config` where there is none: what was there before, or that of a new cluster.
    fn missing_config(&self, seen: &Observation) -> Option<String> {
        let has_config = seen.topology().is_some_and(|t| t.settings.is_some());
        match &seen.lost_config {
            Some(text) => Some(text.to_string()),
            None => (!has_config).then(|| self.bootstrap_config.clone()),
        }
    }

    pub(super) async fn restore_config(&self, seen: &Observation) -> Result<Revision, ActError> {
        let Some(text) = &seen.lost_config else {
            return Err(ActError::NotAllowed("no configuration is lost"));
        };
        let absent = Compare::Absent(self.keys.path(&FactKey::Settings));
        let config = self.put(&FactKey::Settings, text.to_string());
        let when = vec![self.still_leads(seen)?, absent];
        let revision = self.write("config", when, vec![config]).await?;
        tracing::warn!("the key config was gone; it is written again as this member saw it last");
        Ok(revision)
    }
}

/// Whether the cluster is still being made.
pub(super) fn is_bootstrap(seen: &Observation) -> bool {
    seen.topology()
        .is_some_and(|t| t.initialize == Initialize::Running)
}

/// Whether the key `initialize` may be this member's claim. A view of before the leader key does not tell: given up without
/// it, the claim would stand on a lease that goes on.
pub(super) fn may_be_claimed(seen: &Observation) -> bool {
    let (Some(topology), LeaseView::Held(held)) = (seen.topology(), &seen.lease) else {
        return false;
    };
    match topology.initialize {
        Initialize::Running => true,
        Initialize::Absent => !topology.shows_leader(&seen.me.name, held.epoch),
        Initialize::Done(_) => false,
    }
}

/// The condition that the configuration is that of the decision; `None` where the one that `stands`, a revision, is newer
/// than what was seen.
fn as_decided(seen: &Observation, key: String, stands: Option<Revision>) -> Option<Compare> {
    match stands {
        Some(revision) if Some(revision) > seen.topology().map(|t| t.revision) => None,
        Some(revision) => Some(Compare::ModRevision(key, revision)),
        None => Some(Compare::Absent(key)),
    }
}

impl Actor {
    pub(super) fn put(&self, key: &FactKey, value: String) -> Operation {
        Operation::Put {
            key: self.keys.path(key),
            value: value.into_bytes(),
            lease: 0,
        }
    }

    pub(super) fn delete(&self, key: &FactKey) -> Operation {
        Operation::Delete(self.keys.path(key))
    }

    /// The condition that this member still leads under the epoch that was seen.
    pub(super) fn still_leads(&self, seen: &Observation) -> Result<Compare, ActError> {
        match &seen.lease {
            LeaseView::Held(held) => Ok(Compare::ModRevision(
                self.keys.path(&FactKey::Leader),
                held.epoch.revision,
            )),
            LeaseView::NotHeld | LeaseView::Lost => {
                Err(ActError::NotAllowed("only the leader writes this"))
            }
        }
    }

    pub(super) async fn write(
        &self,
        what: &'static str,
        when: Vec<Compare>,
        then: Vec<Operation>,
    ) -> Result<Revision, ActError> {
        let txn = Txn {
            when,
            then,
            otherwise: Vec::new(),
        };
        let committed = self.dcs.commit(&txn).await?;
        if !committed.succeeded {
            return Err(ActError::Changed(what));
        }
        Ok(committed.header.revision)
    }

    pub(super) async fn claim_bootstrap(&self, seen: &Observation) -> Result<Revision, ActError> {
        let config = self.missing_config(seen);
        Ok(self.lease.claim_bootstrap(as_seen(seen), config).await?)
    }

    pub(super) async fn record_system_id(
        &self,
        seen: &Observation,
        id: SystemId,
    ) -> Result<Revision, ActError> {
        // Before it is recorded: data that is recorded is never taken for a bootstrap cut short.
        self.postgres.bootstrap_is_finished()?;
        let initialize = self.keys.path(&FactKey::Initialize);
        let leads = self.still_leads(seen)?;
        if let Some(config) = self.missing_config(seen) {
            let when = vec![
                leads.clone(),
                Compare::Absent(self.keys.path(&FactKey::Settings)),
            ];
            let config = self.put(&FactKey::Settings, config);
            match self.write("config", when, vec![config]).await {
                Ok(_) | Err(ActError::Changed(_)) => {}
                Err(error) => return Err(error),
            }
        }
        let as_seen = if is_bootstrap(seen) {
            Compare::Value(initialize, Vec::new())
        } else {
            Compare::Absent(initialize)
        };
        let then = self.put(&FactKey::Initialize, records::initialize_to_text(Some(id)));
        self.write("initialize", vec![leads, as_seen], vec![then])
            .await
    }

    pub(super) async fn publish_status(
        &self,
        seen: &Observation,
        status: &Status,
    ) -> Result<Revision, ActError> {
        let then = self.put(&FactKey::Status, records::status_to_json(status));
        self.write("status", vec![self.still_leads(seen)?], vec![then])
            .await
    }

    /// A request that is gone or was replaced is not this one: nothing is left to drop.
    pub(super) async fn drop_failover(&self, revision: Revision) -> Result<Revision, ActError> {
        let as_seen = Compare::ModRevision(self.keys.path(&FactKey::Failover), revision);
        let then = vec![self.delete(&FactKey::Failover)];
        match self.write("failover", vec![as_seen], then).await {
            Err(ActError::Changed(_)) => Ok(0),
            other => other,
        }
    }

    /// Only where no change of leader is asked for: an operator's request goes first.
    pub(super) async fn request_switchover(
        &self,
        seen: &Observation,
        to: &MemberName,
    ) -> Result<Revision, ActError> {
        let request = FailoverRequest {
            leader: Some(self.me.name.clone()),
            candidate: Some(to.clone()),
            scheduled_at: None,
            // A full disk would end every session.
            drain: Drain {
                timeout: None,
                on_timeout: Some(OnTimeout::Terminate),
            },
            revision: 0,
        };
        let none = Compare::Absent(self.keys.path(&FactKey::Failover));
        let then = self.put(&FactKey::Failover, records::failover_to_json(&request));
        self.write("failover", vec![self.still_leads(seen)?, none], vec![then])
            .await
    }

    /// Until PostgreSQL stops for it, only while the request that it comes of stands as it was seen: what was taken back
    /// holds nobody up.
    pub(super) async fn announce_switchover(
        &self,
        seen: &Observation,
        record: &SwitchoverRecord,
    ) -> Result<Revision, ActError> {
        let then = self.put(&FactKey::Switchover, records::switchover_to_json(record));
        let mut when = vec![self.still_leads(seen)?];
        let request = seen.topology().and_then(|t| t.failover.as_ref());
        if let Some(revision) = record.request_to_stand(request) {
            let failover = self.keys.path(&FactKey::Failover);
            when.push(Compare::ModRevision(failover, revision));
        }
        self.write("trunkline/switchover", when, vec![then]).await
    }

    pub(super) async fn clear_switchover(&self, seen: &Observation) -> Result<Revision, ActError> {
        let then = vec![self.delete(&FactKey::Switchover)];
        self.write("trunkline/switchover", vec![self.still_leads(seen)?], then)
            .await
    }

    /// Only ever a higher number: what was seen is compared as it was seen.
    pub(super) async fn claim_timeline(
        &self,
        seen: &Observation,
        claimed: ClaimedTimeline,
    ) -> Result<Revision, ActError> {
        let path = self.keys.path(&FactKey::Timeline);
        let as_seen = Compare::as_seen(path, as_seen(seen).claim);
        let then = self.put(&FactKey::Timeline, records::claimed_to_json(claimed));
        self.write(
            "trunkline/timeline",
            vec![self.still_leads(seen)?, as_seen],
            vec![then],
        )
        .await
    }

    pub(super) async fn write_disarmed(&self, seen: &Observation) -> Result<Revision, ActError> {
        let then = self.put(&FactKey::Disarmed(self.me.name.clone()), String::new());
        self.write(
            "trunkline/disarmed",
            vec![self.still_leads(seen)?],
            vec![then],
        )
        .await
    }

    /// Only under the configuration that was seen. A copy of the request may be executed late, and what a pause that was
    /// switched on meanwhile announced must stand.
    pub(super) async fn remove_disarmed(&self, seen: &Observation) -> Result<Revision, ActError> {
        const WHAT: &str = "trunkline/disarmed";
        let key = self.keys.path(&FactKey::Settings);
        let stands = self.cluster.borrow().raw_config().map(|c| c.revision);
        let as_seen = as_decided(seen, key, stands).ok_or(ActError::Changed(WHAT))?;
        let then = vec![self.delete(&FactKey::Disarmed(self.me.name.clone()))];
        self.write(WHAT, vec![as_seen], then).await
    }

    pub(super) async fn remove_disarmed_of(
        &self,
        member: &MemberName,
        record_revision: i64,
    ) -> Result<Revision, ActError> {
        let record = self.keys.path(&FactKey::Member(member.clone()));
        let as_seen = Compare::ModRevision(record, record_revision);
        let then = vec![self.delete(&FactKey::Disarmed(member.clone()))];
        self.write("trunkline/disarmed", vec![as_seen], then).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide::script::Scene;

    fn seen(lines: &[&str]) -> Observation {
        let mut scene = Scene::default();
        lines.iter().for_each(|line| scene.take_text(line).unwrap());
        scene.seen
    }

    #[test]
    fn only_a_view_that_shows_the_key_tells_that_initialize_is_no_claim() {
        let held = "lease held left=4 revision=12";
        let may = |lines: &[&str]| may_be_claimed(&seen(lines));
        assert!(may(&[held, "leader a revision=12", "initialize running"]));
        assert!(may(&[held, "leader none", "initialize absent"]));
        assert!(may(&[held, "leader a revision=11", "initialize absent"]));
        assert!(!may(&[held, "leader a revision=12", "initialize absent"]));
        assert!(!may(&[held, "leader none", "initialize 7"]));
        assert!(!may(&["leader none", "initialize running"]));
    }

    #[test]
    fn disarmed_is_removed_only_under_the_configuration_of_the_decision() {
        let seen = seen(&["leader a revision=12"]);
        let revision = seen.topology().map(|t| t.revision).unwrap();
        let key = || "/c/config".to_owned();
        let compared = |stands| as_decided(&seen, key(), stands);
        let same = Compare::ModRevision(key(), revision);
        assert_eq!(compared(Some(revision)), Some(same));
        assert_eq!(compared(Some(revision + 1)), None);
        assert_eq!(compared(None), Some(Compare::Absent(key())));
    }
}
