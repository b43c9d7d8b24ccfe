//! `trunkline-bench mutants`: are the proofs of the promises worth anything? Rules drawn by a number are broken,
//! one after another, in a copy of the sources, and the proof that PROMISES.md names must then fail. Rules that
//! the simulation can break by itself are drawn too.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use trunkline_shared::service::clock;

use crate::report::{self, Progress, say};
use crate::simulation::{Break, Options, noticed_by, play_all};
use crate::stack::process::tool;

/// The list of rules that an edit of the sources breaks.
const LIST: &str = "agent/tests/mutants.txt";
/// Where the copy and what is built from it stand.
const SCRATCH: &str = "target/mutants";
/// The first build makes every crate that the agent uses.
const BUILD_LIMIT: Duration = Duration::from_secs(1800);
/// A broken rule of the simulation is noticed within so many seeds.
const SEEDS_TO_NOTICE: u64 = 10_000;

/// The options of `mutants`.
#[derive(Args, Debug)]
pub struct MutantsOptions {
    /// How many rules are broken
    #[arg(long, default_value_t = 15)]
    count: usize,
    /// The number they are drawn by, if not one by chance
    #[arg(long)]
    seed: Option<u64>,
    /// Break all of them
    #[arg(long)]
    all: bool,
}

/// A rule that an edit breaks.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Edit {
    promise: String,
    proof: String,
    file: String,
    old: String,
    new: String,
}

/// A rule, by how it is broken.
#[derive(Clone, Debug)]
enum Mutant {
    Edit(Edit),
    Simulated(Break),
}

/// Breaks the rules and prints a table; whether every proof failed.
pub async fn run(options: &MutantsOptions) -> Result<bool> {
    let progress = Progress::new();
    let seed = options.seed.unwrap_or_else(|| fastrand::u64(..1_000_000));
    let edits = parse(&fs::read_to_string(LIST).with_context(|| format!("cannot read {LIST}"))?)?;
    let mut all: Vec<_> = edits.into_iter().map(Mutant::Edit).collect();
    all.extend(Break::ALL.iter().map(|(rule, _)| Mutant::Simulated(*rule)));
    if !options.all {
        let mut draw = fastrand::Rng::with_seed(seed);
        draw.shuffle(&mut all);
        all.truncate(options.count);
    }
    say(format!("{} rules are broken; seed {seed}", all.len()));
    let tree = copy_sources()?;
    progress.step("the proofs hold while no rule is broken");
    if !passes(&tree, "decide/").await? {
        bail!("the scripts of agent/tests/decide fail before any rule is broken");
    }
    let (mut rows, mut missed) = (Vec::new(), 0);
    for (index, mutant) in all.iter().enumerate() {
        let began = clock::now();
        let (promise, proof, failed) = match mutant {
            Mutant::Edit(edit) => {
                progress.step(format!("{} of {}: {}", index + 1, all.len(), edit.promise));
                let failed = is_noticed(&tree, edit).await?;
                (edit.promise.clone(), edit.proof.clone(), failed)
            }
            Mutant::Simulated(rule) => {
                progress.step(format!("{} of {}: {}", index + 1, all.len(), rule.word()));
                let (found, right) = simulated(*rule);
                (format!("break/{}", rule.word()), found, right)
            }
        };
        missed += usize::from(!failed);
        rows.push(vec![
            promise,
            proof,
            if failed {
                "fails, as it must"
            } else {
                "PASSES"
            }
            .to_owned(),
            format!("{:.0}", clock::now().since(began).as_secs_f64()),
        ]);
    }
    progress.done();
    let head = ["broken", "proof", "proof then", "s"];
    say(report::table(&head, &rows));
    say(format!(
        "{} of {} broken rules were noticed",
        rows.len() - missed,
        rows.len()
    ));
    Ok(missed == 0)
}

/// Plays until the broken rule is noticed: what noticed it, and whether that is the invariant that should.
fn simulated(rule: Break) -> (String, bool) {
    let options = Options {
        rule: Some(rule),
        is_patient: true,
        ..Options::default()
    };
    let report = play_all(0..SEEDS_TO_NOTICE, options, 1);
    match report.failures.first() {
        Some((seed, failure)) => (
            format!("simulation/{:?}, seed {seed}", failure.invariant),
            noticed_by(rule).contains(&failure.invariant),
        ),
        None => ("simulation".to_owned(), false),
    }
}

/// Edits the copy, builds and runs the proof, and undoes the edit.
async fn is_noticed(tree: &Path, edit: &Edit) -> Result<bool> {
    let file = tree.join(&edit.file);
    let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", edit.file))?;
    if text.matches(&edit.old).count() != 1 {
        bail!(
            "{LIST} wants to replace {:?} in {}, where it stands {} times: the rule has moved, mend the list",
            edit.old,
            edit.file,
            text.matches(&edit.old).count()
        );
    }
    fs::write(&file, text.replace(&edit.old, &edit.new))?;
    let passed = passes(tree, &edit.proof).await;
    fs::write(&file, text)?;
    Ok(!passed?)
}

/// Runs a proof of the agent in the copy. That it does not build is an error, not a failure of the proof.
async fn passes(tree: &Path, proof: &str) -> Result<bool> {
    let (target, name) = match (proof.strip_prefix("decide/"), proof.split_once('#')) {
        (Some(script), _) => (["--test", "decide"].as_slice(), script),
        (None, Some((file, test))) if file.starts_with("agent/src/") => {
            (["--lib"].as_slice(), test)
        }
        (None, _) => bail!("{proof} is neither a script of decide nor a test in agent/src"),
    };
    let base = ["test", "--profile", "ci", "-q", "-p", "trunkline-agent"];
    let build = [&base[..], target, &["--no-run"]].concat();
    let output = cargo(tree, &build).output(BUILD_LIMIT).await?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        bail!("with the rule of {proof} broken the agent does not build: {said}");
    }
    let run = [&base[..], target, &["--", name]].concat();
    let output = cargo(tree, &run).output(BUILD_LIMIT).await?;
    let said = String::from_utf8_lossy(&output.stdout);
    if said.contains("running 0 tests") && !said.contains("running 1 test") {
        bail!("{proof} names no test");
    }
    Ok(output.status.success())
}

fn cargo(tree: &Path, words: &[&str]) -> crate::stack::process::Launch {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut launch = tool(&program.to_string_lossy(), words);
    launch.folder = tree.to_owned();
    let build = tree.with_file_name("build").to_string_lossy().into_owned();
    launch.env.push(("CARGO_TARGET_DIR".to_owned(), build));
    launch
}

/// Copies every file of the repository that differs from the copy, and removes what is no more.
fn copy_sources() -> Result<PathBuf> {
    let root = std::env::current_dir()?;
    let tree = root.join(SCRATCH).join("tree");
    let mut kept = Vec::new();
    for folder in ["agent", "bench", "router", "shared", "deploy"] {
        list(&root.join(folder), &mut kept)?;
    }
    let tops = fs::read_dir(&root)?.flatten().map(|entry| entry.path());
    kept.extend(tops.filter(|path| path.is_file()));
    let mut wanted = std::collections::BTreeSet::new();
    for from in kept {
        let to = tree.join(from.strip_prefix(&root)?);
        let text = fs::read(&from)?;
        if fs::read(&to).ok().as_ref() != Some(&text) {
            fs::create_dir_all(to.parent().context("no folder")?)?;
            fs::write(&to, &text)?;
        }
        wanted.insert(to);
    }
    let mut there = Vec::new();
    list(&tree, &mut there)?;
    for file in there.iter().filter(|file| !wanted.contains(*file)) {
        fs::remove_file(file)?;
    }
    Ok(tree)
}

/// Every file below a folder.
fn list(folder: &Path, into: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let path = entry?.path();
        match path.is_dir() {
            true => list(&path, into)?,
            false => into.push(path),
        }
    }
    Ok(())
}

/// Reads the list: blocks of five lines, each with its word first.
fn parse(text: &str) -> Result<Vec<Edit>> {
    let mut edits = Vec::new();
    for block in text
        .split("\n\n")
        .filter(|block| block.starts_with("promise "))
    {
        let field = |word: &str| {
            let line = block.lines().find_map(|line| line.strip_prefix(word));
            line.map(str::to_owned)
                .with_context(|| format!("{LIST}: a block has no line {word:?}:\n{block}"))
        };
        edits.push(Edit {
            promise: field("promise ")?,
            proof: field("proof ")?,
            file: field("file ")?,
            old: field("- ")?,
            new: field("+ ")?,
        });
    }
    Ok(edits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_an_edit_and_a_block_without_a_line_is_named() {
        let block = "Words.\n\npromise P\nproof decide/x\nfile f.rs\n- a\n+ b\n";
        let edits = parse(block).unwrap();
        assert_eq!((edits.len(), edits[0].new.as_str()), (1, "b"));
        let error = parse("promise P\nproof decide/x\nfile f.rs\n- a\n").unwrap_err();
        assert!(error.to_string().contains("\"+ \""), "{error}");
    }

    #[test]
    fn fifteen_can_be_drawn_and_each_is_a_change() {
        let list = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(LIST);
        let edits = parse(&fs::read_to_string(list).unwrap()).unwrap();
        assert!(edits.len() >= 15);
        assert!(edits.iter().all(|edit| edit.old != edit.new));
    }

    #[test]
    fn what_is_to_be_broken_stands_once_where_the_list_says() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        for edit in parse(&fs::read_to_string(root.join(LIST)).unwrap()).unwrap() {
            let text = fs::read_to_string(root.join(&edit.file)).unwrap();
            let count = text.matches(&edit.old).count();
            assert_eq!(count, 1, "{} in {}: mend {LIST}", edit.old, edit.file);
        }
    }
}
