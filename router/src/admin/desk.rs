//! What the console acts upon: the process's other parts, as far as an operator may reach them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio::time::interval;
use tokio_util::sync::CancellationToken;
use trunkline_shared::cluster::Moment;
use trunkline_shared::service::clock;

use crate::admin::commands::Wait;
use crate::admin::consoles::Consoles;
use crate::admin::gather::{CoreView, gather};
use crate::listener::Listening;
use crate::tally::Totals;

/// Orders for the process that may wait to be heard.
pub const MAX_ORDERS: usize = 8;
/// What averages are taken over: PgBouncer's `stats_period`.
const STATS_PERIOD: Duration = Duration::from_secs(60);

/// What an operator wants of the process.
pub enum Order {
    /// Read the file again; whether it was taken up.
    Reload(oneshot::Sender<bool>),
    /// Stop.
    Stop(Wait),
}

/// The totals of every database at one moment.
pub type Sample = (Moment, BTreeMap<Box<str>, Totals>);

/// The other parts.
#[derive(Default)]
pub struct Desk {
    /// Where orders go; absent in a router that is no process of its own.
    pub orders: OnceLock<mpsc::Sender<Order>>,
    /// The ports.
    pub listenings: OnceLock<Vec<Arc<Listening>>>,
    /// Set when the process stops: the console's sessions end at once.
    pub over: CancellationToken,
    /// Sessions of the console.
    pub consoles: Arc<Consoles>,
    /// The last two samples, the older one first.
    samples: Mutex<[Sample; 2]>,
}

/// The totals by database.
pub fn totals(views: &[CoreView]) -> BTreeMap<Box<str>, Totals> {
    let mut all: BTreeMap<Box<str>, Totals> = BTreeMap::new();
    for (place, _, totals) in views.iter().flat_map(|view| &view.roster.tallies) {
        all.entry(place.database.clone()).or_default().add(totals);
    }
    all
}

impl Desk {
    /// What a process of its own has besides. Once.
    pub fn equip(&self, orders: mpsc::Sender<Order>, listenings: Vec<Arc<Listening>>) {
        // Whoever came first stays.
        let _ = self.orders.set(orders);
        let _ = self.listenings.set(listenings);
    }

    /// The older sample: what averages begin with.
    pub fn sample(&self) -> Sample {
        let samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        samples[0].clone()
    }

    /// Takes a sample every [`STATS_PERIOD`], for ever.
    pub async fn take_samples(&self, cores: &[Handle]) {
        let mut period = interval(STATS_PERIOD);
        loop {
            period.tick().await;
            let Ok(views) = gather(cores).await else {
                continue;
            };
            let mut samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
            let sample = (clock::now(), totals(&views));
            samples[0] = std::mem::replace(&mut samples[1], sample);
            if samples[0].0 == Moment::default() {
                samples[0] = samples[1].clone();
            }
        }
    }
}
