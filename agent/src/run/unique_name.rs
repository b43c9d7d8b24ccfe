//! Refuses to start beside a living agent of the same name: both would write one member record, and the key of
//! one would count as the other's.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::http::Method;
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::timeout;
use trunkline_shared::cluster::{ClusterName, MemberName};
use trunkline_shared::dcs::watch::View;
use trunkline_shared::service::http::HttpClient;

/// Longest wait for the first view of the cluster. Without one the agent starts unchecked, for PostgreSQL here
/// must not wait for the DCS.
const VIEW_LIMIT: Duration = Duration::from_secs(1);

/// Longest wait for the answer of whoever is registered under the name.
const ANSWER_LIMIT: Duration = Duration::from_secs(1);

/// Another agent of this name lives.
#[derive(Debug, thiserror::Error)]
#[error(
    "a member named {name} of cluster {cluster} is alive and answers at {url}; give this one another name \
     (\"name\" in its file, or PATRONI_NAME), or end the other one first"
)]
pub struct NameTaken {
    name: MemberName,
    cluster: ClusterName,
    url: Arc<str>,
}

/// Asks whoever is registered under the own name. To be called before the own API listens: then any answer in
/// that name is another agent's.
pub(super) async fn check(
    cluster: &ClusterName,
    name: &MemberName,
    views: &mut watch::Receiver<Arc<View>>,
    client: &HttpClient,
) -> Result<(), NameTaken> {
    let complete = timeout(VIEW_LIMIT, views.wait_for(|view| view.is_complete)).await;
    let Ok(Ok(view)) = complete.map(|view| view.map(|view| view.clone())) else {
        tracing::warn!(
            "the DCS has not answered yet: whether another agent has this name is not known"
        );
        return Ok(());
    };
    let record = view.topology.members.get(name);
    let Some(url) = record.map(|member| member.api_url.clone()) else {
        return Ok(());
    };
    let asked = client.request(Method::GET, &url, Bytes::new(), ANSWER_LIMIT);
    let is_taken = asked
        .await
        .is_ok_and(|answer| is_of(&answer.body, cluster, name));
    if !is_taken {
        return Ok(());
    }
    Err(NameTaken {
        name: name.clone(),
        cluster: cluster.clone(),
        url,
    })
}

/// Whether an answer of `GET /patroni` is of that member. An address may have gone to another one since; older
/// Patronis do not say their name there.
fn is_of(body: &[u8], cluster: &ClusterName, name: &MemberName) -> bool {
    let Ok(answer) = serde_json::from_slice::<Value>(body) else {
        return false;
    };
    let said = |field: &str| answer.get("patroni")?.get(field)?.as_str();
    said("scope") == Some(cluster.as_str()) && said("name").is_none_or(|said| said == name.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_answer_in_the_same_name_takes_it() {
        let (cluster, name) = (ClusterName::new("c"), MemberName::new("n1"));
        for (body, is_taken) in [
            (r#"{"patroni":{"scope":"c","name":"n1"}}"#, true),
            (r#"{"patroni":{"scope":"c"}}"#, true),
            (r#"{"patroni":{"scope":"c","name":"n2"}}"#, false),
            (r#"{"patroni":{"scope":"d","name":"n1"}}"#, false),
            ("404", false),
        ] {
            assert_eq!(is_of(body.as_bytes(), &cluster, &name), is_taken, "{body}");
        }
    }
}
