//! What the operator and the service manager ask for by a signal.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use trunkline_shared::service::shutdown::{Request, Signals};

use super::reexecute::Successor;
use super::service_manager;
use crate::api::LocalRequest;

/// How long the service manager is left to wait for a reload.
const RELOAD_LIMIT: Duration = Duration::from_secs(60);

/// Ends with the second request to stop.
pub(super) async fn take(
    mut signals: Signals,
    requests: mpsc::Sender<LocalRequest>,
    stop: CancellationToken,
    successor: Arc<Successor>,
) {
    loop {
        match signals.next().await {
            Request::Stop if stop.is_cancelled() => return,
            Request::Stop => {
                tracing::info!("told to end");
                service_manager::stopping();
                stop.cancel();
            }
            Request::Reload => {
                let (answer, outcome) = tokio::sync::oneshot::channel();
                service_manager::reloading();
                if requests
                    .send(LocalRequest::Reload { answer })
                    .await
                    .is_err()
                {
                    return;
                }
                tokio::spawn(async {
                    // What became of it is in the log.
                    let _ = timeout(RELOAD_LIMIT, outcome).await;
                    service_manager::ready();
                });
            }
            Request::Reexecute => drop(tokio::spawn(successor.clone().prepare())),
            Request::HandOver => {
                tracing::warn!("SIGQUIT is the router's; an agent ends by SIGTERM");
            }
        }
    }
}
