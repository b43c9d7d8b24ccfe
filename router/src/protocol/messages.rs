//! Messages that the router writes itself.

/// One byte that refuses TLS or GSS encryption before the start-up packet.
pub const ENCRYPTION_REFUSED: &[u8] = b"N";
/// One byte by which a server accepts TLS.
pub const TLS_ACCEPTED: u8 = b'S';
/// One byte by which a server accepts GSS encryption.
pub const GSS_ACCEPTED: u8 = b'G';

/// An ErrorResponse of severity FATAL. Texts hold no zero byte: they are cut at the first.
pub fn fatal(sqlstate: &str, message: &str, hint: Option<&str>) -> Vec<u8> {
    let mut body = Vec::with_capacity(64 + message.len());
    let mut field = |code: u8, text: &str| {
        let text = text.split('\0').next().unwrap_or_default();
        body.push(code);
        body.extend_from_slice(text.as_bytes());
        body.push(0);
    };
    field(b'S', "FATAL");
    field(b'V', "FATAL");
    field(b'C', sqlstate);
    field(b'M', message);
    if let Some(hint) = hint {
        field(b'H', hint);
    }
    body.push(0);
    let length = u32::try_from(body.len() + 4).unwrap_or(u32::MAX);
    let mut message = Vec::with_capacity(body.len() + 5);
    message.push(b'E');
    message.extend_from_slice(&length.to_be_bytes());
    message.append(&mut body);
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fatal_is_framed_as_postgresql_frames_it() {
        let bytes = fatal("57P01", "gone", Some("again"));
        assert_eq!(
            bytes,
            b"E\x00\x00\x00\x27SFATAL\0VFATAL\0C57P01\0Mgone\0Hagain\0\0"
        );
        assert_eq!(bytes.len(), 1 + 0x27);
    }
}
