//! Rendering and reading back.

use std::time::Duration;

use super::*;
use crate::postgres::control_data::SharedMemorySettings;
use crate::postgres::controlled::controlled;
use crate::postgres::methods::ReplicaMethod;

pub(crate) fn config() -> PostgresConfig {
    let role = |name: &str, password: Option<&str>| Credentials {
        username: name.to_owned(),
        password: password.map(Into::into),
        connection: BTreeMap::new(),
    };
    PostgresConfig {
        cluster_name: "main".into(),
        member_name: "pg 1".into(),
        data_dir: "/data".into(),
        config_dir: None,
        bin_dir: None,
        bin_names: BTreeMap::new(),
        listen_addresses: "*".into(),
        port: 5432,
        connect_host: "10.0.0.1".into(),
        connect_port: 5432,
        socket_dirs: vec!["/tmp".into()],
        use_unix_socket: true,
        database: "postgres".into(),
        superuser: role("postgres", Some("a:b\\c")),
        replication: role("replicator", Some("secret")),
        rewind: role("rewind_user", None),
        pgpass: "/run/x/pgpass".into(),
        parameters: [
            ("work_mem", "8MB"),
            ("max_connections", "10"),
            ("port", "1"),
            ("search_path", "\"a b\", o'x\\y"),
            ("wal_level", "minimal"),
        ]
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .into(),
        recovery: [("restore_command".to_owned(), "cp /a/%f '%p'".to_owned())].into(),
        pg_hba: vec!["local all all trust".into()],
        pg_ident: Vec::new(),
        custom_conf: None,
        pg_ctl_timeout: Duration::from_secs(60),
        initdb: Vec::new(),
        bootstrap_roles: Vec::new(),
        hooks: Default::default(),
        custom_bootstrap: None,
        post_bootstrap: None,
        replica_methods: vec![ReplicaMethod::Basebackup],
        remote: None,
        basebackup: Vec::new(),
        use_pg_rewind: true,
        run_dir: "/run/x".into(),
        log_file: "/run/x/log".into(),
        remove_data_directory_on_rewind_failure: None,
        remove_data_directory_on_diverged_timelines: None,
    }
}

#[test]
fn the_conf_includes_the_original_and_quotes_what_it_adds() {
    let config = config();
    let text = render_conf(
        &config,
        &controlled(&config, None),
        ConfRole::Primary,
        false,
    );
    assert!(is_generated(&text));
    assert!(text.contains("include 'postgresql.base.conf'\n"));
    assert!(text.contains("hba_file = '/data/pg_hba.conf'\n"), "{text}");
    for (name, value) in [
        ("work_mem", "8MB"),
        ("max_connections", "100"),
        ("port", "5432"),
        ("search_path", "\"a b\", o'x\\y"),
        ("wal_level", "replica"),
        ("restart_after_crash", "off"),
        ("wal_retrieve_retry_interval", "200ms"),
        ("wal_receiver_timeout", "5s"),
        ("wal_log_hints", "on"),
    ] {
        assert_eq!(read_setting(&text, name).as_deref(), Some(value), "{name}");
    }
    assert_eq!(read_setting(&text, "restore_command"), None);
    let paused = render_conf(&config, &controlled(&config, None), ConfRole::Primary, true);
    assert_eq!(
        read_setting(&paused, "restart_after_crash").as_deref(),
        Some("on")
    );
}

#[test]
fn a_replica_gets_its_upstream_and_reads_it_back() {
    let config = config();
    let upstream = Upstream {
        host: "10.0.0.2".into(),
        port: 5433,
        slot: Some("pg_1".into()),
    };
    let conninfo = primary_conninfo(&config, &upstream);
    let role = ConfRole::Replica {
        conninfo: Some(&conninfo),
        slot: upstream.slot.as_deref(),
    };
    let text = render_conf(&config, &controlled(&config, None), role, false);
    let read = read_setting(&text, "primary_conninfo").unwrap();
    assert_eq!(read, conninfo);
    for (key, value) in [
        ("host", "10.0.0.2"),
        ("port", "5433"),
        ("user", "replicator"),
        ("passfile", "/run/x/pgpass"),
        ("application_name", "pg 1"),
        ("options", "-c wal_sender_timeout=5s"),
    ] {
        assert_eq!(conninfo_field(&read, key).as_deref(), Some(value), "{key}");
    }
    assert_eq!(conninfo_field(&read, "password"), None);
    assert_eq!(conninfo_field(&read, "sslmode").as_deref(), Some("prefer"));
    assert_eq!(
        read_setting(&text, "primary_slot_name").as_deref(),
        Some("pg_1")
    );
    assert_eq!(
        read_setting(&text, "recovery_target_timeline").as_deref(),
        Some("latest")
    );
    assert_eq!(
        read_setting(&text, "restore_command").as_deref(),
        Some("cp /a/%f '%p'")
    );
}

#[test]
fn a_replica_never_undercuts_its_primary() {
    let floor = SharedMemorySettings {
        max_connections: 300,
        ..SharedMemorySettings::default()
    };
    let values = controlled(&config(), Some(floor));
    assert_eq!(values["max_connections"], "300");
    assert_eq!(values["max_wal_senders"], "10");
    let line = command_line(&config(), &values);
    assert!(line.contains(&"--max_connections=300".to_owned()));
    assert!(line.contains(&"--hot_standby=on".to_owned()));
}

#[test]
fn recovery_settings_are_taken_out_of_the_file_that_wins() {
    let auto = "# by ALTER SYSTEM\nwork_mem = '4MB'\nprimary_conninfo = 'host=x'\n";
    assert_eq!(
        without_recovery_settings(auto).as_deref(),
        Some("# by ALTER SYSTEM\nwork_mem = '4MB'\n")
    );
    assert_eq!(without_recovery_settings("work_mem = '4MB'\n"), None);
}

#[test]
fn the_password_file_escapes_and_leaves_out_roles_without_password() {
    let config = config();
    let text = render_pgpass(&[&config.superuser, &config.replication, &config.rewind]);
    assert_eq!(text, "*:*:*:postgres:a\\:b\\\\c\n*:*:*:replicator:secret\n");
}

#[test]
fn what_authentication_says_of_tls_reaches_the_upstreams_connection() {
    let mut config = config();
    config.replication.connection = [
        ("sslmode", "verify-full"),
        ("sslrootcert", "/etc/ca file.pem"),
        ("gssencmode", "disable"),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .into();
    let upstream = Upstream {
        host: "10.0.0.2".into(),
        port: 5433,
        slot: None,
    };
    let conninfo = primary_conninfo(&config, &upstream);
    let field = |key| conninfo_field(&conninfo, key);
    assert_eq!(field("sslmode").as_deref(), Some("verify-full"));
    assert_eq!(field("sslrootcert").as_deref(), Some("/etc/ca file.pem"));
    assert_eq!(field("gssencmode").as_deref(), Some("disable"));
    assert!(!conninfo.contains("prefer"));
    // Among several hosts the slot is on the primary.
    let several = |slot: Option<&str>| Upstream {
        host: "10.0.0.2,10.0.0.3".into(),
        port: 5433,
        slot: slot.map(Into::into),
    };
    let wanted = |upstream| {
        let conninfo = primary_conninfo(&config, &upstream);
        let host = conninfo_field(&conninfo, "host");
        assert_eq!(host.as_deref(), Some("10.0.0.2,10.0.0.3"));
        conninfo_field(&conninfo, "target_session_attrs")
    };
    assert_eq!(
        wanted(several(Some("site_b"))).as_deref(),
        Some("read-write")
    );
    assert_eq!(wanted(several(None)), None);
}
