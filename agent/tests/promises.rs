//! `PROMISES.md` names only proofs that exist, and no promise stands there without one.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};

/// The repository.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .into()
}

/// The rows of the tables that have a promise and a proof: line number, promise, proof.
fn rows(text: &str) -> Vec<(usize, &str, &str)> {
    let (mut rows, mut is_promises) = (Vec::new(), false);
    for (index, line) in text.lines().enumerate() {
        let cells: Vec<_> = line.split('|').map(str::trim).collect();
        match cells[..] {
            ["", "Promise", "Proof", ""] => is_promises = true,
            ["", "---", "---", ""] => {}
            ["", promise, proof, ""] if is_promises => rows.push((index + 1, promise, proof)),
            _ => is_promises = false,
        }
    }
    rows
}

/// The names between backticks that are proofs.
fn proofs(cell: &str) -> Vec<&str> {
    let quoted = cell.split('`').skip(1).step_by(2);
    quoted
        .filter(|name| name.contains('/') || name.contains('#'))
        .collect()
}

/// Does the proof exist? Every form of name has one place to look.
fn exists(root: &Path, proof: &str) -> bool {
    let read = |file: &str| fs::read_to_string(root.join(file)).unwrap_or_default();
    if let Some((file, test)) = proof.split_once('#') {
        return read(file).contains(&format!("fn {test}("));
    }
    let Some((kind, name)) = proof.split_once('/') else {
        return false;
    };
    match kind {
        "decide" | "config" => root.join("agent/tests").join(kind).join(name).is_file(),
        "simulation" => sources(&root.join("bench/src/simulation"), "invariants")
            .contains(&format!("    {name},\n")),
        "break" => {
            sources(&root.join("bench/src/simulation"), "breaks").contains(&format!("\"{name}\""))
        }
        "scenario" => read("bench/src/failover/scenario.rs")
            .contains(&format!("Scenario::{}", camel_case(name))),
        "beside" => read("bench/src/patroni.rs").contains(&format!("    {},\n", camel_case(name))),
        _ => false,
    }
}

/// The text of a module: its file and those of its folder.
fn sources(folder: &Path, module: &str) -> String {
    let below = fs::read_dir(folder.join(module)).into_iter().flatten();
    let files = below.flatten().map(|entry| entry.path());
    let all = files.chain([folder.join(format!("{module}.rs"))]);
    all.filter_map(|file| fs::read_to_string(file).ok())
        .collect()
}

fn camel_case(words: &str) -> String {
    let word = |word: &str| word[..1].to_uppercase() + &word[1..];
    words.split('-').map(word).collect()
}

#[test]
fn every_promise_names_a_proof_that_exists_or_says_that_there_is_none() {
    let root = root();
    let text = fs::read_to_string(root.join("agent/PROMISES.md")).expect("agent/PROMISES.md");
    let rows = rows(&text);
    assert!(rows.len() > 80, "only {} promises are left", rows.len());
    let mut wrong = Vec::new();
    for (line, promise, cell) in rows {
        let proofs = proofs(cell);
        let is_open = cell.starts_with("Not yet");
        let says_why = cell.starts_with("Differs: ") && cell.len() > 40;
        if proofs.is_empty() && !is_open && !says_why {
            wrong.push(format!("line {line}: {promise}: no proof is named"));
        }
        for proof in proofs.iter().filter(|proof| !exists(&root, proof)) {
            wrong.push(format!("line {line}: {promise}: {proof} does not exist"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_proof_that_does_not_exist_is_noticed() {
    let root = root();
    assert!(exists(
        &root,
        "decide/a_member_tagged_nofailover_never_runs"
    ));
    for name in [
        "decide/no_such_script",
        "simulation/NoSuchInvariant",
        "break/no-such-rule",
        "scenario/no-such-scenario",
        "beside/no-such-neighbour",
        "agent/tests/promises.rs#no_such_test",
    ] {
        assert!(!exists(&root, name), "{name}");
    }
}
