//! Replicas and clusters made by the operator's own commands, here pgBackRest (`apt-get install pgbackrest`).

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use trunkline_agent::postgres::directory::{DirectoryState, FAILED, directory_state};
use trunkline_agent::postgres::methods::{CustomBootstrap, CustomMethod, ReplicaMethod};
use trunkline_agent::postgres::process::StopMode;
use trunkline_agent::postgres::{Postgres, PostgresConfig, PostgresError, ServerRole};
use trunkline_shared::cluster::Timeline;

use super::servers::{PATIENCE, Servers, on_every_major};
use super::{answer, follow_from_start, plan, rows, wait_for, wait_replayed};

fn executable(path: &Path, text: &str) -> String {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    path.display().to_string()
}

/// pgBackRest with a repository and a configuration below the test's folder.
struct Repository {
    options: Vec<String>,
}

impl Repository {
    fn new(servers: &Servers) -> Self {
        let folder = servers.folder();
        let config = servers.config(1);
        let at = |name: &str| folder.join(name).display().to_string();
        let text = format!(
            "[global]\nrepo1-path={}\nlock-path={}\nlog-path={}\nspool-path={}\nstart-fast=y\n\
             log-level-console=error\nlog-level-file=off\n[test]\npg1-path={}\npg1-port={}\n\
             pg1-socket-path={}\npg1-user=postgres\n",
            at("repo"),
            at("lock"),
            at("log"),
            at("spool"),
            config.data_dir.display(),
            config.port,
            config.socket_dirs[0].display(),
        );
        fs::create_dir_all(folder.join("repo")).unwrap();
        let file = folder.join("pgbackrest.conf");
        fs::write(&file, text).unwrap();
        let options = [
            format!("--config={}", file.display()),
            "--stanza=test".into(),
        ];
        Self {
            options: options.into(),
        }
    }

    fn line(&self, command: &str) -> String {
        format!("pgbackrest {} {command}", self.options.join(" "))
    }

    /// A script as sites have them: it takes Patroni's arguments and restores where it is told.
    fn restore(&self, servers: &Servers, options: &str) -> Vec<String> {
        let line = self.line(&format!("--pg1-path=\"$dir\" {options} restore"));
        let told = servers.folder().join("told");
        let text = format!(
            "#!/bin/sh\nset -e\necho \"$@\" >> {}\nfor word; do case $word in --datadir=*) \
             dir=${{word#--datadir=}};; esac; done\nmkdir -p -m 700 \"$dir\"\n{line}\n",
            told.display()
        );
        let name = format!("restore{}", options.len());
        vec![executable(&servers.folder().join(name), &text)]
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "the test runs the backup program"
    )]
    fn run(&self, command: &str) {
        let output = std::process::Command::new("pgbackrest")
            .args(&self.options)
            .arg(command)
            .output()
            .expect("pgbackrest (apt-get install pgbackrest)");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{command}: {said}");
    }
}

fn method(name: &str, command: Vec<String>) -> CustomMethod {
    CustomMethod {
        name: name.to_owned(),
        command,
        keep_data: false,
        no_params: false,
        no_leader: false,
        extra: vec![("stanza".into(), "test".into())],
    }
}

fn door(config: PostgresConfig) -> Postgres {
    Postgres::new(config).unwrap()
}

/// Instance 1 with its WAL archived, one backup, one row after it.
async fn backed_up(servers: &Servers, repository: &Repository) -> Postgres {
    let mut config = servers.config(1);
    let archive = repository.line("archive-push %p");
    let parameters = [("archive_mode", "on"), ("archive_command", &archive)];
    config
        .parameters
        .extend(parameters.map(|(name, value)| (name.to_owned(), value.to_owned())));
    let first = door(config);
    first.initialize().await.unwrap();
    first.start(ServerRole::Primary).await.unwrap();
    first.wait_ready(PATIENCE).await.unwrap();
    first.finish_bootstrap().await.unwrap();
    assert!(first.is_bootstrap_unfinished());
    first.bootstrap_is_finished().unwrap();
    repository.run("stanza-create");
    let client = servers.client(1).await;
    let sql = "CREATE TABLE t (i int); INSERT INTO t VALUES (1)";
    client.batch_execute(sql).await.unwrap();
    repository.run("backup");
    // Each of its own, for several in one text are one transaction.
    for sql in [
        "INSERT INTO t VALUES (2)",
        "SELECT pg_create_restore_point('here')",
        "INSERT INTO t VALUES (3)",
        "SELECT pg_switch_wal()",
    ] {
        client.batch_execute(sql).await.unwrap();
    }
    first
}

fn is_too_new(servers: &Servers) -> bool {
    // Debian's pgBackRest knows PostgreSQL up to Debian's own.
    let bin_dir: PathBuf = servers.config(1).bin_dir.unwrap();
    let major = bin_dir.parent().unwrap().file_name().unwrap();
    major.to_str().unwrap().parse::<u32>().unwrap() > 15
}

#[test]
fn pgbackrest_makes_replicas_and_a_new_cluster_at_a_point_in_time() {
    on_every_major(
        "backup::pgbackrest_makes_replicas_and_a_new_cluster_at_a_point_in_time",
        async |servers| {
            if is_too_new(servers) {
                return;
            }
            let repository = Repository::new(servers);
            let first = backed_up(servers, &repository).await;
            let id = Some(answer(&first).await.system_id);

            // The first method fails, the second needs no leader.
            let mut config = servers.config(2);
            let pgbackrest = CustomMethod {
                no_leader: true,
                ..method("pgbackrest", repository.restore(servers, ""))
            };
            let fails = method("fails", vec!["/bin/false".into()]);
            config.replica_methods = vec![
                ReplicaMethod::Custom(fails),
                ReplicaMethod::Custom(pgbackrest.clone()),
            ];
            let second = door(config.clone());
            second.make_replica(None, id).await.unwrap();
            let told = fs::read_to_string(servers.folder().join("told")).unwrap();
            let data = config.data_dir.display();
            assert_eq!(
                told.trim_end(),
                format!("--stanza=test --scope=test --role=replica --datadir={data} --connstring=")
            );
            follow_from_start(&second, servers, 1).await;
            wait_replayed(&first, &second).await;
            assert_eq!(rows(servers, 2).await, [1, 2, 3]);

            // Again on the old data, which a method that keeps it changes in place.
            second.stop(&plan(StopMode::Fast)).await.unwrap();
            fs::write(config.data_dir.join("mark"), "").unwrap();
            let delta = CustomMethod {
                keep_data: true,
                ..method("delta", repository.restore(servers, "--delta"))
            };
            config.replica_methods = vec![ReplicaMethod::Custom(delta)];
            second.reconfigure(config.clone()).await;
            let upstream = servers.upstream(1);
            second.make_replica(Some(&upstream), id).await.unwrap();
            assert_eq!(directory_state(&config), DirectoryState::Present);
            assert!(
                !config.data_dir.join("mark").exists(),
                "a delta restore ran"
            );

            // A failure on old data leaves it marked, never to be started.
            let fails = CustomMethod {
                keep_data: true,
                ..method("fails", vec!["/bin/false".into()])
            };
            config.replica_methods = vec![ReplicaMethod::Custom(fails)];
            second.reconfigure(config.clone()).await;
            let error = second.make_replica(Some(&upstream), id).await.unwrap_err();
            assert!(error.to_string().contains("fails: "), "{error}");
            assert_eq!(directory_state(&config), DirectoryState::Rewinding);

            recovered_to_a_point(servers, &repository).await;
        },
    );
}

/// A custom bootstrap: the backup as it was at a point in time becomes a cluster of its own.
async fn recovered_to_a_point(servers: &Servers, repository: &Repository) {
    let mut config = servers.config(3);
    let psql = config.bin_dir.clone().unwrap().join("psql");
    let script = format!(
        "#!/bin/sh\nexec {} -X -v ON_ERROR_STOP=1 -c 'CREATE TABLE made AS SELECT 1' -d \"$1\"\n",
        psql.display()
    );
    let post = executable(&servers.folder().join("post"), &script);
    let settings = [
        (
            "restore_command",
            repository.line(&format!(
                "--pg1-path={} archive-get %f %p",
                config.data_dir.display()
            )),
        ),
        ("recovery_target_name", "here".to_owned()),
    ];
    config.custom_bootstrap = Some(CustomBootstrap {
        name: "pgbackrest".into(),
        command: repository.restore(servers, "--type=none"),
        recovery_conf: Some(settings.map(|(k, v)| (k.to_owned(), v)).into()),
        ..CustomBootstrap::default()
    });
    config.post_bootstrap = Some(vec![post]);
    let third = door(config.clone());
    third.initialize().await.unwrap();
    assert!(third.is_bootstrap_unfinished());
    third.start(ServerRole::Recovering).await.unwrap();
    third.wait_ready(PATIENCE).await.unwrap();
    let status = answer(&third).await;
    assert!(!status.is_in_recovery, "it accepts writes by itself");
    assert_eq!(status.timeline, Timeline(2));
    assert_eq!(rows(servers, 3).await, [1, 2], "as it was at the point");
    third.finish_bootstrap().await.unwrap();
    let client = servers.client(3).await;
    client.query_one("SELECT * FROM made", &[]).await.unwrap();
    // Again it fails, for what it makes is there; the data is then set aside.
    let error = third.finish_bootstrap().await.unwrap_err();
    assert!(error.to_string().contains("already exists"), "{error}");
    let refused = third.discard_bootstrap().await;
    assert!(matches!(refused, Err(PostgresError::Running { .. })));
    third.stop(&plan(StopMode::Fast)).await.unwrap();
    third.discard_bootstrap().await.unwrap();
    assert_eq!(directory_state(&config), DirectoryState::Empty);
    assert!(config.beside(FAILED).join("PG_VERSION").exists());
    wait_for("nobody there", String::new, async || {
        third.is_dead().await.then_some(())
    })
    .await;
}
