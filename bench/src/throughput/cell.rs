//! What is measured, cell by cell.

use std::time::Duration;

use anyhow::{Context, Result};
use clap::ValueEnum;
use serde::Serialize;

use super::ways::Way;
use crate::stack::{APP, Stack, encryption};

/// Beyond the seconds of a run: pgbench connects all its clients first.
const LIMIT: Duration = Duration::from_secs(60);
/// Clients of [`Kind::Large`]: each result is 1.6 MB.
const LARGE_CLIENTS: usize = 4;
/// Clients of [`Kind::Connect`].
const CONNECT_CLIENTS: usize = 16;
/// Some 1.6 MB of rows.
const LARGE: &str = "SELECT aid, bid, abalance, filler FROM pgbench_accounts WHERE aid <= 13000;\n";

/// What the clients do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// One SELECT by its key, as a simple query
    Simple,
    /// The same by the extended protocol
    Extended,
    /// The same, prepared once
    Prepared,
    /// Results of 1.6 MB
    Large,
    /// A new connection for each transaction
    Connect,
}

/// What the clients do, and how many they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Cell {
    pub kind: Kind,
    pub clients: usize,
}

/// One measurement.
#[derive(Clone, Copy, Debug)]
pub struct Measured {
    pub tps: f64,
    /// Of the process in the middle, microseconds for each transaction.
    pub cpu_us: f64,
}

/// The cells of these kinds, for these numbers of clients where the kind leaves it open.
pub fn cells(kinds: &[Kind], clients: &[usize]) -> Vec<Cell> {
    let of = |kind: &Kind| -> Vec<Cell> {
        let clients = match kind {
            Kind::Simple | Kind::Extended | Kind::Prepared => clients.to_vec(),
            Kind::Large => vec![LARGE_CLIENTS],
            Kind::Connect => vec![CONNECT_CLIENTS],
        };
        let cell = |clients| Cell {
            kind: *kind,
            clients,
        };
        clients.into_iter().map(cell).collect()
    };
    kinds.iter().flat_map(of).collect()
}

impl Cell {
    /// One run of pgbench, and what it cost the process in the middle.
    pub async fn measure(
        self,
        stack: &Stack,
        way: &Way,
        seconds: u64,
        is_encrypted: bool,
    ) -> Result<Measured> {
        let (port, clients) = (way.port.to_string(), self.clients.to_string());
        let time = seconds.to_string();
        let mut words = vec!["-h", &way.host, "-p", &port, "-U", APP, "-n", "-j", "1"];
        words.extend(["-c", &clients, "-T", &time]);
        let script = stack.write("large.sql", LARGE)?;
        let script = script.to_string_lossy();
        words.extend(match self.kind {
            Kind::Simple => vec!["-S", "-M", "simple"],
            Kind::Extended => vec!["-S", "-M", "extended"],
            Kind::Prepared => vec!["-S", "-M", "prepared"],
            Kind::Large => vec!["-f", &script],
            Kind::Connect => vec!["-S", "-C"],
        });
        words.push(APP);
        let before = way.cpu_us();
        let limit = Duration::from_secs(seconds) + LIMIT;
        let mut asked = stack.client_program("pgbench", &words);
        asked.env.push(encryption::of_libpq(is_encrypted));
        let said = asked.finish(limit).await;
        let said = said.with_context(|| format!("{} through {}", self.name(), way.name))?;
        let used = way.cpu_us().saturating_sub(before);
        let number = |label: &str| {
            let line = said.lines().find_map(|line| line.strip_prefix(label));
            let word = line.and_then(|line| line.split([' ', '/']).find(|word| !word.is_empty()));
            word.and_then(|word| word.parse::<f64>().ok())
        };
        let tps = number("tps = ").with_context(|| format!("pgbench printed no tps: {said}"))?;
        let count = number("number of transactions actually processed: ")
            .with_context(|| format!("pgbench printed no count: {said}"))?;
        Ok(Measured {
            tps,
            cpu_us: used as f64 / count.max(1.0),
        })
    }

    /// For people.
    pub fn name(self) -> String {
        let kind = match self.kind {
            Kind::Simple => "simple",
            Kind::Extended => "extended",
            Kind::Prepared => "prepared",
            Kind::Large => "1.6 MB",
            Kind::Connect => "connect",
        };
        format!("{kind}, {}", self.clients)
    }
}
