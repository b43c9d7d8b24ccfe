//! A change of leader as an operator asks for it: the checks, the record, and how far it has come. Used by
//! the REST API and by the operator's command alike. Nothing here touches PostgreSQL or the lease.

use serde::Deserialize;
use serde_json::{Map, Value};
use trunkline_shared::cluster::switchover::Drain;
use trunkline_shared::cluster::topology::{Fact, FactKey, FailoverRequest, SwitchoverStage};
use trunkline_shared::cluster::{Member, MemberName, MemberRole, MemberState, Topology};
use trunkline_shared::dcs::keys::Keys;
use trunkline_shared::dcs::{Compare, Dcs, DcsError, Operation, Txn, records};

use super::{local, scheduled};

/// Which of the two it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Planned, from a living leader.
    Switchover,
    /// By force, to a named candidate, with or without a leader.
    Failover,
}

impl Kind {
    /// As in a sentence.
    pub fn word(self) -> &'static str {
        match self {
            Kind::Switchover => "switchover",
            Kind::Failover => "failover",
        }
    }

    /// As in "Successfully switched over".
    pub fn done(self) -> &'static str {
        match self {
            Kind::Switchover => "switched over",
            Kind::Failover => "failed over",
        }
    }
}

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangeOfLeader {
    /// Which of the two.
    pub kind: Kind,
    /// The leader to change away from; a switchover names it.
    pub leader: Option<MemberName>,
    /// The member to change to; a failover names it.
    pub candidate: Option<MemberName>,
    /// When, as written by who asks; now if absent.
    pub scheduled_at: Option<String>,
    /// How long to wait for transactions, and what follows.
    pub drain: Drain,
}

/// The body of `POST /switchover` and `/failover`.
#[derive(Debug, Default, Deserialize)]
struct Body {
    leader: Option<String>,
    primary: Option<String>,
    master: Option<String>,
    candidate: Option<String>,
    member: Option<String>,
    scheduled_at: Option<String>,
}

/// Why not, with Patroni's status code.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct Refusal {
    /// 400 incomplete, 412 not now, 422 not understood, 503 could not be done.
    pub status: u16,
    /// What a person reads.
    pub text: String,
}

fn refuse(status: u16, text: impl Into<String>) -> Refusal {
    Refusal {
        status,
        text: text.into(),
    }
}

impl ChangeOfLeader {
    /// Reads a request's body.
    ///
    /// # Errors
    /// 400 when it is no JSON object, 422 for what is not supported.
    pub fn from_body(kind: Kind, body: &[u8]) -> Result<Self, Refusal> {
        let fields: Map<String, Value> = local::object(body).map_err(|why| refuse(400, why))?;
        let drain = records::drain_from_json(&fields).map_err(|why| refuse(400, why))?;
        let body: Body = local::object(body).map_err(|why| refuse(400, why))?;
        let scheduled_at = body.scheduled_at.filter(|at| !at.is_empty() && at != "now");
        if scheduled_at.is_some() && kind == Kind::Failover {
            return Err(refuse(
                400,
                "a failover can't be scheduled; schedule a switchover",
            ));
        }
        let name = |name: Option<String>| {
            name.filter(|name| !name.is_empty())
                .map(|name| MemberName::new(&name))
        };
        let leader = name(body.leader.or(body.primary).or(body.master));
        let kind = match (kind, &leader) {
            // Whoever names the leader means to spare it, as Patroni takes it.
            (Kind::Failover, Some(_)) => Kind::Switchover,
            (kind, _) => kind,
        };
        Ok(Self {
            kind,
            leader,
            candidate: name(body.candidate.or(body.member)),
            scheduled_at,
            drain,
        })
    }

    /// Whether the cluster, as it is, allows it.
    ///
    /// # Errors
    /// 400 for what the request lacks, 412 for what the cluster lacks.
    pub fn check(&self, topology: &Topology) -> Result<(), Refusal> {
        self.check_names(topology)?;
        if let Some(at) = &self.scheduled_at {
            let is_paused = topology.settings_or_default().is_paused;
            let due = scheduled::due(at, "switchover", is_paused);
            due.map_err(|(status, why)| refuse(status, why))?;
        }
        let leader = topology.leader.as_ref().map(|leader| &leader.member);
        if let Some(candidate) = &self.candidate {
            let Some(member) = topology.members.get(candidate) else {
                return Err(refuse(
                    412,
                    format!("candidate {candidate} does not exist: no such member is registered"),
                ));
            };
            return unfit(member).map_or(Ok(()), |why| {
                Err(refuse(412, format!("candidate {candidate} {why}")))
            });
        }
        let others = || {
            topology
                .members
                .values()
                .filter(|m| Some(&m.name) != leader)
        };
        if others().next().is_none() {
            return Err(refuse(
                412,
                "switchover is not possible: the cluster has no member except the leader",
            ));
        }
        if others().all(|member| unfit(member).is_some()) {
            let reasons: Vec<String> = others()
                .filter_map(|member| Some(format!("{} {}", member.name, unfit(member)?)))
                .collect();
            return Err(refuse(
                412,
                format!("no good candidates have been found: {}", reasons.join(", ")),
            ));
        }
        Ok(())
    }

    fn check_names(&self, topology: &Topology) -> Result<(), Refusal> {
        let current = topology.leader.as_ref().map(|leader| &leader.member);
        match (self.kind, &self.leader, &self.candidate) {
            (Kind::Switchover, None, _) => Err(refuse(
                400,
                "a switchover needs the current leader's name: {\"leader\": \"...\"}",
            )),
            (Kind::Failover, _, None) => Err(refuse(
                400,
                "a failover needs a candidate: {\"candidate\": \"...\"}",
            )),
            (Kind::Switchover, Some(leader), Some(candidate)) if leader == candidate => Err(
                refuse(400, format!("leader and candidate are the same: {leader}")),
            ),
            (Kind::Failover, _, Some(candidate)) if current == Some(candidate) => {
                Err(refuse(412, format!("{candidate} is the leader already")))
            }
            (Kind::Switchover, Some(_), None) if topology.settings_or_default().is_paused => {
                Err(refuse(
                    400,
                    "while the cluster is paused a switchover needs a candidate",
                ))
            }
            (Kind::Switchover, Some(leader), _) => match current {
                Some(current) if current == leader => Ok(()),
                Some(current) => Err(refuse(
                    412,
                    format!("leader name does not match: {current} leads, not {leader}"),
                )),
                None => Err(refuse(
                    412,
                    "switchover is not possible: the cluster has no leader; use failover",
                )),
            },
            (Kind::Failover, _, Some(_)) => Ok(()),
        }
    }

    /// Writes the `failover` record; returns its revision. One that stands there is replaced, as Patroni does it, unless
    /// it has begun.
    ///
    /// # Errors
    /// 412 when another change of leader is under way, 503 when the DCS does not do it.
    pub async fn write(&self, dcs: &dyn Dcs, keys: &Keys) -> Result<i64, Refusal> {
        self.write_over(standing(dcs, keys).await?, dcs, keys).await
    }

    /// The same, but where this very request stands already or is carried out nothing is written: whoever was asked
    /// for it before, and did not answer, has done it. Whether it was written now.
    ///
    /// # Errors
    /// As of [`ChangeOfLeader::write`].
    pub async fn write_once(&self, dcs: &dyn Dcs, keys: &Keys) -> Result<bool, Refusal> {
        let found = standing(dcs, keys).await?;
        if self.is_found(&found) {
            return Ok(false);
        }
        match self.write_over(found, dcs, keys).await {
            Ok(_) => Ok(true),
            // It may have come in between.
            Err(refusal) => match self.stands(dcs, keys).await? {
                true => Ok(false),
                false => Err(refusal),
            },
        }
    }

    /// Whether this very request stands in the DCS, or is carried out.
    ///
    /// # Errors
    /// 503 when the DCS does not tell.
    pub async fn stands(&self, dcs: &dyn Dcs, keys: &Keys) -> Result<bool, Refusal> {
        Ok(self.is_found(&standing(dcs, keys).await?))
    }

    /// Whether this very request is to be seen in a view of the cluster.
    pub fn is_seen_in(&self, topology: &Topology) -> bool {
        let request = topology.failover.as_ref();
        request.is_some_and(|request| self.is_same(request))
    }

    fn is_found(&self, found: &Standing) -> bool {
        match found {
            Standing::None { .. } => false,
            Standing::Asked { request, .. } | Standing::Begun { request, .. } => {
                let request = request.as_ref();
                request.is_some_and(|request| self.is_same(request))
            }
        }
    }

    fn is_same(&self, request: &FailoverRequest) -> bool {
        let own = FailoverRequest {
            revision: request.revision,
            ..self.record()
        };
        *request == own
    }

    /// As it is written.
    fn record(&self) -> FailoverRequest {
        FailoverRequest {
            leader: match self.kind {
                Kind::Switchover => self.leader.clone(),
                Kind::Failover => None,
            },
            candidate: self.candidate.clone(),
            scheduled_at: self.scheduled_at.as_deref().map(Into::into),
            drain: self.drain,
            revision: 0,
        }
    }

    async fn write_over(
        &self,
        found: Standing,
        dcs: &dyn Dcs,
        keys: &Keys,
    ) -> Result<i64, Refusal> {
        let key = keys.path(&FactKey::Failover);
        let guards = match found {
            Standing::None { revision: None } => vec![Compare::Absent(key.clone())],
            Standing::None {
                revision: Some(revision),
            } => vec![Compare::ModRevision(key.clone(), revision)],
            Standing::Asked { guards, .. } => guards,
            Standing::Begun { text, .. } => {
                return Err(refuse(
                    412,
                    format!("another change of leader is under way, wait for its end: {text}"),
                ));
            }
        };
        let value = records::failover_to_json(&self.record());
        let write = Txn {
            when: guards,
            then: vec![Operation::Put {
                key,
                value: value.into_bytes(),
                lease: 0,
            }],
            otherwise: Vec::new(),
        };
        let committed = dcs.commit(&write).await.map_err(unwritten)?;
        if committed.succeeded {
            Ok(committed.header.revision)
        } else {
            Err(refuse(
                412,
                "another change of leader was asked for at the same time",
            ))
        }
    }

    /// How far it has come, by a view of the cluster that is at least as new as the written record.
    pub fn progress(&self, topology: &Topology, before: Option<&MemberName>) -> Progress {
        let Some(leader) = &topology.leader else {
            return Progress::Pending;
        };
        if Some(&leader.member) != before {
            let is_standby = topology.settings_or_default().standby_cluster.is_some();
            let leads = topology.leader_member().is_some_and(|member| {
                let has_role = match member.role {
                    MemberRole::Primary => true,
                    MemberRole::StandbyLeader => is_standby,
                    MemberRole::Replica
                    | MemberRole::Demoted
                    | MemberRole::Uninitialized
                    | MemberRole::Promoted => false,
                };
                has_role && member.state == MemberState::Running
            });
            return if leads {
                Progress::Done(leader.member.clone())
            } else {
                Progress::Promoting(leader.member.clone())
            };
        }
        match &topology.switchover {
            Some(record) if record.stage == SwitchoverStage::Resume => Progress::CalledOff,
            Some(_) => Progress::Pending,
            None if topology.failover.is_some() => Progress::Pending,
            None => Progress::CalledOff,
        }
    }
}

/// What stands under `failover`.
enum Standing {
    /// Nothing that asks for something; the revision of the empty record, if there is one.
    None {
        /// Of the record.
        revision: Option<i64>,
    },
    /// A request for later, or one that nobody has taken up. The guards hold as long as that is so.
    Asked {
        /// What it asks for, if it can be read.
        request: Option<FailoverRequest>,
        guards: Vec<Compare>,
    },
    /// A request that is carried out.
    Begun {
        /// What it asks for, if it can be read.
        request: Option<FailoverRequest>,
        /// As it is written.
        text: String,
    },
}

async fn standing(dcs: &dyn Dcs, keys: &Keys) -> Result<Standing, Refusal> {
    let (key, progress) = (
        keys.path(&FactKey::Failover),
        keys.path(&FactKey::Switchover),
    );
    let read = Txn {
        then: vec![
            Operation::Get(key.clone()),
            Operation::Get(progress.clone()),
        ],
        ..Txn::default()
    };
    let found = dcs.commit(&read).await.map_err(unwritten)?.entries;
    let of = |key: &str| found.iter().find(|entry| entry.key == key);
    let Some(entry) = of(&key) else {
        return Ok(Standing::None { revision: None });
    };
    if records::is_absent(&FactKey::Failover, &entry.value) {
        return Ok(Standing::None {
            revision: Some(entry.mod_revision),
        });
    }
    let fact = records::parse(&FactKey::Failover, &entry.value);
    let request = if let Fact::Failover(request) = fact {
        Some(request)
    } else {
        None
    };
    let begun = of(&progress);
    let is_begun = begun.is_some_and(|begun| {
        let fact = records::parse(&FactKey::Switchover, &begun.value);
        matches!(fact, Fact::Switchover(record) if i64::try_from(record.id) == Ok(entry.mod_revision))
    });
    if is_begun {
        return Ok(Standing::Begun {
            request,
            text: String::from_utf8_lossy(&entry.value).into_owned(),
        });
    }
    let not_begun = match begun {
        Some(begun) => Compare::ModRevision(progress, begun.mod_revision),
        None => Compare::Absent(progress),
    };
    Ok(Standing::Asked {
        request,
        guards: vec![Compare::ModRevision(key, entry.mod_revision), not_begun],
    })
}

/// What was taken back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TakenBack {
    /// There was nothing to take back.
    Nothing,
    /// A switchover that was scheduled.
    Scheduled,
    /// A request that nobody had taken up.
    Standing,
}

/// Deletes the change of leader that is scheduled, or that nobody has taken up.
///
/// # Errors
/// 409 when it has begun, or changed meanwhile, 503 when the DCS does not do it.
pub async fn take_back(dcs: &dyn Dcs, keys: &Keys) -> Result<TakenBack, Refusal> {
    let (is_scheduled, guards) = match standing(dcs, keys).await? {
        Standing::None { .. } => return Ok(TakenBack::Nothing),
        Standing::Asked { request, guards } => {
            let is_scheduled = request.is_some_and(|request| request.scheduled_at.is_some());
            (is_scheduled, guards)
        }
        Standing::Begun { text, .. } => {
            return Err(refuse(
                409,
                format!("the change of leader is under way already: {text}"),
            ));
        }
    };
    let delete = Txn {
        when: guards,
        then: vec![Operation::Delete(keys.path(&FactKey::Failover))],
        otherwise: Vec::new(),
    };
    match (
        dcs.commit(&delete).await.map_err(unwritten)?.succeeded,
        is_scheduled,
    ) {
        (true, true) => Ok(TakenBack::Scheduled),
        (true, false) => Ok(TakenBack::Standing),
        (false, _) => Err(refuse(
            409,
            "the request for a change of leader changed meanwhile; look again",
        )),
    }
}

fn unwritten(error: DcsError) -> Refusal {
    refuse(503, format!("the request was not written: {error}"))
}

/// How far a change of leader has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Asked for, the old leader leads or nobody does.
    Pending,
    /// This member holds the key and does not lead yet.
    Promoting(MemberName),
    /// This member leads: as primary, or a standby cluster.
    Done(MemberName),
    /// The record is gone and the old leader leads.
    CalledOff,
}

/// Why a member cannot become leader by what its record says; `None` if nothing speaks against it.
pub fn unfit(member: &Member) -> Option<&'static str> {
    if !member.tags.may_lead() {
        return Some("is tagged nofailover");
    }
    if member.state != MemberState::Running {
        return Some("does not run");
    }
    if member.role == MemberRole::Uninitialized {
        return Some("has no data");
    }
    None
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use trunkline_shared::cluster::ClusterSettings;
    use trunkline_shared::cluster::topology::Change;

    use super::*;

    fn with(topology: &mut Topology, key: FactKey, text: &str) {
        let fact = Some(records::parse(&key, text.as_bytes()));
        topology.apply(&Change {
            key,
            fact,
            revision: topology.revision + 1,
            lease: 1,
        });
    }

    #[test]
    fn a_change_of_a_standby_clusters_leader_is_done_once_it_leads_that() {
        let asked = ChangeOfLeader {
            kind: Kind::Switchover,
            leader: Some(MemberName::new("a")),
            candidate: None,
            scheduled_at: None,
            drain: Drain::default(),
        };
        let (before, b) = (MemberName::new("a"), MemberName::new("b"));
        let member = |role: &str| {
            format!(
                r#"{{"conn_url":"postgres://b:5432/postgres","api_url":"http://b:8008/patroni",
                    "state":"running","role":"{role}"}}"#
            )
        };
        let mut topology = Topology::default();
        with(&mut topology, FactKey::Leader, "b");
        with(
            &mut topology,
            FactKey::Member(b.clone()),
            &member("replica"),
        );
        let progress = |topology: &Topology| asked.progress(topology, Some(&before));
        assert_eq!(progress(&topology), Progress::Promoting(b.clone()));
        with(
            &mut topology,
            FactKey::Member(b.clone()),
            &member("standby_leader"),
        );
        // Of a cluster that is none it is only about to be promoted.
        assert_eq!(progress(&topology), Progress::Promoting(b.clone()));
        let section = records::settings_from_json(r#"{"standby_cluster":{"host":"other"}}"#);
        topology.settings = Some(Arc::new(
            section.unwrap_or_else(|_| ClusterSettings::default()),
        ));
        assert_eq!(progress(&topology), Progress::Done(b));
    }
}
