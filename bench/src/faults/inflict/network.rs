//! Links between some of the nodes: cut for some, in one direction, for some connections, again and again.

use std::time::Duration;

use anyhow::{Context, Result};
use trunkline_shared::service::clock;

use super::{CUT, LEADER_LIMIT, LOOK, leader_name};
use crate::failover::inflict::{new_leader, old_servers_end};
use crate::failover::key_watch::KeyWatch;
use crate::fault::links::{self, Rule};
use crate::fault::{node, store};
use crate::faults::site::Field;
use crate::stack::{Stack, namespaces};
use crate::switchover::until_caught_up;

/// Where PostgreSQL and the agent's REST API are.
const MEMBER_PORTS: &str = "5432,8008";
/// Where etcd serves clients.
const STORE_PORT: u16 = 2379;
/// A router's view of the store is old after 2 s, its registration, for which a change waits, over after 3 s; by then it
/// has other connections.
const NOTICES: Duration = Duration::from_secs(5);
/// How often a link goes and comes, each for a second.
const FLAPS: usize = 10;

/// The leader and the first router with its clients on one side, everybody else on the other.
pub async fn partition_with_router(field: &mut Field<'_>) -> Result<()> {
    let (old, on) = (field.run.leader, leader_name(field));
    let elsewhere = (old + 1) % field.run.stack.etcd.len();
    store::lead_from(field.run.stack, elsewhere).await?;
    let watch = KeyWatch::start(&field.run.stack.etcd[elsewhere])?;
    let servers = field.run.stack.members[old].servers();
    let rules = apart(field.run.stack, old)?;
    field.run.began = clock::now();
    let cut = links::cut(rules).await?;
    let (began, ttl) = (field.run.began, field.run.ttl());
    old_servers_end(&mut field.run, &servers, began, ttl).await;
    let elected = new_leader(&mut field.run, &watch, began).await?;
    let deadline = clock::now() + LEADER_LIMIT;
    while field.run.writes.done() <= elected && clock::now() < deadline {
        tokio::time::sleep(LOOK).await;
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    field.evidence.silent = Some((elected, clock::now()));
    cut.heal().await?;
    field.whole("partition with a router", &on).await?;
    Ok(())
}

/// Both of one side drop everything to and from the other side.
fn apart(stack: &Stack, leader: usize) -> Result<Vec<Rule>> {
    let other_members = standbys(stack, leader)
        .into_iter()
        .map(|(_, address)| address);
    let second = stack.second_router.iter();
    let far: Vec<_> = other_members
        .chain(second.map(|router| router.address.clone()))
        .collect();
    let mut rules = Vec::new();
    for near in [leader_namespace(stack, leader)?, router_namespace(stack)?] {
        rules.extend(far.iter().flat_map(|far| Rule::between(near, far)));
    }
    Ok(rules)
}

fn leader_namespace(stack: &Stack, leader: usize) -> Result<&str> {
    let own = stack.members[leader].namespace.as_deref();
    own.context("the leader has no namespace of its own: this needs root")
}

fn router_namespace(stack: &Stack) -> Result<&str> {
    let own = stack.router.namespace.as_deref();
    own.context("the router has no namespace of its own: this needs root")
}

/// The others' addresses.
fn standbys(stack: &Stack, leader: usize) -> Vec<(String, String)> {
    let others = (0..stack.members.len()).filter(|index| *index != leader);
    let each = others.map(|index| &stack.members[index]);
    each.map(|member| (member.name.clone(), member.address.clone()))
        .collect()
}

/// What is dropped between the leader and its standbys, their members of etcd not among it.
pub fn without_standbys(stack: &Stack, leader: usize) -> Result<Vec<Rule>> {
    let own = leader_namespace(stack, leader)?;
    let cut = standbys(stack, leader)
        .into_iter()
        .flat_map(|(_, address)| Rule::between_on(own, &address, MEMBER_PORTS));
    Ok(cut.collect())
}

/// Nobody receives the leader's WAL, and everybody sees it in the store.
pub async fn leader_without_standbys(field: &mut Field<'_>) -> Result<()> {
    let (leader, on) = (field.run.leader, leader_name(field));
    let rules = without_standbys(field.run.stack, leader)?;
    field.run.began = clock::now();
    let cut = links::cut(rules).await?;
    tokio::time::sleep(CUT).await;
    cut.heal().await?;
    let now = field.whole("no standby", &on).await?;
    if now.leader != leader {
        field.missed("leadership moved");
    }
    Ok(())
}

/// What the leader sends to one node is lost, what that one sends comes.
pub async fn one_way_loss(field: &mut Field<'_>) -> Result<()> {
    let router = ("r1".to_owned(), field.run.stack.router.address.clone());
    let mut others = standbys(field.run.stack, field.run.leader);
    others.push(router);
    for (name, address) in others {
        let on = leader_name(field);
        if name == on {
            // It came to lead by the fault before.
            continue;
        }
        let rule = Rule::to(
            leader_namespace(field.run.stack, field.run.leader)?,
            &address,
        );
        field.run.began = clock::now();
        let cut = links::cut([rule]).await?;
        tokio::time::sleep(CUT).await;
        cut.heal().await?;
        field.whole(&format!("{on} -> {name} lost"), &on).await?;
    }
    Ok(())
}

/// The first router sees nothing of the store.
pub async fn router_without_etcd(field: &mut Field<'_>) -> Result<()> {
    let own = router_namespace(field.run.stack)?.to_owned();
    let port = STORE_PORT.to_string();
    field.run.began = clock::now();
    namespaces::cut_from_port(&own, &port).await?;
    tokio::time::sleep(CUT).await;
    namespaces::heal_port(&own, &port).await?;
    field.whole("r1 without etcd", "r1").await?;
    Ok(())
}

/// The first router reaches everybody but the leader.
pub async fn router_without_leader(field: &mut Field<'_>) -> Result<()> {
    let leader = field.run.leader;
    let address = &field.run.stack.members[leader].address;
    let rules = Rule::between(router_namespace(field.run.stack)?, address);
    field.run.began = clock::now();
    let cut = links::cut(rules).await?;
    tokio::time::sleep(CUT).await;
    cut.heal().await?;
    let now = field.whole("r1 without the leader", "r1").await?;
    if now.leader != leader {
        field.missed("leadership moved");
    }
    Ok(())
}

/// The leader's node goes and comes.
pub async fn flapping_link(field: &mut Field<'_>) -> Result<()> {
    let (leader, on) = (field.run.leader, leader_name(field));
    let elsewhere = (leader + 1) % field.run.stack.etcd.len();
    store::lead_from(field.run.stack, elsewhere).await?;
    field.run.began = clock::now();
    for _ in 0..FLAPS {
        node::cut_off(&field.run.stack.members[leader]).await?;
        tokio::time::sleep(Duration::from_secs(1)).await;
        node::reconnect(&field.run.stack.members[leader]).await?;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    field.whole("flapping link", &on).await?;
    Ok(())
}

/// Nothing that etcd sends on the first router's connections comes any more, and leadership moves meanwhile. New
/// connections are not hindered.
pub async fn watch_dead(field: &mut Field<'_>) -> Result<()> {
    let (old, on) = (field.run.leader, leader_name(field));
    until_caught_up(field.run.stack, old).await?;
    let own = router_namespace(field.run.stack)?.to_owned();
    let ports = links::connections_to(field.run.stack.router.id()?, STORE_PORT)?;
    if ports.is_empty() {
        field.missed("r1 has no connection to etcd: nothing is shown");
    }
    let rules = ports
        .iter()
        .map(|port| Rule::heard_by(&own, STORE_PORT, *port));
    field.run.began = clock::now();
    let cut = links::cut(rules).await?;
    let said = field.run.stack.trunkline(&["switchover", "--force"]).await;
    let took = clock::now().since(field.run.began).as_secs_f64();
    let dead = ports.len();
    match said {
        Ok(_) => field.run.note(format!(
            "{dead} connections silent; the change was made after {took:.1} s"
        )),
        Err(error) => field.missed(format!("the change was refused: {error:#}")),
    }
    field
        .load
        .until_all_write(clock::now(), LEADER_LIMIT)
        .await?;
    let took = clock::now().since(field.run.began);
    field.run.note(format!(
        "every client of r1 wrote again {:.1} s after the connections went silent",
        took.as_secs_f64()
    ));
    if took > NOTICES {
        field.late(format!("allowed are {NOTICES:?}"));
    }
    cut.heal().await?;
    field.whole("etcd connections silent", &on).await?;
    Ok(())
}
