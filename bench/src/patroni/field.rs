//! Agent files as sites that run Patroni have them: each makes a cluster of Trunkline's, which fails over.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tokio_postgres::{Client, NoTls};
use trunkline_shared::service::clock;

use super::Setup;
use super::course::Line;
use crate::report::Progress;
use crate::stack::{Layout, Plan, Stack};
use adapted::{Adapted, Site};

mod adapted;

/// How long a bootstrap with two clones may take, or a former leader's way back.
const WHOLE_LIMIT: Duration = Duration::from_secs(120);
/// The rest of a lease by Patroni's defaults, a race and a promotion.
const FAILOVER_LIMIT: Duration = Duration::from_secs(60);
/// A look at all that a file names, a store that does not answer included.
const VALIDATION_LIMIT: Duration = Duration::from_secs(60);
/// Of the harness's own variables, which the file does not know.
const ENVIRONMENT: &str = "environment variable TRUNKLINE_";
/// How long a statement may take.
const SQL_LIMIT: Duration = Duration::from_secs(10);

/// Runs every file of the folder.
pub async fn run(setup: &Setup<'_>, folder: &Path) -> Result<Vec<Line>> {
    let mut lines = Vec::new();
    for file in files(folder)? {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        setup.progress.step(format!("field: {name}"));
        let mut line = Line::check(format!("field: {name}"), Ok(String::new()));
        if let Err(error) = follow(setup, &file, &mut line).await {
            line.faults.push(format!("{error:#}"));
        }
        lines.push(line);
    }
    Ok(lines)
}

/// The agent files of a folder, in the order of their names.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let cannot = || format!("cannot read {}", folder.display());
    let is_yaml = |path: &PathBuf| {
        path.extension()
            .is_some_and(|end| end == "yml" || end == "yaml")
    };
    let entries = std::fs::read_dir(folder).with_context(cannot)?;
    let mut found: Vec<_> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(is_yaml)
        .collect();
    found.sort();
    ensure!(!found.is_empty(), "{} holds no *.yml", folder.display());
    Ok(found)
}

async fn follow(setup: &Setup<'_>, file: &Path, line: &mut Line) -> Result<()> {
    let text =
        std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let mut stack = Stack::with_etcd(&Plan::new(Layout::Loopback), setup.progress).await?;
    let adapted = adapt(&stack, &text)?;
    for (member, adapted) in stack.members.iter().zip(&adapted) {
        stack.write(&format!("{}/agent.yml", member.name), &adapted.text)?;
    }
    line.notes.extend(adapted[0].notes.iter().cloned());
    validate(&stack, line).await?;
    for member in &mut stack.members {
        member.start()?;
    }
    let went = fails_over(&mut stack, &adapted[0], setup.progress).await;
    if let Some(folder) = &setup.keep_logs {
        let name = file.file_stem().unwrap_or_default();
        stack.keep_logs(&folder.join("patroni-field").join(name))?;
    }
    line.notes.push(went?);
    Ok(())
}

fn adapt(stack: &Stack, text: &str) -> Result<Vec<Adapted>> {
    let hosts: Vec<_> = stack
        .etcd
        .iter()
        .map(|etcd| format!("{}:2379", etcd.address))
        .collect();
    let sites = stack.members.iter().map(|member| Site {
        name: &member.name,
        address: &member.address,
        etcd: &hosts,
        postgresql: &stack.programs.postgresql,
        data_dir: &member.data_dir,
        run_dir: &member.run_dir,
        socket: member.socket(),
        has_device: |device| Path::new(device).exists(),
    });
    sites.map(|site| adapted::adapt(text, &site)).collect()
}

/// What the agent says of the file before it runs: an error is a fault, a warning is told.
async fn validate(stack: &Stack, line: &mut Line) -> Result<()> {
    let file = stack.members[0].config.to_string_lossy().into_owned();
    let look = stack.tool(&stack.programs.agent, &["--validate-config", &file]);
    let output = look.output(VALIDATION_LIMIT).await?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    let said = said.replace(&file, "the file");
    for told in said.lines() {
        if told.starts_with("error:") {
            line.faults.push(told.to_owned());
        } else if told.starts_with("warning:") && !told.contains(ENVIRONMENT) {
            line.notes.push(told.to_owned());
        }
    }
    ensure!(
        output.status.success() || !line.faults.is_empty(),
        "--validate-config ended with {}: {said}",
        output.status
    );
    Ok(())
}

/// A row is written, the leader and its PostgreSQL are killed, and another leads with that row.
async fn fails_over(stack: &mut Stack, file: &Adapted, progress: &Progress) -> Result<String> {
    whole(stack).await.context("the bootstrap")?;
    let old = stack.leader().await?;
    let client = connect(stack, old, file).await?;
    let make = "CREATE TABLE trunkline_field (n int); INSERT INTO trunkline_field VALUES (1)";
    within(client.batch_execute(make)).await?;
    everybody_has_it(stack, &client).await?;
    progress.step("the leader is killed");
    stack.members[old].kill().await?;
    let began = clock::now();
    let leads = async |stack: &Stack| stack.leader().await.is_ok_and(|now| now != old);
    stack.until("another leader", FAILOVER_LIMIT, leads).await?;
    let new = stack.leader().await?;
    let took = clock::now().since(began).as_secs_f64();
    let client = connect(stack, new, file).await?;
    let row = within(client.query_one(
        "INSERT INTO trunkline_field SELECT count(*) + 1 FROM trunkline_field RETURNING n",
        &[],
    ));
    let n: i32 = row.await?.get(0);
    ensure!(n == 2, "the new leader has {} rows of one", n - 1);
    stack.members[old].start()?;
    let restarted = clock::now();
    whole(stack).await.context("the former leader's way back")?;
    Ok(format!(
        "{} to {} after {took:.1} s; whole again {:.1} s after the former leader's start",
        stack.members[old].name,
        stack.members[new].name,
        clock::now().since(restarted).as_secs_f64()
    ))
}

/// Waits until one leads and the others stream, by what the REST API of the leader tells of the cluster.
async fn whole(stack: &mut Stack) -> Result<()> {
    let streams = async |stack: &Stack| {
        let Ok(leader) = stack.leader().await else {
            return false;
        };
        let cluster = stack.members[leader]
            .rest("/cluster")
            .await
            .unwrap_or_default();
        let members = cluster["members"].as_array().cloned().unwrap_or_default();
        let streaming = members
            .iter()
            .filter(|member| member["state"] == "streaming");
        members.len() == stack.members.len() && streaming.count() == stack.members.len() - 1
    };
    stack
        .until("a leader with two that stream", WHOLE_LIMIT, streams)
        .await
}

async fn everybody_has_it(stack: &mut Stack, leader: &Client) -> Result<()> {
    let query = "SELECT count(*) FROM pg_stat_replication WHERE replay_lsn >= $1::text::pg_lsn";
    let at = within(leader.query_one("SELECT pg_current_wal_lsn()::text", &[])).await?;
    let at: String = at.get(0);
    let others = i64::try_from(stack.members.len())? - 1;
    let have = async |_: &Stack| {
        let counted = within(leader.query_one(query, &[&at])).await;
        counted.is_ok_and(|row| row.get::<_, i64>(0) == others)
    };
    stack
        .until("both replicas to have the row", SQL_LIMIT, have)
        .await
}

/// By TCP, as the file's superuser.
async fn connect(stack: &Stack, index: usize, file: &Adapted) -> Result<Client> {
    let mut config = tokio_postgres::Config::new();
    config
        .host(&stack.members[index].address)
        .port(file.port)
        .user(&file.superuser.0)
        .password(&file.superuser.1)
        .dbname("postgres");
    let connect = tokio::time::timeout(SQL_LIMIT, config.connect(NoTls));
    let (client, connection) = connect.await??;
    tokio::spawn(connection);
    Ok(client)
}

async fn within<T>(work: impl Future<Output = Result<T, tokio_postgres::Error>>) -> Result<T> {
    match tokio::time::timeout(SQL_LIMIT, work).await {
        Ok(done) => Ok(done?),
        Err(_) => bail!("a statement took longer than {SQL_LIMIT:?}"),
    }
}

/// The value at a path of keys.
fn at<'v>(document: &'v Value, path: &[&str]) -> &'v Value {
    path.iter().fold(document, |value, key| &value[*key])
}
