//! A connection that the path has lost: what is sent arrives, and nothing comes back.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, copy};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, timeout};
use trunkline_shared::dcs::Dcs;
use trunkline_shared::dcs::etcd::{Budgets, Etcd, EtcdConfig};

use super::etcd_cluster::EtcdCluster;
use super::{PATIENCE, write};

/// HTTP/2 pings alone take 15 s.
const PINGS_TAKE: Duration = Duration::from_secs(15);

/// Passes on what both sides say.
struct Path {
    opened: AtomicUsize,
    /// Nothing comes back on the connections before this one.
    silent_before: AtomicUsize,
}

async fn pass(path: Arc<Path>, number: usize, client: TcpStream, server: TcpStream) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let there = tokio::spawn(async move {
        // However it ends, the other way says the same.
        let _ = copy(&mut from_client, &mut to_server).await;
    });
    let mut bytes = vec![0; 65536];
    while let Ok(read @ 1..) = from_server.read(&mut bytes).await {
        let is_silent = number < path.silent_before.load(Ordering::SeqCst);
        if !is_silent
            && to_client
                .write_all(bytes.get(..read).unwrap())
                .await
                .is_err()
        {
            break;
        }
    }
    there.abort();
}

#[tokio::test]
async fn a_silent_connection_is_left_for_a_new_one_long_before_pings_notice() {
    let etcd = EtcdCluster::start(1);
    etcd.wait_until_whole().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let hosts = listener.local_addr().unwrap().to_string();
    let path = Arc::new(Path {
        opened: AtomicUsize::new(0),
        silent_before: AtomicUsize::new(0),
    });
    let (passing, server) = (path.clone(), etcd.hosts());
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let server = TcpStream::connect(&server).await.unwrap();
            let number = passing.opened.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(pass(passing.clone(), number, client, server));
        }
    });
    let config = EtcdConfig::from_hosts(&hosts).unwrap();
    let budgets = Budgets {
        operation: Duration::from_secs(1),
        renewal: Duration::from_secs(1),
    };
    let dcs = Etcd::new(&config, budgets).unwrap();
    write(&dcs, "/service/demo/config", "{}").await;
    let opened = path.opened.load(Ordering::SeqCst);
    path.silent_before.store(opened, Ordering::SeqCst);
    let began = Instant::now();
    let heard = async { while dcs.read("/service/demo/").await.is_err() {} };
    timeout(PATIENCE, heard).await.expect("a new connection");
    let took = began.elapsed();
    println!("measured: heard again after {took:?}");
    assert!(took < PINGS_TAKE, "{took:?}");
}
