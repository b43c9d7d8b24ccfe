//! A member's file over what the cluster's configuration says to every member: Patroni's layers. A key of
//! `postgresql` that stands in both is the file's, whole; parameters, `pg_hba` and the like, which are put
//! together value by value, have their rules in [`super::layers`] and where the server's configuration is made.

use std::fmt;
use std::sync::Arc;

use serde_json::{Map, Value as Json};
use trunkline_shared::cluster::ClusterSettings;

use super::document::{Entry, Node, Origin, Value};
use super::dynamic::OF_A_MEMBER;
use super::section::{Report, Section};
use super::{AgentConfig, Mistake, PostgresqlConfig, masked, postgresql};

/// A document as it was read. It may hold secrets, so it does not show itself.
#[derive(Clone)]
pub struct Source(pub(super) Arc<Node>);

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Source")
    }
}

impl Source {
    /// Where a key stands, with dots between the levels; the nearest level that is there.
    pub fn origin(&self, key: &str) -> Origin {
        let mut node = self.0.as_ref();
        for part in key.split('.') {
            match node.child(part) {
                Some(child) => node = child,
                None => break,
            }
        }
        node.origin.clone()
    }

    /// Whether a key stands anywhere.
    pub fn has(&self, key: &str) -> bool {
        let mut parts = key.split('.');
        let found = parts.try_fold(self.0.as_ref(), |node, part| node.child(part));
        found.is_some_and(|node| !node.is_null())
    }

    /// All of it as YAML, secrets masked.
    pub fn yaml(&self) -> String {
        let json = masked::json(&self.0);
        serde_saphyr::to_string(&json).unwrap_or_else(|_| json.to_string())
    }
}

const SECTION: &str = "postgresql";

impl AgentConfig {
    /// This over the settings of the cluster. What cannot be used there is returned; then this stands alone.
    pub fn over(&self, settings: &ClusterSettings) -> (Self, Vec<Mistake>) {
        if settings.of_members.is_empty() {
            return (self.clone(), Vec::new());
        }
        let document = laid_over(&self.source.0, &settings.of_members);
        let report = Report::new(&document);
        let root = Section::root(&document, &report);
        let read = postgresql::read(&root.section(SECTION));
        let (mistakes, _) = report.into_parts();
        let mut config = self.clone();
        if let Some(read) = read.filter(|_| mistakes.is_empty()) {
            let own = &self.postgresql;
            config.postgresql = PostgresqlConfig {
                // The file may have been read again since: these change with a restart of the agent only.
                listen: own.listen.clone(),
                connect_address: own.connect_address.clone(),
                data_dir: own.data_dir.clone(),
                config_dir: own.config_dir.clone(),
                ..read
            };
        }
        (config, mistakes)
    }
}

/// The file with those keys of the cluster's section that it does not have itself.
pub(super) fn laid_over(file: &Node, of_members: &Map<String, Json>) -> Node {
    let mut document = file.clone();
    let Value::Map(sections) = &mut document.value else {
        return document;
    };
    let below = Node::from_json(&Json::Object(of_members.clone()), &Origin::Dynamic);
    let Value::Map(below) = below.value else {
        return document;
    };
    let own = sections.iter_mut().find(|entry| entry.key == SECTION);
    match own.map(|entry| &mut entry.node.value) {
        Some(Value::Map(own)) => {
            let missing: Vec<Entry> = below
                .into_iter()
                .filter(|entry| !OF_A_MEMBER.contains(&entry.key.as_str()))
                .filter(|entry| !own.iter().any(|known| known.key == entry.key))
                .collect();
            own.extend(missing);
        }
        // A file without the section is not usable, and was refused.
        Some(Value::Scalar(_) | Value::List(_)) | None => {}
    }
    document
}
