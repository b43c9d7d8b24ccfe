//! The `config` key is deleted while no agent runs.

use std::sync::Arc;

use trunkline_agent::postgres::{Postgres, dynamic_config};
use trunkline_shared::dcs::etcd::{Budgets, Etcd, EtcdConfig};
use trunkline_shared::dcs::{Dcs, Operation, Txn};

use super::agents::Agents;
use super::servers::{PATIENCE, on_every_major};
use super::{leads, wait_for};

const KEY: &str = "/service/test/config";

fn store(agents: &Agents<'_>) -> Etcd {
    let budgets = Budgets {
        operation: PATIENCE,
        renewal: PATIENCE,
    };
    let config = EtcdConfig::from_hosts(&agents.etcd()).unwrap();
    Etcd::new(&config, budgets).unwrap()
}

async fn config(dcs: &Etcd) -> Option<String> {
    let listing = dcs.read(KEY).await.ok()?;
    let entry = listing.entries.into_iter().next()?;
    String::from_utf8(entry.value).ok()
}

#[test]
fn a_deleted_configuration_comes_back_from_beside_the_data() {
    on_every_major(
        "lost_config::a_deleted_configuration_comes_back_from_beside_the_data",
        async |servers| {
            let mut agents = Agents::new(servers);
            agents.start(1, 5);
            let door = Postgres::new(agents.config(1)).unwrap();
            leads(&agents, &door, 1).await;
            // Until the bootstrap is over its writer puts the key back without a word.
            let is_over = async || agents.said(1).contains("This member leads").then_some(());
            wait_for("the end of the bootstrap", || agents.told(), is_over).await;
            let edit = [
                "edit-config",
                "-s",
                "maximum_lag_on_failover=4711",
                "--force",
            ];
            agents.operate(1, &edit).unwrap();
            let dcs = Arc::new(store(&agents));
            let wanted = config(&dcs).await.unwrap();
            assert!(wanted.contains("4711"), "{wanted}");
            let data_dir = agents.config(1).data_dir;
            let is_kept = async || {
                let kept = dynamic_config::read(&data_dir).unwrap()?;
                (kept == wanted).then_some(())
            };
            wait_for("patroni.dynamic.json", || agents.told(), is_kept).await;

            agents.kill(1);
            let postmaster = door.adopt().unwrap();
            let txn = Txn {
                then: vec![Operation::Delete(KEY.to_owned())],
                ..Txn::default()
            };
            assert!(dcs.commit(&txn).await.unwrap().succeeded);
            agents.start(1, 5);
            let is_back = async || config(&dcs).await.filter(|text| *text == wanted);
            wait_for("the configuration", || agents.told(), is_back).await;
            assert_eq!(door.adopt(), Some(postmaster), "PostgreSQL was not touched");
            // The key is seen before its writer has said so.
            let is_said = async || {
                let told = agents.said(1).contains("the key config was gone");
                told.then_some(())
            };
            wait_for("the warning", || agents.told(), is_said).await;
        },
    );
}
