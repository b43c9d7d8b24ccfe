//! One turn in words: what was seen, what was decided, why. Pure.

use std::fmt::Write;
use std::time::Duration;

use trunkline_shared::cluster::topology::Initialize;
use trunkline_shared::cluster::{Moment, Topology};
use trunkline_shared::dcs::records::{role_word, state_word};

use super::{seconds, words};
use crate::decide::decision::NextWhy;
use crate::decide::observation::{
    DcsView, Due, JobView, LeaseView, Local, LocalRequest, Observation, PeerAnswer, Peers, Running,
    RunningRole, WatchdogView,
};
use crate::decide::script::Scene;
use crate::decide::{Decision, Reason};
use crate::journal::Entry;

/// The account of a turn; `again` is what this program decides of the same.
pub(super) fn account(place: &str, entry: &Entry, again: &Decision) -> String {
    let mut text = format!("{place}, at {}, woken by {}\n\n", entry.time, entry.wake);
    text.push_str("What was seen\n");
    for line in seen(&scene(entry).seen) {
        let _ = writeln!(text, "  {line}");
    }
    text.push_str("\nWhat was decided\n");
    let situation = again.situation.word();
    let _ = writeln!(
        text,
        "  situation  {situation}: {}",
        again.situation.sentence()
    );
    let sentence = Reason::from_word(&entry.reason).map_or("", Reason::sentence);
    let _ = writeln!(text, "  reason     {}: {sentence}", entry.reason);
    if !entry.detail.is_empty() {
        let _ = writeln!(text, "             {}", entry.detail);
    }
    match again.actions.as_slice() {
        [] => text.push_str("  actions    none\n"),
        actions => {
            for (at, action) in actions.iter().enumerate() {
                let head = if at == 0 { "actions" } else { "" };
                let _ = writeln!(text, "  {head:<9}  {action}: {}", words::of(action));
            }
        }
    }
    if let Some(why) = &entry.failed {
        let _ = writeln!(text, "  failed     {why}");
    }
    let why = match again.next.why {
        NextWhy::SeeResult => "to see the result",
        NextWhy::LeaseDeadline => "for a deadline of the lease",
        NextWhy::Limit => "for a limit of waiting",
        NextWhy::Routine => "unless something happens",
    };
    let next = Duration::from_millis(entry.next_ms);
    let _ = writeln!(text, "  next look  within {}, {why}", seconds(next));
    text.push_str(&compared(entry, again));
    text
}

/// Whether this program decides the same.
fn compared(entry: &Entry, again: &Decision) -> String {
    let actions: Vec<String> = again.actions.iter().map(|a| format!("{a:?}")).collect();
    let is_same = entry.reason == again.reason.word()
        && entry.situation == again.situation.word()
        && entry.actions == actions;
    match is_same {
        true => "\nAsked again, the rules of this program decide the same.\n".to_owned(),
        false => format!(
            "\nAsked again, the rules of this program decide otherwise: it is of another version than the agent, or this is a defect. The \
             member decided\n  {}: {} [{}]\nand this program\n  {}\n",
            entry.situation,
            entry.reason,
            entry.actions.join(", "),
            again.to_string().replace('\n', "\n  ")
        ),
    }
}

/// What the turn saw; it was parsed before, so every line is known.
fn scene(entry: &Entry) -> Scene {
    let mut scene = Scene::default();
    for line in entry.scene.lines() {
        // A line that is not understood would have kept the turn from being decided again.
        let _ = scene.take_text(line);
    }
    scene
}

fn seen(seen: &Observation) -> Vec<String> {
    let mut lines = Vec::new();
    match &seen.dcs {
        DcsView::Unknown => lines.push("DCS        not read since the agent started".to_owned()),
        DcsView::Known { topology, age } => {
            let age = seconds(*age);
            lines.push(format!("DCS        as of {age} before"));
            lines.extend(cluster(topology));
        }
    }
    lines.push(format!("lease      {}", lease(&seen.lease, seen.now)));
    lines.push(format!("here       {}", local(&seen.local, seen.now)));
    lines.push(format!("fence      {}", fence(seen)));
    lines.extend(peers(&seen.peers));
    lines.extend(job(&seen.job, seen.now));
    match &seen.request {
        Some(LocalRequest::Restart(_)) => lines.push("asked for  a restart".to_owned()),
        Some(LocalRequest::Reinitialize) => lines.push("asked for  a new copy".to_owned()),
        None => {}
    }
    match seen.scheduled {
        Some(Due::In(left)) => lines.push(format!("scheduled  in {}", seconds(left))),
        Some(Due::Ago(late)) => lines.push(format!("scheduled  {} ago", seconds(late))),
        Some(Due::Unreadable) => lines.push("scheduled  at a time that cannot be read".to_owned()),
        None => {}
    }
    if let Some(since) = seen.health.writes_since {
        let waits = seconds(seen.now.since(since));
        lines.push(format!("disk       a write has not come back for {waits}"));
    }
    if let Some(since) = seen.health.postmaster_stopped_since {
        let stands = seconds(seen.now.since(since));
        lines.push(format!(
            "postmaster stopped for {stands}: no session can begin"
        ));
    }
    for (is_so, text) in [
        (seen.health.is_nearly_full, "disk       nearly full"),
        (seen.is_shutting_down, "agent      told to end"),
        (
            seen.is_bootstrap_unfinished,
            "data       of a bootstrap that was never finished",
        ),
        (
            seen.lost_config.is_some(),
            "config     gone from the DCS; the last known is used",
        ),
    ] {
        if is_so {
            lines.push(text.to_owned());
        }
    }
    lines
}

fn cluster(topology: &Topology) -> Vec<String> {
    let mut lines = Vec::new();
    lines.push(match &topology.leader {
        Some(leader) => format!("leader     {} (epoch {})", leader.member, leader.epoch),
        None => "leader     nobody".to_owned(),
    });
    match topology.initialize {
        Initialize::Absent => lines.push("cluster    not made yet".to_owned()),
        Initialize::Running => lines.push("cluster    being made".to_owned()),
        Initialize::Done(_) => {}
    }
    for member in topology.members.values() {
        let mut line = format!(
            "member     {}: {}, {}",
            member.name,
            role_word(member.role),
            state_word(member.state)
        );
        if let Some(timeline) = member.timeline {
            let _ = write!(line, ", timeline {timeline}");
        }
        if let Some(position) = member.position {
            let _ = write!(line, ", at {position}");
        }
        if member.is_streaming == Some(true) {
            line.push_str(", streaming");
        }
        lines.push(line);
    }
    if let Some(request) = &topology.failover {
        let name = |name: &Option<trunkline_shared::cluster::MemberName>| {
            name.as_ref()
                .map_or("anybody".to_owned(), ToString::to_string)
        };
        lines.push(format!(
            "request    leader from {} to {}",
            name(&request.leader),
            name(&request.candidate)
        ));
    }
    if let Some(record) = &topology.switchover {
        lines.push(match record.is_restart() {
            true => format!("restart    of {}: {:?}", record.from, record.stage),
            false => format!(
                "switchover from {} to {}: {:?}",
                record.from, record.to, record.stage
            ),
        });
    }
    let settings = topology.settings_or_default();
    if settings.is_paused {
        lines.push("paused     automation is off".to_owned());
    }
    lines.push(format!(
        "settings   ttl {}, loop_wait {}, retry_timeout {}",
        seconds(settings.ttl),
        seconds(settings.loop_wait),
        seconds(settings.retry_timeout)
    ));
    lines
}

fn lease(lease: &LeaseView, now: Moment) -> String {
    match lease {
        LeaseView::NotHeld => "not held".to_owned(),
        LeaseView::Lost => "lost to another member".to_owned(),
        LeaseView::Held(held) => {
            let (left, gone) = (now.until(held.deadline), held.deadline.until(now));
            let mut text = match gone.is_zero() {
                true => format!("held, {} left", seconds(left)),
                false => format!("held until {} ago", seconds(gone)),
            };
            for (is_so, more) in [
                (held.is_key_missing, ", the leader key is missing"),
                (
                    held.has_unresolved_hand_over,
                    ", whether it was given away is unknown",
                ),
                (held.is_by_failsafe, ", by the consent of the members"),
            ] {
                text.push_str(if is_so { more } else { "" });
            }
            text
        }
    }
}

fn local(local: &Local, now: Moment) -> String {
    let since = |at: &Moment| seconds(now.since(*at));
    let kind = |is_primary: &bool| if *is_primary { "primary" } else { "replica" };
    match local {
        Local::Unknown(why) => format!("unknown: {why}"),
        Local::Empty => "no data".to_owned(),
        Local::Starting {
            since: at,
            as_primary,
            ..
        } => {
            format!(
                "PostgreSQL starts as {} since {}",
                kind(as_primary),
                since(at)
            )
        }
        Local::Unresponsive {
            since: at,
            was_primary,
            ..
        } => format!(
            "PostgreSQL, a {}, has not answered for {}",
            kind(was_primary),
            since(at)
        ),
        Local::Orphaned { was_primary, .. } => format!(
            "the postmaster is dead, processes of the {} live on",
            kind(was_primary)
        ),
        Local::Stopped(stopped) => {
            let clean = if stopped.is_clean {
                "cleanly"
            } else {
                "uncleanly"
            };
            let crashed = stopped.crashed_at.as_ref().map(since);
            let crashed = crashed.map_or_else(String::new, |ago| format!(", it crashed {ago} ago"));
            format!(
                "PostgreSQL is stopped ({clean}), was {}, timeline {}, at {}{crashed}",
                kind(&stopped.was_primary),
                stopped.timeline,
                stopped.position
            )
        }
        Local::Running(instance) => running(instance),
    }
}

fn running(running: &Running) -> String {
    let mut text = match &running.role {
        RunningRole::Primary {
            position,
            is_checkpointed,
        } => {
            let checkpoint = match is_checkpointed {
                true => "",
                false => ", its first checkpoint is not done",
            };
            format!("PostgreSQL is primary at {position}{checkpoint}")
        }
        RunningRole::Replica {
            received,
            replayed,
            upstream,
            is_streaming,
        } => {
            let from = upstream.as_deref().unwrap_or("nowhere");
            let how = if *is_streaming {
                "streams"
            } else {
                "does not stream"
            };
            format!(
                "PostgreSQL is replica, received {received}, replayed {replayed}, {how} from {from}"
            )
        }
    };
    let _ = write!(text, ", timeline {}", running.timeline);
    for (is_so, more) in [
        (running.is_promoting, ", being promoted"),
        (running.is_wal_gone, ", the WAL it needs is gone"),
        (
            running.has_pending_restart,
            ", parameters wait for a restart",
        ),
    ] {
        text.push_str(if is_so { more } else { "" });
    }
    text
}

fn fence(seen: &Observation) -> String {
    let live = if seen.fence.is_live {
        "live"
    } else {
        "does not answer"
    };
    let armed = match seen.fence.armed_until {
        None => "asleep".to_owned(),
        Some(deadline) => format!("fires in {}", seconds(seen.now.until(deadline))),
    };
    let watchdog = match seen.fence.watchdog {
        WatchdogView::NotRequired => "",
        WatchdogView::Ready => ", watchdog ready",
        WatchdogView::Failed => ", the required watchdog cannot be used",
    };
    format!("{live}, {armed}{watchdog}")
}

fn peers(peers: &Peers) -> Vec<String> {
    let Peers::Asked(answers) = peers else {
        return Vec::new();
    };
    let answers = answers.iter().map(|(name, answer)| match answer {
        PeerAnswer::Unreachable => format!("peer       {name}: does not answer"),
        PeerAnswer::Answered(view) => {
            let what = match (view.is_running, view.is_primary) {
                (_, true) => "primary",
                (true, false) => "replica",
                (false, false) => "not running",
            };
            let may = if view.may_lead { "" } else { ", may not lead" };
            format!("peer       {name}: {what} at {}{may}", view.position)
        }
    });
    answers.collect()
}

fn job(job: &JobView, now: Moment) -> Option<String> {
    if let Some(running) = &job.running {
        let since = seconds(now.since(running.since));
        return Some(format!("job        {} for {since}", running.kind.name()));
    }
    let finished = job.finished.as_ref()?;
    let ago = seconds(now.since(finished.at));
    Some(match &finished.error {
        Some(why) => format!(
            "job        {} failed {ago} ago: {why}",
            finished.kind.name()
        ),
        None => format!("job        {} was done {ago} ago", finished.kind.name()),
    })
}
