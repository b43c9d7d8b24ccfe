//! A server that speaks as much of PostgreSQL's protocol as a router in front of it can see.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustls::ServerConfig;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
use trunkline_router::stream::Stream;

/// No wait takes longer than this.
const DEADLINE: Duration = Duration::from_secs(20);

/// What the fake has seen so far.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Start-up packets, whole.
    pub startups: Vec<Vec<u8>>,
    /// Cancel requests, whole.
    pub cancels: Vec<Vec<u8>>,
    /// How many of those came under TLS.
    pub encrypted_cancels: usize,
    /// Requests for TLS.
    pub asked_for_tls: usize,
    /// Simple queries.
    pub queries: Vec<String>,
    /// Other messages: kind and body.
    pub messages: Vec<(char, Vec<u8>)>,
    /// Sessions that ended, by reset or by close; a probe is no session.
    pub ended: usize,
}

/// A fake server.
pub struct FakePostgres {
    /// Where it listens.
    pub address: SocketAddr,
    seen: watch::Receiver<Seen>,
    doom: Arc<Notify>,
    is_standby: Arc<AtomicBool>,
    slots: Arc<AtomicUsize>,
}

/// What a request for TLS comes to.
#[derive(Clone)]
enum Tls {
    Refused,
    /// `S`, and everything after it comes back.
    Echoed,
    /// TLS; but for so many requests at first the connection ends behind the `S`.
    Spoken(Arc<ServerConfig>, usize),
}

#[derive(Clone)]
struct Notes {
    sender: Arc<Mutex<watch::Sender<Seen>>>,
    tls: Tls,
    doom: Arc<Notify>,
    is_standby: Arc<AtomicBool>,
    slots: Arc<AtomicUsize>,
}

impl Notes {
    /// Waits until this was seen.
    async fn until(&self, is_so: impl FnMut(&Seen) -> bool) {
        let mut seen = self.sender.lock().unwrap().subscribe();
        // The sender lives as long as the notes.
        let _ = seen.wait_for(is_so).await;
    }

    fn note(&self, change: impl FnOnce(&mut Seen)) {
        self.sender.lock().unwrap().send_modify(change);
    }
}

impl FakePostgres {
    /// Starts one. With `speaks_tls` it answers SSLRequest with `S` and echoes everything after.
    pub async fn start(speaks_tls: bool) -> Self {
        Self::start_with(if speaks_tls {
            Tls::Echoed
        } else {
            Tls::Refused
        })
        .await
    }

    /// Starts one that speaks TLS, once it has closed so many connections in the handshake.
    pub async fn start_under(tls: ServerConfig, lost: usize) -> Self {
        Self::start_with(Tls::Spoken(tls.into(), lost)).await
    }

    /// Starts one that is in recovery.
    pub async fn start_standby() -> Self {
        let own = Self::start_with(Tls::Refused).await;
        own.is_standby.store(true, Ordering::SeqCst);
        own
    }

    /// Ends its recovery.
    pub fn promote(&self) {
        self.is_standby.store(false, Ordering::SeqCst);
    }

    /// So many are let in from here on, and no more.
    pub fn has_slots(&self, count: usize) {
        self.slots.store(count, Ordering::SeqCst);
    }

    /// Now comes what a query has announced.
    pub fn now(&self) {
        self.doom.notify_one();
    }

    async fn start_with(tls: Tls) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, seen) = watch::channel(Seen::default());
        let notes = Notes {
            sender: Arc::new(Mutex::new(sender)),
            tls,
            doom: Arc::default(),
            is_standby: Arc::default(),
            slots: Arc::new(AtomicUsize::new(usize::MAX)),
        };
        let (doom, is_standby) = (notes.doom.clone(), notes.is_standby.clone());
        let slots = notes.slots.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let notes = notes.clone();
                tokio::spawn(async move {
                    // However it ends, it ends.
                    let _ = serve(stream, &notes).await;
                });
            }
        });
        Self {
            address,
            seen,
            doom,
            is_standby,
            slots,
        }
    }

    /// Waits until what was seen is enough.
    pub async fn until(&mut self, is_enough: impl FnMut(&Seen) -> bool) -> Seen {
        let wait = self.seen.wait_for(is_enough);
        let waited = tokio::time::timeout(DEADLINE, wait).await;
        let seen = waited
            .ok()
            .and_then(|seen| seen.ok().map(|seen| seen.clone()));
        assert!(
            seen.is_some(),
            "not enough was seen: {:?}",
            self.seen.borrow()
        );
        seen.unwrap()
    }
}

async fn serve(socket: TcpStream, notes: &Notes) -> std::io::Result<()> {
    let mut stream = Stream::from(socket);
    loop {
        let length = stream.read_u32().await?;
        let mut packet = length.to_be_bytes().to_vec();
        packet.resize(length as usize, 0);
        stream.read_exact(&mut packet[4..]).await?;
        match u32::from_be_bytes(packet[4..8].try_into().unwrap()) {
            80_877_103 => {
                let mut asked = 0;
                notes.note(|seen| {
                    seen.asked_for_tls += 1;
                    asked = seen.asked_for_tls;
                });
                match &notes.tls {
                    Tls::Refused => stream.send(b"N").await?,
                    Tls::Echoed => {
                        stream.send(b"S").await?;
                        return echo(stream, notes).await;
                    }
                    Tls::Spoken(_, lost) if asked <= *lost => return stream.send(b"S").await,
                    Tls::Spoken(settings, _) => {
                        stream.send(b"S").await?;
                        let none = Vec::new();
                        stream.accept(settings.clone(), none, 1 << 16).await?;
                    }
                }
            }
            80_877_104 => stream.send(b"N").await?,
            80_877_102 => {
                let is_encrypted = stream.is_encrypted();
                notes.note(|seen| {
                    seen.cancels.push(packet);
                    seen.encrypted_cancels += usize::from(is_encrypted);
                });
                notes.doom.notify_one();
                let had = |seen: &Seen, text: &str| seen.queries.iter().any(|query| query == text);
                notes
                    .until(|seen| !had(seen, "wait long") || had(seen, "now"))
                    .await;
                return Ok(());
            }
            _ => {
                let is_nowhere = packet.windows(17).any(|own| own == b"database\0nowhere_");
                notes.note(|seen| seen.startups.push(packet));
                if is_nowhere {
                    return stream.send(NO_DATABASE).await;
                }
                let (set, get) = (Ordering::SeqCst, Ordering::SeqCst);
                let take = |left: usize| left.checked_sub(1);
                if notes.slots.fetch_update(set, get, take).is_err() {
                    return stream.send(NO_SLOT).await;
                }
                let talked = talk(stream, notes).await;
                notes.note(|seen| seen.ended += 1);
                return talked;
            }
        }
    }
}

async fn echo(mut stream: Stream, notes: &Notes) -> std::io::Result<()> {
    let mut bytes = [0; 1024];
    let mut has_spoken = false;
    while let Ok(count @ 1..) = stream.read(&mut bytes).await {
        has_spoken = true;
        stream.send(&bytes[..count]).await?;
    }
    if has_spoken {
        notes.note(|seen| seen.ended += 1);
    }
    Ok(())
}

/// AuthenticationOk.
const LET_IN: &[u8] = b"R\0\0\0\x08\0\0\0\0";
/// Whether it is in recovery.
const IN_RECOVERY: &[u8] = b"S\0\0\0\x16in_hot_standby\0on\0";
const NOT_IN_RECOVERY: &[u8] = b"S\0\0\0\x17in_hot_standby\0off\0";
/// Another report, a cancel key and ReadyForQuery.
const GREETING: &[u8] = b"S\0\0\0\x11TimeZone\0UTC\0\
    K\0\0\0\x0c\0\0\0\x09\x01\x02\x03\x04Z\0\0\0\x05I";

/// The answer to a message of the extended protocol.
fn extended(kind: u8, status: u8) -> Vec<u8> {
    match kind {
        b'P' => b"1\0\0\0\x04".to_vec(),
        b'B' => b"2\0\0\0\x04".to_vec(),
        b'C' => b"3\0\0\0\x04".to_vec(),
        b'D' => b"n\0\0\0\x04".to_vec(),
        b'E' => b"C\0\0\0\x09DONE\0".to_vec(),
        b'S' => vec![b'Z', 0, 0, 0, 5, status],
        _ => Vec::new(),
    }
}

/// As many rows as the query says.
async fn rows(stream: &mut Stream, query: &str) -> std::io::Result<()> {
    let count: usize = query[5..].parse().unwrap();
    let mut row = vec![b'D'];
    row.extend_from_slice(&4100u32.to_be_bytes());
    row.resize(4101, b'x');
    for _ in 0..count {
        stream.send(&row).await?;
    }
    stream.send(b"Z\0\0\0\x05I").await
}

/// The report of a setting that a query changes.
fn report(query: &str) -> Vec<u8> {
    let zone = query.strip_prefix("SELECT pg_catalog.set_config(E'TimeZone', E'");
    let Some(zone) = zone.and_then(|rest| rest.split('\'').next()) else {
        return Vec::new();
    };
    self::zone(zone)
}

fn zone(zone: &str) -> Vec<u8> {
    let report = format!("TimeZone\0{zone}\0");
    let length = u32::try_from(report.len() + 4).unwrap().to_be_bytes();
    [b"S", &length[..], report.as_bytes()].concat()
}

async fn end_by_cancel(stream: &mut Stream, notes: &Notes, status: u8) -> std::io::Result<()> {
    notes.until(|seen| !seen.cancels.is_empty()).await;
    let error = b"E\0\0\0\x1aSERROR\0VERROR\0C57014\0\0Z\0\0\0\x05";
    stream.send(&[&error[..], &[status]].concat()).await
}

/// An answer without rows, with what it reports.
async fn done(stream: &mut Stream, query: &str, status: u8) -> std::io::Result<()> {
    stream.send(&report(query)).await?;
    let tag: &[u8] = match query {
        "reset all" => b"C\0\0\0\x0aRESET\0",
        _ => b"C\0\0\0\x09DONE\0",
    };
    stream.send(tag).await?;
    stream.send(&[b'Z', 0, 0, 0, 5, status]).await
}

/// What a server says that has no database of this name, as one whose name begins with `nowhere_`.
const NO_DATABASE: &[u8] = b"E\0\0\0\x1aSFATAL\0VFATAL\0C3D000\0\0";

/// What a server says whose slots are all taken.
const NO_SLOT: &[u8] = b"E\0\0\0\x1aSFATAL\0VFATAL\0C53300\0\0";

/// What a server says that is told to stop.
const STOPS: &[u8] = b"E\0\0\0\x1aSFATAL\0VFATAL\0C57P01\0\0";

/// What it says whose client asks something in the middle of COPY FROM STDIN.
const BREACH: &[u8] = b"E\0\0\0\x1aSERROR\0VERROR\0C08P01\0\0E\0\0\0\x1aSFATAL\0VFATAL\0C08P01\0\0";

/// What an idle server does that was not asked.
async fn speak_up(mut stream: Stream, notes: &Notes, query: &str) -> std::io::Result<()> {
    // Kind, version and length of a record, and less than that many bytes.
    let half = [23, 3, 3, 0, 100, 1, 2];
    match query {
        "later fatal" => stream.send(STOPS).await?,
        "later goodbye" => stream.shutdown().await?,
        "later half" => {
            stream.socket().try_write(&half)?;
        }
        "later nonsense" => {
            stream.socket().try_write(&[23, 3, 3, 0, 2, 9, 9])?;
        }
        _ => return Ok(()),
    }
    notes.note(|seen| seen.messages.push(('!', Vec::new())));
    // It stays open.
    std::future::pending().await
}

/// Whether it is in recovery, as it reports that: it is out of it for good.
fn recovery(notes: &Notes) -> (&'static [u8], u8) {
    match notes.is_standby.load(Ordering::SeqCst) {
        true => (IN_RECOVERY, b't'),
        false => (NOT_IN_RECOVERY, b'f'),
    }
}

/// Reports the time zone where a query changes it, or takes that back.
async fn report_zone(
    stream: &mut Stream,
    query: &str,
    status: u8,
    is_elsewhere: &mut bool,
) -> std::io::Result<()> {
    match query {
        "set timezone = 'Asia/Tokyo'" => {
            *is_elsewhere = status == b'T';
            stream.send(&zone("Asia/Tokyo")).await
        }
        "ROLLBACK" if std::mem::take(is_elsewhere) => stream.send(&zone("UTC")).await,
        _ => Ok(()),
    }
}

async fn talk(mut stream: Stream, notes: &Notes) -> std::io::Result<()> {
    let greeting = [LET_IN, recovery(notes).0, GREETING].concat();
    stream.send(&greeting).await?;
    let mut status = b'I';
    let mut is_hanging = false;
    let mut is_elsewhere = false;
    loop {
        let kind = stream.read_u8().await?;
        let length = stream.read_u32().await? as usize;
        let mut body = vec![0; length - 4];
        stream.read_exact(&mut body).await?;
        if kind != b'Q' {
            if kind == b'P' {
                is_hanging = body.windows(4).any(|word| word == b"hang");
            }
            notes.note(|seen| seen.messages.push((char::from(kind), body)));
            if is_hanging && kind == b'E' {
                return std::future::pending().await;
            }
            stream.send(&extended(kind, status)).await?;
            continue;
        }
        let query = String::from_utf8_lossy(&body[..body.len() - 1]).into_owned();
        notes.note(|seen| seen.queries.push(query.clone()));
        report_zone(&mut stream, &query, status, &mut is_elsewhere).await?;
        match query.as_str() {
            "begin" => status = b'T',
            "commit" | "rollback" | "ROLLBACK" => status = b'I',
            _ => {}
        }
        match query.as_str() {
            query if query.ends_with("hang") => {}
            // A query that only a cancel ends; after a long one a cancel's connection ends at the query `now`.
            "wait" | "wait long" => end_by_cancel(&mut stream, notes, status).await?,
            // A message that never ends.
            "half" => stream.send(b"D\0\0\x10\0half").await?,
            "die" => return Ok(()),
            "stop" => return stream.send(STOPS).await,
            "breach" => return stream.send(BREACH).await,
            // An answer, and what it says comes when the test says so.
            query if query.starts_with("later ") => {
                done(&mut stream, query, status).await?;
                notes.doom.notified().await;
                return speak_up(stream, notes, query).await;
            }
            // An answer, and at the next cancel a reset.
            "doom" => {
                stream.send(b"C\0\0\0\x09DONE\0").await?;
                stream.send(&[b'Z', 0, 0, 0, 5, status]).await?;
                notes.doom.notified().await;
                socket2::SockRef::from(stream.socket()).set_linger(Some(Duration::ZERO))?;
                return Ok(());
            }
            "SELECT pg_catalog.pg_is_in_recovery()" => {
                let (report, value) = recovery(notes);
                let row = [b'D', 0, 0, 0, 11, 0, 1, 0, 0, 0, 1, value];
                stream.send(&[&row[..], report].concat()).await?;
                done(&mut stream, &query, status).await?;
            }
            // More than was asked for.
            "babble" => {
                stream
                    .send(b"C\0\0\0\x09DONE\0Z\0\0\0\x05IT\0\0\0\x06\0\0")
                    .await?;
            }
            "lie" => stream.send(b"Z\xff\xff\xff\xff").await?,
            query if query.starts_with("rows ") => rows(&mut stream, query).await?,
            query => done(&mut stream, query, status).await?,
        }
    }
}
