//! Environment variables: `TRUNKLINE_*`, and Patroni's `PATRONI_*` of the same meaning. Where both are
//! set, `TRUNKLINE_*` wins.

use std::collections::BTreeMap;

use super::document::{self, Node};
use super::section::nearest;
use super::{Mistake, Warning};

/// The environment of the process, or what a test gives in its place.
pub type Environment = BTreeMap<String, String>;

/// The environment of this process. Variables that are not UTF-8 are nobody's.
pub fn environment() -> Environment {
    std::env::vars_os()
        .filter_map(|(key, value)| Some((key.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}

/// Lowest first: a later one is laid over an earlier one.
const PREFIXES: [&str; 2] = ["PATRONI_", "TRUNKLINE_"];

/// A whole document in one variable, as in Patroni.
const DOCUMENT: &str = "CONFIGURATION";

/// Variables that other programs of the family read; not part of the configuration.
const ELSEWHERE: [&str; 3] = ["CONFIG_FILE", "LOG_FILTER", "VERSION"];

/// Name behind the prefix, and the key it sets.
const VARIABLES: &[(&str, &[&str])] = &[
    ("NAME", &["name"]),
    ("SCOPE", &["scope"]),
    ("NAMESPACE", &["namespace"]),
    ("LOG_LEVEL", &["log", "level"]),
    ("LOG_TYPE", &["log", "type"]),
    ("LOG_DIR", &["log", "dir"]),
    ("LOG_FORMAT", &["log", "format"]),
    ("LOG_DATEFORMAT", &["log", "dateformat"]),
    ("LOG_TRACEBACK_LEVEL", &["log", "traceback_level"]),
    ("RESTAPI_LISTEN", &["restapi", "listen"]),
    ("RESTAPI_CONNECT_ADDRESS", &["restapi", "connect_address"]),
    ("RESTAPI_CERTFILE", &["restapi", "certfile"]),
    ("RESTAPI_KEYFILE", &["restapi", "keyfile"]),
    ("RESTAPI_KEYFILE_PASSWORD", &["restapi", "keyfile_password"]),
    ("RESTAPI_CAFILE", &["restapi", "cafile"]),
    ("RESTAPI_VERIFY_CLIENT", &["restapi", "verify_client"]),
    ("RESTAPI_ALLOWLIST", &["restapi", "allowlist"]),
    (
        "RESTAPI_USERNAME",
        &["restapi", "authentication", "username"],
    ),
    (
        "RESTAPI_PASSWORD",
        &["restapi", "authentication", "password"],
    ),
    ("CTL_INSECURE", &["ctl", "insecure"]),
    ("CTL_CACERT", &["ctl", "cacert"]),
    ("CTL_CERTFILE", &["ctl", "certfile"]),
    ("CTL_KEYFILE", &["ctl", "keyfile"]),
    ("ETCD3_HOST", &["etcd3", "host"]),
    ("ETCD3_HOSTS", &["etcd3", "hosts"]),
    ("ETCD3_URL", &["etcd3", "url"]),
    ("ETCD3_PROTOCOL", &["etcd3", "protocol"]),
    ("ETCD3_USERNAME", &["etcd3", "username"]),
    ("ETCD3_PASSWORD", &["etcd3", "password"]),
    ("ETCD3_CACERT", &["etcd3", "cacert"]),
    ("ETCD3_CERT", &["etcd3", "cert"]),
    ("ETCD3_KEY", &["etcd3", "key"]),
    ("ETCD3_PROXY", &["etcd3", "proxy"]),
    ("ETCD3_SRV", &["etcd3", "srv"]),
    ("ETCD_HOST", &["etcd", "host"]),
    ("ETCD_HOSTS", &["etcd", "hosts"]),
    ("ETCD_URL", &["etcd", "url"]),
    ("CONSUL_HOST", &["consul", "host"]),
    ("ZOOKEEPER_HOSTS", &["zookeeper", "hosts"]),
    ("EXHIBITOR_HOSTS", &["exhibitor", "hosts"]),
    ("KUBERNETES_LABELS", &["kubernetes", "labels"]),
    ("RAFT_SELF_ADDR", &["raft", "self_addr"]),
    ("POSTGRESQL_LISTEN", &["postgresql", "listen"]),
    (
        "POSTGRESQL_CONNECT_ADDRESS",
        &["postgresql", "connect_address"],
    ),
    ("POSTGRESQL_PROXY_ADDRESS", &["postgresql", "proxy_address"]),
    ("POSTGRESQL_DATA_DIR", &["postgresql", "data_dir"]),
    ("POSTGRESQL_CONFIG_DIR", &["postgresql", "config_dir"]),
    ("POSTGRESQL_BIN_DIR", &["postgresql", "bin_dir"]),
    ("POSTGRESQL_PGPASS", &["postgresql", "pgpass"]),
    ("RUN_DIR", &["trunkline", "run_dir"]),
    ("CRASH_POLICY", &["trunkline", "crash_policy"]),
];

/// The three roles, each with the settings of a connection behind its name.
const ROLES: [(&str, &str); 3] = [
    ("SUPERUSER_", "superuser"),
    ("REPLICATION_", "replication"),
    ("REWIND_", "rewind"),
];

/// Settings of a role's connection.
const ROLE_SETTINGS: [(&str, &str); 12] = [
    ("USERNAME", "username"),
    ("PASSWORD", "password"),
    ("SSLMODE", "sslmode"),
    ("SSLKEY", "sslkey"),
    ("SSLPASSWORD", "sslpassword"),
    ("SSLCERT", "sslcert"),
    ("SSLROOTCERT", "sslrootcert"),
    ("SSLCRL", "sslcrl"),
    ("SSLCRLDIR", "sslcrldir"),
    ("SSLNEGOTIATION", "sslnegotiation"),
    ("GSSENCMODE", "gssencmode"),
    ("CHANNEL_BINDING", "channel_binding"),
];

/// The variables as a document to lay over the files, warnings about unknown ones, and mistakes.
pub fn overlay(env: &Environment) -> (Node, Vec<Warning>, Vec<Mistake>) {
    let mut document = Node::empty("environment");
    let mut warnings = Vec::new();
    let mut mistakes = Vec::new();
    for prefix in PREFIXES {
        for (variable, text) in env {
            let Some(name) = variable.strip_prefix(prefix) else {
                continue;
            };
            if name == DOCUMENT {
                match document::parse(variable, text) {
                    Ok(node) => document.merge(node),
                    Err(malformed) => mistakes.push(Mistake::Malformed {
                        path: variable.clone(),
                        line: malformed.line,
                        why: malformed.why,
                    }),
                }
            } else if let Some(path) = path_of(name) {
                document.merge(Node::from_environment(variable, text).nested(&path));
            } else if !ELSEWHERE.contains(&name) {
                warnings.push(Warning::UnknownVariable {
                    variable: variable.clone(),
                    suggestion: meant(name).map(|meant| format!("{prefix}{meant}")),
                });
            }
        }
    }
    (document, warnings, mistakes)
}

fn path_of(name: &str) -> Option<Vec<&'static str>> {
    if let Some((_, path)) = VARIABLES.iter().find(|(known, _)| *known == name) {
        return Some(path.to_vec());
    }
    ROLES.iter().find_map(|(prefix, role)| {
        let setting = name.strip_prefix(prefix)?;
        let (_, key) = ROLE_SETTINGS.iter().find(|(known, _)| *known == setting)?;
        Some(vec!["postgresql", "authentication", *role, *key])
    })
}

fn meant(name: &str) -> Option<String> {
    let roles: Vec<String> = ROLES
        .iter()
        .flat_map(|(role, _)| ROLE_SETTINGS.iter().map(move |(s, _)| format!("{role}{s}")))
        .collect();
    let known = VARIABLES.iter().map(|(known, _)| *known);
    nearest(name, known.chain(roles.iter().map(String::as_str))).map(str::to_owned)
}
