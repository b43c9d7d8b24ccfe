//! What is wrong with a configuration, and what may not be as it was meant.

use std::fmt;
use std::time::Duration;

use super::document::{Duplicate, Origin};

/// Something that works, but perhaps not as was meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Warning {
    /// Nobody reads this key.
    UnknownKey {
        /// Where it stands.
        origin: Origin,
        /// Its full name.
        key: String,
        /// The known key nearest to it.
        suggestion: Option<String>,
    },
    /// This key stands more than once in its mapping; the last one counts.
    DuplicateKey(Duplicate),
    /// Nobody reads this variable of the environment.
    UnknownVariable {
        /// Its name.
        variable: String,
        /// The known variable nearest to it.
        suggestion: Option<String>,
    },
    /// A variable that is known and not read beside something else that is set.
    VariableIgnored {
        /// Its name.
        variable: String,
        /// What is read instead.
        why: String,
    },
    /// A key of Patroni's that changes nothing here.
    WithoutEffect {
        /// Where it stands.
        origin: Origin,
        /// Its full name.
        key: String,
        /// Why, and what does the same.
        why: String,
    },
    /// A key of Patroni's that this version reads and does not act on.
    NotActedOn {
        /// Where it stands.
        origin: Origin,
        /// Its full name.
        key: String,
    },
    /// `$` in an address: variables are not expanded in the file, in Patroni neither.
    NotExpanded {
        /// Where it stands.
        origin: Origin,
        /// Its full name.
        key: String,
        /// The value.
        value: String,
    },
    /// `loop_wait + 2 * retry_timeout <= ttl` does not hold.
    TimesDoNotFit {
        /// Where the section stands.
        origin: Origin,
        /// `ttl`.
        ttl: Duration,
        /// `loop_wait`.
        loop_wait: Duration,
        /// `retry_timeout`.
        retry_timeout: Duration,
    },
    /// A setting that does not hold, because of another one or of where it stands.
    Contradiction {
        /// Where the one stands that does not hold.
        origin: Origin,
        /// Its full name.
        key: String,
        /// What is done.
        done: String,
    },
}

impl Warning {
    /// The key that nobody goes by, if the warning is about one.
    pub(super) fn unread_key(&self) -> Option<&str> {
        match self {
            Warning::UnknownKey { key, .. }
            | Warning::WithoutEffect { key, .. }
            | Warning::NotActedOn { key, .. }
            | Warning::Contradiction { key, .. } => Some(key),
            Warning::DuplicateKey(_)
            | Warning::UnknownVariable { .. }
            | Warning::VariableIgnored { .. }
            | Warning::NotExpanded { .. }
            | Warning::TimesDoNotFit { .. } => None,
        }
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Warning::UnknownKey {
                origin,
                key,
                suggestion: None,
            } => write!(f, "{origin}: {key}: unknown key, ignored"),
            Warning::UnknownKey {
                origin,
                key,
                suggestion: Some(meant),
            } => write!(
                f,
                "{origin}: {key}: unknown key, ignored; did you mean {meant}?"
            ),
            Warning::DuplicateKey(Duplicate { key, last, before }) => write!(
                f,
                "{last}: {key}: stands at {before} already, which is not read: the last one counts, as in Patroni"
            ),
            Warning::UnknownVariable {
                variable,
                suggestion,
            } => {
                write!(f, "environment variable {variable}: unknown, ignored")?;
                match suggestion {
                    Some(meant) => write!(f, "; did you mean {meant}?"),
                    None => Ok(()),
                }
            }
            Warning::VariableIgnored { variable, why } => {
                write!(f, "environment variable {variable}: ignored: {why}")
            }
            Warning::WithoutEffect { origin, key, why } => {
                write!(f, "{origin}: {key}: known, without effect: {why}")
            }
            Warning::NotActedOn { origin, key } => {
                write!(f, "{origin}: {key}: accepted, not acted on yet")
            }
            Warning::NotExpanded { origin, key, value } => write!(
                f,
                "{origin}: {key}: {value} is taken literally, variables are not expanded here; \
                 write the address, or set it through the environment"
            ),
            Warning::TimesDoNotFit {
                origin,
                ttl,
                loop_wait,
                retry_timeout,
            } => write!(
                f,
                "{origin}: ttl: loop_wait {loop_wait:?} + 2 * retry_timeout {retry_timeout:?} = {:?} is \
                 more than ttl {ttl:?}: a DCS outage shorter than the ttl can cost the leadership; \
                 raise ttl to at least {:?} or lower the other two (nothing was changed)",
                *loop_wait + *retry_timeout * 2,
                *loop_wait + *retry_timeout * 2,
            ),
            Warning::Contradiction { origin, key, done } => {
                write!(f, "{origin}: {key}: {done}")
            }
        }
    }
}

/// One reason why a configuration cannot be used. Mend the named place and start again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Mistake {
    /// The file or folder could not be read.
    #[error("{path}: cannot be read: {why}")]
    Unreadable {
        /// The path.
        path: String,
        /// The system's words.
        why: String,
    },
    /// A folder without a single `*.yml`.
    #[error("{path}: holds no *.yml file; give a file, or a folder of *.yml files")]
    NoFiles {
        /// The folder.
        path: String,
    },
    /// Not YAML.
    #[error("{path}:{line}: not valid YAML: {why}")]
    Malformed {
        /// The file.
        path: String,
        /// The line.
        line: u64,
        /// The parser's words.
        why: String,
    },
    /// A value that is not allowed.
    #[error("{origin}: {key}: {value} cannot be used; expected {expected}")]
    Unusable {
        /// Where it stands.
        origin: Origin,
        /// Its full name.
        key: String,
        /// The value as written.
        value: String,
        /// What is allowed.
        expected: String,
    },
    /// A key that must be there is not.
    #[error("{source_name}: {key}: missing; {write}")]
    Missing {
        /// The file or folder.
        source_name: String,
        /// Its full name.
        key: String,
        /// What to write.
        write: String,
    },
    /// Something that is understood and refused.
    #[error("{origin}: {key}: {why}")]
    Refused {
        /// Where it stands.
        origin: Origin,
        /// Its full name.
        key: String,
        /// Why, and what to write instead.
        why: String,
    },
}

/// Why a configuration cannot be used: every mistake that was found. Print it and exit with 2.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ConfigError {
    /// At least one.
    pub mistakes: Vec<Mistake>,
    /// What was found beside them: what is missing may stand there under a wrong name, or stand twice.
    pub warnings: Vec<Warning>,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mistakes = self.mistakes.iter().map(ToString::to_string);
        let warnings = self.warnings.iter().map(|w| format!("warning: {w}"));
        f.write_str(&mistakes.chain(warnings).collect::<Vec<_>>().join("\n"))
    }
}

impl From<Vec<Mistake>> for ConfigError {
    fn from(mistakes: Vec<Mistake>) -> Self {
        Self {
            mistakes,
            warnings: Vec::new(),
        }
    }
}

impl Mistake {
    /// Where it is and what it is about.
    pub(super) fn place(&self) -> (String, String) {
        match self {
            Mistake::Unreadable { path, .. } | Mistake::NoFiles { path } => {
                (path.clone(), String::new())
            }
            Mistake::Malformed { path, line, .. } => (format!("{path}:{line}"), String::new()),
            Mistake::Unusable { origin, key, .. } | Mistake::Refused { origin, key, .. } => {
                (origin.to_string(), key.clone())
            }
            Mistake::Missing {
                source_name, key, ..
            } => (source_name.clone(), key.clone()),
        }
    }
}
