//! The words for slots and standby clusters in scripts.

use std::fmt::Write as _;
use std::sync::Arc;

use trunkline_shared::cluster::settings::StandbyCluster;
use trunkline_shared::cluster::slots::{ClusterType, PermanentSlot, SlotKind, SlotPattern};
use trunkline_shared::cluster::topology::Status;
use trunkline_shared::cluster::{ClusterSettings, Lsn};

use super::ScriptError;
use super::words::Words;
use crate::decide::observation::{SlotView, SynchronizedSlots};

/// Every `slot=NAME` of an instance, with `@idle`, `@temporary`, `@failover`, `@synced`, `@lost`, `@xmin`, `@ready`,
/// `@logical:DATABASE:PLUGIN` and `@POSITION` after it.
pub(super) fn views(words: &Words<'_, '_>) -> Result<Vec<SlotView>, ScriptError> {
    words.all("slot").map(|text| view(words, text)).collect()
}

fn view(words: &Words<'_, '_>, text: &str) -> Result<SlotView, ScriptError> {
    let mut parts = text.split('@');
    let mut view = SlotView {
        name: Arc::from(parts.next().unwrap_or_default()),
        kind: SlotKind::Physical,
        position: Lsn(0),
        is_active: true,
        is_temporary: false,
        is_failover: false,
        is_synced: false,
        is_lost: false,
        has_xmin: false,
        is_ready: false,
    };
    for part in parts {
        match part {
            "idle" => view.is_active = false,
            "temporary" => view.is_temporary = true,
            "failover" => view.is_failover = true,
            "synced" => (view.is_failover, view.is_synced) = (true, true),
            "lost" => view.is_lost = true,
            "xmin" => view.has_xmin = true,
            "ready" => view.is_ready = true,
            other => match other.strip_prefix("logical:") {
                Some(of) => view.kind = logical(words, of)?,
                None => view.position = words.parse(other, "a property of a slot")?,
            },
        }
    }
    Ok(view)
}

fn logical(words: &Words<'_, '_>, text: &str) -> Result<SlotKind, ScriptError> {
    let (database, plugin) = text
        .split_once(':')
        .ok_or_else(|| words.wrong(text, "DATABASE:PLUGIN"))?;
    Ok(SlotKind::Logical {
        database: Arc::from(database),
        plugin: Arc::from(plugin),
    })
}

/// Prints one slot as [`views`] reads it.
/// `synchronized=SLOT,SLOT` of an instance, `synchronized=unset` where the agent has no file of it.
pub(super) fn synchronized(words: &Words<'_, '_>) -> SynchronizedSlots {
    match words.text("synchronized") {
        None => SynchronizedSlots::NotOurs,
        Some("unset") => SynchronizedSlots::Unset,
        Some(names) => {
            let names = names.split(',').filter(|name| !name.is_empty());
            SynchronizedSlots::Set(Arc::new(names.map(Arc::from).collect()))
        }
    }
}

pub(super) fn print_synchronized(out: &mut String, slots: &SynchronizedSlots) {
    match slots {
        SynchronizedSlots::NotOurs => {}
        SynchronizedSlots::Unset => out.push_str(" synchronized=unset"),
        SynchronizedSlots::Set(names) => {
            let names: Vec<&str> = names.iter().map(AsRef::as_ref).collect();
            let _ = write!(out, " synchronized=\"{}\"", names.join(","));
        }
    }
}

pub(super) fn print_view(out: &mut String, slot: &SlotView) {
    let _ = write!(out, " slot={}", slot.name);
    if let SlotKind::Logical { database, plugin } = &slot.kind {
        let _ = write!(out, "@logical:{database}:{plugin}");
    }
    for (is_so, word) in [
        (!slot.is_active, "idle"),
        (slot.is_temporary, "temporary"),
        (slot.is_failover && !slot.is_synced, "failover"),
        (slot.is_synced, "synced"),
        (slot.is_lost, "lost"),
        (slot.has_xmin, "xmin"),
        (slot.is_ready, "ready"),
    ] {
        if is_so {
            let _ = write!(out, "@{word}");
        }
    }
    if slot.position != Lsn(0) {
        let _ = write!(out, "@{}", slot.position);
    }
}

/// `status optime=P slot=NAME@P retain=NAME`
pub(super) fn status(words: &Words<'_, '_>) -> Result<Status, ScriptError> {
    let mut status = Status {
        optime: words.value("optime")?.unwrap_or_default(),
        ..Status::default()
    };
    for text in words.all("slot") {
        let (name, at) = text
            .split_once('@')
            .ok_or_else(|| words.wrong(text, "NAME@POSITION"))?;
        let at = words.parse(at, "a position")?;
        status.slots.insert(name.to_owned(), at);
    }
    let retain = words.all("retain").map(str::to_owned);
    status.retain_slots.extend(retain);
    Ok(status)
}

/// Prints the same words.
pub(super) fn print_status(out: &mut String, status: &Status) {
    let _ = write!(out, "status optime={}", status.optime);
    for (name, at) in &status.slots {
        let _ = write!(out, " slot={name}@{at}");
    }
    for name in &status.retain_slots {
        let _ = write!(out, " retain={name}");
    }
    out.push('\n');
}

/// `permanent NAME [database=D plugin=P] [cluster_type=primary]`
pub(super) fn permanent(s: &mut ClusterSettings, words: &Words<'_, '_>) -> Result<(), ScriptError> {
    let name = words.first().unwrap_or_default();
    let kind = match (words.text("database"), words.text("plugin")) {
        (Some(database), Some(plugin)) => SlotKind::Logical {
            database: Arc::from(database),
            plugin: Arc::from(plugin),
        },
        _ => SlotKind::Physical,
    };
    let only_in = match words.text("cluster_type") {
        None => None,
        Some("primary") => Some(ClusterType::Primary),
        Some("standby") => Some(ClusterType::Standby),
        Some(other) => return Err(words.wrong(other, "primary or standby")),
    };
    let slot = PermanentSlot {
        kind,
        only_in,
        is_failover: words.has("failover"),
    };
    s.slots.insert(name.to_owned(), slot);
    Ok(())
}

/// `ignore [name=N] [type=logical] [database=D] [plugin=P]`
pub(super) fn ignore(s: &mut ClusterSettings, words: &Words<'_, '_>) -> Result<(), ScriptError> {
    let own = |key: &str| words.text(key).map(str::to_owned);
    s.ignore_slots.push(SlotPattern {
        name: own("name"),
        is_logical: words.text("type").map(|kind| kind == "logical"),
        database: own("database"),
        plugin: own("plugin"),
    });
    Ok(())
}

/// `standby_cluster [host=H] [port=P] [slot=S] [restore_command=C]`, or `standby_cluster none`
pub(super) fn standby_cluster(
    words: &Words<'_, '_>,
) -> Result<Option<Arc<StandbyCluster>>, ScriptError> {
    if words.has("none") {
        return Ok(None);
    }
    let own = |key: &str| words.text(key).map(str::to_owned);
    Ok(Some(Arc::new(StandbyCluster {
        host: own("host"),
        port: words.value("port")?.unwrap_or(5432),
        primary_slot_name: own("slot"),
        restore_command: own("restore_command"),
        archive_cleanup_command: None,
        recovery_min_apply_delay: None,
        create_replica_methods: Vec::new(),
    })))
}

/// Prints the lines of permanent and ignored slots and of the standby cluster, after an open line.
pub(super) fn print_settings(out: &mut String, s: &ClusterSettings) {
    for (name, slot) in &s.slots {
        let _ = write!(out, "\npermanent {name}");
        if let SlotKind::Logical { database, plugin } = &slot.kind {
            let _ = write!(out, " database={database} plugin={plugin}");
        }
        match slot.only_in {
            None => {}
            Some(ClusterType::Primary) => out.push_str(" cluster_type=primary"),
            Some(ClusterType::Standby) => out.push_str(" cluster_type=standby"),
        }
        if slot.is_failover {
            out.push_str(" failover");
        }
    }
    for pattern in &s.ignore_slots {
        out.push_str("\nignore");
        let kind = pattern
            .is_logical
            .map(|is| if is { "logical" } else { "physical" });
        for (key, value) in [
            ("name", pattern.name.as_deref()),
            ("type", kind),
            ("database", pattern.database.as_deref()),
            ("plugin", pattern.plugin.as_deref()),
        ] {
            if let Some(value) = value {
                let _ = write!(out, " {key}={value}");
            }
        }
    }
    if let Some(remote) = &s.standby_cluster {
        let _ = write!(out, "\nstandby_cluster port={}", remote.port);
        for (key, value) in [
            ("host", &remote.host),
            ("slot", &remote.primary_slot_name),
            ("restore_command", &remote.restore_command),
        ] {
            if let Some(value) = value {
                let _ = write!(out, " {key}=\"{}\"", value.replace(['"', '\\', '\n'], " "));
            }
        }
    }
}
