//! `switchover` and `failover`: ask, check, request through the leader's agent or the DCS, and follow.

use std::time::Duration;

use hyper::Method;
use serde_json::json;
use trunkline_shared::cluster::{MemberName, MemberRole, Moment, Topology};
use trunkline_shared::dcs::watch::Follow;
use trunkline_shared::service::clock;

use super::arguments::{Change, Format};
use super::rest::{Answer, RestError, request};
use super::steps::{Seen, Steps};
use super::{CtlError, Session, list};
use crate::api::requests::{ChangeOfLeader, Kind, unfit};

/// How long a change may take beyond what the agents themselves allow it.
const PATIENCE: Duration = Duration::from_secs(120);

/// A word of progress is printed when nothing was for this long.
const QUIET: Duration = Duration::from_secs(2);

/// How often the clock is looked at while nothing is seen.
const LOOK: Duration = Duration::from_millis(100);

/// `trunkline switchover`
pub async fn switchover(session: &Session, asked: &Change) -> Result<(), CtlError> {
    let (follow, view) = session.follow().await?;
    let topology = view.topology.clone();
    show(session, &topology, asked.force)?;
    let leader = topology
        .leader
        .as_ref()
        .map(|leader| leader.member.to_string());
    let given = asked.leader.clone();
    let leader = match (given, leader) {
        (Some(given), _) => given,
        (None, Some(current)) if asked.force => current,
        (None, Some(current)) => session.terminal.ask("Leader", &current)?,
        (None, None) => {
            return Err(CtlError::Failed(
                "the cluster has no leader to switch over from; use failover".to_owned(),
            ));
        }
    };
    let candidate = candidate(session, asked, &topology, &leader)?;
    let change = ChangeOfLeader {
        kind: Kind::Switchover,
        leader: Some(MemberName::new(&leader)),
        candidate,
        scheduled_at: when(session, asked)?,
    };
    change.check(&topology)?;
    if !asked.force {
        let what = match &change.scheduled_at {
            None => "switch over cluster".to_owned(),
            Some(at) => format!("schedule at {at} the switchover of cluster"),
        };
        session.terminal.confirm(&format!(
            "Are you sure you want to {what} {}, demoting current leader {leader}?",
            session.cluster
        ))?;
    }
    if let Some(at) = &change.scheduled_at {
        return match ask(session, &topology, &change).await? {
            Answered::Taken => session.terminal.success(&format!(
                "Success: the switchover is scheduled at {at}; trunkline list shows it"
            )),
            Answered::Refused(why) => Err(CtlError::Failed(why)),
            Answered::Unknown => Err(CtlError::Failed(
                "the leader's agent did not answer; trunkline list shows what is scheduled"
                    .to_owned(),
            )),
        };
    }
    carry_out(session, follow, &topology, change).await
}

/// When it is to happen, as written; now if absent.
fn when(session: &Session, asked: &Change) -> Result<Option<String>, CtlError> {
    let at = match &asked.scheduled {
        Some(at) => at.clone(),
        None if asked.force => return Ok(None),
        None => {
            let question = "When should the switchover take place (e.g. 2026-11-20T10:00:00+00:00)";
            session.terminal.ask(question, "now")?
        }
    };
    Ok(Some(at).filter(|at| at != "now"))
}

/// `trunkline failover`
pub async fn failover(session: &Session, asked: &Change) -> Result<(), CtlError> {
    if asked.scheduled.is_some() {
        let why = "a failover cannot be scheduled; schedule a switchover";
        return Err(CtlError::Usage(why.to_owned()));
    }
    let (follow, view) = session.follow().await?;
    let topology = view.topology.clone();
    show(session, &topology, asked.force)?;
    let leader = topology
        .leader
        .as_ref()
        .map(|leader| leader.member.to_string());
    let leader = leader.unwrap_or_default();
    let candidate = match asked.force && asked.candidate.is_none() {
        true => {
            return Err(CtlError::Usage(
                "a failover needs a candidate: --candidate MEMBER".to_owned(),
            ));
        }
        false => candidate(session, asked, &topology, &leader)?,
    };
    let change = ChangeOfLeader {
        kind: Kind::Failover,
        leader: None,
        candidate,
        scheduled_at: None,
    };
    change.check(&topology)?;
    if !asked.force {
        let question = match leader.as_str() {
            "" => format!(
                "Are you sure you want to fail over cluster {}?",
                session.cluster
            ),
            leader => format!(
                "Are you sure you want to fail over cluster {}, demoting current leader {leader}?",
                session.cluster
            ),
        };
        session.terminal.confirm(&question)?;
    }
    carry_out(session, follow, &topology, change).await
}

fn show(session: &Session, topology: &Topology, is_forced: bool) -> Result<(), CtlError> {
    if is_forced {
        return Ok(());
    }
    session.terminal.line("Current cluster topology")?;
    let table = list::render(&session.cluster, topology, Format::Pretty, false);
    session.terminal.print(&table)
}

fn candidate(
    session: &Session,
    asked: &Change,
    topology: &Topology,
    leader: &str,
) -> Result<Option<MemberName>, CtlError> {
    let name = match &asked.candidate {
        Some(name) => name.clone(),
        None if asked.force => String::new(),
        None => {
            let fit: Vec<&str> = topology
                .members
                .values()
                .filter(|member| member.name.as_str() != leader && unfit(member).is_none())
                .map(|member| member.name.as_str())
                .collect();
            session
                .terminal
                .ask(&format!("Candidate ['{}']", fit.join("', '")), "")?
        }
    };
    Ok((!name.is_empty()).then(|| MemberName::new(&name)))
}

async fn carry_out(
    session: &Session,
    mut follow: Follow,
    topology: &Topology,
    change: ChangeOfLeader,
) -> Result<(), CtlError> {
    let before = topology.leader.as_ref().map(|leader| leader.member.clone());
    let mut steps = Steps::new(change.clone(), before, clock::now());
    let (sender, mut answers) = tokio::sync::oneshot::channel();
    let asking = ask(session, topology, &change);
    let following = async {
        let mut pace = Pace::new();
        let mut answer: Option<Answered> = None;
        let mut is_waiting = true;
        loop {
            let view = follow.views.borrow_and_update().clone();
            for seen in steps.see(&view.topology, clock::now()) {
                pace.spoke();
                match seen {
                    Seen::Step(line) => session.terminal.line(&line)?,
                    Seen::Done(line) => session.terminal.success(&line)?,
                }
            }
            if let Some(leader) = steps.leader() {
                return verdict(&change, leader);
            }
            match &answer {
                Some(Answered::Refused(text)) => return Err(CtlError::Failed(text.clone())),
                Some(Answered::Taken | Answered::Unknown) if steps.is_called_off(clock::now()) => {
                    return Err(called_off(&change, &view.topology));
                }
                Some(Answered::Taken | Answered::Unknown) | None => {}
            }
            pace.check(session, &change)?;
            tokio::select! {
                changed = follow.views.changed() => {
                    changed.map_err(|_| CtlError::Failed("the cluster is not followed any more".to_owned()))?;
                }
                received = &mut answers, if is_waiting => {
                    is_waiting = false;
                    answer = received.ok();
                }
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    };
    let asked = async {
        let answered = asking.await?;
        // The other side is gone only when the change was seen to be done already.
        let _ = sender.send(answered);
        std::future::pending::<Result<(), CtlError>>().await
    };
    tokio::select! {
        done = following => done,
        failed = asked => failed,
    }
}

/// What became of the request.
enum Answered {
    /// Written, or carried out.
    Taken,
    /// The agent was asked and did not say.
    Unknown,
    /// The agent said no, or that it failed.
    Refused(String),
}

/// Through the leader's agent where it can be reached, else into the DCS.
async fn ask(
    session: &Session,
    topology: &Topology,
    change: &ChangeOfLeader,
) -> Result<Answered, CtlError> {
    let url = topology
        .leader_member()
        .map(|leader| leader.api_url.clone());
    let wait = topology
        .settings_or_default()
        .loop_wait
        .max(Duration::from_secs(10))
        * 2;
    if let Some(url) = url.filter(|url| !url.is_empty()) {
        let client = session.client()?;
        let body = json!({
            "leader": change.leader.as_ref().map(MemberName::as_str),
            "candidate": change.candidate.as_ref().map(MemberName::as_str),
            "scheduled_at": change.scheduled_at,
        });
        let answer = request(
            &client,
            &url,
            Method::POST,
            &format!("/{}", change.kind.word()),
            body.to_string(),
            wait + PATIENCE,
        )
        .await;
        match answer {
            Ok(Answer {
                status: 200 | 202, ..
            }) => return Ok(Answered::Taken),
            Ok(answer) => {
                return Ok(Answered::Refused(format!(
                    "{} ({})",
                    answer.text, answer.status
                )));
            }
            Err(RestError::NoAnswer(_)) => return Ok(Answered::Unknown),
            Err(RestError::NotReached(_)) => {}
        }
    }
    change.write(session.dcs.as_ref(), &session.keys).await?;
    Ok(Answered::Taken)
}

/// The exit code is 0 only if the member asked for leads.
fn verdict(change: &ChangeOfLeader, leader: &MemberName) -> Result<(), CtlError> {
    match &change.candidate {
        Some(candidate) if candidate != leader => Err(CtlError::Failed(format!(
            "{leader} leads now, not {candidate} as asked"
        ))),
        Some(_) | None => Ok(()),
    }
}

fn called_off(change: &ChangeOfLeader, topology: &Topology) -> CtlError {
    let leader = topology
        .leader
        .as_ref()
        .map(|leader| leader.member.to_string());
    let reasons: Vec<String> = topology
        .members
        .values()
        .filter_map(|member| {
            let reason = member.trunkline.as_ref()?.reason.as_deref()?;
            Some(format!("{}: {reason}", member.name))
        })
        .collect();
    let why = match reasons.is_empty() {
        true => "see its log".to_owned(),
        false => reasons.join(", "),
    };
    CtlError::Failed(format!(
        "the {} was called off; {} goes on as leader ({why})",
        change.kind.word(),
        leader.as_deref().unwrap_or("nobody")
    ))
}

/// Keeps the operator company: what is waited for, when nothing was printed for a while.
struct Pace {
    started: Moment,
    spoke: Moment,
}

impl Pace {
    fn new() -> Self {
        let now = clock::now();
        Self {
            started: now,
            spoke: now,
        }
    }

    fn spoke(&mut self) {
        self.spoke = clock::now();
    }

    fn check(&mut self, session: &Session, change: &ChangeOfLeader) -> Result<(), CtlError> {
        let now = clock::now();
        if now.since(self.started) > PATIENCE {
            return Err(CtlError::Failed(format!(
                "the {} is not finished after {} s; it may still go on: see \"trunkline list\"",
                change.kind.word(),
                PATIENCE.as_secs()
            )));
        }
        if now.since(self.spoke) >= QUIET {
            self.spoke = now;
            let seconds = now.since(self.started).as_secs_f64();
            session
                .terminal
                .line(&format!("{seconds:>6.3} s still waiting"))?;
        }
        Ok(())
    }
}

/// Whether a member is what a role option asks for.
pub fn has_role(topology: &Topology, name: &MemberName, role: &str) -> bool {
    let is_leader = topology
        .leader
        .as_ref()
        .is_some_and(|leader| leader.member == *name);
    let own = topology.members.get(name).map(|member| member.role);
    match role {
        "leader" => is_leader,
        "primary" => is_leader && own == Some(MemberRole::Primary),
        "standby-leader" => is_leader && own == Some(MemberRole::StandbyLeader),
        "replica" | "standby" => !is_leader,
        _ => true,
    }
}
