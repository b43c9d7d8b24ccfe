//! A whole Trunkline on one machine: etcd, three members, one router, as child processes.
//!
//! Two layouts: loopback addresses, which need nothing, and network namespaces, which need root and can be cut
//! apart. Everything a stack makes is gone when it is dropped, after a panic too; what a killed harness leaves
//! is removed by the next holder of its number ([`place`]).

use std::time::Duration;

use anyhow::{Context, Result, bail};
use trunkline_shared::service::clock;

use crate::check::convergence::{self, Converged};
use crate::report::Progress;
use etcd::Etcd;
use member::{Home, Member, SCOPE, Timing};
use place::Place;
use process::{Launch, args};
use programs::Programs;
use router::{Entrance, Pooled, Router};
use wall_clock::WallClock;

pub mod encryption;
pub mod etcd;
pub mod http;
pub mod member;
pub mod namespaces;
pub mod place;
pub mod proc;
pub mod process;
pub mod programs;
pub mod router;
pub mod volume;
pub mod wall_clock;

/// How many members a cluster has.
pub const MEMBERS: usize = 3;
/// How often a condition is looked at while it is awaited.
const LOOK: Duration = Duration::from_millis(50);
/// How long etcd may take to elect its first leader.
const ETCD_LIMIT: Duration = Duration::from_secs(30);
/// How long a bootstrap with two clones may take on a slow machine.
const BOOTSTRAP_LIMIT: Duration = Duration::from_secs(120);
/// How long one operator's command may take.
const COMMAND_LIMIT: Duration = Duration::from_secs(90);

/// How the nodes are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Layout {
    /// Addresses 127.77.N.1 to .9 of this machine.
    Loopback,
    /// A network namespace and a cgroup per node, on one bridge; needs root.
    Namespaces,
}

/// What a stack is made of.
#[derive(Clone, Debug)]
pub struct Plan {
    /// How the nodes are told apart.
    pub layout: Layout,
    /// Members of etcd, 1 or 3.
    pub etcd_members: usize,
    /// The cluster's timing.
    pub timing: Timing,
    /// Where the router listens, if not at the stack's own address.
    pub router: Option<Entrance>,
    /// A listener whose sessions share servers of the leader, if there is to be one.
    pub pooled: Option<Pooled>,
    /// The most bytes by which a replica may lag that serves reads; none is no limit.
    pub max_lag: Option<u64>,
    /// Whether a second router, r2, stands beside the first one.
    pub has_second_router: bool,
    /// The folder of PostgreSQL's programs, if not the newest found.
    pub postgresql: Option<std::path::PathBuf>,
    /// A volume of its own for each member's files, if they are to have one; needs root.
    pub volume: Option<volume::Volume>,
    /// Whether each member has a wall clock of its own.
    pub has_wall_clocks: bool,
}

impl Plan {
    /// Three etcd members and the timing of the figures.
    pub fn new(layout: Layout) -> Plan {
        let timing = Timing::default();
        Plan {
            layout,
            etcd_members: 3,
            timing,
            router: None,
            pooled: None,
            max_lag: None,
            has_second_router: false,
            postgresql: None,
            volume: None,
            has_wall_clocks: false,
        }
    }

    /// Where the router of this number listens, whose node has this address.
    fn entrance(&self, number: usize, address: &str) -> Entrance {
        let at = match &self.router {
            Some(at) if number == 1 => at.clone(),
            Some(_) | None => Entrance::new(address.to_owned(), 5432, 5433),
        };
        Entrance {
            pooled: self.pooled.clone(),
            max_lag: self.max_lag,
            ..at
        }
    }
}

/// A running stack. Fields are dropped in order: the place, which cleans up, last.
#[derive(Debug)]
pub struct Stack {
    /// How the nodes are told apart.
    pub layout: Layout,
    /// The cluster's timing.
    pub timing: Timing,
    /// The members, n1 to n3.
    pub members: Vec<Member>,
    /// The router.
    pub router: Router,
    /// Another one beside it.
    pub second_router: Option<Router>,
    /// The etcd members, e1 to e3, each on the node of the member of its number.
    pub etcd: Vec<Etcd>,
    /// The files of the programs.
    pub programs: Programs,
    place: Place,
}

impl Stack {
    /// Starts everything and waits until one leads, two stream and the router can route.
    pub async fn start(plan: &Plan, progress: &Progress) -> Result<Stack> {
        let mut stack = Stack::with_etcd(plan, progress).await?;
        progress.step("initialising PostgreSQL on the first member");
        for member in &mut stack.members {
            member.start()?;
        }
        stack.router.start()?;
        if let Some(router) = &mut stack.second_router {
            router.start()?;
        }
        let limit = BOOTSTRAP_LIMIT;
        stack
            .until("a leader", limit, async |stack| {
                stack.leader().await.is_ok()
            })
            .await?;
        progress.step("cloning the replicas");
        stack.until_converged(limit).await?;
        let ready = async |stack: &Stack| {
            let second = match &stack.second_router {
                Some(router) => router.is_ready().await,
                None => true,
            };
            stack.router.is_ready().await && second
        };
        stack
            .until("the router to be ready", Duration::from_secs(30), ready)
            .await?;
        Ok(stack)
    }

    /// Starts etcd and prepares everything else, for who starts members and entrance in an order of its own.
    pub async fn with_etcd(plan: &Plan, progress: &Progress) -> Result<Stack> {
        let mut stack = Stack::prepare(plan)?;
        progress.step("starting etcd");
        for etcd in &mut stack.etcd {
            etcd.start()?;
        }
        stack.await_etcd().await?;
        Ok(stack)
    }

    fn prepare(plan: &Plan) -> Result<Stack> {
        let place = Place::take()?;
        let programs = Programs::find(&place, plan.postgresql.as_deref())?;
        let number = place.number();
        let address = |last: usize| match plan.layout {
            Layout::Loopback => format!("127.77.{number}.{last}"),
            Layout::Namespaces => format!("10.77.{number}.{}", 10 + last),
        };
        let namespace = |node: &str| match plan.layout {
            Layout::Loopback => None,
            Layout::Namespaces => Some(namespaces::name(number, node)),
        };
        let routers = if plan.has_second_router { 2 } else { 1 };
        if plan.layout == Layout::Namespaces {
            make_namespaces(number, routers, address)?;
        }
        let stores: Vec<_> = (1..=plan.etcd_members)
            .map(|last| (format!("e{last}"), address(last)))
            .collect();
        let hosts = hosts_of(&stores);
        let mut etcd = Vec::new();
        for (last, (name, _)) in stores.iter().enumerate() {
            let namespace = namespace(&format!("n{}", last + 1));
            etcd.push(Etcd::new(&place, &programs, name, namespace, &stores)?);
        }
        let mut members = Vec::new();
        for last in 1..=MEMBERS {
            let name = format!("n{last}");
            let cgroup = match plan.layout {
                Layout::Loopback => None,
                Layout::Namespaces => namespaces::make_cgroup(number, &name),
            };
            let clock = || WallClock::new(&place, &name);
            let home = Home {
                address: address(last),
                namespace: namespace(&name),
                cgroup,
                wall_clock: plan.has_wall_clocks.then(clock).transpose()?,
                name,
            };
            if let Some(volume) = plan.volume {
                volume::mount(&place.folder().join(&home.name), volume)?;
            }
            let mut member = Member::new(&place, &programs, home, &hosts, &plan.timing)?;
            if plan.volume.is_some() {
                // An agent's log goes elsewhere than to the disk that is to fail.
                member.log_to(place.folder().join(format!("{}.log", member.name)));
            }
            members.push(member);
        }
        let router = |last: usize| {
            let (name, own) = (format!("r{last}"), address(MEMBERS + last));
            let at = plan.entrance(last, &own);
            Router::new(&place, &programs, &name, at, &own, namespace(&name), &hosts)
        };
        let second_router = plan.has_second_router.then(|| router(2)).transpose()?;
        let router = router(1)?;
        let (layout, timing) = (plan.layout, plan.timing.clone());
        Ok(Stack {
            layout,
            timing,
            members,
            router,
            second_router,
            etcd,
            programs,
            place,
        })
    }

    /// The number of the stack, which is in all its addresses.
    pub fn number(&self) -> u8 {
        self.place.number()
    }

    /// Where everything is kept.
    pub fn folder(&self) -> &std::path::Path {
        self.place.folder()
    }

    /// The index of the member that says of itself that it leads; fails unless exactly one does.
    pub async fn leader(&self) -> Result<usize> {
        // Together, so that one that does not answer delays nobody.
        let asked: Vec<_> = self.members.iter().map(Member::ask_primary).collect();
        let mut leaders = Vec::new();
        for (index, answer) in asked.into_iter().enumerate() {
            if answer.await.is_ok_and(|leads| leads) {
                leaders.push(index);
            }
        }
        match leaders[..] {
            [only] => Ok(only),
            [] => bail!("no member leads"),
            _ => bail!("{} members say that they lead", leaders.len()),
        }
    }

    /// The leader by the key in the store: empty if there is none.
    pub async fn leader_key(&self) -> Result<String> {
        self.read_key(&leader_key()).await
    }

    /// The only member that may lead by the record of a synchronous mode, if there is only one.
    pub async fn alone_in_sync(&self) -> Result<Option<String>> {
        let text = self.read_key(&format!("/service/{SCOPE}/sync")).await?;
        if text.trim().is_empty() {
            return Ok(None);
        }
        let record: serde_json::Value = serde_json::from_str(&text)?;
        let standbys = record["sync_standby"].as_str().unwrap_or_default();
        let leader = record["leader"].as_str().filter(|_| standbys.is_empty());
        Ok(leader.map(str::to_owned))
    }

    /// What a key of the store holds, by the first member that answers: empty if there is none.
    async fn read_key(&self, key: &str) -> Result<String> {
        let mut last = None;
        for etcd in &self.etcd {
            match etcd.read(key).await {
                Ok(value) => return Ok(value),
                Err(error) => last = Some(error),
            }
        }
        Err(last.context("there is no etcd")?)
    }

    /// The member of this name.
    pub fn index_of(&self, name: &str) -> Result<usize> {
        let found = self.members.iter().position(|member| member.name == name);
        found.with_context(|| format!("no member is called {name:?}"))
    }

    /// Waits until one leads and the others stream on its timeline; says who and which.
    pub async fn until_converged(&mut self, limit: Duration) -> Result<Converged> {
        let deadline = clock::now() + limit;
        loop {
            self.must_live()?;
            let why = match convergence::now(self).await {
                Ok(converged) => return Ok(converged),
                Err(why) => why,
            };
            if clock::now() >= deadline {
                bail!("not converged within {limit:?}: {why:#}\n{}", self.tails());
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Waits for a condition.
    pub async fn until(
        &mut self,
        what: &str,
        limit: Duration,
        condition: impl AsyncFn(&Stack) -> bool,
    ) -> Result<()> {
        let deadline = clock::now() + limit;
        while !condition(self).await {
            self.must_live()?;
            if clock::now() >= deadline {
                bail!("waited {limit:?} in vain for {what}\n{}", self.tails());
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    /// Runs the operator's command with the file of the first member and returns what it printed.
    pub async fn trunkline(&self, words: &[&str]) -> Result<String> {
        let config = self.members[0].config.to_string_lossy().into_owned();
        let all = ["-c", &config].into_iter().chain(words.iter().copied());
        let launch = Launch {
            program: self.programs.trunkline.clone(),
            args: args(all),
            folder: self.place.folder().to_owned(),
            user: self.place.owner().user(),
            ..Launch::default()
        };
        launch.finish(COMMAND_LIMIT).await
    }

    /// Copies every log and configuration file of the stack to a folder.
    pub fn keep_logs(&self, to: &std::path::Path) -> Result<()> {
        for member in &self.members {
            let target = to.join(&member.name);
            std::fs::create_dir_all(&target)?;
            if member.log().is_file() {
                std::fs::copy(member.log(), target.join("agent.log"))?;
            }
        }
        for entry in std::fs::read_dir(self.place.folder())?.flatten() {
            let from = entry.path();
            for name in [
                "router.log",
                "log",
                "agent.yml",
                "router.yml",
                "postgresql.log",
            ] {
                let file = from.join(name);
                if file.is_file() {
                    let target = to.join(entry.file_name());
                    std::fs::create_dir_all(&target)?;
                    std::fs::copy(&file, target.join(name))?;
                }
            }
        }
        Ok(())
    }

    /// A program of others, patronictl say, as the stack's user in the harness's network. Its log is of its name.
    pub fn tool(&self, program: &std::path::Path, words: &[&str]) -> Launch {
        let name = program.file_name().unwrap_or_default().to_string_lossy();
        Launch {
            program: program.to_owned(),
            args: args(words),
            folder: self.place.folder().to_owned(),
            user: self.place.owner().user(),
            log: self.place.folder().join(format!("{name}.log")),
            ..Launch::default()
        }
    }

    /// Writes a file of this name into the stack's folder, for the stack's user.
    pub fn write(&self, name: &str, text: &str) -> Result<std::path::PathBuf> {
        let path = self.place.folder().join(name);
        self.place.write(&path, text)?;
        Ok(path)
    }

    /// Starts a program of PostgreSQL's, pgbench say, as the stack's user in the harness's network.
    pub fn client_program(&self, name: &str, words: &[&str]) -> Launch {
        Launch {
            program: self.programs.of_postgresql(name),
            args: args(words),
            env: vec![
                ("PGPASSWORD".to_owned(), APP_PASSWORD.to_owned()),
                // Not that of who started the harness: libpq looks for certificates there.
                ("HOME".to_owned(), self.place.folder().display().to_string()),
            ],
            folder: self.place.folder().to_owned(),
            user: self.place.owner().user(),
            log: self.place.folder().join(format!("{name}.log")),
            ..Launch::default()
        }
    }

    async fn await_etcd(&mut self) -> Result<()> {
        let deadline = clock::now() + ETCD_LIMIT;
        for etcd in &mut self.etcd {
            while !etcd.is_healthy().await {
                etcd.must_live()?;
                if clock::now() >= deadline {
                    bail!(
                        "etcd member {} was not healthy within {ETCD_LIMIT:?}",
                        etcd.name
                    );
                }
                tokio::time::sleep(LOOK).await;
            }
        }
        Ok(())
    }

    /// Starts again what has ended by itself, agents and router.
    pub fn restart_ended(&mut self) -> Result<()> {
        for member in &mut self.members {
            if member.must_live().is_err() {
                member.start()?;
            }
        }
        if self.router.must_live().is_err() {
            self.router.start()?;
        }
        Ok(())
    }

    fn must_live(&mut self) -> Result<()> {
        for member in &mut self.members {
            member.must_live()?;
        }
        self.router.must_live()
    }

    fn tails(&self) -> String {
        let mut text = String::new();
        for member in &self.members {
            text += &format!(
                "--- the agent of {} said last:\n{}\n",
                member.name,
                member.tail()
            );
        }
        text + &format!("--- the router said last:\n{}", self.router.tail())
    }
}

/// A namespace for each member and router, on one bridge.
fn make_namespaces(number: u8, routers: usize, address: impl Fn(usize) -> String) -> Result<()> {
    namespaces::make_bridge(number)?;
    let members = (1..=MEMBERS).map(|last| (format!("n{last}"), last));
    let routers = (1..=routers).map(|last| (format!("r{last}"), MEMBERS + last));
    for (name, last) in members.chain(routers) {
        namespaces::make(number, &name, &address(last))?;
    }
    Ok(())
}

/// The user and database of the load.
pub const APP: &str = "app";
/// Its password.
pub const APP_PASSWORD: &str = "app-secret";

/// As a file names the members of etcd.
fn hosts_of(stores: &[(String, String)]) -> String {
    let hosts: Vec<_> = stores
        .iter()
        .map(|(_, address)| format!("{address}:2379"))
        .collect();
    hosts.join(",")
}

/// The key that names the leader.
pub fn leader_key() -> String {
    format!("/service/{SCOPE}/leader")
}
