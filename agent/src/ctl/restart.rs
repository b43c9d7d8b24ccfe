//! `restart`: now or later, of members that are named, have a role or wait for it.

use std::sync::Arc;

use hyper::Method;
use serde_json::{Map, Value};
use trunkline_shared::cluster::switchover::Drain;
use trunkline_shared::cluster::{Member, Topology};
use trunkline_shared::service::clock;

use super::arguments::Restart;
use super::members::{confirm, failed, joined, selected, send, unless_failed};
use super::rest::Answer;
use super::{CtlError, Session, local_time, restarting};
use crate::api::ALREADY_SCHEDULED;
use crate::api::local::version_number;

/// `trunkline restart`
pub(super) async fn restart(session: &Session, asked: &Restart) -> Result<(), CtlError> {
    let (_follow, view) = session.known().await?;
    let topology = &view.topology;
    let (names, force) = (&asked.members.members, asked.members.force);
    let what = (asked.members.role, "restart");
    let mut members = selected(session, topology, names, what, (force, false)).await?;
    let at = when(session, asked, topology).await?;
    // Who waits for a restart may be another one by then.
    if asked.pending && at.is_none() {
        members.retain(|member| member.has_pending_restart);
        if members.is_empty() {
            let text = "No member waits for a restart; nothing was restarted";
            return session.terminal.success(text);
        }
    }
    if asked.any {
        fastrand::shuffle(&mut members);
        members.truncate(1);
    }
    if !force {
        confirm_restart(session, asked, &members, at.as_deref()).await?;
    }
    let version = match &asked.pg_version {
        Some(version) => version.clone(),
        None if force => String::new(),
        None => {
            let question = "Restart if the PostgreSQL version is less than provided (e.g. 9.5.2) ";
            session.terminal.ask(question, Some("")).await?
        }
    };
    if !version.is_empty() && version_number(&version).is_none() {
        return Err(CtlError::Usage(format!(
            "--pg-version {version}: a version such as 15.9 is needed"
        )));
    }
    let mut body = Map::new();
    if asked.pending {
        body.insert("restart_pending".to_owned(), Value::Bool(true));
    }
    for (key, value) in [
        (
            "postgres_version",
            Some(version).filter(|version| !version.is_empty()),
        ),
        ("timeout", asked.timeout.clone()),
        ("schedule", at),
    ] {
        if let Some(value) = value {
            body.insert(key.to_owned(), value.into());
        }
    }
    let drain = asked.drain.drain();
    let mut without = Vec::new();
    for member in &members {
        if !restart_one(session, topology, member, (&body, &drain, force)).await? {
            without.push(member.name.to_string());
        }
    }
    unless_failed("restart", &without)
}

/// When it is to happen; now if absent.
async fn when(
    session: &Session,
    asked: &Restart,
    topology: &Topology,
) -> Result<Option<String>, CtlError> {
    let text = match &asked.scheduled {
        Some(text) => text.clone(),
        None if asked.members.force => return Ok(None),
        None => {
            let example = local_time::in_an_hour(clock::wall_clock());
            let question = format!("When should the restart take place (e.g. {example}) ");
            session.terminal.ask(&question, Some("now")).await?
        }
    };
    let at = scheduled(&text)?;
    if at.is_some() && topology.settings_or_default().is_paused {
        let why = "Can't schedule restart in the paused state";
        return Err(CtlError::Failed(why.to_owned()));
    }
    Ok(at)
}

/// A time as an operator writes it, with its offset; `None` for now.
///
/// # Errors
/// [`CtlError::Usage`] for what is no time.
pub(super) fn scheduled(text: &str) -> Result<Option<String>, CtlError> {
    if text.is_empty() || text == "now" {
        return Ok(None);
    }
    local_time::with_offset(text).map(Some).ok_or_else(|| {
        CtlError::Usage(format!(
            "Unable to parse scheduled timestamp ({text}). It should be in an unambiguous format (e.g. ISO \
             8601), such as 2026-11-20T10:00:00+00:00"
        ))
    })
}

async fn confirm_restart(
    session: &Session,
    asked: &Restart,
    members: &[Arc<Member>],
    at: Option<&str>,
) -> Result<(), CtlError> {
    let Some(at) = at else {
        return confirm(session, "restart", members).await;
    };
    let question = match asked.pending {
        true => {
            "The nodes needing a restart will be identified at the scheduled time, and might be \
                 different from the ones showing pending restart right now. Is this fine?"
                .to_owned()
        }
        false => format!(
            "Are you sure you want to schedule restart of members {} at {at}?",
            joined(members)
        ),
    };
    let refused = "Aborted scheduled restart";
    session.terminal.confirm(&question, refused).await
}

/// Whether a member did what was asked for.
async fn restart_one(
    session: &Session,
    topology: &Topology,
    member: &Member,
    (body, drain, force): (&Map<String, Value>, &Drain, bool),
) -> Result<bool, CtlError> {
    if force && body.contains_key("schedule") && member.scheduled_restart.is_some() {
        let answer = send(session, member, (Method::DELETE, "/restart"), "").await?;
        if !matches!(
            answer,
            Ok(Answer {
                status: 200 | 404,
                ..
            })
        ) {
            let text = failed("flush scheduled restart", member, &answer);
            session.terminal.line(&text)?;
        }
    }
    let started = clock::now();
    let answer = restarting::restart(session, topology, member, (body.clone(), drain)).await?;
    let took = clock::now().since(started).as_secs_f64();
    let name = &member.name;
    let (is_done, text) = match &answer {
        Ok(Answer { status: 200, .. }) => (
            true,
            format!("Success: restart on member {name} in {took:.3} s"),
        ),
        Ok(Answer { status: 202, .. }) => {
            (true, format!("Success: restart scheduled on member {name}"))
        }
        Ok(Answer { status: 409, text }) if text.starts_with(ALREADY_SCHEDULED) => (
            false,
            format!("Failed: another restart is already scheduled on member {name}"),
        ),
        Ok(_) | Err(_) => (false, failed("restart", member, &answer)),
    };
    match is_done {
        true => session.terminal.success(&text)?,
        false => session.terminal.line(&text)?,
    }
    Ok(is_done)
}
