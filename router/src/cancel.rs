//! Cancel requests. Nobody here knows which server a key belongs to, so the request goes to every member
//! that the target may have led to: it authenticates itself, and a server that does not know the key
//! ignores it.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::listener::limits::CONNECT_TIME;
use crate::route::TargetKind;
use crate::topology::Cluster;
use crate::topology::routing_table::{RoutingTable, Writer};

/// How long to wait for a server to close, which is its whole answer.
const ANSWER_TIME: Duration = Duration::from_secs(1);

/// Sends the request to every member of the target, and waits until they have taken it: a client may rely
/// on the cancel being over when its connection closes.
pub async fn pass_on(cluster: &Arc<Cluster>, kind: TargetKind, request: &[u8]) {
    let published = cluster.published();
    let mut tasks = Vec::new();
    for address in members_of(kind, &published.table) {
        let request = request.to_vec();
        let places = published.places(&address);
        tasks.push(tokio::spawn(async move { send(&places, &request).await }));
    }
    for task in tasks {
        let _ = task.await;
    }
}

fn members_of(kind: TargetKind, table: &RoutingTable) -> BTreeSet<Arc<str>> {
    let mut addresses = BTreeSet::new();
    let (has_writer, has_readers) = match kind {
        TargetKind::Primary => (true, false),
        TargetKind::Replicas { falls_back } => (falls_back, true),
    };
    if has_writer && let Writer::Known { address, .. } = &table.writer {
        addresses.insert(address.clone());
    }
    if has_readers {
        // Also those unfit for new sessions, or leading by now: they may still serve old ones.
        addresses.extend(table.readers.values().map(|r| r.address.clone()));
    }
    addresses
}

async fn send(places: &[SocketAddr], request: &[u8]) {
    for place in places {
        let connected = tokio::time::timeout(CONNECT_TIME, TcpStream::connect(place)).await;
        if let Ok(Ok(mut server)) = connected {
            if server.write_all(request).await.is_ok() {
                let _ = tokio::time::timeout(ANSWER_TIME, server.read_u8()).await;
            }
            return;
        }
    }
}
