//! `DEALLOCATE` of a statement that the router keeps for its client: the server has it under another name, or not at all.

use std::ops::Range;

use super::Scan;
use crate::error::SessionError;
use crate::protocol::exchange::{Act, Expect};
use crate::protocol::messages::frame;
use crate::protocol::splice::{Splice, text};
use crate::session::carry_over::deallocate::{
    OF_STAND_IN, OF_UNKNOWN, STAND_IN, STATEMENT_STAND_IN, deallocated,
};
use crate::session::carry_over::is_reserved;

impl Scan<'_> {
    /// A statement of the client is taken away by a simple query.
    pub(super) fn deallocate(
        &mut self,
        name: &[u8],
        at: usize,
        message: &[u8],
        splice: &mut Splice<'_>,
    ) {
        let is_skipping = self.server.exchange.is_skipping();
        let is_own = self.statements.get().and_then(|own| own.find(name));
        let (expect, instead) = match is_own {
            Some(_) if !is_skipping => {
                self.statements.get_mut().rename(name, None);
                (Expect::Deallocate, Some(STAND_IN))
            }
            Some(_) | None if is_reserved(name) => (Expect::Query(Act::NOTHING), Some(OF_UNKNOWN)),
            Some(_) | None => (Expect::Query(Act::NOTHING), None),
        };
        if let Some(text) = instead {
            frame(splice.replace(at, at + message.len()), b'Q', |body| {
                body.extend_from_slice(text);
            });
        }
        self.server.exchange.sent(expect);
    }

    /// An unnamed statement that takes one of the client's away; `false` if it is none. In its place the server
    /// prepares the same of a statement that is made for that, so whatever answers it is PostgreSQL's own. The name
    /// goes when it is executed.
    pub(super) fn parse_deallocate(
        &mut self,
        tail: &[u8],
        at: Range<usize>,
        splice: &mut Splice<'_>,
    ) -> bool {
        let Some((sql, types)) = text(tail) else {
            return false;
        };
        let Some(gone) = deallocated(sql) else {
            return false;
        };
        let own = self.statements.get();
        let is_own = own.is_some_and(|own| own.find(&gone).is_some());
        if !is_own && !is_reserved(&gone) {
            return false;
        }
        let out = splice.replace(at.start, at.end);
        self.server.prepared.note_other();
        if is_own {
            // One that was never executed may be there still; to close what is not there is no error.
            frame(out, b'C', |body| {
                body.push(b'S');
                body.extend_from_slice(STATEMENT_STAND_IN);
            });
            frame(out, b'P', |body| {
                body.extend_from_slice(STATEMENT_STAND_IN);
                body.extend_from_slice(&[0, 0, 0]);
            });
            let (statement, is_hidden) = (0, true);
            let talk = &mut self.server.exchange;
            talk.sent(Expect::Close {
                statement,
                is_hidden,
            });
            talk.sent(Expect::Parse {
                statement,
                is_hidden,
            });
        }
        frame(out, b'P', |body| {
            body.push(0);
            body.extend_from_slice(if is_own { OF_STAND_IN } else { OF_UNKNOWN });
            body.extend_from_slice(types);
        });
        // What it is replaced by leaves nothing behind.
        self.parse_as_it_is(b"", b"", true);
        if is_own {
            self.executed.takes_away(&gone);
        }
        true
    }

    /// Executes a portal, which may take a statement of the client away.
    pub(super) fn execute(&mut self, body: &[u8]) -> Result<(), SessionError> {
        let portal = text(body).map(|(name, _)| name);
        let may = portal == Some(b"") && !self.server.exchange.is_skipping();
        let gone = may.then(|| self.executed.taken_away()).flatten();
        let expect = match gone {
            Some(gone) => {
                self.statements.get_mut().rename(&gone, None);
                Expect::ExecuteDeallocate
            }
            None => {
                let act = portal.map(|name| self.executed.portal(name));
                Expect::Execute(act.unwrap_or(Act::UNKNOWN))
            }
        };
        self.server.exchange.sent(expect);
        Ok(())
    }
}
