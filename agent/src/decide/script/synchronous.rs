//! The words for synchronous replication in scripts.

use std::fmt::Write as _;

use trunkline_shared::cluster::settings::SynchronousMode;
use trunkline_shared::cluster::sync_state::SyncState;
use trunkline_shared::cluster::{ClusterSettings, MemberName, Topology};

use super::ScriptError;
use super::words::Words;

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
        revision: words.value("revision")?.unwrap_or(30),
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
