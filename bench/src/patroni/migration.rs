//! A cluster of Patroni goes to Trunkline and back, member by member, on the same files and under writers: as
//! `deploy/runbooks/from-patroni.md` says, with and without a pause.

use std::time::Duration;

use anyhow::{Result, bail};

use super::course::{Course, Limit, Line, Loss};
use super::haproxy::File;
use super::rig::Rig;
use super::{Setup, timing};
use crate::stack::member::Product;

/// Patroni's own switchovers that the others are measured by.
const YARDSTICKS: usize = 3;
/// Nothing is to be felt where nobody stops to lead.
const UNFELT: Limit = Limit::AtMost(Duration::from_secs(2));

/// Runs the course.
pub async fn run(setup: &Setup<'_>) -> Result<Vec<Line>> {
    let products = [Product::Patroni; 3];
    let rig = Rig::start(setup, products, timing(), File::Documentation).await?;
    let mut course = Course::start(setup, rig).await?;
    let went = there_and_back(&mut course).await;
    course.finish("migration", went).await
}

async fn there_and_back(course: &mut Course<'_>) -> Result<()> {
    for number in 1..=YARDSTICKS {
        let what = format!("Patroni's own switchover, {number}");
        course
            .step(what, Limit::Yardstick, Loss::None, async |rig| {
                let candidate = rig.other(Product::Patroni).await?;
                rig.switchover_by_patronictl(&candidate).await
            })
            .await?;
    }
    one_by_one(course, Product::Trunkline).await?;
    in_pause(course, Product::Patroni).await?;
    in_pause(course, Product::Trunkline).await?;
    one_by_one(course, Product::Patroni).await
}

/// Replicas first; then leadership moves to one of them, and the last follows.
async fn one_by_one(course: &mut Course<'_>, to: Product) -> Result<()> {
    let leader = course.rig.stack.leader().await?;
    let count = course.rig.stack.members.len();
    for index in (0..count).filter(|index| *index != leader) {
        replace(course, index, to, "a replica", UNFELT).await?;
    }
    let what = format!("to {to}: the switchover");
    course
        .step(what, Limit::AsPatronis, Loss::None, async |rig| {
            let candidate = rig.other(to).await?;
            match to {
                Product::Trunkline => rig.switchover_by_patronictl(&candidate).await,
                Product::Patroni => rig.switchover_by_trunkline(&candidate).await,
            }
        })
        .await?;
    replace(course, leader, to, "the last", UNFELT).await?;
    all_are(&course.rig, to).await
}

/// Replicas first, the leader last; no PostgreSQL is stopped.
async fn in_pause(course: &mut Course<'_>, to: Product) -> Result<()> {
    let leader = course.rig.stack.leader().await?;
    let before = postmasters(&course.rig);
    course
        .step(
            format!("to {to} in pause: pause"),
            UNFELT,
            Loss::None,
            async |rig| {
                rig.patronictl(&["pause", "--wait"])
                    .await
                    .map(|_| String::new())
            },
        )
        .await?;
    let count = course.rig.stack.members.len();
    for index in (0..count).filter(|index| *index != leader) {
        replace(course, index, to, "in pause, a replica", UNFELT).await?;
    }
    // Its REST API is away for seconds: how many, and what HAProxy makes of it, is no promise of ours.
    replace(
        course,
        leader,
        to,
        "in pause, the leader",
        Limit::AsPatronis,
    )
    .await?;
    course
        .step(
            format!("to {to} in pause: resume"),
            UNFELT,
            Loss::None,
            async |rig| {
                rig.patronictl(&["resume", "--wait"])
                    .await
                    .map(|_| String::new())
            },
        )
        .await?;
    if postmasters(&course.rig) != before {
        course.fault("a PostgreSQL did not live through the pause");
    }
    if course.rig.stack.leader().await? != leader {
        course.fault("leadership moved");
    }
    all_are(&course.rig, to).await
}

async fn replace(
    course: &mut Course<'_>,
    index: usize,
    to: Product,
    which: &str,
    limit: Limit,
) -> Result<()> {
    let what = format!("to {to}: {which} is replaced");
    course
        .step(what, limit, Loss::None, async |rig| {
            rig.stop(index).await?;
            rig.start_as(index, to)?;
            Ok(rig.stack.members[index].name.clone())
        })
        .await
}

/// By what each member's agent says of itself: only ours has a word of its own there.
async fn all_are(rig: &Rig, wanted: Product) -> Result<()> {
    for member in &rig.stack.members {
        let is_ours = member.rest("/patroni").await?["trunkline"].is_object();
        if is_ours != (wanted == Product::Trunkline) {
            bail!("{} is not kept by {wanted}", member.name);
        }
    }
    Ok(())
}

fn postmasters(rig: &Rig) -> Vec<Option<crate::stack::proc::ProcessId>> {
    let members = rig.stack.members.iter();
    members.map(|member| member.postmaster()).collect()
}
