//! What the server's own program makes of parameters, asked before they are written: it reads a file of them as it
//! would at its start, and names what it does not know and what it does not allow. So names, units, ranges and
//! words are those of the very version, and nothing that is written keeps a server from starting.
//!
//! As in Patroni an unknown parameter is left out and a number beyond its range becomes the nearest one allowed.
//! What else the program refuses is left out, too.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::PostgresError;
use super::config::PostgresConfig;
use super::controlled::controlled;
use super::files::write_file;
use super::process::Tool;
use super::settings::{RECOVERY_SETTINGS, quote};

/// Longest run of the program.
const LIMIT: Duration = Duration::from_secs(10);

/// How often it is asked: for names, for values, and for what came of the corrections.
const ROUNDS: u32 = 4;

/// These change where and how the program writes its complaints, so they stand at the end of the file.
const OF_THE_LOG: [&str; 5] = [
    "lc_messages",
    "log_destination",
    "log_error_verbosity",
    "log_line_prefix",
    "log_min_messages",
];

/// What became of one parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Its name.
    pub name: String,
    /// The value that was wanted.
    pub wanted: String,
    /// The value that is written instead; absent: none, so PostgreSQL's default holds.
    pub used: Option<String>,
    /// The program's words.
    pub why: String,
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            name,
            wanted,
            used,
            why,
        } = self;
        match used {
            Some(used) => write!(f, "{name} = {wanted}: {why}; {used} is used"),
            None => write!(f, "{name} = {wanted}: {why}; left out"),
        }
    }
}

/// The parameters that may be written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Accepted {
    /// Server parameters.
    pub parameters: BTreeMap<String, String>,
    /// Parameters of recovery.
    pub recovery: BTreeMap<String, String>,
    /// What was left out or changed.
    pub findings: Vec<Finding>,
}

/// What is asked: the answer depends on nothing else.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Question {
    program: PathBuf,
    parameters: BTreeMap<String, String>,
    recovery: BTreeMap<String, String>,
}

/// The last answer, kept: the same is asked before every write of the files.
#[derive(Debug, Default)]
pub(crate) struct Answers {
    last: Mutex<Option<(Question, Arc<Accepted>)>>,
}

impl Answers {
    fn known(&self, question: &Question) -> Option<Arc<Accepted>> {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let known = last.as_ref().filter(|(asked, _)| asked == question);
        known.map(|(_, answer)| answer.clone())
    }

    /// The configuration with what `program` accepts of it, if that is known.
    pub(crate) fn kept(&self, program: PathBuf, config: &PostgresConfig) -> Option<PostgresConfig> {
        let answer = self.known(&Question::of(program, config))?;
        Some(with(config, &answer))
    }

    /// The configuration with what `program` accepts of it. The program goes on when the caller does not wait for
    /// it any longer, so that the next one finds its answer.
    pub(crate) async fn look(
        self: &Arc<Self>,
        program: PathBuf,
        config: &PostgresConfig,
    ) -> PostgresConfig {
        let question = Question::of(program, config);
        if let Some(answer) = self.known(&question) {
            return with(config, &answer);
        }
        let (answers, folder) = (self.clone(), config.run_dir.join("parameters"));
        let asking = tokio::spawn(async move {
            let all = (question.parameters.clone(), question.recovery.clone());
            let accepted = ask(&question.program, &folder, all.0, all.1).await;
            if let Ok(accepted) = &accepted {
                for finding in &accepted.findings {
                    tracing::warn!("postgresql.parameters: {finding}");
                }
                let mut last = answers.last.lock().unwrap_or_else(PoisonError::into_inner);
                *last = Some((question, Arc::new(accepted.clone())));
            }
            accepted
        });
        match asking.await {
            Ok(Ok(accepted)) => with(config, &accepted),
            Ok(Err(error)) => {
                tracing::warn!(%error, "the parameters are written unchecked");
                config.clone()
            }
            // The runtime ends.
            Err(_) => config.clone(),
        }
    }
}

impl Question {
    fn of(program: PathBuf, config: &PostgresConfig) -> Self {
        let mut parameters = config.parameters.clone();
        let of_the_cluster = controlled(config, None);
        parameters.extend(
            of_the_cluster
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value)),
        );
        Self {
            program,
            parameters,
            recovery: config.recovery.clone(),
        }
    }
}

fn with(config: &PostgresConfig, accepted: &Accepted) -> PostgresConfig {
    PostgresConfig {
        parameters: accepted.parameters.clone(),
        recovery: accepted.recovery.clone(),
        ..config.clone()
    }
}

/// Asks `program` (`postgres`), which may be of any version from 13 on. `folder` is made, and holds nothing else.
///
/// # Errors
/// The program cannot be run, or refuses something else than a parameter.
pub async fn ask(
    program: &Path,
    folder: &Path,
    parameters: BTreeMap<String, String>,
    recovery: BTreeMap<String, String>,
) -> Result<Accepted, PostgresError> {
    let made = std::fs::create_dir_all(folder);
    made.map_err(PostgresError::file("make", folder))?;
    let mut accepted = Accepted {
        parameters,
        recovery,
        findings: Vec::new(),
    };
    accepted.leave_out_what_is_no_name();
    let mut arguments: Vec<String> = ["-C", "data_directory", "-D"].map(str::to_owned).into();
    arguments.push(folder.display().to_string());
    let tool = Tool {
        program: program.to_owned(),
        arguments,
        passfile: None,
        limit: LIMIT,
        what: "postgres -C, which checks parameters",
    };
    for _ in 0..ROUNDS {
        write_file(&folder.join("postgresql.conf"), &accepted.file())?;
        let output = tool.output().await?;
        if output.status.success() {
            break;
        }
        let complaints = complaints(&output.stderr);
        if !accepted.take(&complaints) {
            return Err(match tool.checked(&output) {
                Err(error) => error,
                Ok(()) => PostgresError::Unreadable {
                    what: "what postgres says of its parameters",
                    text: output.stderr,
                },
            });
        }
    }
    Ok(accepted)
}

impl Accepted {
    fn file(&self) -> String {
        let is_late = |name: &str| OF_THE_LOG.contains(&name.to_ascii_lowercase().as_str());
        let recovery = self.recovery.iter();
        let known = recovery.filter(|(name, _)| RECOVERY_SETTINGS.contains(&name.as_str()));
        let all: Vec<(&String, &String)> = self.parameters.iter().chain(known).collect();
        let (late, early): (Vec<_>, Vec<_>) = all.into_iter().partition(|(name, _)| is_late(name));
        early
            .into_iter()
            .chain(late)
            .map(|(name, value)| format!("{name} = {}\n", quote(value)))
            .collect()
    }

    /// A word that is no name would make the whole file unreadable.
    fn leave_out_what_is_no_name(&mut self) {
        let no_names: Vec<String> = self
            .parameters
            .keys()
            .filter(|name| !is_name(name))
            .cloned()
            .collect();
        for name in no_names {
            self.replace(&name, None, "no parameter can have this name");
        }
    }

    /// Takes the complaints up; whether there was one that could be.
    fn take(&mut self, complaints: &[Complaint]) -> bool {
        let mut is_taken = false;
        for complaint in complaints {
            is_taken |= self.replace(&complaint.name, complaint.used.clone(), &complaint.why);
        }
        is_taken
    }

    fn replace(&mut self, name: &str, used: Option<String>, why: &str) -> bool {
        let find = |map: &BTreeMap<String, String>| {
            let mut names = map.keys();
            names.find(|key| key.eq_ignore_ascii_case(name)).cloned()
        };
        let (map, key) = match (find(&self.parameters), find(&self.recovery)) {
            (Some(key), _) => (&mut self.parameters, key),
            (None, Some(key)) => (&mut self.recovery, key),
            (None, None) => return false,
        };
        let Some(wanted) = map.remove(&key) else {
            return false;
        };
        if let Some(used) = &used {
            map.insert(key.clone(), used.clone());
        }
        // What was put in its place is refused as well: the first words stand.
        if let Some(known) = self.findings.iter_mut().find(|known| known.name == key) {
            known.used = None;
            self.parameters.remove(&key);
            self.recovery.remove(&key);
            return true;
        }
        self.findings.push(Finding {
            name: key,
            wanted,
            used,
            why: why.to_owned(),
        });
        true
    }
}

/// One complaint of the program.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Complaint {
    name: String,
    used: Option<String>,
    why: String,
}

/// Reads what the program wrote in English.
fn complaints(stderr: &str) -> Vec<Complaint> {
    let mut found: Vec<Complaint> = Vec::new();
    for line in stderr.lines() {
        if let Some((_, hint)) = line.split_once("HINT:  ") {
            if let Some(last) = found.last_mut() {
                last.why
                    .push_str(&format!(" ({})", hint.trim_end_matches('.')));
            }
            continue;
        }
        let Some((_, text)) = line.split_once("LOG:  ") else {
            continue;
        };
        let Some((before, rest)) = text.split_once("parameter \"") else {
            continue;
        };
        let Some((name, after)) = rest.split_once('"') else {
            continue;
        };
        let unknown = before.starts_with("unrecognized configuration");
        let why = match unknown {
            true => "unknown to this version of PostgreSQL".to_owned(),
            false => text.to_owned(),
        };
        found.push(Complaint {
            name: name.to_owned(),
            used: nearest_allowed(before, after),
            why,
        });
    }
    found
}

/// `1 kB is outside the valid range for ` and ` (64 .. 2147483647)`: the end of the range on the side of the value.
fn nearest_allowed(before: &str, after: &str) -> Option<String> {
    let value = before.strip_suffix(" is outside the valid range for ")?;
    let range = after.trim().strip_prefix('(')?.strip_suffix(')')?;
    let (least, most) = range.split_once(" .. ")?;
    let parts = |text: &str| {
        let mut words = text.split_whitespace();
        let number: f64 = words.next()?.parse().ok()?;
        Some((number, words.next().map(str::to_owned)))
    };
    let (number, unit) = parts(value)?;
    let (low, unit_of_low) = parts(least)?;
    let end = if number < low { least } else { most };
    let bare = end.split_whitespace().next()?;
    // Versions differ in whether the ends of the range carry the unit that the value has.
    let unit = unit_of_low.or(unit).unwrap_or_default();
    Some(format!("{bare}{unit}"))
}

fn is_name(name: &str) -> bool {
    let is_part = |part: &str| {
        let mut characters = part.chars();
        let is_first = |c: char| c.is_alphabetic() || c == '_';
        characters.next().is_some_and(is_first)
            && characters.all(|c| is_first(c) || c.is_ascii_digit() || c == '$')
    };
    name.split('.').all(is_part)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        pairs.iter().map(own).collect()
    }

    #[test]
    fn what_the_program_says_is_understood_in_every_versions_words() {
        let text = "2026-11-28 14:34:09 GMT [1] LOG:  unrecognized configuration parameter \"foo\" in file \"/x\" line 2\n\
            2026 [1] LOG:  1 kB is outside the valid range for parameter \"work_mem\" (64 .. 2147483647)\n\
            2026 [1] LOG:  1 kB is outside the valid range for parameter \"temp_buffers\" (100 8kB .. 1073741823 8kB)\n\
            2026 [1] LOG:  500 is outside the valid range for parameter \"autovacuum_vacuum_scale_factor\" (0 .. 100)\n\
            2026 [1] LOG:  invalid value for parameter \"wal_sync_method\": \"bla\"\n\
            2026 [1] HINT:  Available values: fsync, fdatasync.\n\
            2026 [1] LOG:  parameter \"server_version\" cannot be changed\n\
            2026 [1] LOG:  skipping missing configuration file \"/x/postgresql.auto.conf\"\n\
            2026 [1] FATAL:  configuration file \"/x\" contains errors\n";
        let found = complaints(text);
        let short: Vec<(&str, Option<&str>)> = found
            .iter()
            .map(|complaint| (complaint.name.as_str(), complaint.used.as_deref()))
            .collect();
        assert_eq!(
            short,
            [
                ("foo", None),
                ("work_mem", Some("64kB")),
                ("temp_buffers", Some("1008kB")),
                ("autovacuum_vacuum_scale_factor", Some("100")),
                ("wal_sync_method", None),
                ("server_version", None),
            ]
        );
        assert_eq!(
            found[4].why,
            "invalid value for parameter \"wal_sync_method\": \"bla\" (Available values: fsync, fdatasync)"
        );
    }

    #[test]
    fn a_replacement_that_is_refused_is_left_out() {
        let mut accepted = Accepted {
            parameters: map(&[("work_mem", "1"), ("a b", "1"), ("Jit", "x")]),
            ..Accepted::default()
        };
        accepted.leave_out_what_is_no_name();
        let complaint = |name: &str, used: Option<&str>| Complaint {
            name: name.to_owned(),
            used: used.map(str::to_owned),
            why: "no".to_owned(),
        };
        assert!(accepted.take(&[complaint("work_mem", Some("64kB")), complaint("jit", None)]));
        assert_eq!(accepted.parameters, map(&[("work_mem", "64kB")]));
        assert!(accepted.take(&[complaint("work_mem", Some("65kB"))]));
        assert!(accepted.parameters.is_empty());
        assert!(!accepted.take(&[complaint("work_mem", None)]));
        let said: Vec<String> = accepted.findings.iter().map(Finding::to_string).collect();
        assert_eq!(
            said,
            [
                "a b = 1: no parameter can have this name; left out",
                "work_mem = 1: no; left out",
                "Jit = x: no; left out",
            ]
        );
    }
}
