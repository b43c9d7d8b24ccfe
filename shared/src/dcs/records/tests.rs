//! Round trips, and literal records as Patroni 4 writes them.

use std::time::Duration;

use super::*;
use crate::cluster::member::{ParameterChange, RestartSchedule, SwitchoverReady, TrunklineFields};
use crate::cluster::settings::SynchronousMode;
use crate::cluster::slots::{ClusterType, SlotKind};
use crate::cluster::switchover::OnTimeout;
use crate::cluster::{ClusterSettings, Member, MemberRole, MemberState, Tags};

fn unreadable(key: &FactKey, text: &str) -> String {
    match parse(key, text.as_bytes()) {
        Fact::Unreadable(why) => why.to_string(),
        other => panic!("{text} was read as {other:?}"),
    }
}

fn patroni_replica() -> &'static str {
    r#"{"conn_url":"postgres://10.0.0.2:5432/postgres","api_url":"http://10.0.0.2:8008/patroni","state":"running","role":"replica","version":"4.1.0","tags":{"failover_priority":3,"nosync":true,"rack":"b7"},"pending_restart":true,"pending_restart_reason":{"max_connections":{"old_value":"100","new_value":"200"}},"xlog_location":67109184,"receive_lsn":67109184,"replay_lsn":67108864,"replication_state":"streaming","timeline":3}"#
}

#[test]
fn reads_a_replica_as_patroni_4_writes_it() {
    let key = FactKey::Member(MemberName::new("b"));
    let Fact::Member(member) = parse(&key, patroni_replica().as_bytes()) else {
        panic!("unreadable");
    };
    assert_eq!(&*member.address, "10.0.0.2:5432");
    assert_eq!(member.role, MemberRole::Replica);
    assert_eq!(member.state, MemberState::Running);
    assert_eq!(member.timeline, Some(Timeline(3)));
    assert_eq!(member.position, Some(Lsn(67_109_184)));
    assert_eq!(member.replayed, Some(Lsn(67_108_864)));
    assert_eq!(member.is_streaming, Some(true));
    assert_eq!(member.tags.failover_priority, Some(3));
    assert!(member.tags.nosync && member.has_pending_restart && !member.is_paused);
    assert_eq!(member.tags.custom["rack"], "\"b7\"");
    assert!(!member.is_trunkline() && member.is_checkpointed_after_promote);
}

#[test]
fn reads_an_old_master_and_addresses_of_every_form() {
    let record = |url: &str| {
        let text = format!(r#"{{"conn_url":"{url}","state":"running","role":"master"}}"#);
        member_from_json(&MemberName::new("a"), &text)
    };
    for (url, address) in [
        ("postgres://h:6000/postgres", "h:6000"),
        ("postgresql://u:p%40@h/db?x=1", "h:5432"),
        ("postgres://[fd00::1]:5433/postgres", "[fd00::1]:5433"),
        ("postgres://[fd00::1]/postgres", "[fd00::1]:5432"),
    ] {
        let member = record(url).unwrap();
        assert_eq!(&*member.address, address);
        assert_eq!(member.role, MemberRole::Primary);
    }
    for url in [
        "",
        "mysql://h:1/x",
        "postgres://:5432/x",
        "postgres://h:notaport/x",
    ] {
        assert!(record(url).unwrap_err().contains("conn_url"), "{url}");
    }
}

#[test]
fn a_member_is_printed_and_read_back_whole() {
    let member = Member {
        name: MemberName::new("a"),
        address: "10.0.0.1:5432".into(),
        proxy_address: Some("10.0.0.9:6432".into()),
        api_url: "http://10.0.0.1:8008/patroni".into(),
        role: MemberRole::Primary,
        state: MemberState::Running,
        timeline: Some(Timeline(7)),
        position: Some(Lsn(1 << 40)),
        received: None,
        replayed: None,
        is_streaming: None,
        tags: Tags {
            clonefrom: true,
            replicatefrom: Some(MemberName::new("c")),
            custom: [("rack".to_owned(), "7".to_owned())].into(),
            ..Tags::default()
        },
        is_checkpointed_after_promote: false,
        has_pending_restart: true,
        pending_restart: [(
            "max_connections".into(),
            ParameterChange {
                old: "100".into(),
                new: "200".into(),
            },
        )]
        .into(),
        scheduled_restart: Some(RestartSchedule {
            schedule: "2026-11-20T10:00:00+00:00".into(),
            postgres_version: Some("15.9".into()),
            postmaster_start_time: None,
        }),
        is_paused: true,
        version: "0.1.0".into(),
        lease: 0,
        revision: 0,
        trunkline: Some(TrunklineFields {
            epoch: Some(LeaderEpoch {
                generation: 1,
                revision: 42,
            }),
            system_id: Some(SystemId(7_300_000_000_000_000_001)),
            ready: Some(SwitchoverReady {
                id: 41,
                replayed: Lsn(99),
            }),
            reason: Some("holding_lease".into()),
            detail: Some("b lacks 9 bytes".into()),
            has_watchdog_failed: true,
        }),
    };
    let text = member_to_json(&member);
    assert_eq!(
        text,
        r#"{"conn_url":"postgres://10.0.0.1:5432/postgres","proxy_url":"postgres://10.0.0.9:6432/postgres","api_url":"http://10.0.0.1:8008/patroni","state":"running","role":"primary","version":"0.1.0","checkpoint_after_promote":false,"tags":{"clonefrom":true,"replicatefrom":"c","rack":7},"pending_restart":true,"pending_restart_reason":{"max_connections":{"old_value":"100","new_value":"200"}},"scheduled_restart":{"schedule":"2026-11-20T10:00:00+00:00","postgres_version":"15.9"},"xlog_location":1099511627776,"timeline":7,"pause":true,"trunkline":{"epoch":"1.42","system_id":"7300000000000000001","ready":{"id":41,"replayed":99},"reason":"holding_lease","detail":"b lacks 9 bytes","watchdog_failed":true}}"#
    );
    assert_eq!(member_from_json(&member.name, &text).unwrap(), member);
}

#[test]
fn every_state_and_role_has_its_own_word() {
    for number in 0..15u8 {
        let state = [
            MemberState::InitializingNewCluster,
            MemberState::InitdbFailed,
            MemberState::RunningCustomBootstrap,
            MemberState::CustomBootstrapFailed,
            MemberState::CreatingReplica,
            MemberState::Running,
            MemberState::Starting,
            MemberState::StartingAfterCustomBootstrap,
            MemberState::StartFailed,
            MemberState::Restarting,
            MemberState::RestartFailed,
            MemberState::Stopping,
            MemberState::Stopped,
            MemberState::StopFailed,
            MemberState::Crashed,
        ][usize::from(number)];
        assert_eq!(state as u8, number);
        assert_eq!(state_from_word(state_word(state)), Some(state));
    }
    for role in [
        MemberRole::Primary,
        MemberRole::Replica,
        MemberRole::StandbyLeader,
        MemberRole::Demoted,
        MemberRole::Uninitialized,
        MemberRole::Promoted,
    ] {
        assert_eq!(role_from_word(role_word(role)), Some(role));
    }
}

#[test]
fn an_explicit_nofailover_wins_over_a_priority_whichever_it_says() {
    let tags = |text: &str| tags_from_json(&serde_json::from_str(text).unwrap());
    assert!(tags(r#"{"nofailover":false,"failover_priority":0}"#).may_lead());
    assert!(!tags(r#"{"nofailover":"true","failover_priority":9}"#).may_lead());
    assert!(!tags(r#"{"failover_priority":-1}"#).may_lead());
    assert!(tags("null").may_lead());
}

#[test]
fn reads_and_prints_the_status() {
    let text = r#"{"optime":67109184,"slots":{"b":67109000,"ls":5},"retain_slots":["b"]}"#;
    let Fact::Status(status) = parse(&FactKey::Status, text.as_bytes()) else {
        panic!("unreadable");
    };
    assert_eq!(status.optime, Lsn(67_109_184));
    assert_eq!(status.slots["ls"], Lsn(5));
    assert_eq!(status_to_json(&status), text);
    assert_eq!(status_from_json("12345").unwrap().optime, Lsn(12_345));
    assert!(unreadable(&FactKey::Status, r#"{"optime":"x"}"#).contains("optime"));
}

#[test]
fn a_consumed_failover_request_counts_as_no_key() {
    for text in ["", "{}", " { } ", "null"] {
        assert!(is_absent(&FactKey::Failover, text.as_bytes()), "{text}");
    }
    let request = failover_from_text(
        r#"{"leader":"a","member":"b","scheduled_at":"2026-11-20T10:00:00+00:00"}"#,
    )
    .unwrap();
    assert_eq!(request.leader, Some(MemberName::new("a")));
    assert_eq!(request.candidate, Some(MemberName::new("b")));
    assert_eq!(
        failover_to_json(&request),
        r#"{"leader":"a","member":"b","scheduled_at":"2026-11-20T10:00:00+00:00"}"#
    );
    let patient = r#"{"leader":"a","drain_timeout":2.5,"on_timeout":"terminate"}"#;
    let request = failover_from_text(patient).unwrap();
    assert_eq!(request.drain.on_timeout, Some(OnTimeout::Terminate));
    assert_eq!(failover_to_json(&request), patient);
    assert!(failover_from_text(r#"{"leader":"a","on_timeout":"wait"}"#).is_err());
    let legacy = failover_from_text(":b").unwrap();
    assert_eq!(
        (legacy.leader, legacy.candidate),
        (None, Some(MemberName::new("b")))
    );
}

#[test]
fn reads_and_prints_sync_history_and_failsafe() {
    let text = r#"{"leader":"a","sync_standby":"b,c","quorum":1}"#;
    let sync = sync_from_json(text).unwrap();
    assert_eq!(sync.standbys, [MemberName::new("b"), MemberName::new("c")]);
    assert_eq!(sync_to_json(&sync), text);
    let none = sync_from_json(r#"{"leader":"a","sync_standby":null}"#).unwrap();
    assert_eq!(
        sync_to_json(&none),
        r#"{"leader":"a","sync_standby":null,"quorum":0}"#
    );

    let text = r#"[[1,100,"no recovery target specified"],[2,200,"no recovery target specified","2026-11-20T10:00:00.000000+00:00","b"]]"#;
    let lines = history_lines(text).unwrap();
    assert_eq!(lines[1].leader.as_deref(), Some("b"));
    assert_eq!(history_to_json(&lines), text);
    let without_time = r#"[[3,300,"",null,"c"]]"#;
    let lines = history_lines(without_time).unwrap();
    assert_eq!(history_to_json(&lines), without_time);
    let Fact::History(history) = parse(&FactKey::History, text.as_bytes()) else {
        panic!("unreadable");
    };
    assert_eq!(history.end_of(Timeline(2)), Some(Lsn(200)));
    assert!(unreadable(&FactKey::History, r#"[["x"]]"#).contains("timeline"));

    let text = r#"{"a":"http://10.0.0.1:8008/patroni"}"#;
    let failsafe = failsafe_from_json(text).unwrap();
    assert_eq!(failsafe_to_json(&failsafe), text);
}

#[test]
fn a_switchover_record_survives_the_wire_at_every_stage() {
    for stage in [
        SwitchoverStage::HoldTransactions,
        SwitchoverStage::HoldAll,
        SwitchoverStage::Stopped {
            shutdown_checkpoint: Lsn(77),
        },
        SwitchoverStage::Resume,
    ] {
        let record = SwitchoverRecord {
            id: 5,
            epoch: LeaderEpoch {
                generation: 0,
                revision: 9,
            },
            from: MemberName::new("a"),
            to: MemberName::new("b"),
            stage,
            parts: ChangeParts {
                checkpoint: Some(Duration::from_micros(1500)),
                stop: Some(Duration::from_millis(90)),
                ..ChangeParts::default()
            },
        };
        let read = parse(&FactKey::Switchover, switchover_to_json(&record).as_bytes());
        assert_eq!(read, Fact::Switchover(Arc::new(record)));
    }
    assert!(unreadable(&FactKey::Switchover, r#"{"stage":"stopped"}"#).contains("checkpoint"));
}

#[test]
fn reads_the_plain_text_records() {
    assert_eq!(parse(&FactKey::Initialize, b""), Fact::Initialize(None));
    assert_eq!(
        parse(&FactKey::Initialize, b"7300000000000000001"),
        Fact::Initialize(Some(SystemId(7_300_000_000_000_000_001)))
    );
    assert_eq!(parse(&FactKey::Generation, b"3"), Fact::Generation(3));
    let stores = [0xcdf8_1818_4a5b_2c3d, 7];
    assert_eq!(
        parse(&FactKey::Succeeds, stores_to_json(&stores).as_bytes()),
        Fact::Succeeds(stores.into())
    );
    for unreadable in ["{}", r#"{"stores":[7]}"#, r#"{"stores":["x"]}"#] {
        let read = parse(&FactKey::Succeeds, unreadable.as_bytes());
        assert!(matches!(read, Fact::Unreadable(_)), "{unreadable}");
    }
    assert_eq!(
        parse(&FactKey::Leader, b"a"),
        Fact::Leader(MemberName::new("a"))
    );
    assert!(unreadable(&FactKey::Initialize, "x").contains("system identifier"));
    assert!(matches!(
        parse(&FactKey::Leader, b"\xff\xfe"),
        Fact::Unreadable(_)
    ));
    assert!(is_absent(&FactKey::Leader, b""));
}

#[test]
fn reads_a_dynamic_configuration_as_patroni_bootstraps_it() {
    let settings = settings_from_json(
        r#"{"ttl":30,"loop_wait":"10s","retry_timeout":10,"maximum_lag_on_failover":"1MB",
            "master_start_timeout":"5min","pause":"on","failsafe_mode":true,"synchronous_mode":"quorum",
            "synchronous_node_count":2,"member_slots_ttl":"30min","maximum_lag_on_syncnode":-1,
            "slots":{"x":{"type":"physical"}},"something_new":[1],
            "postgresql":{"use_pg_rewind":"yes","use_slots":false,
              "parameters":{"max_connections":200,"hot_standby":true,"work_mem":"4MB","gone":null},
              "pg_hba":["local all all trust"]}}"#,
    )
    .unwrap();
    assert_eq!(settings.loop_wait, Duration::from_secs(10));
    assert_eq!(settings.maximum_lag_on_failover, 1 << 20);
    assert_eq!(settings.primary_start_timeout, Duration::from_secs(300));
    assert!(settings.is_paused && settings.use_pg_rewind && !settings.use_slots);
    assert_eq!(settings.failsafe_mode, Some(true));
    assert_eq!(settings.synchronous_mode, SynchronousMode::Quorum);
    assert_eq!(settings.synchronous_node_count, 2);
    assert_eq!(settings.parameters["max_connections"], "200");
    assert_eq!(settings.parameters["hot_standby"], "on");
    assert!(!settings.parameters.contains_key("gone"));
    assert_eq!(settings.pg_hba.unwrap().len(), 1);
    assert_eq!(
        settings_from_json("{}").unwrap(),
        ClusterSettings::default()
    );
}

#[test]
fn reads_slots_and_a_standby_cluster() {
    let settings = settings_from_json(
        r#"{"slots":{"barman":null,"s":{"type":"physical","cluster_type":"standby"},
             "app":{"database":"app","plugin":"pgoutput"}},
            "ignore_slots":[{"name":"x","type":"logical"}],
            "standby_cluster":{"host":"10.0.0.9","port":"5433","primary_slot_name":"site_b"}}"#,
    )
    .unwrap();
    assert_eq!(settings.slots["barman"].kind, SlotKind::Physical);
    assert_eq!(settings.slots["s"].only_in, Some(ClusterType::Standby));
    assert_ne!(settings.slots["app"].kind, SlotKind::Physical);
    assert_eq!(settings.ignore_slots[0].is_logical, Some(true));
    let remote = settings.standby_cluster.unwrap();
    assert_eq!(remote.host.as_deref(), Some("10.0.0.9"));
    assert_eq!(remote.port, 5433);
    let none = settings_from_json(r#"{"standby_cluster":{}}"#).unwrap();
    assert_eq!(none.standby_cluster, None);
}

#[test]
fn an_unusable_setting_is_named_with_what_is_allowed() {
    for (text, key) in [
        (r#"{"ttl":1}"#, "ttl"),
        (r#"{"ttl":2.5}"#, "ttl"),
        (r#"{"ttl":"forever"}"#, "ttl"),
        (r#"{"loop_wait":0}"#, "loop_wait"),
        (r#"{"pause":"perhaps"}"#, "pause"),
        (
            r#"{"maximum_lag_on_failover":-1}"#,
            "maximum_lag_on_failover",
        ),
        (r#"{"synchronous_mode":"sometimes"}"#, "synchronous_mode"),
        (r#"{"synchronous_node_count":0}"#, "synchronous_node_count"),
        (r#"{"postgresql":[]}"#, "postgresql"),
        (r#"{"postgresql":{"use_slots":3}}"#, "postgresql.use_slots"),
        (
            r#"{"postgresql":{"parameters":{"x":[]}}}"#,
            "postgresql.parameters.x",
        ),
        (r#"{"postgresql":{"pg_hba":"all"}}"#, "postgresql.pg_hba"),
        (r#"{"standby_cluster":1}"#, "standby_cluster"),
        (r#"{"standby_cluster":{"port":1}}"#, "standby_cluster.host"),
        (
            r#"{"standby_cluster":{"host":"a","port":"b"}}"#,
            "standby_cluster.port",
        ),
        (r#"{"slots":{"x":{"type":"odd"}}}"#, "slots.x.type"),
        (
            r#"{"slots":{"x":{"type":"logical","database":"a"}}}"#,
            "slots.x.plugin",
        ),
        (r#"{"slots":{"X":null}}"#, "slots"),
        (r#"{"ignore_slots":[{"named":"x"}]}"#, "ignore_slots.named"),
        (r#"{"ignore_slots":[{}]}"#, "ignore_slots"),
    ] {
        let error = settings_from_json(text).unwrap_err().to_string();
        assert!(error.starts_with(key), "{text}: {error}");
        assert!(error.contains("allowed: "), "{text}: {error}");
    }
    assert!(settings_from_json("[]").is_err() && settings_from_json("{").is_err());
}

#[test]
fn an_unusable_setting_takes_patronis_fallback_and_the_others_count() {
    let pause =
        |text: &str| format!(r#"{{"pause":true,"standby_cluster":{{"host":"far"}},{text}}}"#);
    let settings = |text: &str| {
        let read = read_settings(&pause(text)).unwrap();
        assert_eq!(read.unusable.len(), 1, "{text}");
        assert!(read.settings.is_paused, "{text}");
        let remote = read.settings.standby_cluster.as_ref().unwrap();
        assert_eq!(remote.host.as_deref(), Some("far"), "{text}");
        read.settings
    };
    let slots = settings(r#""slots":{"A-b":null,"ok":null}"#).slots;
    assert_eq!(slots.keys().collect::<Vec<_>>(), ["ok"]);
    assert!(settings(r#""slots":[]"#).slots.is_empty());
    assert_eq!(
        settings(r#""synchronous_node_count":0"#).synchronous_node_count,
        1
    );
    assert_eq!(
        settings(r#""max_timelines_history":-1"#).max_timelines_history,
        0
    );
    let ignored = settings(r#""ignore_slots":["a",{"name":"b"}]"#).ignore_slots;
    assert_eq!(ignored.len(), 1);
    let ignored = settings(r#""ignore_slots":[{"name":"b","odd":1}]"#).ignore_slots;
    assert_eq!(ignored[0].name.as_deref(), Some("b"));
    let timeout = |text| settings(text).primary_start_timeout;
    assert_eq!(timeout(r#""primary_start_timeout":-5"#), Duration::ZERO);
    assert_eq!(
        timeout(r#""primary_start_timeout":"soon""#),
        Duration::from_secs(300)
    );
    assert_eq!(settings(r#""ttl":"often""#).ttl, Duration::from_secs(30));
    assert_eq!(
        settings(r#""maximum_lag_on_failover":-1"#).maximum_lag_on_failover,
        0
    );
    let parameters = settings(r#""postgresql":{"parameters":{"a":[],"b":1}}"#).parameters;
    assert_eq!(parameters.keys().collect::<Vec<_>>(), ["b"]);
    assert!(settings(r#""postgresql":{"use_slots":3}"#).use_slots);
    let mode = settings(r#""synchronous_mode":"sometimes""#).synchronous_mode;
    assert_eq!(mode, SynchronousMode::Off);
}

#[test]
fn a_standby_cluster_with_a_slip_in_it_is_still_one() {
    let of = |text: &str| {
        let read = read_settings(&format!(r#"{{"standby_cluster":{text}}}"#)).unwrap();
        let is_named = !read.unusable.is_empty();
        (read.settings.standby_cluster, is_named)
    };
    let (several, is_named) = of(r#"{"host":"a,b","port":5433}"#);
    let several = several.unwrap();
    assert_eq!((several.host.as_deref(), several.port), (Some("a,b"), 5433));
    assert!(!is_named);
    for (text, is_standby) in [
        (r#"{"host":"a","port":"b"}"#, true),
        (r#"{"port":5433}"#, true),
        (r#"{"host":"a","create_replica_methods":1}"#, true),
        // Patroni counts neither as one.
        (r#"{"primary_slot_name":"s"}"#, false),
        ("1", false),
    ] {
        let (found, is_named) = of(text);
        assert_eq!(found.is_some(), is_standby, "{text}");
        assert!(is_named, "{text}");
    }
}

#[test]
fn a_merge_patch_merges_replaces_and_deletes() {
    let mut config: Value =
        serde_json::from_str(r#"{"ttl":30,"postgresql":{"parameters":{"a":1,"b":2}}}"#).unwrap();
    let patch: Value = serde_json::from_str(
        r#"{"ttl":20,"pause":true,"postgresql":{"parameters":{"a":null,"c":3}},"absent":null}"#,
    )
    .unwrap();
    assert!(merge_patch(&mut config, &patch));
    assert_eq!(
        config.to_string(),
        r#"{"ttl":20,"postgresql":{"parameters":{"b":2,"c":3}},"pause":true}"#
    );
    let patch = serde_json::json!({"ttl": 20});
    assert!(!merge_patch(&mut config, &patch));
}
