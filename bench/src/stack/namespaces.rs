//! Network namespaces: one per node, on one bridge. The harness itself stands on the bridge too, so that it is
//! every client; the nodes reach each other only across the bridge, as machines do.

use std::fs;

use anyhow::{Context, Result, bail};

use super::process::{run_now, tool};

/// Where the second version of cgroups is mounted, in this order of looking.
const CGROUPS: [&str; 2] = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"];
/// Where the first version has its controller of CPU time.
pub const CPU_CGROUPS: &str = "/sys/fs/cgroup/cpu";

/// The name of a node's namespace, and of its link on the bridge: at most 15 letters, unique per number.
pub fn name(number: u8, node: &str) -> String {
    format!("tl{number}-{node}")
}

/// Makes the bridge of this number, with the harness at .254.
pub fn make_bridge(number: u8) -> Result<()> {
    let bridge = name(number, "br");
    ip(&["link", "add", &bridge, "type", "bridge"])
        .context("network namespaces need root and iproute2")?;
    ip(&[
        "addr",
        "add",
        &format!("10.77.{number}.254/24"),
        "dev",
        &bridge,
    ])?;
    ip(&["link", "set", &bridge, "up"])
}

/// Makes a node's namespace with one address on the bridge.
pub fn make(number: u8, node: &str, address: &str) -> Result<()> {
    let (name, bridge) = (name(number, node), self::name(number, "br"));
    ip(&["netns", "add", &name])?;
    ip(&[
        "link", "add", &name, "type", "veth", "peer", "name", "eth0", "netns", &name,
    ])?;
    ip(&["link", "set", &name, "master", &bridge, "up"])?;
    ip(&[
        "-n",
        &name,
        "addr",
        "add",
        &format!("{address}/24"),
        "dev",
        "eth0",
    ])?;
    ip(&["-n", &name, "link", "set", "eth0", "up"])?;
    ip(&["-n", &name, "link", "set", "lo", "up"])
}

/// Removes every namespace, link and cgroup of this number.
pub fn remove(number: u8) {
    let prefix = name(number, "");
    for entry in fs::read_dir("/run/netns").into_iter().flatten().flatten() {
        let found = entry.file_name().to_string_lossy().into_owned();
        if found.starts_with(&prefix) {
            ip(&["netns", "del", &found]).ok();
        }
    }
    for entry in fs::read_dir("/sys/class/net")
        .into_iter()
        .flatten()
        .flatten()
    {
        let found = entry.file_name().to_string_lossy().into_owned();
        if found.starts_with(&prefix) {
            ip(&["link", "del", &found]).ok();
        }
    }
    for root in CGROUPS.into_iter().chain([CPU_CGROUPS]) {
        for entry in fs::read_dir(root).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(&prefix) {
                fs::remove_dir(entry.path()).ok();
            }
        }
    }
}

/// Lets every frozen cgroup of this number run again, so that its processes can end.
pub fn thaw(number: u8) {
    for root in CGROUPS {
        for entry in fs::read_dir(root).into_iter().flatten().flatten() {
            if entry
                .file_name()
                .to_string_lossy()
                .starts_with(&name(number, ""))
            {
                fs::write(entry.path().join("cgroup.freeze"), "0").ok();
            }
        }
    }
}

/// Drops, silently, every packet from and to the node.
pub async fn cut(namespace: &str) -> Result<()> {
    filter(namespace, "-I").await
}

/// Ends what [`cut`] did.
pub async fn heal(namespace: &str) -> Result<()> {
    filter(namespace, "-D").await
}

/// Drops, silently, every packet that the node sends to this TCP port, wherever it is.
pub async fn cut_from_port(namespace: &str, port: &str) -> Result<()> {
    filter_port(namespace, "-I", port).await
}

/// Ends what [`cut_from_port`] did.
pub async fn heal_port(namespace: &str, port: &str) -> Result<()> {
    filter_port(namespace, "-D", port).await
}

async fn filter_port(namespace: &str, change: &str, port: &str) -> Result<()> {
    let rule = [
        "-w", change, "OUTPUT", "-p", "tcp", "--dport", port, "-j", "DROP",
    ];
    iptables(namespace, &rule).await
}

async fn filter(namespace: &str, change: &str) -> Result<()> {
    for chain in ["INPUT", "OUTPUT"] {
        let side = if chain == "INPUT" { "-i" } else { "-o" };
        iptables(
            namespace,
            &["-w", change, chain, side, "eth0", "-j", "DROP"],
        )
        .await?;
    }
    Ok(())
}

/// Puts a rule (`-I`) before all others of the node's packet filter, or takes it away (`-D`).
pub async fn rule(namespace: &str, change: &str, words: &[&str]) -> Result<()> {
    iptables(namespace, &[&["-w", change], words].concat()).await
}

async fn iptables(namespace: &str, rule: &[&str]) -> Result<()> {
    let mut iptables = tool("iptables", rule);
    iptables.namespace = Some(namespace.to_owned());
    iptables.finish(std::time::Duration::from_secs(5)).await?;
    Ok(())
}

/// A cgroup of its own for a node; nothing where this kernel mounts no second version.
pub fn make_cgroup(number: u8, node: &str) -> Option<std::path::PathBuf> {
    let root = CGROUPS.iter().find(|root| {
        std::path::Path::new(root)
            .join("cgroup.controllers")
            .exists()
    })?;
    let path = std::path::Path::new(root).join(name(number, node));
    fs::create_dir(&path).ok()?;
    path.join("cgroup.freeze").exists().then_some(path)
}

fn ip(args: &[&str]) -> Result<()> {
    match run_now("ip", args) {
        Ok(()) => Ok(()),
        Err(error) => bail!("ip {}: {error}", args.join(" ")),
    }
}
