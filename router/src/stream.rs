//! A socket of a pooled session, in the clear or under TLS, with one poll discipline for both.
//!
//! rustls is driven here and not by tokio-rustls, for two things that a pool must know: whether anything of the
//! peer is left inside (decrypted, or the beginning of a record), and how to take a connection to another core.

use std::io::{self, Read, Write};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use rustix::net::SendFlags;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, Connection, ServerConfig, ServerConnection};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;

/// TLS: kind, version (two bytes), length (two bytes).
const RECORD_HEADER: usize = 5;

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

    /// Begins TLS as the server. `early` is what was read of the handshake already.
    ///
    /// # Errors
    /// The handshake fails, or the connection ends in it.
    pub async fn accept(&mut self, settings: Arc<ServerConfig>, early: &[u8]) -> io::Result<()> {
        let session = ServerConnection::new(settings).map_err(io::Error::other)?;
        let mut tls = Tls::new(session.into());
        tls.take_early(early)?;
        self.shake_hands(tls).await
    }

    /// Begins TLS as the client of a server of this name.
    ///
    /// # Errors
    /// The handshake fails, the server is not trusted, or the connection ends.
    pub async fn connect(
        &mut self,
        settings: Arc<ClientConfig>,
        name: ServerName<'static>,
    ) -> io::Result<()> {
        let session = ClientConnection::new(settings, name).map_err(io::Error::other)?;
        self.shake_hands(Tls::new(session.into())).await
    }

    async fn shake_hands(&mut self, tls: Tls) -> io::Result<()> {
        let Self { socket, tls: own } = self;
        let tls = own.insert(Box::new(tls));
        std::future::poll_fn(|cx| {
            loop {
                ready!(tls.poll_send(socket, cx))?;
                if !tls.session.is_handshaking() {
                    return Poll::Ready(Ok(()));
                }
                if ready!(tls.poll_receive(socket, cx))? == 0 {
                    return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
                }
            }
        })
        .await
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

    /// Whether an idle peer has said nothing: neither a word nor its end.
    pub fn is_silent(&mut self) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        let is_quiet = self.socket.poll_read_ready(&mut cx).is_pending();
        match &mut self.tls {
            None => is_quiet,
            Some(tls) if is_quiet => tls.is_empty(),
            Some(tls) => {
                // It may have been a word between the two TLS engines.
                let mut byte = [0];
                let read = tls.poll_read(&mut self.socket, &mut cx, &mut ReadBuf::new(&mut byte));
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

/// One side of a TLS connection.
#[derive(Debug)]
struct Tls {
    session: Connection,
    records: Records,
}

impl Tls {
    fn new(session: Connection) -> Self {
        Self {
            session,
            records: Records::default(),
        }
    }

    fn is_empty(&self) -> bool {
        // rustls wants no more while it holds what was not read.
        self.session.wants_read() && !self.session.wants_write() && self.records.is_whole()
    }

    fn take_early(&mut self, mut early: &[u8]) -> io::Result<()> {
        self.records.see(early);
        while !early.is_empty() {
            self.session.read_tls(&mut early)?;
            self.process()?;
        }
        Ok(())
    }

    fn process(&mut self) -> io::Result<()> {
        let processed = self.session.process_new_packets();
        processed.map_err(|why| io::Error::new(io::ErrorKind::InvalidData, why))?;
        Ok(())
    }

    /// Reads from the socket once. Zero: it has ended.
    fn poll_receive(
        &mut self,
        socket: &mut TcpStream,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        let records = &mut self.records;
        let count = self.session.read_tls(&mut Incoming {
            socket,
            cx,
            records,
        });
        let count = match count {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Poll::Pending,
            Err(error) => return Poll::Ready(Err(error)),
        };
        if let Err(error) = self.process() {
            // The peer hears what was wrong, if it can.
            let _ = self.poll_send(socket, cx);
            return Poll::Ready(Err(error));
        }
        Poll::Ready(Ok(count))
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
                Ok(0) => break Poll::Ready(Ok(())),
                Ok(count) => {
                    buffer.advance(count);
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => break Poll::Ready(Err(error)),
            }
            match self.poll_receive(socket, cx) {
                // The end is told by the reader, which knows whether it may be believed.
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(error)) => break Poll::Ready(Err(error)),
                Poll::Pending => break Poll::Pending,
            }
        };
        // What was read comes first; an end or an error is met again.
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

/// Where in the peer's TLS records the bytes that came so far end.
#[derive(Debug, Default)]
struct Records {
    header: [u8; RECORD_HEADER],
    /// Bytes of the next header that have come.
    have: usize,
    /// Bytes of the current record that have not come.
    left: usize,
}

impl Records {
    fn see(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while !rest.is_empty() {
            if self.left > 0 {
                let step = rest.len().min(self.left);
                self.left -= step;
                rest = &rest[step..];
                continue;
            }
            self.header[self.have] = rest[0];
            self.have += 1;
            rest = &rest[1..];
            if self.have == RECORD_HEADER {
                let [_, _, _, high, low] = self.header;
                self.left = usize::from(u16::from_be_bytes([high, low]));
                self.have = 0;
            }
        }
    }

    fn is_whole(&self) -> bool {
        self.have == 0 && self.left == 0
    }
}

/// The socket as rustls reads from it.
struct Incoming<'a, 'b> {
    socket: &'a mut TcpStream,
    cx: &'a mut Context<'b>,
    records: &'a mut Records,
}

impl Read for Incoming<'_, '_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let mut buffer = ReadBuf::new(bytes);
        match Pin::new(&mut *self.socket).poll_read(self.cx, &mut buffer) {
            Poll::Ready(Ok(())) => {
                self.records.see(buffer.filled());
                Ok(buffer.filled().len())
            }
            Poll::Ready(Err(error)) => Err(error),
            Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
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
