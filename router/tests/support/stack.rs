//! A whole router, as far as it lives in one process: topology by the in-memory DCS, real sockets.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use trunkline_router::config::{ListenerConfig, Network, ProxyProtocol};
use trunkline_router::cores::Cores;
use trunkline_router::listener::limits::Limits;
use trunkline_router::listener::{self, Listening};
use trunkline_router::route::TargetKind;
use trunkline_router::topology::state_file::StateFile;
use trunkline_router::topology::transition::Rules;
use trunkline_router::topology::{Cluster, Keeper, Published};
use trunkline_shared::cluster::ClusterName;
use trunkline_shared::dcs::keys::Keys;
use trunkline_shared::dcs::memory::MemoryDcs;
use trunkline_shared::dcs::watch::follow;
use trunkline_shared::dcs::{Dcs, Operation, Txn};

/// No step of a test takes longer than this.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// A router with one listener.
pub struct Stack {
    dcs: Arc<MemoryDcs>,
    /// Its cluster.
    pub cluster: Arc<Cluster>,
    /// Its listener.
    pub listening: Arc<Listening>,
    /// Where clients connect.
    pub address: SocketAddr,
    _cores: Arc<Cores>,
    _rules: watch::Sender<Rules>,
}

/// How a test's listener is set up.
#[derive(Clone)]
pub struct Setup {
    pub target: TargetKind,
    pub hold_timeout: Duration,
    pub max_client_conn: usize,
    pub proxy_protocol: ProxyProtocol,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            target: TargetKind::Primary,
            hold_timeout: DEADLINE,
            max_client_conn: 100,
            proxy_protocol: ProxyProtocol::Off,
        }
    }
}

impl Stack {
    /// Starts one. The cluster has no key yet.
    pub async fn start(setup: Setup) -> Self {
        let dcs = Arc::new(MemoryDcs::new());
        let name = ClusterName::new("demo");
        let keys = Keys::new("service", &name);
        let cluster = Arc::new(Cluster::new(name.clone()));
        let (rules, heard) = watch::channel(Rules::default());
        let follow = follow(dcs.clone(), keys);
        let state_file = Arc::new(StateFile::default());
        tokio::spawn(Keeper::new(cluster.clone(), follow, heard, state_file).run());
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        let config = ListenerConfig {
            listen: address,
            scope: name,
            target: setup.target,
            proxy_protocol: setup.proxy_protocol,
            proxy_protocol_from: vec![Network::parse("127.0.0.0/8").unwrap()],
            max_client_conn: setup.max_client_conn,
        };
        let limits = Arc::new(Limits::default());
        let listening = Listening::new(&config, setup.hold_timeout, cluster.clone(), limits);
        let listening = Arc::new(listening);
        let cores = Arc::new(Cores::start(2).unwrap());
        tokio::spawn(listener::accept(socket, listening.clone(), cores.clone()));
        Self {
            dcs,
            cluster,
            listening,
            address,
            _cores: cores,
            _rules: rules,
        }
    }

    /// Writes one key.
    pub async fn put(&self, key: &str, value: &str) {
        self.commit(Operation::Put {
            key: format!("/service/demo/{key}"),
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
        let record = serde_json::json!({
            "conn_url": format!("postgres://{address}/postgres"),
            "api_url": "",
            "state": "running",
            "role": role,
            "version": "4.0.0",
            "xlog_location": 1000,
            "timeline": 1,
        });
        self.put(&format!("members/{name}"), &record.to_string())
            .await;
    }

    /// Makes a member the leader and waits until the router believes it.
    pub async fn lead(&self, name: &str, address: SocketAddr) {
        self.put("leader", name).await;
        self.member(name, address, "primary").await;
        self.until(|p| p.table.has_writer()).await;
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

    /// A client that has sent nothing.
    pub async fn client(&self) -> Client {
        let stream = TcpStream::connect(self.address).await.unwrap();
        Client { stream }
    }

    /// A client that is logged in.
    pub async fn session(&self) -> Client {
        let mut client = self.client().await;
        client.send(&startup("app")).await;
        client.ready().await;
        client
    }
}

/// A start-up packet.
pub fn startup(user: &str) -> Vec<u8> {
    let body = format!("user\0{user}\0database\0app\0\0");
    let mut packet = u32::try_from(body.len() + 8)
        .unwrap()
        .to_be_bytes()
        .to_vec();
    packet.extend_from_slice(&196_608u32.to_be_bytes());
    packet.extend_from_slice(body.as_bytes());
    packet
}

/// A request for TLS.
pub const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

/// A client.
pub struct Client {
    /// Its socket.
    pub stream: TcpStream,
}

impl Client {
    pub async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    /// Sends a simple query.
    pub async fn query(&mut self, text: &str) {
        let mut bytes = vec![b'Q'];
        bytes.extend_from_slice(&u32::try_from(text.len() + 5).unwrap().to_be_bytes());
        bytes.extend_from_slice(text.as_bytes());
        bytes.push(0);
        self.send(&bytes).await;
    }

    /// Reads one message.
    pub async fn message(&mut self) -> (u8, Vec<u8>) {
        let read = async {
            let kind = self.stream.read_u8().await.unwrap();
            let length = self.stream.read_u32().await.unwrap() as usize;
            let mut body = vec![0; length - 4];
            self.stream.read_exact(&mut body).await.unwrap();
            (kind, body)
        };
        tokio::time::timeout(DEADLINE, read).await.unwrap()
    }

    /// Reads until the server is ready.
    pub async fn ready(&mut self) {
        while self.message().await.0 != b'Z' {}
    }

    /// Reads exactly these bytes.
    pub async fn expect(&mut self, bytes: &[u8]) {
        let mut read = vec![0; bytes.len()];
        let reading = self.stream.read_exact(&mut read);
        tokio::time::timeout(DEADLINE, reading)
            .await
            .unwrap()
            .unwrap();
        assert_eq!(read, bytes);
    }

    /// Reads a FATAL and the end after it; returns its code and message.
    pub async fn fatal(&mut self) -> (String, String) {
        let (kind, body) = self.message().await;
        assert_eq!(kind, b'E');
        let field = |code: u8| {
            body.split(|b| *b == 0)
                .find(|f| f.first() == Some(&code))
                .map(|f| String::from_utf8_lossy(&f[1..]).into_owned())
                .unwrap_or_default()
        };
        assert_eq!(field(b'S'), "FATAL");
        assert_eq!(self.rest().await, b"");
        (field(b'C'), field(b'M'))
    }

    /// Everything until the connection ends, by close or by reset.
    pub async fn rest(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        let reading = async {
            // A reset ends the bytes as well as a close.
            let _ = self.stream.read_to_end(&mut rest).await;
        };
        tokio::time::timeout(DEADLINE, reading).await.unwrap();
        rest
    }
}
