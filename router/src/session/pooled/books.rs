//! What is kept in the books of a session: whose its server is, what it has asked and how long that took. A transaction
//! of one request uses the two readings of the clock that the pool makes in any case; the numbers are this core's own.

use std::sync::Arc;

use trunkline_shared::cluster::Moment;
use trunkline_shared::service::clock;

use super::Pooled;
use crate::error::SessionError;
use crate::pool::Lease;
use crate::pool::registry::Mail;
use crate::protocol::exchange::Status;
use crate::roster::Told;

/// Since when a session is at what it is at.
#[derive(Debug, Default)]
pub(super) struct Books {
    /// A request is outstanding.
    asked_at: Option<Moment>,
    /// A transaction is open.
    begun_at: Option<Moment>,
    /// A server is its own.
    taken_at: Option<Moment>,
    /// The last ReadyForQuery.
    answered_at: Moment,
    /// What the roster was told last.
    told: Told,
}

impl Pooled {
    /// This server is the client's from here on.
    pub(super) fn lent(&mut self, lease: Lease) {
        lease.card.is_with(self.card.id);
        self.door.tally.assignments.add(1);
        self.server = Some(lease);
        self.is_seated = false;
    }

    /// The client has its server before it asks anything: its first request does not begin with the log-in.
    pub(super) fn note_taken(&mut self) {
        self.books.taken_at = self.server.as_ref().map(|server| server.since);
    }

    /// Bytes of the client go to its server.
    pub(super) fn note_asked(&mut self) {
        if self.books.asked_at.is_some() {
            return;
        }
        let Some(server) = &self.server else {
            return;
        };
        // One that was just taken needs no other look at the clock.
        let now = match self.books.taken_at {
            None => server.since,
            Some(_) => clock::now(),
        };
        server.card.is_asked(now);
        self.card.asks(now);
        self.books.asked_at = Some(now);
        self.books.begun_at.get_or_insert(now);
        self.books.taken_at.get_or_insert(now);
    }

    /// Answers came since these counts of answers and of ends of transactions.
    pub(super) fn note_answered(&mut self, (answers, ends): (u64, u64)) {
        if self.answers == answers {
            return;
        }
        let now = clock::now();
        let tally = &self.door.tally;
        self.books.answered_at = now;
        tally.queries.add(self.answers - answers);
        tally.transactions.add(self.ends - ends);
        let talk = self.server.as_ref().map(|server| &server.exchange);
        let is_quiet = talk.is_none_or(|talk| talk.is_quiet());
        if is_quiet && let Some(asked) = self.books.asked_at.take() {
            tally.query.note(now.since(asked));
        }
        if self.ends > ends
            && let Some(begun) = self.books.begun_at.take()
        {
            tally.transaction.note(now.since(begun));
            let is_open = !is_quiet || talk.is_some_and(|talk| talk.status() != Status::Idle);
            self.books.begun_at = is_open.then_some(now);
        }
        self.tell();
    }

    /// The server is not the client's any more. Returns a reading of the clock that may be a moment old.
    pub(super) fn note_returned(&mut self) -> Moment {
        let answered = self.books.answered_at;
        let taken = self.books.taken_at.take();
        if let Some(taken) = taken {
            self.door.tally.checkout.note(answered.since(taken));
        }
        self.books.asked_at = None;
        self.books.begun_at = None;
        match taken {
            Some(taken) if answered >= taken => answered,
            // It has answered nothing of what it was taken for.
            Some(_) | None => clock::now(),
        }
    }

    /// Tells the roster what has changed of what changes seldom.
    pub(super) fn tell(&mut self) {
        let statements = self.statements.get().map_or(0, |own| own.count());
        let told = &self.books.told;
        let is_known = told.pin == self.pinned
            && told.statements == statements
            && Arc::ptr_eq(&told.settings, &self.settings);
        if is_known {
            return;
        }
        self.books.told = Told {
            settings: self.settings.clone(),
            pin: self.pinned,
            statements,
        };
        self.card.tell(self.books.told.clone());
    }

    /// The end of the session, where its mail orders one.
    pub(super) fn ordered_end(&self, mail: &Mail) -> Option<SessionError> {
        let server = self.server.as_ref();
        let has_outstanding = server.is_some_and(|it| it.exchange.fate().has_outstanding());
        if let Some(kill) = mail.kill {
            return Some(SessionError::Killed {
                kill,
                has_outstanding,
            });
        }
        (mail.is_end && server.is_none()).then_some(SessionError::Ended {
            ending: crate::lanes::Ending::RouterStops,
            has_outstanding: false,
        })
    }
}
