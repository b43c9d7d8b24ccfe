//! `restart`, `reinit` and `reload`: requests to the agents of single members.

use std::sync::Arc;
use std::time::Duration;

use hyper::Method;
use serde_json::json;
use trunkline_shared::cluster::{Member, MemberName, MemberState, Topology};
use trunkline_shared::service::clock;

use super::arguments::{Members, Reinit, Restart};
use super::change::has_role;
use super::rest::request;
use super::{CtlError, Session};

/// How long a restart may take.
const LONGEST: Duration = Duration::from_secs(3600);

/// How long `reinit --wait` waits.
const LONGEST_COPY: Duration = Duration::from_secs(24 * 3600);

/// How often a waiting command says that it waits.
const QUIET: Duration = Duration::from_secs(10);

/// `trunkline restart`
pub async fn restart(session: &Session, asked: &Restart) -> Result<(), CtlError> {
    let topology = session.look().await?;
    let mut members = selected(&topology, &asked.members)?;
    members.retain(|member| !asked.pending || member.has_pending_restart);
    if asked.any {
        members.truncate(1);
    }
    if members.is_empty() {
        return Err(CtlError::Failed(
            "no member fits; nothing was restarted".to_owned(),
        ));
    }
    confirm(session, asked.members.force, "restart", &members)?;
    let mut body = json!({ "restart_pending": asked.pending });
    if let Some(version) = &asked.pg_version {
        body["postgres_version"] = version.as_str().into();
    }
    if let Some(timeout) = &asked.timeout {
        body["timeout"] = timeout.as_str().into();
    }
    if let Some(at) = &asked.scheduled {
        body["schedule"] = at.as_str().into();
    }
    each(session, &members, "/restart", &body.to_string()).await
}

/// `trunkline reload`
pub async fn reload(session: &Session, asked: &Members) -> Result<(), CtlError> {
    let topology = session.look().await?;
    let members = selected(&topology, asked)?;
    confirm(session, asked.force, "reload", &members)?;
    each(session, &members, "/reload", "{}").await
}

/// `trunkline reinit`
pub async fn reinit(session: &Session, asked: &Reinit) -> Result<(), CtlError> {
    let topology = session.look().await?;
    let members = named(&topology, &asked.members)?;
    confirm(session, asked.force, "reinitialize", &members)?;
    let body = json!({ "force": asked.force, "from-leader": asked.from_leader });
    each(session, &members, "/reinitialize", &body.to_string()).await?;
    if asked.wait {
        let names: Vec<MemberName> = members.iter().map(|member| member.name.clone()).collect();
        wait_until_they_stream(session, names).await?;
    }
    Ok(())
}

fn named(topology: &Topology, names: &[String]) -> Result<Vec<Arc<Member>>, CtlError> {
    names
        .iter()
        .map(|name| {
            let known = topology.members.get(&MemberName::new(name));
            known.cloned().ok_or_else(|| {
                CtlError::Failed(format!("{name} is not a member; see \"trunkline list\""))
            })
        })
        .collect()
}

fn selected(topology: &Topology, asked: &Members) -> Result<Vec<Arc<Member>>, CtlError> {
    let mut members = match asked.members.is_empty() {
        true => topology.members.values().cloned().collect(),
        false => named(topology, &asked.members)?,
    };
    members.retain(|member| has_role(topology, &member.name, &asked.role));
    match members.is_empty() {
        true => Err(CtlError::Failed(format!(
            "no member of role {} is registered",
            asked.role
        ))),
        false => Ok(members),
    }
}

fn confirm(
    session: &Session,
    is_forced: bool,
    what: &str,
    members: &[Arc<Member>],
) -> Result<(), CtlError> {
    if is_forced {
        return Ok(());
    }
    let names: Vec<&str> = members.iter().map(|member| member.name.as_str()).collect();
    session.terminal.confirm(&format!(
        "Are you sure you want to {what} members {}?",
        names.join(", ")
    ))
}

/// One after the other; all are tried, and one failure makes the whole fail.
async fn each(
    session: &Session,
    members: &[Arc<Member>],
    path: &str,
    body: &str,
) -> Result<(), CtlError> {
    let what = path.trim_start_matches('/');
    let client = session.client()?;
    let mut failed = Vec::new();
    for member in members {
        let started = clock::now();
        let answer = request(
            &client,
            &member.api_url,
            Method::POST,
            path,
            body.to_owned(),
            LONGEST,
        )
        .await;
        let took = clock::now().since(started).as_secs_f64();
        match answer {
            Ok(answer) if matches!(answer.status, 200 | 202) => {
                session.terminal.success(&format!(
                    "Success: {what} on member {} in {took:.3} s: {}",
                    member.name, answer.text
                ))?;
            }
            Ok(answer) => {
                session.terminal.line(&format!(
                    "Failed: {what} on member {}: {} ({})",
                    member.name, answer.text, answer.status
                ))?;
                failed.push(member.name.to_string());
            }
            Err(error) => {
                session.terminal.line(&format!(
                    "Failed: {what} on member {}: {error}",
                    member.name
                ))?;
                failed.push(member.name.to_string());
            }
        }
    }
    match failed.is_empty() {
        true => Ok(()),
        false => Err(CtlError::Failed(format!(
            "{what} failed on {}",
            failed.join(", ")
        ))),
    }
}

async fn wait_until_they_stream(session: &Session, names: Vec<MemberName>) -> Result<(), CtlError> {
    let (mut follow, _) = session.follow().await?;
    let started = clock::now();
    // The record of before the copy says "streaming" too: a member counts only after it was seen without.
    let mut left: Vec<(MemberName, bool)> = names.into_iter().map(|name| (name, false)).collect();
    loop {
        let view = follow.views.borrow_and_update().clone();
        left.retain_mut(|(name, was_away)| {
            let streams = view.topology.members.get(name).is_some_and(|member| {
                member.state == MemberState::Running && member.is_streaming == Some(true)
            });
            *was_away |= !streams;
            !(streams && *was_away)
        });
        let took = clock::now().since(started);
        if left.is_empty() {
            let text = format!("All members stream again after {:.1} s", took.as_secs_f64());
            return session.terminal.success(&text);
        }
        if took > LONGEST_COPY {
            return Err(CtlError::Failed("the members do not stream yet".to_owned()));
        }
        if tokio::time::timeout(QUIET, follow.views.changed())
            .await
            .is_err()
        {
            for (name, _) in &left {
                let state = view
                    .topology
                    .members
                    .get(name)
                    .map_or("not registered", |member| {
                        trunkline_shared::dcs::records::state_word(member.state)
                    });
                session.terminal.line(&format!(
                    "{:>6.1} s waiting for {name}: {state}",
                    took.as_secs_f64()
                ))?;
            }
        }
    }
}
