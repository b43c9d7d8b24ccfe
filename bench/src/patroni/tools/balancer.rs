//! HAProxy with a file as people publish it: it sends writes to whoever leads, and reads to everybody.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tokio_postgres::NoTls;
use trunkline_shared::service::clock;

use super::super::rig::Rig;
use crate::load::writers::{self, client_config};
use crate::stack::Stack;

/// Beyond HAProxy's own slowest turn.
const GRACE: Duration = Duration::from_secs(15);
/// So many sessions on the read port meet more than one server.
const SESSIONS: usize = 12;
const LOOK: Duration = Duration::from_millis(200);

/// A switchover moves the write port.
pub async fn follows(rig: &mut Rig) -> Result<String> {
    let leader = rig.stack.leader().await?;
    writers::prepare(&rig.stack, leader).await?;
    let file = rig.haproxy.file;
    let first = routed(rig, file.slowest_turn() + GRACE).await?;
    let candidate = rig.other(crate::stack::member::Product::Trunkline).await?;
    rig.switchover_by_patronictl(&candidate).await?;
    let began = clock::now();
    let second = routed(rig, file.slowest_turn() + GRACE).await?;
    ensure!(first != second, "writes go to {first} as before");
    let mut readers = BTreeSet::new();
    for _ in 0..SESSIONS {
        readers.insert(server(&rig.stack, rig.stack.router.read_port).await?);
    }
    ensure!(readers.len() > 1, "all reads went to {readers:?}");
    Ok(format!(
        "writes went from {first} to {second} {:.1} s after the switchover; reads to {} servers",
        clock::now().since(began).as_secs_f64(),
        readers.len()
    ))
}

/// Waits until the write port leads to the leader; returns its address.
async fn routed(rig: &mut Rig, limit: Duration) -> Result<String> {
    let deadline = clock::now() + limit;
    let index = rig.stack.leader().await?;
    let wanted = rig.stack.members[index].address.clone();
    loop {
        let met = server(&rig.stack, rig.stack.router.write_port).await;
        if met.as_ref().is_ok_and(|address| *address == wanted) {
            return Ok(wanted);
        }
        if clock::now() >= deadline {
            bail!("the write port leads to {met:?} after {limit:?}, {wanted} leads");
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// The address of the server that a new session on this port meets.
async fn server(stack: &Stack, port: u16) -> Result<String> {
    let config = client_config(&stack.router.address, port);
    let meets = async {
        let (client, connection) = config.connect(NoTls).await?;
        tokio::spawn(connection);
        let row = client
            .query_one("SELECT host(inet_server_addr())", &[])
            .await?;
        anyhow::Ok(row.get(0))
    };
    tokio::time::timeout(Duration::from_secs(5), meets)
        .await
        .context("no session within 5 s")?
}
