//! What of a file that was read again is taken up while the agent runs, and what is not.

use std::collections::{BTreeMap, BTreeSet};

use secrecy::{ExposeSecret, SecretString};

use super::document::{Node, Value};
use super::{
    AgentConfig, BootstrapConfig, OwnConfig, PostgresqlConfig, RestApiConfig, WatchdogConfig,
    WatchdogMode,
};

/// What only an agent that starts reads: the keys that begin so. [`take_up`] keeps exactly their values.
const WITH_A_RESTART: [&str; 12] = [
    "scope",
    "namespace",
    "name",
    "restapi.connect_address",
    "restapi.listen",
    "etcd3",
    "postgresql.listen",
    "postgresql.connect_address",
    "postgresql.data_dir",
    "postgresql.config_dir",
    "trunkline.run_dir",
    FOR_A_NEW_CLUSTER,
];

/// What stays as it is where `http` would become `https`, or the other way: the members know each other by URL.
const OF_THE_SCHEME: [&str; 7] = [
    "restapi.cafile",
    "restapi.certfile",
    "restapi.http_extra_headers",
    "restapi.https_extra_headers",
    "restapi.keyfile",
    "restapi.server_tokens",
    "restapi.verify_client",
];

/// It may be switched off, and not on.
const WATCHDOG_MODE: &str = "watchdog.mode";

/// Whose changes show as a pending restart of PostgreSQL where it needs one.
const PARAMETERS: &str = "postgresql.parameters";

/// What only a cluster that is made takes.
const FOR_A_NEW_CLUSTER: &str = "bootstrap.dcs";

/// Every value of a configuration as written, by key, to tell what another configuration changes.
#[derive(Clone, Debug, Default)]
pub struct Values(BTreeMap<String, SecretString>);

impl Values {
    /// Those of a document.
    pub(super) fn of(document: &Node) -> Self {
        let mut values = Self::default();
        values.collect("", document);
        values
    }

    fn collect(&mut self, path: &str, node: &Node) {
        match &node.value {
            Value::Map(entries) => {
                for entry in entries {
                    let path = match path {
                        "" => entry.key.clone(),
                        path => format!("{path}.{}", entry.key),
                    };
                    self.collect(&path, &entry.node);
                }
            }
            Value::List(items) => {
                for (at, item) in items.iter().enumerate() {
                    self.collect(&format!("{path}[{at}]"), item);
                }
            }
            Value::Scalar(scalar) => {
                let value = SecretString::from(scalar.text.to_string());
                self.0.insert(path.to_owned(), value);
            }
        }
    }

    /// The keys, lists as one, whose values differ.
    fn changed(&self, other: &Self) -> BTreeSet<String> {
        let value = |values: &Self, key: &str| {
            let value = values.0.get(key);
            value.map(|value| value.expose_secret().to_owned())
        };
        self.0
            .keys()
            .chain(other.0.keys())
            .filter(|key| value(self, key) != value(other, key))
            .map(|key| key.split('[').next().unwrap_or(key).to_owned())
            .collect()
    }

    /// Whether the key, or one below it, is there.
    fn has(&self, key: &str) -> bool {
        self.0.keys().any(|known| begins(known, key))
    }

    /// These, with the live ones of another configuration.
    fn with_live_of(&self, other: &Self, is_live: impl Fn(&str) -> bool) -> Self {
        let kept = self.0.iter().filter(|(key, _)| !is_live(key));
        let taken = other.0.iter().filter(|(key, _)| is_live(key));
        let all = kept.chain(taken);
        Self(all.map(|(k, v)| (k.clone(), v.clone())).collect())
    }
}

/// What is taken up as a whole, or stays as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// How the agent logs.
    Log,
    /// The REST API, and how those of others are asked.
    Rest,
}

impl Part {
    /// The sections that say it.
    fn sections(self) -> &'static [&'static str] {
        match self {
            Part::Log => &["log"],
            Part::Rest => &["restapi", "ctl"],
        }
    }
}

/// A part that could not be taken up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// What stays as it was.
    pub part: Part,
    /// Its changed keys.
    pub keys: Vec<String>,
    /// Why, for people.
    pub why: String,
}

/// What became of a file that was read again.
#[derive(Clone, Debug)]
pub struct TakenUp {
    /// The configuration in force: the one from before with what is taken up.
    pub config: AgentConfig,
    /// The changed keys that are taken up.
    pub taken: Vec<String>,
    /// The changed keys that nobody goes by.
    pub unread: Vec<String>,
    /// What could not be put in force.
    pub kept: Vec<Kept>,
    /// The changed keys that are not, because only a new agent reads them.
    pub left: Vec<String>,
    /// The changed keys that only a new cluster takes.
    pub void: Vec<String>,
}

impl TakenUp {
    /// Whether everything that was changed is taken up.
    pub fn is_all(&self) -> bool {
        self.left.is_empty() && self.void.is_empty() && self.kept.is_empty()
    }

    /// Leaves a part as `running` has it, because it could not be put in force: the next reload finds its changed
    /// keys again.
    pub fn keep(&mut self, part: Part, running: &AgentConfig, why: String) {
        match part {
            Part::Log => self.config.log.clone_from(&running.log),
            Part::Rest => {
                self.config.restapi = running.restapi.clone();
                self.config.rest_client = running.rest_client.clone();
            }
        }
        let is_of = |key: &str| part.sections().iter().any(|of| begins(key, of));
        self.config.values = self.config.values.with_live_of(&running.values, is_of);
        let taken = std::mem::take(&mut self.taken);
        let (keys, taken) = taken.into_iter().partition(|key| is_of(key));
        self.taken = taken;
        self.kept.push(Kept { part, keys, why });
    }
}

/// For the operator.
impl std::fmt::Display for TakenUp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut parts = Vec::new();
        if !self.taken.is_empty() {
            parts.push(format!("taken up: {}", self.taken.join(", ")));
        }
        if self.taken.iter().any(|key| key.starts_with(PARAMETERS)) {
            let text = "what needs a restart of PostgreSQL shows in \"trunkline list\"";
            parts.push(text.to_owned());
        }
        if !self.left.is_empty() {
            let keys = self.left.join(", ");
            parts.push(format!("NOT taken up, restart the agent for these: {keys}"));
        }
        if !self.void.is_empty() {
            let keys = self.void.join(", ");
            parts.push(format!(
                "NOT taken up, the cluster exists, use \"trunkline edit-config\" for these: {keys}"
            ));
        }
        for Kept { part, keys, why } in &self.kept {
            let what = match part {
                Part::Log => "the log stays as it was",
                Part::Rest => "the REST API and its client stay as they were",
            };
            let keys = match keys.is_empty() {
                true => String::new(),
                false => format!(" ({})", keys.join(", ")),
            };
            parts.push(format!("NOT in force, {what}{keys}: {why}"));
        }
        if !self.unread.is_empty() {
            let keys = self.unread.join(", ");
            parts.push(format!("of no effect, the agent's log says why: {keys}"));
        }
        match parts.is_empty() {
            true => f.write_str("nothing has changed in the file"),
            false => f.write_str(&parts.join("; ")),
        }
    }
}

/// What a running agent takes up of a file that was read again. The rest stays as it is: a port, a folder or
/// an address that only half of the agent knew would make it misjudge its own PostgreSQL.
pub fn take_up(running: &AgentConfig, read: AgentConfig) -> TakenUp {
    let (mut taken, mut left, mut void) = (Vec::new(), Vec::new(), Vec::new());
    let mut unread = Vec::new();
    let keeps_scheme = running.restapi.tls.is_some() == read.restapi.tls.is_some();
    let stays_unwatched = running.watchdog.mode == WatchdogMode::Off;
    let is_live = |key: &str| {
        let is_kept = WITH_A_RESTART.iter().any(|kept| begins(key, kept));
        let is_of_the_scheme = OF_THE_SCHEME.iter().any(|of| begins(key, of));
        let is_kept_off = stays_unwatched && begins(key, WATCHDOG_MODE);
        !is_kept && !is_kept_off && (keeps_scheme || !is_of_the_scheme)
    };
    for key in running.values.changed(&read.values) {
        // What is gone was read by nobody either.
        let document = match read.values.has(&key) {
            true => &read,
            false => running,
        };
        if document.unread.iter().any(|of| begins(&key, of)) {
            unread.push(key);
        } else if is_live(&key) {
            taken.push(key);
        } else if begins(&key, FOR_A_NEW_CLUSTER) {
            void.push(key);
        } else {
            left.push(key);
        }
    }
    let running = running.clone();
    let restapi = rest_api(running.restapi, read.restapi, keeps_scheme);
    let config = AgentConfig {
        // Only a new agent reads these.
        cluster: running.cluster,
        namespace: running.namespace,
        name: running.name,
        restapi,
        etcd: running.etcd,
        postgresql: PostgresqlConfig {
            listen: running.postgresql.listen,
            connect_address: running.postgresql.connect_address,
            data_dir: running.postgresql.data_dir,
            config_dir: running.postgresql.config_dir,
            ..read.postgresql
        },
        own: OwnConfig {
            run_dir: running.own.run_dir,
            ..read.own
        },
        bootstrap: BootstrapConfig {
            dcs: running.bootstrap.dcs,
            ..read.bootstrap
        },
        rest_client: read.rest_client,
        log: read.log,
        tags: read.tags,
        watchdog: watchdog(&running.watchdog, read.watchdog),
        values: running.values.with_live_of(&read.values, is_live),
        effective: read.effective,
        source: read.source,
        unread: read.unread,
    };
    TakenUp {
        config,
        taken,
        unread,
        kept: Vec::new(),
        left,
        void,
    }
}

fn rest_api(running: RestApiConfig, read: RestApiConfig, keeps_scheme: bool) -> RestApiConfig {
    RestApiConfig {
        listen: running.listen,
        connect_address: running.connect_address,
        ..match keeps_scheme {
            true => read,
            false => RestApiConfig {
                tls: running.tls,
                headers: running.headers,
                ..read
            },
        }
    }
}

/// The lease of an agent that started without a watchdog leaves it no time (`WatchdogConfig::reserve`).
fn watchdog(running: &WatchdogConfig, read: WatchdogConfig) -> WatchdogConfig {
    match running.mode {
        WatchdogMode::Off => WatchdogConfig {
            mode: WatchdogMode::Off,
            ..read
        },
        WatchdogMode::Automatic | WatchdogMode::Required => read,
    }
}

/// Whether a key is `of` or lies below it.
fn begins(key: &str, of: &str) -> bool {
    key.strip_prefix(of)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{CrashPolicy, load};

    const FILE: &str = "\
scope: demo
name: n1
etcd3: {hosts: \"10.0.0.1:2379\"}
restapi: {listen: \"10.0.0.1:8008\"}
bootstrap: {dcs: {ttl: 30}}
postgresql:
  listen: 10.0.0.1:5432
  data_dir: /data
  authentication: {superuser: {username: postgres, password: one}}
  pg_hba: [a, b]
  parameters: {work_mem: 4MB}
tags: {nofailover: false}
";

    fn read(text: &str) -> AgentConfig {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("n1.yml");
        std::fs::write(&path, text).unwrap();
        load(&path, &BTreeMap::new()).unwrap().0
    }

    #[test]
    fn a_watchdog_is_switched_off_by_a_reload_and_on_by_a_new_agent_only() {
        let with = |mode: &str| read(&format!("{FILE}watchdog: {{mode: {mode}}}\n"));
        let on = take_up(&with("off"), with("required"));
        assert_eq!(on.left, ["watchdog.mode"]);
        assert_eq!(on.config.watchdog.mode, WatchdogMode::Off);
        for (from, to, mode) in [
            ("required", "off", WatchdogMode::Off),
            ("required", "automatic", WatchdogMode::Automatic),
            ("automatic", "required", WatchdogMode::Required),
        ] {
            let taken = take_up(&with(from), with(to));
            assert_eq!(taken.taken, ["watchdog.mode"]);
            assert_eq!(taken.config.watchdog.mode, mode);
        }
    }

    #[test]
    fn what_is_taken_up_and_what_is_not_is_named_and_secrets_are_not_shown() {
        let running = read(FILE);
        let same = take_up(&running, read(FILE));
        assert!(same.is_all() && same.taken.is_empty());
        assert_eq!(same.to_string(), "nothing has changed in the file");

        let text = FILE
            .replace("password: one", "password: hidden")
            .replace("[a, b]", "[a]")
            .replace("4MB", "8MB")
            .replace(":5432", ":5433")
            .replace(":8008", ":8009")
            .replace("ttl: 30", "ttl: 40")
            .replace("nofailover: false", "nofailover: true");
        let text = format!("{text}trunkline: {{crash_policy: failover}}\n");
        let first = take_up(&running, read(&text));
        assert_eq!(
            first.taken,
            [
                "postgresql.authentication.superuser.password",
                "postgresql.parameters.work_mem",
                "postgresql.pg_hba",
                "tags.nofailover",
                "trunkline.crash_policy"
            ]
        );
        assert_eq!(first.left, ["postgresql.listen", "restapi.listen"]);
        assert_eq!(first.void, ["bootstrap.dcs.ttl"]);
        assert!(!first.is_all());
        assert!(!format!("{first} {first:?}").contains("hidden"));
        let postgresql = &first.config.postgresql;
        assert_eq!(postgresql.parameters["work_mem"], "8MB");
        assert_eq!(postgresql.listen.port, 5432);
        assert!(first.config.tags.nofailover);
        assert_eq!(first.config.own.crash_policy, CrashPolicy::Failover);

        // What was not taken up is named again.
        let again = take_up(&first.config, read(&text));
        assert!(again.taken.is_empty());
        assert_eq!(again.left, first.left);
    }

    #[test]
    fn what_could_not_be_put_in_force_stays_and_is_named_again() {
        let running = read(FILE);
        let text = FILE
            .replace("4MB", "8MB")
            .replace(":8008\"", ":8008\", allowlist: [\"10.0.0.2\"]");
        let text = format!("{text}ctl: {{insecure: true}}\nlog: {{level: DEBUG}}\n");
        let rest = ["ctl.insecure", "restapi.allowlist"];
        let mut told = take_up(&running, read(&text));
        for _ in 0..2 {
            told.keep(Part::Rest, &running, "no such file".to_owned());
            assert!(!told.is_all());
            assert_eq!(told.kept[0].keys, rest);
            assert!(!told.config.restapi.allowlist.is_in_force());
            assert!(!told.config.rest_client.is_insecure);
            assert!(told.to_string().ends_with(
                "NOT in force, the REST API and its client stay as they were (ctl.insecure, restapi.allowlist): \
                 no such file"
            ));
            told = take_up(&told.config, read(&text));
            assert_eq!(
                told.taken, rest,
                "named at every reload until it is in force"
            );
        }
        assert_eq!(told.config.postgresql.parameters["work_mem"], "8MB");
        assert_eq!(told.config.log.level, "DEBUG", "the rest was taken up");

        told.keep(Part::Log, &running, "no such folder".to_owned());
        assert_eq!(told.config.log.level, running.log.level);
        assert_eq!(told.taken, rest);
        assert!(
            told.to_string()
                .contains("NOT in force, the log stays as it was: no such folder")
        );
    }

    #[test]
    fn what_nobody_reads_is_never_said_to_be_taken_up() {
        let running = read(FILE);
        let text = FILE
            .replace("4MB", "4MB, max_connections: 50, port: 1")
            .replace(
                "nofailover: false",
                "nofailover: false, failover_priority: 0",
            )
            .replace("pg_hba", "use_slots: false\n  pg_hbba: [c]\n  pg_hba");
        let text = format!("{text}citus: {{group: 0, database: x}}\n");
        let first = take_up(&running, read(&text));
        let unread = [
            "citus.database",
            "citus.group",
            "postgresql.parameters.max_connections",
            "postgresql.parameters.port",
            "postgresql.pg_hbba",
            "postgresql.use_slots",
            "tags.failover_priority",
        ];
        assert_eq!(first.unread, unread);
        assert!(first.taken.is_empty() && first.is_all());
        assert!(
            first
                .to_string()
                .starts_with("of no effect, the agent's log says why: citus.database, ")
        );
        // Taken out of the file they are of as little effect, and once they are of one they are taken up.
        assert_eq!(take_up(&first.config, read(FILE)).unread, unread);
        let obeyed = text.replace("nofailover: false, ", "");
        let obeyed = take_up(
            &first.config,
            read(&obeyed.replace("priority: 0", "priority: 2")),
        );
        assert_eq!(obeyed.taken, ["tags.failover_priority", "tags.nofailover"]);
        assert!(obeyed.unread.is_empty());
    }
}
