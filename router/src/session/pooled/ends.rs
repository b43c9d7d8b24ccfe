//! How a client and its server part: by the client's leave, by the loss of the server, by the order of the
//! cluster.

use std::sync::Arc;
use std::time::Duration;

use socket2::SockRef;

use super::Pooled;
use super::door::interned;
use crate::error::{RequestError, SessionError};
use crate::lanes::{Ending, Notice};
use crate::pool::Lease;
use crate::protocol::exchange::{Exchange, Fate, Status};
use crate::protocol::settings::Settings;
use crate::session::carry_over::look::PinReason;
use crate::session::stranded::{Next, Stranded};

/// Takes every prepared statement of a server away.
pub(super) const DEALLOCATE_ALL: &str = "DEALLOCATE ALL";

impl Pooled {
    /// The client is gone, or says so. What it leaves on its server is cleaned up, if that is possible.
    pub(super) fn leave(&mut self) {
        self.note_returned();
        let Some(server) = self.server.take() else {
            return;
        };
        server.card.is_cleaned();
        let is_clean = server.exchange.is_quiet()
            && server.to_server.is_empty()
            && server.inbound.left == 0
            && server.inbound.carry.is_empty()
            && server.stream.is_empty()
            && self.left == 0;
        if !is_clean || self.pinned == Some(PinReason::Replication) {
            // Dropped: what was asked may run on there, and what it answers is nobody's.
            return;
        }
        let is_shared = self.pinned.is_none() && self.to_ask.is_empty();
        let reset = match (is_shared, self.door.terms.pool.server_reset_query.as_str()) {
            (true, _) => None,
            // Without a query that resets it, nobody else may have it.
            (false, "") => return,
            (false, query) => Some(query.to_owned()),
        };
        tokio::spawn(clean(server, reset));
    }

    /// The server closed, broke, or said something that cannot be.
    pub(super) fn server_gone(&mut self) -> Result<(), SessionError> {
        let Some(server) = &self.server else {
            return Ok(());
        };
        let member = server.way.member.clone();
        self.strand(|has_outstanding| SessionError::ServerLost {
            member: member.clone(),
            has_outstanding,
        })
    }

    /// The lane was cut: nothing more goes to the server.
    pub(super) fn cut(&mut self, notice: Notice) -> Result<(), SessionError> {
        let Some(server) = &self.server else {
            return Ok(());
        };
        // What the kernel still holds for the old member must not reach it: a reset, not a close.
        let _ = SockRef::from(server.stream.socket()).set_linger(Some(Duration::ZERO));
        let fate = server.exchange.fate();
        let ended = |has_outstanding| SessionError::Ended {
            ending: notice.ending,
            has_outstanding,
        };
        let outcome = match notice.ending {
            Ending::Lane(_) => self.strand(ended),
            // There will be no other server.
            Ending::RouterStops => Err(ended(fate.has_outstanding())),
        };
        let metrics = &self.door.listening.metrics;
        let now = trunkline_shared::service::clock::now();
        metrics.cut_seconds.record(now.since(notice.since));
        outcome
    }

    /// Goes on without the server, where the client can; else its session ends with this, said with or without something
    /// outstanding.
    fn strand(&mut self, ended: impl Fn(bool) -> SessionError) -> Result<(), SessionError> {
        let Some(fate) = self.server.as_ref().map(|server| server.exchange.fate()) else {
            return Ok(());
        };
        // What was set there and not asked for yet is lost with it.
        let is_shared = self.pinned.is_none() && self.to_ask.is_empty();
        if !is_shared || self.is_explained || !self.is_at_boundary() {
            return Err(ended(fate.has_outstanding()));
        }
        self.is_seated = false;
        self.has_unnamed = false;
        self.is_resetting = false;
        // Parts of a message that went to the lost server are followed by the rest of it.
        self.discards = self.left > 0;
        self.note_returned();
        let Some(server) = self.server.take() else {
            return Ok(());
        };
        let why: Arc<str> = ended(fate == Fate::Unknown).to_string().into();
        let (error, is_failed) = match fate {
            Fate::Nothing => return Ok(()),
            Fate::Undone => (RequestError::TransactionLost { why }, true),
            Fate::GivenUp => {
                self.give_up(&server.exchange, RequestError::TransactionLost { why });
                return Ok(());
            }
            Fate::Unknown => (RequestError::OutcomeUnknown { why }, false),
        };
        if let Some(own) = &mut self.statements.0 {
            own.take_back_all();
        }
        let mut told = Vec::new();
        let unanswered = server.exchange.unanswered();
        let (stranded, next) = Stranded::begin(error, is_failed, unanswered, &mut told);
        self.to_client.push(&told);
        if next == Next::Stays {
            self.stranded = Some(Box::new(stranded));
        }
        Ok(())
    }

    /// A ROLLBACK was not answered: it has what it wants, and hears so. What was asked before it in the same transaction
    /// fails.
    fn give_up(&mut self, talk: &Exchange, error: RequestError) {
        let (unanswered, is_open) = talk.unanswered();
        let before = unanswered - usize::from(!is_open);
        let mut told = Vec::new();
        let (mut stranded, _) = Stranded::begin(error, true, (before, false), &mut told);
        let renamed = talk.give_up(&mut told);
        if let Some(own) = &mut self.statements.0 {
            own.confirm_last(renamed);
        }
        self.to_client.push(&told);
        if is_open {
            stranded.has_ended(talk.is_skipping());
            self.stranded = Some(Box::new(stranded));
        }
    }
}

fn drops_statements(query: &str) -> bool {
    let query = query.trim().trim_end_matches(';').trim_end();
    ["DISCARD ALL", DEALLOCATE_ALL]
        .iter()
        .any(|known| query.eq_ignore_ascii_case(known))
}

/// Ends what a client has left open, and gives the server back.
async fn clean(mut server: Lease, reset: Option<String>) {
    if server.exchange.status() != Status::Idle {
        if server.run("ROLLBACK").await.is_err() {
            return;
        }
        server.exchange = Default::default();
        // What was set in the transaction is not set any more.
        server.settings = interned(server.settings.under(server.report()));
    }
    if let Some(query) = reset {
        if server.run(&query).await.is_err() {
            return;
        }
        // A query of the operator's own may leave statements there, and whoever comes next gives names of his own.
        if !drops_statements(&query) && server.run(DEALLOCATE_ALL).await.is_err() {
            return;
        }
        server.prepared.clear();
        server.settings = interned(Settings::reported(server.report()));
    }
    server.checkin();
}
