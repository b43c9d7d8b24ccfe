//! Pools of servers.

pub mod budget;
pub mod state;
