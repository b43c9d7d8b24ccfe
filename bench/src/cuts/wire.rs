//! What a client reads, held against the protocol byte for byte, whatever its driver makes of it.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// Type and length of a message.
const HEAD: usize = 5;
/// Where the text of a row with one column begins in its body: behind the count of columns and the length.
const TEXT: u32 = 6;
/// What every row is made of.
pub const FILLING: u8 = b'x';
/// What a server may send in these sessions.
const KINDS: &[u8] = b"RSKZTDCENn123v";
/// The longest error that is kept, bytes.
const LONGEST_ERROR: usize = 4096;

/// A server's messages so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frames {
    head: Vec<u8>,
    /// Body bytes that the message still wants.
    left: u32,
    /// Body bytes that came.
    had: u32,
    error: Vec<u8>,
    is_over: bool,
    fault: Option<String>,
}

impl Frames {
    /// Takes what came next.
    pub fn take(&mut self, bytes: &[u8]) {
        for byte in bytes {
            if self.fault.is_some() {
                return;
            }
            if self.is_over {
                self.fault = Some("something follows a FATAL".to_owned());
                return;
            }
            self.take_one(*byte);
        }
    }

    fn take_one(&mut self, byte: u8) {
        if self.head.len() < HEAD {
            self.head.push(byte);
            let Ok([kind, length @ ..]) = <[u8; HEAD]>::try_from(self.head.as_slice()) else {
                return;
            };
            if !KINDS.contains(&kind) {
                self.fault = Some(format!("a message of type {:?}", char::from(kind)));
            }
            match u32::from_be_bytes(length).checked_sub(4) {
                Some(left) => (self.left, self.had) = (left, 0),
                None => self.fault = Some("a message shorter than its length".to_owned()),
            }
        } else {
            match self.kind() {
                Some(b'D') if self.had >= TEXT && byte != FILLING => {
                    self.fault = Some(format!("byte {byte} within a row"));
                }
                Some(b'E') if self.error.len() < LONGEST_ERROR => self.error.push(byte),
                _ => {}
            }
            (self.left, self.had) = (self.left - 1, self.had + 1);
        }
        if self.head.len() == HEAD && self.left == 0 {
            self.is_over =
                self.kind() == Some(b'E') && self.field(b'V').as_deref() == Some("FATAL");
            self.head.clear();
        }
    }

    fn kind(&self) -> Option<u8> {
        self.head.first().copied()
    }

    /// A field of the last error.
    fn field(&self, wanted: u8) -> Option<String> {
        let mut fields = self.error.split(|byte| *byte == 0);
        let found = fields.find(|field| field.first() == Some(&wanted))?;
        Some(String::from_utf8_lossy(&found[1..]).into_owned())
    }

    /// The stream has ended here: the SQLSTATE of its FATAL, nothing if it ended without a word, within a row or
    /// between messages.
    pub fn end(&self) -> Result<Option<String>, String> {
        match (&self.fault, self.is_over, self.kind()) {
            (Some(fault), _, _) => Err(fault.clone()),
            (None, true, _) => Ok(Some(self.field(b'C').unwrap_or_default())),
            (None, false, None | Some(b'D')) => Ok(None),
            (None, false, Some(kind)) => Err(format!("cut within a {:?}", char::from(kind))),
        }
    }
}

/// A stream whose bytes are looked at on their way to the driver.
#[derive(Debug)]
pub struct Watched {
    stream: TcpStream,
    frames: Arc<Mutex<Frames>>,
}

impl Watched {
    /// Looks at everything from here on; the other half tells what it was.
    pub fn new(stream: TcpStream) -> (Watched, Arc<Mutex<Frames>>) {
        let frames = Arc::new(Mutex::new(Frames::default()));
        let watched = Watched {
            stream,
            frames: frames.clone(),
        };
        (watched, frames)
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        let mut frames = self.frames.lock().unwrap_or_else(PoisonError::into_inner);
        frames.take(&buf.filled()[before..]);
        read
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROW: &[u8] = b"D\0\0\0\x0d\0\x01\0\0\0\x03xxx";
    const FATAL: &[u8] = b"E\0\0\0\x17SFATAL\0VFATAL\0C08007\0\0";

    fn fatal() -> Vec<u8> {
        let mut bytes = FATAL.to_vec();
        bytes[4] = u8::try_from(FATAL.len() - 1).unwrap_or_default();
        bytes
    }

    fn end(parts: &[&[u8]]) -> Result<Option<String>, String> {
        let mut frames = Frames::default();
        for part in parts {
            frames.take(part);
        }
        frames.end()
    }

    #[test]
    fn a_fatal_between_rows_is_heard() {
        assert_eq!(end(&[ROW, ROW, &fatal()]), Ok(Some("08007".to_owned())));
    }

    #[test]
    fn a_row_may_be_cut_and_nothing_else() {
        assert_eq!(end(&[ROW, &ROW[..9]]), Ok(None));
        assert!(end(&[ROW, &fatal()[..9]]).is_err());
    }

    #[test]
    fn a_fatal_within_a_row_is_noticed() {
        assert!(end(&[ROW, &ROW[..12], &fatal()]).is_err());
        assert!(end(&[ROW, &ROW[..3], &fatal(), ROW, ROW, ROW]).is_err());
    }

    #[test]
    fn nothing_follows_a_fatal() {
        assert!(end(&[&fatal(), ROW]).is_err());
    }
}
