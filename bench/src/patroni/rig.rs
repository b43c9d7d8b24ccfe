//! A cluster whose members are kept by Trunkline or by Patroni, behind HAProxy, and what is done to it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use serde_json::Value;

use super::Setup;
use super::haproxy::{File, Haproxy};
use crate::check::convergence::Converged;
use crate::report::Progress;
use crate::stack::member::{Product, SUPERUSER_PASSWORD, Timing};
use crate::stack::process::{find, tool};
use crate::stack::{Layout, Plan, Stack};

/// How long a bootstrap, a clone or Patroni's way back after a crash may take.
const WHOLE_LIMIT: Duration = Duration::from_secs(120);
/// How long a command may take: patronictl's own waits among them.
pub const COMMAND_LIMIT: Duration = Duration::from_secs(120);
/// A clean end, with PostgreSQL's.
const END_LIMIT: Duration = Duration::from_secs(60);
/// How long a program takes to tell its version.
const VERSION_LIMIT: Duration = Duration::from_secs(30);

/// The programs of others.
#[derive(Debug)]
pub struct Outside {
    /// `patroni`
    pub patroni: PathBuf,
    /// `patronictl`
    pub patronictl: PathBuf,
    /// `vip-manager`, if one was named.
    pub vip_manager: Option<PathBuf>,
    /// The folder of `prometheus` and `promtool`, if one was named.
    pub prometheus: Option<PathBuf>,
    /// `haproxy`, if not that of the system.
    pub haproxy: Option<PathBuf>,
    version: String,
}

impl Outside {
    /// Finds them; says what is missing and where it comes from.
    pub async fn find(
        patroni: Option<&Path>,
        vip_manager: Option<PathBuf>,
        prometheus: Option<PathBuf>,
    ) -> Result<Outside> {
        let how = "run deploy/outside-tools and take the lines it prints, or name the folder of patroni and \
                   patronictl 4.1 by --patroni";
        let folder = patroni.with_context(|| format!("Patroni is missing: {how}"))?;
        let (patroni, patronictl) = (folder.join("patroni"), folder.join("patronictl"));
        for program in [&patroni, &patronictl] {
            if !program.is_file() {
                bail!("{} is missing: {how}", program.display());
            }
        }
        let asked = tool(&patroni.to_string_lossy(), &["--version"]);
        let version = asked.finish(VERSION_LIMIT).await?;
        Ok(Outside {
            patroni,
            patronictl,
            vip_manager,
            prometheus,
            haproxy: None,
            version: version.trim().to_owned(),
        })
    }

    /// One of Prometheus's programs.
    pub fn of_prometheus(&self, name: &str) -> Result<PathBuf> {
        let named = self.prometheus.as_ref().map(|folder| folder.join(name));
        let found = named.filter(|file| file.is_file()).or_else(|| find(name));
        found.with_context(|| {
            format!("{name} is missing: run deploy/outside-tools and take the lines it prints")
        })
    }

    /// What is compared with.
    pub fn versions(&self) -> &str {
        &self.version
    }
}

/// A cluster behind HAProxy.
#[derive(Debug)]
pub struct Rig {
    /// Its etcd and members. Its router is not started: HAProxy stands in its place.
    pub stack: Stack,
    /// What clients reach it through.
    pub haproxy: Haproxy,
    patroni: PathBuf,
    patronictl: PathBuf,
}

impl Rig {
    /// The first member makes the cluster, the others copy it; then HAProxy.
    pub async fn start(
        setup: &Setup<'_>,
        products: [Product; 3],
        timing: Timing,
        file: File,
    ) -> Result<Rig> {
        let layout = match rustix::process::geteuid().is_root() {
            true => Layout::Namespaces,
            false => Layout::Loopback,
        };
        let plan = Plan {
            timing,
            ..Plan::new(layout)
        };
        let mut stack = Stack::with_etcd(&plan, setup.progress).await?;
        let patroni = setup.outside.patroni.clone();
        for (index, product) in products.into_iter().enumerate() {
            setup.progress.step(format!("n{} by {product}", index + 1));
            let program = program(&stack, &patroni, product);
            stack.members[index].start_as(product, &program)?;
            let leads = async |stack: &Stack| stack.leader().await.is_ok();
            stack.until("a leader", WHOLE_LIMIT, leads).await?;
        }
        stack.until_converged(WHOLE_LIMIT).await?;
        let haproxy = Haproxy::start(&stack, file, setup.outside.haproxy.as_deref()).await?;
        Ok(Rig {
            stack,
            haproxy,
            patroni,
            patronictl: setup.outside.patronictl.clone(),
        })
    }

    /// Waits until one leads and the others stream from it.
    pub async fn whole(&mut self) -> Result<Converged> {
        self.stack.until_converged(WHOLE_LIMIT).await
    }

    /// The name of whoever leads.
    pub async fn leader(&self) -> Result<String> {
        let index = self.stack.leader().await?;
        Ok(self.stack.members[index].name.clone())
    }

    /// The first member of this kind that does not lead.
    pub async fn other(&self, product: Product) -> Result<String> {
        let leader = self.leader().await?;
        let members = self.stack.members.iter();
        let mut fit = members.filter(|m| m.product() == product && m.name != leader);
        let found = fit.next().map(|member| member.name.clone());
        found.with_context(|| format!("no member by {product} beside {leader}"))
    }

    /// Ends what keeps this member as a service manager does, and waits for it.
    pub async fn stop(&mut self, index: usize) -> Result<()> {
        self.stack.members[index].end(Signal::TERM, END_LIMIT).await
    }

    /// Starts this product on the member's file.
    pub fn start_as(&mut self, index: usize, product: Product) -> Result<()> {
        let program = program(&self.stack, &self.patroni, product);
        self.stack.members[index].start_as(product, &program)
    }

    /// Kills the agent, its fence and every server process of a member.
    pub async fn kill(&mut self, index: usize) -> Result<()> {
        self.stack.members[index].kill().await
    }

    /// Runs patronictl with the file of the first member; fails if it does.
    pub async fn patronictl(&self, words: &[&str]) -> Result<String> {
        let config = self.stack.members[0].config.to_string_lossy().into_owned();
        let all: Vec<_> = ["-c", &config]
            .into_iter()
            .chain(words.iter().copied())
            .collect();
        let mut launch = self.stack.tool(&self.patronictl, &all);
        launch.env = vec![
            ("PGPASSWORD".to_owned(), SUPERUSER_PASSWORD.to_owned()),
            ("COLUMNS".to_owned(), "200".to_owned()),
        ];
        let said = launch.finish(COMMAND_LIMIT).await?;
        Ok(said)
    }

    /// `patronictl list`: a row of the table per member, by its columns.
    pub async fn list(&self) -> Result<Vec<Value>> {
        let text = self.patronictl(&["list", "-f", "json"]).await?;
        let parsed: Value = serde_json::from_str(&text)
            .with_context(|| format!("patronictl list printed no JSON: {text}"))?;
        let rows = parsed.as_array().cloned();
        rows.with_context(|| format!("patronictl list printed no list: {text}"))
    }

    /// A switchover by patronictl; it says so when it failed, and ends with 0 all the same.
    pub async fn switchover_by_patronictl(&self, to: &str) -> Result<String> {
        let from = self.leader().await?;
        let words = [
            "switchover",
            "--leader",
            &from,
            "--candidate",
            to,
            "--force",
        ];
        let said = self.patronictl(&words).await?;
        if !said.contains(&format!("Successfully switched over to \"{to}\"")) {
            bail!("patronictl switchover {from} to {to} said: {said}");
        }
        Ok(format!("{from} to {to}"))
    }

    /// A switchover by `trunkline`, which ends with 0 only when the member asked for leads.
    pub async fn switchover_by_trunkline(&self, to: &str) -> Result<String> {
        let from = self.leader().await?;
        let words = [
            "switchover",
            "--leader",
            &from,
            "--candidate",
            to,
            "--force",
        ];
        self.stack.trunkline(&words).await?;
        Ok(format!("{from} to {to}"))
    }

    /// Copies the logs of everything, if they are wanted.
    pub fn keep_logs(&self, setup: &Setup<'_>, scenario: &str, progress: &Progress) {
        let Some(folder) = &setup.keep_logs else {
            return;
        };
        if let Err(error) = self
            .stack
            .keep_logs(&folder.join(format!("patroni-{scenario}")))
        {
            progress.line(format!("the logs were not kept: {error:#}"));
        }
    }
}

fn program(stack: &Stack, patroni: &Path, product: Product) -> PathBuf {
    match product {
        Product::Trunkline => stack.programs.agent.clone(),
        Product::Patroni => patroni.to_owned(),
    }
}
