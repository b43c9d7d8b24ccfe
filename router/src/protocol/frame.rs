//! Where a byte stream stands in PostgreSQL's framing, without holding a single byte of a body: lengths
//! are read, bodies are skipped. One addition per message, nothing per byte.

/// A header: one byte of kind, four of length.
const HEADER: usize = 5;

/// The place in one direction's stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Frames {
    /// Bytes of the current body not yet seen.
    left: u32,
    /// The header as far as it has come; its first byte is the kind of the current message.
    header: [u8; HEADER],
    /// How many bytes of the header have come; 5 while a body is being skipped.
    have: u8,
    /// A length below four was seen: this is not the protocol, and nothing more is known.
    is_lost: bool,
}

impl Frames {
    /// Moves over `bytes`, telling the kind of every message that ends in them.
    pub fn advance(&mut self, bytes: &[u8], mut ended: impl FnMut(u8)) {
        let mut rest = bytes;
        while !rest.is_empty() && !self.is_lost {
            if self.have == 0 && rest.len() >= HEADER {
                self.header.copy_from_slice(&rest[..HEADER]);
                self.have = 5;
                rest = &rest[HEADER..];
                self.begin_body();
            } else if usize::from(self.have) < HEADER {
                self.header[usize::from(self.have)] = rest[0];
                self.have += 1;
                rest = &rest[1..];
                if usize::from(self.have) == HEADER {
                    self.begin_body();
                }
            } else {
                let step = rest.len().min(self.left as usize);
                rest = &rest[step..];
                // `step` is at most `left`, a u32.
                self.left -= step as u32;
            }
            if usize::from(self.have) == HEADER && self.left == 0 && !self.is_lost {
                self.have = 0;
                ended(self.header[0]);
            }
        }
    }

    fn begin_body(&mut self) {
        let [_, a, b, c, d] = self.header;
        match u32::from_be_bytes([a, b, c, d]).checked_sub(4) {
            Some(left) => self.left = left,
            None => self.is_lost = true,
        }
    }

    /// Whether the last byte seen ended a message.
    pub fn is_at_boundary(&self) -> bool {
        self.have == 0 && !self.is_lost
    }

    /// Whether the stream was found not to be the protocol.
    pub fn is_lost(&self) -> bool {
        self.is_lost
    }

    /// How many bytes may be read without running over the end of the current message; 0 at a boundary.
    pub fn bytes_to_boundary(&self) -> usize {
        if self.is_lost || self.have == 0 {
            0
        } else if usize::from(self.have) < HEADER {
            HEADER - usize::from(self.have)
        } else {
            self.left as usize
        }
    }
}

/// What is known of a session whose bytes pass through: what was asked and not yet answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Conversation {
    client: Frames,
    server: Frames,
    /// Requests sent whole (Query, Sync, FunctionCall) whose ReadyForQuery the client has not taken.
    unanswered: u32,
    /// Of the last requests, one bit each, the youngest lowest: whether it is a Sync that a COPY FROM STDIN
    /// before it would swallow.
    swallowable: u64,
    /// The last thing sent was the end of copied data: a Sync after it counts.
    has_ended_copy: bool,
    /// Messages of the extended protocol were sent since the last Sync.
    is_batch_open: bool,
    /// The first ReadyForQuery, which answers no request but ends authentication, was taken.
    is_greeted: bool,
    /// The client said Terminate.
    is_leaving: bool,
    /// The last message the client took was an ErrorResponse.
    ended_with_error: bool,
}

impl Conversation {
    /// Counts bytes that the server's socket has taken.
    pub fn sent_to_server(&mut self, bytes: &[u8]) {
        let Self {
            client,
            unanswered,
            swallowable,
            has_ended_copy,
            is_batch_open,
            is_leaving,
            ..
        } = self;
        client.advance(bytes, |kind| match kind {
            b'Q' | b'F' => {
                *unanswered = unanswered.saturating_add(1);
                *swallowable <<= 1;
                *has_ended_copy = false;
            }
            b'S' => {
                *unanswered = unanswered.saturating_add(1);
                *swallowable = *swallowable << 1 | u64::from(!*has_ended_copy);
                *has_ended_copy = false;
                *is_batch_open = false;
            }
            b'P' | b'B' | b'E' | b'D' | b'C' => {
                *is_batch_open = true;
                *has_ended_copy = false;
            }
            b'H' => *is_batch_open = true,
            b'c' | b'f' => *has_ended_copy = true,
            b'X' => *is_leaving = true,
            _ => {}
        });
    }

    /// Counts bytes that the client's socket has taken.
    pub fn taken_by_client(&mut self, bytes: &[u8]) {
        let Self {
            server,
            unanswered,
            swallowable,
            is_batch_open,
            is_greeted,
            ended_with_error,
            ..
        } = self;
        server.advance(bytes, |kind| {
            *ended_with_error = kind == b'E';
            match kind {
                b'Z' => {
                    if *is_greeted {
                        *unanswered = unanswered.saturating_sub(1);
                    }
                    *is_greeted = true;
                }
                // CopyInResponse: PostgreSQL ignores a Sync until the copied data ends. What it answers is
                // the oldest request; a Query is still to be answered, the Sync of a batch will never be.
                b'G' => {
                    let oldest = unanswered.checked_sub(1);
                    if let Some(at) = oldest
                        && swallowable
                            .checked_shr(at)
                            .is_some_and(|bits| bits & 1 == 1)
                    {
                        *unanswered = at;
                        // The batch goes on until the Sync after the data, unless that was sent already.
                        *is_batch_open |= at == 0;
                    }
                }
                _ => {}
            }
        });
    }

    /// Whether an ErrorResponse may be written to the client now.
    pub fn is_at_boundary(&self) -> bool {
        self.server.is_at_boundary()
    }

    /// Whether the server's stream is not the protocol, so that a boundary will never come.
    pub fn is_lost(&self) -> bool {
        self.server.is_lost()
    }

    /// How many bytes of the server may still be passed on without beginning another message.
    pub fn bytes_to_boundary(&self) -> usize {
        self.server.bytes_to_boundary()
    }

    /// Whether something was asked of the server whose outcome the client does not know.
    pub fn has_outstanding(&self) -> bool {
        self.unanswered > 0 || self.is_batch_open
    }

    /// Whether authentication is over.
    pub fn is_greeted(&self) -> bool {
        self.is_greeted
    }

    /// Whether the end of the session needs no word from the router: the client left, or the server has
    /// said why it closes.
    pub fn is_explained(&self) -> bool {
        self.is_leaving || self.ended_with_error
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u8, body: &[u8]) -> Vec<u8> {
        let mut bytes = vec![kind];
        bytes.extend_from_slice(&u32::try_from(body.len() + 4).unwrap().to_be_bytes());
        bytes.extend_from_slice(body);
        bytes
    }

    /// A small generator, so that the splits are the same in every run.
    struct Dice(u64);

    impl Dice {
        fn roll(&mut self, below: usize) -> usize {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            usize::try_from(self.0 % below as u64).unwrap()
        }
    }

    #[test]
    fn any_split_of_the_bytes_ends_in_the_same_state() {
        let mut dice = Dice(0x9E37_79B9_7F4A_7C15);
        for _ in 0..400 {
            let mut stream = Vec::new();
            let mut kinds = Vec::new();
            for _ in 0..dice.roll(12) {
                let kind = b"QPBESZTDCXF"[dice.roll(11)];
                let length = [0, 1, 4, 5, 6, 300][dice.roll(6)];
                stream.extend(message(kind, &vec![kind; length]));
                kinds.push(kind);
            }
            stream.truncate(stream.len() - dice.roll(7).min(stream.len()));
            let mut whole = Frames::default();
            let mut seen = Vec::new();
            whole.advance(&stream, |k| seen.push(k));
            let mut talk = Conversation::default();
            talk.sent_to_server(&stream);
            talk.taken_by_client(&stream);

            let mut split = Frames::default();
            let mut again = Vec::new();
            let mut pieces = Conversation::default();
            let mut rest = stream.as_slice();
            while !rest.is_empty() {
                let (piece, tail) = rest.split_at(1 + dice.roll(rest.len()));
                split.advance(piece, |k| again.push(k));
                pieces.sent_to_server(piece);
                rest = tail;
            }
            for byte in &stream {
                pieces.taken_by_client(&[*byte]);
            }
            assert_eq!((&split.left, &split.have), (&whole.left, &whole.have));
            assert_eq!(again, seen);
            assert_eq!(pieces.has_outstanding(), talk.has_outstanding());
            assert_eq!(pieces.is_at_boundary(), talk.is_at_boundary());
            assert_eq!(pieces.bytes_to_boundary(), talk.bytes_to_boundary());
            assert!(seen.len() <= kinds.len());
        }
    }

    #[test]
    fn requests_count_against_ready_for_query() {
        let ready = message(b'Z', b"I");
        let mut talk = Conversation::default();
        talk.taken_by_client(&ready);
        assert!(talk.is_greeted() && !talk.has_outstanding());

        talk.sent_to_server(&message(b'Q', b"select 1\0"));
        assert!(talk.has_outstanding());
        talk.taken_by_client(&message(b'C', b"SELECT 1\0"));
        assert!(talk.has_outstanding(), "answered, but not yet ready");
        talk.taken_by_client(&ready[..3]);
        assert!(talk.has_outstanding() && !talk.is_at_boundary());
        assert_eq!(talk.bytes_to_boundary(), 2, "the header's rest comes first");
        talk.taken_by_client(&ready[3..]);
        assert!(!talk.has_outstanding() && talk.is_at_boundary());

        talk.sent_to_server(&message(b'E', b"\0\0\0\0\0"));
        assert!(talk.has_outstanding(), "executed without a Sync");
        talk.sent_to_server(&message(b'S', b""));
        talk.sent_to_server(&message(b'S', b""));
        talk.taken_by_client(&ready);
        assert!(talk.has_outstanding(), "one of two answered");
        talk.taken_by_client(&ready);
        assert!(!talk.has_outstanding());
    }

    #[test]
    fn a_query_sent_by_half_is_not_outstanding() {
        let mut talk = Conversation::default();
        let query = message(b'Q', b"select 1\0");
        talk.sent_to_server(&query[..query.len() - 1]);
        assert!(!talk.has_outstanding());
    }

    #[test]
    fn an_impossible_length_loses_the_stream_and_nothing_else() {
        let mut talk = Conversation::default();
        talk.taken_by_client(b"Z\0\0\0\x03xxxxxxxxxxxxxxxxx");
        assert!(talk.is_lost() && !talk.is_at_boundary());
        assert_eq!(talk.bytes_to_boundary(), 0);
    }
}
