//! A replication connection: a server that is opened for this client, with what its start-up packet says, and is never
//! anybody else's. What goes over it is carried as in session mode, whatever the listener's mode is.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;
use trunkline_shared::service::clock;

use super::Pooled;
use super::acquire::{ended, rejected};
use super::login::{Key, no_randomness};
use crate::error::SessionError;
use crate::pool::alone::{Opening, Place, make_place, take_place};
use crate::pool::registry::Report;
use crate::pool::{self, Lease};
use crate::protocol::startup::Parameters;
use crate::server::login::OpenFailed;
use crate::session::carry_over::look::PinReason;
use crate::session::reach::gone;

/// Pause before the next attempt, where there was no place for a server, or none could be reached.
const AGAIN: Duration = Duration::from_millis(100);
/// Pause before the cores are asked again for an idle server that could give way, where there was none.
const LOOK_AGAIN: Duration = Duration::from_millis(250);
/// Pause before another one is closed for the same client, whose place was lost again: PostgreSQL was not reached.
const CLOSE_AGAIN: Duration = Duration::from_secs(1);

impl Pooled {
    /// Opens the client's own server; what it reports, and its key. What keeps a server from being reached may pass
    /// within `query_wait_timeout`; what PostgreSQL refuses is told at once.
    pub(super) async fn replication_server(
        &mut self,
        asked: &Parameters,
    ) -> Result<(Report, Key), SessionError> {
        self.pinned = Some(PinReason::Replication);
        // Until it is in, an order to end reaches it by a key that nobody is told.
        let (process, secret) = self.door.registry.new_key().map_err(no_randomness)?;
        let _waiting = (self.door.registry).enter(process, &secret, self.mailbox.clone());
        self.card.waits(Some(clock::now()));
        let server = self.await_server(asked).await;
        self.card.waits(None);
        let server = server?;
        // The process is the one of `pg_stat_activity`; the secret is good for this session only.
        let secret = self.door.registry.new_secret().map_err(no_randomness)?;
        let key = (server.key.process, secret.to_vec());
        let report = Arc::new(server.reported.clone());
        self.settings = server.settings.clone();
        server.card.is_with(self.card.id);
        self.server = Some(server);
        self.note_taken();
        Ok((report, key))
    }

    async fn await_server(&mut self, asked: &Parameters) -> Result<Lease, SessionError> {
        let limit = self.door.terms.pool.query_wait_timeout;
        let mut began = clock::now();
        let mut make_room_at = began;
        loop {
            if self.door.gate.is_paused() {
                self.wait_at_gate().await?;
                began = clock::now();
            }
            let pool = self.find_pool().await?;
            let mut place = take_place(pool);
            let now = clock::now();
            if matches!(place, Place::Full) && now >= make_room_at {
                place = make_place(pool).await;
                make_room_at = match place {
                    Place::Free(_) => now + CLOSE_AGAIN,
                    Place::Full | Place::Closed => now + LOOK_AGAIN,
                };
            }
            let why = match place {
                Place::Free(opening) => match self.open(opening, asked).await? {
                    // What an operator holds since then is not to be there.
                    Ok(_) if self.door.gate.is_paused() => continue,
                    Ok(server) => return Ok(server),
                    Err(why) => Some(why),
                },
                Place::Full => pool::failure(pool),
                Place::Closed => None,
            };
            if !limit.is_zero() && clock::now().since(began) >= limit {
                return Err(SessionError::NoFreeServer {
                    database: self.door.database.to_string(),
                    user: self.door.user.to_string(),
                    limit,
                    why: why
                        .as_ref()
                        .map_or_else(String::new, |why| format!(": {why}")),
                    code: why.as_ref().and_then(OpenFailed::code).map(str::to_owned),
                });
            }
            tokio::select! {
                () = sleep(AGAIN) => {}
                () = ended(&self.mailbox) => return Err(self.ordered()),
                () = gone(self.client.socket()) => return Err(SessionError::ClientGone),
            }
        }
    }

    /// The order to end that has come.
    fn ordered(&self) -> SessionError {
        let ended = self.ordered_end(&self.mailbox.take());
        ended.unwrap_or(SessionError::ClientGone)
    }

    async fn open(
        &self,
        opening: Opening,
        asked: &Parameters,
    ) -> Result<Result<Lease, OpenFailed>, SessionError> {
        let ignored = &self.door.terms.pool.ignore_startup_parameters;
        let is_kept = |name: &str| !ignored.iter().any(|own| own.eq_ignore_ascii_case(name));
        // It takes no SQL perhaps, so its settings come with the packet.
        let settings = asked.settings.iter().filter(|(name, _)| is_kept(name));
        let settings = settings.cloned().collect();
        let opened = tokio::select! {
            opened = opening.open(asked.replication, settings) => opened,
            () = ended(&self.mailbox) => return Err(self.ordered()),
            () = gone(self.client.socket()) => return Err(SessionError::ClientGone),
        };
        match opened {
            Ok(server) => Ok(Ok(server)),
            Err(
                why @ (OpenFailed::Refused(_)
                | OpenFailed::NoLogin(_)
                | OpenFailed::NoTls
                | OpenFailed::Handshake(_)),
            ) => Err(rejected(why)),
            Err(
                why @ (OpenFailed::LaneCut
                | OpenFailed::Unreachable(_)
                | OpenFailed::TooSlow
                | OpenFailed::InRecovery
                | OpenFailed::Broken),
            ) => Ok(Err(why)),
        }
    }
}
