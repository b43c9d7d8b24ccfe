//! From an address to a server that is ready: connect, start-up packet, authentication, first report.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use ring::rand::{SecureRandom, SystemRandom};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use trunkline_shared::service::clock;

use crate::auth::certificate::Binding;
use crate::auth::{Channel, ClientSide, Credential, NoLogin, RANDOM_BYTES, Reply};
use crate::held_back::HeldBack;
use crate::listener::limits::CONNECT_TIME;
use crate::protocol::exchange::Exchange;
use crate::protocol::messages;
use crate::protocol::settings::Settings;
use crate::protocol::splice::head;
use crate::protocol::startup::{Replication, is_setting};
use crate::server::encryption::{reach, refused};
use crate::server::{
    CancelKey, Complaint, Inbound, MAX_READ_WHOLE, Prepared, QueryFailed, Server, Way,
};

/// When keep-alives begin on an idle connection, and how far apart they are; after three unanswered ones
/// the connection is dead.
const KEEPALIVE: (std::time::Duration, std::time::Duration) = (
    std::time::Duration::from_secs(30),
    std::time::Duration::from_secs(10),
);

/// The report of PostgreSQL 14 and later that says whether it is a standby.
pub(super) const IN_HOT_STANDBY: &str = "in_hot_standby";

/// Who logs in, and where.
pub struct Identity {
    /// The database, as PostgreSQL knows it.
    pub database: Arc<str>,
    /// The user.
    pub user: Arc<str>,
    /// How it proves that.
    pub credential: Arc<Credential>,
    /// It replicates.
    pub replication: Option<Replication>,
    /// The settings that come with the start-up packet: of a server that is opened for one client, or for the router
    /// itself.
    pub settings: Vec<(String, String)>,
}

impl Identity {
    /// PostgreSQL takes the last of two parameters of one name: what is no setting is not said as if it were one.
    fn startup(&self) -> Vec<u8> {
        let kind = self.replication.map(|kind| ("replication", kind.name()));
        let who = [("user", &*self.user), ("database", &*self.database)];
        let settings = self.settings.iter().filter(|(name, _)| is_setting(name));
        let settings = settings.map(|(name, value)| (&**name, &**value));
        let parameters: Vec<_> = who.into_iter().chain(kind).chain(settings).collect();
        messages::startup(&parameters)
    }
}

/// Why a server could not be opened.
#[derive(Clone, Debug, thiserror::Error)]
pub enum OpenFailed {
    /// The lane was cut.
    #[error("the member does not serve this any more")]
    LaneCut,
    /// No connection.
    #[error("cannot connect: {0}")]
    Unreachable(Arc<io::Error>),
    /// It took too long.
    #[error("the log-in took too long")]
    TooSlow,
    /// It is a standby where a primary was looked for.
    #[error("it is in recovery and takes no writes yet")]
    InRecovery,
    /// It speaks no TLS where that is demanded.
    #[error("PostgreSQL speaks no TLS, and tls.server.mode demands it; set ssl = on there")]
    NoTls,
    /// TLS cannot be begun.
    #[error("TLS to PostgreSQL cannot be begun (tls.server): {0}")]
    Handshake(String),
    /// PostgreSQL refuses.
    #[error("{}", .0.message)]
    Refused(Complaint),
    /// PostgreSQL cannot be satisfied.
    #[error(transparent)]
    NoLogin(#[from] NoLogin),
    /// The server does not speak the protocol, or closed in the middle.
    #[error("it closed the connection, or does not speak PostgreSQL's protocol")]
    Broken,
}

impl OpenFailed {
    /// PostgreSQL's SQLSTATE, if it has refused.
    pub fn code(&self) -> Option<&str> {
        match self {
            OpenFailed::Refused(complaint) => Some(&complaint.code),
            OpenFailed::LaneCut
            | OpenFailed::Unreachable(_)
            | OpenFailed::TooSlow
            | OpenFailed::InRecovery
            | OpenFailed::NoTls
            | OpenFailed::Handshake(_)
            | OpenFailed::NoLogin(_)
            | OpenFailed::Broken => None,
        }
    }

    /// Whether it will stay so until somebody changes something.
    pub fn is_lasting(&self) -> bool {
        match self {
            OpenFailed::NoLogin(_) | OpenFailed::NoTls | OpenFailed::Handshake(_) => true,
            OpenFailed::Refused(complaint) => {
                // Authorization, no such database, no permission to connect; a database that takes no connections,
                // and what cannot be asked for in a start-up packet.
                ["28", "3D", "42", "55", "22", "0A"]
                    .iter()
                    .any(|class| complaint.code.starts_with(class))
            }
            OpenFailed::LaneCut
            | OpenFailed::Unreachable(_)
            | OpenFailed::TooSlow
            | OpenFailed::InRecovery
            | OpenFailed::Broken => false,
        }
    }
}

/// Opens a server within `server_connect_timeout`, of which zero is no limit, and for as long as its lane is not cut: who
/// waits for it is to look for another member then. One of a member that is to lead is waited for until it does.
///
/// # Errors
/// It cannot be opened now, or at all.
pub async fn open(
    way: Arc<Way>,
    identity: Identity,
    limit: Duration,
) -> Result<Server, OpenFailed> {
    if let Some(ahead) = way.ahead.clone() {
        return ahead.open(way, &identity, limit).await;
    }
    let seat = way.lanes.take_seat(way.lane).ok_or(OpenFailed::LaneCut)?;
    tokio::select! {
        biased;
        _ = seat.ended() => Err(OpenFailed::LaneCut),
        opened = within(limit, begin(way, &identity)) => opened,
    }
}

/// What comes of it within this time, of which zero is no limit.
pub(super) async fn within(
    limit: Duration,
    opening: impl Future<Output = Result<Server, OpenFailed>>,
) -> Result<Server, OpenFailed> {
    match limit.is_zero() {
        true => opening.await,
        false => timeout(limit, opening)
            .await
            .unwrap_or(Err(OpenFailed::TooSlow)),
    }
}

pub(super) async fn begin(way: Arc<Way>, identity: &Identity) -> Result<Server, OpenFailed> {
    let server = log_in(way, identity).await?;
    admit(server, identity).await
}

/// Connects and logs in.
pub(super) async fn log_in(way: Arc<Way>, identity: &Identity) -> Result<Server, OpenFailed> {
    let mut nonce = [0; RANDOM_BYTES];
    let filled = SystemRandom::new().fill(&mut nonce);
    filled.map_err(|_| OpenFailed::Broken)?;
    let seat = way.lanes.take_seat(way.lane).ok_or(OpenFailed::LaneCut)?;
    let turns = way.limits.connects(&way.address);
    let _permit = turns.acquire().await;
    let (stream, tls) = reach(&way).await?;
    let mut server = Server {
        key: CancelKey {
            tls: stream.is_encrypted().then(|| tls.clone()),
            ..CancelKey::default()
        },
        opened_by: tls,
        stream,
        seat,
        way,
        reported: BTreeMap::new(),
        initial: Arc::default(),
        settings: Arc::default(),
        exchange: Exchange::default(),
        inbound: Inbound::default(),
        to_server: HeldBack::default(),
        prepared: Prepared::default(),
        cancel: None,
        is_spoiled: false,
        opened_at: clock::now(),
        card: Arc::default(),
    };
    greet(&mut server, identity, nonce).await?;
    Ok(server)
}

/// Makes sure that a server may have clients.
pub(super) async fn admit(mut server: Server, identity: &Identity) -> Result<Server, OpenFailed> {
    if server.way.is_writer && is_in_recovery(&mut server, identity).await? {
        return Err(OpenFailed::InRecovery);
    }
    if server.seat.notice().is_some() {
        return Err(OpenFailed::LaneCut);
    }
    server.initial = Arc::new(Settings::reported(server.report()));
    server.settings = server.initial.clone();
    server.introduce();
    Ok(server)
}

async fn greet(
    server: &mut Server,
    identity: &Identity,
    nonce: [u8; RANDOM_BYTES],
) -> Result<(), OpenFailed> {
    let broken = |_: io::Error| OpenFailed::Broken;
    let packet = identity.startup();
    server.stream.send(&packet).await.map_err(broken)?;
    let login = ClientSide::new(&identity.user, identity.credential.clone(), nonce);
    let mut login = login.over(channel(server));
    let mut is_in = false;
    let mut bytes = Vec::with_capacity(2048);
    loop {
        while let Some((kind, length)) = head(&bytes).map_err(|_| OpenFailed::Broken)? {
            if length > MAX_READ_WHOLE {
                return Err(OpenFailed::Broken);
            }
            if bytes.len() < length {
                break;
            }
            let body = &bytes[5..length];
            match (kind, is_in) {
                (b'R', false) => {
                    let reply;
                    (login, reply) = prove(login, body).await?;
                    match reply {
                        Reply::Send(message) => {
                            server.stream.send(&message).await.map_err(broken)?;
                        }
                        Reply::Wait => {}
                        Reply::Done => is_in = true,
                    }
                }
                (b'E', _) => return Err(OpenFailed::Refused(Complaint::read(body))),
                (b'N', _) => {}
                (b'S', true) => server.note_report(body),
                (b'K', true) if body.len() >= 8 => {
                    let (process, secret) = body.split_at(4);
                    server.key.process = process.try_into().map_or(0, u32::from_be_bytes);
                    server.key.secret = secret.to_vec();
                }
                (b'Z', true) if body == b"I" && bytes.len() == length => return Ok(()),
                _ => return Err(OpenFailed::Broken),
            }
            bytes.drain(..length);
        }
        match server.stream.read_buf(&mut bytes).await {
            Ok(0) => return Err(OpenFailed::Broken),
            // Such as that it wants a certificate.
            Err(why) => return Err(refused(&why)),
            Ok(_) => {}
        }
    }
}

/// What the server's certificate binds an exchange to.
fn channel(server: &Server) -> Channel {
    let Some(tls) = &server.key.tls else {
        return Channel::Clear;
    };
    let shown = server.stream.session().and_then(|s| s.peer_certificates());
    Channel::Tls {
        binding: shown.and_then(|shown| Binding::of(shown.first()?)),
        must_be_bound: tls.must_be_bound(),
    }
}

/// Answers an authentication message: aside where that takes long, since a core carries many sessions.
async fn prove(mut login: ClientSide, body: &[u8]) -> Result<(ClientSide, Reply), OpenFailed> {
    if !login.is_costly(body) {
        let reply = login.answer(body)?;
        return Ok((login, reply));
    }
    let body = body.to_vec();
    let proving = spawn_blocking(move || {
        let reply = login.answer(&body)?;
        Ok::<_, NoLogin>((login, reply))
    });
    Ok(proving.await.map_err(|_| OpenFailed::Broken)??)
}

/// PostgreSQL reports it from 14 on; before, it is asked, but for a replication connection, which may take no SQL:
/// that the store confirms its member as the leader must do.
async fn is_in_recovery(server: &mut Server, identity: &Identity) -> Result<bool, OpenFailed> {
    if let Some(value) = server.reported.get(IN_HOT_STANDBY) {
        return Ok(&**value == "on");
    }
    if identity.replication.is_some() {
        return Ok(false);
    }
    match server.run("SELECT pg_catalog.pg_is_in_recovery()").await {
        Ok(value) => Ok(value.as_deref() != Some("f")),
        Err(QueryFailed::Refused(complaint)) => Err(OpenFailed::Refused(complaint)),
        Err(QueryFailed::Lost) => Err(OpenFailed::Broken),
    }
}

/// Connects to the first of the places that answers.
pub async fn connect_to(places: &[SocketAddr]) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the address has not been resolved");
    for place in places {
        match timeout(CONNECT_TIME, TcpStream::connect(place)).await {
            Ok(Ok(server)) => {
                tune(&server)?;
                return Ok(server);
            }
            Ok(Err(error)) => last = error,
            Err(_) => last = io::Error::from(io::ErrorKind::TimedOut),
        }
    }
    Err(last)
}

/// Sets what both sockets of a session get: no delay, and keep-alives that find a dead peer. What a listening socket is
/// given, those that it accepts have from the start (Linux).
pub fn tune(socket: &impl AsFd) -> io::Result<()> {
    let socket = SockRef::from(socket);
    socket.set_tcp_nodelay(true)?;
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE.0)
        .with_interval(KEEPALIVE.1)
        .with_retries(3);
    socket.set_tcp_keepalive(&keepalive)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_do_not_change_who_logs_in_and_where() {
        let told = |name: &str| (name.to_owned(), "x".to_owned());
        let identity = Identity {
            database: "d".into(),
            user: "u".into(),
            credential: Arc::new(Credential::Nothing),
            replication: Some(Replication::Physical),
            settings: [
                "user",
                "work_mem",
                "database",
                "replication",
                "options",
                "_pq_.a",
            ]
            .map(told)
            .to_vec(),
        };
        let packet = identity.startup();
        let said = String::from_utf8_lossy(&packet[8..]);
        assert_eq!(
            said,
            "user\0u\0database\0d\0replication\0true\0work_mem\0x\0\0"
        );
    }

    #[tokio::test]
    async fn a_tuned_socket_waits_for_nothing_and_finds_a_dead_peer() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tune(&listener).unwrap();
        let connected = TcpStream::connect(address).await.unwrap();
        tune(&connected).unwrap();
        let (accepted, _) = listener.accept().await.unwrap();
        for stream in [connected, accepted] {
            let socket = SockRef::from(&stream);
            assert!(stream.nodelay().unwrap() && socket.keepalive().unwrap());
            assert_eq!(socket.tcp_keepalive_time().unwrap(), KEEPALIVE.0);
            assert_eq!(socket.tcp_keepalive_interval().unwrap(), KEEPALIVE.1);
        }
    }
}
