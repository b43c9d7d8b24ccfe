//! Links between nodes: packets of some nodes, ports or directions dropped, silently, the others left alone.

use std::path::Path;

use anyhow::{Context, Result};

use crate::stack::namespaces;
use crate::stack::proc::ProcessId;

/// The state of an established connection in `/proc/PID/net/tcp`.
const ESTABLISHED: &str = "01";

/// One rule of a node's packet filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    namespace: String,
    words: Vec<String>,
}

impl Rule {
    fn new(namespace: &str, words: &[&str]) -> Rule {
        let words = words.iter().chain(&["-j", "DROP"]);
        Rule {
            namespace: namespace.to_owned(),
            words: words.map(|word| (*word).to_owned()).collect(),
        }
    }

    /// Of what this node sends to an address.
    pub fn to(namespace: &str, address: &str) -> Rule {
        Rule::new(namespace, &["OUTPUT", "-d", address])
    }

    /// Of what this node hears from an address.
    pub fn from(namespace: &str, address: &str) -> Rule {
        Rule::new(namespace, &["INPUT", "-s", address])
    }

    /// Of all between this node and an address.
    pub fn between(namespace: &str, address: &str) -> [Rule; 2] {
        [Rule::to(namespace, address), Rule::from(namespace, address)]
    }

    /// Of all between this node and an address where one of these TCP ports is at either end.
    pub fn between_on(namespace: &str, address: &str, ports: &str) -> [Rule; 2] {
        let on = ["-p", "tcp", "-m", "multiport", "--ports", ports];
        let to = [&["OUTPUT", "-d", address], &on[..]].concat();
        let from = [&["INPUT", "-s", address], &on[..]].concat();
        [Rule::new(namespace, &to), Rule::new(namespace, &from)]
    }

    /// Of what one connection of this node hears: from that port, at this one.
    pub fn heard_by(namespace: &str, from: u16, at: u16) -> Rule {
        let (from, at) = (from.to_string(), at.to_string());
        let words = ["INPUT", "-p", "tcp", "--sport", &from, "--dport", &at];
        Rule::new(namespace, &words)
    }
}

/// Links that are cut until they are healed.
#[derive(Debug)]
#[must_use = "what is cut is to be healed"]
pub struct Cut(Vec<Rule>);

/// Puts the rules in force.
pub async fn cut(rules: impl IntoIterator<Item = Rule>) -> Result<Cut> {
    let rules: Vec<_> = rules.into_iter().collect();
    for rule in &rules {
        apply(rule, "-I").await?;
    }
    Ok(Cut(rules))
}

impl Cut {
    /// Takes them away again.
    pub async fn heal(self) -> Result<()> {
        for rule in &self.0 {
            apply(rule, "-D").await?;
        }
        Ok(())
    }
}

async fn apply(rule: &Rule, change: &str) -> Result<()> {
    let words: Vec<_> = rule.words.iter().map(String::as_str).collect();
    namespaces::rule(&rule.namespace, change, &words).await
}

/// The own ports of the established connections of a process's network to this port of others.
pub fn connections_to(process: ProcessId, port: u16) -> Result<Vec<u16>> {
    let path = format!("/proc/{}/net/tcp", process.pid);
    let text = std::fs::read_to_string(Path::new(&path));
    Ok(own_ports(
        &text.with_context(|| format!("cannot read {path}"))?,
        port,
    ))
}

/// Lines as in proc(5): number, own address, that of the other, state.
fn own_ports(table: &str, port: u16) -> Vec<u16> {
    let port_of = |address: &str| {
        let (_, port) = address.split_once(':')?;
        u16::from_str_radix(port, 16).ok()
    };
    let own = |line: &str| {
        let mut words = line.split_whitespace().skip(1);
        let (own, other, state) = (words.next()?, words.next()?, words.next()?);
        let is_wanted = state == ESTABLISHED && port_of(other) == Some(port);
        port_of(own).filter(|_| is_wanted)
    };
    table.lines().filter_map(own).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_established_connections_to_that_port_count() {
        let table = "  sl  local_address rem_address   st tx_queue\n   \
             0: 0E0A4D0A:9C40 0B0A4D0A:094B 01 00000000:00000000\n   \
             1: 0E0A4D0A:9C41 0B0A4D0A:094B 06 00000000:00000000\n   \
             2: 0E0A4D0A:9C42 0B0A4D0A:1538 01 00000000:00000000\n   \
             3: 00000000:094B 00000000:0000 0A 00000000:00000000\n";
        assert_eq!(own_ports(table, 2379), [0x9C40]);
    }

    #[test]
    fn a_rule_of_ports_drops_both_directions() {
        let [to, from] = Rule::between_on("tl1-n1", "10.77.1.12", "5432,8008");
        assert_eq!(
            to.words.join(" "),
            "OUTPUT -d 10.77.1.12 -p tcp -m multiport --ports 5432,8008 -j DROP"
        );
        assert!(from.words.join(" ").starts_with("INPUT -s 10.77.1.12 "));
    }
}
