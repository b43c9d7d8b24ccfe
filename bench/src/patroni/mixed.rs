//! Members of both kinds in one cluster: whoever leads, the other kind follows, takes over and hands back.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use trunkline_shared::service::clock;

use super::course::{Course, Limit, Line, Loss};
use super::haproxy::File;
use super::rig::Rig;
use super::{Setup, TIMING, timing};
use crate::stack::Stack;
use crate::stack::member::{Product, SCOPE};

/// Nothing is to be felt where nobody stops to lead.
const UNFELT: Limit = Limit::AtMost(Duration::from_secs(2));
/// After a kill: the rest of the lease, a race and a promotion by whichever kind, and HAProxy's turn.
const AFTER_KILL: Limit = Limit::AtMost(Duration::from_secs(60));
/// For how long etcd is away: longer than a lease lives.
const OUTAGE: Duration = Duration::from_secs(TIMING.0 as u64 + 10);
/// For how long a consent is kept.
const PROMISED: Duration = Duration::from_secs(TIMING.0 as u64 + 1);
/// A new leader must show within this after a kill, and a key must change within it.
const CHANGE_LIMIT: Duration = Duration::from_secs(60);

/// Runs the course.
pub async fn run(setup: &Setup<'_>) -> Result<Vec<Line>> {
    let products = [Product::Trunkline, Product::Patroni, Product::Trunkline];
    let rig = Rig::start(setup, products, timing(), File::Documentation).await?;
    let mut course = Course::start(setup, rig).await?;
    let went = match both_ways(&mut course).await {
        Ok(()) => match few_of_ours(&mut course).await {
            Ok(()) => synchronous(&mut course).await,
            Err(error) => Err(error),
        },
        Err(error) => Err(error),
    };
    course.finish("mixed", went).await
}

/// Two of Trunkline and one of Patroni, which is the only one to hand over to, and to take over from.
async fn both_ways(course: &mut Course<'_>) -> Result<()> {
    use Product::{Patroni, Trunkline};
    for (who, to) in [
        (By::Patronictl, Patroni),
        (By::Patronictl, Trunkline),
        (By::Trunkline, Patroni),
        (By::Trunkline, Trunkline),
    ] {
        switchover(course, who, to, "").await?;
    }
    pause(course).await?;
    etcd_gone(course, "Trunkline leads").await?;
    switchover(course, By::Trunkline, Patroni, "").await?;
    pause(course).await?;
    etcd_gone(course, "Patroni leads").await?;
    kill_leader(course, Loss::Asynchronous, "").await?;
    swapped_in_pause(course).await
}

/// One of Trunkline and two of Patroni: whoever takes over from ours is Patroni's.
async fn few_of_ours(course: &mut Course<'_>) -> Result<()> {
    switchover(course, By::Patronictl, Product::Trunkline, "").await?;
    let what = "a leading agent of Trunkline ends";
    course
        .step(what, Limit::Told, Loss::None, async |rig| {
            let old = rig.stack.leader().await?;
            rig.stop(old).await?;
            let said = another_leads(rig, old).await?;
            rig.start_as(old, Product::Trunkline)?;
            Ok(said)
        })
        .await?;
    switchover(course, By::Trunkline, Product::Trunkline, "").await?;
    kill_leader(course, Loss::Asynchronous, "").await
}

/// The same with commits that wait for both standbys: nothing is lost whatever is done.
async fn synchronous(course: &mut Course<'_>) -> Result<()> {
    let what = "synchronous_mode is switched on by patronictl";
    course
        .step(what, UNFELT, Loss::None, async |rig| {
            let words = [
                "edit-config",
                "-s",
                "synchronous_mode=true",
                "-s",
                "synchronous_node_count=2",
                "--force",
            ];
            rig.patronictl(&words).await?;
            both_synchronous(rig).await
        })
        .await?;
    let under = ", synchronous";
    switchover(course, By::Patronictl, Product::Trunkline, under).await?;
    switchover(course, By::Trunkline, Product::Patroni, under).await?;
    kill_leader(course, Loss::None, under).await?;
    if product_of_leader(&course.rig).await? == Product::Patroni {
        switchover(course, By::Trunkline, Product::Trunkline, under).await?;
    }
    kill_leader(course, Loss::None, under).await
}

#[derive(Clone, Copy, Debug)]
enum By {
    Patronictl,
    Trunkline,
}

async fn switchover(course: &mut Course<'_>, by: By, to: Product, under: &str) -> Result<()> {
    let from = product_of_leader(&course.rig).await?;
    let with = match by {
        By::Patronictl => "patronictl",
        By::Trunkline => "trunkline",
    };
    let what = format!("switchover by {with}: {from} to {to}{under}");
    let is_synchronous = !under.is_empty();
    course
        .step(what, Limit::Told, Loss::None, async |rig| {
            if is_synchronous {
                both_synchronous(rig).await?;
            }
            let candidate = rig.other(to).await?;
            match by {
                By::Patronictl => rig.switchover_by_patronictl(&candidate).await,
                By::Trunkline => rig.switchover_by_trunkline(&candidate).await,
            }
        })
        .await
}

/// Paused by one command, resumed by the other, and the other way round: nobody's PostgreSQL is touched.
async fn pause(course: &mut Course<'_>) -> Result<()> {
    let leads = product_of_leader(&course.rig).await?;
    let what = format!("pause and resume by each command, {leads} leads");
    course
        .step(what, UNFELT, Loss::None, async |rig| {
            let before = postmasters(rig);
            rig.patronictl(&["pause", "--wait"]).await?;
            rig.stack.trunkline(&["resume", "--wait"]).await?;
            rig.stack.trunkline(&["pause", "--wait"]).await?;
            rig.patronictl(&["resume", "--wait"]).await?;
            if postmasters(rig) != before {
                bail!("a PostgreSQL did not live through the pause");
            }
            Ok(String::new())
        })
        .await
}

/// Failsafe mode: everybody consents, members of the other kind too, and nobody stops to write.
async fn etcd_gone(course: &mut Course<'_>, leads: &str) -> Result<()> {
    let what = format!("etcd is away for {OUTAGE:?}, {leads}");
    course
        .step(what, UNFELT, Loss::None, async |rig| {
            listed_for_failsafe(rig).await?;
            let (leader, before) = (rig.leader().await?, postmasters(rig));
            for etcd in &mut rig.stack.etcd {
                etcd.end(Signal::KILL).await?;
            }
            tokio::time::sleep(OUTAGE).await;
            for etcd in &mut rig.stack.etcd {
                etcd.start()?;
            }
            healthy(rig).await?;
            let now = rig.leader().await?;
            if now != leader {
                bail!("{leader} led before, {now} leads now");
            }
            if postmasters(rig) != before {
                bail!("a PostgreSQL did not live through the outage");
            }
            // Whoever consented runs for nobody's place before that is over, Patroni's members neither.
            tokio::time::sleep(PROMISED).await;
            Ok(String::new())
        })
        .await
}

async fn kill_leader(course: &mut Course<'_>, loss: Loss, under: &str) -> Result<()> {
    let leads = product_of_leader(&course.rig).await?;
    let what = format!("the leader and its PostgreSQL are killed: {leads}{under}");
    let is_synchronous = !under.is_empty();
    course
        .step(what, AFTER_KILL, loss, async |rig| {
            if is_synchronous {
                both_synchronous(rig).await?;
            }
            let old = rig.stack.leader().await?;
            rig.kill(old).await?;
            let said = another_leads(rig, old).await?;
            rig.start_as(old, leads)?;
            Ok(said)
        })
        .await
}

/// A leader of Trunkline announces in pause that its fence sleeps. Patroni, which goes on with its PostgreSQL, never
/// takes that back: the others do, else none of them could ever take over from it.
async fn swapped_in_pause(course: &mut Course<'_>) -> Result<()> {
    let what = "the leading member goes from Trunkline to Patroni in pause";
    course
        .step(what, UNFELT, Loss::None, async |rig| {
            let (leader, before) = (rig.stack.leader().await?, postmasters(rig));
            let name = rig.stack.members[leader].name.clone();
            rig.patronictl(&["pause", "--wait"]).await?;
            rig.stop(leader).await?;
            rig.start_as(leader, Product::Patroni)?;
            let leads =
                async |stack: &Stack| stack.leader().await.is_ok_and(|index| index == leader);
            rig.stack
                .until("the leader to lead on", CHANGE_LIMIT, leads)
                .await?;
            rig.patronictl(&["resume", "--wait"]).await?;
            if postmasters(rig) != before {
                bail!("a PostgreSQL did not live through the change");
            }
            let key = format!("/service/{SCOPE}/trunkline/disarmed/{name}");
            let is_gone =
                async |stack: &Stack| stack.etcd[0].exists(&key).await.is_ok_and(|stands| !stands);
            rig.stack
                .until("the announcement to be withdrawn", CHANGE_LIMIT, is_gone)
                .await?;
            Ok(name)
        })
        .await
}

async fn product_of_leader(rig: &Rig) -> Result<Product> {
    let leader = rig.stack.leader().await?;
    Ok(rig.stack.members[leader].product())
}

fn postmasters(rig: &Rig) -> Vec<Option<crate::stack::proc::ProcessId>> {
    let members = rig.stack.members.iter();
    members.map(|member| member.postmaster()).collect()
}

/// Waits until another member leads, and says who and when.
async fn another_leads(rig: &mut Rig, old: usize) -> Result<String> {
    let since = clock::now();
    let leads = async |stack: &Stack| stack.leader().await.is_ok_and(|now| now != old);
    rig.stack
        .until("another leader", CHANGE_LIMIT, leads)
        .await?;
    let now = rig.stack.leader().await?;
    let member = &rig.stack.members[now];
    Ok(format!(
        "{} to {} ({}) after {:.1} s",
        rig.stack.members[old].name,
        member.name,
        member.product(),
        clock::now().since(since).as_secs_f64()
    ))
}

async fn both_synchronous(rig: &mut Rig) -> Result<String> {
    let key = format!("/service/{SCOPE}/sync");
    let named = async |stack: &Stack| {
        let text = stack.etcd[0].read(&key).await.unwrap_or_default();
        let record: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
        let standbys = record["sync_standby"].as_str().unwrap_or_default();
        standbys.split(',').filter(|name| !name.is_empty()).count() == 2
    };
    rig.stack
        .until("both standbys in /sync", CHANGE_LIMIT, named)
        .await?;
    rig.stack.etcd[0].read(&key).await
}

async fn listed_for_failsafe(rig: &mut Rig) -> Result<()> {
    let key = format!("/service/{SCOPE}/failsafe");
    let listed = async |stack: &Stack| {
        let text = stack.etcd[0].read(&key).await.unwrap_or_default();
        let list: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
        list.as_object()
            .is_some_and(|list| list.len() == stack.members.len())
    };
    rig.stack
        .until("everybody in the failsafe list", CHANGE_LIMIT, listed)
        .await
}

async fn healthy(rig: &mut Rig) -> Result<()> {
    let all = async |stack: &Stack| {
        for etcd in &stack.etcd {
            if !etcd.is_healthy().await {
                return false;
            }
        }
        true
    };
    let healthy = rig.stack.until("etcd", CHANGE_LIMIT, all);
    healthy.await.context("after the outage")
}
