//! What one idle client costs the process in the middle.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use trunkline_shared::service::clock;

use super::ways::Way;
use crate::stack::{APP, Stack, encryption};

/// Each asks once, one after the other, and then waits for longer than anybody looks.
const IDLE: &str = "\\set turn 2 * :client_id\n\\sleep :turn ms\nSELECT 1;\n\\sleep 600 s\n";
/// Within this time all clients are there and the memory has settled.
const LIMIT: Duration = Duration::from_secs(120);
/// Between two looks; so many of them that show no change show that all have asked.
const LOOK: Duration = Duration::from_millis(300);
const SAME_LOOKS: usize = 3;

/// Bytes for each of so many clients that have asked once and wait.
pub async fn bytes_per_client(
    stack: &Stack,
    way: &Way,
    clients: usize,
    is_encrypted: bool,
) -> Result<Option<f64>> {
    let Some(process) = way.process else {
        return Ok(None);
    };
    let lost = || format!("the memory of {} cannot be read", way.name);
    let before = process.proportional_kb().with_context(lost)?;
    let script = stack.write("idle.sql", IDLE)?;
    let (port, count) = (way.port.to_string(), clients.to_string());
    let script = script.to_string_lossy();
    let words = [
        "-h", &way.host, "-p", &port, "-U", APP, "-n", "-c", &count, "-t", "1", "-f", &script, APP,
    ];
    let mut launch = stack.client_program("pgbench", &words);
    launch.env.push(encryption::of_libpq(is_encrypted));
    let mut running = launch.start("pgbench")?;
    let deadline = clock::now() + LIMIT;
    let (mut last, mut same) = (0, 0);
    while same < SAME_LOOKS {
        running.must_live()?;
        if clock::now() >= deadline {
            bail!("{} did not settle within {LIMIT:?}", way.name);
        }
        tokio::time::sleep(LOOK).await;
        let now = (
            connections(way)?,
            process.proportional_kb().with_context(lost)?,
        );
        let is_same = now.0 >= clients && now.1 == last;
        same = if is_same { same + 1 } else { 0 };
        last = now.1;
    }
    drop(running);
    Ok(Some(
        last.saturating_sub(before) as f64 * 1024.0 / clients as f64,
    ))
}

/// Connections that a way has accepted, by the kernel's table.
fn connections(way: &Way) -> Result<usize> {
    let host: std::net::Ipv4Addr = way.host.parse()?;
    let own = format!("{:08X}:{:04X}", u32::from_le_bytes(host.octets()), way.port);
    let table = std::fs::read_to_string("/proc/net/tcp")?;
    let is_open = |line: &&str| {
        let mut words = line.split_whitespace().skip(1);
        words.next() == Some(own.as_str()) && words.nth(1) == Some("01")
    };
    Ok(table.lines().filter(is_open).count())
}
