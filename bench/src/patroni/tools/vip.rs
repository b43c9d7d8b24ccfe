//! vip-manager holds an address on the node of whoever leads: by the leader key, and by the REST API.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use trunkline_shared::service::clock;

use super::super::rig::Rig;
use super::super::{Setup, rig};
use crate::stack::Layout;
use crate::stack::member::{Product, SCOPE};
use crate::stack::process::{Launch, Process, args, tool};

/// The address must be on the leader's node alone within this: it looks once a second.
const LIMIT: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(200);

/// How it finds out who leads.
#[derive(Clone, Copy, Debug)]
enum By {
    LeaderKey,
    Rest,
}

/// The addresses are where the leader is, and move with it.
pub async fn moves(setup: &Setup<'_>, rig: &mut Rig) -> Result<String> {
    if rig.stack.layout != Layout::Namespaces {
        return Ok("not run: network namespaces need root".to_owned());
    }
    let program = setup.outside.vip_manager.as_deref().context(
        "a vip-manager that reads etcd 3 (2.0 or newer; Debian 12 has 1.0) is missing: run \
         deploy/outside-tools and take the lines it prints, or name it by --vip-manager",
    )?;
    let mut running = Vec::new();
    for by in [By::LeaderKey, By::Rest] {
        for index in 0..rig.stack.members.len() {
            running.push(start(rig, program, index, by)?);
        }
    }
    let first = rig.leader().await?;
    stand_on(rig, &first)
        .await
        .with_context(|| tails(&running))?;
    let second = rig.other(Product::Trunkline).await?;
    rig.switchover_by_patronictl(&second).await?;
    let began = clock::now();
    stand_on(rig, &second)
        .await
        .with_context(|| tails(&running))?;
    let took = clock::now().since(began);
    for mut process in running {
        process.kill().await?;
    }
    Ok(format!(
        "from {first} to {second} {:.1} s after the switchover, by the leader key and by REST",
        took.as_secs_f64()
    ))
}

fn address(rig: &Rig, by: By) -> String {
    let last = match by {
        By::LeaderKey => 100,
        By::Rest => 101,
    };
    format!("10.77.{}.{last}", rig.stack.number())
}

fn start(rig: &Rig, program: &std::path::Path, index: usize, by: By) -> Result<Process> {
    let member = &rig.stack.members[index];
    let key = format!("/service/{SCOPE}/leader");
    let (kind, store, trigger, value) = match by {
        By::LeaderKey => {
            let etcd = format!("http://{}:2379", rig.stack.etcd[0].address);
            ("etcd", etcd, key.as_str(), member.name.as_str())
        }
        By::Rest => {
            let rest = format!("http://{}:8008/", member.address);
            ("patroni", rest, "/leader", "200")
        }
    };
    let launch = Launch {
        args: args([
            "--ip",
            &address(rig, by),
            "--netmask",
            "24",
            "--interface",
            "eth0",
            "--dcs-type",
            kind,
            "--dcs-endpoints",
            &store,
            "--trigger-key",
            trigger,
            "--trigger-value",
            value,
        ]),
        namespace: member.namespace.clone(),
        // Only root may set addresses.
        user: None,
        log: rig
            .stack
            .folder()
            .join(format!("vip-{kind}-{}.log", member.name)),
        ..rig.stack.tool(program, &[])
    };
    launch.start(&format!("vip-manager of {}", member.name))
}

/// Waits until both addresses stand on this member's node and on no other.
async fn stand_on(rig: &Rig, leader: &str) -> Result<()> {
    let deadline = clock::now() + LIMIT;
    loop {
        let mut wrong = Vec::new();
        for member in &rig.stack.members {
            let namespace = member.namespace.as_deref().unwrap_or_default();
            let words = ["-n", namespace, "-o", "addr", "show", "dev", "eth0"];
            let shown = tool("ip", &words).finish(rig::COMMAND_LIMIT).await?;
            for by in [By::LeaderKey, By::Rest] {
                let stands = shown.contains(&format!("{}/", address(rig, by)));
                if stands != (member.name == leader) {
                    wrong.push(format!("{by:?} on {}: {stands}", member.name));
                }
            }
        }
        if wrong.is_empty() {
            return Ok(());
        }
        if clock::now() >= deadline {
            bail!("{leader} leads; {}", wrong.join(", "));
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn tails(running: &[Process]) -> String {
    let each = running.iter().map(Process::tail);
    each.collect::<Vec<_>>().join("\n---\n")
}
