//! A leader is lost while clients read a long result slowly: whatever they are told stands at a boundary.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::TcpSocket;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::interval;

use super::*;

/// Clients of one cut.
const CLIENTS: usize = 28;
/// Cuts of each mode: with both modes a thousand clients.
const CUTS: usize = 18;
/// As the fake sends it: header and body.
const ROW: usize = 4101;
/// So much has been read of a result when its leader is lost, bytes.
const READ: usize = 3 * ROW;
/// The kernel keeps little for a slow reader, bytes.
const RECEIVES: u32 = 8 * 1024;

/// What a slow reader is told from its query on. It reads a little at a time until the cut is over.
async fn reads(
    address: SocketAddr,
    number: usize,
    reading: mpsc::Sender<()>,
    mut is_over: watch::Receiver<bool>,
) -> Vec<u8> {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(RECEIVES).unwrap();
    let stream = socket.connect(address).await.unwrap();
    let mut client = Client {
        stream: stream.into(),
    };
    client.send(&startup("app")).await;
    client.ready().await;
    client.query("rows 1000000").await;
    let (mut told, mut has_said) = (Vec::new(), false);
    let mut pace = interval(Duration::from_millis(1));
    let mut piece = vec![0; 400 + number * 97];
    while !*is_over.borrow_and_update() {
        pace.tick().await;
        match client.stream.read(&mut piece).await {
            Ok(0) | Err(_) => return told,
            Ok(count) => told.extend_from_slice(&piece[..count]),
        }
        if told.len() >= READ && !std::mem::replace(&mut has_said, true) {
            reading.send(()).await.unwrap();
        }
    }
    told.extend(client.rest().await);
    told
}

/// Whether a FATAL was told. Everything before it, or before the end, is rows and the beginning of one.
fn is_told(told: &[u8]) -> bool {
    let mut rest = told;
    while let Some((row, next)) = rest.split_at_checked(ROW).filter(|_| rest[0] == b'D') {
        assert!(row[5..].iter().all(|byte| *byte == b'x'), "a row is broken");
        rest = next;
    }
    let Some((kind, body)) = rest.split_first() else {
        return false;
    };
    if *kind == b'D' {
        let text = body.get(4..).unwrap_or_default();
        assert!(text.iter().all(|byte| *byte == b'x'), "within a row");
        return false;
    }
    assert_eq!(*kind, b'E', "neither a row nor an error");
    let length = u32::from_be_bytes(body[..4].try_into().unwrap()) as usize;
    assert_eq!(body.len(), length, "something behind the FATAL");
    assert!(body[4..].starts_with(b"SFATAL\0"));
    true
}

#[tokio::test]
async fn a_slow_reader_never_finds_a_fatal_inside_a_message() {
    let mut told = 0;
    for mode in [Mode::Tcp, Mode::Session] {
        let stack = Stack::start(Setup {
            mode,
            pooling: (mode != Mode::Tcp).then(|| ONE.replace("size: 1", "size: 100")),
            ..Setup::default()
        })
        .await;
        for _ in 0..CUTS {
            let mut a = FakePostgres::start(false).await;
            stack.lead("a", a.address).await;
            let (over, is_over) = watch::channel(false);
            let (reading, mut hear) = mpsc::channel(CLIENTS);
            let mut clients = JoinSet::new();
            for number in 0..CLIENTS {
                let (reading, is_over) = (reading.clone(), is_over.clone());
                clients.spawn(reads(stack.address, number, reading, is_over));
            }
            for _ in 0..CLIENTS {
                let heard = tokio::time::timeout(DEADLINE, hear.recv());
                heard.await.unwrap().unwrap();
            }
            stack.delete("leader").await;
            // By then the router has let go of all of them.
            a.until(|seen| seen.ended == CLIENTS).await;
            over.send(true).unwrap();
            while let Some(bytes) = clients.join_next().await {
                told += usize::from(is_told(&bytes.unwrap()));
            }
        }
    }
    eprintln!("{told} of {} were told", 2 * CUTS * CLIENTS);
}
