//! The restart of one member by its agent, told step by step where routers hold their clients for it.

use std::time::Duration;

use hyper::Method;
use serde_json::{Map, Value};
use trunkline_shared::cluster::switchover::Drain;
use trunkline_shared::cluster::topology::SwitchoverStage;
use trunkline_shared::cluster::{Member, MemberName, MemberState, Moment, Topology};
use trunkline_shared::dcs::records::drain_to_json;
use trunkline_shared::service::clock;

use super::members::{LONGEST, goes_on, send};
use super::rest::{Answer, RestError, request};
use super::steps::{seconds, waits_for};
use super::terminal::Label;
use super::{CtlError, Session};

/// How often the numbers of a router that is waited for are looked at: nobody is woken by those.
const LOOK: Duration = Duration::from_millis(500);

const PATH: &str = "/restart";

/// Asks for the restart and waits for the answer. `topology` says whether the member leads, and who holds clients for it as
/// `drain` says: to others that is not said, for an agent of Patroni would refuse it.
///
/// # Errors
/// If nobody can be asked, or nothing can be told.
pub(super) async fn restart(
    session: &Session,
    topology: &Topology,
    member: &Member,
    (mut body, drain): (Map<String, Value>, &Drain),
) -> Result<Result<Answer, RestError>, CtlError> {
    let leader = topology.leader.as_ref().map(|leader| &leader.member);
    let leads = leader == Some(&member.name);
    if leads && member.is_trunkline() {
        drain_to_json(drain, &mut body);
    }
    let body = Value::Object(body).to_string();
    if !leads || topology.routers.is_empty() {
        return send(session, member, (Method::POST, PATH), &body).await;
    }
    let (mut follow, _) = session.follow().await?;
    let client = session.client()?;
    goes_on(session, member, "restart");
    let label = Label::new(format!("waiting for {}: restart", member.name));
    let asking = request(&client, &member.api_url, Method::POST, PATH, body, LONGEST);
    let mut steps = Steps::new(member.name.clone(), clock::now());
    let mut see = |topology: &Topology| {
        for line in steps.see(topology, clock::now()) {
            label.replace(format!("after {}", line.trim()));
            session.terminal.line(&line)?;
        }
        if let Some(waits) = waits_for(topology) {
            label.replace(waits);
        }
        Ok::<(), CtlError>(())
    };
    let following = async {
        let mut asking = std::pin::pin!(asking);
        loop {
            let view = follow.views.borrow_and_update().clone();
            see(&view.topology)?;
            tokio::select! {
                biased;
                answer = &mut asking => {
                    see(&follow.views.borrow().clone().topology)?;
                    return Ok(answer);
                }
                Ok(()) = follow.views.changed() => {}
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    };
    session.terminal.waiting(&label, following).await
}

/// When each step was seen first. Pure.
struct Steps {
    leader: MemberName,
    started: Moment,
    stage: Stage,
}

/// The last step that was told.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Asked,
    Held,
    Drained,
    Stopped,
    Released,
}

impl Steps {
    fn new(leader: MemberName, started: Moment) -> Self {
        Self {
            leader,
            started,
            stage: Stage::Asked,
        }
    }

    /// The lines of the steps that this view shows first.
    fn see(&mut self, topology: &Topology, now: Moment) -> Vec<String> {
        let record = topology.switchover.as_ref();
        let record = record.filter(|record| record.is_restart() && record.from == self.leader);
        let state = topology
            .members
            .get(&self.leader)
            .map(|member| member.state);
        let is_stopped = state.is_some_and(|state| state != MemberState::Running);
        let stage = match record.map(|record| record.stage) {
            Some(SwitchoverStage::HoldTransactions) => Stage::Held,
            Some(SwitchoverStage::HoldAll | SwitchoverStage::Stopped { .. }) if is_stopped => {
                Stage::Stopped
            }
            Some(SwitchoverStage::HoldAll | SwitchoverStage::Stopped { .. }) => Stage::Drained,
            Some(SwitchoverStage::Resume) | None if self.stage == Stage::Asked => Stage::Asked,
            Some(SwitchoverStage::Resume) | None if is_stopped => Stage::Stopped,
            Some(SwitchoverStage::Resume) | None => Stage::Released,
        };
        if stage <= self.stage {
            return Vec::new();
        }
        let was_stopped = self.stage == Stage::Stopped || stage == Stage::Stopped;
        self.stage = stage;
        let (leader, routers) = (&self.leader, topology.routers.len());
        let what = match stage {
            Stage::Asked => return Vec::new(),
            Stage::Held => format!("holding: {routers} routers hold new transactions"),
            Stage::Drained => "drained: routers hold everything".to_owned(),
            Stage::Stopped => format!("stopping: PostgreSQL of {leader} restarts"),
            Stage::Released if was_stopped => format!("released: {leader} runs, clients go on"),
            Stage::Released => "released: clients go on".to_owned(),
        };
        vec![format!("{:>8} {what}", seconds(now.since(self.started)))]
    }
}

#[cfg(test)]
mod tests {
    use trunkline_shared::cluster::topology::{Change, FactKey};
    use trunkline_shared::dcs::records;

    use super::*;

    fn put(topology: &mut Topology, key: FactKey, text: Option<&str>) {
        let fact = text.map(|text| records::parse(&key, text.as_bytes()));
        topology.apply(&Change {
            key,
            fact,
            revision: topology.revision + 1,
            lease: 7,
        });
    }

    #[test]
    fn each_step_of_a_leaders_restart_is_told_once() {
        let mut topology = Topology::default();
        let mut steps = Steps::new(MemberName::new("a"), Moment(0));
        let state = |topology: &mut Topology, state: &str| {
            let text = format!(
                r#"{{"conn_url":"postgres://a:5432/x","api_url":"","state":"{state}","role":"primary"}}"#
            );
            put(topology, FactKey::Member(MemberName::new("a")), Some(&text));
        };
        let announce = |topology: &mut Topology, to: &str, stage: &str| {
            let text =
                format!(r#"{{"id":1,"epoch":"0.6","from":"a","to":"{to}","stage":"{stage}"}}"#);
            put(topology, FactKey::Switchover, Some(&text));
        };
        let mut said = Vec::new();
        let mut see = |topology: &Topology| said.extend(steps.see(topology, Moment(1_500_000_000)));
        state(&mut topology, "running");
        // A change of leader is none of its steps.
        announce(&mut topology, "b", "hold_all");
        see(&topology);
        for stage in ["hold_transactions", "hold_transactions", "hold_all"] {
            announce(&mut topology, "a", stage);
            see(&topology);
        }
        for word in ["restarting", "running"] {
            state(&mut topology, word);
            see(&topology);
        }
        put(&mut topology, FactKey::Switchover, None);
        see(&topology);
        see(&topology);
        assert_eq!(
            said,
            [
                " 1.500 s holding: 0 routers hold new transactions",
                " 1.500 s drained: routers hold everything",
                " 1.500 s stopping: PostgreSQL of a restarts",
                " 1.500 s released: a runs, clients go on",
            ]
        );
    }
}
