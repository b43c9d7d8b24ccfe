//! What a client sends before its first message: the start-up packet, requests for encryption, a cancel.

/// The longest start-up packet, bytes: PostgreSQL's own limit (`MAX_STARTUP_PACKET_LENGTH`).
pub const MAX_STARTUP_PACKET_LENGTH: usize = 10_000;

/// The shortest packet: a length and a code.
const MIN_STARTUP_PACKET_LENGTH: usize = 8;

const SSL_REQUEST: u32 = 80_877_103;
const GSSENC_REQUEST: u32 = 80_877_104;
const CANCEL_REQUEST: u32 = 80_877_102;
const PROTOCOL_3: u32 = 3;
/// The first byte of a TLS ClientHello, which PostgreSQL 17's clients may send without asking first.
const TLS_HANDSHAKE: u8 = 0x16;
/// The shortest cancel: length, code, process number and a key of four bytes.
const MIN_CANCEL_LENGTH: usize = 16;
/// The longest: protocol 3.2 allows keys of up to 256 bytes.
const MAX_CANCEL_LENGTH: usize = 12 + 256;

/// What the client asks for first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum First {
    /// TLS, please.
    Ssl,
    /// GSS encryption, please.
    Gss,
    /// TLS begins at once, without asking (ALPN `postgresql`).
    DirectTls,
    /// A cancel request.
    Cancel,
    /// A start-up packet of protocol 3.
    Startup {
        /// The minor version asked for.
        minor: u16,
    },
    /// A start-up packet of a protocol that nobody speaks any more.
    OldProtocol {
        /// Its major version.
        major: u16,
        /// Its minor version.
        minor: u16,
    },
}

/// How far the first packet has been read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// It goes on: that many bytes in total are needed before more can be said.
    Need(usize),
    /// It is whole, and is this many bytes long. [`First::DirectTls`] has length 0: nothing was taken.
    Whole(First, usize),
}

/// The bytes cannot be the beginning of a PostgreSQL connection.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotStartup {
    /// A length that no such packet has.
    #[error("the first packet claims a length of {0} bytes")]
    Length(u32),
    /// A code that means nothing.
    #[error("the first packet carries the unknown code {0}")]
    Code(u32),
}

/// Reads the first packet, or as much of it as has come.
pub fn parse(bytes: &[u8]) -> Result<Progress, NotStartup> {
    if bytes.first() == Some(&TLS_HANDSHAKE) {
        return Ok(Progress::Whole(First::DirectTls, 0));
    }
    let Some(length) = number(bytes, 0) else {
        return Ok(Progress::Need(MIN_STARTUP_PACKET_LENGTH));
    };
    let whole = usize::try_from(length).map_err(|_| NotStartup::Length(length))?;
    if !(MIN_STARTUP_PACKET_LENGTH..=MAX_STARTUP_PACKET_LENGTH).contains(&whole) {
        return Err(NotStartup::Length(length));
    }
    let Some(code) = number(bytes, 4) else {
        return Ok(Progress::Need(MIN_STARTUP_PACKET_LENGTH));
    };
    let first = match (code, whole) {
        (SSL_REQUEST, 8) => First::Ssl,
        (GSSENC_REQUEST, 8) => First::Gss,
        (CANCEL_REQUEST, MIN_CANCEL_LENGTH..=MAX_CANCEL_LENGTH) => First::Cancel,
        (SSL_REQUEST | GSSENC_REQUEST | CANCEL_REQUEST, _) => {
            return Err(NotStartup::Length(length));
        }
        (other, _) => {
            let (major, minor) = (other >> 16, (other & 0xFFFF) as u16);
            match major {
                PROTOCOL_3 => First::Startup { minor },
                1 | 2 => First::OldProtocol {
                    major: major as u16,
                    minor,
                },
                _ => return Err(NotStartup::Code(other)),
            }
        }
    };
    if bytes.len() < whole {
        return Ok(Progress::Need(whole));
    }
    Ok(Progress::Whole(first, whole))
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    let four = bytes.get(at..at + 4)?;
    Some(u32::from_be_bytes(four.try_into().ok()?))
}
