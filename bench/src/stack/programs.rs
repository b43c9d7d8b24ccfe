//! Where the programs are that a stack is made of.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::place::{Owner, Place};
use super::process::{find, run_now};

/// Ours, built beside the harness.
const OURS: [&str; 3] = ["trunkline-agent", "trunkline", "trunkline-router"];
/// Where distributions keep one folder per major version of PostgreSQL.
const POSTGRESQL_HOMES: [&str; 2] = ["/usr/lib/postgresql", "/usr/local/pgsql"];

/// The files of every program.
#[derive(Clone, Debug)]
pub struct Programs {
    /// `trunkline-agent`
    pub agent: PathBuf,
    /// `trunkline`
    pub trunkline: PathBuf,
    /// `trunkline-router`
    pub router: PathBuf,
    /// The folder of `postgres`, `initdb`, `pg_basebackup`, `pg_rewind`, `pgbench`.
    pub postgresql: PathBuf,
    /// `etcd`
    pub etcd: PathBuf,
    /// `etcdctl`
    pub etcdctl: PathBuf,
}

impl Programs {
    /// Finds everything; names what is missing and what to install. As root ours are copied to where the
    /// stack's user can run them, since a build folder below /root is closed to it.
    pub fn find(place: &Place, postgresql: Option<&Path>) -> Result<Programs> {
        let built = built_folder()?;
        for name in OURS {
            if !built.join(name).is_file() {
                bail!(
                    "{} is not built: run `cargo build --profile ci` first",
                    built.join(name).display()
                );
            }
        }
        let folder = match place.owner() {
            Owner::Myself => built,
            Owner::User(_) => {
                let copies = place.folder().join("bin");
                place.own(&copies)?;
                // By a process of its own: a file that this one has open for writing could be open in a child of
                // another thread yet, and is not run meanwhile ("Text file busy").
                let target = copies.display().to_string();
                for name in OURS {
                    let program = built.join(name).display().to_string();
                    run_now("install", &["--mode=755", &program, &target])
                        .with_context(|| format!("cannot copy {name} to {target}"))?;
                }
                copies
            }
        };
        Ok(Programs {
            agent: folder.join(OURS[0]),
            trunkline: folder.join(OURS[1]),
            router: folder.join(OURS[2]),
            postgresql: match postgresql {
                Some(folder) => folder.to_owned(),
                None => find_postgresql()?,
            },
            etcd: find("etcd").context("etcd is missing: apt-get install etcd-server")?,
            etcdctl: find("etcdctl").context("etcdctl is missing: apt-get install etcd-client")?,
        })
    }

    /// One of PostgreSQL's programs.
    pub fn of_postgresql(&self, name: &str) -> PathBuf {
        self.postgresql.join(name)
    }
}

/// The folder the harness was built into; a test's program stands one level below, in `deps`.
fn built_folder() -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let folder = own.parent().context("the harness has no folder")?;
    Ok(match folder.ends_with("deps") {
        true => folder.parent().unwrap_or(folder).to_owned(),
        false => folder.to_owned(),
    })
}

/// The last folder that `TRUNKLINE_POSTGRESQL` names; without it, the newest installed version of PostgreSQL.
fn find_postgresql() -> Result<PathBuf> {
    let named = std::env::var_os("TRUNKLINE_POSTGRESQL").unwrap_or_default();
    if let Some(folder) = std::env::split_paths(&named)
        .filter(|folder| !folder.as_os_str().is_empty())
        .last()
    {
        if !folder.join("postgres").is_file() {
            bail!(
                "TRUNKLINE_POSTGRESQL names {}, which holds no programs of PostgreSQL",
                folder.display()
            );
        }
        return Ok(folder);
    }
    let mut found: Vec<(u32, PathBuf)> = Vec::new();
    for home in POSTGRESQL_HOMES {
        for entry in fs::read_dir(home).into_iter().flatten().flatten() {
            let folder = entry.path().join("bin");
            let version = entry.file_name().to_string_lossy().parse();
            if let (Ok(version), true) = (version, folder.join("postgres").is_file()) {
                found.push((version, folder));
            }
        }
    }
    let newest = found.into_iter().max().map(|(_, folder)| folder);
    let on_path = || find("postgres").and_then(|file| file.parent().map(Path::to_owned));
    newest
        .or_else(on_path)
        .context("PostgreSQL is missing: apt-get install postgresql")
}
