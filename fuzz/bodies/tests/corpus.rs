//! The committed inputs of every fuzz target, on the stable toolchain.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::path::Path;

use trunkline_fuzz_bodies::TARGETS;

/// A corpus with fewer files than this was lost, or was not looked for in the right place.
const LEAST: usize = 40;

fn replay(target: &str) {
    let (_, body) = TARGETS
        .into_iter()
        .find(|(name, _)| *name == target)
        .unwrap();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../corpus");
    let mut files = 0;
    for entry in std::fs::read_dir(folder.join(target)).unwrap() {
        let path = entry.unwrap().path();
        let input = std::fs::read(&path).unwrap();
        let lived = std::panic::catch_unwind(|| body(&input));
        assert!(lived.is_ok(), "{} fails", path.display());
        files += 1;
    }
    assert!(files >= LEAST, "{target} has {files} inputs");
}

#[test]
fn startup_packets_of_the_corpus() {
    replay("startup");
}

#[test]
fn messages_of_the_corpus() {
    replay("framing");
}

#[test]
fn log_ins_of_the_corpus() {
    replay("scram");
}

#[test]
fn proxy_headers_of_the_corpus() {
    replay("proxy");
}

#[test]
fn records_of_the_corpus() {
    replay("records");
}

#[test]
fn files_of_the_corpus() {
    replay("config");
}

#[test]
fn every_target_has_its_program() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz_targets");
    let programs: BTreeSet<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned()))
        .collect();
    let targets: BTreeSet<String> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(programs, targets);
}
