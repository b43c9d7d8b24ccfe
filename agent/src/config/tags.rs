//! `tags:`

use trunkline_shared::cluster::{MemberName, Tags};

use super::Warning;
use super::section::Section;

/// Reads the section. Tags of no meaning to the agent are kept: health checks and `list` show them.
pub fn read(section: &Section<'_>) -> Tags {
    let nofailover = section.boolean("nofailover");
    let priority = section
        .integer("failover_priority", 0, i64::from(u32::MAX))
        .and_then(|p| u32::try_from(p).ok());
    let contradicts = match (nofailover, priority) {
        (Some(true), Some(p)) => p > 0,
        (Some(false), Some(p)) => p == 0,
        (None, _) | (_, None) => false,
    };
    if contradicts && let Some(node) = section.find("failover_priority") {
        section.report().warn(Warning::Contradiction {
            origin: node.origin.clone(),
            key: "tags.failover_priority".to_owned(),
            done: "contradicts tags.nofailover, which holds".to_owned(),
        });
    }
    let mut tags = Tags {
        nofailover: nofailover.unwrap_or(false),
        failover_priority: if contradicts { None } else { priority },
        noloadbalance: section.boolean("noloadbalance").unwrap_or(false),
        clonefrom: section.boolean("clonefrom").unwrap_or(false),
        nosync: section.boolean("nosync").unwrap_or(false),
        replicatefrom: section
            .text("replicatefrom")
            .filter(|name| !name.is_empty())
            .map(|name| MemberName::new(&name)),
        custom: Default::default(),
    };
    section.not_acted_on(&["replicatefrom", "nostream", "sync_priority"]);
    let known = [
        "nofailover",
        "failover_priority",
        "noloadbalance",
        "clonefrom",
        "nosync",
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
