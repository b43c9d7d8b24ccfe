//! What can be told of a log-in that passes through under TLS or GSS encryption: not when it is over, but for
//! as long as it cannot be over yet. Pure.

use super::records::Records;

/// A server greets in more bytes than this: PostgreSQL 13 to 18 report at least eleven parameters, each with
/// its name, 300 bytes and more. What it says before, asking for a password, is less.
pub const LEAST_GREETING: usize = 256;

/// TLS: the kind of a record that carries what the two sides say; a start-up packet comes in such a one.
const APPLICATION_DATA: u8 = 23;

/// What hides the messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cover {
    /// TLS.
    Tls,
    /// GSSAPI encryption.
    Gss,
}

/// A log-in of which only lengths are seen.
#[derive(Clone, Copy, Debug)]
pub struct Veil {
    /// The client's.
    records: Records,
    /// The client may have sent its start-up packet.
    has_asked: bool,
    /// What the server has said since.
    answered: usize,
}

impl Veil {
    /// A session that begins. Under GSS nothing tells the exchange of tokens from what follows, so every
    /// byte of the server counts as an answer.
    pub fn new(cover: Cover) -> Self {
        Self {
            records: Records::default(),
            has_asked: match cover {
                Cover::Tls => false,
                Cover::Gss => true,
            },
            answered: 0,
        }
    }

    /// Counts bytes that the server's socket has taken. In TLS 1.3 the client's last word of the handshake
    /// is a record of application data too; the server's certificate has come before it in any case.
    pub fn sent_to_server(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while !self.has_asked
            && let Some(kind) = self.records.next(&mut rest)
        {
            self.has_asked = kind == APPLICATION_DATA;
        }
    }

    /// Counts bytes that the client's socket has taken.
    pub fn taken_by_client(&mut self, bytes: &[u8]) {
        if self.has_asked {
            self.answered = self.answered.saturating_add(bytes.len());
        }
    }

    /// Whether the log-in may be over. Before, it surely is not.
    pub fn may_be_greeted(&self) -> bool {
        self.answered >= LEAST_GREETING
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::records::RECORD_HEADER;

    fn record(kind: u8, length: u16) -> Vec<u8> {
        let mut bytes = vec![kind, 3, 3];
        bytes.extend_from_slice(&length.to_be_bytes());
        bytes.resize(RECORD_HEADER + usize::from(length), kind);
        bytes
    }

    #[test]
    fn a_handshake_is_no_log_in_however_long_its_certificates_are() {
        let mut veil = Veil::new(Cover::Tls);
        veil.sent_to_server(&record(22, 517));
        veil.taken_by_client(&record(23, 4000));
        assert!(!veil.may_be_greeted());
        // TLS 1.3: the change of cipher, the end of the handshake, the start-up packet; in any pieces.
        for byte in [record(20, 1), record(23, 53), record(23, 100)].concat() {
            veil.sent_to_server(&[byte]);
        }
        veil.taken_by_client(&record(23, 40));
        assert!(!veil.may_be_greeted(), "a question for the password");
        veil.taken_by_client(&record(23, 330));
        assert!(veil.may_be_greeted());
    }

    #[test]
    fn a_client_that_only_shakes_hands_is_not_logged_in() {
        let mut veil = Veil::new(Cover::Tls);
        veil.sent_to_server(&[record(22, 300), record(22, 70), record(20, 1)].concat());
        veil.taken_by_client(&record(22, 5000));
        assert!(!veil.may_be_greeted());
    }

    #[test]
    fn under_gss_all_that_the_server_says_counts() {
        let mut veil = Veil::new(Cover::Gss);
        veil.sent_to_server(b"\0\0\x02\0token");
        veil.taken_by_client(&[0; 160]);
        assert!(!veil.may_be_greeted());
        veil.taken_by_client(&[0; 400]);
        assert!(veil.may_be_greeted());
    }
}
