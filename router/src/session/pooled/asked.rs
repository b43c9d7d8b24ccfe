//! One look over bytes of a client: what is asked, and what of it must be changed on the way.

use super::Own;
use super::client_side::{WHOLE, bad_length, is_held_between};
use super::hoard::Hoard;
use crate::error::SessionError;
use crate::pool::registry::Registry;
use crate::protocol::exchange::{Act, Expect, Status};
use crate::protocol::messages::frame;
use crate::protocol::settings::SettingsSeen;
use crate::protocol::splice::{Splice, head, text};
use crate::server::Server;
use crate::session::carry_over::deallocate::deallocated;
use crate::session::carry_over::executed::Executed;
use crate::session::carry_over::look::{Look, PinReason, look};
use crate::session::carry_over::{NO_UNNAMED, Statement, TAKEN, UNKNOWN, is_reserved, server_name};
use crate::tally::Tally;
use crate::topology::Cluster;

mod deallocate;

/// The longest message of a kind that carries no data, bytes: PostgreSQL's `PQ_SMALL_MESSAGE_LIMIT`.
const SMALL: usize = 10_000;
/// Names in a Bind must be in its first bytes.
const NAMES: usize = 4096;
/// When so much is to go to the server at once, bytes, the rest waits: a Bind of a few bytes may have to be preceded
/// by the text of its statement.
const ENOUGH: usize = 256 * 1024;

/// A Close of the client's own.
const CLOSE: Expect = Expect::Close {
    statement: 0,
    is_hidden: false,
};

/// Where a scan stopped.
pub(super) enum Stop {
    /// At the end of the bytes.
    End,
    /// Before a message of which so many bytes must be there.
    Need(usize),
    /// Before the client's Terminate.
    Terminate,
    /// Before a message that is to wait for what goes to the server, or comes from it.
    Later,
}

/// One look over bytes of the client.
pub(super) struct Scan<'a> {
    /// The most statements that are prepared on a server; 0: names go on as they are.
    pub(super) limit: usize,
    pub(super) registry: &'a Registry,
    pub(super) tally: &'a Tally,
    pub(super) server: &'a mut Server,
    pub(super) statements: &'a mut Own,
    pub(super) left: &'a mut usize,
    pub(super) pinned: &'a mut Option<PinReason>,
    pub(super) to_ask: &'a mut SettingsSeen,
    pub(super) has_unnamed: &'a mut bool,
    pub(super) executed: &'a mut Executed,
    /// Where in the bytes the unnamed statement stands that nothing in them has bound.
    pub(super) unnamed: Option<(usize, usize)>,
    pub(super) has_flushed: bool,
    pub(super) hoard: &'a mut Option<Hoard>,
    /// Whose leader may be about to change.
    pub(super) cluster: &'a Cluster,
}

impl Scan<'_> {
    /// Looks at every message. Returns how far it came.
    pub(super) fn scan(
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
            if self.must_wait(splice) {
                return Ok((at, Stop::Later));
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
            let is_of_copy = matches!(kind, b'd' | b'c' | b'f' | b'S' | b'H');
            let talk = &self.server.exchange;
            let is_uncertain = !is_of_copy && talk.is_copy_uncertain()
                || self.refers_to_uncertain(kind, &rest[5..have]);
            if is_uncertain && !talk.is_copying() {
                self.server.exchange.hold();
                return Ok((at, Stop::Later));
            }
            self.message(kind, total, at, &rest[..have], splice)?;
            *self.left = total - have;
            at += have;
        }
        Ok((at, Stop::End))
    }

    /// Whether the next message is not to be looked at yet. What may drop every statement is waited for: whether what
    /// follows has to be prepared anew depends on what becomes of it.
    fn must_wait(&mut self, splice: &Splice<'_>) -> bool {
        splice.written() >= ENOUGH
            || self.is_shared() && self.server.exchange.may_drop()
            || is_held_between(self.cluster, *self.pinned, self.server)
    }

    /// Whether a message is about a statement that an earlier batch, which may fail yet, has changed.
    fn refers_to_uncertain(&self, kind: u8, body: &[u8]) -> bool {
        let talk = &self.server.exchange;
        let (named, unnamed) = (
            talk.are_statements_uncertain(),
            talk.is_unnamed_uncertain() && *self.has_unnamed,
        );
        if !self.is_mapping() || talk.is_skipping() || !named && !unnamed {
            return false;
        }
        let is_one = |name: &[u8]| if name.is_empty() { unnamed } else { named };
        let first = text(body);
        match (kind, body) {
            (b'B', _) => {
                let name = first.and_then(|(_, rest)| text(rest));
                name.is_some_and(|(name, _)| is_one(name))
            }
            (b'P', _) => {
                let may_take_away =
                    |tail| text(tail).is_some_and(|(sql, _)| deallocated(sql).is_some());
                named && first.is_some_and(|(name, tail)| !name.is_empty() || may_take_away(tail))
            }
            (b'C' | b'D', [b'S', rest @ ..]) => text(rest).is_some_and(|(name, _)| is_one(name)),
            (b'Q', _) => named && first.is_some_and(|(sql, _)| deallocated(sql).is_some()),
            _ => false,
        }
    }

    /// How many bytes of a message must be there before it can be dealt with; `None`: its header is enough.
    fn needs(
        &mut self,
        kind: u8,
        total: usize,
        body: &[u8],
    ) -> Result<Option<usize>, SessionError> {
        let bad = SessionError::BadMessage {
            kind: char::from(kind),
            length: u32::try_from(total - 1).unwrap_or(u32::MAX),
        };
        match kind {
            b'Q' | b'P' if total <= WHOLE && Hoard::is_room(self.hoard, total) => Ok(Some(total)),
            b'Q' | b'P' | b'F' | b'd' => Ok(None),
            b'B' => {
                let names = text(body).and_then(|(_, rest)| text(rest));
                let is_all = body.len() >= NAMES || body.len() + 5 >= total;
                match names {
                    Some(_) => Ok(None),
                    None if is_all && self.is_mapping() => Err(bad),
                    // PostgreSQL judges it.
                    None if is_all => Ok(None),
                    None => Ok(Some(total.min(body.len() + 6))),
                }
            }
            b'D' | b'C' | b'E' | b'H' | b'S' | b'X' | b'c' | b'f' if total <= SMALL => {
                Ok(Some(total))
            }
            _ => Err(bad),
        }
    }

    fn is_mapping(&self) -> bool {
        self.limit > 0 && self.is_shared()
    }

    /// Whether the server is another client's in between.
    fn is_shared(&self) -> bool {
        !self.pinned.is_some_and(PinReason::is_from_the_start)
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
            b'Q' => self.query(total, at, message, splice),
            b'P' => return self.parse(total, at, message, splice),
            b'B' => return self.bind(total, at, message, splice),
            b'D' => match body {
                [b'S', name @ ..] if is_mapping => {
                    return self.describe(at, message, name, splice);
                }
                _ => {
                    let (is_statement, act) = match body {
                        [b'S', name @ .., 0] => (true, self.does(name)),
                        [b'P', name @ .., 0] => (false, self.executed.portal(name)),
                        other => (other.first() == Some(&b'S'), Act::UNKNOWN),
                    };
                    let block = act.block;
                    self.server.exchange.sent(Expect::Describe {
                        is_statement,
                        block,
                    });
                }
            },
            b'C' => match body {
                [b'S', name @ .., 0] if is_mapping && !name.is_empty() => {
                    let own = self.statements.get_mut();
                    if talk.is_skipping() {
                        // The server ignores it.
                    } else if own.find(name).is_some() {
                        own.rename(name, None);
                        splice.replace(at, at + message.len());
                        talk.sent(Expect::OwedClose);
                    } else if is_reserved(name) {
                        // It may be another client's.
                        frame(splice.replace(at, at + message.len()), b'C', |body| {
                            body.push(b'S');
                            body.extend_from_slice(UNKNOWN.as_bytes());
                            body.push(0);
                        });
                        talk.sent(CLOSE);
                    } else {
                        talk.sent(CLOSE);
                    }
                }
                _ => talk.sent(CLOSE),
            },
            b'E' => {
                return self.execute(body);
            }
            b'S' => talk.sent(Expect::Sync),
            b'F' => talk.sent(Expect::Function),
            b'c' | b'f' => talk.sent(Expect::CopyEnd),
            b'H' => self.has_flushed = true,
            _ => {}
        }
        Ok(())
    }

    fn query(&mut self, total: usize, at: usize, message: &[u8], splice: &mut Splice<'_>) {
        // A simple query ends the unnamed statement.
        *self.has_unnamed = false;
        self.unnamed = None;
        self.executed.doubt_unnamed();
        let body = &message[5..];
        let is_whole = total == message.len();
        let sql = body.split(|b| *b == 0).next();
        let own = sql.filter(|_| is_whole && self.is_mapping());
        match own.and_then(deallocated) {
            Some(name) => self.deallocate(&name, at, message, splice),
            None => {
                let act = self.look(body, is_whole);
                self.server.exchange.sent(Expect::Query(act));
            }
        }
    }

    /// Looks at a text; pins the client where it leaves something behind, or may, that does not move.
    fn look(&mut self, text: &[u8], is_whole: bool) -> Act {
        if !is_whole {
            *self.pinned = self.pinned.or(Some(PinReason::LongText));
            return Act::UNKNOWN;
        }
        let seen = look(text.split(|b| *b == 0).next().unwrap_or_default());
        self.pin(&seen);
        seen.act()
    }

    fn pin(&mut self, seen: &Look) {
        // What it was before is not known where something else is done with it, or may be undone.
        let talk = &self.server.exchange;
        let is_alone = !seen.is_several && talk.status() == Status::Idle && talk.is_quiet();
        let resets = (seen.resets && !is_alone).then_some(PinReason::Set);
        if self.pinned.is_none() {
            *self.pinned = seen.pins.or(resets);
            let reported = &self.server.reported;
            self.to_ask
                .add(seen.sets.only(|name| !reported.contains_key(name)));
        }
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
        self.tally.client_parses.add(1);
        let is_whole = total == message.len();
        let is_skipping = self.server.exchange.is_skipping();
        let is_kept = !name.is_empty() && self.is_mapping() && is_whole && !is_skipping;
        let may_take_away = name.is_empty() && self.is_mapping() && is_whole && !is_skipping;
        if may_take_away && self.parse_deallocate(tail, at..at + message.len(), splice) {
            return Ok(());
        }
        if is_kept
            && self
                .statements
                .get()
                .is_some_and(|own| own.find(name).is_some())
        {
            self.parse_taken(tail, splice.replace(at, at + message.len()));
            return Ok(());
        }
        let registry = self.registry;
        let kept = is_kept.then(|| self.statements.keep(name, tail, registry));
        let Some(statement) = kept.flatten() else {
            self.parse_as_it_is(name, tail, is_whole);
            if name.is_empty() && is_whole && !is_skipping {
                self.unnamed = Some((at + 6, at + message.len()));
            }
            return Ok(());
        };
        self.pin(&statement.look);
        let named = Some(statement.clone());
        self.statements.get_mut().rename(name, named);
        let number = statement.number();
        let out = splice.replace(at, at + message.len());
        if !self.server.prepared.touch(number) {
            self.prepare(&statement, number, false, out);
        } else if self.server.exchange.may_have_failed() {
            // PostgreSQL is asked, for it refuses most texts then.
            self.close(number, out);
            self.prepare(&statement, number, false, out);
        } else {
            self.server.exchange.sent(Expect::OwedParse);
        }
        Ok(())
    }

    /// A Parse under a name that the client has given already. PostgreSQL says what it says of that, or of the text first,
    /// under a name that is surely taken: an empty statement has it.
    fn parse_taken(&mut self, tail: &[u8], out: &mut Vec<u8>) {
        self.server.prepared.note_other();
        frame(out, b'C', |body| {
            body.push(b'S');
            body.extend_from_slice(TAKEN.as_bytes());
            body.push(0);
        });
        self.server.exchange.sent(Expect::Close {
            statement: 0,
            is_hidden: true,
        });
        for (tail, is_hidden) in [(&b"\0\0\0"[..], true), (tail, false)] {
            frame(out, b'P', |body| {
                body.extend_from_slice(TAKEN.as_bytes());
                body.push(0);
                body.extend_from_slice(tail);
            });
            self.server.exchange.sent(Expect::Parse {
                statement: 0,
                is_hidden,
            });
        }
    }

    /// A Parse whose name the server gets to know. If it has one, it stays there: no other client may find it.
    fn parse_as_it_is(&mut self, name: &[u8], tail: &[u8], is_whole: bool) {
        self.tally.server_parses.add(1);
        self.server.prepared.note_other();
        let act = self.look(tail, is_whole);
        self.server.exchange.sent(Expect::Parse {
            statement: 0,
            is_hidden: false,
        });
        if self.server.exchange.is_skipping() {
            return;
        }
        self.executed.parsed(name, act);
        if name.is_empty() {
            *self.has_unnamed = true;
            self.unnamed = None;
            if let Some(own) = &mut self.statements.0 {
                own.unnamed = None;
            }
        } else {
            *self.pinned = self.pinned.or(Some(PinReason::Statement));
            if let Some(own) = &mut self.statements.0 {
                own.name(name, None);
            }
        }
    }

    /// Writes a Parse, after the Close of a statement that has to give way.
    fn prepare(&mut self, statement: &Statement, number: u32, is_hidden: bool, out: &mut Vec<u8>) {
        if let Some(old) = self.server.prepared.add(number, self.limit) {
            self.close(old, out);
        }
        self.tally.server_parses.add(1);
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

    fn close(&mut self, number: u32, out: &mut Vec<u8>) {
        frame(out, b'C', |body| {
            body.push(b'S');
            server_name(body, number);
            body.push(0);
        });
        self.server.exchange.sent(Expect::Close {
            statement: number,
            is_hidden: true,
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
            self.tally.server_parses.add(1);
            frame(splice.replace(at, at), b'P', |body| {
                body.push(0);
                body.extend_from_slice(&tail);
            });
            // What it sets is asked for again.
            self.look(&tail, true);
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
        self.pin(&statement.look);
        // Another core may give it another one meanwhile.
        let number = statement.number();
        if !self.server.prepared.touch(number) {
            let out = splice.replace(at, at);
            self.prepare(&statement, number, true, out);
        }
        let mut own = Vec::with_capacity(24);
        server_name(&mut own, number);
        Some(own)
    }

    /// What a statement of the client does.
    fn does(&self, name: &[u8]) -> Act {
        let mapped = self.statements.get().and_then(|own| own.find(name));
        match mapped {
            Some(statement) => statement.look.act(),
            None => self.executed.statement(name),
        }
    }

    fn bind(
        &mut self,
        total: usize,
        at: usize,
        message: &[u8],
        splice: &mut Splice<'_>,
    ) -> Result<(), SessionError> {
        let names = text(&message[5..]).and_then(|(portal, rest)| Some((portal, text(rest)?)));
        let is_mapping = self.is_mapping();
        self.tally.binds.add(1);
        let Some((portal, (name, _))) = names else {
            if is_mapping {
                return self.unreadable(b'B', total);
            }
            self.server.exchange.sent(Expect::Bind);
            return Ok(());
        };
        if self.server.exchange.is_skipping() {
            return Ok(());
        }
        self.executed.bound(portal, name, self.does(name));
        if !is_mapping {
            self.server.exchange.sent(Expect::Bind);
            return Ok(());
        }
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
        let block = self.does(name).block;
        self.server.exchange.sent(Expect::Describe {
            is_statement: true,
            block,
        });
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
