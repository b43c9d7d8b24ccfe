//! Files as sites that run Patroni have them, but for addresses and paths, and for the store where they name another.

use std::time::Duration;

use rustix::process::Signal;
use trunkline_agent::lease::state::margin;
use trunkline_agent::postgres::{Postgres, PostgresConfig};
use trunkline_agent::watchdog::RESERVE;
use trunkline_shared::service::clock;

use super::agents::Agents;
use super::servers::{Servers, on_every_major};
use super::{answer, deadline, leads, wait_for};

/// Three machines with everything at its defaults: names and addresses are placeholders that the environment
/// overrides, the socket lies in the data directory, everybody comes in by password, and what the cluster is made with
/// stands below `bootstrap`.
const THREE_MACHINES: &str = "\
scope: billing
name: $NODE
restapi:
  listen: HOST:8008
  connect_address: $NODE_IP:8008
etcd3:
  hosts: ETCD
bootstrap:
  dcs:
    ttl: 5
    loop_wait: 1
    retry_timeout: 2
    maximum_lag_on_failover: 1048576
    postgresql:
      use_pg_rewind: true
  initdb:
  - encoding: UTF8
  - data-checksums
  pg_hba:
  - host replication replicator 127.0.0.0/8 md5
  - host all all 0.0.0.0/0 md5
  users:
    admin:
      password: admin%
      options:
      - createrole
      - createdb
postgresql:
  listen: HOST:5432
  connect_address: $NODE_IP:5432
  data_dir: DATA
  bin_dir: BIN
  pgpass: BASE/pgpass
  authentication:
    replication:
      username: replicator
      password: replicator_pass
    superuser:
      username: admin_of_the_site
      password: superuser_pass
  parameters:
    unix_socket_directories: '.'
tags:
  nofailover: false
  noloadbalance: false
  clonefrom: false
  nosync: false
";

/// A watchdog that is required, a namespace with slashes, a role for rewinds that nobody needs, and local settings.
const WATCHDOG: &str = "\
scope: ledger
namespace: /db/
name: NAME
restapi:
  listen: \"HOST:8008\"
  connect_address: \"HOST:8008\"
  authentication:
    username: patroni
    password: secretOfTheApi
etcd3:
  hosts: ['ETCD']
bootstrap:
  dcs:
    ttl: 5
    loop_wait: 1
    retry_timeout: 2
    maximum_lag_on_failover: 1048576
    postgresql:
      use_pg_rewind: false
      use_slots: true
      parameters:
        archive_mode: \"on\"
        archive_command: \"/bin/true\"
  initdb:
  - encoding: UTF8
  - data-checksums
  - auth-local: peer
  - auth-host: scram-sha-256
  pg_hba:
  - host replication replicator 0.0.0.0/0 scram-sha-256
  - host all all 0.0.0.0/0 scram-sha-256
postgresql:
  listen: \"HOST:5432\"
  connect_address: \"HOST:5432\"
  data_dir: DATA
  bin_dir: BIN
  pgpass: BASE/pgpass0
  authentication:
    replication: {username: replicator, password: confidential}
    superuser: {username: postgres, password: superuser-password}
    rewind: {username: rewind_user, password: rewind_password}
  parameters:
    unix_socket_directories: 'BASE,.'
watchdog:
  mode: required
  device: BASE/no-such-device
  safety_margin: 5
tags: {nofailover: false, noloadbalance: false, clonefrom: false, nosync: false}
";

fn filled(servers: &Servers, agents: &Agents<'_>, index: u8, text: &str) -> String {
    let config = servers.config(index);
    let base = config.data_dir.parent().unwrap().display().to_string();
    text.replace("NAME", &format!("n{index}"))
        .replace("HOST", &config.connect_host)
        .replace("ETCD", &agents.etcd())
        .replace("DATA", &config.data_dir.display().to_string())
        .replace("BIN", &config.bin_dir.unwrap().display().to_string())
        .replace("BASE", &base)
}

/// The door of member `index`, by TCP as the site's superuser.
fn door(agents: &Agents<'_>, index: u8, user: &str, password: &str) -> Postgres {
    let config = agents.config(index);
    let superuser = trunkline_agent::postgres::Credentials {
        username: user.to_owned(),
        password: Some(password.into()),
        ..config.superuser.clone()
    };
    Postgres::new(PostgresConfig {
        superuser,
        use_unix_socket: false,
        ..config
    })
    .unwrap()
}

#[test]
fn a_file_of_three_machines_makes_a_cluster_that_fails_over() {
    on_every_major(
        "field_files::a_file_of_three_machines_makes_a_cluster_that_fails_over",
        async |servers| {
            let mut agents = Agents::new(servers);
            let start = |agents: &mut Agents<'_>, index: u8| {
                let text = filled(servers, agents, index, THREE_MACHINES);
                let host = servers.config(index).connect_host;
                let run_dir = agents.run_dir(index).display().to_string();
                let environment = [
                    ("PATRONI_NAME", format!("n{index}")),
                    ("PATRONI_RESTAPI_CONNECT_ADDRESS", format!("{host}:8008")),
                    ("PATRONI_POSTGRESQL_CONNECT_ADDRESS", format!("{host}:5432")),
                    ("TRUNKLINE_RUN_DIR", run_dir),
                ];
                let environment = environment
                    .each_ref()
                    .map(|(name, value)| (*name, value.as_str()));
                agents.run(index, &text, &environment);
            };
            let doors =
                [1, 2, 3].map(|index| door(&agents, index, "admin_of_the_site", "superuser_pass"));
            start(&mut agents, 1);
            leads(&agents, &doors[0], 1).await;
            start(&mut agents, 2);
            start(&mut agents, 3);
            for replica in &doors[1..] {
                wait_for(
                    "a streaming replica",
                    || agents.told() + &agents.said(3),
                    async || {
                        let status = answer(replica).await.filter(|s| s.is_in_recovery)?;
                        status.receiver.filter(|r| r.is_streaming())
                    },
                )
                .await;
            }
            // The machine of the leader is gone: its agent, its fence and its PostgreSQL.
            let fence = agents.fence(1).expect("a fence");
            agents.kill(1);
            super::signal(fence, Signal::KILL);
            super::kill_instance(&agents.config(1).data_dir, super::PATIENCE);
            let is_primary = async || {
                for (at, door) in doors.iter().enumerate().skip(1) {
                    if answer(door).await.is_some_and(|s| !s.is_in_recovery) {
                        return Some(at);
                    }
                }
                None
            };
            wait_for(
                "another primary",
                || agents.told() + &agents.said(3),
                is_primary,
            )
            .await;
            // It comes back by pg_rewind or as it is, and follows.
            start(&mut agents, 1);
            wait_for(
                "the former leader as a replica",
                || agents.told() + &agents.said(3),
                async || {
                    let status = answer(&doors[0]).await.filter(|s| s.is_in_recovery)?;
                    status.receiver.filter(|r| r.is_streaming())
                },
            )
            .await;
        },
    );
}

#[test]
fn a_member_that_requires_a_watchdog_does_not_lead_without_and_says_so_until_the_file_is_changed() {
    on_every_major(
        "field_files::a_member_that_requires_a_watchdog_does_not_lead_without_and_says_so_until_the_file_is_changed",
        async |servers| {
            let mut agents = Agents::new(servers);
            let run_dir = agents.run_dir(1).display().to_string();
            let text = filled(servers, &agents, 1, WATCHDOG);
            agents.run(1, &text, &[("TRUNKLINE_RUN_DIR", &run_dir)]);
            let has_said = |wanted: &'static str| {
                let agents = &agents;
                async move || agents.said(1).contains(wanted).then_some(())
            };
            let said = "watchdog.mode is required and the device cannot be used: this member does not lead";
            wait_for("the refusal", || agents.said(1), has_said(said)).await;
            let primary = door(&agents, 1, "postgres", "superuser-password");
            assert!(answer(&primary).await.is_none(), "{}", agents.said(1));
            let why = agents.said(1);
            let data_dir = agents.config(1).data_dir;
            assert!(!data_dir.exists(), "a cluster was made in vain: {why}");
            assert!(
                why.contains("no-such-device: No such file or directory"),
                "{why}"
            );

            agents.write(1, &text.replace("mode: required", "mode: automatic"));
            agents.signal(1, Signal::HUP);
            leads(&agents, &primary, 1).await;
            // The lease leaves a device its time, which shows best right after a renewal.
            let before = deadline(&agents, 1);
            let left = wait_for(
                "a renewal",
                || agents.told(),
                async || {
                    let now = deadline(&agents, 1);
                    now.filter(|_| now != before)
                        .map(|at| at.since(clock::now()))
                },
            )
            .await;
            let ttl = Duration::from_secs(5);
            let most = ttl - margin(ttl) - RESERVE;
            assert!(left <= most, "{left:?}");
        },
    );
}
