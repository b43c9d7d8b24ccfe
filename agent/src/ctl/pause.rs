//! `pause` and `resume`: automation off and on again. Resumed is a cluster whose fences are armed again:
//! who paused as primary with its fence asleep stands under `trunkline/disarmed` until then (`ha.md` 7).

use std::time::Duration;

use serde_json::{Value, json};
use trunkline_shared::cluster::topology::FactKey;
use trunkline_shared::cluster::{MemberName, Topology};
use trunkline_shared::dcs::records::merge_patch;
use trunkline_shared::dcs::{Operation, Txn};
use trunkline_shared::service::clock;

use super::arguments::Resume;
use super::terminal::Label;
use super::{CtlError, Session};
use crate::api::settings::{read, write};

/// How long `--wait` waits.
const LONGEST_WAIT: Duration = Duration::from_secs(120);

/// `trunkline pause`
pub(super) async fn pause(session: &Session, waits: bool) -> Result<(), CtlError> {
    if !ask(session, true).await? {
        return Err(CtlError::Failed("Cluster is already paused".to_owned()));
    }
    match waits {
        true => wait(session, true).await,
        false => told(session, true),
    }
}

/// `trunkline resume`
pub(super) async fn resume(session: &Session, asked: &Resume) -> Result<(), CtlError> {
    for name in &asked.without {
        forget(session, &MemberName::new(name), asked.force).await?;
    }
    if !ask(session, false).await? && asked.without.is_empty() {
        return Err(CtlError::Failed("Cluster is not paused".to_owned()));
    }
    if asked.wait {
        return wait(session, false).await;
    }
    told(session, false)?;
    let topology = session.look().await?;
    let names: Vec<&str> = topology.disarmed.iter().map(MemberName::as_str).collect();
    match names.is_empty() {
        true => Ok(()),
        false => session.terminal.line(&format!(
            "The fence is still disarmed on {}: nobody else is promoted before it is armed again. --wait waits \
             for it; resume --without MEMBER is for one that is dead",
            names.join(", ")
        )),
    }
}

/// Writes the wish down; whether it was another before.
async fn ask(session: &Session, is_pause: bool) -> Result<bool, CtlError> {
    let (old, revision) = read(session.dcs.as_ref(), &session.keys).await?;
    let patch = match is_pause {
        true => json!({ "pause": true }),
        false => json!({ "pause": null }),
    };
    let was_paused = old.get("pause").and_then(Value::as_bool).unwrap_or(false);
    if was_paused == is_pause {
        return Ok(false);
    }
    let mut value = old.clone();
    merge_patch(&mut value, &patch);
    let replaces = Some((&old, revision));
    write(session.dcs.as_ref(), &session.keys, &value, replaces).await?;
    Ok(true)
}

/// What is true as soon as the wish is written down: whoever reads it goes by it.
fn told(session: &Session, is_pause: bool) -> Result<(), CtlError> {
    let text = format!("Success: cluster management is {}", word(is_pause));
    session.terminal.success(&text)
}

fn word(is_pause: bool) -> &'static str {
    if is_pause { "paused" } else { "resumed" }
}

/// Nobody waits any longer for a member that paused as primary: the operator says that it is dead.
async fn forget(session: &Session, member: &MemberName, force: bool) -> Result<(), CtlError> {
    let topology = session.look().await?;
    if !topology.disarmed.contains(member) {
        let names: Vec<&str> = topology.disarmed.iter().map(MemberName::as_str).collect();
        let names = match names.is_empty() {
            true => "nobody is waited for".to_owned(),
            false => format!("waited for: {}", names.join(", ")),
        };
        return Err(CtlError::Usage(format!(
            "--without {member}: it is not waited for; {names}"
        )));
    }
    if topology.members.contains_key(member) {
        session.terminal.line(&format!(
            "{member} is registered: its agent lives, and its PostgreSQL may accept writes"
        ))?;
    }
    if !force {
        let question = format!(
            "Is PostgreSQL of {member} surely dead? If it lives there may be two primaries"
        );
        let refused = format!("{member} is waited for");
        session.terminal.confirm(&question, &refused).await?;
    }
    let key = session.keys.path(&FactKey::Disarmed(member.clone()));
    let txn = Txn {
        then: vec![Operation::Delete(key)],
        ..Txn::default()
    };
    session.dcs.commit(&txn).await?;
    session
        .terminal
        .success(&format!("{member} is waited for no longer"))
}

/// Who has not followed yet, each as a person reads it.
fn still(topology: &Topology, is_pause: bool) -> Vec<String> {
    let unseen = topology
        .members
        .values()
        .filter(|member| member.is_paused != is_pause)
        .map(|member| format!("{} has not seen it", member.name));
    let disarmed = topology.disarmed.iter().filter(|_| !is_pause);
    let disarmed = disarmed.map(|name| format!("the fence of {name} is still disarmed"));
    unseen.chain(disarmed).collect()
}

async fn wait(session: &Session, is_pause: bool) -> Result<(), CtlError> {
    let (mut follow, _) = session.follow().await?;
    let started = clock::now();
    let request = if is_pause { "pause" } else { "resume" };
    session.terminal.line(&format!(
        "'{request}' request sent, waiting until it is recognized by all nodes"
    ))?;
    session.terminal.goes_on(&format!(
        "the wish is written down, and the members follow it: {request}"
    ));
    let label = Label::default();
    let waiting = async {
        loop {
            let view = follow.views.borrow_and_update().clone();
            let left = still(&view.topology, is_pause);
            let took = clock::now().since(started);
            if left.is_empty() {
                return told(session, is_pause);
            }
            label.replace(left.join(", "));
            let time = LONGEST_WAIT.saturating_sub(took);
            match tokio::time::timeout(time, follow.views.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => {
                    return Err(CtlError::Failed(format!(
                        "not yet {} after {} s: {}",
                        word(is_pause),
                        took.as_secs(),
                        left.join(", ")
                    )));
                }
            }
        }
    };
    session.terminal.waiting(&label, waiting).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resume_waits_for_every_disarmed_fence_by_name() {
        let mut topology = Topology::default();
        assert!(still(&topology, false).is_empty());
        topology.disarmed.insert(MemberName::new("a"));
        assert_eq!(
            still(&topology, false),
            ["the fence of a is still disarmed"]
        );
        assert!(still(&topology, true).is_empty(), "a pause waits for none");
    }
}
