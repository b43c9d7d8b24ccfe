//! The words for the DCS itself in scripts.

use std::fmt::Write as _;
use std::sync::Arc;

use trunkline_shared::cluster::store::Authority;
use trunkline_shared::cluster::topology::Initialize;
use trunkline_shared::cluster::{MemberName, SystemId};

use super::ScriptError;
use super::words::Words;
use crate::decide::memory::Memory;
use crate::decide::store::{Doubt, PeerStore, Shown, StoreView};

/// `store`: its `cluster`, `revision` and `generation`, `written=SYNC.TIMELINE.FAILSAFE`, `knew_others`, `unproved`; not
/// believed with `doubted=WHY`, and what it shows with `shows_generation`, `shows_leader` and `shows_initialize`.
pub(super) fn view(words: &Words<'_, '_>) -> Result<StoreView, ScriptError> {
    let shown = match words.value("shows_generation")? {
        None => None,
        Some(generation) => Some(Shown {
            generation,
            leader: words.text("shows_leader").map(MemberName::new),
            initialize: match words.text("shows_initialize") {
                None | Some("absent") => Initialize::Absent,
                Some("running") => Initialize::Running,
                Some(id) => Initialize::Done(SystemId(words.parse(id, "a system identifier")?)),
            },
        }),
    };
    Ok(StoreView {
        cluster_id: words.value("cluster")?.unwrap_or(0),
        revision: words.value("revision")?.unwrap_or(0),
        generation: words.value("generation")?.unwrap_or(0),
        knew_others: words.has("knew_others"),
        authority: match words.text("written") {
            Some(text) => authority(words, text)?,
            None => Authority::default(),
        },
        is_unproved: words.has("unproved"),
        doubt: words.text("doubted").map(|why| Doubt {
            why: why.into(),
            before: Arc::default(),
            shown,
        }),
    })
}

/// Prints the same words.
pub(super) fn print(out: &mut String, store: &StoreView) {
    if *store == StoreView::default() {
        return;
    }
    let _ = write!(
        out,
        "store cluster={} revision={} generation={}",
        store.cluster_id, store.revision, store.generation
    );
    print_authority(out, " written=", &store.authority);
    if store.knew_others {
        out.push_str(" knew_others");
    }
    if store.is_unproved {
        out.push_str(" unproved");
    }
    if let Some(doubt) = &store.doubt {
        let _ = write!(
            out,
            " doubted=\"{}\"",
            doubt.why.replace(['"', '\\', '\n'], " ")
        );
        if let Some(shown) = &doubt.shown {
            let _ = write!(out, " shows_generation={}", shown.generation);
            if let Some(leader) = &shown.leader {
                let _ = write!(out, " shows_leader={leader}");
            }
            let _ = match shown.initialize {
                Initialize::Absent => write!(out, " shows_initialize=absent"),
                Initialize::Running => write!(out, " shows_initialize=running"),
                Initialize::Done(id) => write!(out, " shows_initialize={id}"),
            };
        }
    }
    out.push('\n');
}

/// A peer's: `storeCLUSTER.REVISION.GENERATION`, with `writtenSYNC.TIMELINE.FAILSAFE`, `doubts`, `hears` the DCS, `unproved`.
pub(super) fn of_peer(
    words: &Words<'_, '_>,
    rest: &[&str],
) -> Result<Option<PeerStore>, ScriptError> {
    let Some(text) = rest.iter().find_map(|word| word.strip_prefix("store")) else {
        return Ok(None);
    };
    let wrong = || words.wrong(text, "CLUSTER.REVISION.GENERATION");
    let (cluster, numbers) = text.split_once('.').ok_or_else(wrong)?;
    let (revision, generation) = numbers.split_once('.').ok_or_else(wrong)?;
    Ok(Some(PeerStore {
        cluster_id: words.parse(cluster, "a number")?,
        revision: words.parse(revision, "a number")?,
        generation: words.parse(generation, "a number")?,
        authority: match rest.iter().find_map(|word| word.strip_prefix("written")) {
            Some(text) => authority(words, text)?,
            None => Authority::default(),
        },
        is_doubted: rest.contains(&"doubts"),
        is_fresh: rest.contains(&"hears"),
        is_unproved: rest.contains(&"unproved"),
    }))
}

/// `contradicted_by=MEMBER@` with the words of a peer's store.
pub(super) fn contradiction(
    words: &Words<'_, '_>,
) -> Result<Option<(MemberName, PeerStore)>, ScriptError> {
    let Some((name, rest)) = words
        .text("contradicted_by")
        .and_then(|t| t.split_once('@'))
    else {
        return Ok(None);
    };
    let rest: Vec<&str> = rest.split('@').collect();
    Ok(of_peer(words, &rest)?.map(|store| (MemberName::new(name), store)))
}

/// Prints the same words.
pub(super) fn print_contradiction(out: &mut String, memory: &Memory) {
    if let Some((name, store)) = &memory.contradicted_by {
        let _ = write!(out, " contradicted_by={name}");
        print_peer(out, Some(*store));
    }
}

fn authority(words: &Words<'_, '_>, text: &str) -> Result<Authority, ScriptError> {
    let wrong = || words.wrong(text, "SYNC.TIMELINE.FAILSAFE");
    let (sync, others) = text.split_once('.').ok_or_else(wrong)?;
    let (timeline, failsafe) = others.split_once('.').ok_or_else(wrong)?;
    Ok(Authority {
        sync: words.parse(sync, "a revision")?,
        timeline: words.parse(timeline, "a revision")?,
        failsafe: words.parse(failsafe, "a revision")?,
    })
}

fn print_authority(out: &mut String, word: &str, of: &Authority) {
    if *of != Authority::default() {
        let _ = write!(out, "{word}{}.{}.{}", of.sync, of.timeline, of.failsafe);
    }
}

/// Prints the same words.
pub(super) fn print_peer(out: &mut String, store: Option<PeerStore>) {
    let Some(store) = store else {
        return;
    };
    let _ = write!(
        out,
        "@store{}.{}.{}",
        store.cluster_id, store.revision, store.generation
    );
    print_authority(out, "@written", &store.authority);
    for (is_set, word) in [
        (store.is_doubted, "@doubts"),
        (store.is_fresh, "@hears"),
        (store.is_unproved, "@unproved"),
    ] {
        if is_set {
            out.push_str(word);
        }
    }
}
