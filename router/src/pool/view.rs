//! The pools of this core as the console shows them.

use std::sync::Arc;

use trunkline_shared::cluster::Moment;

use super::local::Pool;
use super::{POOLS, Pools, Spec, alone};
use crate::cores;
use crate::pool::state::Counts;
use crate::protocol::startup::Replication;
use crate::server::card::ServerCard;

/// One pool on one core.
#[derive(Clone, Debug)]
pub struct PoolView {
    /// The cluster.
    pub scope: Box<str>,
    /// The database, as clients call it.
    pub database: Box<str>,
    /// The user.
    pub user: Arc<str>,
    /// The member it leads to.
    pub member: String,
    /// Of which kind, where they replicate: such a server is its client's alone.
    pub replication: Option<Replication>,
    /// How many there are of each kind.
    pub counts: Counts,
    /// Those that are connected.
    pub servers: Vec<ServerView>,
}

/// One server of it.
#[derive(Clone, Debug)]
pub struct ServerView {
    /// What it is.
    pub card: Arc<ServerCard>,
    /// Whether it is in somebody's hands.
    pub is_active: bool,
    /// Whether it is closed as soon as it comes free.
    pub is_old: bool,
    /// When it was opened.
    pub opened_at: Moment,
}

impl Pool {
    /// Forgets the cards of servers that are closed.
    pub(super) fn sort_cards(&mut self) {
        if self.cards.len() > self.state.counts().connected() {
            let open: Vec<_> = self.state.servers().map(|(id, ..)| id).collect();
            self.cards.retain(|id, _| open.contains(id));
        }
    }

    fn view(&self) -> PoolView {
        let servers = self.state.servers().filter_map(|(id, is_active, opened)| {
            Some(ServerView {
                card: self.cards.get(&id)?.clone(),
                is_active,
                is_old: self.spec.gate.is_old(opened),
                opened_at: opened,
            })
        });
        PoolView {
            scope: self.spec.cluster.clone(),
            database: self.spec.database.clone(),
            user: self.spec.user.clone(),
            member: self.way.member.to_string(),
            replication: None,
            counts: self.state.counts(),
            servers: servers.collect(),
        }
    }
}

/// All of them, and the servers that are in none.
pub fn view() -> Vec<PoolView> {
    let mut views: Vec<PoolView> =
        POOLS.with_borrow(|pools| pools.pools.values().map(|pool| pool.view()).collect());
    views.extend(alone::view());
    views
}

/// Servers of this core that are open or being opened, of one database or of all.
pub fn servers(database: Option<&str>) -> usize {
    let is_meant = |spec: &Spec| database.is_none_or(|own| *own == *spec.database);
    POOLS.with_borrow(|pools| {
        let meant = pools.pools.values().filter(|pool| is_meant(&pool.spec));
        let counts = meant.map(|pool| pool.state.counts());
        counts
            .map(|own| own.connected() + own.connecting)
            .sum::<usize>()
    }) + alone::count(is_meant, |_, _| true)
}

/// The same of those that are to be closed as soon as they come free.
pub fn old_servers(database: Option<&str>) -> usize {
    let is_meant = |spec: &Spec| database.is_none_or(|own| *own == *spec.database);
    POOLS.with_borrow(|pools| {
        let meant = pools.pools.values().filter(|pool| is_meant(&pool.spec));
        let old = meant.map(|pool| {
            let opened = pool.state.servers().map(|(_, _, opened)| opened);
            opened
                .filter(|opened| pool.spec.gate.is_old(*opened))
                .count()
        });
        old.sum::<usize>()
    }) + alone::count(is_meant, |spec, opened| {
        opened.is_some_and(|opened| spec.gate.is_old(opened))
    })
}

/// Has the pools of this core look at once at what an operator wants of them.
pub fn look() {
    POOLS.with_borrow_mut(Pools::maintain);
}

/// Has the pools of all cores look so.
pub fn look_everywhere() {
    for core in cores::peers().iter().flat_map(|peers| peers.all.iter()) {
        core.spawn(async { look() });
    }
}
