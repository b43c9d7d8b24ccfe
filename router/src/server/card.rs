//! What is shown of a server: what it is, which the pool that has it reads, and whose it is, which sessions write.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use trunkline_shared::cluster::Moment;

use crate::stream::Stream;

static NEXT_ID: AtomicU32 = AtomicU32::new(1);

/// The number of a client or a server in what the console shows: positive as PostgreSQL's `integer`, and used again
/// only after two thousand million others.
pub fn next_id() -> u32 {
    (NEXT_ID.fetch_add(1, Ordering::Relaxed) & 0x7FFF_FFFF).max(1)
}

/// One server's.
#[derive(Debug, Default)]
pub struct ServerCard {
    /// Its number.
    pub id: u32,
    /// Where it is.
    pub remote: Option<SocketAddr>,
    /// The router's end.
    pub local: Option<SocketAddr>,
    /// Version and cipher of TLS; none in the clear.
    pub tls: Option<String>,
    /// Its process.
    pub process: u32,
    /// When it was reached.
    pub connected_at: Moment,
    client: AtomicU32,
    is_cleaned: AtomicBool,
    asked_at: AtomicU64,
}

impl ServerCard {
    /// Of this connection, as far as that shows itself.
    pub fn of(stream: &Stream, process: u32, connected_at: Moment) -> Self {
        let socket = stream.socket();
        Self {
            id: next_id(),
            remote: socket.peer_addr().ok(),
            local: socket.local_addr().ok(),
            tls: stream.tls_name(),
            process,
            connected_at,
            ..Self::default()
        }
    }

    /// The client of this number has it; 0: none has.
    pub fn is_with(&self, client: u32) {
        self.client.store(client, Ordering::Relaxed);
        self.is_cleaned.store(false, Ordering::Relaxed);
    }

    /// It is asked something by its client.
    pub fn is_asked(&self, now: Moment) {
        self.asked_at.store(now.0, Ordering::Relaxed);
    }

    /// What its last client has left is cleaned up.
    pub fn is_cleaned(&self) {
        self.client.store(0, Ordering::Relaxed);
        self.is_cleaned.store(true, Ordering::Relaxed);
    }

    /// The number of its client, or 0; whether it is cleaned up; when it was asked last.
    pub fn read(&self) -> (u32, bool, Moment) {
        let asked = Moment(self.asked_at.load(Ordering::Relaxed));
        (
            self.client.load(Ordering::Relaxed),
            self.is_cleaned.load(Ordering::Relaxed),
            asked.max(self.connected_at),
        )
    }
}
