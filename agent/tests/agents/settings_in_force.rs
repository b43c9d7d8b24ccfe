//! What becomes of settings on a running member: of its file and of the cluster's configuration.

use rustix::process::Signal;
use serde_json::Value;
use trunkline_agent::postgres::Postgres;
use trunkline_agent::postgres::settings::read_setting;
use trunkline_shared::dcs::Dcs;
use trunkline_shared::dcs::etcd::{Budgets, Etcd, EtcdConfig};

use super::agents::Agents;
use super::servers::{PATIENCE, on_every_major};
use super::{answer, leads, wait_for};

/// What is changed in the cluster's configuration.
const EDIT: [&str; 16] = [
    "edit-config",
    "--force",
    "-p",
    "max_connections=150",
    "-p",
    "max_wal_senders=1",
    "-p",
    "shared_buffers=24MB",
    "-p",
    "work_mem=1kB",
    "-p",
    "no_such_parameter=7",
    "-p",
    "jit=perhaps",
    "-s",
    "postgresql.pg_ctl_timeout=70",
];

/// What the agent says of it. `max_wal_senders` is below what a cluster may have.
const SAID: [&str; 5] = [
    "no_such_parameter = 7: unknown to this version of PostgreSQL; left out",
    "work_mem = 1kB: 1 kB is outside the valid range",
    "64kB is used",
    "parameter \"jit\" requires a Boolean value; left out",
    "postgresql.parameters.max_wal_senders: a whole number, 3 or more is allowed; 10 is used",
];

/// What is in force then.
const IN_FORCE: [&str; 4] = [
    "postgresql.parameters.max_connections\t150\tdynamic configuration",
    "postgresql.pg_ctl_timeout\t70\tdynamic configuration",
    "postgresql.parameters.max_wal_senders\t10\tdefault",
    "postgresql.authentication.superuser.password\t***\t",
];

async fn record(dcs: &Etcd) -> Option<Value> {
    let listing = dcs.read("/service/test/members/member-1").await.ok()?;
    serde_json::from_slice(&listing.entries.into_iter().next()?.value).ok()
}

#[test]
fn parameters_are_checked_by_the_server_and_what_waits_for_a_restart_is_told_with_both_values() {
    on_every_major(
        "settings_in_force::parameters_are_checked_by_the_server_and_what_waits_for_a_restart_is_told_with_both_values",
        async |servers| {
            let mut agents = Agents::new(servers);
            agents.start(1, 5);
            let door = Postgres::new(agents.config(1)).unwrap();
            leads(&agents, &door, 1).await;
            let budgets = Budgets {
                operation: PATIENCE,
                renewal: PATIENCE,
            };
            let etcd = EtcdConfig::from_hosts(&agents.etcd()).unwrap();
            let dcs = Etcd::new(&etcd, budgets).unwrap();
            agents.operate(1, &EDIT).unwrap();
            let waiting = async || {
                let record = record(&dcs).await?;
                let reason = record.get("pending_restart_reason")?.clone();
                (record["pending_restart"] == true).then_some(reason)
            };
            let reason = wait_for("the reason", || agents.said(1), waiting).await;
            assert_eq!(
                reason["max_connections"],
                serde_json::json!({ "old_value": "100", "new_value": "150" })
            );
            // Its own file has the last word on shared_buffers; max_wal_senders=1 is none that the cluster may have.
            assert_eq!(reason.as_object().unwrap().len(), 1, "{reason}");
            let said = agents.said(1);
            for part in SAID {
                assert!(said.contains(part), "{part}\n{said}");
            }
            let conf = std::fs::read_to_string(agents.config(1).data_dir.join("postgresql.conf"));
            let conf = conf.unwrap();
            assert_eq!(read_setting(&conf, "work_mem").as_deref(), Some("64kB"));
            assert_eq!(read_setting(&conf, "no_such_parameter"), None);
            let list = agents.operate(1, &["list"]).unwrap();
            assert!(list.contains("max_connections: 100->150"), "{list}");

            let effective = agents
                .operate(1, &["show-config", "--effective", "-f", "tsv"])
                .unwrap();
            for line in IN_FORCE {
                assert!(effective.contains(line), "{line}\n{effective}");
            }

            agents.operate(1, &["restart", "test", "--force"]).unwrap();
            let is_over = async || {
                let status = answer(&door).await?;
                let in_use = status
                    .controlled
                    .iter()
                    .find(|(name, _)| name == "max_connections")?;
                let record = record(&dcs).await?;
                (in_use.1 == "150" && record.get("pending_restart").is_none()).then_some(())
            };
            wait_for("the new value", || agents.said(1), is_over).await;
        },
    );
}

#[test]
fn a_reload_takes_up_tags_and_what_else_needs_no_restart_and_names_the_rest() {
    on_every_major(
        "settings_in_force::a_reload_takes_up_tags_and_what_else_needs_no_restart_and_names_the_rest",
        async |servers| {
            let mut agents = Agents::new(servers);
            agents.start(1, 5);
            let door = Postgres::new(agents.config(1)).unwrap();
            leads(&agents, &door, 1).await;
            let budgets = Budgets {
                operation: PATIENCE,
                renewal: PATIENCE,
            };
            let etcd = EtcdConfig::from_hosts(&agents.etcd()).unwrap();
            let dcs = Etcd::new(&etcd, budgets).unwrap();
            let text = agents.file(1).replace(
                "  parameters: {unix_socket",
                "  proxy_address: 10.0.0.9:6432\n  parameters: {work_mem: 5MB, unix_socket",
            ) + "tags: {nofailover: true, rack: a7}\n";
            agents.write(1, &text);
            agents.signal(1, Signal::HUP);
            let is_shown = async || {
                let record = record(&dcs).await?;
                let is_there = record["tags"]["nofailover"] == true
                    && record["tags"]["rack"] == "a7"
                    && record["proxy_url"] == "postgres://10.0.0.9:6432/postgres";
                is_there.then_some(())
            };
            wait_for("the tags", || agents.said(1), is_shown).await;
            let client = servers.client(1).await;
            let is_in_use = async || {
                let row = client.query_one("SHOW work_mem", &[]).await.ok()?;
                (row.get::<_, String>(0) == "5MB").then_some(())
            };
            wait_for("work_mem", || agents.said(1), is_in_use).await;

            agents.write(1, &text.replace("name: member-1", "name: another"));
            let told = agents.operate(1, &["reload", "test", "--force"]);
            let told = told.unwrap_err();
            assert!(
                told.contains("NOT taken up, restart the agent for these: name"),
                "{told}"
            );
            agents.write(1, &text.replace("rack: a7", "rack: [a7"));
            let told = agents
                .operate(1, &["reload", "test", "--force"])
                .unwrap_err();
            assert!(told.contains("not valid YAML"), "{told}");
        },
    );
}
