//! Whole agents with real PostgreSQL and a real etcd: what only a process that is killed or frozen can show.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a test fails by panicking and tells what it measured; the lints exempt only functions marked as tests"
)]

#[path = "support/agents.rs"]
mod agents;
#[path = "agents/apply.rs"]
mod apply;
#[path = "agents/failover_slots.rs"]
mod failover_slots;
#[path = "agents/field_files.rs"]
mod field_files;
#[path = "agents/hung_promotion.rs"]
mod hung_promotion;
#[path = "agents/logical_slots.rs"]
mod logical_slots;
#[path = "agents/lost_config.rs"]
mod lost_config;
#[path = "agents/reexecute.rs"]
mod reexecute;
#[path = "agents/rest_over_tls.rs"]
mod rest_over_tls;
#[path = "support/servers.rs"]
#[expect(dead_code, reason = "shared with the tests of the door")]
mod servers;
#[path = "agents/settings_in_force.rs"]
mod settings_in_force;
#[path = "agents/standby_cluster.rs"]
mod standby_cluster;
#[path = "agents/validate.rs"]
mod validate;

use std::time::Duration;

use agents::{Agents, processes, signal, words_of};
use rustix::process::Signal;
use servers::{PATIENCE, on_every_major, wait_for};
use trunkline_agent::fence::known::Known;
use trunkline_agent::postgres::health::PROBE_NAME;
use trunkline_agent::postgres::kill::{kill_instance, kill_known};
use trunkline_agent::postgres::{Postgres, Probe, ServerRole, ServerStatus};
use trunkline_shared::cluster::{Moment, Timeline};
use trunkline_shared::dcs::Dcs;
use trunkline_shared::dcs::etcd::{Budgets, Etcd, EtcdConfig};
use trunkline_shared::service::clock;

async fn answer(door: &Postgres) -> Option<Box<ServerStatus>> {
    match door.probe(Duration::from_secs(5)).await {
        Probe::Answer(status) => Some(status),
        Probe::NotRunning { .. } | Probe::Starting | Probe::Stopping | Probe::Unresponsive(_) => {
            None
        }
    }
}

/// The deadline in the run directory, if armed.
fn deadline(agents: &Agents<'_>, index: u8) -> Option<Moment> {
    let text = std::fs::read_to_string(agents.run_dir(index).join("deadline")).ok()?;
    let nanos = text.strip_prefix("armed ")?.split(' ').next()?;
    nanos.parse().ok().map(Moment)
}

async fn leads(agents: &Agents<'_>, door: &Postgres, index: u8) {
    wait_for(
        "an armed primary",
        || agents.told(),
        async || {
            let status = answer(door).await.filter(|s| !s.is_in_recovery);
            status.filter(|_| deadline(agents, index).is_some())
        },
    )
    .await;
}

/// Another fence of member 1 than `old`, with its time, before `limit`.
async fn replaced(agents: &Agents<'_>, old: i32, limit: Moment) {
    let began = clock::now();
    let new = wait_for(
        "another fence",
        || agents.told(),
        async || agents.fence(1).filter(|pid| *pid != old),
    );
    new.await;
    let took = clock::now().since(began);
    println!("measured: the fence was replaced in {took:?}");
    assert!(clock::now() < limit, "after the deadline");
}

#[test]
fn a_fence_that_dies_or_freezes_while_the_dcs_stalls_is_replaced_before_the_deadline() {
    on_every_major(
        "a_fence_that_dies_or_freezes_while_the_dcs_stalls_is_replaced_before_the_deadline",
        async |servers| {
            let mut agents = Agents::new(servers);
            agents.start(1, 20);
            let door = Postgres::new(agents.config(1)).unwrap();
            leads(&agents, &door, 1).await;
            let postmaster = door.adopt().unwrap();
            agents.freeze_etcd(true);
            wait_for(
                "a stalled renewal",
                || agents.told(),
                async || {
                    agents
                        .said(1)
                        .contains("could not be renewed")
                        .then_some(())
                },
            )
            .await;
            let limit = deadline(&agents, 1).expect("armed");
            let first = agents.fence(1).expect("a fence");
            signal(first, Signal::KILL);
            replaced(&agents, first, limit).await;
            let second = agents.fence(1).expect("a fence");
            signal(second, Signal::STOP);
            replaced(&agents, second, limit).await;
            agents.freeze_etcd(false);
            wait_for(
                "a renewal",
                || agents.told(),
                async || deadline(&agents, 1).filter(|at| *at > limit),
            )
            .await;
            assert_eq!(door.adopt(), Some(postmaster), "PostgreSQL was not touched");
        },
    );
}

#[test]
fn an_instance_that_was_looked_at_is_killed_without_its_directory() {
    on_every_major(
        "an_instance_that_was_looked_at_is_killed_without_its_directory",
        async |servers| {
            let door = servers.door(1);
            door.initialize().await.unwrap();
            door.start(ServerRole::Primary).await.unwrap();
            door.wait_ready(PATIENCE).await.unwrap();
            let data_dir = servers.config(1).data_dir;
            let known = Known::look(&data_dir).unwrap();
            assert!(known.segment.is_some());
            // Nothing is found by its path any more, as nothing would be read of a disk that hangs.
            let elsewhere = data_dir.with_file_name("elsewhere");
            std::fs::rename(&data_dir, &elsewhere).unwrap();
            let report = kill_known(&known.directory, known.segment, PATIENCE);
            assert!(report.is_dead && report.survivors.is_empty(), "{report:?}");
            assert!(report.killed.len() > 3, "{report:?}");
        },
    );
}

#[test]
fn an_agent_does_not_start_beside_a_living_one_of_its_name() {
    on_every_major(
        "an_agent_does_not_start_beside_a_living_one_of_its_name",
        async |servers| {
            let mut agents = Agents::new(servers);
            agents.start(1, 5);
            let door = Postgres::new(agents.config(1)).unwrap();
            leads(&agents, &door, 1).await;
            agents.start_as(2, "member-1", 5);
            let end = wait_for("the second agent's end", String::new, async || {
                agents.ended(2)
            });
            let ended = end.await;
            assert!(!ended.success());
            let said = agents.said(2);
            assert!(
                said.contains("member-1 of cluster test is alive and answers at"),
                "{said}"
            );
            assert_eq!(agents.fence(2), None, "nothing is left of it");
            // The first one starts again under its own record.
            agents.kill(1);
            agents.start(1, 5);
            let held = deadline(&agents, 1);
            wait_for(
                "the lease again",
                || agents.told(),
                async || deadline(&agents, 1).filter(|at| Some(*at) > held),
            )
            .await;
        },
    );
}

/// The backend through which the agent writes to its disk, frozen: its writes hang as on a disk that hangs, and
/// every other session answers.
#[test]
fn a_leader_whose_writes_hang_is_replaced_by_a_member_that_can_write() {
    on_every_major(
        "a_leader_whose_writes_hang_is_replaced_by_a_member_that_can_write",
        async |servers| {
            let mut agents = Agents::new(servers);
            agents.start(1, 3);
            let old = Postgres::new(agents.config(1)).unwrap();
            leads(&agents, &old, 1).await;
            agents.start(2, 3);
            let new = Postgres::new(agents.config(2)).unwrap();
            wait_for(
                "a streaming replica",
                || agents.told(),
                async || {
                    let status = answer(&new).await.filter(|s| s.is_in_recovery)?;
                    status.receiver.as_ref()?.is_streaming().then_some(())
                },
            )
            .await;
            let client = servers.client(1).await;
            let find =
                format!("SELECT pid FROM pg_stat_activity WHERE application_name = '{PROBE_NAME}'");
            let writer = wait_for(
                "the session that writes",
                || agents.told(),
                async || {
                    let rows = client.query(&find, &[]).await.ok()?;
                    Some(rows.first()?.get::<_, i32>(0))
                },
            )
            .await;
            signal(writer, Signal::STOP);
            let began = clock::now();
            wait_for(
                "the other as primary",
                || agents.told(),
                async || answer(&new).await.filter(|s| !s.is_in_recovery).map(drop),
            )
            .await;
            println!(
                "measured: writes again {:?} after they hung",
                clock::now().since(began)
            );
            let said = agents.said(1);
            assert!(said.contains("handing_over_for_hang"), "{said}");
        },
    );
}

/// The process that replays WAL for `postmaster`.
fn startup_process(postmaster: i32) -> Option<i32> {
    let is_child = |pid: &i32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let after = stat.rsplit(')').next().unwrap_or_default();
        after.split_whitespace().nth(1) == Some(&postmaster.to_string())
    };
    processes().find(|pid| is_child(pid) && words_of(*pid).contains("startup"))
}

#[test]
fn an_agent_killed_in_the_middle_of_a_promotion_goes_on_where_it_was() {
    on_every_major(
        "an_agent_killed_in_the_middle_of_a_promotion_goes_on_where_it_was",
        async |servers| {
            let mut agents = Agents::new(servers);
            agents.start(1, 5);
            let old = Postgres::new(agents.config(1)).unwrap();
            leads(&agents, &old, 1).await;
            agents.start(2, 5);
            let new = Postgres::new(agents.config(2)).unwrap();
            wait_for(
                "a streaming replica",
                || agents.told(),
                async || {
                    let status = answer(&new).await.filter(|s| s.is_in_recovery)?;
                    status.receiver.filter(|r| r.is_streaming())
                },
            )
            .await;

            // Promotion is signalled, and does not end before the one who replays goes on.
            let replays = startup_process(new.adopt().unwrap().pid).expect("a startup process");
            signal(replays, Signal::STOP);
            let fence_of_old = agents.fence(1).expect("a fence");
            agents.kill(1);
            signal(fence_of_old, Signal::KILL);
            kill_instance(&agents.config(1).data_dir, PATIENCE);
            wait_for(
                "a promotion",
                || agents.told(),
                async || new.is_promoting().then_some(()),
            )
            .await;
            let fence = agents.fence(2).expect("a fence");
            let postmaster = new.adopt().unwrap();
            agents.kill(2);
            agents.start(2, 5);
            wait_for(
                "the agent's return",
                || agents.told(),
                async || (agents.said(2).matches("started").count() >= 2).then_some(()),
            )
            .await;
            signal(replays, Signal::CONT);
            let status = wait_for(
                "a primary",
                || agents.told(),
                async || answer(&new).await.filter(|s| !s.is_in_recovery),
            )
            .await;

            assert_eq!(status.timeline, Timeline(2));
            assert_eq!(new.adopt(), Some(postmaster), "the same postmaster");
            assert_eq!(agents.fence(2), Some(fence), "the same fence");
            assert!(old.is_dead().await, "one primary");
            let budgets = Budgets {
                operation: PATIENCE,
                renewal: PATIENCE,
            };
            let config = EtcdConfig::from_hosts(&agents.etcd()).unwrap();
            let dcs = Etcd::new(&config, budgets).unwrap();
            wait_for(
                "its key",
                || agents.told(),
                async || {
                    let listing = dcs.read("/service/test/leader").await.ok()?;
                    let leader = listing.entries.into_iter().next()?;
                    (leader.value == b"member-2").then_some(())
                },
            )
            .await;
            leads(&agents, &new, 2).await;
        },
    );
}
