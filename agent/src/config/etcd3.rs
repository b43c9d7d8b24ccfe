//! `etcd3:`, and the clear refusal of the stores this version does not speak to.

use secrecy::SecretString;
use trunkline_shared::dcs::etcd::{EtcdConfig, Protocol};

use super::section::{Address, Section};
use super::{Mistake, Warning};

/// etcd's port.
const DEFAULT_PORT: u16 = 2379;

/// Stores of Patroni's that are not spoken to.
const OTHER_STORES: [&str; 5] = ["raft", "consul", "zookeeper", "exhibitor", "kubernetes"];

const BESIDE: &str = "etcd3 is the store of this cluster";

/// Ways to etcd that are not gone.
const OTHER_WAYS: [(&str, &str); 4] = [
    (
        "proxy",
        "etcd is spoken to directly; write the members' addresses at etcd3.hosts",
    ),
    (
        "use_proxies",
        "the addresses of etcd3.hosts are used as they stand, and no others: what a proxy needs",
    ),
    (
        "srv",
        "DNS is not asked for SRV records; write the members' addresses at etcd3.hosts",
    ),
    (
        "srv_suffix",
        "DNS is not asked for SRV records; write the members' addresses at etcd3.hosts",
    ),
];

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
    root.without_effect(&[("etcd", BESIDE)]);
    root.without_effect(&OTHER_STORES.map(|store| (store, BESIDE)));
    read_section(&section)
}

fn says_nothing(node: &super::document::Node) -> bool {
    match &node.value {
        super::document::Value::Scalar(s) => s.text.trim().is_empty(),
        super::document::Value::List(items) => items.is_empty(),
        super::document::Value::Map(_) => false,
    }
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
    let mut protocol = section
        .one_of(
            "protocol",
            &[("http", Protocol::Http), ("https", Protocol::Https)],
        )
        .unwrap_or_default();
    let (endpoints, of_the_url) = endpoints(section, &mut protocol);
    let (username, password) = (section.text("username"), section.secret("password"));
    let (username, password) = match of_the_url {
        Some((username, password)) => (Some(username), Some(password)),
        None => (username, password),
    };
    if username.is_some() != password.is_some() {
        let (absent, present) = match username {
            Some(_) => ("password", "username"),
            None => ("username", "password"),
        };
        section.missing(
            absent,
            &format!("it goes with {present}: write both or none"),
        );
    }
    let (cacert, cert, key) = (
        section.file("cacert"),
        section.file("cert"),
        section.file("key"),
    );
    if key.is_some() && cert.is_none() {
        section.missing("cert", "it goes with key: write both or none");
    }
    section.without_effect(&OTHER_WAYS);
    section.end();
    if endpoints.is_empty() {
        let named = ["url", "hosts", "host"]
            .iter()
            .find_map(|key| section.find(key));
        // What cannot be used was named; an empty list says nothing.
        if named.is_none_or(says_nothing) {
            section.missing(
                "hosts",
                "write where etcd is, such as \"hosts: 10.0.0.1:2379,10.0.0.2:2379\"",
            );
        }
        return None;
    }
    Some(EtcdConfig {
        hosts: endpoints,
        protocol,
        username,
        password,
        cacert,
        cert,
        key,
    })
}

/// A user's name and password.
type Login = (String, SecretString);

/// The first of `url`, `hosts` and `host` that is set, as Patroni takes them, and whom a URL names.
fn endpoints(section: &Section<'_>, protocol: &mut Protocol) -> (Vec<String>, Option<Login>) {
    let (mut endpoints, mut login) = (Vec::new(), None);
    let mut first = None;
    for (key, split) in [("url", false), ("hosts", true), ("host", true)] {
        section.acknowledge(&[key]);
        let Some(node) = section.find(key).filter(|node| !says_nothing(node)) else {
            continue;
        };
        if let Some(first) = first {
            section.report().warn(Warning::Contradiction {
                origin: node.origin.clone(),
                key: section.path_of(key),
                done: format!("{} is set, too, and holds", section.path_of(first)),
            });
            continue;
        }
        for text in section.texts(key, split).unwrap_or_default() {
            let (text, own) = match key {
                "url" => without_login(&text),
                _ => (text, None),
            };
            login = own.or(login);
            match endpoint(&text) {
                Some((host, own)) => {
                    *protocol = own.unwrap_or(*protocol);
                    endpoints.push(host);
                }
                None => section.unusable(
                    key,
                    node,
                    "host:port, several separated by commas or as a list, such as \
                     10.0.0.1:2379,10.0.0.2:2379 (with https: \"protocol: https\")",
                ),
            }
        }
        if !endpoints.is_empty() {
            first = Some(key);
        }
    }
    (endpoints, login)
}

/// A URL without the name and password in it, and those.
fn without_login(url: &str) -> (String, Option<Login>) {
    let parts = url.split_once("://").and_then(|(scheme, rest)| {
        let (login, host) = rest.rsplit_once('@')?;
        let (username, password) = login.split_once(':')?;
        let login = (username.to_owned(), SecretString::from(password));
        Some((format!("{scheme}://{host}"), login))
    });
    match parts {
        Some((url, login)) => (url, Some(login)),
        None => (url.to_owned(), None),
    }
}

/// `host:port`, and the protocol if a URL says it.
fn endpoint(text: &str) -> Option<(String, Option<Protocol>)> {
    let (protocol, rest) = match text.split_once("://") {
        None => (None, text),
        Some(("http", rest)) => (Some(Protocol::Http), rest),
        Some(("https", rest)) => (Some(Protocol::Https), rest),
        Some(_) => return None,
    };
    let address = Address::parse(rest.trim_end_matches('/'), Some(DEFAULT_PORT))?;
    Some((address.to_string(), protocol))
}
