//! From the client to its server: when it is read, and where what it asks goes.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, ReadBuf};

use super::asked::{Scan, Stop};
use super::hoard::SHORT;
use super::{Buffers, Own, Pooled, Step, Turn, flush, write_on};
use crate::error::SessionError;
use crate::pool::registry::Registry;
use crate::protocol::exchange::Expect;
use crate::protocol::messages::{FLUSH, PROBE};
use crate::protocol::splice::{BadLength, Splice, head, text};
use crate::server::Server;
use crate::session::carry_over::look::PinReason;
use crate::session::stranded::{Next, Stranded};
use crate::topology::Cluster;

/// A message up to this long is looked at as a whole, bytes; of a longer one the beginning.
pub(super) const WHOLE: usize = 1 << 20;
/// An unnamed statement up to this long is remembered for a Bind that comes after its batch, bytes; with a longer one
/// the client keeps its server.
const MAX_UNNAMED: usize = 64 * 1024;
/// Answering in the place of a server, of a longer message the beginning is looked at, bytes.
const WHOLE_HERE: usize = 64 * 1024;

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
            // A message that was begun is finished: the server answers nothing before.
            let is_shared = !self.pinned.is_some_and(PinReason::is_from_the_start);
            let is_full = self.left == 0
                && (server.exchange.is_full()
                    || server.exchange.is_held()
                    || is_shared && server.exchange.may_drop()
                    || self.is_unread && is_held_between(&self.door.cluster, self.pinned, server));
            let flushed = flush(&mut server.stream, &mut server.to_server, cx);
            if !flushed.map_err(|_| Turn::ServerGone)? || is_full {
                return Ok(Step::Waits);
            }
        }
        let Buffers { input, out } = buffers;
        if !self.is_unread {
            let mut read = ReadBuf::new(input);
            match Pin::new(&mut self.client).poll_read(cx, &mut read) {
                Poll::Pending => return Ok(Step::Empty),
                Poll::Ready(Err(_)) => return Err(Turn::ClientLeft),
                Poll::Ready(Ok(())) => {}
            }
            let count = read.filled().len();
            let bytes = &input[..count];
            if bytes.is_empty() {
                return Err(Turn::ClientLeft);
            }
            self.door.tally.received.add_length(count);
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
        if let Err(turn) = self.probe_in_doubt(cx) {
            self.keep(bytes, 0, true);
            return Err(turn);
        }
        let mut bytes = bytes;
        if self.server.is_none() {
            if bytes.first() == Some(&b'C') {
                bytes = &bytes[self.close_here(bytes, out, cx)?..];
            }
            match bytes {
                [] => return Ok(()),
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

    /// Finds out whether one more answer comes of a COPY that has failed, so that the server is anybody's again.
    pub(super) fn probe_in_doubt(&mut self, cx: &mut Context<'_>) -> Result<(), Turn> {
        if self.left > 0 || self.pinned == Some(PinReason::Replication) {
            return Ok(());
        }
        let Some(server) = self.server.as_mut() else {
            return Ok(());
        };
        let server: &mut Server = server;
        if server.exchange.is_in_doubt() {
            server.exchange.sent(Expect::Probe);
            server.to_server.push(PROBE);
            let flushed = flush(&mut server.stream, &mut server.to_server, cx);
            flushed.map_err(|_| Turn::ServerGone)?;
        }
        Ok(())
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
        self.note_asked();
        let Some(server) = &mut self.server else {
            return Ok(());
        };
        let server: &mut Server = server;
        let mut scan = Scan {
            limit: self.door.limit,
            registry: &self.door.registry,
            tally: &self.door.tally,
            server,
            statements: &mut self.statements,
            left: &mut self.left,
            pinned: &mut self.pinned,
            to_ask: &mut self.to_ask,
            has_unnamed: &mut self.has_unnamed,
            executed: &mut self.executed,
            unnamed: None,
            has_flushed: false,
            hoard: &mut self.hoard,
            cluster: &self.door.cluster,
        };
        let mut splice = Splice::new(bytes, out);
        let scanned = scan.scan(bytes, &mut splice);
        let (end, stop) = match scanned {
            Ok((end, stop)) => (end, stop),
            Err(error) => return Err(Turn::Over(error)),
        };
        match scan.unnamed {
            None => {}
            Some((from, to)) if to - from <= MAX_UNNAMED => {
                scan.statements.get_mut().unnamed = Some(bytes[from..to].into());
            }
            Some(_) => *scan.pinned = scan.pinned.or(Some(PinReason::LongText)),
        }
        let has_flushed = scan.has_flushed;
        let onwards = splice.finish(end);
        let written = write_on(&mut server.stream, &mut server.to_server, onwards, cx);
        // What is left of the bytes is the client's, whatever has become of its server.
        if !matches!(stop, Stop::Need(need) if need > SHORT) {
            self.hoard = None;
        }
        match stop {
            Stop::End => {}
            Stop::Need(need) => self.keep(&bytes[end..], need, false),
            Stop::Later => self.keep(&bytes[end..], 0, true),
            Stop::Terminate => return Err(Turn::ClientLeft),
        }
        written.map_err(|_| Turn::ServerGone)?;
        self.settle(has_flushed, out, cx)?;
        // Something that is answered by nothing, and nothing else, needs no server any longer.
        self.release_where_free(cx)
    }

    /// Writes what the client is owed, where the server has nothing to say before it.
    fn settle(
        &mut self,
        has_flushed: bool,
        out: &mut Vec<u8>,
        cx: &mut Context<'_>,
    ) -> Result<(), Turn> {
        let Some(server) = &mut self.server else {
            return Ok(());
        };
        let server: &mut Server = server;
        let is_shared = !self.pinned.is_some_and(PinReason::is_from_the_start);
        let is_full = server.exchange.is_full() || is_shared && server.exchange.may_drop();
        // Within a message of the server it is written at the end of that.
        if (has_flushed || is_full) && server.inbound.left == 0 && server.exchange.owes() {
            out.clear();
            self.statements.confirm(server.exchange.settle(out));
            let told = write_on(&mut self.client, &mut self.to_client, out, cx);
            told.map_err(|_| Turn::ClientLeft)?;
        }
        if is_full && self.left == 0 {
            // The client is not read before some of it is answered, and the server may wait for a Sync.
            let asked = write_on(&mut server.stream, &mut server.to_server, FLUSH, cx);
            asked.map_err(|_| Turn::ServerGone)?;
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
        self.answers += 1;
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
            if rest.len() < total && total <= WHOLE_HERE {
                break;
            }
            let body = &rest[5..total.min(rest.len())];
            let told = stand_in(
                stranded,
                kind,
                body,
                &mut self.statements,
                &self.door.registry,
                out,
            );
            if told == Next::Over {
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

/// Whether a planned change of leader lets no more batch follow those that are not answered yet: a client that always has the
/// next one at hand would never give its server back. What goes to a replica is no matter of the change.
pub(super) fn is_held_between(
    cluster: &Cluster,
    pinned: Option<PinReason>,
    server: &Server,
) -> bool {
    // In a long pipeline this is asked for every message: what costs least comes first.
    pinned.is_none()
        && server.exchange.has_ended_a_batch()
        && cluster.holds(server.way.lane)
        && server.exchange.is_answered_in_any_case()
}

/// Answers one message in the place of a server, and keeps the names that are given and taken away by it.
fn stand_in(
    stranded: &mut Stranded,
    kind: u8,
    body: &[u8],
    own: &mut Own,
    registry: &Registry,
    out: &mut Vec<u8>,
) -> Next {
    if !stranded.listens() {
        return stranded.answer(kind, body, out);
    }
    match (kind, body) {
        (b'B', body) => {
            let named = text(body).and_then(|(_, rest)| text(rest));
            let named = named.filter(|(name, _)| !name.is_empty());
            let known = named.and_then(|(name, _)| own.get()?.find(name));
            if let Some(known) = known {
                stranded.binds(known.look.only_ends);
            }
        }
        (b'C', [b'S', name @ .., 0]) => {
            own.get_mut().name(name, None);
        }
        _ => {}
    }
    let next = stranded.answer(kind, body, out);
    if let (b'P', Some((name, tail))) = (kind, text(body))
        && !name.is_empty()
        && stranded.has_end_at_hand()
    {
        let kept = own.keep(name, tail, registry);
        own.get_mut().name(name, kept);
    }
    next
}

pub(super) fn bad_length(bad: BadLength) -> SessionError {
    SessionError::BadMessage {
        kind: char::from(bad.kind),
        length: bad.length,
    }
}
