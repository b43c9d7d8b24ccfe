//! `etcd3:`, and the clear refusal of the stores this version does not speak to.

use std::path::PathBuf;

use super::section::{Address, Section};
use super::{Mistake, UserPassword};

/// etcd's port.
const DEFAULT_PORT: u16 = 2379;

/// How etcd is reached.
#[derive(Clone, Debug)]
pub struct EtcdConfig {
    /// URLs such as `http://10.0.0.1:2379`, at least one.
    pub endpoints: Vec<String>,
    /// User and password, if etcd asks for them.
    pub authentication: Option<UserPassword>,
    /// Who signed etcd's certificates; the system's authorities if absent.
    pub cacert: Option<PathBuf>,
    /// This client's certificate.
    pub cert: Option<PathBuf>,
    /// Its key.
    pub key: Option<PathBuf>,
}

/// Stores of Patroni's that are not spoken to.
const OTHER_STORES: [&str; 5] = ["raft", "consul", "zookeeper", "exhibitor", "kubernetes"];

/// Reads `etcd3` and refuses the others.
pub fn read(root: &Section<'_>) -> Option<EtcdConfig> {
    let section = root.section("etcd3");
    let old = root.find("etcd");
    let others: Vec<&str> = OTHER_STORES
        .into_iter()
        .filter(|store| root.find(store).is_some())
        .collect();
    if !section.is_present() {
        if let Some(old) = old {
            let hosts = old
                .child("hosts")
                .or_else(|| old.child("host"))
                .map_or_else(|| "10.0.0.1:2379".to_owned(), written);
            root.report().mistake(Mistake::Refused {
                origin: old.origin.clone(),
                key: "etcd".to_owned(),
                why: format!(
                    "etcd's v2 API is gone, and a cluster kept in it would not be seen; move its keys \
                     to the v3 API (restart Patroni with \"etcd3\" under pause), then write instead:\n  \
                     etcd3:\n    hosts: {hosts}"
                ),
            });
        } else if let Some(store) = others.first() {
            if let Some(node) = root.find(store) {
                root.report().mistake(Mistake::Refused {
                    origin: node.origin.clone(),
                    key: (*store).to_owned(),
                    why: "this store is not supported; keep the cluster in etcd 3.4 or newer and \
                          write instead:\n  etcd3:\n    hosts: 10.0.0.1:2379,10.0.0.2:2379,10.0.0.3:2379"
                        .to_owned(),
                });
            }
        } else {
            root.missing(
                "etcd3",
                "write where etcd is:\n  etcd3:\n    hosts: 10.0.0.1:2379,10.0.0.2:2379,10.0.0.3:2379",
            );
        }
        return None;
    }
    if old.is_some() {
        root.not_acted_on(&["etcd"]);
    }
    root.not_acted_on(&others);
    read_section(&section)
}

fn written(node: &super::document::Node) -> String {
    match &node.value {
        super::document::Value::Scalar(s) => s.text.clone(),
        super::document::Value::List(items) => {
            items.iter().map(written).collect::<Vec<_>>().join(",")
        }
        super::document::Value::Map(_) => "10.0.0.1:2379".to_owned(),
    }
}

/// Reads the section itself; a router's file has the same.
pub fn read_section(section: &Section<'_>) -> Option<EtcdConfig> {
    let protocol = section
        .one_of("protocol", &[("http", "http"), ("https", "https")])
        .unwrap_or("http");
    let mut endpoints = Vec::new();
    for (key, split) in [("hosts", true), ("host", true), ("url", false)] {
        let Some(node) = section.find(key) else {
            continue;
        };
        for text in section.texts(key, split).unwrap_or_default() {
            match endpoint(&text, protocol) {
                Some(endpoint) => endpoints.push(endpoint),
                None => section.unusable(
                    key,
                    node,
                    "host:port, several separated by commas or as a list, such as \
                     10.0.0.1:2379,10.0.0.2:2379 (with https: \"protocol: https\")",
                ),
            }
        }
        if !endpoints.is_empty() {
            // Patroni takes the first of these that is set.
            break;
        }
    }
    for key in ["hosts", "host", "url"] {
        section.acknowledge(&[key]);
    }
    let authentication = match (section.text("username"), section.secret("password")) {
        (Some(username), Some(password)) => Some(UserPassword { username, password }),
        (Some(_), None) => {
            section.missing("password", "etcd asks for it with a username");
            None
        }
        (None, _) => None,
    };
    let (cacert, cert, key) = (
        section.file("cacert"),
        section.file("cert"),
        section.file("key"),
    );
    section.not_acted_on(&["proxy", "srv", "srv_suffix", "use_proxies"]);
    section.end();
    if endpoints.is_empty() {
        if section.texts("hosts", true).is_none_or(|h| h.is_empty())
            && section.find("host").is_none()
            && section.find("url").is_none()
        {
            section.missing(
                "hosts",
                "write where etcd is, such as \"hosts: 10.0.0.1:2379,10.0.0.2:2379\"",
            );
        }
        return None;
    }
    Some(EtcdConfig {
        endpoints,
        authentication,
        cacert,
        cert,
        key,
    })
}

fn endpoint(text: &str, protocol: &str) -> Option<String> {
    let (scheme, rest) = text.split_once("://").unwrap_or((protocol, text));
    if scheme != "http" && scheme != "https" {
        return None;
    }
    let address = Address::parse(rest.trim_end_matches('/'), Some(DEFAULT_PORT))?;
    Some(format!("{scheme}://{address}"))
}
