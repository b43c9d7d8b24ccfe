//! The files people copy are well formed and say what the programs rely on.

#![expect(clippy::panic, reason = "a test tells and fails so")]

use std::collections::BTreeMap;
use std::path::PathBuf;

use trunkline_router::config::RouterConfig;
use trunkline_shared::service::config_file;

fn file(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../deploy")
        .join(path)
}

fn read(path: &str) -> String {
    let file = file(path);
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

/// The files that `trunkline import` made for its tests: the router reads each of them.
#[test]
fn a_router_takes_what_trunkline_import_writes() {
    let cases = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../agent/tests/import");
    let folders = std::fs::read_dir(&cases).unwrap_or_else(|error| panic!("{error}"));
    let mut read = 0;
    for folder in folders {
        let folder = folder.unwrap_or_else(|error| panic!("{error}")).path();
        let Ok(text) = std::fs::read_to_string(folder.join("router.yml")) else {
            continue;
        };
        // A file of users is the operator's to give.
        let text = match text.contains("auth:") && !text.contains("  file:") {
            true => text.replace("auth:\n", "auth:\n  file: users\n"),
            false => text,
        };
        if let Err(mistakes) = RouterConfig::parse(&text) {
            panic!("{}: {mistakes:?}", folder.display());
        }
        read += 1;
    }
    assert!(read >= 5, "{read}");
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

/// The programs themselves check the values (`--validate-config`, `--validate`); here the form is, and that
/// what the guide speaks of is there.
#[test]
fn the_example_files_are_yaml_and_name_what_the_guide_speaks_of() {
    let agent: serde_json::Value = config_file::read(&file("config/agent.yml")).unwrap();
    for key in ["scope", "namespace", "name"] {
        assert!(agent[key].is_string(), "{key}");
    }
    assert_eq!(
        agent["etcd3"]["hosts"]
            .as_str()
            .map(|hosts| hosts.split(',').count()),
        Some(3)
    );
    let dcs = &agent["bootstrap"]["dcs"];
    let seconds = |key: &str| dcs[key].as_u64().unwrap();
    assert!(seconds("loop_wait") + 2 * seconds("retry_timeout") <= seconds("ttl"));
    assert_eq!(agent["trunkline"]["run_dir"], "/run/trunkline");
    let router: serde_json::Value = config_file::read(&file("config/router.yml")).unwrap();
    let targets: Vec<_> = router["listeners"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["target"].clone())
        .collect();
    assert_eq!(targets, ["primary", "replicas"]);
    assert_eq!(router["namespace"], agent["namespace"]);
}
