//! `switchover` and `failover`: ask, check, request through the leader's agent or the DCS, and follow.

use std::cell::Cell;
use std::time::Duration;

use hyper::Method;
use serde_json::{Map, Value, json};
use tokio::sync::oneshot;
use tokio::time::timeout;
use trunkline_shared::cluster::settings::SynchronousMode;
use trunkline_shared::cluster::{MemberName, Topology};
use trunkline_shared::dcs::records::drain_to_json;
use trunkline_shared::dcs::watch::Follow;
use trunkline_shared::service::clock;

use super::arguments::{Failover, Switchover};
use super::rest::{Answer, RestError, request};
use super::restart::scheduled;
use super::steps::{Seen, Steps, waits_for};
use super::terminal::Label;
use super::{CtlError, Session, list, local_time};
use crate::api::requests::{ChangeOfLeader, Kind, Refusal};

/// How long a change may take beyond what the agents themselves allow it.
const PATIENCE: Duration = Duration::from_secs(120);

/// How often the clock is looked at while nothing is seen.
const LOOK: Duration = Duration::from_millis(100);

/// `trunkline switchover`
pub(super) async fn switchover(session: &Session, asked: &Switchover) -> Result<(), CtlError> {
    let (follow, view) = session.known().await?;
    let topology = view.topology.clone();
    show(session, &topology, asked.force)?;
    let cluster = &session.cluster;
    let Some(current) = topology.leader.as_ref().map(|leader| &leader.member) else {
        let why = "This cluster has no leader: use failover to a named candidate";
        return Err(CtlError::Failed(why.to_owned()));
    };
    let leader = match &asked.leader {
        Some(leader) => leader.clone(),
        None if asked.force => current.to_string(),
        None => {
            let is_standby = topology.settings_or_default().standby_cluster.is_some();
            let question = if is_standby {
                "Standby Leader"
            } else {
                "Primary"
            };
            session
                .terminal
                .ask(question, Some(current.as_str()))
                .await?
        }
    };
    if leader != current.as_str() {
        return Err(CtlError::Failed(format!(
            "Member {leader} is not the leader of cluster {cluster}; {current} is"
        )));
    }
    let given = asked.candidate.as_deref();
    let candidate = candidate(session, (Kind::Switchover, given, asked.force), &topology).await?;
    let change = ChangeOfLeader {
        kind: Kind::Switchover,
        leader: Some(MemberName::new(&leader)),
        candidate,
        scheduled_at: when(session, asked).await?,
        drain: asked.drain.drain(),
    };
    change.check(&topology)?;
    if !asked.force {
        confirm(session, &leader, change.scheduled_at.as_deref()).await?;
    }
    if let Some(at) = &change.scheduled_at {
        return match ask(session, &topology, &change, &Cell::new(false)).await? {
            Answered::Taken => session.terminal.success(&format!(
                "Success: the switchover is scheduled at {at}; trunkline list shows it, trunkline flush {cluster} \
                 switchover takes it back"
            )),
            Answered::Refused(why) => Err(why.into()),
            Answered::Unknown => Err(CtlError::Failed(
                "the leader's agent did not answer; trunkline list shows what is scheduled"
                    .to_owned(),
            )),
        };
    }
    carry_out(session, follow, &topology, change).await
}

async fn confirm(session: &Session, leader: &str, at: Option<&str>) -> Result<(), CtlError> {
    let cluster = &session.cluster;
    let (question, refused) = match at {
        None => (
            format!(
                "Are you sure you want to switchover cluster {cluster}, demoting current leader {leader}?"
            ),
            "Aborting switchover",
        ),
        Some(at) => (
            format!(
                "Are you sure you want to schedule switchover of cluster {cluster} at {at}, demoting current \
                 leader {leader}?"
            ),
            "Aborting scheduled switchover",
        ),
    };
    session.terminal.confirm(&question, refused).await
}

/// When it is to happen, with its offset; now if absent.
async fn when(session: &Session, asked: &Switchover) -> Result<Option<String>, CtlError> {
    let text = match &asked.scheduled {
        Some(at) => at.clone(),
        None if asked.force => return Ok(None),
        None => {
            let example = local_time::in_an_hour(clock::wall_clock());
            let question = format!("When should the switchover take place (e.g. {example} ) ");
            session.terminal.ask(&question, Some("now")).await?
        }
    };
    scheduled(&text)
}

/// `trunkline failover`
pub(super) async fn failover(session: &Session, asked: &Failover) -> Result<(), CtlError> {
    let (follow, view) = session.known().await?;
    let topology = view.topology.clone();
    show(session, &topology, asked.force)?;
    let given = asked.candidate.as_deref();
    let candidate = candidate(session, (Kind::Failover, given, asked.force), &topology).await?;
    let leader = topology.leader.as_ref().map(|leader| &leader.member);
    let change = ChangeOfLeader {
        kind: Kind::Failover,
        leader: None,
        candidate,
        scheduled_at: None,
        drain: asked.drain.drain(),
    };
    change.check(&topology)?;
    if !asked.force {
        let refused = "Aborting failover";
        if let Some(candidate) = change
            .candidate
            .as_ref()
            .filter(|to| is_asynchronous(&topology, to))
        {
            let question =
                format!("Are you sure you want to failover to the asynchronous node {candidate}?");
            session.terminal.confirm(&question, refused).await?;
        }
        let demoting = leader.map_or_else(String::new, |leader| {
            format!(", demoting current leader {leader}")
        });
        let question = format!(
            "Are you sure you want to failover cluster {}{demoting}?",
            session.cluster
        );
        session.terminal.confirm(&question, refused).await?;
    }
    carry_out(session, follow, &topology, change).await
}

/// Whether commits wait for others than this member, so that it may lack acknowledged ones.
fn is_asynchronous(topology: &Topology, candidate: &MemberName) -> bool {
    let is_on = topology.settings_or_default().synchronous_mode != SynchronousMode::Off;
    let sync = topology.sync.as_ref().filter(|sync| sync.leader.is_some());
    is_on
        && sync.is_some_and(|sync| {
            !sync.standbys.contains(candidate) && sync.leader.as_ref() != Some(candidate)
        })
}

fn show(session: &Session, topology: &Topology, is_forced: bool) -> Result<(), CtlError> {
    if is_forced {
        return Ok(());
    }
    session.terminal.line("Current cluster topology")?;
    let table = list::render(&session.cluster, topology, list::Shape::PLAIN);
    session.terminal.print(&table)
}

/// The member to change to: the one given, or the operator's choice; none is the cluster's choice.
async fn candidate(
    session: &Session,
    (kind, given, is_forced): (Kind, Option<&str>, bool),
    topology: &Topology,
) -> Result<Option<MemberName>, CtlError> {
    let leader = topology.leader.as_ref().map(|leader| &leader.member);
    let (word, cluster) = (kind.word(), &session.cluster);
    let others = topology.members.values();
    let fit: Vec<&str> = others
        .filter(|member| Some(&member.name) != leader && member.tags.may_lead())
        .map(|member| member.name.as_str())
        .collect();
    if fit.is_empty() {
        let why = "no other member is registered that may lead";
        return Err(CtlError::Failed(format!(
            "No candidates found to {word} to: {why}"
        )));
    }
    let fit = format!("['{}']", fit.join("', '"));
    let name = match given {
        Some(name) => name.to_owned(),
        None if is_forced => String::new(),
        None => {
            let question = format!("Candidate {fit}");
            session.terminal.ask(&question, Some("")).await?
        }
    };
    if name.is_empty() {
        return match kind {
            Kind::Switchover => Ok(None),
            Kind::Failover => Err(CtlError::Usage(
                "Failover could be performed only to a specific candidate: --candidate MEMBER"
                    .to_owned(),
            )),
        };
    }
    let name = MemberName::new(&name);
    if Some(&name) == leader {
        return Err(CtlError::Failed(format!(
            "Member {name} is already the leader of cluster {cluster}"
        )));
    }
    let known = topology.members.get(&name);
    match known.is_some_and(|member| member.tags.may_lead()) {
        true => Ok(Some(name)),
        false => Err(CtlError::Failed(format!(
            "Member {name} does not exist in cluster {cluster} or is tagged as nofailover; candidates are {fit}"
        ))),
    }
}

/// Asks for the change, and follows it step by step to its end.
pub(super) async fn carry_out(
    session: &Session,
    follow: Follow,
    topology: &Topology,
    change: ChangeOfLeader,
) -> Result<(), CtlError> {
    let before = topology.leader.as_ref().map(|leader| leader.member.clone());
    let steps = Steps::new(change.clone(), before, clock::now());
    let word = change.kind.word();
    session.terminal.goes_on(&format!(
        "the {word} was asked for and goes on in the cluster, or is called off there; see \"trunkline list\""
    ));
    let label = Label::new(format!("the {word} goes on"));
    let (sender, answers) = oneshot::channel();
    let was_seen = Cell::new(false);
    let asked = async {
        let answered = ask(session, topology, &change, &was_seen).await?;
        // The other side is gone only when the change was seen to be done already.
        let _ = sender.send(answered);
        std::future::pending::<Result<(), CtlError>>().await
    };
    let following = until_done(
        session,
        follow,
        &change,
        steps,
        (answers, &label, &was_seen),
    );
    let both = async {
        tokio::select! {
            done = following => done,
            failed = asked => failed,
        }
    };
    session.terminal.waiting(&label, both).await
}

async fn until_done(
    session: &Session,
    mut follow: Follow,
    change: &ChangeOfLeader,
    mut steps: Steps,
    (mut answers, label, was_seen): (oneshot::Receiver<Answered>, &Label, &Cell<bool>),
) -> Result<(), CtlError> {
    let started = clock::now();
    let mut answer: Option<Answered> = None;
    let mut is_waiting = true;
    loop {
        let view = follow.views.borrow_and_update().clone();
        if change.is_seen_in(&view.topology) {
            was_seen.set(true);
        }
        for seen in steps.see(&view.topology, clock::now()) {
            match seen {
                Seen::Step(line) => {
                    label.replace(format!("after {}", line.trim()));
                    session.terminal.line(&line)?;
                }
                Seen::Done(line) => session.terminal.success(&line)?,
            }
        }
        if let Some(waits) = waits_for(&view.topology) {
            label.replace(waits);
        }
        if let Some(leader) = steps.leader() {
            return verdict(change, leader);
        }
        match &answer {
            Some(Answered::Refused(why)) => return Err(why.clone().into()),
            Some(Answered::Taken | Answered::Unknown) if steps.is_called_off(clock::now()) => {
                return Err(called_off(change, &view.topology));
            }
            Some(Answered::Taken | Answered::Unknown) | None => {}
        }
        if clock::now().since(started) > PATIENCE {
            return Err(CtlError::Failed(format!(
                "the {} is not finished after {} s; it may still go on: see \"trunkline list\"",
                change.kind.word(),
                PATIENCE.as_secs()
            )));
        }
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
}

/// What became of the request.
enum Answered {
    /// Written, or carried out.
    Taken,
    /// The agent was asked and did not say.
    Unknown,
    /// The agent said no, or that it failed.
    Refused(Refusal),
}

/// Through the leader's agent where it can be reached, else into the DCS. An agent that says nothing for two `loop_wait`
/// is passed over, unless the change was seen or stands in the DCS: nothing is asked for twice.
async fn ask(
    session: &Session,
    topology: &Topology,
    change: &ChangeOfLeader,
    was_seen: &Cell<bool>,
) -> Result<Answered, CtlError> {
    let (dcs, keys) = (session.dcs.as_ref(), &session.keys);
    let leader = topology.leader_member();
    let Some(leader) = leader.filter(|leader| !leader.api_url.is_empty()) else {
        change.write(dcs, keys).await?;
        return Ok(Answered::Taken);
    };
    let patience = topology.settings_or_default().loop_wait * 2;
    let mut asking = Box::pin(ask_agent(session, &leader.api_url, change));
    let answer = match timeout(patience, &mut asking).await {
        Ok(answer) => answer?,
        Err(_) => {
            let stands = match was_seen.get() {
                true => Ok(true),
                false => change.stands(dcs, keys).await,
            };
            match (stands, &change.scheduled_at) {
                (Ok(true), Some(_)) => return Ok(Answered::Taken),
                // It goes on; or the DCS does not tell, and nothing could be written to it.
                (Ok(true), None) | (Err(_), _) => asking.await?,
                (Ok(false), _) => {
                    // The connection ends first: a frozen agent that wakes finds nobody who asks it.
                    drop(asking);
                    if change.write_once(dcs, keys).await? {
                        session.terminal.line(&format!(
                            "the agent of {} did not answer within {} s: the {} was asked for in the DCS",
                            leader.name,
                            patience.as_secs(),
                            change.kind.word()
                        ))?;
                    }
                    return Ok(Answered::Taken);
                }
            }
        }
    };
    match answer {
        Some(answered) => Ok(answered),
        None => {
            change.write(dcs, keys).await?;
            Ok(Answered::Taken)
        }
    }
}

/// Asks the leader's agent; `None` where it was not reached.
async fn ask_agent(
    session: &Session,
    url: &str,
    change: &ChangeOfLeader,
) -> Result<Option<Answered>, CtlError> {
    let client = session.client()?;
    let mut body = Map::new();
    let name = |name: &Option<MemberName>| json!(name.as_ref().map(MemberName::as_str));
    body.insert("leader".into(), name(&change.leader));
    body.insert("candidate".into(), name(&change.candidate));
    body.insert("scheduled_at".into(), json!(change.scheduled_at));
    drain_to_json(&change.drain, &mut body);
    let path = format!("/{}", change.kind.word());
    let body = Value::Object(body).to_string();
    let answer = request(&client, url, Method::POST, &path, body, PATIENCE).await;
    Ok(match answer {
        Ok(Answer {
            status: 200 | 202, ..
        }) => Some(Answered::Taken),
        Ok(Answer { status, text }) => {
            let text = format!("{text} ({status})");
            Some(Answered::Refused(Refusal { status, text }))
        }
        Err(RestError::NoAnswer(_)) => Some(Answered::Unknown),
        Err(RestError::NotReached(_)) => None,
    })
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
