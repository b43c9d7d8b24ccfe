//! The router's file in the making. Pure.

use serde_json::{Value, json};

use super::super::yaml;
use super::notes::Notes;

/// The sections in the order in which they are written.
const SECTIONS: [&str; 14] = [
    "namespace",
    "etcd3",
    "ctl",
    "log",
    "http",
    "admin",
    "listeners",
    "auth",
    "tls",
    "pool",
    "databases",
    "users",
    "replicas",
    "switchover",
];

/// What is made of a file.
#[derive(Debug, Default)]
pub struct Translation {
    /// The router's file.
    pub file: RouterFile,
    /// What has no equivalent.
    pub notes: Notes,
}

/// What will stand in it.
#[derive(Debug, Default)]
pub struct RouterFile(Value);

impl RouterFile {
    /// Sets a key, as a path of names (`tls.client.mode`). The first name is a section of the file.
    pub fn set(&mut self, path: &str, value: Value) {
        let names: Vec<&str> = path.split('.').collect();
        self.put(&names, value);
    }

    /// The same by names that may hold a dot.
    pub fn put(&mut self, names: &[&str], value: Value) {
        let mut at = &mut self.0;
        for name in names {
            at = &mut at[*name];
        }
        *at = value;
    }

    /// Adds a listener.
    pub fn listener(&mut self, listener: Value) {
        let all = &mut self.0["listeners"];
        match all {
            Value::Array(all) => all.push(listener),
            _ => *all = json!([listener]),
        }
    }

    /// The text, section by section.
    pub fn text(&self, source: &str) -> String {
        let mut text = format!(
            "# Made of {source} by trunkline import, which told what has no equivalent here.\n"
        );
        for section in SECTIONS {
            if let Some(value) = self.0.get(section) {
                text.push('\n');
                text.push_str(&yaml::block(&json!({ section: value })));
            }
        }
        text
    }
}
