//! From the client to its server: what is asked, and what of it must be changed on the way.

use std::pin::Pin;
use std::sync::{Arc, PoisonError};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, ReadBuf};

use super::{Buffers, Own, Pooled, STATEMENTS, Step, Turn, flush, write_on};
use crate::error::SessionError;
use crate::pool::registry::Registry;
use crate::protocol::exchange::Expect;
use crate::protocol::messages::frame;
use crate::protocol::splice::{BadLength, Splice, head, text};
use crate::server::Server;
use crate::session::carry_over::look::{Look, PinReason, look};
use crate::session::carry_over::{NO_UNNAMED, Statement, UNKNOWN, is_reserved, server_name};
use crate::session::stranded::Next;

/// A message up to this long is looked at as a whole, bytes; of a longer one the beginning.
const WHOLE: usize = 1 << 20;
/// The longest message of a kind that carries no data, bytes: PostgreSQL's `PQ_SMALL_MESSAGE_LIMIT`.
const SMALL: usize = 10_000;
/// Names in a Bind must be in its first bytes.
const NAMES: usize = 4096;

impl Pooled {
    pub(super) fn poll_client(
        &mut self,
        cx: &mut Context<'_>,
        buffers: &mut Buffers,
    ) -> Result<Step, Turn> {
        // Who does not read its answers is not asked for more.
        if !self.poll_flush(cx)? {
            return Ok(Step::Waits);
        }
        if let Some(server) = &mut self.server {
            let server: &mut Server = server;
            let flushed = flush(&mut server.stream, &mut server.to_server, cx);
            if !flushed.map_err(|_| Turn::ServerGone)? || server.exchange.is_full() {
                return Ok(Step::Waits);
            }
        }
        let Buffers { input, out } = buffers;
        if !self.is_unread {
            let mut read = ReadBuf::new(input);
            match Pin::new(&mut self.client).poll_read(cx, &mut read) {
                Poll::Pending => return Ok(Step::Waits),
                Poll::Ready(Err(_)) => return Err(Turn::ClientLeft),
                Poll::Ready(Ok(())) => {}
            }
            let count = read.filled().len();
            let bytes = &input[..count];
            if bytes.is_empty() {
                return Err(Turn::ClientLeft);
            }
            if self.carry.is_empty() {
                self.take(bytes, out, cx)?;
                return Ok(Step::Moved);
            }
            self.carry.extend_from_slice(bytes);
            if self.carry.len() < self.need {
                return Ok(Step::Moved);
            }
        }
        self.is_unread = false;
        let bytes = std::mem::take(&mut self.carry);
        self.take(&bytes, out, cx)?;
        Ok(Step::Moved)
    }

    /// Deals with bytes of the client; keeps what cannot be dealt with yet.
    fn take(&mut self, bytes: &[u8], out: &mut Vec<u8>, cx: &mut Context<'_>) -> Result<(), Turn> {
        if self.stranded.is_some() || self.discards {
            return self.answer_here(bytes, out, cx);
        }
        if self.server.is_none() {
            match bytes {
                [b'X', ..] => return Err(Turn::ClientLeft),
                _ if bytes.len() < 5 => {
                    self.keep(bytes, 5, false);
                    return Ok(());
                }
                _ => self.quick_server(cx),
            }
            if self.server.is_none() {
                self.keep(bytes, 0, true);
                return Err(Turn::NeedServer);
            }
        }
        if !self.has_own_settings() {
            self.keep(bytes, 0, true);
            return Err(Turn::NeedSettings);
        }
        self.pass_on(bytes, out, cx)
    }

    fn keep(&mut self, bytes: &[u8], need: usize, is_unread: bool) {
        self.carry = bytes.to_vec();
        self.need = need;
        self.is_unread = is_unread;
    }

    fn has_own_settings(&mut self) -> bool {
        let Some(server) = &mut self.server else {
            return false;
        };
        if Arc::ptr_eq(&server.settings, &self.settings) {
            return true;
        }
        let is_same = server.settings == self.settings;
        if is_same {
            server.settings = self.settings.clone();
        }
        // What was begun is finished under the settings it was begun with.
        is_same || !server.exchange.is_idle()
    }

    fn pass_on(
        &mut self,
        bytes: &[u8],
        out: &mut Vec<u8>,
        cx: &mut Context<'_>,
    ) -> Result<(), Turn> {
        let Some(server) = &mut self.server else {
            return Ok(());
        };
        let server: &mut Server = server;
        let mut scan = Scan {
            limit: self.door.limit,
            registry: &self.door.registry,
            server,
            statements: &mut self.statements,
            left: &mut self.left,
            pinned: &mut self.pinned,
            has_unnamed: &mut self.has_unnamed,
            unnamed: None,
            has_flushed: false,
        };
        let mut splice = Splice::new(bytes, out);
        let scanned = scan.scan(bytes, &mut splice);
        let (end, stop) = match scanned {
            Ok((end, stop)) => (end, stop),
            Err(error) => return Err(Turn::Over(error)),
        };
        if let Some((from, to)) = scan.unnamed {
            scan.statements.get_mut().unnamed = Some(bytes[from..to].into());
        }
        let has_flushed = scan.has_flushed;
        let onwards = splice.finish(end);
        let written = write_on(&mut server.stream, &mut server.to_server, onwards, cx);
        written.map_err(|_| Turn::ServerGone)?;
        if has_flushed && server.exchange.only_owes() {
            // The server has nothing to say to this, and the client waits for it.
            out.clear();
            server.exchange.settle(out);
            let told = write_on(&mut self.client, &mut self.to_client, out, cx);
            told.map_err(|_| Turn::ClientLeft)?;
        }
        match stop {
            Stop::End => {}
            Stop::Need(need) => self.keep(&bytes[end..], need, false),
            Stop::Terminate => return Err(Turn::ClientLeft),
        }
        // Something that is answered by nothing, and nothing else, needs no server any longer.
        if self.may_release() {
            self.release();
        }
        Ok(())
    }

    /// Answers in the place of a server that was lost.
    fn answer_here(
        &mut self,
        bytes: &[u8],
        out: &mut Vec<u8>,
        cx: &mut Context<'_>,
    ) -> Result<(), Turn> {
        out.clear();
        let mut at = 0;
        let mut rest_is_served = false;
        while at < bytes.len() {
            if self.left > 0 {
                let step = self.left.min(bytes.len() - at);
                self.left -= step;
                at += step;
                continue;
            }
            self.discards = false;
            let Some(stranded) = &mut self.stranded else {
                rest_is_served = true;
                break;
            };
            let rest = &bytes[at..];
            let header = head(rest).map_err(|bad| Turn::Over(bad_length(bad)))?;
            let Some((kind, total)) = header else {
                break;
            };
            if kind == b'X' {
                return Err(Turn::ClientLeft);
            }
            if rest.len() < total && total <= WHOLE {
                break;
            }
            let body = &rest[5..total.min(rest.len())];
            if kind == b'B' {
                let named = text(body).and_then(|(_, rest)| text(rest));
                let named = named.filter(|(name, _)| !name.is_empty());
                let known = named.and_then(|(name, _)| self.statements.get()?.find(name));
                if let Some(known) = known {
                    stranded.binds(known.look.only_ends);
                }
            }
            if stranded.answer(kind, body, out) == Next::Over {
                self.stranded = None;
            }
            at += total.min(rest.len());
            self.left = total - total.min(rest.len());
            self.discards = self.left > 0;
        }
        let told = write_on(&mut self.client, &mut self.to_client, out, cx);
        told.map_err(|_| Turn::ClientLeft)?;
        if at < bytes.len() {
            self.keep(&bytes[at..], 0, rest_is_served);
        }
        Ok(())
    }
}

fn bad_length(bad: BadLength) -> SessionError {
    SessionError::BadMessage {
        kind: char::from(bad.kind),
        length: bad.length,
    }
}

/// Where a scan stopped.
enum Stop {
    /// At the end of the bytes.
    End,
    /// Before a message of which so many bytes must be there.
    Need(usize),
    /// Before the client's Terminate.
    Terminate,
}

/// One look over bytes of the client.
struct Scan<'a> {
    /// The most statements that are prepared on a server; 0: names go on as they are.
    limit: usize,
    registry: &'a Registry,
    server: &'a mut Server,
    statements: &'a mut Own,
    left: &'a mut usize,
    pinned: &'a mut Option<PinReason>,
    has_unnamed: &'a mut bool,
    /// Where in the bytes the unnamed statement stands that nothing in them has bound.
    unnamed: Option<(usize, usize)>,
    has_flushed: bool,
}

impl Scan<'_> {
    /// Looks at every message. Returns how far it came.
    fn scan(
        &mut self,
        bytes: &[u8],
        splice: &mut Splice<'_>,
    ) -> Result<(usize, Stop), SessionError> {
        let mut at = 0;
        while at < bytes.len() {
            if *self.left > 0 {
                let step = (*self.left).min(bytes.len() - at);
                *self.left -= step;
                at += step;
                continue;
            }
            let rest = &bytes[at..];
            let Some((kind, total)) = head(rest).map_err(bad_length)? else {
                return Ok((at, Stop::Need(5)));
            };
            let have = total.min(rest.len());
            let need = self.needs(kind, total, &rest[5..have])?;
            if let Some(need) = need.filter(|need| rest.len() < *need) {
                return Ok((at, Stop::Need(need)));
            }
            if kind == b'X' {
                return Ok((at, Stop::Terminate));
            }
            self.message(kind, total, at, &rest[..have], splice)?;
            *self.left = total - have;
            at += have;
        }
        Ok((at, Stop::End))
    }

    /// How many bytes of a message must be there before it can be dealt with; `None`: its header is enough.
    fn needs(&self, kind: u8, total: usize, body: &[u8]) -> Result<Option<usize>, SessionError> {
        let is_mapped = self.is_mapping();
        let is_looked_at = self.pinned.is_none();
        let bad = SessionError::BadMessage {
            kind: char::from(kind),
            length: u32::try_from(total - 1).unwrap_or(u32::MAX),
        };
        match kind {
            b'Q' if is_looked_at && total <= WHOLE => Ok(Some(total)),
            b'P' if (is_looked_at || is_mapped) && total <= WHOLE => Ok(Some(total)),
            b'Q' | b'P' | b'F' | b'd' => Ok(None),
            b'B' if is_mapped => {
                let names = text(body).and_then(|(_, rest)| text(rest));
                match names {
                    Some(_) => Ok(None),
                    None if body.len() >= NAMES || body.len() + 5 >= total => Err(bad),
                    None => Ok(Some(total.min(body.len() + 6))),
                }
            }
            b'B' => Ok(None),
            b'D' | b'C' | b'E' | b'H' | b'S' | b'X' | b'c' | b'f' if total <= SMALL => {
                Ok(Some(total))
            }
            _ => Err(bad),
        }
    }

    fn is_mapping(&self) -> bool {
        self.limit > 0 && *self.pinned != Some(PinReason::SessionMode)
    }

    /// Deals with one message, of which at least what it needs is there.
    fn message(
        &mut self,
        kind: u8,
        total: usize,
        at: usize,
        message: &[u8],
        splice: &mut Splice<'_>,
    ) -> Result<(), SessionError> {
        let body = &message[5..];
        let is_mapping = self.is_mapping();
        let talk = &mut self.server.exchange;
        match kind {
            b'Q' => {
                // A simple query ends the unnamed statement.
                *self.has_unnamed = false;
                self.unnamed = None;
                let seen = self.look(body, total == message.len());
                self.server.exchange.asked(seen.begins, seen.ends);
                self.server.exchange.sent(Expect::Query);
            }
            b'P' => return self.parse(total, at, message, splice),
            b'B' => return self.bind(total, at, message, splice),
            b'D' => match body {
                [b'S', name @ ..] if is_mapping => {
                    return self.describe(at, message, name, splice);
                }
                _ => talk.sent(Expect::Describe),
            },
            b'C' => match body {
                [b'S', name @ .., 0] if is_mapping && !name.is_empty() => {
                    let is_known = self.statements.get_mut().close(name);
                    if is_known && !talk.is_skipping() {
                        splice.replace(at, at + message.len());
                        talk.sent(Expect::OwedClose);
                    } else {
                        talk.sent(Expect::Close { is_hidden: false });
                    }
                }
                _ => talk.sent(Expect::Close { is_hidden: false }),
            },
            b'E' => talk.sent(Expect::Execute),
            b'S' => talk.sent(Expect::Sync),
            b'F' => talk.sent(Expect::Function),
            b'c' | b'f' => talk.sent(Expect::CopyEnd),
            b'H' => self.has_flushed = true,
            _ => {}
        }
        Ok(())
    }

    /// Looks at a text, and pins the client where it leaves something behind.
    fn look(&mut self, text: &[u8], is_whole: bool) -> Look {
        let text = text.split(|b| *b == 0).next().unwrap_or_default();
        if *self.pinned == Some(PinReason::SessionMode) {
            return Look::default();
        }
        let seen = look(text);
        if !is_whole && !is_plain(text) {
            *self.pinned = self.pinned.or(Some(PinReason::LongText));
        }
        *self.pinned = self.pinned.or(seen.pins);
        seen
    }

    fn parse(
        &mut self,
        total: usize,
        at: usize,
        message: &[u8],
        splice: &mut Splice<'_>,
    ) -> Result<(), SessionError> {
        let Some((name, tail)) = text(&message[5..]) else {
            return self.unreadable(b'P', total);
        };
        let is_whole = total == message.len();
        let is_skipping = self.server.exchange.is_skipping();
        if name.is_empty() || !self.is_mapping() || !is_whole || is_skipping {
            let seen = self.look(tail, is_whole);
            self.server.exchange.asked(seen.begins, seen.ends);
            self.server.exchange.sent(Expect::Parse {
                statement: 0,
                is_hidden: false,
            });
            if name.is_empty() && !is_skipping {
                *self.has_unnamed = true;
                // A longer one is bound in its own batch or not at all.
                self.unnamed = is_whole.then_some((at + 6, at + message.len()));
                if let Some(own) = &mut self.statements.0 {
                    own.unnamed = None;
                }
            }
            return Ok(());
        }
        let registry = self.registry;
        let statement = {
            let mut shared = STATEMENTS.lock().unwrap_or_else(PoisonError::into_inner);
            shared.intern(tail, || registry.statement_number())
        };
        *self.pinned = self.pinned.or(statement.look.pins);
        if !self.statements.get_mut().name(name, statement.clone()) {
            return Err(SessionError::TooMuch(
                "too many prepared statements in one session",
            ));
        }
        self.server
            .exchange
            .asked(statement.look.begins, statement.look.ends);
        let out = splice.replace(at, at + message.len());
        if self.server.prepared.touch(statement.number()) {
            self.server.exchange.sent(Expect::OwedParse);
        } else {
            self.prepare(&statement, false, out);
        }
        Ok(())
    }

    /// Writes a Parse, after the Close of a statement that has to give way.
    fn prepare(&mut self, statement: &Statement, is_hidden: bool, out: &mut Vec<u8>) {
        let number = statement.number();
        if let Some(old) = self.server.prepared.add(number, self.limit) {
            frame(out, b'C', |body| {
                body.push(b'S');
                server_name(body, old);
                body.push(0);
            });
            self.server.exchange.sent(Expect::Close { is_hidden: true });
        }
        frame(out, b'P', |body| {
            server_name(body, number);
            body.push(0);
            body.extend_from_slice(statement.tail());
        });
        self.server.exchange.sent(Expect::Parse {
            statement: number,
            is_hidden,
        });
    }

    /// Makes sure that a named or unnamed statement is on the server. The name it has there, if another.
    fn provide(&mut self, name: &[u8], at: usize, splice: &mut Splice<'_>) -> Option<Vec<u8>> {
        if name.is_empty() {
            self.unnamed = None;
            if *self.has_unnamed {
                return None;
            }
            let saved = self.statements.get().and_then(|own| own.unnamed.clone());
            let Some(tail) = saved else {
                // Another client's may be there.
                return Some(NO_UNNAMED.as_bytes().to_vec());
            };
            frame(splice.replace(at, at), b'P', |body| {
                body.push(0);
                body.extend_from_slice(&tail);
            });
            *self.has_unnamed = true;
            self.server.exchange.sent(Expect::Parse {
                statement: 0,
                is_hidden: true,
            });
            return None;
        }
        let known = self
            .statements
            .get()
            .and_then(|own| own.find(name))
            .cloned();
        let Some(statement) = known else {
            // PostgreSQL says that there is no such one; it must not find the router's.
            return is_reserved(name).then(|| UNKNOWN.as_bytes().to_vec());
        };
        let (begins, ends) = (statement.look.begins, statement.look.ends);
        self.server.exchange.asked(begins, ends);
        *self.pinned = self.pinned.or(statement.look.pins);
        if !self.server.prepared.touch(statement.number()) {
            let out = splice.replace(at, at);
            self.prepare(&statement, true, out);
        }
        let mut own = Vec::with_capacity(24);
        server_name(&mut own, statement.number());
        Some(own)
    }

    fn bind(
        &mut self,
        total: usize,
        at: usize,
        message: &[u8],
        splice: &mut Splice<'_>,
    ) -> Result<(), SessionError> {
        if !self.is_mapping() || self.server.exchange.is_skipping() {
            self.server.exchange.sent(Expect::Bind);
            return Ok(());
        }
        let names = text(&message[5..]).and_then(|(portal, rest)| Some((portal, text(rest)?)));
        let Some((portal, (name, _))) = names else {
            return self.unreadable(b'B', total);
        };
        if let Some(own) = self.provide(name, at, splice) {
            let length = u32::try_from(total - 1 - name.len() + own.len());
            let Ok(length) = length else {
                return self.unreadable(b'B', total);
            };
            let after = at + 5 + portal.len() + 1 + name.len();
            let out = splice.replace(at, after);
            out.push(b'B');
            out.extend_from_slice(&length.to_be_bytes());
            out.extend_from_slice(portal);
            out.push(0);
            out.extend_from_slice(&own);
        }
        self.server.exchange.sent(Expect::Bind);
        Ok(())
    }

    fn describe(
        &mut self,
        at: usize,
        message: &[u8],
        name: &[u8],
        splice: &mut Splice<'_>,
    ) -> Result<(), SessionError> {
        let name = name.strip_suffix(b"\0").unwrap_or(name);
        if !self.server.exchange.is_skipping()
            && let Some(own) = self.describes(name, at, splice)
        {
            frame(splice.replace(at, at + message.len()), b'D', |body| {
                body.push(b'S');
                body.extend_from_slice(&own);
                body.push(0);
            });
        }
        self.server.exchange.sent(Expect::Describe);
        Ok(())
    }

    /// As [`Scan::provide`]; a description binds nothing, so an unnamed statement stays to be remembered.
    fn describes(&mut self, name: &[u8], at: usize, splice: &mut Splice<'_>) -> Option<Vec<u8>> {
        let unnamed = self.unnamed;
        let own = self.provide(name, at, splice);
        self.unnamed = unnamed;
        own
    }

    fn unreadable(&self, kind: u8, total: usize) -> Result<(), SessionError> {
        Err(SessionError::BadMessage {
            kind: char::from(kind),
            length: u32::try_from(total - 1).unwrap_or(u32::MAX),
        })
    }
}

/// Whether the beginning of a long text promises one statement of data.
fn is_plain(text: &[u8]) -> bool {
    let text = text.trim_ascii_start();
    let is_data = [
        &b"insert"[..],
        b"select",
        b"update",
        b"delete",
        b"with",
        b"values",
        b"copy",
    ]
    .iter()
    .any(|word| {
        text.get(..word.len())
            .is_some_and(|w| w.eq_ignore_ascii_case(word))
    });
    is_data && !look(text).is_several
}
