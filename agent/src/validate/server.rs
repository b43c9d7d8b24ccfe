//! The programs, the data directory, and what the server makes of its parameters.

use std::path::{Path, PathBuf};

use rustix::fs::{Access, access};
use trunkline_shared::cluster::ClusterSettings;
use trunkline_shared::dcs::records::read_value;

use super::Findings;
use crate::postgres::programs::{self, MAJORS, PROGRAMS};
use crate::postgres::{PostgresConfig, accepted};
use crate::run::instance::postgres_config;

pub(super) async fn check(findings: &mut Findings<'_>) {
    let config = findings.config;
    let dcs = serde_json::Value::Object(config.bootstrap.dcs.clone());
    let settings = read_value(&dcs)
        .map(|read| read.settings)
        .unwrap_or_default();
    let (in_force, of_the_cluster) = config.over(&settings);
    findings.mistakes.extend(of_the_cluster);
    let folder = std::env::temp_dir().join(format!(
        "trunkline-validate-{}",
        rustix::process::getpid().as_raw_nonzero()
    ));
    let instance = postgres_config(&in_force, &settings, &folder);
    let are_there = the_programs(findings, &instance);
    let postgres = programs::path(&instance, "postgres");
    let major = match are_there {
        true => programs::major(&postgres).await.map_err(|e| e.to_string()),
        false => Err(String::new()),
    };
    match &major {
        Ok(major) => supported(findings, major),
        // What is not there was named.
        Err(why) if why.is_empty() => {}
        Err(why) => findings.mistake("postgresql.bin_dir", why.clone()),
    }
    data_dir(findings, major.as_deref().ok());
    if major.is_ok() {
        parameters(findings, &postgres, &folder, &instance, &settings).await;
    }
    // It is only ours, and in the folder for temporary files.
    let _ = std::fs::remove_dir_all(&folder);
}

/// Whether `postgres` can be run.
fn the_programs(findings: &mut Findings<'_>, instance: &PostgresConfig) -> bool {
    let own = findings.config.postgresql.bin_dir.as_ref();
    if let Some(dir) = own.filter(|dir| !dir.is_dir()) {
        let shown = dir.display();
        let is_there = dir.exists();
        findings.mistake(
            "postgresql.bin_dir",
            match is_there {
                true => format!("{shown} is no folder; write the folder of PostgreSQL's programs"),
                false => format!(
                    "{shown} does not exist; install PostgreSQL, or write the folder of its programs"
                ),
            },
        );
        return false;
    }
    let mut missing = Vec::new();
    for program in PROGRAMS {
        let path = programs::path(instance, program);
        if !is_executable(&path) {
            let key = match instance.bin_names.contains_key(program) {
                true => format!("postgresql.bin_name.{program}"),
                false => "postgresql.bin_dir".to_owned(),
            };
            findings.mistake(
                &key,
                format!(
                    "{} cannot be run: there is no such program, or this user may not execute it",
                    path.display()
                ),
            );
            missing.push(program);
        }
    }
    !missing.contains(&"postgres")
}

/// Whether a path, or a bare name in PATH, can be executed.
pub(super) fn is_executable(program: &Path) -> bool {
    let can = |path: &Path| path.is_file() && access(path, Access::EXEC_OK).is_ok();
    if program.components().count() > 1 {
        return can(program);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| can(&dir.join(program)))
}

fn supported(findings: &mut Findings<'_>, major: &str) {
    let is_known = major
        .parse()
        .is_ok_and(|major: u32| MAJORS.contains(&major));
    if !is_known {
        findings.mistake(
            "postgresql.bin_dir",
            format!(
                "these are programs of PostgreSQL {major}; versions {} to {} are supported",
                MAJORS.start(),
                MAJORS.end()
            ),
        );
    }
}

/// A directory is not there yet, or empty, or one of PostgreSQL of the version of the programs.
fn data_dir(findings: &mut Findings<'_>, major: Option<&str>) {
    let key = "postgresql.data_dir";
    let dir: PathBuf = findings.config.postgresql.data_dir.clone();
    let shown = dir.display().to_string();
    if !dir.is_absolute() {
        findings.mistake(key, format!("{shown} is no absolute path; write one"));
        return;
    }
    let entries = match std::fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return,
        Err(error) if error.kind() == std::io::ErrorKind::NotADirectory => {
            findings.mistake(key, format!("{shown} is no folder"));
            return;
        }
        Err(error) => {
            findings.mistake(key, format!("{shown} cannot be read: {error}"));
            return;
        }
    };
    // What a mount point has by itself.
    let is_data = |name: &std::ffi::OsStr| name != "lost+found";
    if !entries.flatten().any(|entry| is_data(&entry.file_name())) {
        return;
    }
    let Ok(version) = std::fs::read_to_string(dir.join("PG_VERSION")) else {
        findings.mistake(
            key,
            format!("{shown} is not empty, and no data directory: it has no PG_VERSION"),
        );
        return;
    };
    let version = version.trim();
    if !dir.join("pg_wal").is_dir() {
        findings.mistake(
            key,
            format!("{shown} has no folder pg_wal: is its disk mounted?"),
        );
    }
    if let Some(major) = major.filter(|major| *major != version) {
        findings.mistake(
            key,
            format!(
                "{shown} was made by PostgreSQL {version}, and the programs are of version {major}; set \
                 postgresql.bin_dir to the folder of version {version}"
            ),
        );
    }
}

/// Parameters that would be left out or changed. The file may name what another member's version knows.
async fn parameters(
    findings: &mut Findings<'_>,
    postgres: &Path,
    folder: &Path,
    instance: &PostgresConfig,
    settings: &ClusterSettings,
) {
    let (parameters, recovery) = (instance.parameters.clone(), instance.recovery.clone());
    let accepted = match accepted::ask(postgres, folder, parameters, recovery).await {
        Ok(accepted) => accepted,
        Err(error) => {
            findings.warn("postgresql.parameters", error.to_string());
            return;
        }
    };
    let local = &findings.config.postgresql;
    for finding in accepted.findings {
        let is_local = local.parameters.contains_key(&finding.name);
        let section = if local.recovery.contains_key(&finding.name) {
            "postgresql.recovery_conf"
        } else if !is_local && settings.recovery_conf.contains_key(&finding.name) {
            "bootstrap.dcs.postgresql.recovery_conf"
        } else if is_local {
            "postgresql.parameters"
        } else {
            "bootstrap.dcs.postgresql.parameters"
        };
        findings.warn(&format!("{section}.{}", finding.name), finding.to_string());
    }
}
