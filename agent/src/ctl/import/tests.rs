use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use super::pgbouncer::keys::{DATABASE, Meaning, SETTINGS, USER, meaning};
use super::*;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/import")
}

/// What becomes of the file in a case's folder: the router's file, and the notes.
fn result(case: &Path) -> (String, String) {
    let read = |name: &str| std::fs::read_to_string(case.join(name));
    let open = |name: &str| read(name).map_err(|why| why.to_string());
    let words: Vec<String> = read("scopes").unwrap().lines().map(Into::into).collect();
    let mut scopes = Scopes::parse(&words, None).unwrap();
    let (name, made) = match read("haproxy.cfg") {
        Ok(text) => {
            assert!(!is_pgbouncers(&text));
            let sections = haproxy::read::read("haproxy.cfg", &text);
            ("haproxy.cfg", haproxy::translate(&sections, &mut scopes))
        }
        Err(_) => {
            assert!(is_pgbouncers(&open("pgbouncer.ini").unwrap()));
            let entries = ini::read("pgbouncer.ini", &open).unwrap();
            let made = pgbouncer::translate(&entries, &mut scopes, None);
            ("pgbouncer.ini", made)
        }
    };
    let mut notes = String::new();
    let mut file = String::new();
    match made {
        Ok(mut made) => {
            made.file.set("etcd3.hosts", json!("10.0.0.1:2379"));
            file = made.file.text(name);
            for note in made.notes.sorted() {
                let _ = writeln!(notes, "{note}");
            }
        }
        Err(questions) => notes = format!("{}\n", questions.join("\n")),
    }
    for unused in scopes.unused() {
        let _ = writeln!(notes, "--scope {unused} is not used");
    }
    (file, notes)
}

/// Each folder is a claim: the file, `scopes` as the operator gave them, and what is made of them. Written with
/// UPDATE_GOLDENFILES=1.
#[test]
fn files_become_what_stands_beside_them() {
    let mut cases = 0;
    for entry in std::fs::read_dir(folder()).unwrap() {
        let case = entry.unwrap().path();
        if !case.is_dir() {
            continue;
        }
        cases += 1;
        let (file, notes) = result(&case);
        for (name, text) in [("router.yml", file), ("notes", notes)] {
            let golden = case.join(name);
            if std::env::var_os("UPDATE_GOLDENFILES").is_some() {
                match text.is_empty() {
                    true => drop(std::fs::remove_file(&golden)),
                    false => std::fs::write(&golden, text).unwrap(),
                }
                continue;
            }
            let expected = std::fs::read_to_string(&golden).unwrap_or_default();
            assert_eq!(text, expected, "{}", golden.display());
        }
    }
    assert!(cases >= 6, "{cases}");
}

/// `SHOW CONFIG` of PgBouncer 1.26.1, name and default.
#[test]
fn every_setting_of_pgbouncer_has_a_meaning() {
    let text = std::fs::read_to_string(folder().join("pgbouncer-1.26-settings")).unwrap();
    let mut names = Vec::new();
    for line in text.lines() {
        let (name, default) = line.split_once('|').unwrap();
        names.push(name);
        let found = meaning(SETTINGS, name);
        assert!(found.is_some(), "{name} has no meaning");
        // The default of what is not available is no loss, but for those that are the machine's.
        if let Some(Meaning::Absent(ours, _)) = found
            && !["auth_query", "unix_socket_dir"].contains(&name)
        {
            assert_eq!(ours, default, "{name}");
        }
    }
    assert!(names.len() > 90, "{}", names.len());
    for (name, _) in SETTINGS {
        let is_known = names.contains(name) || *name == "service_name";
        assert!(is_known, "{name} is no setting of PgBouncer");
    }
}

#[test]
fn a_key_stands_once_in_its_table() {
    for table in [SETTINGS, DATABASE, USER] {
        let mut names: Vec<&str> = table.iter().map(|(name, _)| *name).collect();
        let before = names.clone();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names, before);
    }
}

#[test]
fn no_note_holds_a_password() {
    let (file, notes) = result(&folder().join("a_pgbouncer_in_production"));
    assert!(notes.contains("jobs password"), "{notes}");
    assert!(!file.contains("cret") && !notes.contains("cret"), "{notes}");
}
