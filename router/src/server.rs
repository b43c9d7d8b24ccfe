//! One connection to PostgreSQL, opened and authenticated by the router, as the pools keep it.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tracing::warn;
use trunkline_shared::cluster::{MemberName, Moment};
use trunkline_shared::service::tls::Reloadable;

use crate::held_back::HeldBack;
use crate::in_force::InForce;
use crate::lanes::{Lanes, Seat};
use crate::listener::limits::{CONNECT_TIME, Limits};
use crate::protocol::exchange::{Exchange, Heard};
use crate::protocol::messages::{self, TERMINATE};
use crate::protocol::settings::Settings;
use crate::protocol::splice::head;
use crate::server::ahead::Ahead;
use crate::server::card::ServerCard;
use crate::server::encryption::encrypt;
use crate::server::login::OpenFailed;
use crate::stream::{Detached, Stream};
use crate::tls::ServerTls;
use crate::topology::routing_table::LaneId;

pub mod abandoned;
pub mod ahead;
pub mod card;
mod encryption;
pub mod login;
pub mod lookup;

/// How long a server has for a query that the router asks of itself.
const OWN_QUERY_TIME: Duration = Duration::from_secs(10);
/// The longest message that is read whole from a server, bytes: errors and reports are far shorter.
pub const MAX_READ_WHOLE: usize = 64 * 1024;

/// The way to the servers of one lane.
pub struct Way {
    /// Where seats are taken.
    pub lanes: Arc<Lanes>,
    /// The lane: the stamp of the epoch or of the reader.
    pub lane: LaneId,
    /// Whose servers they are.
    pub member: MemberName,
    /// Its address as its record names it.
    pub address: Arc<str>,
    /// Where that leads.
    pub places: Vec<SocketAddr>,
    /// Servers must accept writes.
    pub is_writer: bool,
    /// The member does not lead yet: a planned change goes to it.
    pub ahead: Option<Arc<Ahead>>,
    /// Limits of the process.
    pub limits: Arc<Limits>,
    /// How PostgreSQL is spoken to, among other settings of the moment.
    pub in_force: Arc<Reloadable<InForce>>,
}

/// What a server is known by to those who cancel its query.
#[derive(Clone, Debug, Default)]
pub struct CancelKey {
    /// Its process.
    pub process: u32,
    /// Its secret: four bytes, more in later versions of the protocol.
    pub secret: Vec<u8>,
    /// How the server was spoken to when it told them, if under TLS: they are not shown in the clear, whatever a
    /// reload has changed since.
    pub tls: Option<Arc<ServerTls>>,
}

/// The place in the server's stream.
#[derive(Debug, Default)]
pub struct Inbound {
    /// Bytes of the current message that have not come.
    pub left: usize,
    /// They are not for the client.
    pub is_hidden: bool,
    /// The beginning of a message that is looked at whole.
    pub carry: Vec<u8>,
}

/// Statements that are prepared on one server, by number, with the time of their last use as a count.
#[derive(Debug, Default)]
pub struct Prepared {
    used: BTreeMap<u32, u64>,
    clock: u64,
}

impl Prepared {
    /// Whether it is there; then it counts as used now.
    pub fn touch(&mut self, statement: u32) -> bool {
        self.clock += 1;
        let clock = self.clock;
        let found = self.used.get_mut(&statement).map(|used| *used = clock);
        found.is_some()
    }

    /// Adds one. Returns the one used longest ago, if there are more than `limit`: it is to be closed.
    pub fn add(&mut self, statement: u32, limit: usize) -> Option<u32> {
        self.clock += 1;
        self.used.insert(statement, self.clock);
        if self.used.len() <= limit {
            return None;
        }
        let oldest = self.used.iter().min_by_key(|(_, used)| **used)?;
        let oldest = *oldest.0;
        self.used.remove(&oldest);
        Some(oldest)
    }

    /// Hears what the server has not done after all.
    pub fn hear(&mut self, heard: Heard) {
        match heard {
            Heard::NotPrepared(statement) => {
                self.used.remove(&statement);
            }
            // It is the first to give way again.
            Heard::NotClosed(statement) => {
                self.used.insert(statement, 0);
            }
            Heard::Renamed | Heard::NotRenamed(_) => {}
        }
    }

    /// Something was prepared that has no number.
    pub fn note_other(&mut self) {
        self.clock += 1;
    }

    /// Whether nothing was ever prepared, as far as is known, or everything is dropped since.
    pub fn is_untouched(&self) -> bool {
        self.clock == 0
    }

    /// Nothing is prepared any more.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

/// A server. Whoever drops it closes the connection.
pub struct Server {
    /// The connection.
    pub stream: Stream,
    /// Its place on the lane.
    pub seat: Seat,
    /// The way it was opened by.
    pub way: Arc<Way>,
    /// For cancels.
    pub key: CancelKey,
    /// How PostgreSQL was to be spoken to when it was opened.
    pub opened_by: Arc<ServerTls>,
    /// What it reports of itself, by name, as last heard.
    pub reported: BTreeMap<Box<str>, Box<str>>,
    /// What it reported when it was opened, as far as that moves with clients.
    pub initial: Arc<Settings>,
    /// The settings that were given to it, as far as they move with clients.
    pub settings: Arc<Settings>,
    /// What it was asked and has not answered.
    pub exchange: Exchange,
    /// The place in its stream.
    pub inbound: Inbound,
    /// What it would not take yet.
    pub to_server: HeldBack,
    /// What is prepared on it.
    pub prepared: Prepared,
    /// A cancel on its way: before that is over it is not another client's server, and its own client asks
    /// nothing more.
    pub cancel: Option<JoinHandle<Cancelled>>,
    /// Something on it is out of date: it is not used again.
    pub is_spoiled: bool,
    /// When it was opened.
    pub opened_at: Moment,
    /// What is shown of it.
    pub card: Arc<ServerCard>,
}

/// PostgreSQL's words about why it does not do something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Complaint {
    /// SQLSTATE.
    pub code: String,
    /// The message.
    pub message: String,
    /// The function of PostgreSQL that says so: the same in every language.
    pub routine: String,
    /// The connection is over.
    pub is_fatal: bool,
}

impl Complaint {
    /// Reads the body of an ErrorResponse.
    pub fn read(body: &[u8]) -> Self {
        let mut own = Self {
            code: String::new(),
            message: String::new(),
            routine: String::new(),
            is_fatal: false,
        };
        for field in body.split(|b| *b == 0) {
            let Some((code, text)) = field.split_first() else {
                continue;
            };
            let text = || String::from_utf8_lossy(text).into_owned();
            match code {
                b'C' => own.code = text(),
                b'M' => own.message = text(),
                b'R' => own.routine = text(),
                // The severity that is never translated.
                b'V' => own.is_fatal = field != b"VERROR",
                _ => {}
            }
        }
        own
    }
}

/// Why a query of the router's own failed.
#[derive(Debug)]
pub enum QueryFailed {
    /// PostgreSQL refuses.
    Refused(Complaint),
    /// The connection is lost, or cannot be trusted.
    Lost,
}

impl Server {
    /// Runs a query of the router's own on a server that stands between two requests. Hears reports, forgets
    /// rows; returns the first value of the first row.
    pub async fn run(&mut self, sql: &str) -> Result<Option<String>, QueryFailed> {
        let asked = timeout(OWN_QUERY_TIME, async {
            let sent = self.stream.send(&messages::query(sql)).await;
            sent.map_err(|_| QueryFailed::Lost)?;
            self.hear().await
        });
        let rows = asked.await.unwrap_or(Err(QueryFailed::Lost))?;
        let first = rows
            .into_iter()
            .next()
            .and_then(|row| row.into_iter().next());
        Ok(first.flatten())
    }

    /// Runs a query with one parameter, as [`Server::run`] does. Returns two rows at most.
    pub async fn ask(
        &mut self,
        sql: &str,
        parameter: &str,
    ) -> Result<Vec<Vec<Option<String>>>, QueryFailed> {
        let asked = timeout(OWN_QUERY_TIME, async {
            let sent = self.stream.send(&messages::ask(sql, parameter, 2)).await;
            sent.map_err(|_| QueryFailed::Lost)?;
            self.hear().await
        });
        asked.await.unwrap_or(Err(QueryFailed::Lost))
    }

    async fn hear(&mut self) -> Result<Vec<Vec<Option<String>>>, QueryFailed> {
        let mut bytes = std::mem::take(&mut self.inbound.carry);
        let mut complaint = None;
        let mut rows = Vec::new();
        loop {
            while let Some((kind, length)) = head(&bytes).map_err(|_| QueryFailed::Lost)? {
                if length > MAX_READ_WHOLE {
                    return Err(QueryFailed::Lost);
                }
                if bytes.len() < length {
                    break;
                }
                let body = &bytes[5..length];
                match kind {
                    b'E' => {
                        let read = Complaint::read(body);
                        if read.is_fatal {
                            return Err(QueryFailed::Lost);
                        }
                        complaint.get_or_insert(read);
                    }
                    b'S' => self.note_report(body),
                    b'D' if rows.len() < 2 => rows.push(row(body).ok_or(QueryFailed::Lost)?),
                    b'Z' if body == b"I" && bytes.len() == length => {
                        return match complaint {
                            Some(complaint) => Err(QueryFailed::Refused(complaint)),
                            None => Ok(rows),
                        };
                    }
                    b'Z' => return Err(QueryFailed::Lost),
                    _ => {}
                }
                bytes.drain(..length);
            }
            match self.stream.read_buf(&mut bytes).await {
                Ok(0) | Err(_) => return Err(QueryFailed::Lost),
                Ok(_) => {}
            }
        }
    }

    /// Notes the body of a ParameterStatus; returns what it says.
    pub fn note_report(&mut self, body: &[u8]) {
        if let Some((name, value)) = report(body) {
            self.reported.insert(name.into(), value.into());
        }
    }

    /// What it reports now, by name.
    pub fn report(&self) -> impl Iterator<Item = (&str, &str)> {
        self.reported
            .iter()
            .map(|(name, value)| (&**name, &**value))
    }

    /// Makes out what is shown of it, once it has let the router in.
    fn introduce(&mut self) {
        let card = ServerCard::of(&self.stream, self.key.process, self.opened_at);
        self.card = Arc::new(card);
    }

    /// Says goodbye, as far as the socket takes it at once, and closes.
    pub fn close(mut self) {
        if self.exchange.is_quiet() && self.to_server.is_empty() {
            self.stream.send_at_once(TERMINATE);
        }
    }
}

/// A server on its way to another core: its socket belongs to no runtime.
pub struct Parcel {
    stream: Detached,
    seat: Seat,
    way: Arc<Way>,
    key: CancelKey,
    opened_by: Arc<ServerTls>,
    reported: BTreeMap<Box<str>, Box<str>>,
    initial: Arc<Settings>,
    settings: Arc<Settings>,
    prepared: Prepared,
    opened_at: Moment,
    card: Arc<ServerCard>,
}

impl Parcel {
    /// Takes an idle server off this core.
    ///
    /// # Errors
    /// The system does not let go of the socket; the server is lost.
    pub fn pack(server: Server) -> io::Result<Self> {
        Ok(Self {
            stream: server.stream.detach()?,
            seat: server.seat,
            way: server.way,
            key: server.key,
            opened_by: server.opened_by,
            reported: server.reported,
            initial: server.initial,
            settings: server.settings,
            prepared: server.prepared,
            opened_at: server.opened_at,
            card: server.card,
        })
    }

    /// Puts it up on this core.
    ///
    /// # Errors
    /// The system does not take the socket; the server is lost.
    pub fn unpack(self) -> io::Result<Server> {
        Ok(Server {
            stream: self.stream.attach()?,
            seat: self.seat,
            way: self.way,
            key: self.key,
            opened_by: self.opened_by,
            reported: self.reported,
            initial: self.initial,
            settings: self.settings,
            exchange: Exchange::default(),
            inbound: Inbound::default(),
            to_server: HeldBack::default(),
            prepared: self.prepared,
            cancel: None,
            is_spoiled: false,
            opened_at: self.opened_at,
            card: self.card,
        })
    }
}

/// Name and value of a ParameterStatus.
pub fn report(body: &[u8]) -> Option<(&str, &str)> {
    let mut texts = body.split(|b| *b == 0);
    let name = std::str::from_utf8(texts.next()?).ok()?;
    let value = std::str::from_utf8(texts.next()?).ok()?;
    Some((name, value))
}

/// The columns of a DataRow, as text; none for NULL.
fn row(body: &[u8]) -> Option<Vec<Option<String>>> {
    let (count, mut rest) = body.split_first_chunk::<2>()?;
    let mut columns = Vec::new();
    for _ in 0..u16::from_be_bytes(*count) {
        let (length, after) = rest.split_first_chunk::<4>()?;
        // A negative length is that of NULL.
        let Ok(length) = usize::try_from(i32::from_be_bytes(*length)) else {
            columns.push(None);
            rest = after;
            continue;
        };
        let (text, after) = after.split_at_checked(length)?;
        columns.push(Some(String::from_utf8_lossy(text).into_owned()));
        rest = after;
    }
    Some(columns)
}

/// What is known of a cancel request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cancelled {
    /// It was dealt with, or never sent: nothing comes of it any more.
    Over,
    /// It may still end whatever its server does next.
    Doubtful,
}

/// Sends a cancel request and waits until the server has dealt with it, for three times [`CONNECT_TIME`] at most
/// where one of its addresses answers. A key that was told under TLS is not shown in the clear.
pub async fn cancel(way: Arc<Way>, key: CancelKey) -> Cancelled {
    let request = messages::cancel(key.process, &key.secret);
    for place in &way.places {
        let connected = timeout(CONNECT_TIME, TcpStream::connect(place)).await;
        let Ok(Ok(socket)) = connected else {
            continue;
        };
        let mut stream = Stream::from(socket);
        if let Some(tls) = &key.tls {
            let encrypting = timeout(CONNECT_TIME, encrypt(&mut stream, &way.address, tls)).await;
            let why = match encrypting {
                Ok(Ok(())) if stream.is_encrypted() => None,
                Ok(Ok(())) => Some(OpenFailed::NoTls),
                Ok(Err(why)) => Some(why),
                Err(_) => Some(OpenFailed::TooSlow),
            };
            if let Some(why) = why {
                warn!(member = %way.member, %place, "a cancel request is not passed on in the clear: {why}");
                continue;
            }
        }
        if stream.send(&request).await.is_err() {
            return Cancelled::Doubtful;
        }
        // PostgreSQL says nothing, and closes the connection once it has sent the signal.
        let ended = timeout(CONNECT_TIME, stream.read(&mut [0])).await;
        return match ended {
            Ok(Ok(0)) => Cancelled::Over,
            // It does not always say goodbye under TLS.
            Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => Cancelled::Over,
            Ok(Ok(_) | Err(_)) | Err(_) => Cancelled::Doubtful,
        };
    }
    Cancelled::Over
}
