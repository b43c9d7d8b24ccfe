//! The log-in of a client at a pooled listener: start-up packet, authentication, greeting.

use std::net::SocketAddr;
use std::sync::Arc;

use rustls::ServerConfig;
use tokio::io::AsyncReadExt;

use trunkline_shared::service::clock;

use super::door::{Door, interned};
use super::ends::DEALLOCATE_ALL;
use super::proof::{Admitted, Arrival, authenticate};
use super::whereabouts::{self, Whereabouts};
use super::{Counts, Pooled};
use crate::admin::{self, Visit};
use crate::auth::certificate::Binding;
use crate::auth::hba::{Asking, Verdict};
use crate::auth::scram::MAX_MESSAGE;
use crate::auth::users::User;
use crate::auth::{Malformed, Method, Proven};
use crate::config::admin::{Role, is_console};
use crate::config::auth::AuthConfig;
use crate::config::pooling::Mode;
use crate::error::{SessionError, Whence};
use crate::fleet::cancels::{CancelKey, carry_out};
use crate::listener::Listening;
use crate::pool::registry::{NoRandomness, Registry, Report};
use crate::protocol::messages::{self, AUTHENTICATION_OK, ENCRYPTION_REFUSED, TLS_ACCEPTED};
use crate::protocol::settings::{Settings, tracked};
use crate::protocol::splice::head;
use crate::protocol::sqlstate;
use crate::protocol::startup::{First, Parameters, parameters};
use crate::roster::{Listed, Newcomer};
use crate::route::TargetKind;
use crate::server::QueryFailed;
use crate::session::{Client, first_packet, in_startup_time, meet, send};
use crate::tls::{ALPN, ClientTls};

/// The newest minor version of the protocol that is spoken.
const MINOR: u16 = 2;

/// The longest message of a client that logs in, bytes.
const MAX_ANSWER: usize = MAX_MESSAGE + 128;

/// Leads a client from its first byte to its first ReadyForQuery. `None`: there is nothing more to do.
pub(in crate::session) async fn login(
    listening: &Arc<Listening>,
    registry: &Arc<Registry>,
    mut client: Client,
    has_place: bool,
    peer: &mut SocketAddr,
) -> Result<Option<Box<Pooled>>, SessionError> {
    let began = begin(listening, registry, &mut client, has_place).await;
    *peer = client.peer;
    let told = match began {
        Ok(Some(Begun::Session(begun))) => begun,
        Ok(Some(Begun::Console(role, asked))) => {
            let visit = visit(listening, registry, client, role, asked);
            return admin::serve(visit).await.map(|()| None);
        }
        Ok(None) => return Ok(None),
        Err(error) => {
            crate::session::relay::say(&mut client.stream, &error).await;
            return Err(error);
        }
    };
    let Proved {
        door,
        asked,
        counts,
    } = told;
    let Client {
        stream,
        bytes,
        newcomer,
        ..
    } = client;
    drop(newcomer);
    let card = Listed::new(Newcomer {
        place: door.position.clone(),
        mode: Some(door.mode),
        replication: asked.replication,
        peer: *peer,
        local: stream.socket().local_addr().ok(),
        tls: stream.tls_name(),
        now: clock::now(),
    });
    let mut pooled = Box::new(Pooled::new(stream, door, card, counts));
    if !bytes.is_empty() {
        // An empty one would keep its room for as long as the client stays.
        pooled.is_unread = true;
        pooled.carry = bytes;
    }
    match pooled.greet(asked).await {
        Ok(()) => {
            pooled.door.tally.logins.add(1);
            Ok(Some(pooled))
        }
        Err(error) => {
            pooled.is_explained = false;
            pooled.end(error).await.map(|()| None)
        }
    }
}

/// A client that has proved who it is, and where it wants to.
enum Begun {
    /// To a database.
    Session(Proved),
    /// To the console, with what it may do there.
    Console(Role, Parameters),
}

/// A client of a database.
struct Proved {
    door: Arc<Door>,
    asked: Parameters,
    counts: Counts,
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
            cancel_one(listening, registry, &packet, client.peer).await;
            return Ok(None);
        }
    };
    // An operator comes in where clients do not any more.
    let is_console = is_console(&asked.database);
    if is_console && asked.replication.is_some() {
        return Err(console_replicates_nothing());
    }
    if !has_place && !is_console {
        return Err(listening.full().into());
    }
    if minor > MINOR || !asked.unknown_options.is_empty() {
        let mut negotiation = Vec::new();
        messages::negotiate(&mut negotiation, minor.min(MINOR), &asked.unknown_options);
        send(&mut client.stream, &negotiation).await?;
    }
    let arrival = Arrival {
        listening,
        registry,
        entrance: &entrance,
        asked: &asked,
        binding,
    };
    let Admitted {
        user,
        proven,
        mut greeting,
    } = authenticate(&arrival, client).await?;
    if is_console {
        let role = entrance.pooling.admin.role(&asked.user);
        let role = role.ok_or(SessionError::NoOperator)?;
        // What goes before AuthenticationOk.
        send(&mut client.stream, &greeting).await?;
        return Ok(Some(Begun::Console(role, asked)));
    }
    if registry.gates.of(&asked.database).is_disabled() {
        return Err(SessionError::Disabled(asked.database));
    }
    // The client learns that it is in before it hears of its database, as from PostgreSQL, or waits for a server.
    greeting.extend_from_slice(AUTHENTICATION_OK);
    send(&mut client.stream, &greeting).await?;
    client.newcomer = None;
    let (door, counts) = enter(&arrival, client, &user, proven).await?;
    Ok(Some(Begun::Session(Proved {
        door,
        asked,
        counts,
    })))
}

/// Leads who has proved who it is to its database, if that lets it in.
async fn enter(
    arrival: &Arrival<'_>,
    client: &Client,
    user: &User,
    proven: Proven,
) -> Result<(Arc<Door>, Counts), SessionError> {
    let (listening, registry) = (arrival.listening, arrival.registry);
    let config = &arrival.entrance.pooling;
    let names = arrival.names();
    let Whereabouts {
        cluster,
        terms,
        used,
    } = whereabouts::find(listening, config, names, client).await?;
    let scope = cluster.name.clone();
    let place = (scope.as_str(), names.0, names.1);
    let places = registry.clients.admit(place, &terms.pool)?;
    let credential = registry.credential(place.0, place.2, user, proven);
    let place = (cluster, terms);
    let door = Door::find(listening, registry, config, names, place, credential);
    Ok((door, (places, used)))
}

/// Whoever may replicate is an operator by no rule of `auth.hba_file`.
fn console_replicates_nothing() -> SessionError {
    SessionError::BadParameter {
        code: sqlstate::FEATURE_NOT_SUPPORTED,
        message: "the console takes no replication connections".to_owned(),
        hint: "Connect to it without the parameter replication.",
    }
}

fn visit(
    listening: &Arc<Listening>,
    registry: &Arc<Registry>,
    client: Client,
    role: Role,
    asked: Parameters,
) -> Visit {
    let mut settings = asked.settings.into_iter();
    let application = settings.find(|(name, _)| name == "application_name");
    Visit {
        listening: listening.clone(),
        registry: registry.clone(),
        stream: client.stream,
        bytes: client.bytes,
        peer: client.peer,
        user: asked.user,
        database: asked.database,
        application: application.map(|(_, value)| value),
        role,
    }
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

pub(super) fn asking<'a>(client: &Client, asked: &'a Parameters) -> Asking<'a> {
    Asking {
        address: client.peer.ip(),
        is_encrypted: client.stream.is_encrypted(),
        database: (!asked.is_physical_replication()).then_some(&*asked.database),
        user: &asked.user,
    }
}

/// How the client is to prove who it is.
pub(super) fn method(
    config: &AuthConfig,
    client: &Client,
    asked: &Parameters,
) -> Result<Method, SessionError> {
    if let Some(method) = config.method {
        return Ok(method);
    }
    match config.hba.verdict(&asking(client, asked)) {
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

/// A key that a session of the fleet was given reaches that session. Any other goes nowhere: PostgreSQL's own keys are
/// told to no client. As PostgreSQL does, the connection closes when the cancel is over.
async fn cancel_one(
    listening: &Arc<Listening>,
    registry: &Registry,
    packet: &[u8],
    from: SocketAddr,
) {
    listening.metrics.cancels.increment(1);
    if let Some(key) = CancelKey::of_packet(packet) {
        let (limits, others) = (&listening.limits, listening.others.get());
        let others = others.map(Arc::as_ref);
        carry_out(registry, limits, others, &key, from.ip().to_canonical()).await;
    }
}

pub(super) fn no_randomness(_: NoRandomness) -> SessionError {
    SessionError::TooMuch("the router has no random numbers to authenticate with")
}

/// The body of the client's next message, which must be one of authentication.
pub(super) async fn read_answer(client: &mut Client) -> Result<Vec<u8>, SessionError> {
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
        let (report, key) = match (self.door.mode, &asked.replication) {
            (_, Some(_)) => self.replication_server(&asked).await?,
            (Mode::Session, None) => self.own_server(&asked).await?,
            (Mode::Tcp | Mode::Transaction | Mode::Statement, None) => {
                self.any_report(&asked).await?
            }
        };
        self.door.tally.is_real();
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
        self.tell();
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
            self.drop_statements_of_others().await;
            let Some(server) = &self.server else { continue };
            let settings = self.wanted(asked, Settings::clone(&server.initial));
            self.settings = interned(settings);
            self.carry_settings().await?;
            if let Some(server) = &self.server {
                self.to_client = Default::default();
                // The process is the one of `pg_stat_activity`; the secret is good for this session only.
                let secret = self.door.registry.new_secret().map_err(no_randomness)?;
                let key = (server.key.process, secret.to_vec());
                let report = Arc::new(server.reported.clone());
                self.note_taken();
                return Ok((report, key));
            }
        }
    }

    /// In session mode a client's statements have the names that it gives them, and a server that was used in another
    /// mode has those of others by such names.
    async fn drop_statements_of_others(&mut self) {
        let Some(server) = self.server.as_mut() else {
            return;
        };
        if server.prepared.is_untouched() {
            return;
        }
        match server.run(DEALLOCATE_ALL).await {
            Ok(_) => server.prepared.clear(),
            // Nothing of the client's was sent: another server will do.
            Err(QueryFailed::Refused(_) | QueryFailed::Lost) => {
                self.server = None;
                self.is_seated = false;
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
pub(super) type Key = (u32, Vec<u8>);
