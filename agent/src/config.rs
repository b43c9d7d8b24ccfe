//! What the agent was told: Patroni's YAML, checked once, then plain values for each component.
//!
//! [`load`] reads a file or a folder of files, lays the environment over it, and returns either a
//! [`AgentConfig`] in which nothing needs to be checked again, or every mistake at once. After that no
//! duration is an integer and no component sees more than its own part.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use secrecy::SecretString;
use trunkline_shared::cluster::{ClusterName, MemberName, Tags};
use trunkline_shared::dcs::etcd::EtcdConfig;
use trunkline_shared::service::logging::LogSettings;

use self::document::Node;
pub use self::section::Address;
use self::section::{Report, Section};

pub mod arguments;
mod bootstrap;
pub mod client;
mod command;
mod document;
pub mod dynamic;
pub mod effective;
mod environment;
mod etcd3;
mod findings;
pub mod in_force;
pub mod layers;
mod log;
mod masked;
mod postgresql;
pub mod reload;
mod rest_client;
mod restapi;
mod sample;
mod section;
mod sources;
mod tags;

pub use self::bootstrap::{BootstrapConfig, BootstrapUser, InitdbOption};
pub use self::environment::{Environment, environment};
pub use self::findings::{ConfigError, Mistake, Warning};
pub use self::postgresql::{Credentials, PostgresqlConfig};
pub use self::rest_client::RestClientConfig;
pub use self::restapi::{Allowlist, RestApiConfig, RestCredentials, ServerTls};
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
    /// How the REST APIs of others are asked.
    pub rest_client: RestClientConfig,
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
    pub log: LogSettings,
    /// What only Trunkline has.
    pub own: OwnConfig,
    /// Everything that was told, secrets masked, one `key = value` in a line: for the log at start.
    pub effective: Vec<String>,
    /// Everything that was told, to tell what a reload changes.
    pub values: reload::Values,
    /// The document, to be laid over the cluster's configuration.
    pub source: in_force::Source,
    /// The keys of it that nobody goes by: unknown, without effect, or overruled by another.
    pub unread: Vec<String>,
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

/// Keys of the whole file that change nothing here.
const WITHOUT_EFFECT: [(&str, &str); 4] = [
    (
        "citus",
        "Citus is not supported: this member is an ordinary one, and pg_dist_node is left to its owner",
    ),
    (
        "mpp",
        "Citus is not supported: this member is an ordinary one, and pg_dist_node is left to its owner",
    ),
    (
        "thread_pool_size",
        "the agent has no thread pool that needs a size",
    ),
    (
        "thread_stack_size",
        "the agent's threads need no size of their own",
    ),
];

/// All that can be known of a configuration by reading it.
#[derive(Clone, Debug)]
pub struct Examined {
    /// What was told, as far as it can be used: absent if what must be there is not.
    pub config: Option<AgentConfig>,
    /// Why it cannot be used, every reason.
    pub mistakes: Vec<Mistake>,
    /// What may not be as it was meant.
    pub warnings: Vec<Warning>,
}

/// Reads the configuration of an agent from `path` (a file, or a folder whose `*.yml` are merged in the
/// order of their names) with the environment laid over it; without a path the environment alone.
pub fn examine(path: Option<&Path>, env: &Environment) -> Examined {
    let (document, unknown) = match sources::read(path, env) {
        Ok(read) => read,
        Err(error) => {
            return Examined {
                config: None,
                mistakes: error.mistakes,
                warnings: error.warnings,
            };
        }
    };
    examined(&document, unknown)
}

/// The same of one file's text alone, without the environment.
pub fn examine_text(text: &str) -> Examined {
    match sources::of_text("text", text) {
        Ok((document, duplicates)) => {
            let twice = duplicates.into_iter().map(Warning::DuplicateKey);
            examined(&document, twice.collect())
        }
        Err(mistake) => Examined {
            config: None,
            mistakes: vec![mistake],
            warnings: Vec::new(),
        },
    }
}

fn examined(document: &Node, found: Vec<Warning>) -> Examined {
    let report = Report::new(document);
    found.into_iter().for_each(|w| report.warn(w));
    let config = read(document, &report);
    let (mistakes, warnings) = report.into_parts();
    Examined {
        config,
        mistakes,
        warnings,
    }
}

/// The same, if there is no mistake.
pub fn load(path: &Path, env: &Environment) -> Result<(AgentConfig, Vec<Warning>), ConfigError> {
    examine(Some(path), env).usable()
}

/// The same without a file: the environment alone.
pub fn load_environment(env: &Environment) -> Result<(AgentConfig, Vec<Warning>), ConfigError> {
    examine(None, env).usable()
}

impl Examined {
    fn usable(self) -> Result<(AgentConfig, Vec<Warning>), ConfigError> {
        match self.config {
            Some(config) if self.mistakes.is_empty() => Ok((config, self.warnings)),
            _ => Err(ConfigError {
                mistakes: self.mistakes,
                warnings: self.warnings,
            }),
        }
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
    let log = log::read(&root.section("log"));
    let own = own(&root.section("trunkline"));
    let ctl = root.section("ctl");
    let as_client = restapi.as_ref().map(|restapi| restapi.as_client.clone());
    let rest_client = rest_client::read(&ctl, as_client.unwrap_or_default());
    ctl.end();
    root.without_effect(&WITHOUT_EFFECT);
    root.end();
    Some(AgentConfig {
        cluster: ClusterName::new(&cluster?),
        namespace: namespace.trim_matches('/').to_owned(),
        name: MemberName::new(&member?),
        restapi: restapi?,
        rest_client,
        etcd: etcd?,
        bootstrap,
        postgresql: postgresql?,
        tags,
        watchdog,
        log,
        own,
        effective: masked::lines(document),
        values: reload::Values::of(document),
        source: in_force::Source(Arc::new(document.clone())),
        unread: report.unread(),
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
            ("automatic", WatchdogMode::Automatic),
            ("required", WatchdogMode::Required),
            // Patroni takes these, too.
            ("false", WatchdogMode::Off),
            ("no", WatchdogMode::Off),
            ("disable", WatchdogMode::Off),
            ("disabled", WatchdogMode::Off),
            ("auto", WatchdogMode::Automatic),
            ("require", WatchdogMode::Required),
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
