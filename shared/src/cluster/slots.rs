//! Replication slots as the dynamic configuration speaks of them.

use std::sync::Arc;

/// What a replication slot is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SlotKind {
    /// WAL as it is, for a standby or an archiver.
    Physical,
    /// Decoded changes.
    Logical {
        /// The database whose changes are decoded.
        database: Arc<str>,
        /// The output plugin.
        plugin: Arc<str>,
    },
}

/// Which kind of cluster a permanent slot belongs to (`cluster_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClusterType {
    /// One that accepts writes.
    Primary,
    /// A standby cluster.
    Standby,
}

/// A slot that outlives its user (an entry of `slots`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PermanentSlot {
    /// What it is for.
    pub kind: SlotKind,
    /// The only kind of cluster it exists in; `None` is both.
    pub only_in: Option<ClusterType>,
    /// PostgreSQL itself keeps it on standbys, where it can (17 and later).
    pub is_failover: bool,
}

/// Slots that nobody may touch (an entry of `ignore_slots`): every property that is given must match.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct SlotPattern {
    /// The slot's name.
    pub name: Option<String>,
    /// Whether it is logical.
    pub is_logical: Option<bool>,
    /// The database of a logical slot.
    pub database: Option<String>,
    /// The output plugin of a logical slot.
    pub plugin: Option<String>,
}

impl SlotPattern {
    /// Whether the slot of this name and kind is meant.
    pub fn matches(&self, name: &str, kind: &SlotKind) -> bool {
        let (database, plugin) = match kind {
            SlotKind::Physical => (None, None),
            SlotKind::Logical { database, plugin } => (Some(&**database), Some(&**plugin)),
        };
        self.name.as_deref().is_none_or(|wanted| wanted == name)
            && self
                .is_logical
                .is_none_or(|wanted| wanted == database.is_some())
            && (self.database.is_none() || self.database.as_deref() == database)
            && (self.plugin.is_none() || self.plugin.as_deref() == plugin)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_matches_only_where_all_it_says_is_so() {
        let logical = SlotKind::Logical {
            database: "app".into(),
            plugin: "wal2json".into(),
        };
        let pattern = SlotPattern {
            database: Some("app".to_owned()),
            plugin: Some("wal2json".to_owned()),
            ..SlotPattern::default()
        };
        assert!(pattern.matches("x", &logical));
        assert!(!pattern.matches("x", &SlotKind::Physical));
        let named = SlotPattern {
            name: Some("y".to_owned()),
            ..pattern
        };
        assert!(!named.matches("x", &logical));
        let physical = SlotPattern {
            is_logical: Some(false),
            ..SlotPattern::default()
        };
        assert!(physical.matches("x", &SlotKind::Physical));
        assert!(!physical.matches("x", &logical));
    }
}
