//! The operator's command. It reads the DCS itself, so it works while agents are down; it writes requests,
//! and never touches a lease or decides. It ends with 0 only when the thing asked for is true.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use trunkline_shared::cluster::{ClusterName, Topology};
use trunkline_shared::dcs::etcd::{Budgets, Etcd, EtcdConfigError};
use trunkline_shared::dcs::keys::Keys;
use trunkline_shared::dcs::watch::{Follow, View, follow};
use trunkline_shared::dcs::{Dcs, DcsError};
use trunkline_shared::service::http::HttpClient;
use trunkline_shared::service::tls::TlsError;

use crate::api::requests::Refusal;
use crate::api::settings::SettingsChangeError;
use crate::config::client::{self, ClientConfig};
use crate::config::{ConfigError, Environment};

mod accept_dcs;
mod apply;
pub mod arguments;
mod change;
mod cluster_role;
mod clusters;
mod difference;
mod drain;
mod dsn;
mod edit;
mod effective;
pub mod explain;
mod flush;
mod history;
pub mod import;
mod list;
mod local_time;
mod members;
mod pause;
mod query;
mod remove;
pub mod rest;
mod restart;
mod restarting;
mod routers;
mod steps;
mod table;
pub mod terminal;
mod top;
mod version;
mod watching;
pub mod yaml;

use arguments::{Arguments, Command};
use rest::RestError;
use terminal::{Label, Terminal};

/// How long one read or write of the DCS may take.
const DCS_BUDGET: Duration = Duration::from_secs(5);

/// How long the first look at the cluster may take.
const FIRST_LOOK: Duration = Duration::from_secs(10);

/// Why the thing asked for is not true. The exit code is [`CtlError::exit_code`].
#[derive(Debug, thiserror::Error)]
pub enum CtlError {
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The DCS cannot be spoken to as configured.
    #[error(transparent)]
    EtcdConfig(#[from] EtcdConfigError),
    /// The files by which agents are asked cannot be used.
    #[error("ctl: {0}")]
    Tls(#[from] TlsError),
    /// No cluster was named.
    #[error(
        "no cluster is named: give one, or a configuration with a scope (-c FILE, TRUNKLINE_SCOPE){}",
        known("the DCS", .0)
    )]
    NoCluster(Vec<String>),
    /// The DCS knows no such cluster.
    #[error("the DCS holds nothing of a cluster {name}{}", known("it", .clusters))]
    NoSuchCluster {
        /// As it was named.
        name: String,
        /// Those that it holds.
        clusters: Vec<String>,
    },
    /// The DCS did not answer as needed.
    #[error(transparent)]
    Dcs(#[from] DcsError),
    /// The DCS did not answer in time.
    #[error("the DCS ({endpoints}) did not answer within {seconds} s: {why}")]
    Silent {
        /// Where.
        endpoints: String,
        /// How long was waited.
        seconds: u64,
        /// The last error.
        why: String,
    },
    /// The cluster does not allow it.
    #[error("{0}")]
    Refused(#[from] Refusal),
    /// The configuration of the cluster was not changed.
    #[error(transparent)]
    Settings(#[from] SettingsChangeError),
    /// An agent did not answer.
    #[error(transparent)]
    Rest(#[from] RestError),
    /// It was begun and did not end as asked.
    #[error("{0}")]
    Failed(String),
    /// What was given on the command line cannot be used.
    #[error("{0}")]
    Usage(String),
    /// The operator said no; what has not happened.
    #[error("{0}; nothing was changed")]
    Aborted(String),
    /// A question, and no terminal.
    #[error("there is no terminal to ask \"{0}\"; use --force, or name what is asked for")]
    NobodyToAsk(String),
    /// Output failed.
    #[error("output failed: {0}")]
    Output(String),
}

/// The clusters there are, as the end of a sentence.
fn known(holder: &str, clusters: &[String]) -> String {
    match clusters.is_empty() {
        true => String::new(),
        false => format!("; {holder} holds: {}", clusters.join(", ")),
    }
}

impl CtlError {
    /// 2 for what was given wrongly, 1 for everything else.
    pub fn exit_code(&self) -> u8 {
        match self {
            CtlError::Config(_)
            | CtlError::EtcdConfig(_)
            | CtlError::Tls(_)
            | CtlError::NoCluster(_)
            | CtlError::Usage(_) => 2,
            CtlError::NoSuchCluster { .. }
            | CtlError::Dcs(_)
            | CtlError::Silent { .. }
            | CtlError::Refused(_)
            | CtlError::Settings(_)
            | CtlError::Rest(_)
            | CtlError::Failed(_)
            | CtlError::Aborted(_)
            | CtlError::NobodyToAsk(_)
            | CtlError::Output(_) => 1,
        }
    }
}

/// The DCS of a configuration.
///
/// # Errors
/// [`CtlError::EtcdConfig`]
pub fn etcd(config: &ClientConfig) -> Result<Arc<dyn Dcs>, CtlError> {
    let budgets = Budgets {
        operation: DCS_BUDGET,
        renewal: DCS_BUDGET,
    };
    Ok(Arc::new(Etcd::new(&config.etcd, budgets)?))
}

/// Carries out what the arguments ask for; `open` reaches the DCS.
///
/// # Errors
/// Whatever kept the thing asked for from being true.
pub async fn run(
    arguments: Arguments,
    env: &Environment,
    terminal: &Terminal,
    open: impl FnOnce(&ClientConfig) -> Result<Arc<dyn Dcs>, CtlError>,
) -> Result<(), CtlError> {
    if let Some(group) = &arguments.group {
        let why = "there are no groups: clusters of Citus are not supported";
        return Err(CtlError::Usage(format!("--group {group}: {why}")));
    }
    if let Command::Version(version) = &arguments.command
        && version.cluster.is_none()
    {
        return version::own(terminal);
    }
    if let Command::Explain(asked) = &arguments.command
        && let Some(file) = &asked.file
    {
        return explain::of_file(terminal, asked, file);
    }
    let file = arguments.config.or_else(|| patronictls_file(env));
    let dcs_url = arguments.dcs_url.or_else(|| env.get("DCS_URL").cloned());
    let (hosts, namespace) = dcs_url.as_deref().map(dcs_address).transpose()?.unzip();
    let mut config = client::load(file.as_deref(), hosts.as_deref(), env)?;
    config.rest_client.is_insecure |= arguments.insecure;
    if let Some(namespace) = namespace.flatten() {
        config.namespace = namespace;
    }
    let desk = Desk {
        dcs: open(&config)?,
        config,
        terminal: terminal.clone(),
    };
    carry_out(&desk, arguments.command, (file.as_deref(), env)).await
}

/// The hosts and the namespace of a DCS URL, as patronictl takes it: `etcd3://HOST:PORT/NAMESPACE`.
fn dcs_address(url: &str) -> Result<(String, Option<String>), CtlError> {
    let refused = |why: &str| Err(CtlError::Usage(format!("-d {url}: {why}")));
    let rest = match url.split_once("://") {
        None | Some(("etcd3", _)) => url.trim_start_matches("etcd3://"),
        Some(("etcd", _)) => {
            return refused("etcd's v2 API is gone; write etcd3:// for the v3 API");
        }
        Some((other, _)) => {
            let why = format!("Unknown dcs scheme: {other}; the store is etcd, written etcd3://");
            return refused(&why);
        }
    };
    let (hosts, namespace) = rest.split_once('/').unwrap_or((rest, ""));
    let hosts = match hosts.strip_prefix(':') {
        Some(port) => format!("localhost:{port}"),
        None if hosts.is_empty() => "localhost".to_owned(),
        None => hosts.to_owned(),
    };
    let namespace = namespace.trim_matches('/');
    Ok((hosts, (!namespace.is_empty()).then(|| namespace.to_owned())))
}

/// The file that patronictl reads where none is named.
fn patronictls_file(env: &Environment) -> Option<PathBuf> {
    if let Some(file) = env.get("PATRONICTL_CONFIG_FILE") {
        return Some(PathBuf::from(file));
    }
    let home = || Some(Path::new(env.get("HOME")?).join(".config"));
    let folder = env.get("XDG_CONFIG_HOME").map(PathBuf::from).or_else(home);
    let file = folder?.join("patroni/patronictl.yaml");
    file.is_file().then_some(file)
}

async fn carry_out(
    desk: &Desk,
    command: Command,
    (file, env): (Option<&Path>, &Environment),
) -> Result<(), CtlError> {
    let open = async |cluster: &Option<String>| desk.session(cluster.as_deref()).await;
    let named = async |cluster: &String| desk.session(Some(cluster)).await;
    match command {
        Command::List(a) => list::list(desk, &a).await,
        Command::Topology(a) => list::topology(desk, &a).await,
        Command::Switchover(a) => change::switchover(&open(&a.cluster).await?, &a).await,
        Command::Failover(a) => change::failover(&open(&a.cluster).await?, &a).await,
        Command::Restart(a) => restart::restart(&named(&a.members.cluster).await?, &a).await,
        Command::Reinit(a) => members::reinit(&named(&a.cluster).await?, &a).await,
        Command::Reload(a) => members::reload(&named(&a.cluster).await?, &a).await,
        Command::Flush(a) => flush::flush(&named(&a.cluster).await?, &a).await,
        Command::History(a) => history::show(&open(&a.cluster).await?, &a).await,
        Command::Routers(a) => routers::show(&open(&a.cluster).await?, a.format).await,
        Command::ShowConfig(a) => {
            effective::show_config(&open(&a.cluster).await?, &a, file, env).await
        }
        Command::EditConfig(a) => edit::edit(&open(&a.cluster).await?, &a, env).await,
        Command::Dsn(a) => dsn::dsn(&open(&a.cluster).await?, &a).await,
        Command::Query(a) => query::query(&open(&a.cluster).await?, &a, env).await,
        Command::Top(a) => top::top(&open(&a.cluster).await?, &a).await,
        Command::Explain(a) => explain::explain(&open(&a.cluster).await?, &a).await,
        Command::Import(a) => import::import(&desk.terminal, &a, &desk.config),
        Command::Apply(a) => apply::apply(&open(&a.cluster).await?, &a).await,
        Command::DemoteCluster(a) => cluster_role::demote(&open(&a.cluster).await?, &a).await,
        Command::PromoteCluster(a) => cluster_role::promote(&open(&a.cluster).await?, &a).await,
        Command::Pause(a) => pause::pause(&open(&a.cluster).await?, a.wait).await,
        Command::Resume(a) => pause::resume(&open(&a.cluster).await?, &a).await,
        Command::Remove(a) => remove::remove(&named(&a.cluster).await?, &a).await,
        Command::AcceptDcs(a) => accept_dcs::accept(&open(&a.cluster).await?, &a).await,
        Command::Version(a) => version::of_members(&open(&a.cluster).await?, &a.members).await,
    }
}

/// The DCS, and the operator.
struct Desk {
    dcs: Arc<dyn Dcs>,
    config: ClientConfig,
    terminal: Terminal,
}

impl Desk {
    /// A cluster by its name. Without one it is the configuration's, or the operator's choice.
    async fn session(&self, name: Option<&str>) -> Result<Session, CtlError> {
        let cluster = match name {
            Some(name) if name.is_empty() || name.contains('/') => {
                return Err(CtlError::Usage(format!("\"{name}\" is no cluster's name")));
            }
            Some(name) => ClusterName::new(name),
            None => match &self.config.cluster {
                Some(cluster) => cluster.clone(),
                None => clusters::choose(self).await?,
            },
        };
        Ok(Session {
            keys: Keys::new(&self.config.namespace, &cluster),
            dcs: self.dcs.clone(),
            cluster,
            config: self.config.clone(),
            terminal: self.terminal.clone(),
        })
    }

    /// Several clusters; the configuration's, or the operator's choice, where none is named.
    async fn sessions(&self, names: &[String]) -> Result<Vec<Session>, CtlError> {
        if names.is_empty() {
            return Ok(vec![self.session(None).await?]);
        }
        let mut sessions = Vec::new();
        for name in names {
            sessions.push(self.session(Some(name)).await?);
        }
        Ok(sessions)
    }
}

/// A cluster in its DCS, and the operator.
struct Session {
    cluster: ClusterName,
    keys: Keys,
    dcs: Arc<dyn Dcs>,
    config: ClientConfig,
    terminal: Terminal,
}

impl Session {
    /// The same, whose progress goes beside the output, which is for a machine then.
    fn beside(&self) -> Self {
        Self {
            cluster: self.cluster.clone(),
            keys: self.keys.clone(),
            dcs: self.dcs.clone(),
            config: self.config.clone(),
            terminal: self.terminal.beside(),
        }
    }

    /// What asks the agents. Its files are read only when somebody is to be asked.
    fn client(&self) -> Result<HttpClient, CtlError> {
        Ok(self.config.rest_client.client()?)
    }

    /// Follows the cluster, beginning with a complete view.
    async fn follow(&self) -> Result<(Follow, Arc<View>), CtlError> {
        let mut follow = follow(self.dcs.clone(), self.keys.clone());
        let endpoints = self.config.etcd.hosts.join(",");
        let label = Label::new(format!("waiting for the DCS ({endpoints})"));
        let looking = tokio::time::timeout(FIRST_LOOK, complete(&mut follow));
        match self.terminal.waiting(&label, looking).await {
            Ok(Some(view)) => Ok((follow, view)),
            Ok(None) | Err(_) => {
                let error = follow.views.borrow().last_error.clone();
                Err(CtlError::Silent {
                    endpoints,
                    seconds: FIRST_LOOK.as_secs(),
                    why: error.map_or_else(|| "no answer".to_owned(), |why| why.to_string()),
                })
            }
        }
    }

    /// The cluster now.
    async fn look(&self) -> Result<Arc<Topology>, CtlError> {
        Ok(self.follow().await?.1.topology.clone())
    }

    /// The same of a cluster that the DCS knows.
    async fn known(&self) -> Result<(Follow, Arc<View>), CtlError> {
        let (follow, view) = self.follow().await?;
        match clusters::is_known(&view.topology) {
            true => Ok((follow, view)),
            false => Err(clusters::unknown(self).await?),
        }
    }
}

/// The first view that shows the whole cluster.
async fn complete(follow: &mut Follow) -> Option<Arc<View>> {
    let view = follow.views.wait_for(|view| view.is_complete).await.ok()?;
    Some(view.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dcs_url_is_taken_as_patronictl_takes_it() {
        for (url, hosts, namespace) in [
            ("10.0.0.1:2379", "10.0.0.1:2379", None),
            ("a:1,b:2", "a:1,b:2", None),
            ("etcd3://a:2399/own", "a:2399", Some("own")),
            ("etcd3://a/", "a", None),
            ("etcd3://:2399", "localhost:2399", None),
            ("", "localhost", None),
        ] {
            let expected = (hosts.to_owned(), namespace.map(str::to_owned));
            assert_eq!(dcs_address(url).unwrap(), expected, "{url}");
        }
        for url in ["etcd://a", "consul://a:8500", "zookeeper://a"] {
            assert_eq!(dcs_address(url).unwrap_err().exit_code(), 2, "{url}");
        }
    }
}
