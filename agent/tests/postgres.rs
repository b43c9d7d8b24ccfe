//! The door to the instance, the Kill and the fence against real PostgreSQL, every installed major version.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking; the lints exempt only functions marked as tests"
)]

#[path = "postgres/backup.rs"]
mod backup;
#[path = "postgres/beyond_the_fork.rs"]
mod beyond_the_fork;
#[path = "postgres/fence.rs"]
mod fence;
#[path = "postgres/hooks.rs"]
mod hooks;
#[path = "support/servers.rs"]
mod servers;
#[path = "postgres/slots.rs"]
mod slots;
#[path = "postgres/synchronous.rs"]
mod synchronous;
#[path = "postgres/tablespaces.rs"]
mod tablespaces;
#[path = "postgres/timeline_of_replay.rs"]
mod timeline_of_replay;

use std::time::Duration;

use rustix::process::{Pid, Signal, getpgid, kill_process};
use servers::{PATIENCE, Servers, on_every_major, wait_for};
use trunkline_agent::postgres::directory::{ASIDE, DirectoryState, NEW, finish_interrupted};
use trunkline_agent::postgres::process::StopMode;
use trunkline_agent::postgres::replication::Followed;
use trunkline_agent::postgres::rewind::{LocalEnd, RewindNeed, WAL_ASIDE, needs_rewind};
use trunkline_agent::postgres::timelines::TimelineStep;
use trunkline_agent::postgres::{
    Postgres, PostgresError, Postmaster, Probe, Receivers, ServerRole, ServerStatus, StopPlan,
    StopReport, UpstreamChange,
};
use trunkline_shared::cluster::{Moment, SystemId, Timeline};
use trunkline_shared::service::clock;

/// A loop that never looks whether its postmaster still lives.
const BUSY: &str = "DO $$ BEGIN LOOP PERFORM 1; END LOOP; END $$";

fn signal(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
}

async fn answer(door: &Postgres) -> ServerStatus {
    match door.probe(PATIENCE).await {
        Probe::Answer(status) => *status,
        other => panic!("no answer: {other:?}"),
    }
}

fn plan(mode: StopMode) -> StopPlan {
    StopPlan {
        mode,
        is_checkpoint_first: mode == StopMode::Fast,
        wait_for: None,
        limit: PATIENCE,
    }
}

/// A new cluster on instance 1, running as primary.
async fn primary(servers: &Servers) -> Postgres {
    let door = servers.door(1);
    door.initialize().await.unwrap();
    door.start(ServerRole::Primary).await.unwrap();
    door.wait_ready(PATIENCE).await.unwrap();
    door.create_roles().await.unwrap();
    door
}

/// Waits for the end of the postmaster and returns the moment it was seen.
async fn seen_ended(door: &Postgres) -> Moment {
    let mut watch = door.watch_postmaster();
    let ended = watch.wait_for(|now| matches!(now, Postmaster::Exited { .. }));
    match *tokio::time::timeout(PATIENCE, ended)
        .await
        .unwrap()
        .unwrap()
    {
        Postmaster::Exited { at, .. } => at,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_running_server_is_adopted_and_its_end_is_seen_at_once() {
    on_every_major(
        "a_running_server_is_adopted_and_its_end_is_seen_at_once",
        async |servers| {
            let first = primary(servers).await;
            let status = answer(&first).await;
            assert!(!status.is_in_recovery);
            assert_eq!(status.timeline, Timeline(1));
            assert_eq!(
                first.control_data().await.unwrap().system_id,
                status.system_id
            );
            assert_eq!(first.pending_restart(&status), Default::default());
            let log = std::fs::read_to_string(servers.config(1).log_file).unwrap();
            assert!(!log.contains("replicated"), "a password is in the log");
            let pid = first.adopt().unwrap().pid;
            let group = getpgid(Pid::from_raw(pid)).unwrap();
            assert_eq!(group.as_raw_nonzero().get(), pid, "a group of its own");
            drop(first);

            let second = servers.door(1);
            assert_eq!(second.adopt().unwrap().pid, pid);
            assert_eq!(answer(&second).await.started_us, status.started_us);
            let refused = second.start(ServerRole::Primary).await;
            assert!(
                matches!(refused, Err(PostgresError::Running { .. })),
                "{refused:?}"
            );

            let killed = clock::now();
            signal(pid, Signal::KILL);
            let seen = seen_ended(&second).await;
            println!("measured: SIGKILL to exit seen {:?}", seen.since(killed));
            wait_for("a dead instance", String::new, async || {
                second.is_dead().await.then_some(())
            })
            .await;
            assert!(matches!(
                second.probe(PATIENCE).await,
                Probe::NotRunning { is_dead: true }
            ));
            second.start(ServerRole::Primary).await.unwrap();
            second.wait_ready(PATIENCE).await.unwrap();
            assert_eq!(answer(&second).await.timeline, Timeline(1));
        },
    );
}

#[test]
fn a_primary_that_is_closed_to_clients_answers_after_a_reload() {
    on_every_major(
        "a_primary_that_is_closed_to_clients_answers_after_a_reload",
        async |servers| {
            let door = primary(servers).await;
            door.stop(&plan(StopMode::Fast)).await.unwrap();
            let started = door.start_if(ServerRole::Primary, true, || true);
            started.await.unwrap();
            door.wait_ready(PATIENCE).await.unwrap();
            door.reload().unwrap();
            // That it waits for a restart to open is seen once the reload was taken up.
            wait_for("the reload", String::new, async || {
                let status = answer(&door).await;
                let mut waiting = status.pending_restart.iter();
                waiting.any(|one| one.name == "hba_file").then_some(())
            })
            .await;
        },
    );
}

#[test]
fn a_start_that_fails_says_why_and_a_directory_postgresql_would_refuse_is_named() {
    on_every_major(
        "a_start_that_fails_says_why_and_a_directory_postgresql_would_refuse_is_named",
        async |servers| {
            let door = primary(servers).await;
            door.stop(&plan(StopMode::Fast)).await.unwrap();
            let taken =
                std::net::TcpListener::bind((servers.config(1).connect_host, 5432)).unwrap();
            door.start(ServerRole::Primary).await.unwrap();
            let error = door.wait_ready(PATIENCE).await.unwrap_err();
            assert!(
                error.to_string().contains("Address already in use"),
                "{error}"
            );
            drop(taken);
            let data = servers.config(1).data_dir;
            let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
            std::fs::set_permissions(&data, open).unwrap();
            let error = door.start(ServerRole::Primary).await.unwrap_err();
            assert!(error.to_string().contains("chmod 0700"), "{error}");
        },
    );
}

#[test]
fn a_stop_ends_every_process_in_each_mode() {
    on_every_major("a_stop_ends_every_process_in_each_mode", async |servers| {
        let door = primary(servers).await;
        let client = servers.client(1).await;
        client
            .batch_execute("CREATE TABLE t AS SELECT generate_series(1, 200000) AS i")
            .await
            .unwrap();
        let report = door.stop(&plan(StopMode::Fast)).await.unwrap();
        println!(
            "measured: checkpoint {:?}, then fast stop {:?}",
            report.checkpoint, report.took
        );
        assert!(report.is_as_planned && door.is_dead().await);
        let end = door.local_end(None).await.unwrap();
        assert!(matches!(end, LocalEnd::StoppedPrimary { .. }), "{end:?}");

        door.start(ServerRole::Primary).await.unwrap();
        door.wait_ready(PATIENCE).await.unwrap();
        let report = door.stop(&plan(StopMode::Immediate)).await.unwrap();
        println!("measured: immediate stop {:?}", report.took);
        assert!(door.is_dead().await);
        let end = door.local_end(None).await.unwrap();
        assert!(matches!(end, LocalEnd::CrashedPrimary { .. }), "{end:?}");

        // A session that does not answer signals holds up a fast stop; its limit ends it.
        door.start(ServerRole::Primary).await.unwrap();
        door.wait_ready(PATIENCE).await.unwrap();
        let stuck = servers.client(1).await;
        let backend: i32 = stuck
            .query_one("SELECT pg_backend_pid()", &[])
            .await
            .unwrap()
            .get(0);
        signal(backend, Signal::STOP);
        let report = door
            .stop(&StopPlan {
                limit: Duration::from_millis(300),
                ..plan(StopMode::Fast)
            })
            .await
            .unwrap();
        assert!(!report.is_as_planned && door.is_dead().await);
    });
}

#[test]
fn busy_backends_survive_their_postmaster_and_the_kill_ends_them() {
    on_every_major(
        "busy_backends_survive_their_postmaster_and_the_kill_ends_them",
        async |servers| {
            let door = primary(servers).await;
            for _ in 0..20 {
                let client = servers.client(1).await;
                tokio::spawn(async move { client.batch_execute(BUSY).await });
            }
            let watching = servers.client(1).await;
            wait_for("20 busy backends", String::new, async || {
                let sql = "SELECT count(*) FROM pg_stat_activity \
                           WHERE state = 'active' AND query LIKE 'DO %'";
                let busy: i64 = watching.query_one(sql, &[]).await.unwrap().get(0);
                (busy == 20).then_some(())
            })
            .await;
            let pid = door.adopt().unwrap().pid;
            signal(pid, Signal::KILL);
            seen_ended(&door).await;
            assert!(!door.is_dead().await, "the busy backends live on");
            let report = door.kill(PATIENCE).await;
            println!(
                "measured: kill of {} processes {:?}",
                report.killed.len(),
                report.took
            );
            assert!(report.is_dead && report.killed.len() >= 20, "{report:?}");
            assert!(door.is_dead().await);

            // Again without postmaster.pid, and with the postmaster alive.
            door.start(ServerRole::Primary).await.unwrap();
            door.wait_ready(PATIENCE).await.unwrap();
            std::fs::remove_file(servers.config(1).data_dir.join("postmaster.pid")).unwrap();
            assert!(!door.is_dead().await);
            let report = door.kill(PATIENCE).await;
            println!("measured: kill of an idle instance {:?}", report.took);
            assert!(report.is_dead && !report.killed.is_empty(), "{report:?}");
        },
    );
}

/// A replica on instance `index`, copied from instance `from`, streaming.
async fn replica(servers: &Servers, index: u8, from: u8) -> Postgres {
    let door = servers.door(index);
    let upstream = servers.upstream(from);
    door.copy_from(&upstream, None).await.unwrap();
    follow_from_start(&door, servers, from).await;
    door
}

async fn follow_from_start(door: &Postgres, servers: &Servers, from: u8) {
    let upstream = servers.upstream(from);
    let role = ServerRole::Replica(UpstreamChange::To(upstream.clone()));
    door.start(role).await.unwrap();
    door.wait_ready(PATIENCE).await.unwrap();
    let followed = door.wait_streaming(&upstream, PATIENCE).await.unwrap();
    assert_eq!(followed, Followed::Streaming);
}

async fn wait_replayed(from: &Postgres, to: &Postgres) {
    let written = answer(from).await.current.unwrap();
    wait_for("the replica to replay", String::new, async || {
        (answer(to).await.replayed >= Some(written)).then_some(())
    })
    .await;
}

#[test]
fn a_member_is_cloned_promoted_rewound_and_cloned_again() {
    on_every_major(
        "a_member_is_cloned_promoted_rewound_and_cloned_again",
        async |servers| {
            let first = primary(servers).await;
            let archive = archived(servers, &first).await;
            first.create_slot("member_2").await.unwrap();
            let second = replica(servers, 2, 1).await;
            let client = servers.client(1).await;
            client
                .batch_execute("CREATE TABLE t (i int); INSERT INTO t VALUES (1)")
                .await
                .unwrap();
            wait_replayed(&first, &second).await;
            let senders = answer(&first).await.senders;
            assert_eq!(senders.len(), 1, "{senders:?}");
            assert_eq!(senders[0].application_name, "member-2");
            let conninfo = answer(&second).await.conninfo;
            assert!(conninfo.contains("wal_sender_timeout=5s"), "{conninfo}");
            assert!(conninfo.contains("gssencmode=disable"), "{conninfo}");
            assert_eq!(answer(&first).await.slots.len(), 1);
            first.drop_slot("member_2").await.unwrap();

            // The right to promote ends before the signal: nothing is signalled.
            let step = |to| TimelineStep {
                from: Timeline(1),
                to: Timeline(to),
            };
            let refused = second.promote(step(4), PATIENCE, || false).await;
            assert!(matches!(refused, Err(PostgresError::PromoteNotAllowed)));
            assert!(answer(&second).await.is_in_recovery);

            // Numbers claimed elsewhere are left out.
            let promoted = second.promote(step(4), PATIENCE, || true).await.unwrap();
            println!("measured: promotion {:?}", promoted.took);
            assert_eq!(promoted.timeline, Timeline(4));
            second.checkpoint(PATIENCE).await.unwrap();
            let status = answer(&second).await;
            assert_eq!(
                (status.timeline, status.checkpoint_timeline),
                (Timeline(4), Timeline(4))
            );

            parted_and_rewound(servers, &first, &second, &archive).await;

            reclone(servers, first, second).await;
        },
    );
}

/// Both are primaries, as no leader would allow: the first writes on, crashes, and is taken back.
async fn parted_and_rewound(
    servers: &Servers,
    first: &Postgres,
    second: &Postgres,
    archive: &std::path::Path,
) {
    let client = servers.client(1).await;
    client
        .batch_execute("INSERT INTO t VALUES (-1)")
        .await
        .unwrap();
    client
        .batch_execute("SELECT pg_switch_wal()")
        .await
        .unwrap();
    first.stop(&plan(StopMode::Immediate)).await.unwrap();
    std::fs::write(servers.config(1).data_dir.join("pg_wal/may_archive"), "").unwrap();
    servers
        .client(2)
        .await
        .batch_execute("INSERT INTO t VALUES (2)")
        .await
        .unwrap();
    let facts = first.source_facts(&servers.upstream(2)).await.unwrap();
    assert!(facts.is_rewind_source(), "{facts:?}");
    let end = first.local_end(None).await.unwrap();
    let need = needs_rewind(end, facts.timeline, &facts.history);
    let RewindNeed::Needed { fork } = need else {
        panic!("{need:?} with {facts:?}")
    };
    first.rewind(&servers.upstream(2), fork).await.unwrap();
    let kept = std::fs::read_dir(archive).unwrap().count();
    assert!(
        kept > 0,
        "what waited for the archive went there before the rewind"
    );
    let aside = std::fs::read_dir(servers.config(1).beside(WAL_ASIDE)).unwrap();
    assert!(aside.count() > 0, "the WAL after the fork was set aside");
    follow_from_start(first, servers, 2).await;
    wait_replayed(second, first).await;
    assert_eq!(rows(servers, 1).await, [1, 2]);
}

/// Lets instance 1 archive and fetch, but only from the moment on that a file says so.
async fn archived(servers: &Servers, first: &Postgres) -> std::path::PathBuf {
    first.stop(&plan(StopMode::Fast)).await.unwrap();
    let archive = servers.folder().join("archive");
    let mut config = servers.config(1);
    let command = format!(
        "test -e pg_wal/may_archive && cp %p {}/%f",
        archive.display()
    );
    let parameters = [("archive_mode", "on"), ("archive_command", &command)];
    config
        .parameters
        .extend(parameters.map(|(name, value)| (name.to_owned(), value.to_owned())));
    let restore = format!("cp {}/%f %p", archive.display());
    config.recovery.insert("restore_command".into(), restore);
    std::fs::create_dir(&archive).unwrap();
    first.reconfigure(config).await;
    first.start(ServerRole::Primary).await.unwrap();
    first.wait_ready(PATIENCE).await.unwrap();
    archive
}

async fn rows(servers: &Servers, index: u8) -> Vec<i32> {
    let client = servers.client(index).await;
    let rows = client
        .query("SELECT i FROM t ORDER BY i", &[])
        .await
        .unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

async fn reclone(servers: &Servers, first: Postgres, second: Postgres) {
    first.stop(&plan(StopMode::Fast)).await.unwrap();
    let end = first.local_end(None).await.unwrap();
    assert!(
        matches!(
            end,
            LocalEnd::Replica {
                timeline: Timeline(4),
                ..
            }
        ),
        "{end:?}"
    );
    let config = servers.config(1);
    std::fs::write(config.data_dir.join("mark"), "old").unwrap();
    let foreign = first
        .copy_from(&servers.upstream(2), Some(SystemId(1)))
        .await;
    assert!(
        matches!(foreign, Err(PostgresError::ForeignSystem { .. })),
        "{foreign:?}"
    );
    assert!(config.data_dir.join("mark").exists() && !config.beside(NEW).exists());
    let system_id = answer(&second).await.system_id;
    first
        .copy_from(&servers.upstream(2), Some(system_id))
        .await
        .unwrap();
    assert!(
        config.beside(ASIDE).join("mark").exists(),
        "the old directory is kept"
    );
    assert!(!config.data_dir.join("mark").exists());
    assert_eq!(
        finish_interrupted(&config).unwrap(),
        DirectoryState::Present
    );
    follow_from_start(&first, servers, 2).await;
    wait_replayed(&second, &first).await;
    assert_eq!(rows(servers, 1).await, [1, 2]);

    // A source that is not there: the old directory stays, nothing is left beside.
    first.stop(&plan(StopMode::Fast)).await.unwrap();
    let failed = first.copy_from(&servers.upstream(9), None).await;
    assert!(
        matches!(failed, Err(PostgresError::Tool { .. })),
        "{failed:?}"
    );
    assert_eq!(
        finish_interrupted(&config).unwrap(),
        DirectoryState::Present
    );
}

/// A session that takes its time to end holds the stop up, and costs member-2 nothing of what is written then.
async fn stop_behind_a_slow_session(servers: &Servers, first: &Postgres) -> StopReport {
    let session = servers.client(1).await;
    let row = session.query_one("SELECT pg_backend_pid()", &[]).await;
    let backend: i32 = row.unwrap().get(0);
    signal(backend, Signal::STOP);
    let receivers = Receivers {
        successor: Some("member-2".to_owned()),
        others: vec!["member-3".to_owned()],
        is_taken_back: false,
    };
    let to_member_2 = StopPlan {
        wait_for: Some(receivers),
        ..plan(StopMode::Fast)
    };
    let stop = first.stop(&to_member_2);
    tokio::pin!(stop);
    let longer_than_a_receiver_may_take = Duration::from_millis(1500);
    let early = tokio::time::timeout(longer_than_a_receiver_may_take, &mut stop).await;
    assert!(
        early.is_err(),
        "stopped with a session that lives: {early:?}"
    );
    signal(backend, Signal::CONT);
    stop.await.unwrap()
}

#[test]
fn a_planned_stop_sends_everything_and_a_follower_changes_its_upstream() {
    on_every_major(
        "a_planned_stop_sends_everything_and_a_follower_changes_its_upstream",
        async |servers| {
            let first = primary(servers).await;
            let second = replica(servers, 2, 1).await;
            let third = replica(servers, 3, 1).await;
            servers
                .client(1)
                .await
                .batch_execute("CREATE TABLE t (i int)")
                .await
                .unwrap();

            // Replay on the second waits for a query; the promotion does not wait with it.
            let mut reader = servers.client(2).await;
            wait_replayed(&first, &second).await;
            let reading = reader.build_transaction().start().await.unwrap();
            reading.query("SELECT * FROM t", &[]).await.unwrap();
            servers
                .client(1)
                .await
                .batch_execute("DROP TABLE t")
                .await
                .unwrap();

            // A walsender that cannot drain must not hold up the stop: member-2 leads next.
            let session = servers.client(3).await;
            let row = session.query_one("SELECT pid FROM pg_stat_wal_receiver", &[]);
            let frozen: i32 = row.await.unwrap().get(0);
            signal(frozen, Signal::STOP);
            let report = stop_behind_a_slow_session(servers, &first).await;
            signal(frozen, Signal::CONT);
            println!(
                "measured: with two replicas, checkpoint {:?}, then fast stop {:?}",
                report.checkpoint, report.took
            );
            assert!(report.is_as_planned);
            let LocalEnd::StoppedPrimary { end, .. } = first.local_end(None).await.unwrap() else {
                panic!("not clean")
            };
            assert!(answer(&second).await.received >= Some(end), "all was sent");

            // Two numbers are left out; the third asks for their history files all the same.
            let step = TimelineStep {
                from: Timeline(1),
                to: Timeline(4),
            };
            let promoted = second.promote(step, PATIENCE, || true).await.unwrap();
            println!(
                "measured: promotion through a replay conflict {:?}",
                promoted.took
            );
            let upstream = servers.upstream(2);
            let change = UpstreamChange::To(upstream.clone());
            third.follow(change).await.unwrap();
            let followed = third.wait_streaming(&upstream, PATIENCE).await.unwrap();
            assert_eq!(followed, Followed::Streaming);
            wait_for("the third on the new timeline", String::new, async || {
                (answer(&third).await.timeline == Timeline(4)).then_some(())
            })
            .await;

            // The old primary stopped exactly where the new timeline begins: it follows as it is.
            second.checkpoint(PATIENCE).await.unwrap();
            let facts = first.source_facts(&servers.upstream(2)).await.unwrap();
            let local = first.local_end(None).await.unwrap();
            let need = needs_rewind(local, facts.timeline, &facts.history);
            assert_eq!(need, RewindNeed::NotNeeded, "{local:?} {facts:?}");
            follow_from_start(&first, servers, 2).await;
        },
    );
}
