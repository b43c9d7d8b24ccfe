//! From the server to its client: what it answers, what of it the client never asked for, and when nothing of
//! the client is left there.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, ReadBuf};
use tracing::info;

use super::door::interned;
use super::{Buffers, Own, Pooled, Step, Turn, write_on};
use crate::config::pooling::Mode;
use crate::error::{RequestError, SessionError};
use crate::protocol::exchange::{Status, Verdict};
use crate::protocol::messages;
use crate::protocol::notices::is_cancelled_wait;
use crate::protocol::settings::{Settings, SettingsSeen, tracked};
use crate::protocol::splice::{Splice, head};
use crate::protocol::sqlstate;
use crate::server::{Complaint, MAX_READ_WHOLE, Server, report};
use crate::session::carry_over::executed::Executed;
use crate::session::carry_over::look::PinReason;
use crate::session::carry_over::{NO_UNNAMED, PREFIX, TAKEN, UNKNOWN};

/// A completion's tag is in its first bytes.
const TAG: usize = 128;

impl Pooled {
    pub(super) fn poll_server(
        &mut self,
        cx: &mut Context<'_>,
        buffers: &mut Buffers,
    ) -> Result<Step, Turn> {
        if self.server.is_none() || !self.poll_flush(cx)? {
            return Ok(Step::Waits);
        }
        let Some(server) = &mut self.server else {
            return Ok(Step::Waits);
        };
        let server: &mut Server = server;
        let Buffers { input, out } = buffers;
        let mut read = ReadBuf::new(input);
        match Pin::new(&mut server.stream).poll_read(cx, &mut read) {
            Poll::Pending => {
                // An answer that filled the buffer to its last byte was not known to be all.
                self.release_where_free(cx)?;
                // What the client has sent meanwhile may have waited for that.
                return Ok(match self.server {
                    Some(_) => Step::Waits,
                    None => Step::Moved,
                });
            }
            Poll::Ready(Err(_)) => return Err(Turn::ServerGone),
            Poll::Ready(Ok(())) => {}
        }
        let count = read.filled().len();
        // A read that did not fill the buffer has emptied the socket.
        let is_drained = count < input.len();
        if count == 0 {
            return Err(Turn::ServerGone);
        }
        if server.inbound.carry.is_empty() {
            self.answer(&input[..count], out, cx)?;
        } else {
            let mut bytes = std::mem::take(&mut server.inbound.carry);
            bytes.extend_from_slice(&input[..count]);
            self.answer(&bytes, out, cx)?;
        }
        if is_drained {
            self.release_where_free(cx)?;
        }
        Ok(Step::Moved)
    }

    fn answer(
        &mut self,
        bytes: &[u8],
        out: &mut Vec<u8>,
        cx: &mut Context<'_>,
    ) -> Result<(), Turn> {
        let Some(server) = &mut self.server else {
            return Ok(());
        };
        let server: &mut Server = server;
        let is_replication = self.pinned == Some(PinReason::Replication);
        let is_statement_mode = self.door.mode == Mode::Statement && !is_replication;
        let before = (self.answers, self.ends);
        let mut scan = Scan {
            server,
            statements: &mut self.statements,
            settings: &mut self.settings,
            begun_with: &self.begun_with,
            is_resetting: &mut self.is_resetting,
            reports: Vec::new(),
            pinned: &mut self.pinned,
            to_ask: &self.to_ask,
            is_statement_mode,
            door: &self.door,
            is_explained: &mut self.is_explained,
            answers: &mut self.answers,
            ends: &mut self.ends,
            has_unnamed: &mut self.has_unnamed,
            executed: &mut self.executed,
        };
        let mut splice = Splice::new(bytes, out);
        let outcome = scan.scan(bytes, &mut splice);
        let end = outcome.end;
        server.inbound.carry = bytes[end..].to_vec();
        let onwards = splice.finish(end);
        self.door.tally.sent.add_length(onwards.len());
        let told = write_on(&mut self.client, &mut self.to_client, onwards, cx);
        self.note_answered(before);
        told.map_err(|_| Turn::ClientLeft)?;
        match outcome.trouble {
            None => Ok(()),
            Some(Trouble::Lost) => Err(Turn::ServerGone),
            Some(Trouble::TransactionBlock) => Err(Turn::Over(SessionError::TransactionBlock)),
        }
    }
}

enum Trouble {
    /// The server is not to be trusted any more, or says that it ends.
    Lost,
    /// A transaction block in statement mode.
    TransactionBlock,
}

/// How far a scan came.
struct Outcome {
    end: usize,
    trouble: Option<Trouble>,
}

/// One look over bytes of the server.
struct Scan<'a> {
    server: &'a mut Server,
    statements: &'a mut Own,
    settings: &'a mut Arc<Settings>,
    /// The client's when it logged in.
    begun_with: &'a Arc<Settings>,
    /// Settings were reset, and what the server reports of it is the server's.
    is_resetting: &'a mut bool,
    /// What the client is told in the place of that.
    reports: Vec<u8>,
    pinned: &'a mut Option<PinReason>,
    to_ask: &'a SettingsSeen,
    is_statement_mode: bool,
    door: &'a super::door::Door,
    is_explained: &'a mut bool,
    answers: &'a mut u64,
    ends: &'a mut u64,
    has_unnamed: &'a mut bool,
    executed: &'a mut Executed,
}

impl Scan<'_> {
    fn scan(&mut self, bytes: &[u8], splice: &mut Splice<'_>) -> Outcome {
        let mut at = 0;
        let stop = |end, trouble| Outcome { end, trouble };
        while at < bytes.len() {
            let inbound = &mut self.server.inbound;
            if inbound.left > 0 {
                let step = inbound.left.min(bytes.len() - at);
                if inbound.is_hidden {
                    splice.replace(at, at + step);
                }
                inbound.left -= step;
                at += step;
                self.settle(at, splice);
                continue;
            }
            let rest = &bytes[at..];
            let Ok(header) = head(rest) else {
                return stop(at, Some(Trouble::Lost));
            };
            let Some((kind, total)) = header else {
                return stop(at, None);
            };
            if rest.len() < needs(kind, total) {
                return stop(at, None);
            }
            if kind == b'S' && total > MAX_READ_WHOLE {
                return stop(at, Some(Trouble::Lost));
            }
            let have = total.min(rest.len());
            let is_unconfirmed = kind == b'N' && is_cancelled_wait(&rest[5..have]);
            if self.server.exchange.owes()
                && (is_unconfirmed || !matches!(kind, b'N' | b'A' | b'S'))
            {
                let renamed = self.server.exchange.settle(splice.replace(at, at));
                self.statements.confirm(renamed);
            }
            if is_unconfirmed && self.server.exchange.is_owed_an_answer() {
                if self.server.exchange.is_batch_open() {
                    // What the client sends up to its Sync it takes for ignored, and this server would execute it.
                    return stop(at, Some(Trouble::Lost));
                }
                self.disown(splice.replace(at, at + have));
                at += have;
                continue;
            }
            let verdict = match self.message(kind, &rest[5..have]) {
                Ok(verdict) => verdict,
                Err(trouble) => return stop(at, Some(trouble)),
            };
            let inbound = &mut self.server.inbound;
            inbound.is_hidden = verdict == Verdict::Hide;
            inbound.left = total - have;
            if inbound.is_hidden {
                splice.replace(at, at + have);
            }
            at += have;
            if !self.reports.is_empty() {
                splice.replace(at, at).append(&mut self.reports);
            }
            self.settle(at, splice);
        }
        stop(at, None)
    }

    /// A commit is not confirmed as this cluster wants it: whatever PostgreSQL says of it, it is no success.
    fn disown(&mut self, out: &mut Vec<u8>) {
        if !self.server.exchange.disown() {
            return;
        }
        let member = &self.server.way.member;
        info!(%member, "the wait of a commit for synchronous standbys was cancelled; its client hears 08007");
        let why = format!(
            "what it had done by then is kept on member {member}, but the wait for synchronous standbys was cancelled: if another \
             member takes over it may be undone, and what came of the rest of the request is not told"
        );
        RequestError::OutcomeUnknown { why: why.into() }.write(out);
    }

    /// Writes what is owed, once a message is over: the server may have nothing more to say before it.
    fn settle(&mut self, at: usize, splice: &mut Splice<'_>) {
        if self.server.inbound.left == 0 && self.server.exchange.owes() {
            let renamed = self.server.exchange.settle(splice.replace(at, at));
            self.statements.confirm(renamed);
        }
    }

    /// Judges one message, of which at least what it needs is there.
    fn message(&mut self, kind: u8, body: &[u8]) -> Result<Verdict, Trouble> {
        let verdict = match kind {
            b'Z' => {
                let status = body.first().and_then(|letter| Status::from_letter(*letter));
                let status = status.filter(|_| body.len() == 1).ok_or(Trouble::Lost)?;
                if self.is_statement_mode && status != Status::Idle {
                    return Err(Trouble::TransactionBlock);
                }
                *self.is_resetting = false;
                *self.answers += 1;
                *self.ends += u64::from(status == Status::Idle);
                self.server.exchange.ready(status)
            }
            b'E' => {
                self.error(body)?;
                let Server {
                    exchange, prepared, ..
                } = &mut *self.server;
                let verdict = exchange.answered(kind, |heard| {
                    prepared.hear(heard);
                    self.statements.hear(heard);
                });
                // Its last word is told in any case.
                match (*self.is_explained, verdict) {
                    (true, Verdict::Hide | Verdict::Lost) => Verdict::Pass,
                    (true | false, verdict) => verdict,
                }
            }
            b'S' if self.reported(body) => Verdict::Hide,
            _ => {
                if kind == b'C' {
                    self.completed(body);
                }
                let statements = &mut *self.statements;
                self.server
                    .exchange
                    .answered(kind, |heard| statements.hear(heard))
            }
        };
        match verdict {
            Verdict::Lost => Err(Trouble::Lost),
            Verdict::Pass | Verdict::Hide => Ok(verdict),
        }
    }

    fn error(&mut self, body: &[u8]) -> Result<(), Trouble> {
        // A Parse after what failed was skipped: what the server has may be another client's.
        if !self.server.exchange.is_unnamed_of_a_later_batch() {
            *self.has_unnamed = false;
        }
        self.executed.doubt_unnamed();
        let complaint = Complaint::read(body);
        if complaint.is_fatal {
            // Who broke the protocol waits for what no other server would answer either.
            let is_the_clients = complaint.code == sqlstate::PROTOCOL_VIOLATION;
            if self.pinned.is_none() && !is_the_clients {
                // What the client hears is not that its connection is over.
                return Err(Trouble::Lost);
            }
            *self.is_explained = true;
            self.server.is_spoiled = true;
        }
        let is_stale = complaint.code == sqlstate::FEATURE_NOT_SUPPORTED
            && complaint.routine == "RevalidateCachedQuery";
        // One that a server should have had, or should not, is the router's to mend.
        let is_of_the_router = matches!(
            complaint.code.as_str(),
            sqlstate::INVALID_STATEMENT_NAME | sqlstate::DUPLICATE_STATEMENT
        ) && complaint.message.contains(PREFIX)
            && !complaint.message.contains(UNKNOWN)
            && !complaint.message.contains(TAKEN)
            && !complaint.message.contains(NO_UNNAMED);
        if is_stale || is_of_the_router {
            // Under new numbers they are prepared anew, wherever they are used next.
            self.server.is_spoiled = true;
            for statement in self.statements.get().into_iter().flat_map(|own| own.all()) {
                statement.renumber(self.door.registry.statement_number());
            }
        }
        Ok(())
    }

    /// A setting has changed: it is the client's from here on, and the server's. Whether the client is not to hear it.
    fn reported(&mut self, body: &[u8]) -> bool {
        self.server.note_report(body);
        let Some((name, value)) = report(body).filter(|(name, _)| tracked(name).is_some()) else {
            return false;
        };
        if *self.is_resetting {
            self.server.settings = interned(Settings::reported(self.server.report()));
            return true;
        }
        let mut changed = Settings::clone(self.settings);
        changed.set(name, value);
        let changed = interned(changed);
        self.server.settings = changed.clone();
        *self.settings = changed;
        false
    }

    fn completed(&mut self, body: &[u8]) {
        // Most tags begin with another letter.
        if !matches!(body.first(), Some(b'D' | b'R')) {
            return;
        }
        if matches!(body, b"DISCARD ALL\0" | b"DEALLOCATE ALL\0") {
            self.server.prepared.clear();
            if let Some(own) = &mut self.statements.0 {
                own.clear();
            }
        }
        // RESET of one setting pins, so this is RESET ALL where no pin is.
        let is_pinned = self.pinned.is_some();
        if matches!(body, b"DISCARD ALL\0") || !is_pinned && matches!(body, b"RESET\0") {
            // Which came first is not known where it will be asked what was set.
            if !self.to_ask.is_empty() {
                *self.pinned = self.pinned.or(Some(PinReason::Set));
            }
            // What is not reported is what the server began with. The client began with its own, and is given
            // them again before it asks anything; that it has them is what it hears.
            self.server.settings = interned(Settings::reported(self.server.report()));
            *self.is_resetting = true;
            for (name, value) in self.begun_with.changed_from(self.settings) {
                messages::parameter_status(&mut self.reports, name, value);
            }
            *self.settings = self.begun_with.clone();
        }
    }
}

/// How many bytes of a message must be there.
fn needs(kind: u8, total: usize) -> usize {
    match kind {
        b'Z' | b'S' | b'E' | b'N' => total.min(MAX_READ_WHOLE),
        b'C' => total.min(TAG),
        _ => 5,
    }
}
