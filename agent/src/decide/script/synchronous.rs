//! The words for synchronous replication in scripts.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::sync::Arc;

use trunkline_shared::cluster::settings::SynchronousMode;
use trunkline_shared::cluster::sync_state::SyncState;
use trunkline_shared::cluster::{ClusterSettings, LeaderEpoch, MemberName, Moment, Tags, Topology};

use super::ScriptError;
use super::words::Words;
use crate::decide::memory::{Memory, SyncNote, SyncReady};
use crate::decide::observation::{CommitsView, SenderView};
use crate::decide::sync_standbys::SyncNames;

/// The revision of the `sync` record where a script does not say.
const SYNC_REVISION: i64 = 30;

/// Takes the settings of synchronous replication from a `settings` line.
pub(super) fn settings(s: &mut ClusterSettings, words: &Words<'_, '_>) -> Result<(), ScriptError> {
    s.synchronous_mode = match words.text("synchronous_mode") {
        None => s.synchronous_mode,
        Some("off") => SynchronousMode::Off,
        Some("on") => SynchronousMode::On,
        Some("quorum") => SynchronousMode::Quorum,
        Some(other) => return Err(words.wrong(other, "off, on or quorum")),
    };
    s.is_synchronous_mode_strict = words.has("strict");
    s.synchronous_node_count = words
        .value("synchronous_node_count")?
        .unwrap_or(s.synchronous_node_count);
    s.maximum_lag_on_syncnode = words.value("maximum_lag_on_syncnode")?;
    Ok(())
}

/// Prints the same words.
pub(super) fn print_settings(out: &mut String, s: &ClusterSettings) {
    let mode = match s.synchronous_mode {
        SynchronousMode::Off => return,
        SynchronousMode::On => "on",
        SynchronousMode::Quorum => "quorum",
    };
    let count = s.synchronous_node_count;
    let _ = write!(
        out,
        " synchronous_mode={mode} synchronous_node_count={count}"
    );
    if s.is_synchronous_mode_strict {
        out.push_str(" strict");
    }
    if let Some(lag) = s.maximum_lag_on_syncnode {
        let _ = write!(out, " maximum_lag_on_syncnode={lag}");
    }
}

/// The record: `sync none`, or the leader, then the standbys.
pub(super) fn record(words: &Words<'_, '_>) -> Result<Option<SyncState>, ScriptError> {
    if words.has("none") {
        return Ok(None);
    }
    Ok(Some(SyncState {
        leader: words.text("leader").map(MemberName::new),
        standbys: words.plain().map(MemberName::new).collect(),
        quorum: words.value("quorum")?.unwrap_or(0),
        revision: words.value("revision")?.unwrap_or(SYNC_REVISION),
    }))
}

/// Prints the record.
pub(super) fn print_record(out: &mut String, topology: &Topology) {
    let Some(sync) = &topology.sync else { return };
    out.push_str("sync");
    for name in &sync.standbys {
        let _ = write!(out, " {name}");
    }
    if let Some(leader) = &sync.leader {
        let _ = write!(out, " leader={leader}");
    }
    let _ = writeln!(out, " quorum={} revision={}", sync.quorum, sync.revision);
}

/// The tags that matter for being a synchronous standby.
pub(super) fn tags(words: &Words<'_, '_>) -> Result<Tags, ScriptError> {
    Ok(Tags {
        nosync: words.has("nosync"),
        nofailover: words.has("nofailover"),
        sync_priority: words.value("sync_priority")?,
        ..Tags::default()
    })
}

/// Prints the same words.
pub(super) fn print_tags(out: &mut String, tags: &Tags) {
    if tags.nosync {
        out.push_str(" nosync");
    }
    if tags.nofailover {
        out.push_str(" nofailover");
    }
    if let Some(priority) = tags.sync_priority {
        let _ = write!(out, " sync_priority={priority}");
    }
}

/// Whom commits wait for, in one word: `nobody`, `blocked`, `all:b,c`, `any2:b,c` or `other`.
pub(super) fn named(names: &SyncNames) -> String {
    let list = |names: &BTreeSet<MemberName>| {
        let names: Vec<&str> = names.iter().map(MemberName::as_str).collect();
        names.join(",")
    };
    match names {
        SyncNames::Nobody => "nobody".to_owned(),
        SyncNames::Blocked => "blocked".to_owned(),
        SyncNames::All(names) => format!("all:{}", list(names)),
        SyncNames::Any(count, names) => format!("any{count}:{}", list(names)),
        SyncNames::Other(_) => "other".to_owned(),
    }
}

fn parse_named(words: &Words<'_, '_>, text: &str) -> Result<SyncNames, ScriptError> {
    let list = |names: &str| names.split(',').map(MemberName::new).collect();
    Ok(match text.split_once(':') {
        None if text == "nobody" => SyncNames::Nobody,
        None if text == "blocked" => SyncNames::Blocked,
        None => SyncNames::Other(Arc::from(text)),
        Some(("all", names)) => SyncNames::All(list(names)),
        Some((any, names)) => {
            let count = any.strip_prefix("any").unwrap_or(any);
            SyncNames::Any(words.parse(count, "a number")?, list(names))
        }
    })
}

/// Whom commits wait for: `waits=` what is in force, `checkpointing` while the checkpointer may not have
/// taken it up, `own=` what the agent's file says, and a
/// `sender=NAME@FLUSHED` (with `@catchup` while it does not stream yet) for each receiver.
pub(super) fn commits(words: &Words<'_, '_>) -> Result<CommitsView, ScriptError> {
    let mut senders = Vec::new();
    for text in words.all("sender") {
        let mut parts = text.split('@');
        senders.push(SenderView {
            name: MemberName::new(parts.next().unwrap_or_default()),
            flushed: words.parse(parts.next().unwrap_or_default(), "a position")?,
            is_streaming: parts.next() != Some("catchup"),
        });
    }
    let names = |key: &str| words.text(key).map(|text| parse_named(words, text));
    Ok(CommitsView {
        senders: Arc::new(senders),
        in_force: names("waits").transpose()?.unwrap_or_default(),
        is_checkpointer_busy: words.has("checkpointing"),
        own: names("own").transpose()?,
        is_access_closed: words.has("closed"),
    })
}

/// Prints the same words.
pub(super) fn print_commits(out: &mut String, commits: &CommitsView) {
    if commits.in_force != SyncNames::Nobody {
        let _ = write!(out, " waits={}", named(&commits.in_force));
    }
    if commits.is_checkpointer_busy {
        out.push_str(" checkpointing");
    }
    if let Some(own) = &commits.own {
        let _ = write!(out, " own={}", named(own));
    }
    if commits.is_access_closed {
        out.push_str(" closed");
    }
    for sender in commits.senders.iter() {
        let catchup = if sender.is_streaming { "" } else { "@catchup" };
        let _ = write!(out, " sender={}@{}{catchup}", sender.name, sender.flushed);
    }
}

/// `ready=NAMES@SECONDS`; `noted=NAMES@GENERATION@REVISION@SECONDS` and, once known, `@POSITION`, with `noted_record=REVISION`;
/// `sync_lost=SECONDS`.
pub(super) fn memory(
    memory: &mut Memory,
    words: &Words<'_, '_>,
    now: Moment,
) -> Result<(), ScriptError> {
    if let Some(text) = words.text("told_in") {
        memory.commits_wait_since_in = Some(LeaderEpoch {
            generation: 0,
            revision: words.parse(text, "a revision")?,
        });
    }
    let put_off = words.seconds("checkpoint_put_off")?;
    memory.checkpoint_put_off_since = put_off.map(|ago| now - ago);
    memory.closed_until = words.value("closed_until")?;
    memory.leaving_since = words.seconds("leaving")?.map(|ago| now - ago);
    memory.sync_lost_since = words.seconds("sync_lost")?.map(|ago| now - ago);
    if let Some(text) = words.text("ready") {
        let (names, since) = text.split_once('@').unwrap_or((text, "0"));
        memory.sync_ready = Some(SyncReady {
            names: parse_named(words, names)?,
            since: now - words.parse_seconds(since)?,
        });
    }
    let Some(text) = words.text("noted") else {
        return Ok(());
    };
    let parts: Vec<&str> = text.split('@').collect();
    let [names, generation, revision, since, at @ ..] = parts.as_slice() else {
        return Err(words.wrong(text, "NAMES@GENERATION@REVISION@SECONDS[@POSITION]"));
    };
    memory.sync_note = Some(SyncNote {
        epoch: LeaderEpoch {
            generation: words.parse(generation, "a number")?,
            revision: words.parse(revision, "a number")?,
        },
        record: words.value("noted_record")?.unwrap_or(SYNC_REVISION),
        names: parse_named(words, names)?,
        since: now - words.parse_seconds(since)?,
        at: at
            .first()
            .map(|at| words.parse(at, "a position"))
            .transpose()?,
    });
    Ok(())
}

/// Prints the same words.
pub(super) fn print_memory(out: &mut String, memory: &Memory, now: Moment) {
    if let Some(epoch) = memory.commits_wait_since_in {
        let _ = write!(out, " told_in={}", epoch.revision);
    }
    if let Some(since) = memory.checkpoint_put_off_since {
        let ago = now.since(since).as_secs_f64();
        let _ = write!(out, " checkpoint_put_off={ago}");
    }
    if let Some(until) = memory.closed_until {
        let _ = write!(out, " closed_until={until}");
    }
    if let Some(since) = memory.leaving_since {
        let _ = write!(out, " leaving={}", now.since(since).as_secs_f64());
    }
    if let Some(since) = memory.sync_lost_since {
        let _ = write!(out, " sync_lost={}", now.since(since).as_secs_f64());
    }
    if let Some(ready) = &memory.sync_ready {
        let ago = now.since(ready.since).as_secs_f64();
        let _ = write!(out, " ready={}@{ago}", named(&ready.names));
    }
    let Some(note) = &memory.sync_note else {
        return;
    };
    let (names, epoch) = (named(&note.names), note.epoch);
    let ago = now.since(note.since).as_secs_f64();
    let _ = write!(
        out,
        " noted={names}@{}@{}@{ago}",
        epoch.generation, epoch.revision
    );
    if let Some(at) = note.at {
        let _ = write!(out, "@{at}");
    }
    let _ = write!(out, " noted_record={}", note.record);
}
