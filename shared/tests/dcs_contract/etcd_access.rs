//! An etcd that asks who is there: TLS by a certificate that is its own CA, a user with a password.

use std::time::Duration;

use etcd_client::{Permission, PermissionType};
use trunkline_shared::dcs::etcd::{Budgets, Etcd, EtcdConfig};
use trunkline_shared::dcs::{Dcs, DcsError};

use super::etcd_cluster::EtcdCluster;
use super::write;

/// What an operation may take, an election included.
const OPERATION: Duration = Duration::from_secs(10);

/// What an operation may take that cannot succeed: a try has a third of it, and etcd reckons long at a password.
const IN_VAIN: Duration = Duration::from_secs(6);

fn client(operation: Duration, json: serde_json::Value) -> Etcd {
    let config: EtcdConfig = serde_json::from_value(json).unwrap();
    let budgets = Budgets {
        operation,
        renewal: operation,
    };
    Etcd::new(&config, budgets).unwrap()
}

/// Makes the user and switches authentication on.
async fn protect(cluster: &EtcdCluster) {
    let direct = cluster.direct(0).await;
    let mut auth = direct.auth_client();
    auth.user_add("root", "of-all", None).await.unwrap();
    auth.role_add("root").await.ok();
    auth.user_grant_role("root", "root").await.unwrap();
    auth.role_add("trunkline").await.unwrap();
    let all = Permission::new(PermissionType::Readwrite, "/service/").with_prefix();
    auth.role_grant_permission("trunkline", all).await.unwrap();
    auth.user_add("trunkline", "well kept", None).await.unwrap();
    auth.user_grant_role("trunkline", "trunkline")
        .await
        .unwrap();
    auth.auth_enable().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_with_tls_and_a_user_is_used_and_a_mistake_is_named() {
    let mut cluster = EtcdCluster::start_with_tls(1);
    cluster.wait_until_whole().await;
    let open = client(
        OPERATION,
        serde_json::json!({
            "hosts": cluster.hosts(), "protocol": "https", "cacert": cluster.ca(),
            "username": "trunkline", "password": "well kept",
        }),
    );
    write(&open, "/service/demo/early", "before there are users").await;
    protect(&cluster).await;

    let known = client(
        OPERATION,
        serde_json::json!({
            "hosts": cluster.hosts(), "protocol": "https", "cacert": cluster.ca(),
            "username": "trunkline", "password": "well kept",
        }),
    );
    write(&known, "/service/demo/leader", "a").await;
    assert_eq!(known.read("/service/").await.unwrap().entries.len(), 2);
    let lease = known.grant(Duration::from_secs(5)).await.unwrap().lease;
    known.keep_alive(lease).await.unwrap();
    let outside = known.read("/other/").await;
    assert!(
        matches!(outside, Err(DcsError::Refused { .. })),
        "{outside:?}"
    );

    // A restarted etcd has forgotten whom it let in.
    cluster.kill(0);
    cluster.start_member(0);
    cluster.wait_until_whole().await;
    write(&known, "/service/demo/leader", "b").await;
    known.keep_alive(lease).await.unwrap();

    let wrong = client(
        IN_VAIN,
        serde_json::json!({
            "hosts": cluster.hosts(), "protocol": "https", "cacert": cluster.ca(),
            "username": "trunkline", "password": "badly kept",
        }),
    );
    let refused = wrong.read("/service/").await.unwrap_err();
    assert!(matches!(refused, DcsError::Refused { .. }), "{refused:?}");
    let said = refused.to_string();
    println!("{said}");
    assert!(said.contains("authentication failed"), "{said}");
    assert!(!said.contains("badly kept"), "{said}");

    // Another CA.
    let stranger = EtcdCluster::start_with_tls(1);
    stranger.wait_until_whole().await;
    let untrusted = client(
        IN_VAIN,
        serde_json::json!({
            "hosts": cluster.hosts(), "protocol": "https", "cacert": stranger.ca(),
        }),
    );
    let said = untrusted.read("/service/").await.unwrap_err().to_string();
    println!("{said}");
    assert!(said.contains("certificate"), "{said}");
}
