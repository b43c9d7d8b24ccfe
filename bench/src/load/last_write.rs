//! When clients were told last that a write is committed, to be read while they run.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use trunkline_shared::cluster::Moment;

/// A stamp for each client; clones share them.
#[derive(Clone, Debug, Default)]
pub struct LastWrite(Arc<[AtomicU64]>);

impl LastWrite {
    /// Of so many clients, none of whom has written since this moment.
    pub fn since(began: Moment, clients: usize) -> LastWrite {
        LastWrite((0..clients).map(|_| AtomicU64::new(began.0)).collect())
    }

    /// When anybody was told so.
    pub fn done(&self) -> Moment {
        self.stamps().max().unwrap_or_default()
    }

    /// The same of each client.
    pub fn stamps(&self) -> impl Iterator<Item = Moment> {
        self.0
            .iter()
            .map(|last| Moment(last.load(Ordering::Relaxed)))
    }

    /// Takes note that the client at this place was.
    pub fn note(&self, client: usize, at: Moment) {
        if let Some(last) = self.0.get(client) {
            last.fetch_max(at.0, Ordering::Relaxed);
        }
    }
}
