//! Where a client's database is: the cluster of the listener, or the one that the entry of the database names.

use std::sync::Arc;

use tokio::time::sleep;
use trunkline_shared::cluster::ClusterName;
use trunkline_shared::service::clock;

use crate::clusters::{Followed, NotFollowed};
use crate::config::databases::Terms;
use crate::config::pooling::PoolingConfig;
use crate::error::SessionError;
use crate::listener::Listening;
use crate::listener::limits::Counted;
use crate::route::{Awaited, NoRoute};
use crate::session::Client;
use crate::session::reach::gone;
use crate::topology::Cluster;

/// Where it is, and what it keeps to there.
pub(super) struct Whereabouts {
    pub(super) cluster: Arc<Cluster>,
    pub(super) terms: Terms,
    /// The cluster is followed for as long as this is kept; a listener's own is always.
    pub(super) used: Option<Counted>,
}

/// Finds it. A client is held for `hold_timeout` at most while it is not known which clusters there are.
pub(super) async fn find(
    listening: &Arc<Listening>,
    config: &PoolingConfig,
    (database, user): (&str, &str),
    client: &mut Client,
) -> Result<Whereabouts, SessionError> {
    let unknown = |why: String| SessionError::UnknownDatabase {
        database: database.to_owned(),
        why,
    };
    let Some(terms) = config.terms(database, user) else {
        return Err(unknown(
            "it is not one of the router's databases".to_owned(),
        ));
    };
    let (cluster, used) = match (&listening.cluster, &terms.scope) {
        (Some(own), None) => (own.clone(), None),
        (Some(own), Some(scope)) if own.name == *scope => (own.clone(), None),
        (None, Some(scope)) => match followed(listening, scope, client).await? {
            Some(Followed { cluster, used }) => (cluster, Some(used)),
            None => return Err(unknown(format!("there is no cluster {scope}"))),
        },
        (Some(_), Some(scope)) => {
            return Err(unknown(format!(
                "it is in cluster {scope}, and this listener leads to another"
            )));
        }
        (None, None) => {
            return Err(unknown("its entry names no cluster".to_owned()));
        }
    };
    Ok(Whereabouts {
        cluster,
        terms,
        used,
    })
}

/// The cluster of this name; `None` if there is none.
async fn followed(
    listening: &Arc<Listening>,
    scope: &ClusterName,
    client: &mut Client,
) -> Result<Option<Followed>, SessionError> {
    let clusters = &listening.clusters;
    let mut changes = clusters.changes();
    let (began, limit) = (clock::now(), listening.hold_timeout());
    loop {
        changes.mark_unchanged();
        match clusters.find(scope) {
            Ok(followed) => return Ok(Some(followed)),
            Err(NotFollowed::Unknown) => return Ok(None),
            Err(NotFollowed::TooMany(limit)) => {
                return Err(SessionError::TooManyClusters {
                    cluster: scope.clone(),
                    limit,
                });
            }
            Err(NotFollowed::Unseen) => {}
        }
        let waited = clock::now().since(began);
        if waited >= limit {
            let why = NoRoute::Hold(Awaited::FirstView);
            return Err(SessionError::no_route(scope, why, waited));
        }
        client.newcomer = None;
        listening.metrics.held.increment(1);
        let outcome = tokio::select! {
            _ = changes.changed() => Ok(()),
            () = sleep(limit - waited) => Ok(()),
            () = gone(client.stream.socket()) => Err(SessionError::ClientGone),
        };
        listening.metrics.held.decrement(1);
        outcome?;
    }
}
