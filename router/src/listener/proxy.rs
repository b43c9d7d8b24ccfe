//! The PROXY protocol, versions 1 and 2, coming in.

use std::net::{IpAddr, SocketAddr};

use proxy_header::{Error, ParseConfig, ProxyHeader};
use tokio::io::AsyncReadExt;

use crate::config::{Network, ProxyProtocol};
use crate::error::SessionError;
use crate::stream::Stream;

/// The longest header taken, bytes: version 2 with its extras is refused beyond it.
pub const MAX_HEADER: usize = 1024;
/// The longest of version 1, bytes, by its specification.
const MAX_HEADER_V1: usize = 107;
/// Version 2: signature, command, family, length of what follows.
const FIXED_V2: usize = 16;

/// Reads the header, if one may come, from `bytes` and then from the socket; leaves in `bytes` what follows
/// it. Returns the client's own address.
pub async fn accept(
    client: &mut Stream,
    peer: SocketAddr,
    mode: ProxyProtocol,
    trusted: &[Network],
    bytes: &mut Vec<u8>,
) -> Result<SocketAddr, SessionError> {
    if mode == ProxyProtocol::Off {
        return Ok(peer);
    }
    if !is_trusted(peer.ip(), trusted) {
        if mode == ProxyProtocol::Accept {
            return Ok(peer);
        }
        return Err(SessionError::ProxyHeader(format!(
            "{} is not in proxy_protocol_from",
            peer.ip()
        )));
    }
    loop {
        match parse(bytes, mode)? {
            Parsed::Header(address, length) => {
                bytes.drain(..length);
                return Ok(address.unwrap_or(peer));
            }
            Parsed::NoHeader => return Ok(peer),
            Parsed::Partial => {}
        }
        match client.read_buf(bytes).await {
            Ok(0) | Err(_) => return Err(SessionError::ClientGone),
            Ok(_) => {}
        }
    }
}

/// What the first bytes of a connection are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// A header: the client's own address, if it names one, and its length, bytes.
    Header(Option<SocketAddr>, usize),
    /// No header, and none has to come.
    NoHeader,
    /// The beginning of a header.
    Partial,
}

/// Looks at the first bytes of a connection on which a header may come. What they are does not depend on how many of
/// them have come with the first ones.
///
/// # Errors
/// A header that is malformed, too long, or missing where it must come.
pub fn parse(bytes: &[u8], mode: ProxyProtocol) -> Result<Parsed, SessionError> {
    // No PostgreSQL start-up packet begins with `P` or a carriage return: its first byte is 0 or, for TLS
    // without asking, 0x16.
    match bytes.first() {
        None => return Ok(Parsed::Partial),
        Some(b'P' | b'\r') => {}
        Some(_) if mode == ProxyProtocol::Accept => return Ok(Parsed::NoHeader),
        Some(_) => return Err(SessionError::ProxyHeader("the header is missing".into())),
    }
    let longest = match bytes {
        [b'P', ..] => MAX_HEADER_V1,
        _ => MAX_HEADER,
    };
    let too_long = || {
        let text = format!("the header is longer than {longest} bytes");
        Err(SessionError::ProxyHeader(text))
    };
    // It says how long it is before it is all there.
    if let [b'\r', ..] = bytes
        && let Some([high, low]) = bytes.get(FIXED_V2 - 2..FIXED_V2)
        && FIXED_V2 + usize::from(u16::from_be_bytes([*high, *low])) > longest
    {
        return too_long();
    }
    match ProxyHeader::parse(bytes, ParseConfig::default()) {
        Ok((_, length)) if length > longest => too_long(),
        Ok((header, length)) => {
            let address = header.proxied_address().map(|a| a.source);
            Ok(Parsed::Header(address, length))
        }
        Err(Error::BufferTooShort) if bytes.len() >= longest => too_long(),
        Err(Error::BufferTooShort) => Ok(Parsed::Partial),
        Err(error) => Err(SessionError::ProxyHeader(format!(
            "the header is malformed: {error}"
        ))),
    }
}

fn is_trusted(address: IpAddr, trusted: &[Network]) -> bool {
    trusted.iter().any(|network| network.contains(address))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn length(bytes: &[u8]) -> Option<Parsed> {
        parse(bytes, ProxyProtocol::Require).ok()
    }

    #[test]
    fn a_header_that_is_too_long_is_refused_in_one_piece_as_in_many() {
        let first = format!("PROXY UNKNOWN {}\r\n", "x".repeat(100));
        assert_eq!(length(first.as_bytes()), None);
        let longest = format!("PROXY UNKNOWN {}\r\n", "x".repeat(91));
        let whole = Parsed::Header(None, MAX_HEADER_V1);
        assert_eq!(length(longest.as_bytes()), Some(whole));
        let second = |extras: u16| {
            let mut bytes = b"\r\n\r\n\0\r\nQUIT\n\x20\0".to_vec();
            bytes.extend_from_slice(&extras.to_be_bytes());
            bytes.resize(FIXED_V2 + usize::from(extras), 0);
            bytes
        };
        let most = second(1008);
        assert_eq!(length(&most), Some(Parsed::Header(None, MAX_HEADER)));
        assert_eq!(length(&second(1009)), None);
        assert_eq!(length(&second(1009)[..FIXED_V2]), None);
        assert_eq!(length(&most[..FIXED_V2]), Some(Parsed::Partial));
    }
}
