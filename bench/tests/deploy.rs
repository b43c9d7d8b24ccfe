//! The files people copy are well formed and say what the programs rely on.

#![expect(clippy::panic, reason = "a test tells and fails so")]

use std::collections::BTreeMap;
use std::path::PathBuf;

fn read(path: &str) -> String {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
    let file = root.join("deploy").join(path);
    std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

/// Section, key and value of each line; a line that is none of the three, a comment or empty, is a mistake.
fn unit(path: &str) -> BTreeMap<(String, String), String> {
    let mut section = String::new();
    let mut entries = BTreeMap::new();
    for (number, line) in read(path).lines().enumerate() {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(name) = line
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
        {
            section = name.to_owned();
            continue;
        }
        let (key, value) = line
            .split_once('=')
            .unwrap_or_else(|| panic!("{path}:{}: {line}", number + 1));
        let former = entries.insert((section.clone(), key.to_owned()), value.to_owned());
        assert!(
            former.is_none(),
            "{path}:{}: {key} is set twice",
            number + 1
        );
    }
    entries
}

fn expect(unit: &BTreeMap<(String, String), String>, wanted: &[(&str, &str, &str)]) {
    for (section, key, value) in wanted {
        let found = unit.get(&((*section).to_owned(), (*key).to_owned()));
        assert_eq!(found.map(String::as_str), Some(*value), "[{section}] {key}");
    }
}

#[test]
fn the_agents_unit_leaves_postgresql_alone_when_the_agent_ends() {
    expect(
        &unit("systemd/trunkline-agent.service"),
        &[
            ("Unit", "StartLimitIntervalSec", "0"),
            ("Service", "User", "postgres"),
            ("Service", "KillMode", "process"),
            ("Service", "OOMPolicy", "continue"),
            ("Service", "Restart", "always"),
            ("Service", "RestartSec", "100ms"),
            ("Service", "RuntimeDirectory", "trunkline"),
            ("Service", "RuntimeDirectoryPreserve", "yes"),
            ("Install", "WantedBy", "multi-user.target"),
        ],
    );
}

#[test]
fn the_routers_unit_has_a_user_of_its_own() {
    expect(
        &unit("systemd/trunkline-router.service"),
        &[
            ("Unit", "StartLimitIntervalSec", "0"),
            ("Service", "User", "trunkline-router"),
            ("Service", "Restart", "always"),
            ("Install", "WantedBy", "multi-user.target"),
        ],
    );
}
