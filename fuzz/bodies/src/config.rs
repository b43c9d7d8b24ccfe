//! Every file that an operator writes: read or refused with a reason, and what is made of it is read by the next.

use std::path::Path;

use serde_json::Value;
use trunkline_agent::config::{dynamic, examine_text};
use trunkline_agent::ctl::import::translated;
use trunkline_agent::ctl::yaml;
use trunkline_router::auth::Method;
use trunkline_router::auth::hba::{Asking, Hba};
use trunkline_router::auth::ident::Ident;
use trunkline_router::auth::users::{MAX_NAME, Users};
use trunkline_router::config::RouterConfig;
use trunkline_router::config::pattern::Pattern;
use trunkline_shared::cluster::quantity;
use trunkline_shared::service::config_file::{self, Document};

use crate::draw::Draw;

/// Looks at a file.
pub fn run(data: &[u8]) {
    let mut draw = Draw::new(data);
    let kind = draw.below(10);
    let rest = draw.rest();
    let text = String::from_utf8_lossy(rest);
    match kind {
        0 | 1 => router(&text),
        2 | 3 => agent(&text),
        4 | 5 => imported(&text),
        6 => rules(&text),
        7 => users(&text),
        8 => {
            if let Ok(value) = serde_json::from_str(&text) {
                as_yaml(&value);
            }
        }
        _ => words(rest, &text),
    }
}

fn router(text: &str) {
    match RouterConfig::parse(text) {
        Ok(config) => assert!(config.needs_restart(&config.clone()).is_empty()),
        Err(mistakes) => {
            assert!(!mistakes.is_empty(), "refused without a reason");
            for mistake in mistakes {
                assert!(!mistake.to_string().is_empty());
            }
        }
    }
}

fn agent(text: &str) {
    let examined = examine_text(text);
    assert!(
        examined.config.is_some() || !examined.mistakes.is_empty(),
        "refused without a reason"
    );
    for mistake in &examined.mistakes {
        assert!(!mistake.to_string().is_empty());
    }
    for warning in &examined.warnings {
        assert!(!warning.to_string().is_empty());
    }
}

/// What is made of another program's file is YAML, however its names and values look.
fn imported(text: &str) {
    let scopes = ["demo".to_owned()];
    if let Ok(file) = translated(text, &scopes) {
        let read = Document::parse(Path::new("router.yml"), &file);
        assert!(read.is_ok(), "{:?}\n{file}", read.err());
        router(&file);
    }
}

/// Nobody is let in by rules that do not fit.
fn rules(text: &str) {
    if let Ok(hba) = Hba::parse(text) {
        for (database, user) in [(Some("app"), "app"), (Some("other"), "app"), (None, "app")] {
            for address in ["127.0.0.1", "10.1.2.3", "::1"] {
                let Ok(address) = address.parse() else {
                    continue;
                };
                for is_encrypted in [false, true] {
                    let asking = Asking {
                        address,
                        is_encrypted,
                        database,
                        user,
                    };
                    let verdict = hba.verdict(&asking);
                    assert!(verdict.is_some() || hba.map(&asking).is_none());
                }
            }
        }
        hba.uses(Method::Cert);
    }
    if let Ok(ident) = Ident::parse(text) {
        let maps: Vec<&str> = text.split_whitespace().take(3).collect();
        for map in maps {
            assert!(ident.has(map) || !ident.allows(map, "app", "app"));
        }
    }
}

fn users(text: &str) {
    match Users::parse(text) {
        Ok(users) => {
            let lines = text.lines().count();
            assert!(users.names().count() <= lines);
            for name in users.names() {
                assert!(name.len() <= MAX_NAME && users.find(name).is_some());
            }
        }
        Err(bad) => {
            assert!((1..=text.lines().count()).contains(&bad.line));
            // A line holds a secret, and is not shown.
            let line = text.lines().nth(bad.line - 1).unwrap_or_default();
            assert!(line.len() < 20 || !bad.to_string().contains(line));
        }
    }
}

/// What is shown as YAML is that value, in both forms.
fn as_yaml(value: &Value) {
    for text in [yaml::block(value), yaml::flow(value)] {
        let read = config_file::parse::<Value>(Path::new("x.yml"), &text);
        assert!(read.is_ok(), "{:?}\n{text}", read.err());
        assert_eq!(read.ok().as_ref(), Some(value), "{text}");
    }
}

/// Quantities, patterns of names, the dynamic configuration.
fn words(bytes: &[u8], text: &str) {
    // Of longer ones not every microsecond is a number that is read.
    let short = quantity::duration(text).filter(|duration| duration.as_secs() < 100_000);
    if let Some(duration) = short {
        let again = quantity::duration(&format!("{}us", duration.as_micros()));
        assert_eq!(
            again.map(|again| again.as_micros()),
            Some(duration.as_micros())
        );
    }
    if let Some(size) = quantity::bytes(text) {
        // Above that not every number of bytes is one of those that are read.
        let is_exact = size <= 1 << 53;
        assert!(!is_exact || quantity::bytes(&size.to_string()) == Some(size));
    }
    quantity::boolean(text);
    let (pattern, name) = text.split_at(text.find(' ').unwrap_or(text.len()));
    let pattern = Pattern::new(pattern);
    if let Some(taken) = pattern.taken(name.trim_start()) {
        assert_eq!(taken.len(), pattern.stars());
        assert_eq!(pattern.filled(&taken), name.trim_start());
        assert!(pattern.matches(name.trim_start()));
        // It costs the product of both lengths.
        assert!(text.len() > 500 || pattern.overlaps(&Pattern::new(name.trim_start())));
    }
    dynamic::unread(text);
    dynamic::unusable(text);
    if let Ok(value) = serde_json::from_slice::<Value>(bytes) {
        as_yaml(&value);
    }
}
