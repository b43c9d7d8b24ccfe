//! The log-in of a client at a pooled listener: start-up packet, authentication, greeting.

use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use tokio::io::AsyncReadExt;
use tokio::time::timeout;

use super::door::{Door, interned};
use super::whereabouts::{self, Whereabouts};
use super::{Counts, Pooled};
use crate::auth::certificate::{Binding, common_name};
use crate::auth::hba::{Asking, Verdict};
use crate::auth::scram::MAX_MESSAGE;
use crate::auth::{Beginning, Malformed, Method, Proven, ServerSide, Step};
use crate::config::auth::AuthConfig;
use crate::config::pooling::{Mode, PoolingConfig};
use crate::error::{SessionError, Whence};
use crate::listener::Listening;
use crate::pool::registry::{NoRandomness, Registry, Report};
use crate::protocol::messages::{self, AUTHENTICATION_OK, ENCRYPTION_REFUSED, TLS_ACCEPTED};
use crate::protocol::settings::{Settings, tracked};
use crate::protocol::splice::head;
use crate::protocol::startup::{First, Parameters, parameters};
use crate::route::TargetKind;
use crate::session::{Client, first_packet, in_startup_time, meet, send};
use crate::tls::{ALPN, ClientTls};

/// The newest minor version of the protocol that is spoken.
const MINOR: u16 = 2;

/// How long a cancel request waits for its end: a session that waits for a leader looks at its mail later.
const CANCEL_TIME: Duration = Duration::from_secs(1);

/// The longest message of a client that logs in, bytes.
const MAX_ANSWER: usize = MAX_MESSAGE + 128;

/// Leads a client from its first byte to its first ReadyForQuery. `None`: there is nothing more to do.
pub(in crate::session) async fn login(
    listening: &Arc<Listening>,
    registry: &Arc<Registry>,
    mut client: Client,
    has_place: bool,
    peer: &mut std::net::SocketAddr,
) -> Result<Option<Box<Pooled>>, SessionError> {
    let began = begin(listening, registry, &mut client, has_place).await;
    *peer = client.peer;
    let told = match began {
        Ok(Some(begun)) => begun,
        Ok(None) => return Ok(None),
        Err(error) => {
            crate::session::relay::say(&mut client.stream, &error).await;
            return Err(error);
        }
    };
    let Begun { door, asked, stay } = told;
    let Client {
        stream,
        bytes,
        newcomer,
        ..
    } = client;
    drop(newcomer);
    let mut pooled = Box::new(Pooled::new(stream, door, stay));
    if !bytes.is_empty() {
        // An empty one would keep its room for as long as the client stays.
        pooled.is_unread = true;
        pooled.carry = bytes;
    }
    match pooled.greet(asked).await {
        Ok(()) => Ok(Some(pooled)),
        Err(error) => {
            pooled.is_explained = false;
            pooled.end(error).await.map(|()| None)
        }
    }
}

/// A client that has proved who it is.
struct Begun {
    door: Arc<Door>,
    asked: Parameters,
    stay: Counts,
}

async fn begin(
    listening: &Arc<Listening>,
    registry: &Arc<Registry>,
    client: &mut Client,
    has_place: bool,
) -> Result<Option<Begun>, SessionError> {
    meet(listening, client).await?;
    // One look: a reload does not come between the client's TLS and its proof.
    let Some(entrance) = registry.entrance(&listening.address) else {
        return Err(SessionError::TooMuch(
            "this listener has no pooled sections",
        ));
    };
    let startup = startup(&entrance.tls, client);
    let (minor, asked, binding) = match in_startup_time(startup).await? {
        Asked::LogIn {
            minor,
            parameters,
            binding,
        } => (minor, parameters, binding),
        Asked::Cancel(packet) => {
            cancel_one(listening, registry, &packet).await;
            return Ok(None);
        }
    };
    if !has_place {
        return Err(listening.full().into());
    }
    if asked.is_replication {
        return Err(SessionError::NotPooled("a replication connection"));
    }
    if minor > MINOR || !asked.unknown_options.is_empty() {
        let mut negotiation = Vec::new();
        messages::negotiate(&mut negotiation, minor.min(MINOR), &asked.unknown_options);
        send(&mut client.stream, &negotiation).await?;
    }
    let limit = entrance.pooling.pool.client_login_timeout;
    let proving = authenticate(registry, &entrance.pooling, client, &asked, binding);
    let proving = timeout(limit, proving);
    let (proven, mut greeting) = proving
        .await
        .unwrap_or(Err(SessionError::LoginTooSlow(limit)))?;
    // The client learns that it is in before it hears of its database, as from PostgreSQL, or waits for a server.
    greeting.extend_from_slice(AUTHENTICATION_OK);
    send(&mut client.stream, &greeting).await?;
    let config = &entrance.pooling;
    let names = (asked.database.as_str(), asked.user.as_str());
    let Whereabouts {
        cluster,
        terms,
        used,
    } = whereabouts::find(listening, config, names, client).await?;
    let place = (cluster.name.as_str(), names.0, names.1);
    let places = registry.clients.admit(place, &terms.pool)?;
    let credential = registry.credential(&asked.user, proven);
    let door = Door::find(
        listening,
        registry,
        config,
        names,
        (cluster, terms),
        credential,
    );
    Ok(Some(Begun {
        door,
        asked,
        stay: (places, used),
    }))
}

/// What a client asks for once it is clear how it is spoken to.
enum Asked {
    LogIn {
        minor: u16,
        parameters: Parameters,
        /// What SCRAM may be bound to; under TLS.
        binding: Option<Binding>,
    },
    Cancel(Vec<u8>),
}

/// The packets up to the start-up packet, or to a cancel request.
async fn startup(tls: &ClientTls, client: &mut Client) -> Result<Asked, SessionError> {
    let longest = tls.longest_handshake();
    let mut asked = [false; 2];
    loop {
        let (first, length) = first_packet(client).await?;
        let packet: Vec<u8> = client.bytes.drain(..length).collect();
        match (first, tls.settings()) {
            (First::Ssl | First::Gss, settings) => {
                let kind = usize::from(first == First::Gss);
                if std::mem::replace(&mut asked[kind], true) || client.stream.is_encrypted() {
                    return Err(SessionError::EncryptionTwice);
                }
                match settings.filter(|_| first == First::Ssl) {
                    // What was not read yet is the beginning of the handshake, or breaks it.
                    Some(_) if !client.bytes.is_empty() => return Err(SessionError::EarlyData),
                    Some(settings) => {
                        send(&mut client.stream, &[TLS_ACCEPTED]).await?;
                        shake_hands(client, settings.clone(), longest).await?;
                    }
                    None => send(&mut client.stream, ENCRYPTION_REFUSED).await?,
                }
            }
            (First::DirectTls, Some(settings)) if !asked[0] && !client.stream.is_encrypted() => {
                shake_hands(client, settings.clone(), longest).await?;
                if client.stream.session().and_then(|tls| tls.alpn_protocol()) != Some(ALPN) {
                    let why = "it began without being asked for, and ALPN did not name postgresql";
                    return Err(SessionError::Handshake(why.to_owned()));
                }
            }
            (First::DirectTls, _) => {
                let why = "it began where TLS is off or was begun already (tls.client.mode)";
                return Err(SessionError::Handshake(why.to_owned()));
            }
            (First::OldProtocol { major, minor }, _) => {
                return Err(SessionError::OldProtocol { major, minor });
            }
            (First::Cancel, _) => return Ok(Asked::Cancel(packet)),
            (First::Startup { minor }, _) => {
                let asked = parameters(&packet)?;
                if tls.is_required() && !client.stream.is_encrypted() {
                    return Err(SessionError::NotEncrypted(whence(client, &asked)));
                }
                let binding = tls.binding().filter(|_| client.stream.is_encrypted());
                return Ok(Asked::LogIn {
                    minor,
                    parameters: asked,
                    binding: binding.cloned(),
                });
            }
        }
    }
}

fn whence(client: &Client, asked: &Parameters) -> Whence {
    Whence {
        address: client.peer.ip(),
        is_encrypted: client.stream.is_encrypted(),
        user: asked.user.clone(),
        database: asked.database.clone(),
    }
}

/// How the client is to prove who it is.
fn method(
    config: &AuthConfig,
    client: &Client,
    asked: &Parameters,
) -> Result<Method, SessionError> {
    if let Some(method) = config.method {
        return Ok(method);
    }
    let verdict = config.hba.verdict(&Asking {
        address: client.peer.ip(),
        is_encrypted: client.stream.is_encrypted(),
        database: &asked.database,
        user: &asked.user,
    });
    match verdict {
        Some(Verdict::By(method)) => Ok(method),
        Some(Verdict::Reject) => Err(SessionError::HbaRejects(whence(client, asked))),
        None => Err(SessionError::NoHbaEntry(whence(client, asked))),
    }
}

/// Begins TLS. What was read in the clear and belongs to the handshake is taken along.
async fn shake_hands(
    client: &mut Client,
    settings: Arc<ServerConfig>,
    longest: usize,
) -> Result<(), SessionError> {
    let early = std::mem::take(&mut client.bytes);
    let shaken = client.stream.accept(settings, early, longest).await;
    shaken.map_err(|why| SessionError::Handshake(why.to_string()))
}

/// A key that a session here was given reaches that session. Any other goes nowhere: PostgreSQL's own keys are
/// told to no client. As PostgreSQL does, the connection closes when the cancel is over.
async fn cancel_one(listening: &Arc<Listening>, registry: &Registry, packet: &[u8]) {
    let Ok(_permit) = listening.limits.cancels.try_acquire() else {
        return;
    };
    listening.metrics.cancels.increment(1);
    let process = packet.get(8..12).and_then(|four| four.try_into().ok());
    let (Some(process), Some(secret)) = (process.map(u32::from_be_bytes), packet.get(12..)) else {
        return;
    };
    if let Some(over) = registry.cancel(process, secret) {
        // It ends by an error: nothing is ever sent.
        let _ = timeout(CANCEL_TIME, over).await;
    }
}

/// The exchange. Returns what was proved, and a message that goes before AuthenticationOk.
async fn authenticate(
    registry: &Registry,
    config: &PoolingConfig,
    client: &mut Client,
    asked: &Parameters,
    binding: Option<Binding>,
) -> Result<(Proven, Vec<u8>), SessionError> {
    let method = method(&config.auth, client, asked)?;
    let user = asked.user.as_str();
    let random = registry.random().map_err(no_randomness)?;
    let shown = client.stream.session().filter(|_| method == Method::Cert);
    let shown = shown.and_then(|tls| common_name(tls.peer_certificates()?.first()?));
    let (mut exchange, mut step) = ServerSide::begin(Beginning {
        method,
        name: user,
        user: config.users.find(user).map(Arc::as_ref),
        look: config.users.mock_look(method, user, registry.mock()),
        random: &random,
        mock: registry.mock(),
        binding,
        certificate: shown.as_deref(),
    });
    loop {
        match step {
            Step::Ask(message) => send(&mut client.stream, &message).await?,
            Step::Proven(proven, last) => return Ok((proven, last)),
            Step::Refused => {
                let user = user.to_owned();
                return Err(match method {
                    Method::Cert => SessionError::WrongCertificate { user },
                    Method::ScramSha256 | Method::Md5 | Method::Trust => {
                        SessionError::WrongPassword { user }
                    }
                });
            }
        }
        let answer = read_answer(client).await?;
        step = exchange.answer(&answer)?;
    }
}

fn no_randomness(_: NoRandomness) -> SessionError {
    SessionError::TooMuch("the router has no random numbers to authenticate with")
}

/// The body of the client's next message, which must be one of authentication.
async fn read_answer(client: &mut Client) -> Result<Vec<u8>, SessionError> {
    loop {
        let header =
            head(&client.bytes).map_err(|_| Malformed("a message of an impossible length"))?;
        if let Some((kind, length)) = header {
            if kind != b'p' {
                return Err(Malformed("a message that is no answer to it").into());
            }
            if length > MAX_ANSWER {
                return Err(Malformed("a message that is too long").into());
            }
            if client.bytes.len() >= length {
                let message: Vec<u8> = client.bytes.drain(..length).collect();
                return Ok(message[5..].to_vec());
            }
        }
        client.bytes.reserve(256);
        match client.stream.read_buf(&mut client.bytes).await {
            Ok(0) | Err(_) => return Err(SessionError::ClientGone),
            Ok(_) => {}
        }
    }
}

impl Pooled {
    /// Sends what a client hears before it may ask: parameters, its key, ReadyForQuery.
    async fn greet(&mut self, asked: Parameters) -> Result<(), SessionError> {
        let mut greeting = Vec::new();
        let (report, key) = match self.door.mode {
            Mode::Session => self.own_server(&asked).await?,
            Mode::Tcp | Mode::Transaction | Mode::Statement => self.any_report(&asked).await?,
        };
        let mut settings = Settings::clone(&self.settings);
        for (name, value) in report.iter() {
            let own = tracked(name).and_then(|name| settings.value(name));
            messages::parameter_status(&mut greeting, name, own.unwrap_or(value));
            if tracked(name).is_some() && own.is_none() {
                settings.set(name, value);
            }
        }
        self.settings = interned(settings);
        let (process, secret) = key;
        messages::backend_key(&mut greeting, process, &secret);
        messages::ready(&mut greeting, b'I');
        let registry = &self.door.registry;
        self.entered = Some(registry.enter(process, &secret, self.mailbox.clone()));
        self.send(&greeting).await
    }

    async fn send(&mut self, bytes: &[u8]) -> Result<(), SessionError> {
        let sent = self.client.send(bytes).await;
        sent.map_err(|_| SessionError::ClientGone)
    }

    /// The client's own server, with its settings; what it reports, and its key.
    async fn own_server(&mut self, asked: &Parameters) -> Result<(Report, Key), SessionError> {
        loop {
            if self.server.is_none() {
                self.acquire().await?;
                continue;
            }
            let Some(server) = &self.server else { continue };
            let settings = self.wanted(asked, Settings::clone(&server.initial));
            self.settings = interned(settings);
            self.carry_settings().await?;
            if let Some(server) = &self.server {
                self.to_client = Default::default();
                // The process is the one of `pg_stat_activity`; the secret is good for this session only.
                let secret = self.door.registry.new_secret().map_err(no_randomness)?;
                let key = (server.key.process, secret.to_vec());
                return Ok((Arc::new(server.reported.clone()), key));
            }
        }
    }

    /// What any server of this database reports, and a key of the router's own.
    async fn any_report(&mut self, asked: &Parameters) -> Result<(Report, Key), SessionError> {
        let is_writer = self.door.listening.kind() == TargetKind::Primary;
        let known = self.door.registry.report(self.door.place(), is_writer);
        let report = match known {
            Some(report) => report,
            None => self.first_report(is_writer).await?,
        };
        let base = Settings::reported(report.iter().map(|(n, v)| (&**n, &**v)));
        self.settings = interned(self.wanted(asked, base));
        let (process, secret) = self.door.registry.new_key().map_err(no_randomness)?;
        Ok((report, (process, secret.to_vec())))
    }

    /// Nobody knows this database yet: a server is asked.
    async fn first_report(&mut self, is_writer: bool) -> Result<Report, SessionError> {
        loop {
            self.acquire().await?;
            let Some(server) = self.server.take() else {
                continue;
            };
            // Another client may have changed some of it.
            let mut begun = server.reported.clone();
            for (name, value) in &mut begun {
                if let Some(own) = tracked(name).and_then(|name| server.initial.value(name)) {
                    *value = own.into();
                }
            }
            let report: Report = Arc::new(begun);
            let (registry, place) = (&self.door.registry, self.door.place());
            registry.set_report(place, is_writer, report.clone());
            self.is_seated = false;
            server.checkin();
            return Ok(report);
        }
    }

    /// The settings of a client that asks for these, on top of what a server begins with.
    fn wanted(&self, asked: &Parameters, mut base: Settings) -> Settings {
        let ignored = &self.door.terms.pool.ignore_startup_parameters;
        for (name, value) in &asked.settings {
            if !ignored.iter().any(|known| known.eq_ignore_ascii_case(name)) {
                base.set(name, value);
            }
        }
        base
    }
}

/// A cancel key: process and secret.
type Key = (u32, Vec<u8>);
