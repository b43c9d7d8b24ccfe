//! Real drivers through every mode: each takes the same steps, on few servers that other clients use at the same time,
//! and past the router too, for what fails there is not the router's.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use tokio_postgres_rustls::MakeRustlsConnect;
use trunkline_shared::service::tls::{self, ServerCheck, TlsFiles};

use crate::load::writers;
use crate::report::{self, Progress, say};
use crate::stack::process::{Launch, args, find};
use crate::stack::router::Pooled;
use crate::stack::{APP, APP_PASSWORD, Layout, Plan, Stack, encryption};

mod neighbours;
mod rust;

/// Servers that a driver and its neighbours share.
const SERVERS: usize = 2;
/// Clients that ask all the time: with a driver's connections they are more than there are servers.
const NEIGHBOURS: usize = 3;
/// In session mode every connection has its own: as many as a driver opens at once, and more.
const SESSION_SERVERS: usize = 12;
/// The database's name on the listener of session mode, for its pool has another size.
const SESSION_DATABASE: &str = "app_session";
/// How long one driver may take for all of its steps.
const LIMIT: Duration = Duration::from_secs(400);

/// The steps of every driver, in their order.
const STEPS: [&str; 13] = [
    "connect",
    "wrong password",
    "simple query",
    "parameters",
    "prepared",
    "many prepared",
    "pipeline",
    "transaction",
    "error",
    "copy",
    "large",
    "cancel",
    "reconnect",
];

/// The programs and what they share, as they are written into the stack's folder.
const FILES: [(&str, &str); 8] = [
    ("steps.py", include_str!("../../drivers/steps.py")),
    ("psql_steps.py", include_str!("../../drivers/psql_steps.py")),
    (
        "pgbench_steps.py",
        include_str!("../../drivers/pgbench_steps.py"),
    ),
    (
        "psycopg_steps.py",
        include_str!("../../drivers/psycopg_steps.py"),
    ),
    (
        "asyncpg_steps.py",
        include_str!("../../drivers/asyncpg_steps.py"),
    ),
    (
        "pg8000_steps.py",
        include_str!("../../drivers/pg8000_steps.py"),
    ),
    ("node_steps.js", include_str!("../../drivers/node_steps.js")),
    (
        "JdbcSteps.java",
        include_str!("../../drivers/JdbcSteps.java"),
    ),
];

/// One that is tested.
#[derive(Clone, Copy, Debug)]
enum Driver {
    /// A program in Python, from the folder's own environment.
    Python(&'static str, &'static str),
    Node,
    Jdbc,
    /// In this process.
    Rust,
}

const DRIVERS: [Driver; 8] = [
    Driver::Python("psql", "psql_steps.py"),
    Driver::Python("pgbench", "pgbench_steps.py"),
    Driver::Python("psycopg", "psycopg_steps.py"),
    Driver::Python("asyncpg", "asyncpg_steps.py"),
    Driver::Python("pg8000", "pg8000_steps.py"),
    Driver::Node,
    Driver::Rust,
    Driver::Jdbc,
];

impl Driver {
    fn name(self) -> &'static str {
        match self {
            Driver::Python(name, _) => name,
            Driver::Node => "node-postgres",
            Driver::Jdbc => "pgjdbc",
            Driver::Rust => "tokio-postgres",
        }
    }
}

#[derive(Args, Debug)]
pub(super) struct DriversOptions {
    /// Only drivers and modes with one of these words in their name
    words: Vec<String>,
    /// TLS on both sides of the router
    #[arg(long)]
    tls: bool,
    /// The folder of the drivers, made by deploy/drivers
    #[arg(
        long,
        env = "TRUNKLINE_DRIVERS",
        default_value = "/var/lib/trunkline-drivers"
    )]
    folder: PathBuf,
}

impl DriversOptions {
    fn wants(&self, names: &[&str], name: &str) -> bool {
        let mut of_them = self
            .words
            .iter()
            .filter(|word| names.iter().any(|name| name.contains(*word)));
        let first = of_them.next();
        first.is_none()
            || first
                .into_iter()
                .chain(of_them)
                .any(|word| name.contains(word))
    }
}

/// Where a driver connects.
#[derive(Clone)]
pub(super) struct Entrance {
    mode: &'static str,
    host: String,
    port: u16,
    database: &'static str,
    /// Clients that share its servers.
    neighbours: usize,
    /// As libpq with `sslmode=require`: whoever answers, it is encrypted.
    tls: Option<MakeRustlsConnect>,
}

/// How a step went.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Went {
    Well,
    /// The driver has no such thing.
    None,
    Failed(String),
}

/// What a driver did at one entrance.
#[derive(Debug, Default)]
struct Seen {
    version: String,
    steps: BTreeMap<String, Went>,
}

impl Seen {
    /// Reads what a program prints: a line per step.
    fn read(output: &str) -> Seen {
        let mut seen = Seen::default();
        for line in output.lines() {
            let (what, rest) = line.split_once(' ').unwrap_or((line, ""));
            let (name, went) = match what {
                "version" => {
                    rest.clone_into(&mut seen.version);
                    continue;
                }
                "ok" => (rest, Went::Well),
                "none" => (rest, Went::None),
                "fail" => {
                    let (name, why) = rest.split_once(": ").unwrap_or((rest, ""));
                    (name, Went::Failed(why.to_owned()))
                }
                _ => continue,
            };
            seen.steps.insert(name.to_owned(), went);
        }
        seen
    }

    /// What failed, and what was never come to.
    fn failures(&self) -> Vec<(&'static str, &str)> {
        let went = STEPS.map(|step| (step, self.steps.get(step)));
        let failed = went.into_iter().filter_map(|(step, went)| match went {
            Some(Went::Well | Went::None) => None,
            Some(Went::Failed(why)) => Some((step, why.as_str())),
            None => Some((step, "the program ended before")),
        });
        failed.collect()
    }

    /// In a cell of the table.
    fn cell(&self) -> String {
        let count = |wanted: &Went| self.steps.values().filter(|went| *went == wanted).count();
        let failed = self.failures();
        if failed.is_empty() {
            return format!("all {}", count(&Went::Well));
        }
        let names: Vec<&str> = failed.iter().map(|(step, _)| *step).collect();
        format!("{}, not {}", count(&Went::Well), names.join(", "))
    }
}

pub(super) async fn run(options: &DriversOptions) -> Result<bool> {
    if !options.folder.join("python/bin/python").is_file() {
        let folder = options.folder.display();
        bail!("{folder} holds no drivers: run deploy/drivers");
    }
    let progress = Progress::new();
    let stack = start(&progress).await?;
    if options.tls {
        encryption::turn_on(&stack, stack.leader().await?).await?;
    }
    let entrances = entrances(&stack, options.tls).await?;
    for Entrance { host, port, .. } in &entrances {
        encryption::until_open(&stack, host, *port, options.tls).await?;
    }
    let modes = entrances.each_ref().map(|entrance| entrance.mode);
    let names = DRIVERS.map(Driver::name);
    let entrances: Vec<_> = entrances
        .iter()
        .filter(|entrance| options.wants(&modes, entrance.mode))
        .collect();
    let mut rows = Vec::new();
    let mut failures = Vec::new();
    let wanted = |driver: &&Driver| options.wants(&names, driver.name());
    for driver in DRIVERS.iter().filter(wanted) {
        let name = driver.name();
        let mut version = String::new();
        let mut cells = Vec::new();
        for entrance in &entrances {
            progress.step(format!("{name}, {}", entrance.mode));
            let seen = take_steps(&stack, options, *driver, entrance).await?;
            for (step, why) in seen.failures() {
                failures.push([name, entrance.mode, step, why].map(str::to_owned).to_vec());
            }
            cells.push(seen.cell());
            version = seen.version;
        }
        rows.push([vec![name.to_owned(), version], cells].concat());
    }
    progress.done();
    let modes = entrances.iter().map(|entrance| entrance.mode);
    let head: Vec<&str> = ["driver", "version"].into_iter().chain(modes).collect();
    say(report::table(&head, &rows));
    if !failures.is_empty() {
        say(report::table(&["driver", "mode", "step", "why"], &failures));
    }
    Ok(failures.is_empty())
}

/// Past the router, and by each of its modes.
async fn entrances(stack: &Stack, is_encrypted: bool) -> Result<[Entrance; 4]> {
    let tls = match is_encrypted {
        true => Some(MakeRustlsConnect::new(tls::client(
            &TlsFiles::default(),
            ServerCheck::Nothing,
        )?)),
        false => None,
    };
    let router = stack.router.address.clone();
    let server = stack.members[stack.leader().await?].address.clone();
    let pooled = PORTS.map(|(port, mode)| {
        // There a neighbour would keep a server for itself.
        let (database, neighbours) = match mode {
            "session" => (SESSION_DATABASE, 0),
            _ => (APP, NEIGHBOURS),
        };
        Entrance {
            mode,
            host: router.clone(),
            port,
            database,
            neighbours,
            tls: tls.clone(),
        }
    });
    let [transaction, session, statement] = pooled;
    let direct = Entrance {
        mode: "direct",
        host: server,
        port: 5432,
        database: APP,
        neighbours: 0,
        tls,
    };
    Ok([direct, transaction, session, statement])
}

/// The pooled listeners.
const PORTS: [(u16, &str); 3] = [
    (5434, "transaction"),
    (5435, "session"),
    (5436, "statement"),
];

async fn start(progress: &Progress) -> Result<Stack> {
    let plan = Plan {
        pooled: Some(Pooled {
            listeners: PORTS.to_vec(),
            auth: "scram-sha-256",
            size: SERVERS,
            alias: Some((SESSION_DATABASE, SESSION_SERVERS)),
        }),
        etcd_members: 1,
        ..Plan::new(Layout::Loopback)
    };
    let stack = Stack::start(&plan, progress).await?;
    let leader = stack.leader().await?;
    writers::prepare(&stack, leader).await?;
    let table = "CREATE TABLE driver_rows (who text, n int); GRANT ALL ON driver_rows TO PUBLIC";
    stack.members[leader]
        .sql(APP)
        .await?
        .batch_execute(table)
        .await?;
    for (name, text) in FILES {
        stack.write(name, text)?;
    }
    Ok(stack)
}

/// Lets a driver take its steps, beside its neighbours, none of which may be disturbed.
async fn take_steps(
    stack: &Stack,
    options: &DriversOptions,
    driver: Driver,
    entrance: &Entrance,
) -> Result<Seen> {
    let others = neighbours::begin(entrance).await?;
    let who = format!("{} {}", driver.name(), entrance.mode);
    let seen = match driver {
        Driver::Rust => rust::steps(entrance, &who).await,
        Driver::Python(..) | Driver::Node | Driver::Jdbc => {
            let launch = program(stack, &options.folder, driver, entrance, &who)?;
            let output = launch.output(LIMIT).await?;
            let said = String::from_utf8_lossy(&output.stdout);
            let seen = Seen::read(&said);
            if seen.steps.is_empty() {
                bail!(
                    "{} took no step: {said}{}",
                    driver.name(),
                    String::from_utf8_lossy(&output.stderr)
                );
            }
            seen
        }
    };
    others
        .end()
        .await
        .with_context(|| format!("beside {who}"))?;
    Ok(seen)
}

fn program(
    stack: &Stack,
    folder: &Path,
    driver: Driver,
    entrance: &Entrance,
    who: &str,
) -> Result<Launch> {
    let of_folder = |name: &str| folder.join(name).display().to_string();
    let of_stack = stack.client_program("psql", &[]);
    let file = |name: &str| of_stack.folder.join(name).display().to_string();
    let needed = |name: &str| {
        find(name)
            .with_context(|| format!("{name} is missing: deploy/drivers says what to install"))
    };
    let (program, words) = match driver {
        Driver::Python(_, name) => (
            folder.join("python/bin/python"),
            vec!["-B".to_owned(), file(name)],
        ),
        Driver::Node => (needed("node")?, vec![file("node_steps.js")]),
        Driver::Jdbc => {
            let class_path = of_folder("postgresql.jar");
            (
                needed("java")?,
                vec!["-cp".to_owned(), class_path, file("JdbcSteps.java")],
            )
        }
        Driver::Rust => bail!("it is no program"),
    };
    let path = std::env::var_os("PATH").unwrap_or_default();
    let programs = stack.programs.of_postgresql("");
    let (_, libpq_says) = encryption::of_libpq(entrance.tls.is_some());
    let mode = match driver {
        // By the same word it asks for a certificate of a known authority.
        Driver::Node if entrance.tls.is_some() => "no-verify".to_owned(),
        Driver::Node | Driver::Jdbc | Driver::Python(..) | Driver::Rust => libpq_says,
    };
    let env = [
        ("PGSSLMODE", mode),
        ("PGHOST", entrance.host.clone()),
        ("PGPORT", entrance.port.to_string()),
        ("PGUSER", APP.to_owned()),
        ("PGDATABASE", entrance.database.to_owned()),
        ("PGPASSWORD", APP_PASSWORD.to_owned()),
        ("DRIVERS_MODE", entrance.mode.to_owned()),
        ("DRIVERS_WHO", who.to_owned()),
        ("NODE_PATH", of_folder("node/node_modules")),
        // Drivers look for files of their own there.
        ("HOME", of_stack.folder.display().to_string()),
        ("PATH", format!("{}:{}", programs.display(), path.display())),
    ];
    Ok(Launch {
        program,
        args: args(words),
        env: env.map(|(name, value)| (name.to_owned(), value)).to_vec(),
        ..of_stack
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_program_did_not_come_to_has_failed() {
        let mut all =
            String::from("version 1\nok connect\nnone pipeline\nfail copy: no: why\nnoise\n");
        let seen = Seen::read(&all);
        assert_eq!(seen.version, "1");
        assert!(seen.failures().contains(&("copy", "no: why")));
        assert_eq!(seen.failures().len(), STEPS.len() - 2);
        for step in STEPS {
            all += &format!("ok {step}\n");
        }
        assert_eq!(Seen::read(&all).cell(), "all 13");
    }
}
