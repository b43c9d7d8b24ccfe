//! A session of a listener whose leader is about to go: idle, or in the middle of a long result that it reads slowly.

use std::sync::PoisonError;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use futures_util::TryStreamExt;
use serde::Serialize;
use tokio::net::TcpSocket;
use tokio::sync::{mpsc, watch};
use tokio_postgres::{Client, Config, NoTls};
use trunkline_shared::cluster::Moment;
use trunkline_shared::service::clock;

use super::wire::Watched;
use crate::load::writers::client_config;

/// Rows of 4,000 bytes, more than anybody waits for; made one at a time.
const ENDLESS: &str = "SELECT repeat('x', 4000 + 0 * generate_series(1, 1000000000))";
/// So many rows are read before the session counts as reading.
const READ: usize = 3;
/// A slow reader's pause between two rows.
const PAUSE: Duration = Duration::from_millis(20);
/// What the kernel keeps for it, bytes: so the router always stands in the middle of a message.
const RECEIVES: u32 = 8 * 1024;
/// Between two tries to come back.
const AGAIN: Duration = Duration::from_millis(5);
/// Longer than any hold of the router.
const LIMIT: Duration = Duration::from_secs(30);

/// What a session does when its leader goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Does {
    /// Nothing.
    Idles,
    /// It reads a result that has no end, slowly.
    Reads,
}

/// One session's end, and its client's return.
#[derive(Clone, Debug)]
pub struct Ended {
    /// What it did.
    pub does: Does,
    /// When its stream ended.
    pub at: Moment,
    /// The SQLSTATE of the FATAL it was told, if any, or what was wrong with the bytes.
    pub told: Result<Option<String>, String>,
    /// When a new session was first answered by a primary.
    pub back: Moment,
}

/// Where a client connects, and how it learns what goes on.
#[derive(Clone, Debug)]
pub struct Place {
    /// The router's address.
    pub address: String,
    /// The listener's port.
    pub port: u16,
    /// Told by each session that is where it should be.
    pub settled: mpsc::Sender<()>,
    /// The cut is over: slow readers take the rest at once.
    pub is_over: watch::Receiver<bool>,
}

/// Opens a session, waits for its end, and comes back.
pub async fn live(does: Does, place: Place) -> Result<Ended> {
    let config = client_config(&place.address, place.port);
    let socket = TcpSocket::new_v4()?;
    if does == Does::Reads {
        socket.set_recv_buffer_size(RECEIVES)?;
    }
    let to = format!("{}:{}", place.address, place.port).parse()?;
    let (stream, frames) = Watched::new(socket.connect(to).await?);
    let (client, connection) = config.connect_raw(stream, NoTls).await?;
    let connection = tokio::spawn(connection);
    let whole = async {
        match does {
            Does::Idles => place.settled.send(()).await?,
            Does::Reads => read(&client, &place).await?,
        }
        // The driver's own opinion of the end is not asked for: the bytes are judged.
        let _ = connection.await?;
        anyhow::Ok(clock::now())
    };
    let at = tokio::time::timeout(LIMIT, whole)
        .await
        .context("the session did not end")??;
    let told = frames.lock().unwrap_or_else(PoisonError::into_inner).end();
    let back = tokio::time::timeout(LIMIT, come_back(&config))
        .await
        .context("nobody came back")?;
    Ok(Ended {
        does,
        at,
        told,
        back,
    })
}

async fn read(client: &Client, place: &Place) -> Result<()> {
    let mut is_over = place.is_over.clone();
    let mut rows = std::pin::pin!(client.simple_query_raw(ENDLESS).await?);
    let mut count = 0;
    loop {
        match rows.try_next().await {
            Ok(Some(_)) => count += 1,
            Ok(None) => bail!("a result without an end has ended"),
            Err(_) => return Ok(()),
        }
        if count == READ {
            place.settled.send(()).await?;
        }
        if !*is_over.borrow() {
            // A sender that is gone ends the run anyway.
            let _ = tokio::time::timeout(PAUSE, is_over.wait_for(|over| *over)).await;
        }
    }
}

async fn come_back(config: &Config) -> Moment {
    loop {
        if let Ok((client, connection)) = config.connect(NoTls).await {
            let connection = tokio::spawn(connection);
            let asked = client.query_one("SELECT pg_is_in_recovery()", &[]).await;
            let now = clock::now();
            drop(client);
            connection.abort();
            if asked.is_ok_and(|row| {
                row.try_get(0)
                    .is_ok_and(|is_in_recovery: bool| !is_in_recovery)
            }) {
                return now;
            }
        }
        tokio::time::sleep(AGAIN).await;
    }
}
