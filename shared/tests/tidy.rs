//! The repository's own rules, each with the reason it prints when it is broken.

#![expect(clippy::expect_used, reason = "a test stops at the first surprise")]

use std::path::{Path, PathBuf};

/// Lines a file may have before its tests.
const MAX_LINES: usize = 600;

/// Files that are too long already. The list only shrinks.
const TOO_LONG: [&str; 1] = ["router/src/topology/transition.rs"];

/// Lines a README may have.
const MAX_README_LINES: usize = 150;

/// The headings of every README, in this order.
const README_HEADINGS: [&str; 5] = [
    "What it is",
    "Picture",
    "Map",
    "Invariants",
    "How to change it",
];

/// The folders with a README of that form.
const README_FOLDERS: [&str; 4] = ["shared", "bench", "deploy", "fuzz"];

/// Names that say nothing about what is inside.
const BANNED_MODULES: [&str; 13] = [
    "common", "util", "utils", "helper", "helpers", "misc", "types", "core", "manager", "handler",
    "handlers", "inner", "impl",
];

/// What a module never imports: paths of the module, what is banned there, what of it is allowed after all.
struct Never {
    modules: &'static [&'static str],
    imports: &'static [&'static str],
    except: &'static [&'static str],
    why: &'static str,
}

const IMPORTS: &[Never] = &[
    Never {
        modules: &["shared/src"],
        imports: &["trunkline_agent", "trunkline_router", "trunkline_bench"],
        except: &[],
        why: "shared is below everything",
    },
    Never {
        modules: &["agent/src"],
        imports: &["trunkline_router", "trunkline_bench"],
        except: &[],
        why: "agent and router do not know each other",
    },
    Never {
        modules: &["router/src"],
        imports: &["trunkline_agent", "trunkline_bench"],
        except: &[],
        why: "agent and router do not know each other",
    },
    Never {
        modules: &["agent/src/decide"],
        imports: &[
            "tokio",
            "tracing",
            "std::fs",
            "std::net",
            "std::process",
            "std::thread",
            "std::env",
            "trunkline_shared::dcs",
            "trunkline_shared::service",
            "crate::postgres",
            "crate::lease",
            "crate::observe",
            "crate::act",
        ],
        except: &[],
        why: "decide is pure: a fact it needs is added to Observation",
    },
    Never {
        modules: &["shared/src/cluster"],
        imports: &[
            "tokio",
            "tracing",
            "std::fs",
            "std::net",
            "std::process",
            "crate::dcs",
            "crate::service",
        ],
        except: &[],
        why: "the model is plain data",
    },
    Never {
        modules: &["agent/src/observe"],
        imports: &["crate::act", "crate::decide"],
        // The span is the time before a deadline into which nobody's answer is waited for.
        except: &[
            "crate::decide::STOP_AHEAD",
            "crate::act::jobs",
            "crate::decide::observation",
            "crate::decide::memory",
            "crate::decide::Observation",
            "crate::decide::Memory",
        ],
        why: "observe never judges",
    },
    Never {
        modules: &["agent/src/act"],
        imports: &["crate::observe", "crate::decide"],
        // The two spans are what act checks again, in the same breath as the signal.
        except: &[
            "crate::decide::decision",
            "crate::decide::observation",
            "crate::decide::PROMOTE_NEEDS",
            "crate::decide::STOP_AHEAD",
        ],
        why: "act never judges",
    },
    Never {
        modules: &["agent/src/postgres"],
        imports: &[
            "crate::decide",
            "crate::tick",
            "crate::lease",
            "trunkline_shared::dcs",
            "trunkline_shared::cluster::topology",
        ],
        except: &[],
        why: "postgres knows no cluster, no DCS, no leader",
    },
    Never {
        modules: &["agent/src/fence", "agent/src/watchdog"],
        imports: &[
            "crate::decide",
            "crate::tick",
            "crate::observe",
            "trunkline_shared::dcs",
        ],
        except: &[],
        why: "the fence asks nobody: it has a deadline and a way to kill",
    },
    Never {
        modules: &["agent/src/api", "agent/src/ctl"],
        imports: &["crate::postgres", "crate::lease", "crate::act"],
        except: &[],
        why: "api and ctl write requests; they never touch PostgreSQL or the lease",
    },
    Never {
        modules: &[
            "bench/src/check/list_append",
            "agent/src/ctl/import/haproxy",
            "agent/src/ctl/import/ini",
            "agent/src/ctl/import/notes",
            "agent/src/ctl/import/pgbouncer",
            "agent/src/ctl/import/router_file",
            "agent/src/ctl/import/scopes",
            "router/src/route",
            "router/src/topology/transition",
            "router/src/fleet/record",
            "router/src/fleet/cancel_key",
            "router/src/fleet/wrong_keys",
            "router/src/pool/state",
            "router/src/pool/budget",
            "router/src/pool/running",
            "router/src/roster/places",
            "router/src/session/carry_over",
            "router/src/session/stranded",
            "router/src/auth",
            "router/src/protocol",
            "router/src/config/pattern",
            "router/src/config/databases",
        ],
        imports: &[
            "tokio",
            "std::fs",
            "std::process",
            "std::thread",
            "std::net::Tcp",
            "std::net::Udp",
            "trunkline_shared::dcs",
            "trunkline_shared::service",
        ],
        except: &[],
        why: "pure: what it needs is given to it",
    },
    Never {
        modules: &[
            "router/src/admin/commands",
            "router/src/admin/show",
            "router/src/admin/table",
            "router/src/metrics/pools",
            "router/src/tally",
        ],
        imports: &[
            "tokio",
            "std::fs",
            "std::process",
            "std::thread",
            "std::net::Tcp",
            "std::net::Udp",
            "trunkline_shared::dcs",
            "trunkline_shared::service",
        ],
        except: &[
            "trunkline_shared::service::clock::WallTime",
            "trunkline_shared::service::metrics::DEFAULT_BUCKETS",
        ],
        why: "pure: what it needs is given to it; a time and a list of bounds are values",
    },
    Never {
        modules: &["router/src/route"],
        imports: &["crate::pool", "crate::server", "crate::session"],
        except: &[],
        why: "route chooses, it never opens a connection",
    },
    Never {
        modules: &["router/src/pool"],
        imports: &["crate::route", "crate::session", "crate::topology"],
        except: &[],
        why: "a pool serves a lane and never chooses a member",
    },
    Never {
        modules: &["router/src/server"],
        imports: &["crate::pool", "crate::session", "crate::route"],
        except: &[],
        why: "a server connection knows nobody above it",
    },
    Never {
        modules: &["router/src/topology"],
        imports: &["crate::session", "crate::route", "crate::listener"],
        except: &[],
        why: "the topology is published; nobody is told",
    },
];

/// Texts, the trees they are looked for in, the files where they may stand, and why.
type Home = (
    &'static [&'static str],
    &'static [&'static str],
    &'static [&'static str],
    &'static str,
);

/// Texts that stand in their home files only.
const HOMES: &[Home] = &[
    (
        &[
            "\"members/",
            "}members/",
            "}trunkline/",
            "trunkline/disarmed/",
            "\"routers/",
            "}routers/",
        ],
        &["agent/src", "router/src", "shared/src"],
        &["shared/src/dcs/keys.rs"],
        "a key path is spelled in keys.rs only",
    ),
    (
        &[
            "\"57P01\"",
            "\"57P03\"",
            "\"57014\"",
            "\"08007\"",
            "\"08P01\"",
            "\"53300\"",
            "\"40001\"",
            "\"25P02\"",
            "\"28P01\"",
            "\"28000\"",
            "\"3D000\"",
        ],
        &["router/src"],
        &["router/src/error.rs", "router/src/protocol/sqlstate.rs"],
        "a SQLSTATE of the router is spelled in error.rs or sqlstate.rs only",
    ),
];

/// Crates that must not be linked, and why. `serde_yaml` is linked by pingora alone and is checked apart.
const BANNED_CRATES: [(&str, &str); 5] = [
    ("aws-lc-sys", "one crypto provider: ring"),
    ("aws-lc-rs", "one crypto provider: ring"),
    ("openssl-sys", "one TLS library: rustls"),
    ("native-tls", "one TLS library: rustls"),
    ("serde_norway", "one YAML reader: serde-saphyr"),
];

fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent()
        .expect("shared lies in the repository")
        .to_owned()
}

/// Every source file below the packages, as (path from the root, text).
fn sources() -> Vec<(String, String)> {
    let root = root();
    let mut files = Vec::new();
    let fuzzing = ["fuzz/bodies", "fuzz/fuzz_targets"];
    for package in ["agent", "router", "shared", "bench"]
        .into_iter()
        .chain(fuzzing)
    {
        collect(&root, &root.join(package), &mut files);
    }
    assert!(files.len() > 30, "the sources were not found");
    files
}

fn collect(root: &Path, folder: &Path, files: &mut Vec<(String, String)>) {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return;
    };
    for entry in entries {
        let path = entry.expect("a folder can be listed").path();
        if path.is_dir() {
            collect(root, &path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).expect("a source is text");
            let path = path.strip_prefix(root).expect("below the root");
            files.push((path.to_string_lossy().into_owned(), text));
        }
    }
}

/// Fails with every breach at once.
fn report(rule: &str, breaches: Vec<String>) {
    assert!(breaches.is_empty(), "{rule}\n  {}", breaches.join("\n  "));
}

/// The text before the tests of the file, without comments.
fn code(text: &str) -> String {
    let before_tests = text.split("#[cfg(test)]").next().unwrap_or_default();
    before_tests
        .lines()
        .map(|line| line.split("//").next().unwrap_or_default())
        .collect::<Vec<_>>()
        .join("\n")
}

/// Every path that a `use` names, with its braces multiplied out.
fn imports(code: &str) -> Vec<String> {
    let mut paths = Vec::new();
    for statement in code.split(';') {
        let Some(at) = statement.rfind("use ") else {
            continue;
        };
        let is_statement =
            statement[..at].trim_end().is_empty() || statement[..at].ends_with(['\n', ' ', ')']);
        if is_statement {
            let tree: String = statement[at + 4..].split_whitespace().collect();
            expand("", &tree, &mut paths);
        }
    }
    paths
}

fn expand(prefix: &str, tree: &str, paths: &mut Vec<String>) {
    let Some((head, rest)) = tree.split_once('{') else {
        paths.push(format!("{prefix}{tree}"));
        return;
    };
    let inside = rest.strip_suffix('}').unwrap_or(rest);
    let prefix = format!("{prefix}{head}");
    let (mut depth, mut start) = (0, 0);
    for (at, letter) in inside.char_indices() {
        match letter {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                expand(&prefix, &inside[start..at], paths);
                start = at + 1;
            }
            _ => {}
        }
    }
    if start < inside.len() {
        expand(&prefix, &inside[start..], paths);
    }
}

/// Whether `path` is `module` or lies below it. `std::net::Tcp` means every name that begins so.
fn is_below(path: &str, module: &str) -> bool {
    path.strip_prefix(module).is_some_and(|rest| {
        rest.is_empty()
            || rest.starts_with("::")
            || module
                .rsplit("::")
                .next()
                .is_some_and(|last| last.starts_with(char::is_uppercase))
    })
}

/// Whether a file belongs to a module: `x/y` means `x/y.rs` and everything in `x/y/`.
fn belongs(file: &str, module: &str) -> bool {
    file.strip_prefix(module)
        .is_some_and(|rest| rest == ".rs" || rest.starts_with('/'))
}

#[test]
fn modules_import_only_what_they_may() {
    let mut breaches = Vec::new();
    for (file, text) in sources() {
        let is_test = file.ends_with("/tests.rs");
        let imports = imports(&code(&text));
        for rule in IMPORTS {
            if is_test || !rule.modules.iter().any(|module| belongs(&file, module)) {
                continue;
            }
            for path in &imports {
                let is_banned = rule.imports.iter().any(|banned| is_below(path, banned));
                if is_banned && !rule.except.iter().any(|allowed| is_below(path, allowed)) {
                    breaches.push(format!("{file} imports {path}: {}", rule.why));
                }
            }
        }
        let is_simulation = belongs(&file, "bench/src/simulation")
            || belongs(&file, "bench/src/model")
            || !file.starts_with("bench/src");
        for path in &imports {
            let is_program =
                is_below(path, "trunkline_agent") || is_below(path, "trunkline_router");
            if is_program && !is_simulation {
                breaches.push(format!("{file} imports {path}: bench judges from outside"));
            }
        }
    }
    report("A module imports what it must not know.", breaches);
}

#[test]
fn the_import_reader_multiplies_braces_out() {
    let text = "use a::{b, c::{d, e}};\npub(crate) use f::*;\nfn x() {}\nuse crate::g;\n";
    assert_eq!(
        imports(text),
        ["a::b", "a::c::d", "a::c::e", "f::*", "crate::g"]
    );
    assert!(is_below("std::net::TcpStream", "std::net::Tcp"));
    assert!(!is_below("tokio_util::x", "tokio"));
    assert!(belongs("agent/src/decide/x.rs", "agent/src/decide"));
    assert!(!belongs("agent/src/decided.rs", "agent/src/decide"));
}

#[test]
fn files_are_short_documented_and_well_named() {
    let mut breaches = Vec::new();
    for (file, text) in sources() {
        let lines = text
            .lines()
            .take_while(|line| !line.starts_with("#[cfg(test)]"))
            .count();
        let is_test = file.ends_with("/tests.rs") || file.contains("/tests/");
        let is_exempt = is_test || TOO_LONG.contains(&file.as_str());
        if lines > MAX_LINES && !is_exempt {
            breaches.push(format!(
                "{file} has {lines} lines before its tests; {MAX_LINES} are allowed"
            ));
        }
        // A file of tests is explained by the file it tests.
        if !text.starts_with("//!") && !file.ends_with("/tests.rs") {
            breaches.push(format!("{file} does not begin with a module doc (//!)"));
        }
        let stem = Path::new(&file)
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy();
        let folders = file.split('/').rev().skip(1);
        for name in folders.chain([&*stem]) {
            if BANNED_MODULES.contains(&name) {
                breaches.push(format!("{file}: a module called {name} says nothing"));
            }
        }
        if stem == "mod" {
            breaches.push(format!(
                "{file}: a module is name.rs beside name/, never mod.rs"
            ));
        }
    }
    report("A file breaks the house form.", breaches);
}

#[test]
fn no_marks_of_work_left_undone() {
    // Spelled in two halves, so that this file does not break its own rule.
    let marks = [
        ["TO", "DO"],
        ["FIX", "ME"],
        ["XX", "X:"],
        ["unimplemen", "ted!("],
    ]
    .map(|m| m.concat());
    let mut breaches = Vec::new();
    for (file, text) in sources() {
        for (at, line) in text.lines().enumerate() {
            if marks.iter().any(|mark| line.contains(mark.as_str())) {
                breaches.push(format!("{file}:{}: {}", at + 1, line.trim()));
            }
        }
    }
    report(
        "Work left undone belongs in an issue, not in the source.",
        breaches,
    );
}

#[test]
fn texts_with_a_home_stand_only_there() {
    let mut breaches = Vec::new();
    for (file, text) in sources() {
        let code = code(&text);
        for (texts, trees, homes, why) in HOMES {
            let is_elsewhere = trees.iter().any(|tree| file.starts_with(tree))
                && !homes.contains(&file.as_str())
                && !file.ends_with("/tests.rs");
            for text in texts
                .iter()
                .filter(|text| is_elsewhere && code.contains(**text))
            {
                breaches.push(format!("{file} spells {text}: {why}"));
            }
        }
    }
    report("A text stands outside its home file.", breaches);
}

/// The packages of the lock file: name and the names of what it needs.
fn locked() -> Vec<(String, Vec<String>)> {
    let lock = std::fs::read_to_string(root().join("Cargo.lock")).expect("Cargo.lock is committed");
    lock.split("[[package]]")
        .skip(1)
        .map(|package| {
            let name = package
                .lines()
                .find_map(|line| line.strip_prefix("name = \""))
                .map(|name| name.trim_end_matches('"').to_owned());
            let needs = package
                .lines()
                .skip_while(|line| !line.starts_with("dependencies = ["))
                .filter_map(|line| line.trim().strip_prefix('"'))
                .filter_map(|line| line.split(['"', ' ']).next().map(str::to_owned))
                .collect();
            (name.expect("a package has a name"), needs)
        })
        .collect()
}

#[test]
fn only_wanted_crates_are_linked() {
    let locked = locked();
    let mut breaches: Vec<_> = BANNED_CRATES
        .iter()
        .filter(|(name, _)| locked.iter().any(|(locked, _)| locked == name))
        .map(|(name, why)| format!("{name}: {why}"))
        .collect();
    for (name, needs) in &locked {
        if needs.iter().any(|need| need == "serde_yaml") && name != "pingora-core" {
            breaches.push(format!(
                "{name} links serde_yaml, which nobody keeps; use serde-saphyr"
            ));
        }
    }
    report("An unwanted crate is in Cargo.lock.", breaches);
}

#[test]
fn readmes_have_one_form() {
    let mut breaches = Vec::new();
    for folder in README_FOLDERS {
        let file = root().join(folder).join("README.md");
        let Ok(text) = std::fs::read_to_string(&file) else {
            breaches.push(format!("{folder}/README.md is missing"));
            continue;
        };
        let lines = text.lines().count();
        if lines > MAX_README_LINES {
            breaches.push(format!(
                "{folder}/README.md has {lines} lines; {MAX_README_LINES} are allowed"
            ));
        }
        let headings: Vec<_> = text
            .lines()
            .filter_map(|line| line.strip_prefix("## "))
            .collect();
        let is_in_order = headings.len() == README_HEADINGS.len()
            && headings
                .iter()
                .zip(README_HEADINGS)
                .all(|(found, wanted)| found.starts_with(wanted));
        if !is_in_order {
            breaches.push(format!(
                "{folder}/README.md has the headings {headings:?}; wanted: {README_HEADINGS:?}"
            ));
        }
    }
    report("A README is not of the common form.", breaches);
}
