//! Keeps the leader lease alive and publishes until when this member may act as leader.

pub mod state;
