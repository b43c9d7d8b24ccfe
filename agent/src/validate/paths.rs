//! Files, folders and devices that the configuration names.

use std::path::{Path, PathBuf};

use rustix::fs::{Access, access};
use trunkline_shared::service::logging::Output;

use super::Findings;
use super::server::is_executable;
use crate::config::WatchdogMode;
use crate::watchdog;

pub(super) fn check(findings: &mut Findings<'_>) {
    let config = findings.config;
    let (etcd, postgresql) = (&config.etcd, &config.postgresql);
    let (restapi, ctl) = (&config.restapi.as_client.files, &config.rest_client.files);
    let mut is_readable = true;
    let read = [
        ("etcd3.cacert", etcd.cacert.as_ref()),
        ("etcd3.cert", etcd.cert.as_ref()),
        ("etcd3.key", etcd.key.as_ref()),
        ("restapi.certfile", restapi.certificate.as_ref()),
        ("restapi.keyfile", restapi.key.as_ref()),
        ("restapi.cafile", restapi.ca.as_ref()),
        (
            "ctl.certfile",
            of_ctl(&ctl.certificate, &restapi.certificate),
        ),
        ("ctl.keyfile", of_ctl(&ctl.key, &restapi.key)),
        ("ctl.cacert", of_ctl(&ctl.ca, &restapi.ca)),
        ("postgresql.custom_conf", postgresql.custom_conf.as_ref()),
    ];
    for (key, path) in read {
        if let Some(path) = path {
            let path = postgresql.data_dir.join(path);
            if let Err(error) = std::fs::File::open(&path) {
                findings.mistake(key, format!("{} cannot be read: {error}", path.display()));
                is_readable = false;
            }
        }
    }
    if is_readable && let Err(error) = crate::run::check_files(config) {
        findings.mistake("restapi.certfile", error.to_string());
    }
    let config_dir = Some(&postgresql.config_dir).filter(|dir| **dir != postgresql.data_dir);
    if let Some(dir) = config_dir {
        folder(findings, "postgresql.config_dir", dir);
    }
    if let Some(file) = &postgresql.pgpass {
        if file.is_dir() {
            findings.mistake(
                "postgresql.pgpass",
                format!("{} is a folder; write a file", file.display()),
            );
        } else if let Some(parent) = file.parent() {
            folder(findings, "postgresql.pgpass", parent);
        }
    }
    let sockets = postgresql.parameters.get("unix_socket_directories");
    for dir in sockets.into_iter().flat_map(|dirs| dirs.split(',')) {
        let dir = Path::new(dir.trim());
        // An abstract socket has no folder; what is relative stands in the data directory.
        if dir.is_absolute() {
            folder(
                findings,
                "postgresql.parameters.unix_socket_directories",
                dir,
            );
        }
    }
    if let Output::Files(files) = &config.log.output
        && let Some(dir) = files.path.parent()
    {
        folder(findings, "log.dir", dir);
    }
    commands(findings);
    device(findings);
}

/// A file of `ctl`, unless it is the one of `restapi` that stands in for it.
fn of_ctl<'a>(own: &'a Option<PathBuf>, restapi: &Option<PathBuf>) -> Option<&'a PathBuf> {
    own.as_ref().filter(|own| Some(*own) != restapi.as_ref())
}

fn folder(findings: &mut Findings<'_>, key: &str, dir: &Path) {
    let shown = dir.display();
    if !dir.is_dir() {
        findings.mistake(key, format!("{shown} is no folder; make it"));
    } else if access(dir, Access::WRITE_OK).is_err() {
        findings.mistake(key, format!("this user may not write to {shown}"));
    }
}

/// The operator's commands: their programs are there.
fn commands(findings: &mut Findings<'_>) {
    let config = findings.config;
    let hooks = &config.postgresql.hooks;
    let mut commands: Vec<(String, &Vec<String>)> = hooks
        .callbacks
        .iter()
        .map(|(event, command)| (format!("postgresql.callbacks.{event}"), command))
        .collect();
    let single = [
        ("postgresql.pre_promote", hooks.pre_promote.as_ref()),
        ("postgresql.before_stop", hooks.before_stop.as_ref()),
        (
            "bootstrap.post_bootstrap",
            config.bootstrap.post_bootstrap.as_ref(),
        ),
    ];
    let single = single.into_iter();
    commands.extend(single.filter_map(|(key, command)| Some((key.to_owned(), command?))));
    if let Some(custom) = &config.bootstrap.custom {
        commands.push((
            format!("bootstrap.{}.command", custom.name),
            &custom.command,
        ));
    }
    for method in config.postgresql.methods() {
        commands.push((
            format!("postgresql.{}.command", method.name),
            &method.command,
        ));
    }
    for (key, command) in commands {
        let program = PathBuf::from(command.first().map_or("", String::as_str));
        if !is_executable(&program) {
            findings.mistake(
                &key,
                format!(
                    "{} cannot be run: there is no such program, or this user may not execute it",
                    program.display()
                ),
            );
        }
    }
}

fn device(findings: &mut Findings<'_>) {
    let watchdog = &findings.config.watchdog;
    let Err(why) = watchdog::usable(&watchdog.device) else {
        return;
    };
    match watchdog.mode {
        WatchdogMode::Off => {}
        WatchdogMode::Automatic => {
            findings.warn(
                "watchdog.device",
                format!("{why}; the member leads without it"),
            );
        }
        WatchdogMode::Required => findings.mistake(
            "watchdog.device",
            format!("{why}; with \"mode: required\" this member never leads"),
        ),
    }
}
