//! Messages that the router writes itself.

/// One byte that refuses TLS or GSS encryption before the start-up packet.
pub const ENCRYPTION_REFUSED: &[u8] = b"N";
/// One byte by which a server accepts TLS.
pub const TLS_ACCEPTED: u8 = b'S';
/// One byte by which a server accepts GSS encryption.
pub const GSS_ACCEPTED: u8 = b'G';

/// ParseComplete.
pub const PARSE_COMPLETE: &[u8] = b"1\0\0\0\x04";
/// BindComplete.
pub const BIND_COMPLETE: &[u8] = b"2\0\0\0\x04";
/// CloseComplete.
pub const CLOSE_COMPLETE: &[u8] = b"3\0\0\0\x04";
/// CommandComplete of a DEALLOCATE.
pub const DEALLOCATED: &[u8] = b"C\0\0\0\x0fDEALLOCATE\0";
/// NoData.
pub const NO_DATA: &[u8] = b"n\0\0\0\x04";
/// ParameterDescription of a statement without any.
pub const NO_PARAMETERS: &[u8] = b"t\0\0\0\x06\0\0";
/// AuthenticationOk.
pub const AUTHENTICATION_OK: &[u8] = b"R\0\0\0\x08\0\0\0\0";
/// A request for TLS, of a client.
pub const SSL_REQUEST: &[u8] = b"\0\0\0\x08\x04\xd2\x16\x2f";
/// Flush, of a client.
pub const FLUSH: &[u8] = b"H\0\0\0\x04";
/// A Close of a portal that nobody has, and a Flush, of a client: it is answered in any state, and changes nothing.
pub const PROBE: &[u8] = b"C\0\0\0\x15Ptrunkline_probe\0H\0\0\0\x04";
/// Terminate, of a client.
pub const TERMINATE: &[u8] = b"X\0\0\0\x04";

/// What an ErrorResponse is for the one who gets it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// The connection goes on.
    Error,
    /// It is over.
    Fatal,
}

/// Appends a message of this kind, whose body the function writes.
pub fn frame(out: &mut Vec<u8>, kind: u8, body: impl FnOnce(&mut Vec<u8>)) {
    out.push(kind);
    sized(out, body);
}

/// Appends a length of four bytes, which counts itself, and what the function writes.
fn sized(out: &mut Vec<u8>, body: impl FnOnce(&mut Vec<u8>)) {
    let at = out.len();
    out.extend_from_slice(&[0; 4]);
    body(out);
    let length = u32::try_from(out.len() - at).unwrap_or(u32::MAX);
    out[at..at + 4].copy_from_slice(&length.to_be_bytes());
}

fn framed(kind: u8, body: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut message = Vec::with_capacity(64);
    frame(&mut message, kind, body);
    message
}

/// Texts hold no zero byte: they are cut at the first.
fn text(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(text.split('\0').next().unwrap_or_default().as_bytes());
    out.push(0);
}

/// An ErrorResponse of severity FATAL.
pub fn fatal(sqlstate: &str, message: &str, hint: Option<&str>) -> Vec<u8> {
    let mut out = Vec::with_capacity(64 + message.len());
    error(&mut out, Severity::Fatal, sqlstate, message, hint);
    out
}

/// Appends an ErrorResponse.
pub fn error(
    out: &mut Vec<u8>,
    severity: Severity,
    sqlstate: &str,
    message: &str,
    hint: Option<&str>,
) {
    let severity = match severity {
        Severity::Error => "ERROR",
        Severity::Fatal => "FATAL",
    };
    frame(out, b'E', |body| {
        let mut field = |code: u8, content: &str| {
            body.push(code);
            text(body, content);
        };
        field(b'S', severity);
        field(b'V', severity);
        field(b'C', sqlstate);
        field(b'M', message);
        if let Some(hint) = hint {
            field(b'H', hint);
        }
        body.push(0);
    });
}

/// Appends a NoticeResponse of severity NOTICE.
pub fn notice(out: &mut Vec<u8>, message: &str, detail: Option<&str>) {
    frame(out, b'N', |body| {
        let mut field = |code: u8, content: &str| {
            body.push(code);
            text(body, content);
        };
        field(b'S', "NOTICE");
        field(b'V', "NOTICE");
        field(b'C', "00000");
        field(b'M', message);
        if let Some(detail) = detail {
            field(b'D', detail);
        }
        body.push(0);
    });
}

/// Appends ReadyForQuery with this status.
pub fn ready(out: &mut Vec<u8>, status: u8) {
    out.extend_from_slice(&[b'Z', 0, 0, 0, 5, status]);
}

/// Appends CommandComplete.
pub fn command_complete(out: &mut Vec<u8>, tag: &str) {
    frame(out, b'C', |body| text(body, tag));
}

/// Appends ParameterStatus.
pub fn parameter_status(out: &mut Vec<u8>, name: &str, value: &str) {
    frame(out, b'S', |body| {
        text(body, name);
        text(body, value);
    });
}

/// Appends BackendKeyData.
pub fn backend_key(out: &mut Vec<u8>, process: u32, secret: &[u8]) {
    frame(out, b'K', |body| {
        body.extend_from_slice(&process.to_be_bytes());
        body.extend_from_slice(secret);
    });
}

/// Appends NegotiateProtocolVersion: the newest minor version spoken, and the options not known.
pub fn negotiate(out: &mut Vec<u8>, minor: u16, unknown: &[String]) {
    frame(out, b'v', |body| {
        body.extend_from_slice(&(3u32 << 16 | u32::from(minor)).to_be_bytes());
        let count = u32::try_from(unknown.len()).unwrap_or(u32::MAX);
        body.extend_from_slice(&count.to_be_bytes());
        unknown.iter().for_each(|name| text(body, name));
    });
}

/// AuthenticationSASL with these mechanisms, each ended by a zero byte.
pub fn ask_sasl(mechanisms: &[u8]) -> Vec<u8> {
    authentication(10, &[mechanisms, b"\0"].concat())
}

/// AuthenticationSASLContinue.
pub fn sasl_continue(data: &[u8]) -> Vec<u8> {
    authentication(11, data)
}

/// AuthenticationSASLFinal.
pub fn sasl_final(data: &[u8]) -> Vec<u8> {
    authentication(12, data)
}

/// AuthenticationMD5Password.
pub fn ask_md5(salt: [u8; 4]) -> Vec<u8> {
    authentication(5, &salt)
}

fn authentication(kind: u32, data: &[u8]) -> Vec<u8> {
    framed(b'R', |body| {
        body.extend_from_slice(&kind.to_be_bytes());
        body.extend_from_slice(data);
    })
}

/// PasswordMessage: terminated by a zero byte.
pub fn password(response: &[u8]) -> Vec<u8> {
    framed(b'p', |body| {
        body.extend_from_slice(response);
        body.push(0);
    })
}

/// SASLResponse.
pub fn password_raw(response: &[u8]) -> Vec<u8> {
    framed(b'p', |body| body.extend_from_slice(response))
}

/// SASLInitialResponse for a mechanism, which ends with a zero byte.
pub fn sasl_initial(mechanism: &[u8], response: &[u8]) -> Vec<u8> {
    framed(b'p', |body| {
        body.extend_from_slice(mechanism);
        let length = u32::try_from(response.len()).unwrap_or(u32::MAX);
        body.extend_from_slice(&length.to_be_bytes());
        body.extend_from_slice(response);
    })
}

/// A start-up packet of protocol 3.0.
pub fn startup(parameters: &[(&str, &str)]) -> Vec<u8> {
    let mut packet = Vec::with_capacity(128);
    sized(&mut packet, |body| {
        body.extend_from_slice(&(3u32 << 16).to_be_bytes());
        for (name, value) in parameters {
            text(body, name);
            text(body, value);
        }
        body.push(0);
    });
    packet
}

/// A cancel request.
pub fn cancel(process: u32, secret: &[u8]) -> Vec<u8> {
    let mut packet = Vec::with_capacity(16);
    sized(&mut packet, |body| {
        body.extend_from_slice(&80_877_102u32.to_be_bytes());
        body.extend_from_slice(&process.to_be_bytes());
        body.extend_from_slice(secret);
    });
    packet
}

/// A simple query.
pub fn query(sql: &str) -> Vec<u8> {
    framed(b'Q', |body| text(body, sql))
}

/// A query with one parameter, a text, that is to return so many rows at most: Parse, Bind, Execute, Sync.
pub fn ask(sql: &str, parameter: &str, rows: u32) -> Vec<u8> {
    let mut out = Vec::with_capacity(64 + sql.len());
    frame(&mut out, b'P', |body| {
        text(body, "");
        text(body, sql);
        body.extend_from_slice(&[0; 2]);
    });
    frame(&mut out, b'B', |body| {
        // No portal's name, no statement's; formats as they are by default, text.
        body.extend_from_slice(&[0, 0, 0, 0, 0, 1]);
        let length = u32::try_from(parameter.len()).unwrap_or(u32::MAX);
        body.extend_from_slice(&length.to_be_bytes());
        body.extend_from_slice(parameter.as_bytes());
        body.extend_from_slice(&[0; 2]);
    });
    frame(&mut out, b'E', |body| {
        text(body, "");
        body.extend_from_slice(&rows.to_be_bytes());
    });
    frame(&mut out, b'S', |_| {});
    out
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

    #[test]
    fn packets_without_a_kind_are_framed_by_their_length() {
        let packet = startup(&[("user", "app")]);
        assert_eq!(packet, b"\0\0\0\x12\0\x03\0\0user\0app\0\0");
        assert_eq!(
            cancel(9, &[1, 2, 3, 4]),
            *b"\0\0\0\x10\x04\xd2\x16\x2e\0\0\0\x09\x01\x02\x03\x04"
        );
        let mut out = Vec::new();
        negotiate(&mut out, 2, &["_pq_.x".to_owned()]);
        assert_eq!(out, b"v\0\0\0\x13\0\x03\0\x02\0\0\0\x01_pq_.x\0");
    }
}
