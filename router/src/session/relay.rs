//! Bytes both ways between a client and its server, and the end of it.
//!
//! Reading goes through one buffer per thread; what was read is written on at once. A connection holds a
//! buffer of its own only for what the peer would not take, and then its source is not read: a slow reader
//! slows only itself, and an idle client costs no buffer at all.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use trunkline_shared::cluster::MemberName;
use trunkline_shared::service::clock;

use crate::error::SessionError;
use crate::lanes::{Notice, Seat};
use crate::listener::limits::Newcomer;
use crate::metrics::Metrics;
use crate::protocol::frame::Conversation;

/// Bytes read at once; also the most that one connection ever holds back per direction.
pub const BUFFER_BYTES: usize = 64 * 1024;

/// How long a client that was told goodbye may still send, so that the goodbye is not destroyed by a
/// reset.
const LINGER: Duration = Duration::from_millis(500);
/// And how much.
const LINGER_BYTES: usize = 1 << 20;

thread_local! {
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; BUFFER_BYTES].into_boxed_slice());
}

/// Bytes that a peer would not take yet.
#[derive(Default)]
struct HeldBack {
    bytes: Vec<u8>,
    taken: usize,
}

impl HeldBack {
    fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    fn rest(&self) -> &[u8] {
        &self.bytes[self.taken..]
    }

    fn take(&mut self, count: usize) {
        self.taken += count;
        if self.taken == self.bytes.len() {
            // Not cleared but given back: an idle connection owns no buffer.
            *self = HeldBack::default();
        }
    }
}

/// One direction.
#[derive(Default)]
struct Flow {
    held_back: HeldBack,
    /// The source has ended.
    is_ended: bool,
    /// The end was passed on. Only the client's is: after the server's the router may have a word to say.
    is_shut: bool,
    /// Bytes passed on.
    bytes: u64,
}

/// How a relay came to its end.
enum End {
    /// Both directions ended, or the server did.
    Closed,
    /// The lane was cut.
    Cut(Notice),
    /// The client's socket failed.
    ClientFailed,
    /// The server's socket failed.
    ServerFailed,
}

enum Failure {
    Source,
    Sink,
}

/// A client and its server.
pub struct Relay {
    client: TcpStream,
    server: TcpStream,
    seat: Seat,
    member: MemberName,
    /// What is known of the conversation; `None` where TLS or GSS passes through.
    talk: Option<Conversation>,
    to_server: Flow,
    to_client: Flow,
    /// Counted among the clients not yet authenticated until the server greets it.
    newcomer: Option<Newcomer>,
    is_registered: bool,
}

impl Relay {
    /// `early` is what the client sent beyond its start-up packet. With `is_readable` false TLS or GSS
    /// passes through and nothing is known of the messages.
    pub fn new(
        client: TcpStream,
        server: TcpStream,
        seat: Seat,
        member: MemberName,
        early: Vec<u8>,
        newcomer: Newcomer,
        is_readable: bool,
    ) -> Self {
        Self {
            client,
            server,
            seat,
            member,
            talk: is_readable.then(Conversation::default),
            to_server: Flow {
                held_back: HeldBack {
                    bytes: early,
                    taken: 0,
                },
                ..Flow::default()
            },
            to_client: Flow {
                is_shut: true,
                ..Flow::default()
            },
            // Behind encryption the end of authentication cannot be seen; PostgreSQL's own
            // authentication_timeout bounds it.
            newcomer: is_readable.then_some(newcomer),
            is_registered: false,
        }
    }

    /// Carries bytes until either side, or the cluster, ends it.
    pub async fn run(mut self, metrics: &Metrics) -> Result<(), SessionError> {
        let end = poll_fn(|cx| self.poll_carry(cx)).await;
        metrics.bytes_to_server.increment(self.to_server.bytes);
        metrics.bytes_to_client.increment(self.to_client.bytes);
        match end {
            End::Closed if self.to_client.is_ended && !self.to_server.is_ended => {
                Box::pin(self.server_closed()).await
            }
            End::ServerFailed => Box::pin(self.server_closed()).await,
            End::Closed => Ok(()),
            End::ClientFailed => Err(SessionError::ClientGone),
            End::Cut(notice) => Box::pin(self.cut(notice, metrics)).await,
        }
    }

    fn poll_carry(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        if !self.is_registered {
            self.seat.register(cx);
            self.is_registered = true;
        }
        if let Some(notice) = self.seat.notice() {
            return Poll::Ready(End::Cut(notice));
        }
        BUFFER.with_borrow_mut(|buffer| self.poll_both(cx, buffer))
    }

    fn poll_both(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<End> {
        let talk = &mut self.talk;
        let towards = pump(
            &mut self.client,
            &mut self.server,
            &mut self.to_server,
            cx,
            buffer,
            |sent| {
                if let Some(talk) = talk {
                    talk.sent_to_server(sent);
                }
            },
        );
        if let Err(failure) = towards {
            return Poll::Ready(match failure {
                Failure::Source => End::ClientFailed,
                Failure::Sink => End::ServerFailed,
            });
        }
        let newcomer = &mut self.newcomer;
        let back = pump(
            &mut self.server,
            &mut self.client,
            &mut self.to_client,
            cx,
            buffer,
            |taken| {
                if let Some(talk) = talk {
                    talk.taken_by_client(taken);
                    if newcomer.is_some() && talk.is_greeted() {
                        *newcomer = None;
                    }
                }
            },
        );
        if let Err(failure) = back {
            return Poll::Ready(match failure {
                Failure::Source => End::ServerFailed,
                Failure::Sink => End::ClientFailed,
            });
        }
        // A server that closed will not read any more: what the client still sends is nobody's.
        if self.to_client.is_ended && self.to_client.held_back.is_empty() {
            return Poll::Ready(End::Closed);
        }
        Poll::Pending
    }

    /// The server closed first. If it has not said why, the router does.
    async fn server_closed(mut self) -> Result<(), SessionError> {
        let Some(talk) = &self.talk else {
            return Ok(());
        };
        if talk.is_explained() || !talk.is_at_boundary() || !self.to_client.held_back.is_empty() {
            let _ = self.client.shutdown().await;
            return Ok(());
        }
        let error = SessionError::ServerLost {
            member: self.member.clone(),
            has_outstanding: talk.has_outstanding(),
        };
        say(&mut self.client, &error).await;
        Err(error)
    }

    /// The lane was cut: nothing more goes to the server; the client is told, if its stream stands at a
    /// boundary in time.
    async fn cut(mut self, notice: Notice, metrics: &Metrics) -> Result<(), SessionError> {
        // What the kernel still holds for the old member must not reach it: a reset, not a close.
        let _ = SockRef::from(&self.server).set_linger(Some(Duration::ZERO));
        let error = SessionError::Ended {
            ending: notice.ending,
            has_outstanding: self.talk.as_ref().is_none_or(Conversation::has_outstanding),
        };
        let left = clock::now().until(notice.deadline);
        let reached = match &self.talk {
            Some(talk) if !talk.is_lost() => {
                tokio::time::timeout(left, self.reach_boundary()).await
            }
            Some(_) | None => Ok(false),
        };
        let Self { server, client, .. } = self;
        drop(server);
        if let Ok(true) = reached
            && let Some(bytes) = error.to_client()
        {
            let left = clock::now().until(notice.deadline);
            tell(client, &bytes, left, notice, metrics).await;
        } else {
            let _ = SockRef::from(&client).set_linger(Some(Duration::ZERO));
            drop(client);
            metrics.cut_seconds.record(clock::now().since(notice.since));
        }
        Err(error)
    }

    /// Lets the client take what was read for it, and the rest of the message that it stands in; not a
    /// byte more.
    async fn reach_boundary(&mut self) -> bool {
        let Some(talk) = &mut self.talk else {
            return false;
        };
        let held = std::mem::take(&mut self.to_client.held_back);
        if self.client.write_all(held.rest()).await.is_err() {
            return false;
        }
        talk.taken_by_client(held.rest());
        let mut piece = [0; 4096];
        while !talk.is_at_boundary() {
            let want = talk.bytes_to_boundary().min(piece.len());
            if want == 0 {
                return false;
            }
            match self.server.read(&mut piece[..want]).await {
                Ok(0) | Err(_) => return false,
                Ok(count) => {
                    if self.client.write_all(&piece[..count]).await.is_err() {
                        return false;
                    }
                    talk.taken_by_client(&piece[..count]);
                }
            }
        }
        true
    }
}

/// Writes the goodbye within `left`, and lingers.
async fn tell(
    mut client: TcpStream,
    bytes: &[u8],
    left: Duration,
    notice: Notice,
    metrics: &Metrics,
) {
    let told = tokio::time::timeout(left, async {
        client.write_all(bytes).await?;
        client.shutdown().await
    })
    .await;
    metrics.cut_seconds.record(clock::now().since(notice.since));
    if let Ok(Ok(())) = told {
        linger(&mut client).await;
    }
}

/// Tells the client an error and closes, as far as it listens.
pub async fn say(client: &mut TcpStream, error: &SessionError) {
    if let Some(bytes) = error.to_client() {
        let told = tokio::time::timeout(LINGER, async {
            client.write_all(&bytes).await?;
            client.shutdown().await
        })
        .await;
        if let Ok(Ok(())) = told {
            linger(client).await;
        }
    }
}

/// Reads and forgets what a client still sends: closing over unread bytes would send a reset, and the
/// goodbye would be lost with it on some systems.
async fn linger(client: &mut TcpStream) {
    let _ = tokio::time::timeout(LINGER, async {
        let mut scrap = [0; 1024];
        let mut seen = 0;
        while seen < LINGER_BYTES {
            match client.read(&mut scrap).await {
                Ok(0) | Err(_) => return,
                Ok(count) => seen += count,
            }
        }
    })
    .await;
}

/// Moves one direction on as far as it goes. `passed` sees every byte that the sink has taken.
fn pump(
    source: &mut TcpStream,
    sink: &mut TcpStream,
    flow: &mut Flow,
    cx: &mut Context<'_>,
    buffer: &mut [u8],
    mut passed: impl FnMut(&[u8]),
) -> Result<(), Failure> {
    match poll_pump(source, sink, flow, cx, buffer, &mut passed) {
        Poll::Pending => Ok(()),
        Poll::Ready(Ok(())) => Ok(()),
        Poll::Ready(Err(failure)) => Err(failure),
    }
}

/// Ready when the direction is over, pending when it waits for either side.
fn poll_pump(
    source: &mut TcpStream,
    sink: &mut TcpStream,
    flow: &mut Flow,
    cx: &mut Context<'_>,
    buffer: &mut [u8],
    passed: &mut impl FnMut(&[u8]),
) -> Poll<Result<(), Failure>> {
    loop {
        while !flow.held_back.is_empty() {
            let rest = flow.held_back.rest();
            let count = ready!(poll_write(sink, cx, rest)).map_err(|_| Failure::Sink)?;
            passed(&rest[..count]);
            flow.bytes += count as u64;
            flow.held_back.take(count);
        }
        if flow.is_ended {
            if !flow.is_shut {
                flow.is_shut = true;
                let _ = Pin::new(&mut *sink).poll_shutdown(cx);
            }
            return Poll::Ready(Ok(()));
        }
        let mut read = ReadBuf::new(buffer);
        ready!(Pin::new(&mut *source).poll_read(cx, &mut read)).map_err(|_| Failure::Source)?;
        let bytes = read.filled();
        if bytes.is_empty() {
            flow.is_ended = true;
            continue;
        }
        let count = match poll_write(sink, cx, bytes) {
            Poll::Ready(Ok(count)) => count,
            Poll::Ready(Err(_)) => return Poll::Ready(Err(Failure::Sink)),
            Poll::Pending => 0,
        };
        passed(&bytes[..count]);
        flow.bytes += count as u64;
        if count < bytes.len() {
            flow.held_back.bytes = bytes[count..].to_vec();
        }
    }
}

fn poll_write(sink: &mut TcpStream, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
    Pin::new(sink).poll_write(cx, bytes)
}
