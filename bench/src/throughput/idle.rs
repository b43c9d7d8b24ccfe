//! What one idle client costs the process in the middle.

use anyhow::{Context, Result};
use tokio_postgres::NoTls;

use super::ways::Way;
use crate::load::writers;

/// Bytes for each of so many clients that have asked once and wait. They stay open until all are there.
pub async fn bytes_per_client(way: &Way, clients: usize) -> Result<Option<f64>> {
    let Some(process) = way.process else {
        return Ok(None);
    };
    let before = process.proportional_kb();
    let config = writers::client_config(&way.host, way.port);
    let mut open = Vec::with_capacity(clients);
    for _ in 0..clients {
        let (client, connection) = config.connect(NoTls).await?;
        let carried = tokio::spawn(connection);
        client.simple_query("SELECT 1").await?;
        open.push((client, carried));
    }
    let after = process.proportional_kb();
    drop(open);
    let (before, after) = before
        .zip(after)
        .with_context(|| format!("the memory of {} cannot be read", way.name))?;
    Ok(Some(
        after.saturating_sub(before) as f64 * 1024.0 / clients as f64,
    ))
}
