//! An operator's connection: commands in, answers out, and what ends it meanwhile. It is ended at any time: while
//! nothing is asked, while a command waits, and while an answer is not taken.

use std::future::{Future, poll_fn};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use trunkline_shared::service::clock;

use crate::admin::commands::MAX_COMMAND;
use crate::admin::consoles::Seat;
use crate::error::SessionError;
use crate::lanes::Ending;
use crate::pool::registry::Mailbox;
use crate::protocol::splice::head;
use crate::session::reach::gone;
use crate::stream::Stream;

/// How long an operator may take to read one answer: what is not read is kept for as long.
const ANSWER_TIME: Duration = Duration::from_secs(10);

/// The connection.
pub(super) struct Line {
    pub(super) stream: Stream,
    /// What was read and not dealt with.
    pub(super) bytes: Vec<u8>,
    pub(super) ends: Ends,
}

/// What ends an operator's session from without.
pub(super) struct Ends {
    pub(super) mailbox: Arc<Mailbox>,
    pub(super) seat: Seat,
    /// The process stops.
    pub(super) over: CancellationToken,
}

impl Ends {
    /// Waits until it is to end; why.
    async fn ordered(&self) -> SessionError {
        let mailbox = &self.mailbox;
        let ended = poll_fn(|cx| {
            mailbox.register(cx);
            match mailbox.is_end() {
                true => Poll::Ready(()),
                false => Poll::Pending,
            }
        });
        tokio::select! {
            () = ended => match mailbox.take().kill {
                Some(kill) => SessionError::Killed { kill, has_outstanding: false },
                None => stopping(),
            },
            () = self.seat.gives_way() => SessionError::TooMuch(
                "this session of the console was idle longest, and gave its place to another (32 at once)",
            ),
            () = self.over.cancelled() => stopping(),
        }
    }
}

/// Why what was waited for did not come.
pub(super) enum Interrupted {
    /// The session is to end.
    Ordered(SessionError),
    /// The operator is gone.
    Gone,
}

impl Line {
    /// Sends an answer.
    ///
    /// # Errors
    /// The client is gone. One that does not take the answer in time, or that is to end before it has, is taken for gone:
    /// in the middle of a message there is nothing to be said.
    pub(super) async fn send(&mut self, bytes: &[u8]) -> Result<(), SessionError> {
        let sending = timeout(ANSWER_TIME, self.stream.send(bytes));
        let is_sent = tokio::select! {
            biased;
            sent = sending => matches!(sent, Ok(Ok(()))),
            _ = self.ends.ordered() => false,
        };
        is_sent.then_some(()).ok_or(SessionError::ClientGone)
    }

    /// The next message; `None` if the client is gone.
    ///
    /// # Errors
    /// The session is to end, or what comes is no command.
    pub(super) async fn message(&mut self) -> Result<Option<(u8, Vec<u8>)>, SessionError> {
        self.ends.seat.is_idle(Some(clock::now()));
        let read = self.read().await;
        self.ends.seat.is_idle(None);
        read
    }

    async fn read(&mut self) -> Result<Option<(u8, Vec<u8>)>, SessionError> {
        loop {
            let header = head(&self.bytes).map_err(|bad| SessionError::BadMessage {
                kind: char::from(bad.kind),
                length: bad.length,
            })?;
            if let Some((kind, length)) = header {
                if length > MAX_COMMAND {
                    return Err(SessionError::TooMuch("the command is too long"));
                }
                if self.bytes.len() >= length {
                    let message: Vec<u8> = self.bytes.drain(..length).collect();
                    return Ok(Some((kind, message[5..].to_vec())));
                }
            }
            tokio::select! {
                read = self.stream.read_buf(&mut self.bytes) => match read {
                    Ok(0) | Err(_) => return Ok(None),
                    Ok(_) => {}
                },
                error = self.ends.ordered() => return Err(error),
            }
        }
    }

    /// Waits for something that takes its time.
    pub(super) async fn meanwhile<T>(
        &self,
        waiting: impl Future<Output = T>,
    ) -> Result<T, Interrupted> {
        tokio::select! {
            done = waiting => Ok(done),
            error = self.ends.ordered() => Err(Interrupted::Ordered(error)),
            () = gone(self.stream.socket()) => Err(Interrupted::Gone),
        }
    }
}

fn stopping() -> SessionError {
    SessionError::Ended {
        ending: Ending::RouterStops,
        has_outstanding: false,
    }
}
