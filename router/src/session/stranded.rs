//! A client of a pooled mode whose server was lost in the middle: the router answers in the server's place
//! until the client stands between two transactions again. Pure.

use crate::error::RequestError;
use crate::protocol::exchange::Status;
use crate::protocol::messages::{
    self, BIND_COMPLETE, CLOSE_COMPLETE, NO_DATA, NO_PARAMETERS, PARSE_COMPLETE,
};
use crate::protocol::splice::text;
use crate::session::carry_over::look::{End, look};

/// Whether the client is still to be answered here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Yes.
    Stays,
    /// No: the next message goes to a server.
    Over,
}

/// The stand-in for a lost server.
#[derive(Debug)]
pub struct Stranded {
    error: RequestError,
    /// The client has heard it.
    is_told: bool,
    /// In a transaction that failed: the client must end it. Else only the open batch is skipped.
    is_failed: bool,
    /// Everything is ignored until a Sync.
    is_skipping: bool,
    /// The statement that was prepared or bound last ends the transaction.
    bound: Option<End>,
}

impl Stranded {
    /// Begins in a transaction that is undone, or after requests of which nothing is known. Writes what the
    /// client is owed for `unanswered` requests and an open batch after them.
    pub fn begin(
        error: RequestError,
        is_failed: bool,
        (unanswered, is_open): (usize, bool),
        out: &mut Vec<u8>,
    ) -> (Self, Next) {
        let mut own = Self {
            error,
            is_told: false,
            is_failed,
            is_skipping: is_open,
            bound: None,
        };
        for _ in 0..unanswered {
            own.tell(out);
            own.ready(out);
        }
        if is_open {
            own.tell(out);
        }
        let next = if is_failed || is_open {
            Next::Stays
        } else {
            Next::Over
        };
        (own, next)
    }

    /// The transaction was given up by what was not answered: only the rest of its batch is left, which the lost server has
    /// ignored, or not seen yet.
    pub fn has_ended(&mut self, is_skipping: bool) {
        self.is_failed = false;
        self.is_told = false;
        self.is_skipping = is_skipping;
    }

    fn status(&self) -> Status {
        if self.is_failed {
            Status::Failed
        } else {
            Status::Idle
        }
    }

    fn ready(&self, out: &mut Vec<u8>) {
        let letter = match self.status() {
            Status::Failed | Status::Transaction => b'E',
            Status::Idle => b'I',
        };
        messages::ready(out, letter);
    }

    fn tell(&mut self, out: &mut Vec<u8>) {
        // In a failed transaction the cause is told once; requests of unknown outcome each hear that.
        if self.is_told && self.is_failed {
            RequestError::Aborted.write(out);
        } else {
            self.error.write(out);
        }
        self.is_told = true;
    }

    fn fail(&mut self, out: &mut Vec<u8>) {
        self.tell(out);
        self.is_skipping = true;
    }

    fn over(&self) -> Next {
        if self.is_failed {
            Next::Stays
        } else {
            Next::Over
        }
    }

    /// Answers a message of the client. `body` may be cut, if it is long.
    pub fn answer(&mut self, kind: u8, body: &[u8], out: &mut Vec<u8>) -> Next {
        match kind {
            b'S' => {
                self.is_skipping = false;
                self.ready(out);
                return self.over();
            }
            _ if self.is_skipping => {}
            b'Q' => {
                let sql = body.strip_suffix(b"\0").unwrap_or(body);
                match look(sql).only_ends.filter(|_| self.is_failed) {
                    Some(end) => {
                        self.end(end, out);
                    }
                    None => self.tell(out),
                }
                self.ready(out);
                return self.over();
            }
            b'F' => {
                self.tell(out);
                self.ready(out);
                return self.over();
            }
            b'P' => {
                let sql = text(body)
                    .and_then(|(_, rest)| text(rest))
                    .map(|(sql, _)| sql);
                self.bound = sql.and_then(|sql| look(sql).only_ends);
                match self.has_end_at_hand() {
                    true => out.extend_from_slice(PARSE_COMPLETE),
                    false => self.fail(out),
                }
            }
            b'B' if self.has_end_at_hand() => out.extend_from_slice(BIND_COMPLETE),
            b'D' if self.has_end_at_hand() => {
                if body.first() == Some(&b'S') {
                    out.extend_from_slice(NO_PARAMETERS);
                }
                out.extend_from_slice(NO_DATA);
            }
            b'E' if self.has_end_at_hand() => {
                let end = self.bound.unwrap_or(End::Rollback);
                self.is_skipping = self.end(end, out);
            }
            b'C' => out.extend_from_slice(CLOSE_COMPLETE),
            b'B' | b'D' | b'E' => self.fail(out),
            // Flush, and the data of a COPY that failed.
            _ => {}
        }
        Next::Stays
    }

    /// Whether the next message is answered, not skipped.
    pub fn listens(&self) -> bool {
        !self.is_skipping
    }

    /// Whether the statement that was prepared or bound last is there, and ends the transaction.
    pub fn has_end_at_hand(&self) -> bool {
        self.is_failed && self.bound.is_some()
    }

    /// The client binds a statement that it has named before: whether that ends a transaction.
    pub fn binds(&mut self, end: Option<End>) {
        self.bound = end;
    }

    /// A COMMIT that is the first to hear of the loss fails: its tag alone would tell nobody, for drivers read only errors.
    /// AND CHAIN ends nothing here: what follows would be meant for the next transaction, which no server has begun, and
    /// would stand on its own. Whether the answer is an error.
    fn end(&mut self, end: End, out: &mut Vec<u8>) -> bool {
        let is_error = match end {
            End::Rollback => false,
            End::Commit => !self.is_told,
            End::Chain => true,
        };
        match is_error {
            true => self.tell(out),
            false => messages::command_complete(out, "ROLLBACK"),
        }
        self.is_failed = end == End::Chain;
        is_error
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lost() -> RequestError {
        RequestError::TransactionLost {
            why: "the leader changed".into(),
        }
    }

    /// Kinds of the answers, with the code of an error and the status of a ReadyForQuery.
    fn told(out: &[u8]) -> String {
        let mut rest = out;
        let mut said = String::new();
        while !rest.is_empty() {
            let length = u32::from_be_bytes(rest[1..5].try_into().unwrap()) as usize + 1;
            let (message, after) = rest.split_at(length);
            said.push(' ');
            match message[0] {
                b'E' => {
                    let code = message
                        .split(|b| *b == 0)
                        .find(|f| f.first() == Some(&b'C'));
                    said.push_str(std::str::from_utf8(&code.unwrap()[1..]).unwrap());
                }
                b'Z' => said.push_str(&format!("Z{}", char::from(message[5]))),
                kind => said.push(char::from(kind)),
            }
            rest = after;
        }
        said
    }

    fn feed(own: &mut Stranded, messages: &[(u8, &[u8])]) -> String {
        let mut out = Vec::new();
        let mut next = Next::Stays;
        for (kind, body) in messages {
            next = own.answer(*kind, body, &mut out);
        }
        format!("{} {next:?}", told(&out))
    }

    #[test]
    fn an_idle_transaction_hears_of_its_loss_at_the_next_statement() {
        let mut out = Vec::new();
        let (mut own, next) = Stranded::begin(lost(), true, (0, false), &mut out);
        assert_eq!((told(&out).as_str(), next), ("", Next::Stays));
        assert_eq!(feed(&mut own, &[(b'Q', b"select 1\0")]), " 40001 ZE Stays");
        assert_eq!(
            feed(&mut own, &[(b'Q', b"rollback to x\0")]),
            " 25P02 ZE Stays"
        );
        assert_eq!(feed(&mut own, &[(b'Q', b"commit\0")]), " C ZI Over");
    }

    #[test]
    fn a_commit_that_is_the_first_to_hear_of_the_loss_fails() {
        let lost_while_idle = || Stranded::begin(lost(), true, (0, false), &mut Vec::new()).0;
        for commit in [&b"commit\0"[..], b"END;\0", b"commit work and no chain\0"] {
            let said = feed(&mut lost_while_idle(), &[(b'Q', commit)]);
            assert_eq!(said, " 40001 ZI Over");
        }
        // Who gives it up has what it wants.
        for rollback in [&b"rollback\0"[..], b"ABORT\0"] {
            let said = feed(&mut lost_while_idle(), &[(b'Q', rollback)]);
            assert_eq!(said, " C ZI Over");
        }
        let by_parts = |sql: &[u8]| {
            let parse = [&b"\0"[..], sql, b"\0\0\0"].concat();
            let messages = [(b'P', &parse[..]), (b'B', b""), (b'E', b""), (b'S', b"")];
            feed(&mut lost_while_idle(), &messages)
        };
        assert_eq!(by_parts(b"commit"), " 1 2 40001 ZI Over");
        assert_eq!(by_parts(b"rollback"), " 1 2 C ZI Over");
    }

    #[test]
    fn nobody_goes_on_in_a_chained_transaction_that_no_server_has_begun() {
        for chains in [&b"commit and chain\0"[..], b"rollback work and chain\0"] {
            let mut own = Stranded::begin(lost(), true, (0, false), &mut Vec::new()).0;
            assert_eq!(feed(&mut own, &[(b'Q', chains)]), " 40001 ZE Stays");
            assert_eq!(feed(&mut own, &[(b'Q', chains)]), " 25P02 ZE Stays");
            let parse = [&b"\0"[..], chains, b"\0\0"].concat();
            let parts = [(b'P', &parse[..]), (b'B', b""), (b'E', b""), (b'S', b"")];
            assert_eq!(feed(&mut own, &parts), " 1 2 25P02 ZE Stays");
            assert_eq!(feed(&mut own, &[(b'Q', b"rollback\0")]), " C ZI Over");
        }
        // Nor is one ended by what ends another one, of two phases.
        for other in [&b"commit prepared 'x'\0"[..], b"rollback prepared 'x'\0"] {
            let mut own = Stranded::begin(lost(), true, (0, false), &mut Vec::new()).0;
            assert_eq!(feed(&mut own, &[(b'Q', other)]), " 40001 ZE Stays");
        }
    }

    #[test]
    fn the_end_of_a_lost_transaction_may_be_prepared_and_described() {
        let mut own = Stranded::begin(lost(), true, (1, false), &mut Vec::new()).0;
        let parse = (b'P', &b"s\0ROLLBACK\0\0\0"[..]);
        let prepared = [parse, (b'D', b"Ss\0"), (b'S', b"")];
        assert_eq!(feed(&mut own, &prepared), " 1 t n ZE Stays");
    }

    #[test]
    fn the_extended_protocol_skips_to_its_sync_and_ends_by_a_prepared_commit() {
        let (mut own, _) = Stranded::begin(lost(), true, (0, false), &mut Vec::new());
        let parse = (b'P', &b"\0select 1\0\0\0"[..]);
        let rest = [(b'B', &b""[..]), (b'E', b""), (b'S', b"")];
        assert_eq!(
            feed(&mut own, &[parse, rest[0], rest[1], rest[2]]),
            " 40001 ZE Stays"
        );
        let parse = (b'P', &b"s\0COMMIT\0\0\0"[..]);
        let describe = (b'D', &b"P\0"[..]);
        let said = feed(&mut own, &[parse, rest[0], describe, rest[1], rest[2]]);
        assert_eq!(said, " 1 2 n C ZI Over");
    }

    #[test]
    fn every_request_of_a_pipeline_is_answered() {
        let mut out = Vec::new();
        let (_, next) = Stranded::begin(lost(), true, (2, true), &mut out);
        assert_eq!(
            (told(&out).as_str(), next),
            (" 40001 ZE 25P02 ZE 25P02", Next::Stays)
        );
        let unknown = || RequestError::OutcomeUnknown { why: "lost".into() };
        let mut out = Vec::new();
        let (_, next) = Stranded::begin(unknown(), false, (2, false), &mut out);
        assert_eq!(
            (told(&out).as_str(), next),
            (" 08007 ZI 08007 ZI", Next::Over)
        );
        let mut out = Vec::new();
        let (mut own, next) = Stranded::begin(unknown(), false, (0, true), &mut out);
        assert_eq!((told(&out).as_str(), next), (" 08007", Next::Stays));
        assert_eq!(
            feed(&mut own, &[(b'E', b""), (b'd', b""), (b'S', b"")]),
            " ZI Over"
        );
    }
}
