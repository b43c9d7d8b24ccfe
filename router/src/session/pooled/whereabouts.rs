//! Where a client's database is: the cluster of the listener, or the one that the entry of the database names.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use trunkline_shared::cluster::ClusterName;
use trunkline_shared::service::clock;

use super::proof::Arrival;
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
    client: &Client,
) -> Result<Whereabouts, SessionError> {
    let unknown = |why: String| SessionError::UnknownDatabase {
        database: database.to_owned(),
        why,
    };
    let terms = config.terms(database, user);
    let Some(terms) = terms.filter(|_| !listening.is_console) else {
        return Err(unknown(
            "it is not one of the router's databases".to_owned(),
        ));
    };
    let limit = listening.hold_timeout();
    let (cluster, used) = match (&listening.cluster, &terms.scope) {
        (Some(own), None) => (own.clone(), None),
        (Some(own), Some(scope)) if own.name == *scope => (own.clone(), None),
        (None, Some(scope)) => match followed(listening, scope, client, limit).await? {
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

/// The cluster that is asked for a user before it has proved who it is: the listener's own, whatever the database is,
/// or the database's. None where there is none; that is said to who has proved who it is.
pub(super) async fn asked(
    arrival: &Arrival<'_>,
    client: &Client,
    until: Option<Instant>,
) -> Result<Option<(Arc<Cluster>, Option<Counted>)>, SessionError> {
    let listening = arrival.listening;
    if let Some(own) = &listening.cluster {
        return Ok(Some((own.clone(), None)));
    }
    let (database, user) = arrival.names();
    let terms = arrival.entrance.pooling.terms(database, user);
    let Some(scope) = terms.and_then(|terms| terms.scope) else {
        return Ok(None);
    };
    let left = until.map(|until| until.saturating_duration_since(Instant::now()));
    let hold = listening.hold_timeout();
    let limit = left.map_or(hold, |left| left.min(hold));
    let found = followed(listening, &scope, client, limit).await?;
    Ok(found.map(|own| (own.cluster, Some(own.used))))
}

/// The cluster of this name; `None` if there is none.
async fn followed(
    listening: &Arc<Listening>,
    scope: &ClusterName,
    client: &Client,
    limit: Duration,
) -> Result<Option<Followed>, SessionError> {
    let clusters = &listening.clusters;
    let mut changes = clusters.changes();
    let began = clock::now();
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
