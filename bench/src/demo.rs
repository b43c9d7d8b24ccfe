//! `trunkline-bench demo`: a cluster of three in a box, under a small load, to look at and to break.

use std::io::{IsTerminal, Write};
use std::net::TcpListener;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use trunkline_shared::service::clock;

use crate::load::writers::{self, Shared, Writers};
use crate::report::{Progress, say};
use crate::stack::router::Entrance;
use crate::stack::{APP, APP_PASSWORD, Layout, Plan, Stack};

/// The address of the router's ports, whatever number the stack has.
const ADDRESS: &str = "127.0.0.1";
/// The first port tried; the next free ones follow.
const FIRST_PORT: u16 = 5432;
/// Writers of the demo's load.
const WRITERS: i32 = 2;
/// How often the status line is written anew on a terminal, and elsewhere.
const ON_TERMINAL: Duration = Duration::from_millis(500);
const ELSEWHERE: Duration = Duration::from_secs(5);

/// The options of `demo`.
#[derive(Args, Debug)]
pub struct DemoOptions {
    /// End by itself after this many seconds
    #[arg(long, env = "DEMO_SECONDS")]
    seconds: Option<u64>,
    /// PostgreSQL's programs, if not the newest installed
    #[arg(long)]
    pg_bin: Option<std::path::PathBuf>,
}

/// Runs the demo until its time is over or it is interrupted.
pub async fn run(options: &DemoOptions) -> Result<()> {
    let progress = Progress::new();
    let began = clock::now();
    let (write_port, read_port) = free_ports()?;
    let plan = Plan {
        router: Some(Entrance::new(ADDRESS.to_owned(), write_port, read_port)),
        postgresql: options.pg_bin.clone(),
        ..Plan::new(Layout::Loopback)
    };
    let mut stack = Stack::start(&plan, &progress).await?;
    let leader = stack.leader().await?;
    writers::prepare(&stack, leader).await?;
    let load = Writers::start(&stack, WRITERS);
    let status = stack.trunkline(&["list"]).await?;
    progress.done();
    say(format!(
        "A cluster of three is up after {:.1} s.\n",
        clock::now().since(began).as_secs_f64()
    ));
    explain(&stack, leader, &status);
    let watched = watch(&mut stack, load.shared());
    match options.seconds {
        Some(seconds) => {
            tokio::time::timeout(Duration::from_secs(seconds), watched)
                .await
                .ok();
        }
        None => watched.await,
    }
    say("\nstopping and removing everything");
    load.finish().await?;
    drop(stack);
    Ok(())
}

fn explain(stack: &Stack, leader: usize, status: &str) {
    let router = &stack.router;
    let url = |port| format!("postgresql://{APP}:{APP_PASSWORD}@{ADDRESS}:{port}/{APP}");
    say(format!("  writes   psql {}", url(router.write_port)));
    say(format!("  reads    psql {}\n", url(router.read_port)));
    say(status);
    let trunkline = format!(
        "{} -c {}",
        stack.programs.trunkline.display(),
        stack.members[0].config.display()
    );
    say("Try, in another terminal, while the line below counts the writes:");
    say(format!("  {trunkline} list"));
    say(format!("  {trunkline} switchover --force"));
    say(format!("  {trunkline} history"));
    let primary = &stack.members[leader];
    say(format!(
        "  kill -9 $(head -1 {}/postmaster.pid)    # the primary's postmaster",
        primary.data_dir.display()
    ));
    say(format!(
        "  kill -9 $(pgrep -f {})    # the leader's agent; it is started again, as by systemd",
        primary.config.display()
    ));
    say(format!(
        "  tail -f {}/n*/agent.log\n",
        stack.folder().display()
    ));
    say("Ctrl-C stops and removes everything.\n");
}

/// One line that tells who leads and how writing goes, for ever. Programs that end are started again, as a
/// service manager would.
async fn watch(stack: &mut Stack, load: &Shared) {
    let is_terminal = std::io::stdout().is_terminal();
    let every = if is_terminal { ON_TERMINAL } else { ELSEWHERE };
    let (mut before, mut last) = (load.acknowledged(), clock::now());
    loop {
        tokio::time::sleep(every).await;
        if let Err(error) = stack.restart_ended() {
            say(format!("\n{error:#}"));
        }
        let leader = match stack.leader().await {
            Ok(index) => stack.members[index].name.clone(),
            Err(error) => format!("({error})"),
        };
        let (now, count) = (clock::now(), load.acknowledged());
        let rate = (count - before) as f64 / now.since(last).as_secs_f64();
        let waiting = now.since(load.last_write().done());
        let line = format!(
            "leader {leader}, {rate:.0} writes/s, last one {} ms ago, {count} in all, {} sessions ended",
            waiting.as_millis(),
            load.cuts()
        );
        if is_terminal {
            let mut out = std::io::stdout().lock();
            write!(out, "\r\x1b[K{line}").ok();
            out.flush().ok();
        } else {
            say(line);
        }
        (before, last) = (count, now);
    }
}

/// The first free port from 5432 whose next is free too.
fn free_ports() -> Result<(u16, u16)> {
    let is_free = |port: u16| TcpListener::bind((ADDRESS, port)).is_ok();
    let first = (FIRST_PORT..FIRST_PORT + 1000)
        .step_by(2)
        .find(|port| is_free(*port) && is_free(port + 1));
    let port = first.context("no free port between 5432 and 6432")?;
    Ok((port, port + 1))
}
