//! One etcd member as a child process, and what `etcdctl` tells about the store.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::Signal;

use super::place::Place;
use super::proc::ProcessId;
use super::process::{Launch, Process, args};
use super::programs::Programs;

/// How long an etcdctl command may take.
const LIMIT: Duration = Duration::from_secs(5);
/// How long a member that was asked to end may take.
const END_LIMIT: Duration = Duration::from_secs(10);

/// One member of the store.
#[derive(Debug)]
pub struct Etcd {
    /// Its name: `e1` to `e3`.
    pub name: String,
    /// Its address, without port.
    pub address: String,
    launch: Launch,
    etcdctl: Launch,
    /// Where its data is, and what its part in the store is.
    data: PathBuf,
    part: Vec<String>,
    process: Option<Process>,
}

impl Etcd {
    /// Prepares member `name` at `address` of a store that stands at `all` (name and address of each).
    pub fn new(
        place: &Place,
        programs: &Programs,
        name: &str,
        namespace: Option<String>,
        all: &[(String, String)],
    ) -> Result<Etcd> {
        let home = place.folder().join(name);
        place.own(&home)?;
        let (_, address) = all
            .iter()
            .find(|(other, _)| other == name)
            .context("not a member")?;
        let peers: Vec<_> = all
            .iter()
            .map(|(name, address)| format!("{name}=http://{address}:2380"))
            .collect();
        let client = format!("http://{address}:2379");
        let peer = format!("http://{address}:2380");
        let data = home.join("data");
        let launch = Launch {
            program: programs.etcd.clone(),
            args: args([
                "--name",
                name,
                "--data-dir",
                &data.to_string_lossy(),
                "--listen-client-urls",
                &client,
                "--advertise-client-urls",
                &client,
                "--listen-peer-urls",
                &peer,
                "--initial-advertise-peer-urls",
                &peer,
                "--initial-cluster",
                &peers.join(","),
                "--initial-cluster-token",
                &format!("trunkline-{}", place.number()),
                "--initial-cluster-state",
                "new",
            ]),
            log: home.join("log"),
            folder: place.folder().to_owned(),
            namespace,
            user: place.owner().user(),
            ..Launch::default()
        };
        let etcdctl = Launch {
            program: programs.etcdctl.clone(),
            env: vec![("ETCDCTL_API".to_owned(), "3".to_owned())],
            folder: place.folder().to_owned(),
            user: place.owner().user(),
            ..Launch::default()
        };
        let part = [
            "--name",
            name,
            "--initial-advertise-peer-urls",
            &peer,
            "--initial-cluster",
            &peers.join(","),
            "--initial-cluster-token",
            &format!("trunkline-{}", place.number()),
        ];
        Ok(Etcd {
            data,
            part: part.iter().map(|word| (*word).to_owned()).collect(),
            name: name.to_owned(),
            address: address.clone(),
            launch,
            etcdctl,
            process: None,
        })
    }

    /// Starts it, or starts it again.
    pub fn start(&mut self) -> Result<()> {
        self.process = Some(self.launch.start(&self.name)?);
        Ok(())
    }

    /// Fails if it has ended by itself.
    pub fn must_live(&mut self) -> Result<()> {
        self.process.as_mut().map_or(Ok(()), Process::must_live)
    }

    /// Ends it: by SIGTERM, as an upgrade does, or by SIGKILL.
    pub async fn end(&mut self, signal: Signal) -> Result<()> {
        let mut process = self
            .process
            .take()
            .with_context(|| format!("{} is down", self.name))?;
        process.signal(signal);
        process.ended(END_LIMIT).await.map(|_| ())
    }

    /// Its process.
    pub fn id(&self) -> Result<ProcessId> {
        let process = self.process.as_ref();
        Ok(process
            .with_context(|| format!("{} is down", self.name))?
            .id())
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> bool {
        self.process
            .as_ref()
            .is_some_and(|process| process.signal(signal))
    }

    /// Does this member answer, with a leader known to it?
    pub async fn is_healthy(&self) -> bool {
        self.ctl(&["endpoint", "health"]).await.is_ok()
    }

    /// Is this member the leader of the store?
    pub async fn is_leader(&self) -> Result<bool> {
        let status = self.status().await?;
        Ok(status["leader"].is_u64() && status["leader"] == status["header"]["member_id"])
    }

    /// The term it knows of: a larger one means that a leader was elected.
    pub async fn term(&self) -> Result<u64> {
        let status = self.status().await?;
        status["raftTerm"].as_u64().context("etcdctl named no term")
    }

    /// Its number in the store, as `move-leader` wants it.
    pub async fn member_id(&self) -> Result<String> {
        let status = self.status().await?;
        let id = status["header"]["member_id"]
            .as_u64()
            .context("etcdctl named no member id")?;
        Ok(format!("{id:x}"))
    }

    /// The store's revision: it grows by one with every change.
    pub async fn revision(&self) -> Result<u64> {
        let status = self.status().await?;
        status["header"]["revision"]
            .as_u64()
            .context("etcdctl named no revision")
    }

    /// Makes another member the leader; this one must be it now.
    pub async fn move_leader(&self, to: &str) -> Result<()> {
        self.ctl(&["move-leader", to]).await.map(|_| ())
    }

    /// Takes its data away; it must be down.
    pub fn wipe(&self) -> Result<()> {
        std::fs::remove_dir_all(&self.data)
            .with_context(|| format!("cannot remove {}", self.data.display()))
    }

    /// Writes everything that the store holds to a file.
    pub async fn back_up(&self, file: &Path) -> Result<()> {
        let file = file.to_string_lossy();
        self.ctl(&["snapshot", "save", &file]).await.map(|_| ())
    }

    /// Makes its data anew from such a file; it must be down.
    pub async fn restore(&self, file: &Path) -> Result<()> {
        self.wipe()?;
        let (file, data) = (file.to_string_lossy(), self.data.to_string_lossy());
        let mut words = vec!["snapshot", "restore", &*file, "--data-dir", &*data];
        words.extend(self.part.iter().map(String::as_str));
        let launch = Launch {
            args: args(words),
            ..self.etcdctl.clone()
        };
        launch.finish(LIMIT).await.map(|_| ())
    }

    /// Reads one key; empty if it does not exist.
    pub async fn read(&self, key: &str) -> Result<String> {
        self.reader().read(key).await
    }

    /// What reads keys of this member, in a task of its own.
    pub fn reader(&self) -> Reader {
        Reader(self.command(&[]))
    }

    /// Writes one key.
    pub async fn write(&self, key: &str, value: &str) -> Result<()> {
        self.ctl(&["put", key, value]).await.map(|_| ())
    }

    /// Removes one key.
    pub async fn delete(&self, key: &str) -> Result<()> {
        self.ctl(&["del", key]).await.map(|_| ())
    }

    /// Revokes the lease that this key hangs on, and every key with it.
    pub async fn revoke_lease_of(&self, key: &str) -> Result<()> {
        let text = self.ctl(&["get", key, "-w", "json"]).await?;
        let parsed: serde_json::Value = serde_json::from_str(&text)?;
        let lease = parsed["kvs"][0]["lease"].as_i64();
        let lease = lease.with_context(|| format!("{key} hangs on no lease: {text}"))?;
        self.ctl(&["lease", "revoke", &format!("{lease:x}")])
            .await
            .map(|_| ())
    }

    /// Does this key stand, whatever its value?
    pub async fn exists(&self, key: &str) -> Result<bool> {
        let found = self.ctl(&["get", "--keys-only", key]).await?;
        Ok(!found.trim().is_empty())
    }

    /// Watches one key: each event is three lines (kind, key, value) on standard output.
    pub fn watch(&self, key: &str) -> Result<tokio::process::Child> {
        self.command(&["watch", key]).stream()
    }

    /// The same of every key that begins so.
    pub fn watch_below(&self, prefix: &str) -> Result<tokio::process::Child> {
        self.command(&["watch", "--prefix", prefix]).stream()
    }

    async fn status(&self) -> Result<serde_json::Value> {
        let text = self.ctl(&["endpoint", "status", "-w", "json"]).await?;
        let parsed: serde_json::Value = serde_json::from_str(&text)?;
        let status = parsed[0]["Status"].clone();
        if status.is_null() {
            bail!("etcdctl printed no status: {text}");
        }
        Ok(status)
    }

    async fn ctl(&self, words: &[&str]) -> Result<String> {
        self.command(words).finish(LIMIT).await
    }

    fn command(&self, words: &[&str]) -> Launch {
        let endpoint = format!("--endpoints=http://{}:2379", self.address);
        let all = std::iter::once(endpoint.as_str()).chain(words.iter().copied());
        Launch {
            args: args(all),
            ..self.etcdctl.clone()
        }
    }
}

/// Reads keys of one member.
#[derive(Clone, Debug)]
pub struct Reader(Launch);

impl Reader {
    /// Reads one key; empty if it does not exist.
    pub async fn read(&self, key: &str) -> Result<String> {
        let mut launch = self.0.clone();
        launch.args.extend(args(["get", "--print-value-only", key]));
        Ok(launch.finish(LIMIT).await?.trim().to_owned())
    }
}
