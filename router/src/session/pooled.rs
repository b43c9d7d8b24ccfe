//! A client of a pooled listener, from its log-in to its end: it borrows a server when it asks something, and
//! gives it back as soon as nothing of it is left there.
//!
//! One engine for the three modes: in session mode a client is pinned to its server from the start, in
//! statement mode a transaction block is an error. Reading goes through one buffer per thread; what needs no
//! change is written on from there, in one piece per burst.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncWrite, AsyncWriteExt};

use crate::config::pooling::Mode;
use crate::error::SessionError;
use crate::held_back::HeldBack;
use crate::lanes::Notice;
use crate::listener::limits::Counted;
use crate::pool::clients::Places;
use crate::pool::registry::{Entered, Mailbox, Registry};
use crate::pool::{Lease, PoolId};
use crate::protocol::exchange::{Heard, Status};
use crate::protocol::settings::{Settings, SettingsSeen};
use crate::roster::Listed;
use crate::server::Cancelled;
use crate::session::carry_over::executed::Executed;
use crate::session::carry_over::look::PinReason;
use crate::session::carry_over::{Shared, Statement, Statements};
use crate::session::pooled::books::Books;
use crate::session::pooled::door::Door;
use crate::session::pooled::hoard::Hoard;
use crate::session::pooled::timeouts::Stay;
use crate::session::relay::{BUFFER_BYTES, say};
use crate::session::stranded::Stranded;
use crate::stream::Stream;

mod acquire;
mod asked;
mod books;
mod client_side;
mod closes;
pub(super) mod door;
mod ends;
mod hoard;
pub(super) mod login;
mod lookup;
mod proof;
mod replication;
mod server_side;
mod timeouts;
mod whereabouts;

/// How long a client may take for the last bytes that it is sent.
const FLUSH_TIME: Duration = Duration::from_millis(500);

/// The buffer for what is changed on its way stays as long as this, bytes.
const MAX_OUT: usize = 512 * 1024;

/// What a thread's sessions read into and write from.
pub(super) struct Buffers {
    input: Box<[u8]>,
    out: Vec<u8>,
}

thread_local! {
    static BUFFERS: RefCell<Buffers> = RefCell::new(Buffers {
        input: vec![0; BUFFER_BYTES].into_boxed_slice(),
        out: Vec::new(),
    });
}

/// What clients have prepared, on all cores: a server that changes cores keeps what is prepared on it. Locked
/// when a client prepares a named statement, not when it uses one.
static STATEMENTS: Mutex<Shared> = Mutex::new(Shared::new());

/// A client's own statements, made when it first prepares one.
#[derive(Default)]
pub(super) struct Own(Option<Box<Statements>>);

impl Own {
    fn get(&self) -> Option<&Statements> {
        self.0.as_deref()
    }

    fn get_mut(&mut self) -> &mut Statements {
        self.0.get_or_insert_default()
    }

    /// A statement that servers get to know by a number, if one of this name can be kept.
    fn keep(&mut self, name: &[u8], tail: &[u8], registry: &Registry) -> Option<Arc<Statement>> {
        let interned = {
            let mut shared = STATEMENTS.lock().unwrap_or_else(PoisonError::into_inner);
            shared.intern(tail, || registry.statement_number())
        };
        interned.filter(|it| self.get_mut().has_room_for(name, it))
    }

    /// Hears what has become of changes of names.
    fn hear(&mut self, heard: Heard) {
        if let Some(own) = &mut self.0 {
            own.hear(heard);
        }
    }

    fn confirm(&mut self, count: usize) {
        if let Some(own) = &mut self.0 {
            own.confirm(count);
        }
    }
}

/// What the engine cannot do while it is polled.
#[derive(Debug)]
enum Turn {
    /// The client asks something and no server is at hand.
    NeedServer,
    /// The server has other settings than the client.
    NeedSettings,
    /// The client has changed settings of which nobody was told.
    AskSettings,
    /// A cancel request came.
    Mail,
    /// The server's lane was cut.
    Cut(Notice),
    /// The server has closed the connection.
    ServerGone,
    /// The client said Terminate, or closed.
    ClientLeft,
    /// The session is over with this error.
    Over(SessionError),
}

/// What a direction came to for now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Something moved.
    Moved,
    /// Its socket has nothing more, and wakes the task when it has.
    Empty,
    /// Nothing more to do until the other direction moves or a socket wakes the task.
    Waits,
}

/// One logged-in client.
pub(super) struct Pooled {
    client: Stream,
    door: Arc<Door>,
    /// What is shown of it.
    card: Listed,
    books: Books,
    mailbox: Arc<Mailbox>,
    entered: Option<Entered>,
    /// What the client would not take yet.
    to_client: HeldBack,
    /// Bytes of the client that are not dealt with: the beginning of a message, or a request that waits.
    carry: Vec<u8>,
    /// So many bytes must be in `carry` before it is worth looking again.
    need: usize,
    /// `carry` is looked at before anything is read.
    is_unread: bool,
    /// Bytes of the client's current message that have not come.
    left: usize,
    /// They go nowhere.
    discards: bool,
    /// The right to have a long text of the client waited for.
    hoard: Option<Hoard>,
    server: Option<Lease>,
    /// The server's seat knows the task, and the server has the client's settings.
    is_seated: bool,
    /// The unnamed statement on the server is the client's.
    has_unnamed: bool,
    /// What its statements and portals do.
    executed: Executed,
    settings: Arc<Settings>,
    /// The settings when it had logged in.
    begun_with: Arc<Settings>,
    /// They are its again, and the server's reports are of the server's.
    is_resetting: bool,
    statements: Own,
    stranded: Option<Box<Stranded>>,
    pinned: Option<PinReason>,
    /// What the client may have set that its server does not report: asked for before that is given back.
    to_ask: SettingsSeen,
    /// The table's version and the pool that it led to.
    route: Option<(u64, PoolId)>,
    is_registered: bool,
    /// The server has said itself why it ends the session.
    is_explained: bool,
    /// ReadyForQuery so far.
    answers: u64,
    /// Of them those that ended a transaction.
    ends: u64,
    /// Where times are limited.
    stay: Option<Box<Stay>>,
    _counts: Counts,
}

/// Where a client is counted: among the others, and as one that uses its cluster.
type Counts = (Places, Option<Counted>);

impl Pooled {
    fn new(client: Stream, door: Arc<Door>, card: Listed, counts: Counts) -> Self {
        let pinned = (door.mode == Mode::Session).then_some(PinReason::SessionMode);
        Self {
            client,
            door,
            mailbox: card.mailbox.clone(),
            card,
            books: Books::default(),
            entered: None,
            to_client: HeldBack::default(),
            carry: Vec::new(),
            need: 0,
            is_unread: false,
            left: 0,
            discards: false,
            hoard: None,
            server: None,
            is_seated: false,
            has_unnamed: false,
            executed: Executed::default(),
            settings: Arc::default(),
            begun_with: Arc::default(),
            is_resetting: false,
            statements: Own::default(),
            stranded: None,
            pinned,
            to_ask: SettingsSeen::default(),
            route: None,
            is_registered: false,
            is_explained: false,
            answers: 0,
            ends: 0,
            stay: None,
            _counts: counts,
        }
    }

    /// Carries the session to its end.
    pub(super) async fn run(mut self: Box<Self>) -> Result<(), SessionError> {
        self.begun_with = self.settings.clone();
        loop {
            let turn = poll_fn(|cx| self.poll_turn(cx)).await;
            let outcome = match turn {
                Turn::NeedServer => Box::pin(self.acquire()).await,
                Turn::NeedSettings => Box::pin(self.carry_settings()).await,
                Turn::AskSettings => Box::pin(self.ask_settings()).await,
                Turn::Mail => self.read_mail(),
                Turn::Cut(notice) => self.cut(notice),
                Turn::ServerGone => self.server_gone(),
                Turn::ClientLeft => {
                    self.leave();
                    return Ok(());
                }
                Turn::Over(error) => Err(error),
            };
            if let Err(error) = outcome {
                return Box::pin(self.end(error)).await;
            }
        }
    }

    fn poll_turn(&mut self, cx: &mut Context<'_>) -> Poll<Turn> {
        if !self.is_registered {
            self.mailbox.register(cx);
            self.is_registered = true;
        }
        if self.mailbox.has_mail() {
            return Poll::Ready(Turn::Mail);
        }
        BUFFERS.with_borrow_mut(|buffers| {
            let turn = self.poll_both(cx, buffers);
            // What one client has blown up is not kept for the others.
            buffers.out.clear();
            buffers.out.shrink_to(MAX_OUT);
            match turn {
                Poll::Pending => {
                    self.wait_no_longer(cx);
                    self.poll_timeouts(cx)
                }
                turn => turn,
            }
        })
    }

    /// Looks again at a long text whose rest was waited for too long.
    fn wait_no_longer(&mut self, cx: &mut Context<'_>) {
        if let Some(hoard) = &mut self.hoard
            && hoard.poll_over(cx)
        {
            self.is_unread = true;
            cx.waker().wake_by_ref();
        }
    }

    /// Lets both sides do what they can. A side is looked at again where it moved, or where it waited for what the
    /// other has done since; not where its socket was empty, which will wake the task.
    fn poll_both(&mut self, cx: &mut Context<'_>, buffers: &mut Buffers) -> Poll<Turn> {
        let (mut client, mut server) = (Step::Moved, Step::Moved);
        let mut is_client_due = true;
        loop {
            if let Some(turn) = self.poll_seat(cx) {
                return Poll::Ready(turn);
            }
            if is_client_due {
                client = match self.is_cancelling(cx) {
                    true => Step::Waits,
                    false => match self.poll_client(cx, buffers) {
                        Ok(step) => step,
                        Err(turn) => return Poll::Ready(turn),
                    },
                };
            }
            if client == Step::Moved || server == Step::Moved {
                server = match self.poll_server(cx, buffers) {
                    Ok(step) => step,
                    Err(turn) => return Poll::Ready(turn),
                };
            }
            let has_moved = server == Step::Moved;
            // What it would not take at once is tried once more: only then is the task woken for it.
            let is_owed = !self.to_client.is_empty();
            is_client_due =
                client == Step::Moved || has_moved && (client == Step::Waits || is_owed);
            if !is_client_due && !has_moved {
                return Poll::Pending;
            }
        }
    }

    /// Tells the server's seat whom to wake. The lane's cut, if there is one.
    fn poll_seat(&mut self, cx: &mut Context<'_>) -> Option<Turn> {
        let server = self.server.as_mut()?;
        if !self.is_seated {
            server.seat.register(cx);
            self.is_seated = true;
        }
        if self.pinned.is_some() {
            server.keep();
        }
        server.seat.notice().map(Turn::Cut)
    }

    /// Whether a cancel is under way: what the client asks next must not be what it ends.
    fn is_cancelling(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(server) = &mut self.server else {
            return false;
        };
        let Some(cancel) = &mut server.cancel else {
            return false;
        };
        let Poll::Ready(outcome) = Pin::new(cancel).poll(cx) else {
            return true;
        };
        server.cancel = None;
        server.is_spoiled |= !matches!(outcome, Ok(Cancelled::Over));
        false
    }

    /// Writes what is held back for the client. Whether nothing is left.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Result<bool, Turn> {
        flush(&mut self.client, &mut self.to_client, cx).map_err(|_| Turn::ClientLeft)
    }

    /// Whether nothing of the client is left on its server, but for what is to be asked.
    fn is_free(&self) -> bool {
        self.pinned.is_none()
            && self.left == 0
            && self.server.as_ref().is_some_and(|server| {
                server.exchange.is_idle()
                    && server.to_server.is_empty()
                    && server.inbound.left == 0
                    && server.inbound.carry.is_empty()
                    && server.stream.is_empty()
            })
    }

    fn release_where_free(&mut self, cx: &mut Context<'_>) -> Result<(), Turn> {
        let talk = self.server.as_ref().map(|server| &server.exchange);
        // In a transaction it would end what limits its idle time: the next request comes behind it.
        if talk.is_some_and(|talk| talk.status() == Status::Idle) {
            self.probe_in_doubt(cx)?;
        }
        match self.is_free() {
            true if self.to_ask.is_empty() => self.release(),
            true => return Err(Turn::AskSettings),
            false => {}
        }
        Ok(())
    }

    fn release(&mut self) {
        self.is_seated = false;
        self.has_unnamed = false;
        self.is_resetting = false;
        let now = self.note_returned();
        if let Some(server) = self.server.take() {
            server.checkin_at(now);
        }
    }

    fn read_mail(&mut self) -> Result<(), SessionError> {
        let mail = self.mailbox.take();
        if let Some(error) = self.ordered_end(&mail) {
            return Err(error);
        }
        if mail.is_cancel
            && let Some(server) = &mut self.server
            && !server.exchange.is_quiet()
            && server
                .cancel
                .as_ref()
                .is_none_or(|cancel| cancel.is_finished())
        {
            let (way, key) = (server.way.clone(), server.key.clone());
            server.cancel = Some(tokio::spawn(async move {
                let outcome = crate::server::cancel(way, key).await;
                drop(mail.cancellers);
                outcome
            }));
        }
        Ok(())
    }

    /// Tells the client why its session is over, if its stream stands at a boundary.
    async fn end(mut self: Box<Self>, error: SessionError) -> Result<(), SessionError> {
        let is_at_boundary = self.is_at_boundary();
        self.door.tally.ended(error.reason());
        self.note_returned();
        self.server = None;
        let rest = std::mem::take(&mut self.to_client);
        let flushed = tokio::time::timeout(FLUSH_TIME, self.client.send(rest.rest())).await;
        match flushed {
            Ok(Ok(())) if is_at_boundary && !self.is_explained => {
                say(&mut self.client, &error).await;
            }
            // PostgreSQL has said it; TLS is left as it does it, or the client hears of an end that was cut off.
            Ok(Ok(())) if self.is_explained && self.client.is_encrypted() => {
                let _ = tokio::time::timeout(FLUSH_TIME, self.client.shutdown()).await;
            }
            Ok(_) | Err(_) => {}
        }
        Err(error)
    }

    /// Whether a message of the router's own may follow what was written for the client so far.
    fn is_at_boundary(&self) -> bool {
        let server = self.server.as_ref();
        server.is_none_or(|server| server.inbound.left == 0 || server.inbound.is_hidden)
    }
}

/// Writes as much as the peer takes. Whether nothing is left.
fn flush(stream: &mut Stream, held: &mut HeldBack, cx: &mut Context<'_>) -> io::Result<bool> {
    while !held.is_empty() {
        match Pin::new(&mut *stream).poll_write(cx, held.rest()) {
            Poll::Ready(Ok(count)) => held.take(count),
            Poll::Ready(Err(error)) => return Err(error),
            Poll::Pending => return Ok(false),
        }
    }
    match Pin::new(stream).poll_flush(cx) {
        Poll::Ready(sent) => sent.map(|()| true),
        Poll::Pending => Ok(false),
    }
}

/// Writes bytes, and holds back what the peer does not take.
fn write_on(
    stream: &mut Stream,
    held: &mut HeldBack,
    bytes: &[u8],
    cx: &mut Context<'_>,
) -> io::Result<()> {
    let mut taken = 0;
    if held.is_empty() && !bytes.is_empty() {
        match Pin::new(&mut *stream).poll_write(cx, bytes) {
            Poll::Ready(Ok(count)) => taken = count,
            Poll::Ready(Err(error)) => return Err(error),
            Poll::Pending => {}
        }
    }
    if taken < bytes.len() {
        held.push(&bytes[taken..]);
    }
    Ok(())
}
