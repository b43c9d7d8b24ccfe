//! The words for failsafe mode in scripts.

use std::fmt::Write as _;
use std::sync::Arc;

use trunkline_shared::cluster::{
    ClusterSettings, LeaderEpoch, MemberName, Moment, Timeline, Topology,
};

use super::ScriptError;
use super::words::Words;
use crate::decide::observation::{NoRace, Promise};

/// Takes `failsafe_mode` from a `settings` line.
pub(super) fn settings(s: &mut ClusterSettings, words: &Words<'_, '_>) -> Result<(), ScriptError> {
    s.failsafe_mode = match words.text("failsafe_mode") {
        None => s.failsafe_mode,
        Some("on") => Some(true),
        Some("off") => Some(false),
        Some("silent") => None,
        Some(other) => return Err(words.wrong(other, "on, off or silent")),
    };
    Ok(())
}

/// Prints the same word.
pub(super) fn print_settings(out: &mut String, s: &ClusterSettings) {
    let word = match s.failsafe_mode {
        None => "silent",
        Some(true) => "on",
        Some(false) => "off",
    };
    let _ = write!(out, " failsafe_mode={word}");
}

/// The list: `failsafe none`, or names, those with a URL as `name=URL`.
pub(super) fn list(words: &Words<'_, '_>) -> Arc<std::collections::BTreeMap<MemberName, Arc<str>>> {
    let names = words.plain().filter(|name| *name != "none");
    let all = names.map(|name| (name, "")).chain(words.keyed());
    Arc::new(
        all.map(|(name, url)| (MemberName::new(name), Arc::from(url)))
            .collect(),
    )
}

/// Prints the list.
pub(super) fn print_list(out: &mut String, topology: &Topology) {
    out.push_str("failsafe");
    for (name, url) in topology.failsafe.iter() {
        let _ = match url.is_empty() {
            true => write!(out, " {name}"),
            false => write!(out, " {name}=\"{url}\""),
        };
    }
    if topology.failsafe.is_empty() {
        out.push_str(" none");
    }
    out.push('\n');
}

/// `no_race`: the promise with `left`, `generation`, `revision`, or without an epoch `patroni`, and how far the asker had
/// written, with `tl` and `reached`; and when the first agent of this boot started, with `booted`.
pub(super) fn no_race(words: &Words<'_, '_>, now: Moment) -> Result<NoRace, ScriptError> {
    let epoch = LeaderEpoch {
        generation: words.value("generation")?.unwrap_or(0),
        revision: words.value("revision")?.unwrap_or(10),
    };
    let epoch = (!words.has("patroni")).then_some(epoch);
    let left = words.seconds("left")?;
    let timeline = words.value("tl")?.map_or(Timeline(1), Timeline);
    let reached = words.value("reached")?.map(|position| (timeline, position));
    Ok(NoRace {
        promise: left.map(|left| Promise {
            until: now + left,
            epoch,
            reached,
        }),
        booted: words.seconds("booted")?.map(|ago| now - ago),
    })
}

/// Prints the same words.
pub(super) fn print_no_race(out: &mut String, no_race: &NoRace, now: Moment) {
    let seconds = |duration: std::time::Duration| {
        format!("{}.{:09}", duration.as_secs(), duration.subsec_nanos())
    };
    out.push_str("no_race");
    // What was told counts also when the promise is over.
    let matters = |promise: &Promise| promise.until > now || promise.reached.is_some();
    if let Some(promise) = no_race.promise.filter(matters) {
        let _ = write!(out, " left={}", seconds(now.until(promise.until)));
        match promise.epoch {
            Some(epoch) => {
                let (generation, revision) = (epoch.generation, epoch.revision);
                let _ = write!(out, " generation={generation} revision={revision}");
            }
            None => out.push_str(" patroni"),
        }
        if let Some((timeline, position)) = promise.reached {
            let _ = write!(out, " tl={} reached={position}", timeline.0);
        }
    }
    if let Some(booted) = no_race.booted {
        let _ = write!(out, " booted={}", seconds(now.since(booted)));
    }
    out.push('\n');
}
