//! `tags:`

use trunkline_shared::cluster::{MemberName, Tags};

use super::Warning;
use super::section::Section;

/// Reads the section. Tags of no meaning to the agent are kept: health checks and `list` show them.
pub fn read(section: &Section<'_>) -> Tags {
    let (nofailover, failover_priority) =
        flag_and_priority(section, "nofailover", "failover_priority");
    let (nosync, sync_priority) = flag_and_priority(section, "nosync", "sync_priority");
    let mut tags = Tags {
        nofailover,
        failover_priority,
        noloadbalance: section.boolean("noloadbalance").unwrap_or(false),
        clonefrom: section.boolean("clonefrom").unwrap_or(false),
        nosync,
        sync_priority,
        nostream: section.boolean("nostream").unwrap_or(false),
        replicatefrom: section
            .text("replicatefrom")
            .filter(|name| !name.is_empty())
            .map(|name| MemberName::new(&name)),
        custom: Default::default(),
    };
    let known = [
        "nofailover",
        "failover_priority",
        "noloadbalance",
        "clonefrom",
        "nosync",
        "sync_priority",
        "nostream",
        "replicatefrom",
    ];
    for entry in section.entries() {
        if !known.contains(&entry.key.as_str()) {
            tags.custom
                .insert(entry.key.clone(), entry.node.to_json().to_string());
        }
    }
    tags
}

/// A flag that forbids and the priority beside it; where they contradict each other the flag holds.
fn flag_and_priority(
    section: &Section<'_>,
    flag: &'static str,
    priority: &'static str,
) -> (bool, Option<u32>) {
    let is_forbidden = section.boolean(flag);
    // Below 0 means what 0 means: never.
    let number = section
        .integer(priority, i64::MIN, i64::from(u32::MAX))
        .and_then(|p| u32::try_from(p.max(0)).ok());
    let contradicts = match (is_forbidden, number) {
        (Some(true), Some(p)) => p > 0,
        (Some(false), Some(p)) => p == 0,
        (None, _) | (_, None) => false,
    };
    if contradicts && let Some(node) = section.find(priority) {
        section.report().warn(Warning::Contradiction {
            origin: node.origin.clone(),
            key: format!("tags.{priority}"),
            done: format!("contradicts tags.{flag}, which holds"),
        });
    }
    (
        is_forbidden.unwrap_or(false),
        if contradicts { None } else { number },
    )
}
