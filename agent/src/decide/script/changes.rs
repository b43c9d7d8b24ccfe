//! The lines about a change of leader: the routers, how long it waits, what is remembered of it.

use std::fmt::{self, Write as _};
use std::sync::Arc;
use std::time::Duration;

use trunkline_shared::cluster::router::{Acknowledged, HoldStage, RouterRecord};
use trunkline_shared::cluster::switchover::{ChangeParts, Drain, LeaderChange, OnTimeout};
use trunkline_shared::cluster::topology::{Routers, SwitchoverStage};
use trunkline_shared::cluster::{LeaderEpoch, MemberName, Moment, Topology};

use super::ScriptError;
use super::print::{flag, option, seconds};
use super::words::Words;
use crate::decide::memory::{Memory, PlannedChange};

/// How long a router holds clients where a script does not say.
const HOLDS_FOR: Duration = Duration::from_secs(10);

const STAGES: [(&str, HoldStage); 2] = [
    ("hold_transactions", HoldStage::Transactions),
    ("hold_all", HoldStage::All),
];

/// `router NAME`, with `gone`, `hold=SECONDS`, `sessions=NUMBER` and `ack=ID@STAGE`; with that `epoch=REVISION` and
/// `of=REVISION` of the record that it acknowledges.
pub(super) fn router(routers: &mut Routers, words: &Words<'_, '_>) -> Result<(), ScriptError> {
    let Some(name) = words.first() else {
        return Err(words.wrong("", "a router's name"));
    };
    let routers = Arc::make_mut(routers);
    if words.has("gone") {
        routers.remove(name);
        return Ok(());
    }
    let acknowledged = words.text("ack").map(|text| {
        let parts = text.split_once('@');
        let (id, stage) = parts.ok_or_else(|| words.wrong(text, "ID@STAGE"))?;
        let known = STAGES.iter().find(|(word, _)| *word == stage);
        Ok::<_, ScriptError>(Acknowledged {
            switchover: words.parse(id, "a number")?,
            epoch: LeaderEpoch {
                generation: 0,
                revision: words.value("epoch")?.unwrap_or(10),
            },
            revision: words.value("of")?.unwrap_or(0),
            stage: known.ok_or_else(|| words.wrong(stage, "a stage"))?.1,
        })
    });
    let record = RouterRecord {
        version: Arc::from(""),
        http_url: Arc::from(""),
        hold_timeout: words.seconds("hold")?.unwrap_or(HOLDS_FOR),
        epoch: None,
        acknowledged: acknowledged.transpose()?,
        writer_sessions: words.value("sessions")?.unwrap_or(0),
        held_clients: 0,
        cancel_number: None,
    };
    routers.insert(Arc::from(name), Arc::new(record));
    Ok(())
}

pub(super) fn print_routers(out: &mut String, topology: &Topology) {
    for (name, router) in topology.routers.iter() {
        let _ = write!(out, "router {name} hold={}", seconds(router.hold_timeout));
        if let Some(said) = &router.acknowledged {
            let word = STAGES.iter().find(|(_, stage)| *stage == said.stage);
            let word = word.map_or("", |(word, _)| *word);
            let _ = write!(out, " ack={}@{word}", said.switchover);
            let _ = write!(out, " epoch={}", said.epoch.revision);
            option(out, "of", Some(said.revision).filter(|it| *it != 0));
        }
        let _ = writeln!(out, " sessions={}", router.writer_sessions);
    }
}

/// `drain=SECONDS` and `on_timeout=WORD` of a request.
pub(super) fn drain(words: &Words<'_, '_>) -> Result<Drain, ScriptError> {
    let on_timeout = words.text("on_timeout").map(|word| {
        OnTimeout::from_word(word).ok_or_else(|| words.wrong(word, "give-up or terminate"))
    });
    Ok(Drain {
        timeout: words.seconds("drain")?,
        on_timeout: on_timeout.transpose()?,
    })
}

pub(super) fn print_drain(out: &mut String, drain: &Drain) {
    option(out, "drain", drain.timeout.map(seconds));
    option(out, "on_timeout", drain.on_timeout.map(OnTimeout::word));
}

/// The parts of a change that are over, each by its word.
pub(super) fn parts(words: &Words<'_, '_>) -> Result<ChangeParts, ScriptError> {
    let mut parts = ChangeParts::default();
    for (word, _) in ChangeParts::default().named() {
        if let (Some(part), Some(took)) = (parts.part_mut(word), words.seconds(word)?) {
            *part = Some(took);
        }
    }
    Ok(parts)
}

pub(super) fn print_parts(out: &mut String, parts: &ChangeParts) {
    for (word, took) in parts.named() {
        option(out, word, took.map(seconds));
    }
}

pub(super) fn stage(words: &Words<'_, '_>, text: &str) -> Result<SwitchoverStage, ScriptError> {
    match text {
        "hold_transactions" => Ok(SwitchoverStage::HoldTransactions),
        "hold_all" => Ok(SwitchoverStage::HoldAll),
        "resume" => Ok(SwitchoverStage::Resume),
        text => match text.strip_prefix("stopped@") {
            Some(at) => Ok(SwitchoverStage::Stopped {
                shutdown_checkpoint: words.parse(at, "a position")?,
            }),
            None => Err(words.wrong(text, "a stage")),
        },
    }
}

pub(super) fn stage_text(stage: SwitchoverStage) -> String {
    match stage {
        SwitchoverStage::HoldTransactions => "hold_transactions".to_owned(),
        SwitchoverStage::HoldAll => "hold_all".to_owned(),
        SwitchoverStage::Resume => "resume".to_owned(),
        SwitchoverStage::Stopped {
            shutdown_checkpoint,
        } => format!("stopped@{shutdown_checkpoint}"),
    }
}

/// `planned ID`, with `restart`, `stage=STAGE`, `ago=SECONDS`, `streamed`, `rolled_back` and the parts that are over.
pub(super) fn planned(words: &Words<'_, '_>, now: Moment) -> Result<PlannedChange, ScriptError> {
    let id = words.first().unwrap_or_default();
    Ok(PlannedChange {
        id: words.parse(id, "a number")?,
        is_restart: words.has("restart"),
        stage: words
            .text("stage")
            .map(|text| stage(words, text))
            .transpose()?,
        since: now - words.seconds("ago")?.unwrap_or_default(),
        was_streaming: words.has("streamed"),
        parts: parts(words)?,
        is_rolled_back: words.has("rolled_back"),
    })
}

/// `unrecorded GENERATION@REVISION`, with `from=MEMBER`, `to=MEMBER` and the parts.
pub(super) fn unrecorded(words: &Words<'_, '_>) -> Result<LeaderChange, ScriptError> {
    let text = words.first().unwrap_or_default();
    Ok(LeaderChange {
        epoch: epoch(words, text)?,
        from: words.text("from").map(MemberName::new),
        to: MemberName::new(words.text("to").unwrap_or("a")),
        at: Arc::from(""),
        parts: parts(words)?,
    })
}

/// GENERATION@REVISION.
pub(super) fn epoch(words: &Words<'_, '_>, text: &str) -> Result<LeaderEpoch, ScriptError> {
    let parts = text.split_once('@');
    let (generation, revision) = parts.ok_or_else(|| words.wrong(text, "GENERATION@REVISION"))?;
    Ok(LeaderEpoch {
        generation: words.parse(generation, "a number")?,
        revision: words.parse(revision, "a number")?,
    })
}

pub(super) fn print_memory(out: &mut String, memory: &Memory, now: Moment) {
    if let Some(change) = &memory.switchover {
        let _ = write!(out, "planned {}", change.id);
        flag(out, change.is_restart, "restart");
        option(out, "stage", change.stage.map(stage_text));
        option(out, "ago", Some(seconds(now.since(change.since))));
        flag(out, change.was_streaming, "streamed");
        flag(out, change.is_rolled_back, "rolled_back");
        print_parts(out, &change.parts);
        out.push('\n');
    }
    if let Some(change) = &memory.unrecorded {
        let LeaderEpoch {
            generation,
            revision,
        } = change.epoch;
        let _ = write!(out, "unrecorded {generation}@{revision}");
        option(out, "from", change.from.as_ref());
        option(out, "to", Some(&change.to));
        print_parts(out, &change.parts);
        out.push('\n');
    }
}

/// A change as it is written down.
pub(super) struct Recorded<'a>(pub(super) &'a LeaderChange);

impl fmt::Display for Recorded<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let change = self.0;
        write!(f, "{}", change.epoch)?;
        if let Some(from) = &change.from {
            write!(f, " {from}")?;
        }
        write!(f, " to {}:", change.to)?;
        let parts = change.parts.named();
        let known = parts
            .iter()
            .filter_map(|(word, took)| Some((word, (*took)?)));
        known
            .into_iter()
            .try_for_each(|(word, took)| write!(f, " {word} {took:?}"))
    }
}
