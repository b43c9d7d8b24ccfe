//! A cluster under clients, on which rows are run one after another: each is a fault, the wait for its consequence and
//! its end, under the same clients and the same checks.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio_postgres::Config;
use trunkline_shared::cluster::Moment;
use trunkline_shared::service::clock;

use super::inflict;
use super::judged::{self, Evidence, Facts, Line, described};
use super::lists::Lists;
use super::load::{self, Load};
use super::promise::{Conditions, Entrance, Nodes};
use super::row::Row;
use crate::check::convergence::Converged;
use crate::check::{ledger, one_writer};
use crate::failover::run::Run;
use crate::failover::sequence::{self, Inflicted};
use crate::load::history::{Gaps, History};
use crate::load::{append, writers};
use crate::report::Progress;
use crate::stack::member::{Synchronous, Timing};
use crate::stack::router::{Pooled, Router};
use crate::stack::volume::Volume;
use crate::stack::{APP, Layout, Plan, Stack};
use crate::switchover::clients::{self, Clients, Told};
use crate::switchover::verdict::Rows;
use crate::switchover::{PORT, rows_from};

/// After a fault one leads and the others stream within this (liveness L2 of the matrix).
const WHOLE: Duration = Duration::from_secs(60);
/// Every client must be told of a write within this, once the cluster is whole.
const FLOWS: Duration = Duration::from_secs(30);
/// How long the load goes on then: a late cut would show here.
const AFTERWARDS: Duration = Duration::from_secs(1);
/// The pooled listener whose clients have a server of their own.
const SESSION_PORT: u16 = 5435;
/// Clients of one row have numbers of one span: those of every row first, at 1000 those beside them.
const SPAN: i32 = 8_000;
/// The number of the first client beside those of every row.
pub const BESIDE: i32 = 1_000;
/// Two pools, sessions of the write port, and the servers' own.
const MAX_CONNECTIONS: u32 = 300;
/// What must be equal on all members in the end.
const TABLES: [&str; 2] = ["moved", "lists"];
/// Room for a small database and its WAL, where a disk is to be full.
const VOLUME_MB: u32 = 640;

/// How rows are run.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Clients of every row.
    pub clients: i32,
    /// How long the load is let alone before each fault.
    pub quiet: Duration,
    /// For how long something is away, where its absence is the fault.
    pub outage: Duration,
    /// Planned changes of the first row.
    pub changes: u32,
    /// The number by which steps and moments are drawn.
    pub seed: u64,
}

/// A row under way.
pub struct Field<'a> {
    /// What scenarios work with, too.
    pub run: Run<'a>,
    /// The clients of every row.
    pub load: &'a Clients,
    /// What the run has.
    pub conditions: &'a Conditions,
    /// How rows are run.
    pub settings: &'a Settings,
    /// Where steps are told.
    pub progress: &'a Progress,
    /// The cluster before the fault that is under way.
    pub before: Converged,
    /// The number of the row's first client.
    pub first: i32,
    /// What the row knows that the clients do not.
    pub evidence: Evidence,
}

impl Field<'_> {
    /// Notes what was promised and did not hold.
    pub fn missed(&mut self, text: impl Into<String>) {
        self.evidence.faults.push(text.into());
    }

    /// Takes note of what took too long.
    pub fn late(&mut self, text: impl Into<String>) {
        self.evidence.late.push(text.into());
    }

    /// The faults have ended: waits until the cluster is whole and every client writes, and takes note of what was done.
    /// Another fault may begin then.
    pub async fn whole(&mut self, what: &str, on: &str) -> Result<Converged> {
        let healed = clock::now();
        let (since, now) = sequence::until_whole(self.run.stack, WHOLE)
            .await
            .with_context(|| format!("after {what:?}"))?;
        let flows = self.load.until_all_write(since, FLOWS).await;
        flows.with_context(|| format!("after {what:?}"))?;
        let before = self.name_of(self.before);
        self.run.inflicted.push(Inflicted {
            what: what.to_owned(),
            on_leader: on == before.0,
            on: on.to_owned(),
            began: self.run.began,
            healed,
            whole: Some(clock::now()),
            fork: sequence::fork_since(self.run.stack, before.1, now).await?,
            before,
            after: Some(self.name_of(now)),
        });
        self.begins(now);
        Ok(now)
    }

    /// The next fault begins on this cluster.
    pub fn begins(&mut self, now: Converged) {
        self.before = now;
        self.run.leader = now.leader;
        self.run.began = clock::now();
    }

    fn name_of(&self, now: Converged) -> (String, u64) {
        (
            self.run.stack.members[now.leader].name.clone(),
            now.timeline,
        )
    }

    /// How a client comes in through the first router.
    pub fn entrance(&self) -> Config {
        entrance(&self.run.stack.router, self.conditions.entrance)
    }
}

fn entrance(router: &Router, entrance: Entrance) -> Config {
    let port = match entrance {
        Entrance::Transaction => PORT,
        Entrance::Session => SESSION_PORT,
        Entrance::Tcp => router.write_port,
    };
    writers::client_config(&router.address, port)
}

fn volume(nodes: Nodes) -> Option<Volume> {
    let can_freeze = match nodes {
        Nodes::Ordinary | Nodes::WallClocks => return None,
        Nodes::LimitedDisks => false,
        Nodes::FreezableDisks => true,
    };
    let megabytes = VOLUME_MB;
    Some(Volume {
        megabytes,
        can_freeze,
    })
}

type Found = BTreeMap<(i32, i64), Rows>;

/// A cluster, and what was seen of it so far.
pub struct Site {
    /// The cluster.
    pub stack: Stack,
    /// What its nodes have of their own.
    pub nodes: Nodes,
    /// How its commits wait for standbys.
    pub synchronous: Option<Synchronous>,
    /// Where the numbers of the next row's clients begin.
    next: i32,
    /// The rows that the clients of the last one had at its end.
    kept: Option<Kept>,
}

/// What the clients of a row lived through.
struct Lived {
    began: Moment,
    /// Whether the row came to its end.
    is_good: bool,
    histories: [History; 2],
    told: Vec<Told>,
    /// The longest gaps before it began, by router.
    quiet: [Gaps; 2],
    inflicted: Vec<Inflicted>,
    lists: Lists,
    evidence: Evidence,
}

/// What must still be there.
#[derive(Clone, Copy, Debug)]
struct Kept {
    first: i32,
    rows: i64,
}

impl Site {
    /// Starts the cluster.
    pub async fn start(conditions: &Conditions, nodes: Nodes, progress: &Progress) -> Result<Site> {
        let plan = Plan {
            pooled: Some(Pooled::by_password(&[
                (PORT, "transaction"),
                (SESSION_PORT, "session"),
            ])),
            has_second_router: true,
            volume: volume(nodes),
            has_wall_clocks: nodes == Nodes::WallClocks,
            timing: Timing {
                synchronous: conditions.synchronous,
                max_connections: MAX_CONNECTIONS,
                ..Timing::default()
            },
            ..Plan::new(match conditions.is_root {
                true => Layout::Namespaces,
                false => Layout::Loopback,
            })
        };
        let mut stack = Stack::start(&plan, progress).await?;
        let leader = stack.leader().await?;
        clients::prepare(&stack, leader).await?;
        append::prepare(&stack.members[leader].sql(APP).await?, APP).await?;
        let leader = stack.until_converged(WHOLE).await?.leader;
        // Those who read must find the database on every member.
        ledger::same_everywhere(&stack, leader, &TABLES).await?;
        Ok(Site {
            stack,
            nodes,
            synchronous: conditions.synchronous,
            next: 0,
            kept: None,
        })
    }

    /// Runs one row; its line, and whether the cluster is good for another. An error is one of the harness or of a
    /// cluster that did not even begin whole.
    pub async fn suffer(
        &mut self,
        row: Row,
        conditions: &Conditions,
        settings: &Settings,
        progress: &Progress,
    ) -> Result<(Line, bool)> {
        let started = clock::now();
        let first = self.next;
        self.next = first + SPAN;
        let mut lived = self
            .live(row, first, conditions, settings, progress)
            .await?;
        let line = match self.at_the_end(first).await {
            Ok((rows, missed)) => {
                lived.evidence.faults.extend(missed);
                judged::judge(Facts {
                    row,
                    conditions,
                    histories: &lived.histories,
                    told: &lived.told,
                    began: lived.began,
                    quiet: lived.quiet,
                    inflicted: &lived.inflicted,
                    rows: &rows,
                    lists: &lived.lists,
                    evidence: lived.evidence,
                })
            }
            Err(error) => {
                lived.is_good = false;
                let Evidence {
                    faults,
                    late,
                    notes,
                    ..
                } = lived.evidence;
                let why = format!("what clients wrote cannot be judged: {error:#}");
                Line {
                    missed: [faults, vec![why]].concat(),
                    late,
                    notes,
                    ..described(row, conditions)
                }
            }
        };
        let seconds = clock::now().since(started).as_secs_f64();
        Ok((Line { seconds, ..line }, lived.is_good))
    }

    /// The clients live through a row.
    async fn live(
        &mut self,
        row: Row,
        first: i32,
        conditions: &Conditions,
        settings: &Settings,
        progress: &Progress,
    ) -> Result<Lived> {
        self.must_live()?;
        let before = sequence::until_whole(&mut self.stack, WHOLE).await;
        let (_, before) = before.context("before the row")?;
        let config = entrance(&self.stack.router, conditions.entrance);
        let second = self.stack.second_router.as_ref();
        let second = second.map(|router| entrance(router, conditions.entrance));
        let numbers = first..first + settings.clients;
        load::clear(&self.stack, before.leader).await?;
        let seed = settings.seed;
        let load = Load::start(&self.stack, &config, second.as_ref(), numbers, seed);
        load.clients.until_all_write(clock::now(), FLOWS).await?;
        let watchers = one_writer::Watchers::start(&self.stack, before.leader).await?;
        let quiet_from = clock::now();
        tokio::time::sleep(settings.quiet).await;
        let began = clock::now();
        let mut field = Field {
            run: self.run(before, &load.clients, settings),
            load: &load.clients,
            conditions,
            settings,
            progress,
            before,
            first,
            evidence: Evidence::default(),
        };
        let went = inflict::inflict(row, &mut field).await;
        let Field {
            run, mut evidence, ..
        } = field;
        let (inflicted, helpless) = (run.inflicted, run.helpless);
        evidence.faults.extend(run.faults);
        evidence.notes.extend(run.notes);
        let mut is_good = went.is_ok();
        match went {
            Ok(()) => tokio::time::sleep(AFTERWARDS).await,
            Err(error) => evidence.faults.push(format!("broke off: {error:#}")),
        }
        let ([one, other], lists) = load.finish().await?;
        let lists = lists.unwrap_or_else(|error| {
            is_good = false;
            evidence.faults.push(format!("{error:#}"));
            Lists::default()
        });
        let (told, missed) = one_writer::judge(&watchers.finish().await?, &helpless);
        evidence.notes.extend(told);
        evidence.faults.extend(missed);
        let histories = [one.history, other.history];
        Ok(Lived {
            began,
            is_good,
            quiet: histories.each_ref().map(|own| own.gaps(quiet_from, began)),
            histories,
            told: [one.told, other.told].concat(),
            inflicted,
            lists,
            evidence,
        })
    }

    fn run(&mut self, before: Converged, load: &Clients, settings: &Settings) -> Run<'_> {
        Run {
            stack: &mut self.stack,
            leader: before.leader,
            began: clock::now(),
            writes: load.last_write(),
            faults: Vec::new(),
            notes: Vec::new(),
            helpless: Vec::new(),
            tables: TABLES.to_vec(),
            seed: settings.seed,
            count: None,
            longest: settings.outage,
            outage: settings.outage,
            inflicted: Vec::new(),
        }
    }

    /// What the last leader has of this row; whether all members have the same, and the row before has lost nothing since it
    /// was judged: what it wrote is not needed any more then.
    async fn at_the_end(&mut self, first: i32) -> Result<(Found, Vec<String>)> {
        let found = rows_from(&mut self.stack, first).await?;
        let leader = self.stack.until_converged(WHOLE).await?.leader;
        let mut missed = Vec::new();
        if let Err(error) = ledger::same_everywhere(&self.stack, leader, &TABLES).await {
            missed.push(format!("{error:#}"));
        }
        let direct = self.stack.members[leader].sql(APP).await?;
        let count = "SELECT count(*) FROM moved WHERE client >= $1 AND client < $2";
        if let Some(kept) = self.kept.take() {
            let span = [
                &kept.first as &(dyn tokio_postgres::types::ToSql + Sync),
                &first,
            ];
            let now: i64 = direct.query_one(count, &span).await?.get(0);
            if now != kept.rows {
                let Kept { rows, .. } = kept;
                missed.push(format!(
                    "of the row before {rows} rows were there and {now} are"
                ));
            }
            let forget = "DELETE FROM moved WHERE client < $1";
            direct.execute(forget, &[&first]).await?;
        }
        let rows = direct.query_one(count, &[&first, &self.next]).await?.get(0);
        self.kept = Some(Kept { first, rows });
        Ok((found, missed))
    }

    /// Fails unless every program that is to run does.
    fn must_live(&mut self) -> Result<()> {
        for member in &mut self.stack.members {
            member.must_live()?;
        }
        for etcd in &mut self.stack.etcd {
            etcd.must_live()?;
        }
        let second = self.stack.second_router.as_mut();
        for router in std::iter::once(&mut self.stack.router).chain(second) {
            router.must_live()?;
        }
        Ok(())
    }
}
