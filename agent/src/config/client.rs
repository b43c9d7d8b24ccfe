//! What the operator's command needs: the store and the credentials, from an agent's or a router's file
//! or from the environment alone. Nothing else in the file is looked at.

use std::path::Path;

use trunkline_shared::cluster::ClusterName;
use trunkline_shared::dcs::etcd::EtcdConfig;

use super::rest_client::{self, RestClientConfig};
use super::section::{Address, Report, Section};
use super::{ConfigError, Environment, etcd3, restapi, sources};

/// What the operator's command was told.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// The cluster, if the file names one.
    pub cluster: Option<ClusterName>,
    /// What the keys of all clusters begin with.
    pub namespace: String,
    /// The DCS.
    pub etcd: EtcdConfig,
    /// How the agents are asked.
    pub rest_client: RestClientConfig,
    /// The URL of the agent whose file it is.
    pub agent: Option<String>,
}

/// Reads `path`, or the environment alone; `dcs_url` (`-d`) replaces the file's endpoints.
pub fn load(
    path: Option<&Path>,
    dcs_url: Option<&str>,
    env: &Environment,
) -> Result<ClientConfig, ConfigError> {
    let (mut document, _) = sources::read(path, env)?;
    if let Some(url) = dcs_url {
        let hosts = url.trim_start_matches("etcd3://");
        let hosts = super::document::Node::from_environment("-d", hosts);
        document.merge(hosts.nested(&["etcd3", "hosts"]));
    }
    let report = Report::new(&document);
    let root = Section::root(&document, &report);
    let etcd = etcd3::read(&root);
    let as_client = rest_client::of_restapi(&root.section("restapi"));
    let rest_client = rest_client::read(&root.section("ctl"), as_client);
    let cluster = root
        .text("scope")
        .filter(|s| !s.is_empty() && !s.contains('/'))
        .or_else(|| only_scope_of_listeners(&document));
    let namespace = root
        .text("namespace")
        .unwrap_or_else(|| "service".to_owned());
    let own = root.section("restapi");
    let address = own.text("connect_address");
    let listen = || {
        let text = own.text("listen")?;
        let address = Address::parse_listen(&text, restapi::DEFAULT_PORT);
        Some(address.map_or(text, |address| address.to_string()))
    };
    let address = address.or_else(listen);
    let is_https = own.find("certfile").is_some();
    let (mistakes, _) = report.into_parts();
    match etcd {
        Some(etcd) if mistakes.is_empty() => Ok(ClientConfig {
            cluster: cluster.map(|c| ClusterName::new(&c)),
            namespace: namespace.trim_matches('/').to_owned(),
            etcd,
            rest_client,
            agent: address.map(|address| {
                let scheme = if is_https { "https" } else { "http" };
                format!("{scheme}://{address}/patroni")
            }),
        }),
        _ => Err(mistakes.into()),
    }
}

/// A router's file names its clusters in its listeners; one name is enough to go by.
fn only_scope_of_listeners(document: &super::document::Node) -> Option<String> {
    let super::document::Value::List(items) = &document.child("listeners")?.value else {
        return None;
    };
    let mut scopes: Vec<String> = items
        .iter()
        .filter_map(|item| match &item.child("scope")?.value {
            super::document::Value::Scalar(s) => Some(s.text.clone()),
            super::document::Value::List(_) | super::document::Value::Map(_) => None,
        })
        .collect();
    scopes.sort();
    scopes.dedup();
    match scopes.as_slice() {
        [one] => Some(one.clone()),
        _ => None,
    }
}
