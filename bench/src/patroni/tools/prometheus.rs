//! Debian's Prometheus scrapes every member, and its own linter has nothing to say about the names.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use trunkline_shared::service::clock;

use super::super::Setup;
use super::super::rig::Rig;
use crate::stack::Layout;
use crate::stack::http;
use crate::stack::process::{Launch, args};

/// It must have scraped all, and show a change of leader, within this.
const LIMIT: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(200);

/// It knows who leads, and learns of a switchover.
pub async fn scrapes(setup: &Setup<'_>, rig: &mut Rig) -> Result<String> {
    let program = setup.outside.of_prometheus("prometheus")?;
    let number = rig.stack.number();
    let listen = match rig.stack.layout {
        Layout::Loopback => format!("127.77.{number}.9:9090"),
        Layout::Namespaces => format!("10.77.{number}.254:9090"),
    };
    let targets = rig
        .stack
        .members
        .iter()
        .map(|m| format!("\"{}:8008\"", m.address));
    let targets: Vec<_> = targets.collect();
    let config = rig.stack.write(
        "prometheus.yml",
        &format!(
            "scrape_configs:\n- job_name: patroni\n  scrape_interval: 1s\n  static_configs:\n  \
             - targets: [{}]\n",
            targets.join(", ")
        ),
    )?;
    let launch = Launch {
        args: args([
            format!("--config.file={}", config.display()),
            format!(
                "--storage.tsdb.path={}",
                rig.stack.folder().join("prometheus").display()
            ),
            format!("--web.listen-address={listen}"),
        ]),
        ..rig.stack.tool(&program, &[])
    };
    let mut process = launch.start("prometheus")?;
    let before = rig.leader().await?;
    knows(&listen, &before)
        .await
        .with_context(|| process.tail())?;
    let candidate = rig.other(crate::stack::member::Product::Trunkline).await?;
    rig.switchover_by_patronictl(&candidate).await?;
    knows(&listen, &candidate)
        .await
        .with_context(|| process.tail())?;
    let series = query(&listen, "count({job=\"patroni\"})").await?;
    process.kill().await?;
    Ok(format!(
        "{} series of {} members; the leader went from {before} to {candidate}",
        series.values().next().copied().unwrap_or_default(),
        rig.stack.members.len()
    ))
}

/// Waits until this member alone leads by `patroni_primary`, and every target is up.
async fn knows(listen: &str, leader: &str) -> Result<()> {
    let deadline = clock::now() + LIMIT;
    loop {
        let asked = query(listen, "patroni_primary").await;
        let up = query(listen, "sum(up{job=\"patroni\"})").await;
        let all_up = up
            .as_ref()
            .is_ok_and(|up| up.values().any(|sum| *sum == 3.0));
        let leads = asked.as_ref().is_ok_and(|values| {
            values.len() == 3
                && values
                    .iter()
                    .all(|(name, value)| (name == leader) == (*value == 1.0))
        });
        if all_up && leads {
            return Ok(());
        }
        if clock::now() >= deadline {
            bail!("{leader} leads; Prometheus knows {asked:?}, up {up:?}");
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// The values of an instant query, by the label `name`.
async fn query(listen: &str, expression: &str) -> Result<BTreeMap<String, f64>> {
    let escaped: String = expression
        .bytes()
        .map(|byte| match byte.is_ascii_alphanumeric() || byte == b'_' {
            true => char::from(byte).to_string(),
            false => format!("%{byte:02X}"),
        })
        .collect();
    let answer = http::get_json(listen, &format!("/api/v1/query?query={escaped}")).await?;
    let found = answer["data"]["result"].as_array().context("no result")?;
    let value = |one: &Value| {
        let name = one["metric"]["name"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        let value = one["value"][1].as_str()?.parse().ok()?;
        Some((name, value))
    };
    Ok(found.iter().filter_map(value).collect())
}

/// `promtool check metrics` of what every member exposes.
pub async fn has_no_complaint(setup: &Setup<'_>, rig: &Rig) -> Result<String> {
    let promtool = setup.outside.of_prometheus("promtool")?;
    for member in &rig.stack.members {
        let (code, text) = http::get(&format!("{}:8008", member.address), "/metrics").await?;
        ensure!(
            code == 200 && text.contains("patroni_primary"),
            "{code}: {text}"
        );
        let file = rig.stack.write("metrics.txt", &text)?;
        let script = format!(
            "exec {} check metrics < {}",
            promtool.display(),
            file.display()
        );
        let said = rig.stack.tool("sh".as_ref(), &["-c", &script]);
        let output = said.output(LIMIT).await?;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(
            output.status.success() && text.is_empty(),
            "{}: {text}",
            member.name
        );
    }
    Ok(String::new())
}
