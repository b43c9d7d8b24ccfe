//! One client connection; [`run`] is its life: PROXY header, first packet, route, connect, relay, close.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::sleep;
use tracing::{debug, info};

use crate::cancel;
use crate::config::pooling::Mode;
use crate::error::{SessionError, Side};
use crate::listener::limits::{Counted, ENCRYPTION_ANSWER_TIME, Newcomer, STARTUP_TIME};
use crate::listener::{Listening, proxy};
use crate::protocol::messages::{ENCRYPTION_REFUSED, GSS_ACCEPTED, TLS_ACCEPTED};
use crate::protocol::startup::{self, First, MAX_STARTUP_PACKET_LENGTH, Progress};
use crate::protocol::veil::Cover;
use crate::session::pooled::Pooled;
use crate::session::reach::{Connected, Reach, gone};
use crate::session::relay::{Relay, say};
use crate::stream::Stream;
use crate::topology::Cluster;

pub mod carry_over;
mod pooled;
pub mod reach;
pub mod relay;
pub mod stranded;

/// A client before it has a server.
struct Client {
    stream: Stream,
    peer: SocketAddr,
    /// Read and not yet dealt with.
    bytes: Vec<u8>,
    /// Counted among those who are not logged in. Given back when the client is held: `max_client_conn`
    /// bounds those.
    newcomer: Option<Newcomer>,
}

/// What the first packets came to.
enum Opened {
    /// The client and its server, ready for bytes.
    Relay {
        connected: Connected,
        /// What hides the messages from here on.
        cover: Option<Cover>,
    },
    /// Nothing more to do.
    Over,
}

/// What a session counts in, for as long as it lives.
pub struct Places {
    /// Under `max_client_conn`; absent if there was no place left.
    pub of_listener: Option<Counted>,
    /// Among the sessions of its core.
    pub _of_core: Counted,
}

/// Lives the life of one connection.
pub async fn run(
    listening: Arc<Listening>,
    stream: std::net::TcpStream,
    peer: SocketAddr,
    newcomer: Newcomer,
    places: Places,
) {
    let Ok(stream) = TcpStream::from_std(stream) else {
        return;
    };
    listening.metrics.sessions.increment(1);
    let client = Client {
        stream: stream.into(),
        peer,
        bytes: Vec::new(),
        newcomer: Some(newcomer),
    };
    let mut peer = peer;
    let has_place = places.of_listener.is_some();
    // What is needed to open a session is long-winded and short-lived: boxed, so that an idle one does not carry its
    // size. So is what it needs later, lest the task be made for the larger of the modes.
    let opened = Box::pin(begin(&listening, client, has_place, &mut peer)).await;
    let outcome = match opened {
        Ok(Begun::Pooled(session)) => session.run().await,
        Ok(Begun::Relay(relay)) => relay.run(&listening.metrics).await,
        Ok(Begun::Over) => Ok(()),
        Err(error) => Err(error),
    };
    drop(places);
    listening.metrics.sessions.decrement(1);
    if let Err(error) = outcome {
        report(&listening, peer, &error);
    }
}

fn report(listening: &Listening, peer: SocketAddr, error: &SessionError) {
    listening.metrics.ended(error.reason());
    let (listener, reason) = (&listening.address, error.reason());
    if let SessionError::Ended { .. } = error {
        // Thousands end at once; the one who ended them has said how many.
        debug!(%listener, %peer, reason, "session ended: {error}");
        return;
    }
    match error.side() {
        Side::Client => debug!(%listener, %peer, reason, "session ended: {error}"),
        Side::Server | Side::Router => info!(%listener, %peer, reason, "session ended: {error}"),
    }
}

/// A session that has been opened.
enum Begun {
    Pooled(Box<Pooled>),
    Relay(Box<Relay>),
    /// Nothing more to do.
    Over,
}

/// `peer` is the client's address; the one that a PROXY header names, once it has come.
async fn begin(
    listening: &Arc<Listening>,
    client: Client,
    has_place: bool,
    peer: &mut SocketAddr,
) -> Result<Begun, SessionError> {
    let begun = match &listening.registry {
        Some(registry) if listening.mode != Mode::Tcp => {
            let session = pooled::login::login(listening, registry, client, has_place, peer);
            session.await?.map_or(Begun::Over, Begun::Pooled)
        }
        Some(_) | None => match open(listening, client, has_place, peer).await? {
            (client, Opened::Relay { connected, cover }) => Begun::Relay(Relay::new(
                client.stream.into_socket(),
                connected.server,
                connected.seat,
                connected.member,
                client.bytes,
                client.newcomer,
                cover,
            )),
            (_, Opened::Over) => Begun::Over,
        },
    };
    if !matches!(begun, Begun::Over) {
        listening.metrics.sessions_opened.increment(1);
    }
    Ok(begun)
}

async fn open(
    listening: &Arc<Listening>,
    mut client: Client,
    has_place: bool,
    peer: &mut SocketAddr,
) -> Result<(Client, Opened), SessionError> {
    let outcome = opening(listening, &mut client, has_place).await;
    *peer = client.peer;
    match outcome {
        Ok(opened) => Ok((client, opened)),
        Err(error) => {
            say(&mut client.stream, &error).await;
            Err(error)
        }
    }
}

async fn opening(
    listening: &Arc<Listening>,
    client: &mut Client,
    has_place: bool,
) -> Result<Opened, SessionError> {
    meet(listening, client).await?;
    let Some(cluster) = &listening.cluster else {
        return Err(SessionError::TooMuch(
            "a listener without scope carries pooled sessions only",
        ));
    };
    let mut opening = Opening {
        listening,
        cluster,
        reach: Reach::new(listening, cluster),
        refusal: (!has_place).then(|| listening.full().into()),
        connected: None,
        asked: [false; 2],
    };
    loop {
        let (first, length) = in_startup_time(first_packet(client)).await?;
        if let Some(opened) = opening.step(client, first, length).await? {
            return Ok(opened);
        }
    }
}

/// Takes a PROXY header off, where there may be one, and counts the client under its own address.
async fn meet(listening: &Arc<Listening>, client: &mut Client) -> Result<(), SessionError> {
    let header = proxy::accept(
        &mut client.stream,
        client.peer,
        listening.proxy_protocol,
        &listening.proxy_protocol_from,
        &mut client.bytes,
    );
    let own = in_startup_time(header).await?;
    if own != client.peer {
        client.peer = own;
        let address = own.ip().to_canonical();
        let newcomer = client.newcomer.take().and_then(|n| n.behind(address));
        client.newcomer = Some(newcomer.ok_or(SessionError::TooManyNewcomers { address })?);
    }
    Ok(())
}

/// The opening so far.
struct Opening<'a> {
    listening: &'a Arc<Listening>,
    cluster: &'a Arc<Cluster>,
    reach: Reach<'a>,
    /// Told to the client once it has sent its start-up packet: before that it would not understand.
    refusal: Option<SessionError>,
    connected: Option<Connected>,
    /// Whether TLS, and whether GSS encryption, was asked for.
    asked: [bool; 2],
}

impl Opening<'_> {
    /// Deals with one packet of `length` bytes; `None` if another one follows.
    async fn step(
        &mut self,
        client: &mut Client,
        first: First,
        length: usize,
    ) -> Result<Option<Opened>, SessionError> {
        match first {
            First::Cancel => {
                pass_cancel_on(self.listening, self.cluster, &client.bytes[..length]).await;
                Ok(Some(Opened::Over))
            }
            First::OldProtocol { major, minor } => Err(SessionError::OldProtocol { major, minor }),
            First::Ssl => self.encryption(client, length, 0).await,
            First::Gss => self.encryption(client, length, 1).await,
            First::DirectTls => {
                let connected = self.server(client).await?;
                Ok(Some(Opened::Relay {
                    connected,
                    cover: Some(Cover::Tls),
                }))
            }
            First::Startup { .. } => {
                let mut connected = self.server(client).await?;
                connected.send(&client.bytes[..length]).await?;
                client.bytes.drain(..length);
                Ok(Some(Opened::Relay {
                    connected,
                    cover: None,
                }))
            }
        }
    }

    async fn server(&mut self, client: &mut Client) -> Result<Connected, SessionError> {
        if let Some(refusal) = self.refusal.take() {
            return Err(refusal);
        }
        match self.connected.take() {
            Some(connected) => Ok(connected),
            None => self.reach.server(client).await,
        }
    }

    /// A request for encryption is the server's to answer. Without a server it is refused, so that the
    /// client sends its start-up packet and can be told why.
    async fn encryption(
        &mut self,
        client: &mut Client,
        length: usize,
        kind: usize,
    ) -> Result<Option<Opened>, SessionError> {
        if std::mem::replace(&mut self.asked[kind], true) {
            return Err(SessionError::EncryptionTwice);
        }
        let mut connected = match self.server(client).await {
            Ok(connected) => connected,
            Err(SessionError::ClientGone) => return Err(SessionError::ClientGone),
            Err(error) => {
                self.refusal = Some(error);
                client.bytes.drain(..length);
                send(&mut client.stream, ENCRYPTION_REFUSED).await?;
                return Ok(None);
            }
        };
        let answer = ask_server(&mut connected, client, length).await?;
        client.bytes.drain(..length);
        send(&mut client.stream, &[answer]).await?;
        if answer == ENCRYPTION_REFUSED[0] {
            self.connected = Some(connected);
            return Ok(None);
        }
        Ok(Some(Opened::Relay {
            connected,
            cover: match answer {
                TLS_ACCEPTED => Some(Cover::Tls),
                GSS_ACCEPTED => Some(Cover::Gss),
                // The message of a server that knows no such request.
                _ => None,
            },
        }))
    }
}

async fn in_startup_time<T>(
    step: impl Future<Output = Result<T, SessionError>>,
) -> Result<T, SessionError> {
    tokio::time::timeout(STARTUP_TIME, step)
        .await
        .unwrap_or(Err(SessionError::StartupTooSlow(STARTUP_TIME)))
}

/// Reads until the first packet is whole in `client.bytes`.
async fn first_packet(client: &mut Client) -> Result<(First, usize), SessionError> {
    loop {
        let need = match startup::parse(&client.bytes)? {
            Progress::Whole(first, length) => return Ok((first, length)),
            Progress::Need(need) => need,
        };
        client
            .bytes
            .reserve_exact(need.min(MAX_STARTUP_PACKET_LENGTH) - client.bytes.len());
        match client.stream.read_buf(&mut client.bytes).await {
            Ok(0) | Err(_) => return Err(SessionError::ClientGone),
            Ok(_) => {}
        }
    }
}

async fn pass_cancel_on(listening: &Listening, cluster: &Arc<Cluster>, request: &[u8]) {
    if let Ok(_permit) = listening.limits.cancels.try_acquire() {
        listening.metrics.cancels.increment(1);
        cancel::pass_on(cluster, listening.kind(), request).await;
    }
}

/// Passes a request for encryption on and returns the server's answer of one byte.
async fn ask_server(
    server: &mut Connected,
    client: &Client,
    length: usize,
) -> Result<u8, SessionError> {
    server.send(&client.bytes[..length]).await?;
    let lost = SessionError::ServerLost {
        member: server.member.clone(),
        has_outstanding: false,
    };
    tokio::select! {
        answer = server.server.read_u8() => answer.map_err(|_| lost),
        notice = server.seat.ended() => Err(SessionError::Ended {
            ending: notice.ending,
            has_outstanding: false,
        }),
        () = gone(client.stream.socket()) => Err(SessionError::ClientGone),
        () = sleep(ENCRYPTION_ANSWER_TIME) => Err(SessionError::EncryptionUnanswered {
            member: server.member.clone(),
            limit: ENCRYPTION_ANSWER_TIME,
        }),
    }
}

async fn send(client: &mut Stream, bytes: &[u8]) -> Result<(), SessionError> {
    let sent = client.send(bytes).await;
    sent.map_err(|_| SessionError::ClientGone)
}
