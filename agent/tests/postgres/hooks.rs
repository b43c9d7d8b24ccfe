//! The operator's scripts as real processes: order, limits, what ends with them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use trunkline_agent::postgres::hooks::{Callbacks, Hooks};
use trunkline_agent::postgres::{Postgres, PostgresError};

use super::servers::{PATIENCE, Servers, on_every_major};
use super::wait_for;

/// A script that writes its arguments into `told`, after `first`.
fn script(folder: &Path, name: &str, first: &str) -> Vec<String> {
    let path = folder.join(name);
    let told = folder.join("told");
    let text = format!("#!/bin/sh\n{first}\necho \"$@\" >> {}\n", told.display());
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    vec![path.display().to_string(), name.to_owned()]
}

fn told(folder: &Path) -> Vec<String> {
    let text = fs::read_to_string(folder.join("told")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

fn door(servers: &Servers, hooks: Hooks) -> Postgres {
    let mut config = servers.config(1);
    config.hooks = hooks;
    Postgres::new(config).unwrap()
}

#[test]
fn callbacks_are_called_in_order_and_only_a_reload_gives_way() {
    on_every_major(
        "hooks::callbacks_are_called_in_order_and_only_a_reload_gives_way",
        async |servers| {
            let folder = servers.folder();
            let pid_file: PathBuf = folder.join("pid");
            let hangs = format!("sleep 600 & echo $! > {}; wait", pid_file.display());
            let hooks = Hooks {
                callbacks: [
                    ("on_reload", script(folder, "slow", &hangs)),
                    ("on_role_change", script(folder, "role", "")),
                    ("on_start", script(folder, "start", "exit 3")),
                    ("on_stop", script(folder, "stop", "")),
                ]
                .into(),
                ..Hooks::default()
            };
            let door = Arc::new(door(servers, hooks));
            let callbacks = Callbacks::default();
            let (served, called) = (door.clone(), callbacks.clone());
            let serving = tokio::spawn(async move { called.serve(&served).await });
            callbacks.call("on_reload", "replica");
            let pid: i32 = wait_for("the reload's script", String::new, async || {
                fs::read_to_string(&pid_file).ok()?.trim().parse().ok()
            })
            .await;
            callbacks.call("on_start", "replica");
            callbacks.call("on_restart", "replica");
            callbacks.call("on_role_change", "primary");
            callbacks.call("on_stop", "primary");
            callbacks.drained(PATIENCE).await;
            assert_eq!(
                told(folder),
                [
                    "role on_role_change primary test",
                    "stop on_stop primary test"
                ],
                "the reload's was ended, the start's failed, a restart has none"
            );
            wait_for(
                "the end of what the reload's script started",
                String::new,
                async || (!Path::new(&format!("/proc/{pid}")).exists()).then_some(()),
            )
            .await;
            serving.abort();
        },
    );
}

#[test]
fn pre_promote_says_no_by_its_status_and_by_its_limit() {
    on_every_major(
        "hooks::pre_promote_says_no_by_its_status_and_by_its_limit",
        async |servers| {
            let folder = servers.folder();
            let with = |first: &str| Hooks {
                pre_promote: Some(script(folder, "pre", first)),
                before_stop: Some(script(folder, "before", "exit 1")),
                ..Hooks::default()
            };
            let door = |first| door(servers, with(first));
            door("").pre_promote(PATIENCE).await.unwrap();
            assert_eq!(told(folder), ["pre"]);
            let no = door("echo the other site lives >&2; exit 4");
            let error = no.pre_promote(PATIENCE).await.unwrap_err().to_string();
            assert!(error.contains("the other site lives"), "{error}");
            let slow = door("exec sleep 600");
            let error = slow.pre_promote(Duration::from_millis(100)).await;
            assert!(
                matches!(error, Err(PostgresError::Timeout { .. })),
                "{error:?}"
            );
            // A failure of before_stop holds nothing up.
            slow.before_stop(PATIENCE).await;
        },
    );
}
