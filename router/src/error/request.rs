//! What is told to a client whose session goes on.

use std::sync::Arc;

use crate::protocol::messages::Severity;
use crate::protocol::{messages, sqlstate};

/// What is told to a client whose session goes on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// The server was lost inside a transaction whose end was not asked for.
    #[error("the transaction was undone: {why}")]
    TransactionLost {
        /// Why.
        why: Arc<str>,
    },
    /// The server was lost and the last request unanswered.
    #[error("the outcome of the last request is unknown: {why}")]
    OutcomeUnknown {
        /// Why.
        why: Arc<str>,
    },
    /// A later statement of a transaction that was lost.
    #[error("current transaction is aborted, commands ignored until end of transaction block")]
    Aborted,
    /// A request that waited for a server was cancelled.
    #[error("canceling statement due to user request")]
    Canceled,
}

impl RequestError {
    /// The one table for sessions that go on.
    pub fn sqlstate(&self) -> &'static str {
        match self {
            RequestError::TransactionLost { .. } => sqlstate::SERIALIZATION_FAILURE,
            RequestError::OutcomeUnknown { .. } => sqlstate::TRANSACTION_RESOLUTION_UNKNOWN,
            RequestError::Aborted => sqlstate::IN_FAILED_TRANSACTION,
            RequestError::Canceled => sqlstate::QUERY_CANCELED,
        }
    }

    /// Appends the message for the client.
    pub fn write(&self, out: &mut Vec<u8>) {
        let hint = match self {
            RequestError::TransactionLost { .. } => Some("Repeat the whole transaction."),
            RequestError::OutcomeUnknown { .. } => {
                Some("Check whether it took place before repeating it.")
            }
            RequestError::Aborted | RequestError::Canceled => None,
        };
        let text = self.to_string();
        messages::error(out, Severity::Error, self.sqlstate(), &text, hint);
    }
}
