//! `demote-cluster` and `promote-cluster`: a cluster becomes another one's standby, or stands on its own.

use std::time::Duration;

use serde_json::{Map, Value};
use trunkline_shared::cluster::{MemberRole, MemberState};
use trunkline_shared::dcs::records::merge_patch;
use trunkline_shared::service::clock;

use super::arguments::{DemoteCluster, PromoteCluster};
use super::{CtlError, Session};
use crate::api::settings::{read, write};

/// How long the change of the leader's role is waited for.
const LONGEST_WAIT: Duration = Duration::from_secs(120);

/// `trunkline demote-cluster`
pub async fn demote(session: &Session, asked: &DemoteCluster) -> Result<(), CtlError> {
    let mut section = Map::new();
    for (key, value) in [
        ("host", asked.host.clone()),
        ("port", asked.port.map(|port| port.to_string())),
        ("primary_slot_name", asked.primary_slot_name.clone()),
        ("restore_command", asked.restore_command.clone()),
    ] {
        if let Some(value) = value {
            section.insert(key.to_owned(), Value::String(value));
        }
    }
    if asked.host.is_none() && asked.restore_command.is_none() {
        let why = "name the cluster to replicate from by --host, --restore-command or both";
        return Err(CtlError::Usage(why.to_owned()));
    }
    let question =
        "Its primary stops, and nobody in it accepts writes any more. Demote the cluster?";
    let change = Change {
        section: Value::Object(section),
        question,
        becomes: MemberRole::StandbyLeader,
        is_forced: asked.force,
    };
    change.make(session).await
}

/// `trunkline promote-cluster`
pub async fn promote(session: &Session, asked: &PromoteCluster) -> Result<(), CtlError> {
    let question = "Its leader accepts writes from then on, whatever the cluster that it replicates from \
                    does. Promote the cluster?";
    let change = Change {
        section: Value::Null,
        question,
        becomes: MemberRole::Primary,
        is_forced: asked.force,
    };
    change.make(session).await
}

/// A change of `standby_cluster`.
struct Change {
    section: Value,
    question: &'static str,
    becomes: MemberRole,
    is_forced: bool,
}

impl Change {
    async fn make(self, session: &Session) -> Result<(), CtlError> {
        let (mut value, revision) = read(session.dcs.as_ref(), &session.keys).await?;
        let is_standby = value
            .get("standby_cluster")
            .and_then(Value::as_object)
            .is_some_and(|section| !section.is_empty());
        if is_standby != self.section.is_null() {
            let what = if is_standby { "is" } else { "is not" };
            let why = format!("the cluster {what} a standby cluster already");
            return Err(CtlError::Failed(why));
        }
        if !self.is_forced {
            session.terminal.confirm(self.question)?;
        }
        let patch = Value::Object(Map::from_iter([(
            "standby_cluster".to_owned(),
            self.section,
        )]));
        merge_patch(&mut value, &patch);
        write(session.dcs.as_ref(), &session.keys, &value, Some(revision)).await?;
        let (mut follow, _) = session.follow().await?;
        let started = clock::now();
        loop {
            let view = follow.views.borrow_and_update().clone();
            let leader = view.topology.leader_member();
            let is_done = leader.filter(|leader| {
                leader.role == self.becomes && leader.state == MemberState::Running
            });
            if let Some(leader) = is_done {
                let role = if self.becomes == MemberRole::Primary {
                    "primary"
                } else {
                    "standby leader"
                };
                let text = format!("Success: {} is {role} now", leader.name);
                return session.terminal.success(&text);
            }
            let left = LONGEST_WAIT.saturating_sub(clock::now().since(started));
            match tokio::time::timeout(left, follow.views.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => {
                    let why = "the configuration is changed, the leader has not followed yet; \
                               trunkline list says why";
                    return Err(CtlError::Failed(why.to_owned()));
                }
            }
        }
    }
}
