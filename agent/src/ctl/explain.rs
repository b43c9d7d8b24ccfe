//! `explain`: why a member did what it did. Its journal tells what it saw in a turn; the rules are asked again, and the
//! answer is told in words, or written down as a script of `tests/decide`.

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use hyper::Method;
use serde_json::Value;
use trunkline_shared::cluster::{Member, MemberName, Topology};

use super::arguments::{Explain, Format};
use super::members::send;
use super::rest::Answer;
use super::table::{Column, Table};
use super::terminal::Terminal;
use super::{CtlError, Session};
use crate::api::JOURNAL;
use crate::decide::Reason;
use crate::decide::script::test_case;
use crate::journal::{Entry, VERSION, replay};

mod account;
mod words;

/// Where the tests keep their scripts.
const SCRIPTS: &str = "agent/tests/decide";

/// `trunkline explain --file`: no DCS is needed for it.
pub(super) fn of_file(terminal: &Terminal, asked: &Explain, file: &Path) -> Result<(), CtlError> {
    let text = std::fs::read_to_string(file)
        .map_err(|error| CtlError::Usage(format!("{} cannot be read: {error}", file.display())))?;
    let name = file.display().to_string();
    let turns = Turns::read(&name, &text)?;
    turns.tell(terminal, asked)
}

/// `trunkline explain`
pub(super) async fn explain(session: &Session, asked: &Explain) -> Result<(), CtlError> {
    let (_follow, view) = session.known().await?;
    let topology = &view.topology;
    let Some(name) = &asked.member else {
        return everybody(session, topology).await;
    };
    let Some(member) = topology.members.get(&MemberName::new(name)) else {
        let members: Vec<&str> = topology.members.keys().map(MemberName::as_str).collect();
        return Err(CtlError::Failed(format!(
            "{name} is not a member of cluster {}; its members are {}",
            session.cluster,
            members.join(", ")
        )));
    };
    let text = journal(session, member).await?.map_err(CtlError::Failed)?;
    Turns::read(name, &text)?.tell(&session.terminal, asked)
}

/// The newest turn of every member, each in a line or two.
async fn everybody(session: &Session, topology: &Topology) -> Result<(), CtlError> {
    let cluster = &session.cluster;
    let head = match &topology.leader {
        Some(leader) => format!("Cluster {cluster}: {} leads.", leader.member),
        None => format!("Cluster {cluster}: nobody leads."),
    };
    session.terminal.line(&head)?;
    let mut silent = Vec::new();
    for member in topology.members.values() {
        let told = match journal(session, member).await? {
            Ok(text) => {
                let turns = Turns::read(member.name.as_str(), &text)?;
                let newest = turns.entries.last();
                newest.map_or_else(|| "no turn has ended yet".to_owned(), in_a_line)
            }
            Err(why) => {
                // Patroni keeps none, and is not asked in vain twice.
                silent.extend(member.is_trunkline().then(|| member.name.to_string()));
                why
            }
        };
        session.terminal.line(&format!("{}: {told}", member.name))?;
    }
    session.terminal.line(&format!(
        "More of one member: trunkline explain {cluster} MEMBER, with --list for its earlier turns"
    ))?;
    match silent.is_empty() {
        true => Ok(()),
        false => Err(CtlError::Failed(format!(
            "no journal of {}",
            silent.join(", ")
        ))),
    }
}

fn in_a_line(entry: &Entry) -> String {
    let sentence = match Reason::from_word(&entry.reason) {
        Some(reason) => reason.sentence(),
        None => &entry.reason,
    };
    let detail = match entry.detail.is_empty() {
        true => String::new(),
        false => format!(" ({})", entry.detail),
    };
    let failed = entry.failed.as_deref();
    let failed = failed.map_or_else(String::new, |why| format!(" Failed: {why}"));
    format!("{sentence}{detail}{failed}")
}

/// The journal of a member, or why there is none.
async fn journal(session: &Session, member: &Member) -> Result<Result<String, String>, CtlError> {
    let name = &member.name;
    let why = match send(session, member, (Method::GET, JOURNAL), "").await? {
        Ok(Answer { status: 200, text }) => return Ok(Ok(text)),
        Ok(Answer {
            status: 401 | 403,
            text,
        }) => format!(
            "{name} does not let this command read its journal: {text}; see the section ctl of the configuration"
        ),
        Ok(Answer { status, .. }) if !member.is_trunkline() => format!(
            "{name} is run by Patroni {}, which keeps no journal ({status})",
            member.version
        ),
        Ok(answer) => format!("{name}: {} ({})", answer.text.trim(), answer.status),
        Err(error) => format!("{name}: {error}"),
    };
    Ok(Err(why))
}

/// The turns of one member, the oldest first.
struct Turns {
    of: String,
    entries: Vec<Entry>,
}

impl Turns {
    fn read(of: &str, text: &str) -> Result<Self, CtlError> {
        let mut entries = Vec::new();
        for (at, line) in text.lines().enumerate() {
            let unread = |why: String| {
                CtlError::Failed(format!("line {} of the journal of {of}: {why}", at + 1))
            };
            let line: Value = serde_json::from_str(line)
                .map_err(|error| unread(format!("it is no JSON: {error}")))?;
            let version = line["version"].as_u64();
            if version != Some(u64::from(VERSION)) {
                let why = match version {
                    Some(version) => format!(
                        "it is of version {version}, and this program reads version {VERSION}: use the \
                         trunkline that was installed with the agent"
                    ),
                    None => "it is no turn of a journal".to_owned(),
                };
                return Err(unread(why));
            }
            let entry = serde_json::from_value(line);
            entries.push(entry.map_err(|error| unread(error.to_string()))?);
        }
        let of = of.to_owned();
        match entries.is_empty() {
            true => Err(CtlError::Failed(format!("the journal of {of} is empty"))),
            false => Ok(Self { of, entries }),
        }
    }

    /// What was asked for: the list, a script, or one turn in words.
    fn tell(&self, terminal: &Terminal, asked: &Explain) -> Result<(), CtlError> {
        if asked.list {
            return terminal.print(&self.list(asked.format));
        }
        let (number, entry) = self.chosen(asked)?;
        let again = replay(entry).map_err(|error| {
            CtlError::Failed(format!(
                "turn {number} of {} cannot be decided again: {error}; use the trunkline that was installed \
                 with the agent",
                self.of
            ))
        })?;
        if let Some(file) = &asked.script {
            self.write_script(file, entry)?;
            return terminal.success(&format!(
                "Success: the turn is the script {}; put it into {SCRIPTS} under the name of what it claims",
                file.display()
            ));
        }
        let place = format!("{}, turn {number} of {}", self.of, self.entries.len());
        terminal.print(&account::account(&place, entry, &again))
    }

    /// The turn asked for: 1 is the newest.
    fn chosen(&self, asked: &Explain) -> Result<(usize, &Entry), CtlError> {
        let mut newest_first = (1..).zip(self.entries.iter().rev());
        let chosen = match (&asked.reason, asked.turn) {
            (Some(reason), _) => newest_first.find(|(_, entry)| entry.reason == *reason),
            (None, turn) => newest_first.nth(turn.map_or(0, |turn| turn as usize - 1)),
        };
        chosen.ok_or_else(|| {
            let mut reasons: Vec<&str> = self.entries.iter().map(|e| e.reason.as_str()).collect();
            reasons.sort_unstable();
            reasons.dedup();
            CtlError::Failed(match &asked.reason {
                Some(reason) => format!(
                    "no turn of {} was decided for the reason {reason}; there are: {}",
                    self.of,
                    reasons.join(", ")
                ),
                None => format!("{} has kept {} turns", self.of, self.entries.len()),
            })
        })
    }

    fn list(&self, format: Format) -> String {
        let heads = ["Turn", "Time", "Woken by", "Situation", "Reason", "Actions"];
        let row = |(number, entry): (usize, &Entry)| {
            let detail = match entry.detail.is_empty() {
                true => entry.reason.clone(),
                false => format!("{} ({})", entry.reason, entry.detail),
            };
            let again = replay(entry).map(|decision| {
                let words = decision.actions.iter().map(|action| action.word());
                words.collect::<Vec<_>>().join(", ")
            });
            vec![
                number.into(),
                entry.time.clone().into(),
                entry.wake.clone().into(),
                entry.situation.clone().into(),
                detail.into(),
                again.unwrap_or_else(|_| entry.actions.join(", ")).into(),
            ]
        };
        let table = Table {
            title: format!(" Journal of {} ", self.of),
            columns: heads.map(|head| Column::new(head, head == "Turn")).into(),
            rows: (1..).zip(self.entries.iter().rev()).map(row).collect(),
            leaves_out_empty: false,
            delimiter: "\t".to_owned(),
        };
        table.render(format)
    }

    fn write_script(&self, file: &Path, entry: &Entry) -> Result<(), CtlError> {
        let unwritten =
            |why: String| CtlError::Failed(format!("{} was not written: {why}", file.display()));
        let case = test_case(&entry.scene).map_err(|error| unwritten(error.to_string()))?;
        let text = format!(
            "# Recorded by {} at {}, woken by {}.\n{case}",
            self.of, entry.time, entry.wake
        );
        let mut options = std::fs::OpenOptions::new();
        let opened = options.write(true).create_new(true).open(file);
        opened
            .and_then(|mut file| file.write_all(text.as_bytes()))
            .map_err(|error| unwritten(error.to_string()))
    }
}

/// A time as a person reads it.
fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}
