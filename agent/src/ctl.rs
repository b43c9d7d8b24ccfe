//! The operator's command. It reads the DCS itself, so it works while agents are down; it writes requests,
//! and never touches PostgreSQL or a lease. It ends with 0 only when the thing asked for is true.

use std::sync::Arc;
use std::time::Duration;

use trunkline_shared::cluster::{ClusterName, Topology};
use trunkline_shared::dcs::etcd::{Budgets, Etcd, EtcdConfigError};
use trunkline_shared::dcs::keys::Keys;
use trunkline_shared::dcs::watch::{Follow, View, follow};
use trunkline_shared::dcs::{Dcs, DcsError};
use trunkline_shared::service::clock;
use trunkline_shared::service::http::HttpClient;
use trunkline_shared::service::tls::TlsError;

use crate::api::requests::Refusal;
use crate::api::settings::SettingsChangeError;
use crate::config::client::{self, ClientConfig};
use crate::config::{ConfigError, Environment};

pub mod arguments;
mod change;
mod cluster_role;
mod edit;
mod effective;
mod history;
mod list;
mod members;
mod pause;
mod remove;
pub mod rest;
mod steps;
mod table;
mod terminal;

use arguments::{Arguments, Command};
use rest::RestError;
use terminal::Terminal;

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
        "no cluster is named: give one, or a configuration with a scope (-c FILE, TRUNKLINE_SCOPE)"
    )]
    NoCluster,
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
    /// The operator said no.
    #[error("aborted: nothing was changed")]
    Aborted,
    /// A question, and no terminal.
    #[error("there is no terminal to ask \"{0}\"; use --force")]
    NobodyToAsk(String),
    /// Output failed.
    #[error("output failed: {0}")]
    Output(String),
}

impl CtlError {
    /// 2 for what was given wrongly, 1 for everything else.
    pub fn exit_code(&self) -> u8 {
        match self {
            CtlError::Config(_)
            | CtlError::EtcdConfig(_)
            | CtlError::Tls(_)
            | CtlError::NoCluster
            | CtlError::Usage(_) => 2,
            CtlError::Dcs(_)
            | CtlError::Silent { .. }
            | CtlError::Refused(_)
            | CtlError::Settings(_)
            | CtlError::Rest(_)
            | CtlError::Failed(_)
            | CtlError::Aborted
            | CtlError::NobodyToAsk(_)
            | CtlError::Output(_) => 1,
        }
    }
}

/// Carries out what the arguments ask for.
///
/// # Errors
/// Whatever kept the thing asked for from being true.
pub async fn run(arguments: Arguments, env: &Environment) -> Result<(), CtlError> {
    let config = client::load(
        arguments.config.as_deref(),
        arguments.dcs_url.as_deref(),
        env,
    )?;
    let file = arguments.config;
    let terminal = Terminal::new(env.contains_key("NO_COLOR"));
    let open = |cluster: Option<&str>| Session::open(config, cluster, terminal);
    match arguments.command {
        Command::List(asked) => {
            let session = open(asked.cluster.as_deref())?;
            list_command(&session, &asked).await
        }
        Command::Topology(asked) => topology(&open(asked.cluster.as_deref())?).await,
        Command::Switchover(asked) => {
            let session = open(asked.cluster.as_deref())?;
            change::switchover(&session, &asked).await
        }
        Command::Failover(asked) => {
            let session = open(asked.cluster.as_deref())?;
            change::failover(&session, &asked).await
        }
        Command::Restart(asked) => {
            let session = open(Some(&asked.members.cluster))?;
            members::restart(&session, &asked).await
        }
        Command::Reinit(asked) => {
            let session = open(Some(&asked.cluster))?;
            members::reinit(&session, &asked).await
        }
        Command::Reload(asked) => {
            let session = open(Some(&asked.cluster))?;
            members::reload(&session, &asked).await
        }
        Command::History(asked) => {
            let session = open(asked.cluster.as_deref())?;
            history::show(&session, asked.format).await
        }
        Command::ShowConfig(asked) => {
            let session = open(asked.cluster.as_deref())?;
            effective::show_config(&session, &asked, file.as_deref(), env).await
        }
        Command::EditConfig(asked) => {
            let session = open(asked.cluster.as_deref())?;
            edit::edit(&session, &asked, env).await
        }
        Command::DemoteCluster(asked) => {
            let session = open(asked.cluster.as_deref())?;
            cluster_role::demote(&session, &asked).await
        }
        Command::PromoteCluster(asked) => {
            let session = open(asked.cluster.as_deref())?;
            cluster_role::promote(&session, &asked).await
        }
        Command::Pause(asked) => {
            let session = open(asked.cluster.as_deref())?;
            pause::pause(&session, asked.wait).await
        }
        Command::Resume(asked) => {
            let session = open(asked.cluster.as_deref())?;
            pause::resume(&session, &asked).await
        }
        Command::Remove(asked) => {
            let session = open(asked.cluster.as_deref())?;
            remove::remove(&session, &asked).await
        }
        Command::Version(asked) => version(&open(asked.cluster.as_deref())?).await,
    }
}

async fn topology(session: &Session) -> Result<(), CtlError> {
    let (_follow, view) = session.follow().await?;
    let tree = list::tree(&session.cluster, &view.topology);
    session.terminal.print(&tree)?;
    match list::staleness(&view, clock::now(), clock::wall_clock()) {
        Some(stale) => Err(CtlError::Failed(stale)),
        None => Ok(()),
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
    fn open(
        config: ClientConfig,
        cluster: Option<&str>,
        terminal: Terminal,
    ) -> Result<Self, CtlError> {
        let cluster = match cluster {
            Some(name) if name.is_empty() || name.contains('/') => {
                return Err(CtlError::Usage(format!("\"{name}\" is no cluster's name")));
            }
            Some(name) => ClusterName::new(name),
            None => config.cluster.clone().ok_or(CtlError::NoCluster)?,
        };
        let budgets = Budgets {
            operation: DCS_BUDGET,
            renewal: DCS_BUDGET,
        };
        Ok(Self {
            keys: Keys::new(&config.namespace, &cluster),
            dcs: Arc::new(Etcd::new(&config.etcd, budgets)?),
            cluster,
            config,
            terminal,
        })
    }

    /// What asks the agents. Its files are read only when somebody is to be asked.
    fn client(&self) -> Result<HttpClient, CtlError> {
        Ok(self.config.rest_client.client()?)
    }

    /// Follows the cluster, beginning with a complete view.
    async fn follow(&self) -> Result<(Follow, Arc<View>), CtlError> {
        let mut follow = follow(self.dcs.clone(), self.keys.clone());
        let view = tokio::time::timeout(FIRST_LOOK, complete(&mut follow)).await;
        match view {
            Ok(Some(view)) => Ok((follow, view)),
            Ok(None) | Err(_) => {
                let error = follow.views.borrow().last_error.clone();
                Err(CtlError::Silent {
                    endpoints: self.config.etcd.hosts.join(","),
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
}

/// The first view that shows the whole cluster.
async fn complete(follow: &mut Follow) -> Option<Arc<View>> {
    let view = follow.views.wait_for(|view| view.is_complete).await.ok()?;
    Some(view.clone())
}

async fn list_command(session: &Session, asked: &arguments::List) -> Result<(), CtlError> {
    let every = match (asked.watch, asked.watch_2_seconds) {
        (Some(seconds), _) => Some(Duration::from_secs(u64::from(seconds.max(1)))),
        (None, true) => Some(Duration::from_secs(2)),
        (None, false) => None,
    };
    let (follow, _) = session.follow().await?;
    loop {
        let view = follow.views.borrow().clone();
        let stale = list::staleness(&view, clock::now(), clock::wall_clock());
        let text = list::render(
            &session.cluster,
            &view.topology,
            asked.format,
            asked.extended,
        );
        if every.is_some() && session.terminal.is_drawn_on() {
            session.terminal.print("\x1b[H\x1b[2J")?;
        }
        session.terminal.print(&text)?;
        match (every, stale) {
            (None, Some(stale)) => return Err(CtlError::Failed(stale)),
            (None, None) => return Ok(()),
            (Some(_), Some(stale)) if asked.format == arguments::Format::Pretty => {
                session.terminal.line(&format!(" {stale}"))?;
            }
            // What another program reads as a table stays one.
            (Some(_), Some(stale)) => session.terminal.warn(&stale),
            (Some(_), None) => {}
        }
        if let Some(every) = every {
            tokio::time::sleep(every).await;
        }
    }
}

async fn version(session: &Session) -> Result<(), CtlError> {
    session.terminal.line(&format!(
        "trunkline version {}",
        crate::api::status::VERSION
    ))?;
    let topology = session.look().await?;
    for member in topology.members.values() {
        let product = match member.is_trunkline() {
            true => "trunkline",
            false => "patroni",
        };
        session
            .terminal
            .line(&format!("{}: {product} {}", member.name, member.version))?;
    }
    Ok(())
}
