//! A real etcd, ended with the test.

use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

/// An etcd of one member.
pub struct Etcd {
    child: Child,
    /// Where clients reach it.
    pub address: SocketAddr,
    _folder: TempDir,
}

impl Etcd {
    /// Starts one.
    #[expect(clippy::disallowed_methods, reason = "this file starts etcd")]
    pub fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let address = vacant();
        let (client, peer) = (format!("http://{address}"), format!("http://{}", vacant()));
        let child = Command::new("/usr/bin/etcd")
            .arg("--data-dir")
            .arg(folder.path().join("data"))
            .args(["--name", "m", "--unsafe-no-fsync"])
            .args(["--listen-client-urls", &client])
            .args(["--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer])
            .args(["--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("m={peer}")])
            .stderr(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("these tests need etcd 3.4 or newer: apt-get install etcd-server");
        Self {
            child,
            address,
            _folder: folder,
        }
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn vacant() -> SocketAddr {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    socket.local_addr().unwrap()
}
