//! `version`: of this program, and of the members by their own answers.

use std::time::Duration;

use hyper::Method;
use serde_json::Value;

use super::rest::request;
use super::terminal::{Label, Terminal};
use super::{CtlError, Session};
use crate::api::status::VERSION;

/// How long a member may take to answer.
const LONGEST: Duration = Duration::from_secs(10);

/// This program's.
pub(super) fn own(terminal: &Terminal) -> Result<(), CtlError> {
    terminal.line(&format!("trunkline version {VERSION}"))
}

/// This program's and the members'; all of them if none is named.
pub(super) async fn of_members(session: &Session, names: &[String]) -> Result<(), CtlError> {
    own(&session.terminal)?;
    session.terminal.line("")?;
    let (_follow, view) = session.known().await?;
    let members = view.topology.members.values();
    let asked: Vec<_> = members
        .filter(|member| names.is_empty() || names.iter().any(|name| name == member.name.as_str()))
        .collect();
    if let Some(name) = names
        .iter()
        .find(|name| asked.iter().all(|member| member.name.as_str() != *name))
    {
        let cluster = &session.cluster;
        let why = format!("{name} is not a member of cluster {cluster}");
        return Err(CtlError::Failed(why));
    }
    let client = session.client()?;
    let mut silent = Vec::new();
    for member in asked {
        let product = match member.is_trunkline() {
            true => "Trunkline",
            false => "Patroni",
        };
        let label = Label::new(format!("waiting for {}", member.name));
        let asking = request(
            &client,
            &member.api_url,
            Method::GET,
            "/patroni",
            String::new(),
            LONGEST,
        );
        let answer = session.terminal.waiting(&label, asking).await;
        let text = match answer {
            Ok(answer) => {
                let status: Value = serde_json::from_str(&answer.text).unwrap_or_default();
                let own = status["patroni"]["version"].as_str().unwrap_or("unknown");
                let server = status["server_version"].as_u64().map(server_version);
                format!("{product} {own}{}", server.unwrap_or_default())
            }
            Err(error) => {
                silent.push(member.name.to_string());
                format!("failed to get version: {error}")
            }
        };
        session.terminal.line(&format!("{}: {text}", member.name))?;
    }
    match silent.is_empty() {
        true => Ok(()),
        false => Err(CtlError::Failed(format!(
            "no version of {}",
            silent.join(", ")
        ))),
    }
}

/// ` PostgreSQL 15.8` of 150008, ` PostgreSQL 9.6.24` of 90624.
fn server_version(number: u64) -> String {
    let (major, minor, patch) = (number / 10_000, number / 100 % 100, number % 100);
    match major {
        0..10 => format!(" PostgreSQL {major}.{minor}.{patch}"),
        _ => format!(" PostgreSQL {major}.{patch}"),
    }
}
