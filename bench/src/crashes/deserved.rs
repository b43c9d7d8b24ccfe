//! Whether a client deserved the error it heard, by the table of what clients are told. Pure.
//!
//! A server's end is known as a span: from the kill until its last process was gone. What was handed over within that
//! span, or waited for an answer when it began, may have met it; what was handed over later met nothing, and had to be
//! held until there was a leader.

use std::fmt;
use std::time::Duration;

use trunkline_shared::cluster::Moment;

use crate::switchover::clients::{Request, Told};
use crate::switchover::verdict::Rows;

/// The transaction was undone: repeat it.
const UNDONE: &str = "40001";
/// Nobody knows whether it took place.
const UNKNOWN: &str = "08007";
/// There is no leader, and the client was held for as long as it may be.
const NO_LEADER: &str = "57P03";
/// How long that is, by default.
const HOLD_TIMEOUT: Duration = Duration::from_secs(10);

/// The end of a leader's PostgreSQL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loss {
    /// When its postmaster was killed.
    pub killed: Moment,
    /// When none of its processes lived any more.
    pub gone: Moment,
}

impl Loss {
    /// Whether it fell, or may have fallen, between two moments.
    fn met(self, from: Moment, to: Moment) -> bool {
        from <= self.gone && to >= self.killed
    }
}

/// Why an error was not deserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Undeserved {
    /// No client of this mode is told that.
    NotInTheTable,
    /// It is told without an end of the session.
    EndedTheSession,
    /// What was asked for is answered otherwise.
    AnotherRequest,
    /// No server was lost under it: it was to be held.
    NothingWasLost,
    /// It said that nothing happened, and it has happened.
    ItTookPlace,
    /// The client was to be held for longer.
    HeldTooShort,
}

impl fmt::Display for Undeserved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Undeserved::NotInTheTable => "no client of this mode is told that",
            Undeserved::EndedTheSession => "it ended a session that was to go on",
            Undeserved::AnotherRequest => "what was asked for is answered otherwise",
            Undeserved::NothingWasLost => "no server was lost under it: it was to be held",
            Undeserved::ItTookPlace => "it said that nothing happened, and its rows are there",
            Undeserved::HeldTooShort => "the client was to be held for longer",
        })
    }
}

/// Judges one error by what became of the write, and by the ends of servers.
pub fn judge(told: &Told, found: Rows, losses: &[Loss]) -> Result<(), Undeserved> {
    let is_lost_since = |from| losses.iter().any(|loss| loss.met(from, told.at));
    match told.code.as_str() {
        UNDONE | UNKNOWN if told.is_fatal => Err(Undeserved::EndedTheSession),
        UNDONE if !is_undone(told.request) => Err(Undeserved::AnotherRequest),
        UNDONE if found.count > 0 => Err(Undeserved::ItTookPlace),
        // The server may have been lost while the client did not ask for anything.
        UNDONE if !is_lost_since(told.began) => Err(Undeserved::NothingWasLost),
        UNKNOWN if !is_unknown(told.request) => Err(Undeserved::AnotherRequest),
        UNKNOWN if !is_lost_since(told.sent) => Err(Undeserved::NothingWasLost),
        NO_LEADER if told.at.since(told.sent) < HOLD_TIMEOUT => Err(Undeserved::HeldTooShort),
        UNDONE | UNKNOWN | NO_LEADER => Ok(()),
        _ => Err(Undeserved::NotInTheTable),
    }
}

/// Whether a lost server leaves nothing of it: a transaction whose end was not asked for, or was when it was lost already.
fn is_undone(request: Request) -> bool {
    match request {
        Request::Begin | Request::Inside | Request::Commit => true,
        Request::Connect
        | Request::Prepare
        | Request::Statement
        | Request::CopyBegin
        | Request::CopyEnd
        | Request::Rollback => false,
    }
}

/// Whether a lost server leaves its outcome open.
fn is_unknown(request: Request) -> bool {
    match request {
        Request::Prepare
        | Request::Statement
        | Request::Commit
        | Request::CopyBegin
        | Request::CopyEnd => true,
        // A ROLLBACK is done in any case, in a transaction and outside of one.
        Request::Connect | Request::Begin | Request::Inside | Request::Rollback => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING: Rows = Rows { count: 0, parts: 0 };
    const THERE: Rows = Rows { count: 2, parts: 2 };

    fn at(ms: u64) -> Moment {
        Moment(ms * 1_000_000)
    }

    /// Begun, asked and answered at these milliseconds; the server is killed at 100 and gone at 120.
    fn judged(
        code: &str,
        request: Request,
        times: [u64; 3],
        found: Rows,
    ) -> Result<(), Undeserved> {
        let [began, sent, heard] = times.map(at);
        let told = Told {
            client: 2,
            seq: 1,
            request,
            began,
            sent,
            at: heard,
            code: code.to_owned(),
            words: String::new(),
            is_fatal: code == NO_LEADER,
        };
        let loss = Loss {
            killed: at(100),
            gone: at(120),
        };
        judge(&told, found, &[loss])
    }

    #[test]
    fn a_transaction_is_undone_if_its_server_was_lost_since_it_began_and_nothing_of_it_is_there() {
        let inside = |times, found| judged(UNDONE, Request::Inside, times, found);
        assert_eq!(inside([90, 110, 130], NOTHING), Ok(()));
        // The server was lost between two of its statements.
        assert_eq!(inside([90, 500, 501], NOTHING), Ok(()));
        assert_eq!(inside([90, 110, 130], THERE), Err(Undeserved::ItTookPlace));
        assert_eq!(
            inside([121, 130, 140], NOTHING),
            Err(Undeserved::NothingWasLost)
        );
        assert_eq!(
            inside([50, 60, 99], NOTHING),
            Err(Undeserved::NothingWasLost)
        );
    }

    #[test]
    fn a_statement_alone_is_never_said_to_be_undone() {
        for request in [Request::Statement, Request::CopyEnd] {
            assert_eq!(
                judged(UNDONE, request, [90, 95, 130], NOTHING),
                Err(Undeserved::AnotherRequest)
            );
        }
    }

    #[test]
    fn a_rollback_is_never_told_that_it_failed() {
        for code in [UNDONE, UNKNOWN] {
            assert_eq!(
                judged(code, Request::Rollback, [90, 95, 130], NOTHING),
                Err(Undeserved::AnotherRequest)
            );
        }
    }

    #[test]
    fn an_outcome_is_unknown_only_of_what_was_asked_before_the_server_was_gone() {
        // Its server was lost before it was asked, or it took place: one of both is said.
        let undone = |found| judged(UNDONE, Request::Commit, [90, 500, 501], found);
        assert_eq!(undone(NOTHING), Ok(()));
        assert_eq!(undone(THERE), Err(Undeserved::ItTookPlace));
        let commit = |times| judged(UNKNOWN, Request::Commit, times, THERE);
        assert_eq!(commit([80, 99, 130]), Ok(()));
        assert_eq!(commit([80, 120, 130]), Ok(()));
        assert_eq!(commit([80, 121, 130]), Err(Undeserved::NothingWasLost));
        assert_eq!(
            judged(UNKNOWN, Request::Inside, [80, 99, 130], NOTHING),
            Err(Undeserved::AnotherRequest)
        );
    }

    #[test]
    fn a_client_is_told_that_there_is_no_leader_once_it_was_held_for_its_time() {
        let held = |until| judged(NO_LEADER, Request::Statement, [130, 130, until], NOTHING);
        assert_eq!(held(10_130), Ok(()));
        assert_eq!(held(10_129), Err(Undeserved::HeldTooShort));
    }

    #[test]
    fn a_session_that_shares_servers_never_ends_with_one_of_them() {
        for code in ["57P01", "", "timeout", "25P02"] {
            assert_eq!(
                judged(code, Request::Statement, [90, 95, 130], NOTHING),
                Err(Undeserved::NotInTheTable)
            );
        }
        let told = Told {
            client: 0,
            seq: 1,
            request: Request::Statement,
            began: at(90),
            sent: at(90),
            at: at(130),
            code: UNKNOWN.to_owned(),
            words: String::new(),
            is_fatal: true,
        };
        assert_eq!(judge(&told, NOTHING, &[]), Err(Undeserved::EndedTheSession));
    }
}
