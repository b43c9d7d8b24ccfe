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

use rustix::net::SendFlags;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep};
use trunkline_shared::cluster::MemberName;
use trunkline_shared::service::clock;

use crate::error::SessionError;
use crate::held_back::HeldBack;
use crate::lanes::{Notice, Seat};
use crate::listener::limits::{GREETING_TIME, Newcomer};
use crate::metrics::Metrics;
use crate::protocol::frame::Conversation;
use crate::protocol::veil::{Cover, Veil};

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
    /// The log-in was not over in time.
    NotGreeted,
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
    /// Where TLS or GSS passes through: what is known of the log-in, until it may be over.
    veil: Option<Veil>,
    to_server: Flow,
    to_client: Flow,
    /// Counted among the clients not yet authenticated until the server greets it.
    newcomer: Option<Newcomer>,
    /// When the greeting must have come; `None` once it has, or may have under a cover.
    greeting: Option<Pin<Box<Sleep>>>,
    is_registered: bool,
}

impl Relay {
    /// `early` is what the client sent beyond its start-up packet. Under a cover nothing is known of the
    /// messages.
    pub fn new(
        client: TcpStream,
        server: TcpStream,
        seat: Seat,
        member: MemberName,
        early: Vec<u8>,
        newcomer: Option<Newcomer>,
        cover: Option<Cover>,
    ) -> Box<Self> {
        Box::new(Self {
            client,
            server,
            seat,
            member,
            talk: cover.is_none().then(Conversation::default),
            veil: cover.map(Veil::new),
            to_server: Flow {
                held_back: HeldBack::new(early),
                ..Flow::default()
            },
            to_client: Flow {
                is_shut: true,
                ..Flow::default()
            },
            newcomer,
            greeting: Some(Box::pin(sleep(GREETING_TIME))),
            is_registered: false,
        })
    }

    /// Carries bytes until either side, or the cluster, ends it.
    pub async fn run(mut self: Box<Self>, metrics: &Metrics) -> Result<(), SessionError> {
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
            End::NotGreeted => Box::pin(self.not_greeted()).await,
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
        let (talk, veil) = (&mut self.talk, &mut self.veil);
        let towards = pump(
            &mut self.client,
            &mut self.server,
            &mut self.to_server,
            cx,
            buffer,
            |sent| {
                if let Some(talk) = talk {
                    talk.sent_to_server(sent);
                } else if let Some(veil) = veil {
                    veil.sent_to_server(sent);
                }
            },
        );
        if let Err(failure) = towards {
            return Poll::Ready(match failure {
                Failure::Source => End::ClientFailed,
                Failure::Sink => End::ServerFailed,
            });
        }
        let (newcomer, greeting) = (&mut self.newcomer, &mut self.greeting);
        let back = pump(
            &mut self.server,
            &mut self.client,
            &mut self.to_client,
            cx,
            buffer,
            |taken| {
                let is_greeted = if let Some(talk) = talk {
                    talk.taken_by_client(taken);
                    talk.is_greeted()
                } else if let Some(own) = veil {
                    own.taken_by_client(taken);
                    own.may_be_greeted()
                } else {
                    true
                };
                if greeting.is_some() && is_greeted {
                    *newcomer = None;
                    *greeting = None;
                    *veil = None;
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
        self.poll_greeting(cx)
    }

    /// A session that is not logged in ends with its client, and by a time limit.
    fn poll_greeting(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        let Some(greeting) = &mut self.greeting else {
            return Poll::Pending;
        };
        if self.to_server.is_ended {
            let is_explained = self.talk.as_ref().is_some_and(Conversation::is_explained);
            return Poll::Ready(if is_explained {
                End::Closed
            } else {
                End::ClientFailed
            });
        }
        greeting.as_mut().poll(cx).map(|()| End::NotGreeted)
    }

    async fn not_greeted(mut self) -> Result<(), SessionError> {
        let error = SessionError::NotGreeted {
            member: self.member.clone(),
            limit: GREETING_TIME,
        };
        let is_at_boundary = self.talk.as_ref().is_some_and(Conversation::is_at_boundary);
        drop(self.server);
        if is_at_boundary && self.to_client.held_back.is_empty() {
            say(&mut self.client, &error).await;
        }
        Err(error)
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
        let can_hear = match &self.talk {
            Some(talk) if talk.is_at_boundary() && self.to_client.held_back.is_empty() => true,
            Some(talk) if !talk.is_lost() => {
                let left = clock::now().until(notice.deadline);
                let reached = tokio::time::timeout(left, self.reach_boundary()).await;
                reached.unwrap_or(false)
            }
            Some(_) | None => false,
        };
        // Only now: what the client took meanwhile may have been the answer that was outstanding.
        let error = SessionError::Ended {
            ending: notice.ending,
            has_outstanding: self.talk.as_ref().is_none_or(Conversation::has_outstanding),
        };
        let Self { server, client, .. } = self;
        drop(server);
        // First every session of this core lets go of the old member; then they say goodbye.
        tokio::task::yield_now().await;
        if can_hear && let Some(bytes) = error.to_client() {
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
    // With more to come it waits in the socket for the end of the stream: both go in one segment.
    let taken = rustix::net::send(&client, bytes, SendFlags::MORE | SendFlags::NOSIGNAL);
    let rest = &bytes[taken.unwrap_or(0)..];
    let told = if rest.is_empty() {
        Ok(client.shutdown().await)
    } else {
        tokio::time::timeout(left, async {
            client.write_all(rest).await?;
            client.shutdown().await
        })
        .await
    };
    metrics.cut_seconds.record(clock::now().since(notice.since));
    if let Ok(Ok(())) = told {
        linger(&mut client).await;
    }
}

/// Tells the client an error and closes, as far as it listens.
pub async fn say(client: &mut (impl AsyncRead + AsyncWrite + Unpin), error: &SessionError) {
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
async fn linger(client: &mut (impl AsyncRead + Unpin)) {
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
            flow.held_back.push(&bytes[count..]);
        }
    }
}

fn poll_write(sink: &mut TcpStream, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
    Pin::new(sink).poll_write(cx, bytes)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::net::TcpListener;
    use trunkline_shared::cluster::LeaderEpoch;

    use super::*;
    use crate::lanes::{Ending, Lanes};
    use crate::listener::limits::Limits;
    use crate::topology::routing_table::{LaneId, LastLeader, RoutingTable};
    use crate::topology::transition::CutCause;

    const GREETING: &[u8] = b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05I";
    const ANSWER: &[u8] = b"C\0\0\0\x09DONE\0Z\0\0\0\x05I";

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).await;
        (near.unwrap(), listener.accept().await.unwrap().0)
    }

    /// A relay, its client and its server.
    async fn relay_under(cover: Option<Cover>) -> (Box<Relay>, TcpStream, TcpStream) {
        let (client, near) = pair().await;
        let (far, server) = pair().await;
        let lanes = Arc::new(Lanes::default());
        lanes.open(&RoutingTable::remembering(Some(LastLeader {
            member: MemberName::new("a"),
            epoch: LeaderEpoch {
                generation: 0,
                revision: 1,
            },
            address: "a:5432".into(),
            api_url: "".into(),
            timeline: None,
            is_trunkline: true,
            is_confirmed: true,
            lane: Some(LaneId(1)),
        })));
        let seat = lanes.take_seat(LaneId(1)).unwrap();
        let relay = Relay::new(near, far, seat, MemberName::new("a"), vec![], None, cover);
        (relay, client, server)
    }

    async fn relay() -> (Box<Relay>, TcpStream, TcpStream) {
        relay_under(None).await
    }

    async fn all(mut client: TcpStream) -> Vec<u8> {
        let mut bytes = Vec::new();
        client.read_to_end(&mut bytes).await.unwrap();
        bytes
    }

    #[tokio::test]
    async fn an_answer_that_was_held_back_is_taken_before_the_goodbye_is_chosen() {
        let (mut relay, client, _server) = relay().await;
        let talk = relay.talk.as_mut().unwrap();
        talk.taken_by_client(GREETING);
        talk.sent_to_server(b"Q\0\0\0\x0dselect 1\0");
        relay.to_client.held_back.push(ANSWER);
        let since = clock::now();
        let notice = Notice {
            ending: Ending::Lane(CutCause::LeaderChanged),
            since,
            deadline: since + Duration::from_secs(20),
        };
        let metrics = Metrics::new("test");
        let (outcome, told) = tokio::join!(relay.cut(notice, &metrics), all(client));
        assert_eq!(outcome.unwrap_err().sqlstate(), Some("57P01"));
        assert!(told.starts_with(ANSWER));
    }

    #[tokio::test]
    async fn a_server_that_never_greets_is_left_with_a_reason() {
        let (mut relay, client, _server) = relay().await;
        relay.greeting = Some(Box::pin(sleep(Duration::ZERO)));
        let metrics = Metrics::new("test");
        let (outcome, told) = tokio::join!(relay.run(&metrics), all(client));
        assert_eq!(outcome.unwrap_err().reason(), "not_greeted");
        assert!(told.starts_with(b"E"));
    }

    #[tokio::test]
    async fn under_tls_a_log_in_that_cannot_be_over_ends_with_the_same_reason() {
        let (mut relay, mut client, mut server) = relay_under(Some(Cover::Tls)).await;
        client.write_all(b"\x16\x03\x01\0\x01x").await.unwrap();
        server.write_all(&[22; 4000]).await.unwrap();
        relay.greeting = Some(Box::pin(sleep(Duration::ZERO)));
        let metrics = Metrics::new("test");
        let (outcome, told) = tokio::join!(relay.run(&metrics), all(client));
        assert_eq!(outcome.unwrap_err().reason(), "not_greeted");
        assert!(told.len() <= 4000, "nothing in the clear under TLS");
    }

    #[tokio::test]
    async fn under_tls_a_client_counts_as_a_newcomer_until_it_may_be_greeted() {
        let (mut relay, mut client, mut server) = relay_under(Some(Cover::Tls)).await;
        let limits = Arc::new(Limits::default());
        relay.newcomer = limits.admit([127, 0, 0, 1].into());
        let answer = [23; 300];
        client.write_all(b"\x17\x03\x03\0\x01x").await.unwrap();
        let mut asked = [0; 6];
        carry_until(&mut relay, server.read_exact(&mut asked)).await;
        assert!(relay.newcomer.is_some() && relay.greeting.is_some());
        server.write_all(&answer).await.unwrap();
        let mut read = answer;
        carry_until(&mut relay, client.read_exact(&mut read)).await;
        assert!(relay.newcomer.is_none() && relay.greeting.is_none());
    }

    async fn carry_until(relay: &mut Relay, done: impl Future<Output = io::Result<usize>>) {
        tokio::select! {
            end = poll_fn(|cx| relay.poll_carry(cx)) => {
                assert!(matches!(end, End::Closed), "ended by itself");
            }
            done = done => assert!(done.is_ok()),
        }
    }

    #[tokio::test]
    async fn after_the_greeting_no_limit_holds() {
        let (mut relay, mut client, mut server) = relay().await;
        server.write_all(GREETING).await.unwrap();
        let mut read = vec![0; GREETING.len()];
        tokio::select! {
            end = poll_fn(|cx| relay.poll_carry(cx)) => {
                assert!(matches!(end, End::Closed), "ended by itself");
            }
            read = client.read_exact(&mut read) => assert!(read.is_ok()),
        }
        assert!(relay.greeting.is_none());
    }
}
