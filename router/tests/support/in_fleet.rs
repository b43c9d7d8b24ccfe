//! A router of the tests as one of a fleet: registered, and with the endpoint that takes cancels.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};
use trunkline_router::fleet::registration::Registration;
use trunkline_router::fleet::{self, Leaving};
use trunkline_shared::cluster::ClusterName;
use trunkline_shared::dcs::keys::Keys;
use trunkline_shared::service::http::{HttpClient, serve};

use super::stack::{DEADLINE, Stack};

/// A router that meets no other process in a hand-over.
pub const NOWHERE: &str = "/nonexistent";

/// What a router of a fleet has beside its listener.
pub struct InFleet {
    /// Its key, below `routers/`.
    pub key: String,
    /// Its endpoint.
    pub http: SocketAddr,
    /// Takes it out of the fleet.
    pub leaving: Leaving,
    _stop: DropGuard,
}

/// Registers a router that is not in the fleet yet.
pub async fn join(stack: &Stack, name: &str) -> InFleet {
    let (own, registration) = prepare(stack, name, Path::new(NOWHERE)).await;
    let lease = registration.begin(stack.dcs.clone());
    let keys = Keys::new("service", &ClusterName::new("demo"));
    registration.register(stack.dcs.clone(), &keys, stack.cluster.clone(), lease);
    own
}

/// Its endpoint, and what would register it; in this folder it meets the processes of a hand-over.
pub async fn prepare(stack: &Stack, name: &str, folder: &Path) -> (InFleet, Registration) {
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let http = socket.local_addr().unwrap();
    let own = fleet::own(name, &http.to_string()).unwrap();
    let key = own.key.to_string();
    let leaving = Leaving::default();
    let listenings = [stack.listening.clone()];
    let client = HttpClient::default();
    let (registration, cancels) = fleet::join(
        (own, folder, &leaving),
        &stack.clusters,
        &listenings,
        &client,
    );
    let stop = CancellationToken::new();
    tokio::spawn(serve(socket, cancels.unwrap(), None, stop.clone()));
    let own = InFleet {
        key,
        http,
        leaving,
        _stop: stop.drop_guard(),
    };
    (own, registration)
}

/// Waits until a router knows so many routers, itself included.
pub async fn knows(stack: &Stack, count: usize) {
    let waiting = until(async || stack.cluster.routers().len() == count);
    waiting.await;
}

/// Waits for something that tells nobody when it comes true.
pub async fn until(is_so: impl AsyncFn() -> bool) {
    let waiting = async {
        let mut looks = tokio::time::interval(Duration::from_millis(10));
        while !is_so().await {
            looks.tick().await;
        }
    };
    tokio::time::timeout(DEADLINE, waiting).await.unwrap();
}
