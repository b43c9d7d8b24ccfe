//! The PROXY protocol, versions 1 and 2, coming in.

use std::net::{IpAddr, SocketAddr};

use proxy_header::{Error, ParseConfig, ProxyHeader};
use tokio::io::AsyncReadExt;

use crate::config::{Network, ProxyProtocol};
use crate::error::SessionError;
use crate::stream::Stream;

/// The longest header taken: version 1 ends at 107 bytes, version 2 with its extras is cut off here.
const MAX_HEADER: usize = 1024;

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
        if bytes.len() >= MAX_HEADER {
            let text = format!("the header is longer than {MAX_HEADER} bytes");
            return Err(SessionError::ProxyHeader(text));
        }
        match client.read_buf(bytes).await {
            Ok(0) | Err(_) => return Err(SessionError::ClientGone),
            Ok(_) => {}
        }
    }
}

enum Parsed {
    Header(Option<SocketAddr>, usize),
    NoHeader,
    Partial,
}

fn parse(bytes: &[u8], mode: ProxyProtocol) -> Result<Parsed, SessionError> {
    // No PostgreSQL start-up packet begins with `P` or a carriage return: its first byte is 0 or, for TLS
    // without asking, 0x16.
    match bytes.first() {
        None => return Ok(Parsed::Partial),
        Some(b'P' | b'\r') => {}
        Some(_) if mode == ProxyProtocol::Accept => return Ok(Parsed::NoHeader),
        Some(_) => return Err(SessionError::ProxyHeader("the header is missing".into())),
    }
    match ProxyHeader::parse(bytes, ParseConfig::default()) {
        Ok((header, length)) => {
            let address = header.proxied_address().map(|a| a.source);
            Ok(Parsed::Header(address, length))
        }
        Err(Error::BufferTooShort) => Ok(Parsed::Partial),
        Err(error) => Err(SessionError::ProxyHeader(format!(
            "the header is malformed: {error}"
        ))),
    }
}

fn is_trusted(address: IpAddr, trusted: &[Network]) -> bool {
    trusted.iter().any(|network| network.contains(address))
}
