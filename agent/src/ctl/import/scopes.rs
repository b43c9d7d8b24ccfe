//! Which cluster is behind an address of the file. Pure.

use std::collections::{BTreeMap, BTreeSet};

/// Where clients are led.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Destination {
    /// The cluster.
    pub scope: String,
    /// Its replicas, not its leader.
    pub is_replicas: bool,
}

impl Destination {
    fn parse(text: &str) -> Option<Self> {
        let (scope, is_replicas) = match text.split_once('/') {
            None => (text, false),
            Some((scope, "primary")) => (scope, false),
            Some((scope, "replicas")) => (scope, true),
            Some(_) => return None,
        };
        (!scope.is_empty()).then(|| Self {
            scope: scope.to_owned(),
            is_replicas,
        })
    }

    /// As a listener has it.
    pub fn target(&self) -> &'static str {
        match self.is_replicas {
            true => "replicas",
            false => "primary",
        }
    }
}

/// What the operator said of it.
#[derive(Debug, Default)]
pub struct Scopes {
    of: BTreeMap<String, Destination>,
    rest: Option<Destination>,
    used: BTreeSet<String>,
}

impl Scopes {
    /// Reads `[WHAT=]CLUSTER[/replicas]`; `default` is behind what none of them names.
    ///
    /// # Errors
    /// One that cannot be read, or two that contradict each other.
    pub fn parse(words: &[String], default: Option<&str>) -> Result<Self, String> {
        let mut own = Self::default();
        for word in words {
            let (what, cluster) = match word.split_once('=') {
                Some((what, cluster)) => (Some(what), cluster),
                None => (None, word.as_str()),
            };
            let wrong = |why: &str| Err(format!("--scope {word}: {why}"));
            let Some(destination) = Destination::parse(cluster) else {
                return wrong("CLUSTER, HOST=CLUSTER or HOST=CLUSTER/replicas is allowed");
            };
            let before = match what {
                Some(what) => own.of.insert(what.to_owned(), destination),
                None => own.rest.replace(destination),
            };
            if before.is_some() {
                return wrong("it is named twice");
            }
        }
        let default = default.and_then(Destination::parse);
        own.rest = own.rest.or(default);
        Ok(own)
    }

    /// The destination of the first name that was spoken of, else of everything else.
    pub fn of(&mut self, names: &[String]) -> Option<Destination> {
        for name in names {
            if let Some(found) = self.of.get(name) {
                self.used.insert(name.clone());
                return Some(found.clone());
            }
        }
        self.rest.clone()
    }

    /// What was spoken of and is not there.
    pub fn unused(&self) -> Vec<&str> {
        let names = self.of.keys().map(String::as_str);
        names.filter(|name| !self.used.contains(*name)).collect()
    }
}
