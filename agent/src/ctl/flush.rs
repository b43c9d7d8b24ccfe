//! `flush`: takes back restarts and switchovers that are scheduled.

use hyper::Method;
use trunkline_shared::cluster::Topology;

use super::arguments::Flush;
use super::members::{confirm, failed, selected, send, unless_failed};
use super::rest::Answer;
use super::{CtlError, Session};
use crate::api::NONE_SCHEDULED;
use crate::api::requests::{TakenBack, take_back};

/// `trunkline flush`
pub(super) async fn flush(session: &Session, asked: &Flush) -> Result<(), CtlError> {
    let words = asked.words.split_last();
    let (target, members) = words.map_or(("", &[][..]), |(last, before)| (last.as_str(), before));
    match target {
        "restart" => {
            let (_follow, view) = session.known().await?;
            restarts(session, (asked, members), &view.topology).await
        }
        "switchover" => {
            let _known = session.known().await?;
            switchover(session).await
        }
        other => Err(CtlError::Usage(format!(
            "\"{other}\" is nothing that can be taken back; the last word is restart or switchover"
        ))),
    }
}

async fn restarts(
    session: &Session,
    (asked, names): (&Flush, &[String]),
    topology: &Topology,
) -> Result<(), CtlError> {
    let what = (asked.role, "flush");
    let members = selected(session, topology, names, what, (asked.force, false)).await?;
    if !asked.force {
        confirm(session, "flush", &members).await?;
    }
    let action = "flush scheduled restart";
    let mut without = Vec::new();
    for member in &members {
        let name = &member.name;
        // A record may be older than what was scheduled: the agent itself is asked.
        let answer = send(session, member, (Method::DELETE, "/restart"), "").await?;
        match &answer {
            Ok(Answer { status: 200, .. }) => {
                let text = format!("Success: {action} for member {name}");
                session.terminal.success(&text)?;
            }
            // A scheduled one that is being carried out is told by the same code, and is not taken back.
            Ok(Answer { status: 404, text }) if text == NONE_SCHEDULED => {
                let text = format!("No scheduled restart for member {name}");
                session.terminal.line(&text)?;
            }
            Ok(_) | Err(_) => {
                session.terminal.line(&failed(action, member, &answer))?;
                without.push(name.to_string());
            }
        }
    }
    unless_failed(action, &without)
}

/// The DCS holds it, so no agent is needed.
async fn switchover(session: &Session) -> Result<(), CtlError> {
    let terminal = &session.terminal;
    match take_back(session.dcs.as_ref(), &session.keys).await? {
        TakenBack::Nothing => terminal.line("No pending scheduled switchover"),
        TakenBack::Scheduled => terminal.success("Success: scheduled switchover deleted"),
        TakenBack::Standing => terminal.success("Success: request for a change of leader deleted"),
    }
}
