//! Which clusters there are, for who names none, or one that is not there.

use trunkline_shared::cluster::topology::{FactKey, Initialize};
use trunkline_shared::cluster::{ClusterName, Topology};
use trunkline_shared::dcs::keys::Keys;
use trunkline_shared::dcs::{Dcs, DcsError};

use super::{CtlError, Desk, Session, accept_dcs};

/// The clusters of a namespace, in the order of their names.
async fn names(dcs: &dyn Dcs, namespace: &str) -> Result<Vec<String>, DcsError> {
    let listing = dcs.read(&Keys::namespace(namespace)).await?;
    let found = listing.entries.iter();
    let mut names: Vec<String> = found
        .filter_map(|entry| {
            let cluster = Keys::cluster_of(namespace, &entry.key)?;
            // Of one that was removed its generation is left.
            let left = Keys::new(namespace, &cluster).path(&FactKey::Generation);
            (entry.key != left).then(|| cluster.to_string())
        })
        .collect();
    names.sort();
    names.dedup();
    Ok(names)
}

/// The operator's choice among those that the DCS holds.
///
/// # Errors
/// [`CtlError::NoCluster`] where there is none, and where nobody can be asked.
pub(super) async fn choose(desk: &Desk) -> Result<ClusterName, CtlError> {
    let found = names(desk.dcs.as_ref(), &desk.config.namespace).await?;
    if found.is_empty() || !desk.terminal.is_interactive() {
        return Err(CtlError::NoCluster(found));
    }
    let question = format!("Cluster ['{}']", found.join("', '"));
    let only = match found.as_slice() {
        [only] => Some(only.as_str()),
        _ => None,
    };
    let name = desk.terminal.ask(&question, only).await?;
    match found.contains(&name) {
        true => Ok(ClusterName::new(&name)),
        false => Err(CtlError::NoSuchCluster {
            name,
            clusters: found,
        }),
    }
}

/// Whether the DCS holds anything of it.
pub(super) fn is_known(topology: &Topology) -> bool {
    topology.initialize != Initialize::Absent
        || topology.leader.is_some()
        || topology.settings.is_some()
        || !topology.members.is_empty()
}

/// The error for a cluster that the DCS knows nothing of.
///
/// # Errors
/// If the DCS cannot be asked which it does know.
pub(super) async fn unknown(session: &Session) -> Result<CtlError, CtlError> {
    if let Some(why) = accept_dcs::disbelief(session).await {
        let cluster = &session.cluster;
        let text = format!("the DCS holds nothing of a cluster {cluster}, and {why}");
        return Ok(CtlError::Failed(text));
    }
    Ok(CtlError::NoSuchCluster {
        name: session.cluster.to_string(),
        clusters: names(session.dcs.as_ref(), &session.config.namespace).await?,
    })
}
