//! The tools of Patroni's users on a cluster of Trunkline alone: each is told where the cluster is and nothing of
//! what keeps it.

use anyhow::Result;

use super::Setup;
use super::course::Line;
use super::haproxy::File;
use super::rig::Rig;
use crate::stack::member::{Product, Timing};

mod balancer;
mod patronictl;
mod prometheus;
mod vip;

/// Runs every check; each tells what it saw.
pub async fn run(setup: &Setup<'_>) -> Result<Vec<Line>> {
    let products = [Product::Trunkline; 3];
    let mut rig = Rig::start(setup, products, Timing::default(), File::Field).await?;
    let mut lines = Vec::new();
    for (what, check) in patronictl::CHECKS {
        setup.progress.step(format!("patronictl {what}"));
        let outcome = check.run(&mut rig).await;
        lines.push(Line::check(format!("patronictl {what}"), outcome));
        rig.whole().await?;
    }
    setup.progress.step("HAProxy");
    lines.push(Line::check("HAProxy", balancer::follows(&mut rig).await));
    setup.progress.step("Prometheus");
    lines.push(Line::check(
        "Prometheus",
        prometheus::scrapes(setup, &mut rig).await,
    ));
    setup.progress.step("promtool check metrics");
    lines.push(Line::check(
        "promtool",
        prometheus::has_no_complaint(setup, &rig).await,
    ));
    setup.progress.step("vip-manager");
    lines.push(Line::check(
        "vip-manager",
        vip::moves(setup, &mut rig).await,
    ));
    rig.keep_logs(setup, "tools", setup.progress);
    Ok(lines)
}
