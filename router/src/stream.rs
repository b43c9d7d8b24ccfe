//! A socket of a pooled session, in the clear or under TLS, with one poll discipline for both.
//!
//! rustls is driven here and not by tokio-rustls, for two things that a pool must know: whether anything of the
//! peer is left inside (decrypted, or the beginning of a record), and how to take a connection to another core.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::io::{self, Read, Write};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use rustix::net::SendFlags;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, Connection, ServerConfig, ServerConnection};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::unconstrained;

use crate::listener::limits::{MAX_HANDSHAKE_OF_SERVER, MAX_HANDSHAKES_AT_WORK};
use crate::protocol::records::Records;

/// What one read of a socket under TLS takes at most, bytes; each core has one such buffer.
const LARGEST_READ: usize = 64 * 1024;
/// And at least, if so much is there: what rustls takes at once.
const SMALLEST_READ: usize = 4096;

thread_local! {
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; LARGEST_READ].into());
    /// The turns of those who shake hands on this core.
    static TURNS: Arc<Semaphore> = Arc::new(Semaphore::new(MAX_HANDSHAKES_AT_WORK));
}

/// A connection.
#[derive(Debug)]
pub struct Stream {
    socket: TcpStream,
    /// Absent in the clear.
    tls: Option<Box<Tls>>,
}

impl From<TcpStream> for Stream {
    fn from(socket: TcpStream) -> Self {
        Self { socket, tls: None }
    }
}

impl Stream {
    /// The socket below.
    pub fn socket(&self) -> &TcpStream {
        &self.socket
    }

    /// The socket of a connection in the clear.
    pub fn into_socket(self) -> TcpStream {
        self.socket
    }

    /// Whether TLS hides what is said.
    pub fn is_encrypted(&self) -> bool {
        self.tls.is_some()
    }

    /// The session, under TLS.
    pub fn session(&self) -> Option<&Connection> {
        self.tls.as_ref().map(|tls| &tls.session)
    }

    /// Version and cipher of TLS, as PgBouncer shows them; `None` in the clear.
    pub fn tls_name(&self) -> Option<String> {
        let session = self.session()?;
        let version = session.protocol_version()?.as_str()?.replace('_', ".");
        let suite = session.negotiated_cipher_suite()?.suite();
        let cipher = suite.as_str()?.replace("TLS13_", "TLS_");
        Some(format!("{version}/{cipher}"))
    }

    /// Begins TLS as the server. `early` is what was read of the handshake already, `longest` what the client may send
    /// before it is over, bytes.
    ///
    /// # Errors
    /// The handshake fails, or the connection ends in it. What TLS itself finds wrong is
    /// [`io::ErrorKind::InvalidData`].
    pub async fn accept(
        &mut self,
        settings: Arc<ServerConfig>,
        early: Vec<u8>,
        longest: usize,
    ) -> io::Result<()> {
        let session = ServerConnection::new(settings).map_err(invalid)?;
        self.shake_hands(Tls::new(session.into(), early), longest)
            .await
    }

    /// Begins TLS as the client of a server of this name.
    ///
    /// # Errors
    /// The handshake fails, the server is not trusted, or the connection ends. What TLS itself finds wrong is
    /// [`io::ErrorKind::InvalidData`].
    pub async fn connect(
        &mut self,
        settings: Arc<ClientConfig>,
        name: ServerName<'static>,
    ) -> io::Result<()> {
        let session = ClientConnection::new(settings, name).map_err(invalid)?;
        self.shake_hands(
            Tls::new(session.into(), Vec::new()),
            MAX_HANDSHAKE_OF_SERVER,
        )
        .await
    }

    async fn shake_hands(&mut self, tls: Tls, longest: usize) -> io::Result<()> {
        let Self { socket, tls: own } = self;
        let tls = own.insert(Box::new(tls));
        let mut seen = tls.left();
        loop {
            poll_fn(|cx| tls.poll_send(socket, cx)).await?;
            if !tls.session.is_handshaking() {
                return Ok(());
            }
            if seen > longest {
                let why = format!("a handshake of more than {longest} bytes");
                return Err(invalid(why));
            }
            let is_fresh = tls.left() == 0;
            if is_fresh {
                poll_fn(|cx| socket.poll_read_ready(cx)).await?;
            }
            // Who has the turn keeps it until all others on this core have had theirs.
            let turn = TURNS.with(Arc::clone).acquire_owned().await;
            let received = poll_fn(|cx| Poll::Ready(tls.poll_receive(socket, cx, 0))).await;
            match received {
                Poll::Ready(Ok(0)) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Poll::Ready(Ok(count)) if is_fresh => seen += count,
                Poll::Ready(received) => {
                    received?;
                }
                Poll::Pending => continue,
            }
            tokio::task::yield_now().await;
            drop(turn);
        }
    }

    /// Writes all of it, to the last byte that TLS makes of it.
    ///
    /// # Errors
    /// The connection is lost.
    pub async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write_all(bytes).await?;
        self.flush().await
    }

    /// Writes as much of it as the socket takes at once, for a connection that is over.
    pub fn send_at_once(&mut self, bytes: &[u8]) {
        let Some(tls) = &mut self.tls else {
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            let _ = rustix::net::send(&self.socket, bytes, flags);
            return;
        };
        let mut cx = Context::from_waker(Waker::noop());
        let _ = tls.poll_write(&mut self.socket, &mut cx, bytes);
    }

    /// Whether nothing is inside: no byte of the peer that was not read, and none for it that was not sent.
    pub fn is_empty(&self) -> bool {
        self.tls.as_ref().is_none_or(|tls| tls.is_empty())
    }

    /// Whether an idle peer has said nothing: neither a word nor its end. It is looked at in any case: a task that has
    /// used up its turn is told by tokio that nothing is ready.
    pub fn is_silent(&mut self) -> bool {
        let look = unconstrained(poll_fn(|cx| Poll::Ready(self.looks_silent(cx))));
        let mut cx = Context::from_waker(Waker::noop());
        pin!(look).poll(&mut cx) == Poll::Ready(true)
    }

    fn looks_silent(&mut self, cx: &mut Context<'_>) -> bool {
        let is_quiet = self.socket.poll_read_ready(cx).is_pending();
        match &mut self.tls {
            None => is_quiet,
            Some(tls) if is_quiet => tls.is_empty(),
            Some(tls) => {
                // It may have been a word between the two TLS engines.
                let mut byte = [0];
                let read = tls.poll_read(&mut self.socket, cx, &mut ReadBuf::new(&mut byte));
                read.is_pending() && tls.is_empty()
            }
        }
    }

    /// Takes the connection off this core's runtime.
    ///
    /// # Errors
    /// The system does not let go of the socket.
    pub fn detach(self) -> io::Result<Detached> {
        Ok(Detached {
            socket: self.socket.into_std()?,
            tls: self.tls,
        })
    }
}

/// A connection that belongs to no runtime.
pub struct Detached {
    socket: std::net::TcpStream,
    tls: Option<Box<Tls>>,
}

impl Detached {
    /// Puts it up on the runtime of this core.
    ///
    /// # Errors
    /// The system does not take the socket.
    pub fn attach(self) -> io::Result<Stream> {
        Ok(Stream {
            socket: TcpStream::from_std(self.socket)?,
            tls: self.tls,
        })
    }
}

impl AsyncRead for Stream {
    /// A read that does not fill the buffer has emptied the connection, as far as it does not say otherwise
    /// by [`Stream::is_empty`].
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self { socket, tls } = &mut *self;
        match tls {
            None => Pin::new(socket).poll_read(cx, buffer),
            Some(tls) => tls.poll_read(socket, cx, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let Self { socket, tls } = &mut *self;
        match tls {
            None => Pin::new(socket).poll_write(cx, bytes),
            Some(tls) => tls.poll_write(socket, cx, bytes),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { socket, tls } = &mut *self;
        match tls {
            None => Poll::Ready(Ok(())),
            Some(tls) => tls.poll_send(socket, cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { socket, tls } = &mut *self;
        if let Some(tls) = tls {
            tls.session.send_close_notify();
            ready!(tls.poll_send(socket, cx))?;
        }
        Pin::new(socket).poll_shutdown(cx)
    }
}

/// What TLS itself finds wrong.
fn invalid(why: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

/// One side of a TLS connection.
#[derive(Debug)]
struct Tls {
    session: Connection,
    records: Records,
    /// Bytes of the peer that the session has not taken: there was no room for what is in them.
    raw: Vec<u8>,
    /// How many of those it has taken since.
    taken: usize,
    /// The peer has ended or is lost, or has said what is not TLS. rustls tells it once, behind what came before.
    is_over: bool,
    broken: Option<rustls::Error>,
}

impl Tls {
    fn new(session: Connection, early: Vec<u8>) -> Self {
        let mut records = Records::default();
        records.see(&early);
        Self {
            session,
            records,
            raw: early,
            taken: 0,
            is_over: false,
            broken: None,
        }
    }

    fn is_empty(&self) -> bool {
        // rustls wants no more while it holds what was not read.
        !self.is_over
            && self.left() == 0
            && self.session.wants_read()
            && !self.session.wants_write()
            && self.records.is_whole()
    }

    fn process(&mut self) -> io::Result<()> {
        self.session.process_new_packets().map_err(|why| {
            self.is_over = true;
            self.broken = Some(why.clone());
            invalid(why)
        })?;
        Ok(())
    }

    /// Gives the session what came, until something to be read is in it. How much of it was taken.
    fn feed(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut rest = bytes;
        while !rest.is_empty() && self.session.wants_read() {
            if self.session.read_tls(&mut rest)? == 0 {
                // Behind its goodbye nothing counts.
                return Ok(bytes.len());
            }
            self.process()?;
        }
        Ok(bytes.len() - rest.len())
    }

    /// Takes what was left over, or reads from the socket once: about as much as there is room for what is in it. How
    /// many bytes that were; zero: it has ended.
    fn poll_receive(
        &mut self,
        socket: &mut TcpStream,
        cx: &mut Context<'_>,
        room: usize,
    ) -> Poll<io::Result<usize>> {
        let received = match self.left() {
            0 => ready!(self.poll_socket(socket, cx, room)),
            _ => self.feed_left(),
        };
        if received.is_err() {
            self.is_over = true;
            // The peer hears what was wrong, if it can.
            let _ = self.poll_send(socket, cx);
        }
        Poll::Ready(received)
    }

    fn left(&self) -> usize {
        self.raw.len() - self.taken
    }

    fn feed_left(&mut self) -> io::Result<usize> {
        let raw = std::mem::take(&mut self.raw);
        let taken = self.feed(&raw[self.taken..])?;
        self.taken += taken;
        match self.taken < raw.len() {
            true => self.raw = raw,
            false => self.taken = 0,
        }
        Ok(taken)
    }

    fn poll_socket(
        &mut self,
        socket: &mut TcpStream,
        cx: &mut Context<'_>,
        room: usize,
    ) -> Poll<io::Result<usize>> {
        SCRATCH.with_borrow_mut(|scratch| {
            let limit = room.clamp(SMALLEST_READ, scratch.len());
            let mut buffer = ReadBuf::new(&mut scratch[..limit]);
            ready!(Pin::new(socket).poll_read(cx, &mut buffer))?;
            let bytes = buffer.filled();
            if bytes.is_empty() {
                self.is_over = true;
                self.session.read_tls(&mut io::empty())?;
            }
            self.records.see(bytes);
            let taken = self.feed(bytes)?;
            self.raw.extend_from_slice(&bytes[taken..]);
            Poll::Ready(Ok(bytes.len()))
        })
    }

    /// Sends what is encrypted already.
    fn poll_send(&mut self, socket: &mut TcpStream, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.session.wants_write() {
            match self.session.write_tls(&mut Outgoing { socket, cx }) {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Poll::Pending,
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Reads until the buffer is full or the socket has nothing more.
    fn poll_read(
        &mut self,
        socket: &mut TcpStream,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let more = loop {
            if buffer.remaining() == 0 {
                break Poll::Ready(Ok(()));
            }
            match self.session.reader().read(buffer.initialize_unfilled()) {
                Ok(0) => {
                    self.is_over = true;
                    break Poll::Ready(Ok(()));
                }
                Ok(count) => {
                    buffer.advance(count);
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => break Poll::Ready(Err(error)),
            }
            if let Some(why) = &self.broken {
                break Poll::Ready(Err(invalid(why.clone())));
            }
            match self.poll_receive(socket, cx, buffer.remaining()) {
                // The end is told by the reader, which knows whether it may be believed.
                Poll::Ready(Ok(_)) => {}
                // What was good in the same piece is in the reader.
                Poll::Ready(Err(_)) if self.broken.is_some() => {}
                Poll::Ready(Err(error)) => break Poll::Ready(Err(error)),
                Poll::Pending => break Poll::Pending,
            }
        };
        // What was read comes first; an end or an error of TLS is met again.
        match buffer.filled().len() > before {
            true => Poll::Ready(Ok(())),
            false => more,
        }
    }

    /// Encrypts and sends. Taken is what was encrypted: the rest of that is sent by the next call or by a flush.
    fn poll_write(
        &mut self,
        socket: &mut TcpStream,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        // No more is kept than one write made.
        ready!(self.poll_send(socket, cx))?;
        let count = self.session.writer().write(bytes)?;
        match self.poll_send(socket, cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Ready(Ok(count)),
        }
    }
}

/// The socket as rustls writes to it.
struct Outgoing<'a, 'b> {
    socket: &'a mut TcpStream,
    cx: &'a mut Context<'b>,
}

impl Outgoing<'_, '_> {
    fn at_once<T>(polled: Poll<io::Result<T>>) -> io::Result<T> {
        match polled {
            Poll::Ready(done) => done,
            Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
        }
    }
}

impl Write for Outgoing<'_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Self::at_once(Pin::new(&mut *self.socket).poll_write(self.cx, bytes))
    }

    fn write_vectored(&mut self, parts: &[io::IoSlice<'_>]) -> io::Result<usize> {
        Self::at_once(Pin::new(&mut *self.socket).poll_write_vectored(self.cx, parts))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_peer_that_spoke_is_not_silent_to_a_task_that_used_up_its_turn() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (client, served) = tokio::join!(
            TcpStream::connect(listener.local_addr().unwrap()),
            listener.accept()
        );
        let (mut client, mut served) = (
            Stream::from(client.unwrap()),
            Stream::from(served.unwrap().0),
        );
        // What tokio has not looked at yet counts as spoken.
        let early = served.socket().try_read(&mut [0]).unwrap_err();
        assert_eq!(early.kind(), io::ErrorKind::WouldBlock);
        assert!(served.is_silent());
        client.send(b"x").await.unwrap();
        served.socket().readable().await.unwrap();
        let is_silent = poll_fn(|cx| {
            while pin!(tokio::task::consume_budget()).poll(cx).is_ready() {}
            Poll::Ready(served.is_silent())
        });
        assert!(!is_silent.await);
    }

    #[test]
    fn records_are_followed_however_they_come() {
        let bytes = [23, 3, 3, 0, 2, 9, 9, 23, 3, 3, 1, 0];
        for piece in 1..=bytes.len() {
            let mut records = Records::default();
            for part in bytes.chunks(piece) {
                records.see(part);
            }
            assert!(!records.is_whole());
            records.see(&[0; 256]);
            assert!(records.is_whole());
            records.see(&[23]);
            assert!(!records.is_whole());
        }
    }
}
