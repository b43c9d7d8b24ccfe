//! A whole router, as far as it lives in one process: topology by the in-memory DCS, real sockets.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use trunkline_router::auth::hba::Hba;
use trunkline_router::auth::ident::Ident;
use trunkline_router::auth::users::Users;
use trunkline_router::clusters::Clusters;
use trunkline_router::clusters::following::Following;
use trunkline_router::config::databases::Scopes;
use trunkline_router::config::pooling::{Mode, PoolingConfig};
use trunkline_router::config::tls::TlsSection;
use trunkline_router::config::{ListenerConfig, Network, ProxyProtocol, RouterConfig};
use trunkline_router::cores::Cores;
use trunkline_router::in_force::InForce;
use trunkline_router::listener::limits::Limits;
use trunkline_router::listener::{self, Listening};
use trunkline_router::pool::registry::Registry;
use trunkline_router::route::TargetKind;
use trunkline_router::topology::state_file::StateFile;
use trunkline_router::topology::transition::Rules;
use trunkline_router::topology::{Cluster, Published};
use trunkline_shared::cluster::ClusterName;
use trunkline_shared::dcs::memory::MemoryDcs;
use trunkline_shared::dcs::{Dcs, Operation, Txn};
use trunkline_shared::service::http::HttpClient;

/// No step of a test takes longer than this.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// A router with one listener.
pub struct Stack {
    /// Its store.
    pub dcs: Arc<dyn Dcs>,
    /// The cluster `demo`, which the listener leads to if it names one.
    pub cluster: Arc<Cluster>,
    /// All that are followed.
    pub clusters: Arc<Clusters>,
    /// Its listener as configured.
    pub config: ListenerConfig,
    /// The same at work.
    pub listening: Arc<Listening>,
    /// Where clients connect.
    pub address: SocketAddr,
    /// What carries its sessions.
    pub _cores: Arc<Cores>,
    _rules: watch::Sender<Rules>,
}

/// How a test's listener is set up.
#[derive(Clone)]
pub struct Setup {
    pub target: TargetKind,
    pub hold_timeout: Duration,
    pub max_client_conn: usize,
    pub proxy_protocol: ProxyProtocol,
    pub mode: Mode,
    /// The sections of pooled listeners, with the text of `auth.file` in its place.
    pub pooling: Option<String>,
    /// What the listener's `tls` says.
    pub tls: TlsSection,
    /// The listener names no cluster: the databases do.
    pub is_by_database: bool,
    /// Threads that carry sessions.
    pub cores: usize,
    /// Where the keys are.
    pub dcs: Arc<dyn Dcs>,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            target: TargetKind::Primary,
            hold_timeout: DEADLINE,
            max_client_conn: 100,
            proxy_protocol: ProxyProtocol::Off,
            mode: Mode::Tcp,
            pooling: None,
            tls: TlsSection::default(),
            is_by_database: false,
            cores: 2,
            dcs: Arc::new(MemoryDcs::new()),
        }
    }
}

impl Stack {
    /// Starts one. The cluster has no key yet.
    pub async fn start(setup: Setup) -> Self {
        let name = ClusterName::new("demo");
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        let config = ListenerConfig {
            listen: address,
            scope: (!setup.is_by_database).then_some(name),
            target: setup.target,
            mode: setup.mode,
            proxy_protocol: setup.proxy_protocol,
            proxy_protocol_from: vec![Network::parse("127.0.0.0/8").unwrap()],
            max_client_conn: setup.max_client_conn,
            tls: setup.tls,
            is_console: false,
        };
        let listeners = std::slice::from_ref(&config);
        let limits = Arc::new(Limits::default());
        let pooling = setup.pooling.as_deref().map(pooling_of);
        let databases = pooling.as_ref().and_then(|p| p.databases.clone());
        let of_ports = Scopes::of(listeners, None).named;
        let scopes = Scopes::of(listeners, databases.as_ref());
        let clusters = Arc::new(Clusters::new(scopes, of_ports, []));
        let registry = pooling.map(|pooling| {
            let in_force = InForce::load(pooling, listeners).unwrap();
            Arc::new(Registry::new(in_force).unwrap())
        });
        let cores = Arc::new(Cores::start(setup.cores).unwrap());
        let (rules, heard) = watch::channel(Rules::default());
        let following = Following {
            dcs: setup.dcs.clone(),
            namespace: "service".to_owned(),
            clusters: clusters.clone(),
            rules: heard,
            state_file: Arc::new(StateFile::default()),
            client: HttpClient::default(),
            registry: registry.clone(),
            cores: cores.handles(),
        };
        tokio::spawn(following.run());
        let cluster = clusters.all().first().cloned();
        let cluster = cluster.unwrap_or_else(|| Arc::new(Cluster::new(ClusterName::new("none"))));
        let listening = Listening::new(&config, setup.hold_timeout, &clusters, limits, registry);
        let listening = Arc::new(listening);
        tokio::spawn(listener::accept(socket, listening.clone(), cores.clone()));
        Self {
            dcs: setup.dcs,
            cluster,
            clusters,
            config,
            listening,
            address,
            _cores: cores,
            _rules: rules,
        }
    }

    /// The same in a store that is there already.
    pub async fn start_in(dcs: Arc<dyn Dcs>, setup: Setup) -> Self {
        Self::start(Setup { dcs, ..setup }).await
    }

    /// Writes one key of cluster `demo`.
    pub async fn put(&self, key: &str, value: &str) {
        self.put_in("demo", key, value).await;
    }

    /// The same in another cluster.
    pub async fn put_in(&self, scope: &str, key: &str, value: &str) {
        self.commit(Operation::Put {
            key: format!("/service/{scope}/{key}"),
            value: value.as_bytes().to_vec(),
            lease: 0,
        })
        .await;
    }

    /// Deletes one key.
    pub async fn delete(&self, key: &str) {
        self.commit(Operation::Delete(format!("/service/demo/{key}")))
            .await;
    }

    async fn commit(&self, operation: Operation) {
        let txn = Txn {
            then: vec![operation],
            ..Txn::default()
        };
        self.dcs.commit(&txn).await.unwrap();
    }

    /// Writes a member's record.
    pub async fn member(&self, name: &str, address: SocketAddr, role: &str) {
        self.member_of("demo", name, address, role).await;
    }

    async fn member_of(&self, scope: &str, name: &str, address: SocketAddr, role: &str) {
        let record = serde_json::json!({
            "conn_url": format!("postgres://{address}/postgres"),
            "api_url": "",
            "state": "running",
            "role": role,
            "version": "4.0.0",
            "xlog_location": 1000,
            "timeline": 1,
        });
        let key = format!("members/{name}");
        self.put_in(scope, "initialize", "7000000000000000001")
            .await;
        self.put_in(scope, &key, &record.to_string()).await;
    }

    /// Makes a member the leader and waits until the router believes it.
    pub async fn lead(&self, name: &str, address: SocketAddr) {
        self.put("leader", name).await;
        self.member(name, address, "primary").await;
        self.until(|p| p.table.has_writer()).await;
    }

    /// Makes a member the leader of another cluster, which the router may not follow yet.
    pub async fn lead_in(&self, scope: &str, name: &str, address: SocketAddr) {
        self.put_in(scope, "leader", name).await;
        self.member_of(scope, name, address, "primary").await;
    }

    /// Waits for a table.
    pub async fn until(&self, is_so: impl Fn(&Published) -> bool) {
        let mut changes = self.cluster.changes();
        let wait = async {
            while !is_so(&self.cluster.published()) {
                changes.changed().await.unwrap();
            }
        };
        tokio::time::timeout(DEADLINE, wait).await.unwrap();
    }
}

/// The sections as the program would read them; before them the text of the file of users, and of those of rules and
/// of maps.
pub fn pooling_of(sections: &str) -> PoolingConfig {
    let (users, sections) = sections.split_once("---\n").unwrap();
    let text = format!(
        "etcd3: {{hosts: \"127.0.0.1:1\"}}\nlisteners:\n  - {{listen: \"127.0.0.1:1\", scope: x, \
         target: primary, mode: transaction}}\n{sections}"
    );
    let mut pooling = RouterConfig::parse(&text).unwrap().pooling.unwrap();
    let (users, hba) = users.split_once("-hba-\n").unwrap_or((users, ""));
    let (hba, ident) = hba.split_once("-ident-\n").unwrap_or((hba, ""));
    pooling.users = Arc::new(Users::parse(users).unwrap());
    pooling.auth.hba = Arc::new(Hba::parse(hba).unwrap());
    pooling.auth.ident = Arc::new(Ident::parse(ident).unwrap());
    pooling
}

/// A start-up packet.
pub fn startup(user: &str) -> Vec<u8> {
    startup_in(user, "app")
}

/// The same for another database.
pub fn startup_in(user: &str, database: &str) -> Vec<u8> {
    let body = format!("user\0{user}\0database\0{database}\0\0");
    let mut packet = u32::try_from(body.len() + 8)
        .unwrap()
        .to_be_bytes()
        .to_vec();
    packet.extend_from_slice(&196_608u32.to_be_bytes());
    packet.extend_from_slice(body.as_bytes());
    packet
}
