//! The PROXY header: the same in any pieces, never longer than allowed, and the address that was written.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use trunkline_router::config::ProxyProtocol;
use trunkline_router::listener::proxy::{MAX_HEADER, Parsed, parse};

use crate::draw::Draw;

/// What version 2 begins with.
const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// Looks at the first bytes of a connection on which a header may, or must, come.
pub fn run(data: &[u8]) {
    let mut draw = Draw::new(data);
    let mode = draw.choice(&[ProxyProtocol::Accept, ProxyProtocol::Require]);
    match draw.below(3) {
        0 => {
            in_pieces(draw.rest(), mode);
        }
        1 => {
            let (header, address) = header(&mut draw);
            let bytes = [&header, draw.rest()].concat();
            let read = in_pieces(&bytes, mode);
            if header.len() <= MAX_HEADER {
                assert_eq!(read, Some(Parsed::Header(address, header.len())));
            }
        }
        _ => {
            let (header, _) = header(&mut draw);
            let header = draw.changed(&header);
            in_pieces(&header, mode);
        }
    }
}

/// What the bytes are; each beginning of them has to lead there.
fn in_pieces(bytes: &[u8], mode: ProxyProtocol) -> Option<Parsed> {
    let whole = parse(bytes, mode).ok();
    if let Some(Parsed::Header(_, length)) = whole {
        assert!(length <= bytes.len().min(MAX_HEADER));
    }
    assert!(whole != Some(Parsed::NoHeader) || mode == ProxyProtocol::Accept);
    // Who sends a beginning for ever is refused.
    assert!(whole != Some(Parsed::Partial) || bytes.len() < MAX_HEADER);
    for end in 0..bytes.len() {
        let so_far = parse(&bytes[..end], mode).ok();
        if so_far != Some(Parsed::Partial) {
            assert_eq!(so_far, whole, "of {end} bytes");
        } else if let Some(Parsed::Header(_, length)) = whole {
            assert!(end < length, "a whole header is not seen");
        }
    }
    whole
}

/// A header as a proxy writes it, and the address that it tells.
fn header(draw: &mut Draw<'_>) -> (Vec<u8>, Option<SocketAddr>) {
    let (is_six, is_local) = (draw.flag(), draw.below(8) == 0);
    let source = address(draw, is_six);
    let target = address(draw, is_six);
    if draw.flag() {
        let text = match is_local {
            true => "PROXY UNKNOWN\r\n".to_owned(),
            false => format!(
                "PROXY TCP{} {} {} {} {}\r\n",
                if is_six { 6 } else { 4 },
                source.ip(),
                target.ip(),
                source.port(),
                target.port()
            ),
        };
        return (text.into_bytes(), (!is_local).then_some(source));
    }
    let mut body = Vec::new();
    for address in [source, target] {
        match address.ip() {
            IpAddr::V4(ip) => body.extend_from_slice(&ip.octets()),
            IpAddr::V6(ip) => body.extend_from_slice(&ip.octets()),
        }
    }
    for address in [source, target] {
        body.extend_from_slice(&address.port().to_be_bytes());
    }
    // What follows are extras, each with its kind and its length.
    for _ in 0..draw.below(8) {
        let value = draw.short();
        // Of no kind that says something of the header itself.
        body.push(0xE0 | draw.byte() & 0x0F);
        body.extend_from_slice(&u16::try_from(value.len()).unwrap_or(0).to_be_bytes());
        body.extend_from_slice(value);
    }
    let mut header = SIGNATURE.to_vec();
    header.push(if is_local { 0x20 } else { 0x21 });
    header.push(if is_six { 0x21 } else { 0x11 });
    header.extend_from_slice(&u16::try_from(body.len()).unwrap_or(0).to_be_bytes());
    header.extend_from_slice(&body);
    (header, (!is_local).then_some(source))
}

fn address(draw: &mut Draw<'_>, is_six: bool) -> SocketAddr {
    let mut octets = [0; 16];
    let drawn = draw.bytes(if is_six { 16 } else { 4 });
    octets[..drawn.len()].copy_from_slice(drawn);
    let [a, b, c, d, ..] = octets;
    let ip = match is_six {
        true => Ipv6Addr::from(octets).into(),
        false => Ipv4Addr::new(a, b, c, d).into(),
    };
    SocketAddr::new(ip, u16::from(draw.byte()) << 8 | u16::from(draw.byte()))
}
