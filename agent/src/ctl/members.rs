//! Members by name and role, `reload` and `reinit`: requests to the agents of single members.

use std::sync::Arc;
use std::time::Duration;

use hyper::Method;
use serde_json::json;
use trunkline_shared::cluster::{Member, MemberName, MemberRole, MemberState, Topology};
use trunkline_shared::dcs::records::state_word;
use trunkline_shared::service::clock;

use super::arguments::{Members, Reinit, Role};
use super::rest::{Answer, RestError, request};
use super::terminal::Label;
use super::{CtlError, Session, list};

/// How long a request to a member may take.
pub(super) const LONGEST: Duration = Duration::from_secs(3600);

/// How long `reinit --wait` waits.
const LONGEST_COPY: Duration = Duration::from_secs(24 * 3600);

/// How often a wait looks whether it has become too long.
const LOOK: Duration = Duration::from_secs(1);

/// Whether a member is what a role option asks for.
pub(super) fn has_role(topology: &Topology, name: &MemberName, role: Role) -> bool {
    let is_leader = topology
        .leader
        .as_ref()
        .is_some_and(|leader| leader.member == *name);
    let own = topology.members.get(name).map(|member| member.role);
    let leads_standby = is_leader && own == Some(MemberRole::StandbyLeader);
    match role {
        Role::Leader => is_leader,
        Role::Primary => is_leader && !leads_standby,
        Role::StandbyLeader => leads_standby,
        Role::Replica | Role::Standby => !is_leader,
        Role::Any => true,
    }
}

/// The members of a role, or those of them that are named, all shown first; one that is asked for where
/// `asks` is set and nobody is named.
///
/// # Errors
/// If there is none, or one of the named is not among them.
pub(super) async fn selected(
    session: &Session,
    topology: &Topology,
    names: &[String],
    (role, action): (Role, &str),
    (is_forced, asks): (bool, bool),
) -> Result<Vec<Arc<Member>>, CtlError> {
    let cluster = &session.cluster;
    let all = topology.members.values();
    let fit: Vec<_> = all
        .filter(|member| has_role(topology, &member.name, role))
        .cloned()
        .collect();
    if topology.members.is_empty() {
        let why = format!("{cluster} cluster doesn't have any members");
        return Err(CtlError::Failed(why));
    }
    if !is_forced {
        let table = list::render(cluster, topology, list::Shape::PLAIN);
        session.terminal.print(&table)?;
    }
    let known: Vec<&str> = fit.iter().map(|member| member.name.as_str()).collect();
    let names = match (names.is_empty(), asks) {
        (false, _) => names.to_vec(),
        (true, false) => known.iter().map(|name| (*name).to_owned()).collect(),
        (true, true) if is_forced => {
            let why = format!("name the members to {action}");
            return Err(CtlError::Usage(why));
        }
        (true, true) => {
            let question = format!(
                "Which member do you want to {action} [{}]?",
                known.join(", ")
            );
            vec![session.terminal.ask(&question, None).await?]
        }
    };
    for name in &names {
        if !topology.members.contains_key(&MemberName::new(name)) {
            let members: Vec<&str> = topology.members.keys().map(MemberName::as_str).collect();
            return Err(CtlError::Failed(format!(
                "{name} is not a member of cluster {cluster}; its members are {}",
                members.join(", ")
            )));
        }
        if !known.contains(&name.as_str()) {
            let why = match role {
                Role::Replica if action == "reinitialize" => {
                    format!("{name} is the leader, whose data is not replaced; switch over first")
                }
                role => format!("No {} among provided members: {name}", role.word()),
            };
            return Err(CtlError::Failed(why));
        }
    }
    if names.is_empty() {
        let why = format!("no member of role {} is registered", role.word());
        return Err(CtlError::Failed(why));
    }
    let is_named = |member: &Arc<Member>| names.iter().any(|n| n == member.name.as_str());
    Ok(fit.into_iter().filter(is_named).collect())
}

/// The names as they stand in a question.
pub(super) fn joined(members: &[Arc<Member>]) -> String {
    let names: Vec<&str> = members.iter().map(|member| member.name.as_str()).collect();
    names.join(", ")
}

/// The last question before something is done to members.
pub(super) async fn confirm(
    session: &Session,
    action: &str,
    members: &[Arc<Member>],
) -> Result<(), CtlError> {
    let question = format!(
        "Are you sure you want to {action} members {}?",
        joined(members)
    );
    let refused = format!("Aborted {action}");
    session.terminal.confirm(&question, &refused).await
}

/// Sends a request to a member and waits for the answer, telling the operator so.
///
/// # Errors
/// If nobody can be asked, as certificates cannot be used.
pub(super) async fn send(
    session: &Session,
    member: &Member,
    (method, path): (Method, &str),
    body: &str,
) -> Result<Result<Answer, RestError>, CtlError> {
    let what = path.trim_start_matches('/');
    let label = Label::new(format!("waiting for {}: {what}", member.name));
    let client = session.client()?;
    if method != Method::GET {
        goes_on(session, member, what);
    }
    let asking = request(
        &client,
        &member.api_url,
        method,
        path,
        body.to_owned(),
        LONGEST,
    );
    Ok(session.terminal.waiting(&label, asking).await)
}

/// From here on an interrupt leaves a member with what it was asked for.
pub(super) fn goes_on(session: &Session, member: &Member, what: &str) {
    session.terminal.goes_on(&format!(
        "the agent of {} was asked for this ({what}) and may go on with it; see \"trunkline list\"",
        member.name
    ));
}

/// What a member answered to a request, as patronictl tells of a failure.
pub(super) fn failed(action: &str, member: &Member, answer: &Result<Answer, RestError>) -> String {
    match answer {
        Ok(answer) => format!(
            "Failed: {action} for member {}, status code={}, ({})",
            member.name, answer.status, answer.text
        ),
        Err(error) => format!("Failed: {action} for member {}: {error}", member.name),
    }
}

/// The end of a command that did something to several members.
pub(super) fn unless_failed(action: &str, failed: &[String]) -> Result<(), CtlError> {
    match failed.is_empty() {
        true => Ok(()),
        false => Err(CtlError::Failed(format!(
            "{action} failed on {}",
            failed.join(", ")
        ))),
    }
}

/// `trunkline reload`
pub(super) async fn reload(session: &Session, asked: &Members) -> Result<(), CtlError> {
    let (_follow, view) = session.known().await?;
    let topology = &view.topology;
    let what = (asked.role, "reload");
    let members = selected(
        session,
        topology,
        &asked.members,
        what,
        (asked.force, false),
    )
    .await?;
    if !asked.force {
        confirm(session, "reload", &members).await?;
    }
    let mut without = Vec::new();
    for member in &members {
        let started = clock::now();
        let answer = send(session, member, (Method::POST, "/reload"), "{}").await?;
        let took = clock::now().since(started).as_secs_f64();
        let name = &member.name;
        match &answer {
            Ok(Answer { status: 200, .. }) => {
                let text = format!("No changes to apply on member {name}");
                session.terminal.success(&text)?;
            }
            // Trunkline's agents answer when the configuration is in force.
            Ok(Answer { status: 202, text }) if member.is_trunkline() => {
                let text = format!("Success: reload on member {name} in {took:.3} s: {text}");
                session.terminal.success(&text)?;
            }
            Ok(Answer { status: 202, .. }) => {
                let seconds = topology.settings_or_default().loop_wait.as_secs();
                session.terminal.success(&format!(
                    "Reload request received for member {name} and will be processed within {seconds} \
                     seconds"
                ))?;
            }
            Ok(_) | Err(_) => {
                session.terminal.line(&failed("reload", member, &answer))?;
                without.push(name.to_string());
            }
        }
    }
    unless_failed("reload", &without)
}

/// `trunkline reinit`
pub(super) async fn reinit(session: &Session, asked: &Reinit) -> Result<(), CtlError> {
    let (_follow, view) = session.known().await?;
    // Who leads a standby cluster is copied from another one.
    let is_standby = view
        .topology
        .settings_or_default()
        .standby_cluster
        .is_some();
    let role = if is_standby { Role::Any } else { Role::Replica };
    let what = (role, "reinitialize");
    let flags = (asked.force, true);
    let members = selected(session, &view.topology, &asked.members, what, flags).await?;
    if !asked.force {
        confirm(session, "reinitialize", &members).await?;
    }
    let mut without = Vec::new();
    let mut begun = Vec::new();
    for member in &members {
        match begin_copy(session, member, asked).await? {
            true => begun.push(member.name.clone()),
            false => without.push(member.name.to_string()),
        }
    }
    if asked.wait && !begun.is_empty() {
        wait_until_they_stream(session, begun).await?;
    }
    unless_failed("reinitialize", &without)
}

/// Whether a member has begun to copy its data anew.
async fn begin_copy(session: &Session, member: &Member, asked: &Reinit) -> Result<bool, CtlError> {
    let mut force = asked.force;
    loop {
        let body = json!({ "force": force, "from_leader": asked.from_leader });
        let answer = send(
            session,
            member,
            (Method::POST, "/reinitialize"),
            &body.to_string(),
        )
        .await?;
        if let Ok(Answer {
            status: 200 | 202, ..
        }) = &answer
        {
            let text = format!("Success: reinitialize for member {}", member.name);
            session.terminal.success(&text)?;
            return Ok(true);
        }
        session
            .terminal
            .line(&failed("reinitialize", member, &answer))?;
        let is_busy = answer.is_ok_and(|answer| answer.text.ends_with(" already in progress"));
        let question = "Do you want to cancel it and reinitialize anyway?";
        if force || !is_busy || !session.terminal.agrees(question).await? {
            return Ok(false);
        }
        force = true;
    }
}

async fn wait_until_they_stream(session: &Session, names: Vec<MemberName>) -> Result<(), CtlError> {
    let (mut follow, _) = session.follow().await?;
    let started = clock::now();
    // The record of before the copy says "streaming" too: a member counts only after it was seen without.
    let mut left: Vec<(MemberName, bool)> = names.into_iter().map(|name| (name, false)).collect();
    let listed = |left: &[(MemberName, bool)]| {
        let names: Vec<&str> = left.iter().map(|(name, _)| name.as_str()).collect();
        names.join(", ")
    };
    let text = format!("Waiting for reinitialize to complete on: {}", listed(&left));
    session.terminal.line(&text)?;
    session.terminal.goes_on(&format!(
        "{} goes on copying; see \"trunkline list\"",
        listed(&left)
    ));
    let label = Label::default();
    let waiting = async {
        loop {
            let view = follow.views.borrow_and_update().clone();
            let took = clock::now().since(started);
            let mut done = Vec::new();
            let mut states = Vec::new();
            left.retain_mut(|(name, was_away)| {
                let member = view.topology.members.get(name);
                let streams = member.is_some_and(|member| {
                    member.state == MemberState::Running && member.is_streaming == Some(true)
                });
                *was_away |= !streams;
                let is_done = streams && *was_away;
                if is_done {
                    done.push(name.clone());
                } else {
                    let state = member.map_or("not registered", |m| state_word(m.state));
                    states.push(format!("{name}: {state}"));
                }
                !is_done
            });
            label.replace(states.join(", "));
            for name in done {
                let took = took.as_secs_f64();
                let text = format!("Reinitialize is completed on: {name} after {took:.1} s");
                session.terminal.success(&text)?;
            }
            if left.is_empty() {
                return Ok(());
            }
            if took > LONGEST_COPY {
                let why = format!("{} do not stream yet", listed(&left));
                return Err(CtlError::Failed(why));
            }
            // The clock is looked at also while nothing changes.
            let _ = tokio::time::timeout(LOOK, follow.views.changed()).await;
        }
    };
    session.terminal.waiting(&label, waiting).await
}
