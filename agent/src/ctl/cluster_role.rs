//! `demote-cluster` and `promote-cluster`: a cluster becomes another one's standby, or stands on its own.

use std::time::Duration;

use serde_json::{Map, Value};
use trunkline_shared::cluster::{MemberRole, MemberState};
use trunkline_shared::dcs::records::{merge_patch, role_word, state_word};
use trunkline_shared::dcs::watch::Follow;
use trunkline_shared::service::clock;

use super::arguments::{DemoteCluster, PromoteCluster};
use super::terminal::Label;
use super::{CtlError, Session, list};
use crate::api::settings::{read, write};

/// How long the change of the leader's role is waited for.
const LONGEST_WAIT: Duration = Duration::from_secs(120);

/// `trunkline demote-cluster`
pub(super) async fn demote(session: &Session, asked: &DemoteCluster) -> Result<(), CtlError> {
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
    let change = Change {
        section: Value::Object(section),
        action: "demote",
        consequence: "Its primary stops, and nobody in it accepts writes any more.",
        becomes: MemberRole::StandbyLeader,
        is_forced: asked.force,
    };
    change.make(session).await
}

/// `trunkline promote-cluster`
pub(super) async fn promote(session: &Session, asked: &PromoteCluster) -> Result<(), CtlError> {
    let change = Change {
        section: Value::Null,
        action: "promote",
        consequence: "Its leader accepts writes from then on, whatever the cluster that it replicates from \
                      does.",
        becomes: MemberRole::Primary,
        is_forced: asked.force,
    };
    change.make(session).await
}

/// A change of `standby_cluster`.
struct Change {
    section: Value,
    action: &'static str,
    consequence: &'static str,
    becomes: MemberRole,
    is_forced: bool,
}

impl Change {
    async fn make(self, session: &Session) -> Result<(), CtlError> {
        let (old, revision) = read(session.dcs.as_ref(), &session.keys).await?;
        let is_standby = old
            .get("standby_cluster")
            .and_then(Value::as_object)
            .is_some_and(|section| !section.is_empty());
        if is_standby != self.section.is_null() {
            let what = if is_standby {
                "a standby cluster"
            } else {
                "no standby cluster"
            };
            let why = format!("Cluster is already in the required state: it is {what}");
            return Err(CtlError::Failed(why));
        }
        let (follow, view) = session.follow().await?;
        let cluster = &session.cluster;
        if view.topology.leader.is_none() {
            let why = format!(
                "Cluster has no leader, {}ion is not possible",
                self.action.trim_end_matches('e')
            );
            return Err(CtlError::Failed(why));
        }
        if !self.is_forced {
            session.terminal.line("Current cluster topology")?;
            let table = list::render(cluster, &view.topology, list::Shape::PLAIN);
            session.terminal.print(&table)?;
            session.terminal.line(self.consequence)?;
            let action = self.action;
            let question = format!("Are you sure you want to {action} {cluster} cluster?");
            let refused = format!("Aborted cluster {}ion", action.trim_end_matches('e'));
            session.terminal.confirm(&question, &refused).await?;
        }
        let patch = Value::Object(Map::from_iter([(
            "standby_cluster".to_owned(),
            self.section.clone(),
        )]));
        let mut value = old.clone();
        merge_patch(&mut value, &patch);
        write(
            session.dcs.as_ref(),
            &session.keys,
            &value,
            Some((&old, revision)),
        )
        .await?;
        session.terminal.goes_on(
            "the configuration is changed and the members follow it; see \"trunkline list\"",
        );
        let label = Label::default();
        let waiting = self.until_it_is_so(session, follow, &label);
        session.terminal.waiting(&label, waiting).await
    }

    async fn until_it_is_so(
        &self,
        session: &Session,
        mut follow: Follow,
        label: &Label,
    ) -> Result<(), CtlError> {
        let started = clock::now();
        loop {
            let view = follow.views.borrow_and_update().clone();
            let leader = view.topology.leader_member();
            label.replace(match leader {
                None => "nobody leads".to_owned(),
                Some(leader) => format!(
                    "{} leads: {}, {}",
                    leader.name,
                    role_word(leader.role),
                    state_word(leader.state)
                ),
            });
            let took = clock::now().since(started);
            let is_done = leader.filter(|leader| {
                leader.role == self.becomes && leader.state == MemberState::Running
            });
            if let Some(leader) = is_done {
                let text = format!(
                    "cluster is successfully {}d: {} is {} after {:.1} s",
                    self.action,
                    leader.name,
                    role_word(leader.role).replace('_', " "),
                    took.as_secs_f64()
                );
                return session.terminal.success(&text);
            }
            let left = LONGEST_WAIT.saturating_sub(took);
            match tokio::time::timeout(left, follow.views.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => {
                    let why = format!(
                        "the configuration is changed, the leader has not followed within {} s; \
                         trunkline list says why",
                        LONGEST_WAIT.as_secs()
                    );
                    return Err(CtlError::Failed(why));
                }
            }
        }
    }
}
