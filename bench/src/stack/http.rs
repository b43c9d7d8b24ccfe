//! The few HTTP calls the harness makes, by hand: one request, one connection, everything within a limit.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// How long a status page may take. Longer than any answer from memory, shorter than any lease.
const LIMIT: Duration = Duration::from_secs(1);
/// The longest answer taken.
const LONGEST: u64 = 4 << 20;

/// `GET http://ADDRESS/PATH`: the status code and the body.
pub async fn get(address: &str, path: &str) -> Result<(u16, String)> {
    match tokio::time::timeout(LIMIT, exchange(address, path)).await {
        Ok(answer) => answer.with_context(|| format!("GET http://{address}{path}")),
        Err(_) => bail!("GET http://{address}{path} took longer than {LIMIT:?}"),
    }
}

/// The body of a 200 as JSON.
pub async fn get_json(address: &str, path: &str) -> Result<serde_json::Value> {
    let (code, body) = get(address, path).await?;
    if code != 200 {
        bail!("GET http://{address}{path} answered {code}: {body}");
    }
    serde_json::from_str(&body).with_context(|| format!("GET http://{address}{path}: not JSON"))
}

async fn exchange(address: &str, path: &str) -> Result<(u16, String)> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.0\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(LONGEST).read_to_end(&mut answer).await?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .context("the answer has no head")?;
    let code = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    Ok((code.context("the answer has no status")?, body.to_owned()))
}
