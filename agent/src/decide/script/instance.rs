//! The lines about this member: its instance, its peers, its job, its memory.

use std::collections::BTreeMap;
use std::sync::Arc;

use trunkline_shared::cluster::{LeaderEpoch, Lsn, MemberName, Moment, SystemId, Timeline};

use super::print::option;
use super::words::Words;
use super::{ScriptError, slots, store, synchronous};
use crate::decide::callbacks::{CallbackRole, Told};
use crate::decide::memory::{Memory, RestartSpan};
use crate::decide::observation::{
    FinishedJob, JobKind, JobView, Local, Looked, PeerAnswer, PeerView, Peers, Running, RunningJob,
    RunningRole, SourceTrouble, Stopped,
};

/// What the host does, as it is remembered.
pub(super) fn print_host(out: &mut String, memory: &Memory, ago: impl Fn(Moment) -> String) {
    option(out, "asked_for_room", memory.asked_for_room.map(&ago));
    option(out, "kill_hangs", memory.kill_hangs_since.map(&ago));
    option(out, "fence_gone", memory.fence_gone_since.map(&ago));
}

pub(super) fn memory(words: &Words<'_, '_>, now: Moment) -> Result<Memory, ScriptError> {
    let ago = |text: &str| words.parse_seconds(text).map(|ago| now - ago);
    let at = |key: &str| Ok(words.seconds(key)?.map(|ago| now - ago));
    let mut memory = Memory {
        crashed_at: at("crashed")?,
        slots_copied_at: at("copied")?,
        slots_not_copied: words.text("not_copied").map(Arc::from),
        is_key_unchecked: words.has("key_unchecked"),
        is_standby_cluster: words.has("standby_cluster"),
        has_left_remote: words.has("left_remote"),
        status_at: at("status")?,
        not_streaming_since: at("not_streaming")?,
        stands_back_until: words.seconds("stands_back")?.map(|left| now + left),
        bootstrap_failed: words.text("bootstrap_failed").map(Arc::from),
        is_stopped_for_copy: words.has("stopped_for_copy"),
        copy_ordered_at: at("copy_ordered")?,
        wal_gone_since: at("wal_gone")?.zip(words.value("wal_gone_from")?),
        reads_since: at("reads")?.zip(words.value("reads_at")?),
        asked_for_room: at("asked_for_room")?,
        kill_hangs_since: at("kill_hangs")?,
        fence_gone_since: at("fence_gone")?,
        is_restarting: words.has("restarting"),
        last_restart: at("restart_began")?
            .zip(at("restart_seen")?)
            .map(|(began, seen)| RestartSpan { began, seen }),
        alone_since: at("alone")?,
        contradicted_since: at("contradicted")?,
        ..Memory::default()
    };
    if let Some(text) = words.text("foreign_led") {
        let split = text.rsplit_once('@');
        let (name, since) = split.ok_or_else(|| words.wrong(text, "MEMBER@SECONDS"))?;
        memory.foreign_led = Some((MemberName::new(name), ago(since)?));
    }
    for text in words.all("needed") {
        let (name, seen) = text
            .rsplit_once('@')
            .ok_or_else(|| words.wrong(text, "SLOT@SECONDS"))?;
        memory.slot_needed.insert(Arc::from(name), ago(seen)?);
    }
    let epoch = |key: &str| match words.text(key).and_then(|text| text.split_once('@')) {
        Some((generation, revision)) => Ok(Some(LeaderEpoch {
            generation: words.parse(generation, "a number")?,
            revision: words.parse(revision, "a number")?,
        })),
        None => Ok(None),
    };
    memory.kept_after_crash = epoch("kept")?;
    memory.pre_promoted = epoch("pre_promoted")?;
    memory.told = told(words)?;
    if let Some(text) = words.text("not_primary") {
        let wrong = || words.wrong(text, "GENERATION@REVISION@SECONDS");
        let (generation, rest) = text.split_once('@').ok_or_else(wrong)?;
        let (revision, since) = rest.split_once('@').ok_or_else(wrong)?;
        let epoch = LeaderEpoch {
            generation: words.parse(generation, "a number")?,
            revision: words.parse(revision, "a number")?,
        };
        memory.not_primary_since = Some((epoch, ago(since)?));
    }
    memory.contradicted_by = store::contradiction(words)?;
    synchronous::memory(&mut memory, words, now)?;
    Ok(memory)
}

fn told(words: &Words<'_, '_>) -> Result<Told, ScriptError> {
    let Some(text) = words.text("told") else {
        return Ok(Told::Nothing);
    };
    let wrong = || words.wrong(text, "what the scripts were told, and the role");
    let (word, role) = text.split_once('@').ok_or_else(wrong)?;
    let role = match role {
        "primary" => CallbackRole::Primary,
        "replica" => CallbackRole::Replica,
        _ => return Err(wrong()),
    };
    Ok(match word {
        "runs" => Told::Runs(role),
        "restarts" => Told::Restarts(role),
        "stopped" | "stopped_to_restart" => Told::Stopped {
            was: role,
            is_restart: word == "stopped_to_restart",
        },
        _ => return Err(wrong()),
    })
}

pub(super) fn local(words: &Words<'_, '_>, now: Moment) -> Result<Local, ScriptError> {
    let system_id = SystemId(words.value("system_id")?.unwrap_or(7));
    let if_known = (!words.has("unreadable")).then_some(system_id);
    let timeline = Timeline(words.value("tl")?.unwrap_or(1));
    let since = now - words.seconds("since")?.unwrap_or_default();
    let was_primary = words.has("primary");
    words.may_say("replica");
    Ok(match words.first() {
        Some("empty") => Local::Empty,
        Some("unknown") => Local::Unknown(Arc::from(words.text("why").unwrap_or("unknown"))),
        Some("starting") => Local::Starting {
            since,
            as_primary: was_primary,
            system_id: if_known,
        },
        Some("unresponsive") => Local::Unresponsive {
            since,
            was_primary,
            system_id: if_known,
        },
        Some("orphaned") => Local::Orphaned {
            was_primary,
            system_id: if_known,
        },
        Some("stopped") => {
            let position: Lsn = words.value("position")?.unwrap_or_default();
            Local::Stopped(Stopped {
                system_id,
                timeline,
                checkpoint: words.value("checkpoint")?.unwrap_or(position),
                redo: words.value("redo")?.unwrap_or(position),
                position,
                is_clean: words.has("clean"),
                was_primary,
                is_half_rewound: words.has("half_rewound"),
                crashed_at: words.seconds("crashed")?.map(|ago| now - ago),
            })
        }
        Some("running") => Local::Running(Running {
            system_id,
            timeline,
            role: running_role(words, was_primary)?,
            slots: Arc::new(slots::views(words)?),
            has_pending_restart: words.has("pending_restart"),
            is_wal_gone: words.has("wal_gone"),
            has_read_all: words.has("read_all"),
            is_promoting: words.has("promoting"),
            major: words.value("major")?.unwrap_or(15),
            synchronized: slots::synchronized(words),
            commits: synchronous::commits(words)?,
        }),
        other => return Err(words.wrong(other.unwrap_or(""), "a state of the instance")),
    })
}

fn running_role(words: &Words<'_, '_>, is_primary: bool) -> Result<RunningRole, ScriptError> {
    if is_primary {
        return Ok(RunningRole::Primary {
            position: words.value("position")?.unwrap_or_default(),
            is_checkpointed: !words.has("unchecked"),
        });
    }
    let received = words.value("received")?.unwrap_or_default();
    Ok(RunningRole::Replica {
        received,
        replayed: words.value("replayed")?.unwrap_or(received),
        upstream: words.text("upstream").map(|u| {
            Arc::from(if u.contains(':') {
                u.to_owned()
            } else {
                format!("{u}:5432")
            })
        }),
        is_streaming: words.has("streaming"),
    })
}

pub(super) fn peers(words: &Words<'_, '_>) -> Result<Peers, ScriptError> {
    if words.has("not_asked") {
        return Ok(Peers::NotAsked);
    }
    words.may_say("asked");
    let mut answers = BTreeMap::new();
    for (name, text) in words.keyed() {
        let mut parts = text.split('@');
        let what = parts.next().unwrap_or_default();
        let answer = if what == "unreachable" {
            PeerAnswer::Unreachable
        } else {
            let timeline = parts
                .next()
                .map(|t| words.parse(t, "a timeline"))
                .transpose()?;
            let position: Lsn = parts
                .next()
                .map(|t| words.parse(t, "a position"))
                .transpose()?
                .unwrap_or_default();
            let rest: Vec<&str> = parts.collect();
            let priority = rest.iter().find_map(|w| w.strip_prefix("priority"));
            PeerAnswer::Answered(PeerView {
                is_running: what != "stopped",
                is_primary: what == "primary",
                timeline: timeline.map(Timeline),
                position,
                replayed: match rest.iter().find_map(|w| w.strip_prefix("replayed")) {
                    Some(text) => words.parse(text, "a position")?,
                    None => position,
                },
                is_streaming: (!rest.contains(&"unknown")).then(|| !rest.contains(&"stalled")),
                is_replay_paused: rest.contains(&"paused"),
                may_lead: !rest.contains(&"nofailover"),
                priority: priority.map_or(Ok(1), |p| words.parse(p, "a priority"))?,
                is_nearly_full: rest.contains(&"nearly_full"),
                store: store::of_peer(words, &rest)?,
                has_read_all: !rest.contains(&"reading"),
                looked: match rest.iter().find_map(|w| w.strip_prefix("sees-")) {
                    Some("") => Looked::InTurn(None),
                    Some(leader) => Looked::InTurn(Some(MemberName::new(leader))),
                    None => Looked::Asked,
                },
            })
        };
        answers.insert(MemberName::new(name), answer);
    }
    Ok(Peers::Asked(Arc::new(answers)))
}

pub(super) fn job(words: &Words<'_, '_>, now: Moment) -> Result<JobView, ScriptError> {
    let kind = |name: &str| {
        JobKind::ALL
            .into_iter()
            .find(|kind| kind.name() == name)
            .ok_or_else(|| words.wrong(name, "a job"))
    };
    let ago = now - words.seconds("ago")?.unwrap_or_default();
    let running = words.text("running").map(kind).transpose()?;
    let finished = words.text("finished").map(kind).transpose()?;
    let trouble = words.text("trouble").map(|word| trouble(words, word));
    let trouble = trouble.transpose()?;
    Ok(JobView {
        running: running.map(|kind| RunningJob {
            kind,
            since: ago,
            source: words.text("source").map(MemberName::new),
        }),
        finished: finished.map(|kind| FinishedJob {
            kind,
            at: ago,
            error: words.text("error").map(Arc::from),
            trouble,
            source: words.text("source").map(MemberName::new),
        }),
    })
}

fn trouble(words: &Words<'_, '_>, word: &str) -> Result<SourceTrouble, ScriptError> {
    match word {
        "silent" => Ok(SourceTrouble::Silent),
        "not_ready" => Ok(SourceTrouble::NotReady),
        _ => Err(words.wrong(word, "a trouble with the source")),
    }
}
