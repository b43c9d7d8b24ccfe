//! An etcd of the tests' own: processes on loopback addresses that no other test uses.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;
use trunkline_shared::dcs::etcd::{Budgets, Etcd, EtcdConfig};

/// Where Debian's package puts it.
const ETCD: &str = "/usr/bin/etcd";

/// How long an etcd may take to answer for the first time.
pub const START_LIMIT: Duration = Duration::from_secs(30);

/// What one question to one member may take.
const PROBE: Duration = Duration::from_secs(1);

/// A running etcd cluster; dropping it kills it.
pub struct EtcdCluster {
    net: u8,
    members: Vec<Option<Child>>,
    folder: TempDir,
    /// Certificate and key of the client port; the port below it then stays in the clear, for the tests' own
    /// questions.
    tls: Option<(PathBuf, PathBuf)>,
    _lock: File,
}

/// A network 127.77.N.0 that no other test and no stack of this machine uses, held by a lock on a file of the
/// folder that all of them, and all users, share.
fn lock_network() -> (u8, File) {
    let folder = std::env::temp_dir().join("trunkline-numbers");
    if fs::create_dir(&folder).is_ok() {
        fs::set_permissions(&folder, Permissions::from_mode(0o1777)).expect("a shared folder");
    }
    let lock = |net: &u8| {
        let path = folder.join(format!("{net}.lock"));
        // Reading is enough to lock it, whoever made it.
        let file = File::open(&path).or_else(|_| {
            let file = File::options().write(true).create_new(true).open(&path)?;
            fs::set_permissions(&path, Permissions::from_mode(0o666)).map(|()| file)
        });
        file.ok().filter(|file| file.try_lock().is_ok())
    };
    (1..=250)
        .find_map(|net| Some((net, lock(&net)?)))
        .expect("a free network between 127.77.1.0 and 127.77.250.0")
}

impl EtcdCluster {
    /// Starts `size` members. Fails with what to install where etcd is missing.
    pub fn start(size: u8) -> Self {
        Self::with_tls(size, false)
    }

    /// The same with TLS on the client port, by a certificate that is its own CA.
    pub fn start_with_tls(size: u8) -> Self {
        Self::with_tls(size, true)
    }

    fn with_tls(size: u8, is_secured: bool) -> Self {
        assert!(
            PathBuf::from(ETCD).exists(),
            "these tests need etcd 3.4 or newer at {ETCD}: apt-get install etcd-server"
        );
        let (net, lock) = lock_network();
        let mut cluster = Self {
            net,
            members: (0..size).map(|_| None).collect(),
            folder: tempfile::tempdir().expect("a folder for etcd's data"),
            tls: None,
            _lock: lock,
        };
        if is_secured {
            cluster.tls = Some(self_signed(&cluster));
        }
        for index in 0..cluster.members.len() {
            cluster.start_member(index);
        }
        cluster
    }

    fn address(&self, index: usize) -> String {
        format!("127.77.{}.{}", self.net, index + 1)
    }

    /// All endpoints, as the configuration writes them.
    pub fn hosts(&self) -> String {
        (0..self.members.len())
            .map(|index| format!("{}:2379", self.address(index)))
            .collect::<Vec<_>>()
            .join(",")
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "the one place of these tests that starts etcd"
    )]
    pub fn start_member(&mut self, index: usize) {
        let peers = (0..self.members.len())
            .map(|n| format!("m{n}=http://{}:2380", self.address(n)))
            .collect::<Vec<_>>()
            .join(",");
        let address = self.address(index);
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.folder.path().join(format!("m{index}.log")))
            .expect("a log file");
        let child = Command::new(ETCD)
            .arg("--name")
            .arg(format!("m{index}"))
            .arg("--data-dir")
            .arg(self.folder.path().join(format!("m{index}")))
            .args(self.client_urls(&address))
            .args(["--listen-peer-urls", &format!("http://{address}:2380")])
            .args([
                "--initial-advertise-peer-urls",
                &format!("http://{address}:2380"),
            ])
            .args(["--initial-cluster", &peers])
            .args(["--initial-cluster-state", "new", "--unsafe-no-fsync"])
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log file"))
            .stderr(log)
            .spawn()
            .expect("etcd starts");
        self.members[index] = Some(child);
    }

    fn client_urls(&self, address: &str) -> Vec<String> {
        let (url, more) = match &self.tls {
            None => (format!("http://{address}:2379"), Vec::new()),
            Some((certificate, key)) => (
                format!("https://{address}:2379,http://{address}:2378"),
                vec![
                    format!("--cert-file={}", certificate.display()),
                    format!("--key-file={}", key.display()),
                ],
            ),
        };
        let mut arguments = vec![
            format!("--listen-client-urls={url}"),
            format!("--advertise-client-urls={url}"),
        ];
        arguments.extend(more);
        arguments
    }

    /// The file that pins the certificate of the client port.
    pub fn ca(&self) -> &Path {
        let (certificate, _) = self.tls.as_ref().expect("an etcd with TLS");
        certificate
    }

    /// Sends a signal to one member.
    pub fn signal(&self, index: usize, signal: rustix::process::Signal) {
        let child = self.members[index].as_ref().expect("the member runs");
        let pid = rustix::process::Pid::from_child(child);
        rustix::process::kill_process(pid, signal).expect("the member takes the signal");
    }

    /// Kills one member and waits until it is gone; its data stays.
    pub fn kill(&mut self, index: usize) {
        if let Some(mut child) = self.members[index].take() {
            child.kill().expect("the member can be killed");
            child.wait().expect("the member ends");
        }
    }

    /// A client of all endpoints.
    pub fn client(&self, operation: Duration, renewal: Duration) -> Etcd {
        let config = EtcdConfig::from_hosts(&self.hosts()).expect("the endpoints are usable");
        Etcd::new(&config, Budgets { operation, renewal }).expect("the client can be made")
    }

    /// etcd-client itself, connected to one member.
    pub async fn direct(&self, index: usize) -> etcd_client::Client {
        let port = if self.tls.is_some() { 2378 } else { 2379 };
        let address = format!("{}:{port}", self.address(index));
        let options = etcd_client::ConnectOptions::new()
            .with_connect_timeout(PROBE)
            .with_timeout(PROBE);
        etcd_client::Client::connect([address], Some(options))
            .await
            .expect("a lazy client")
    }

    /// Which member leads etcd, if member `index` knows one.
    async fn leader_seen_by(&self, index: usize) -> Option<u64> {
        let status = self.direct(index).await.status().await.ok()?;
        (status.leader() != 0).then_some(status.leader())
    }

    /// The index of the member that leads etcd.
    pub async fn leader(&self) -> usize {
        for index in 0..self.members.len() {
            if let Ok(status) = self.direct(index).await.status().await
                && status
                    .header()
                    .is_some_and(|header| header.member_id() == status.leader())
            {
                return index;
            }
        }
        panic!("no member leads etcd: {}", self.log(0));
    }

    /// Waits until every member answers and knows the same leader.
    pub async fn wait_until_whole(&self) {
        let deadline = tokio::time::Instant::now() + START_LIMIT;
        let mut looks = tokio::time::interval(Duration::from_millis(50));
        loop {
            looks.tick().await;
            let mut leaders = Vec::new();
            for index in 0..self.members.len() {
                leaders.push(self.leader_seen_by(index).await);
            }
            let first = leaders.first().copied().flatten();
            if first.is_some() && leaders.iter().all(|leader| *leader == first) {
                return;
            }
            assert!(
                tokio::time::Instant::now() < deadline,
                "etcd is not whole: {leaders:?}\n{}",
                self.log(0)
            );
        }
    }

    /// What one member logged, for a failing test to show.
    fn log(&self, index: usize) -> String {
        std::fs::read_to_string(self.folder.path().join(format!("m{index}.log")))
            .unwrap_or_default()
    }
}

impl Drop for EtcdCluster {
    fn drop(&mut self) {
        for index in 0..self.members.len() {
            self.kill(index);
        }
    }
}

/// Makes a self-signed certificate for every address of the cluster, the way operators do.
#[expect(
    clippy::disallowed_methods,
    reason = "openssl makes the certificate that the test is about"
)]
fn self_signed(cluster: &EtcdCluster) -> (PathBuf, PathBuf) {
    let folder = cluster.folder.path();
    let (certificate, key) = (folder.join("etcd.crt"), folder.join("etcd.key"));
    let names: Vec<_> = (0..cluster.members.len())
        .map(|index| format!("IP:{}", cluster.address(index)))
        .collect();
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-nodes", "-days", "2"])
        .args(["-pkeyopt", "ec_paramgen_curve:P-256", "-subj", "/CN=etcd"])
        .arg("-addext")
        .arg(format!("subjectAltName={}", names.join(",")))
        .arg("-keyout")
        .arg(&key)
        .arg("-out")
        .arg(&certificate)
        .output()
        .expect("this test needs openssl: apt-get install openssl");
    assert!(made.status.success(), "{made:?}");
    (certificate, key)
}
