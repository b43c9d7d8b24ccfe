//! What the agent was told: Patroni's YAML, checked once, then plain values for each component.
//!
//! [`load`] reads a file or a folder of files, lays the environment over it, and returns either a
//! [`AgentConfig`] in which nothing needs to be checked again, or every mistake at once. After that no
//! duration is an integer and no component sees more than its own part.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use secrecy::SecretString;
use trunkline_shared::cluster::{ClusterName, MemberName, Tags};
use trunkline_shared::dcs::etcd::EtcdConfig;

use self::document::{Node, Origin};
pub use self::section::Address;
use self::section::{Report, Section};

pub mod arguments;
mod bootstrap;
pub mod client;
mod command;
mod document;
mod environment;
mod etcd3;
pub mod layers;
mod masked;
mod postgresql;
pub mod reload;
mod restapi;
mod sample;
mod section;
mod sources;
mod tags;

pub use self::bootstrap::{BootstrapConfig, BootstrapUser, InitdbOption};
pub use self::environment::{Environment, environment};
pub use self::postgresql::{Credentials, PostgresqlConfig};
pub use self::restapi::{RestApiConfig, RestCredentials, VerifyClient};
pub use self::sample::SAMPLE;
pub use self::section::nearest;
pub use crate::decide::observation::CrashPolicy;

/// Everything this agent was told.
#[derive(Clone, Debug)]
pub struct AgentConfig {
    /// The cluster (`scope`).
    pub cluster: ClusterName,
    /// What the keys of all clusters begin with; `service` unless set.
    pub namespace: String,
    /// This member.
    pub name: MemberName,
    /// The REST API.
    pub restapi: RestApiConfig,
    /// The DCS.
    pub etcd: EtcdConfig,
    /// How a new cluster is made.
    pub bootstrap: BootstrapConfig,
    /// The local PostgreSQL.
    pub postgresql: PostgresqlConfig,
    /// This member's tags.
    pub tags: Tags,
    /// The watchdog device.
    pub watchdog: WatchdogConfig,
    /// Logging.
    pub log: LogConfig,
    /// What only Trunkline has.
    pub own: OwnConfig,
    /// Everything that was told, secrets masked, one `key = value` in a line: for the log at start.
    pub effective: Vec<String>,
    /// Everything that was told, to tell what a reload changes.
    pub values: reload::Values,
}

/// `log:`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// `level`: a level, or filters such as `info,etcd=debug`. Patroni's words are understood.
    pub level: String,
    /// `type: json`.
    pub is_json: bool,
    /// `dir`: where log files go; standard error if absent.
    pub dir: Option<PathBuf>,
}

/// `watchdog:`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchdogConfig {
    /// Whether one is used.
    pub mode: WatchdogMode,
    /// The device; `/dev/watchdog` unless set.
    pub device: PathBuf,
    /// How long before the lease's end it fires; `None` (−1 in the file) is half of the ttl.
    pub safety_margin: Option<Duration>,
}

/// `watchdog.mode`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchdogMode {
    /// None.
    Off,
    /// Used if it can be.
    Automatic,
    /// This member leads only with one.
    Required,
}

/// `trunkline:`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnConfig {
    /// Where deadline, lease and fence live: memory, not disk. `None`: chosen at start (`ha.md` 3).
    pub run_dir: Option<PathBuf>,
    /// What follows when the postmaster dies.
    pub crash_policy: CrashPolicy,
}

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
    /// Nobody reads this variable of the environment.
    UnknownVariable {
        /// Its name.
        variable: String,
        /// The known variable nearest to it.
        suggestion: Option<String>,
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
    /// Two settings contradict each other; says which one holds.
    Contradiction {
        /// Where the one stands that does not hold.
        origin: Origin,
        /// Its full name.
        key: String,
        /// What is done.
        done: String,
    },
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
#[error("{}", .mistakes.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
pub struct ConfigError {
    /// At least one.
    pub mistakes: Vec<Mistake>,
}

/// Reads the configuration of an agent from `path` (a file, or a folder whose `*.yml` are merged in the
/// order of their names) with the environment laid over it.
pub fn load(path: &Path, env: &Environment) -> Result<(AgentConfig, Vec<Warning>), ConfigError> {
    from_document(sources::read(Some(path), env)?)
}

/// The same without a file: the environment alone.
pub fn load_environment(env: &Environment) -> Result<(AgentConfig, Vec<Warning>), ConfigError> {
    from_document(sources::read(None, env)?)
}

fn from_document(
    (document, unknown): (Node, Vec<Warning>),
) -> Result<(AgentConfig, Vec<Warning>), ConfigError> {
    let report = Report::new(&document);
    unknown.into_iter().for_each(|w| report.warn(w));
    let config = read(&document, &report);
    let (mistakes, warnings) = report.into_parts();
    match config {
        Some(config) if mistakes.is_empty() => Ok((config, warnings)),
        _ => Err(ConfigError { mistakes }),
    }
}

fn read(document: &Node, report: &Report) -> Option<AgentConfig> {
    let root = Section::root(document, report);
    let cluster = name(
        &root,
        "scope",
        "write the name of the cluster, such as \"scope: demo\"",
    );
    let member = name(
        &root,
        "name",
        "write this member's name, unique in its cluster, such as \"name: n1\"",
    );
    let namespace = root
        .text("namespace")
        .unwrap_or_else(|| "service".to_owned());
    let restapi = restapi::read(&root.section("restapi"));
    let etcd = etcd3::read(&root);
    let bootstrap = bootstrap::read(&root.section("bootstrap"));
    let postgresql = postgresql::read(&root.section("postgresql"));
    let tags = tags::read(&root.section("tags"));
    let watchdog = watchdog(&root.section("watchdog"));
    let log = log(&root.section("log"));
    let own = own(&root.section("trunkline"));
    client::accept(&root.section("ctl"));
    root.not_acted_on(&["citus", "mpp", "kubernetes_labels"]);
    root.end();
    Some(AgentConfig {
        cluster: ClusterName::new(&cluster?),
        namespace: namespace.trim_matches('/').to_owned(),
        name: MemberName::new(&member?),
        restapi: restapi?,
        etcd: etcd?,
        bootstrap,
        postgresql: postgresql?,
        tags,
        watchdog,
        log,
        own,
        effective: masked::lines(document),
        values: reload::Values::of(document),
    })
}

/// A name that becomes part of a key.
fn name(section: &Section<'_>, key: &str, write: &str) -> Option<String> {
    let Some(text) = section.text(key) else {
        if section.find(key).is_none() {
            section.missing(key, write);
        }
        return None;
    };
    if text.is_empty() || text.contains('/') || text.chars().any(char::is_control) {
        if let Some(node) = section.find(key) {
            section.unusable(key, node, "a name without \"/\", not empty");
        }
        return None;
    }
    Some(text)
}

fn watchdog(section: &Section<'_>) -> WatchdogConfig {
    let mode = section.one_of(
        "mode",
        &[
            ("off", WatchdogMode::Off),
            ("false", WatchdogMode::Off),
            ("automatic", WatchdogMode::Automatic),
            ("required", WatchdogMode::Required),
        ],
    );
    let mode = mode.unwrap_or(WatchdogMode::Off);
    let config = WatchdogConfig {
        mode,
        device: section
            .file("device")
            .unwrap_or_else(|| PathBuf::from("/dev/watchdog")),
        safety_margin: section
            .integer("safety_margin", -1, 3600)
            .map_or(Some(Duration::from_secs(5)), |seconds| {
                u64::try_from(seconds).ok().map(Duration::from_secs)
            }),
    };
    section.acknowledge(&["driver"]);
    section.end();
    config
}

fn log(section: &Section<'_>) -> LogConfig {
    let config = LogConfig {
        level: section.text("level").unwrap_or_else(|| "INFO".to_owned()),
        is_json: section
            .one_of("type", &[("plain", false), ("json", true)])
            .unwrap_or(false),
        dir: section.file("dir"),
    };
    section.not_acted_on(&[
        "traceback_level",
        "format",
        "dateformat",
        "static_fields",
        "max_queue_size",
        "file_num",
        "file_size",
        "mode",
        "loggers",
        "deduplicate_heartbeat_logs",
    ]);
    section.end();
    config
}

fn own(section: &Section<'_>) -> OwnConfig {
    let config = OwnConfig {
        run_dir: section.file("run_dir"),
        crash_policy: section
            .one_of(
                "crash_policy",
                &[
                    ("auto", CrashPolicy::Auto),
                    ("restart", CrashPolicy::Restart),
                    ("failover", CrashPolicy::Failover),
                ],
            )
            .unwrap_or(CrashPolicy::Auto),
    };
    if let (Some(dir), Some(node)) = (&config.run_dir, section.find("run_dir"))
        && !dir.is_absolute()
    {
        section.unusable(
            "run_dir",
            node,
            "an absolute path of a folder in memory, such as /run/trunkline/demo-n1",
        );
    }
    section.end();
    config
}

/// Names and texts of a mapping as a sorted map.
fn sorted(pairs: Vec<(String, String)>) -> BTreeMap<String, String> {
    pairs.into_iter().collect()
}

/// A password with a name.
#[derive(Clone, Debug)]
pub struct UserPassword {
    /// The user.
    pub username: String,
    /// The password.
    pub password: SecretString,
}
