//! The HA agent: keeps one PostgreSQL in its right role.
//!
//! `Wake → observe → decide → act → record`. [`decide`] is pure and holds every rule; [`lease`] holds the
//! right to lead and its deadline.

pub mod api;
pub mod config;
pub mod decide;
pub mod fence;
pub mod lease;
pub mod metrics;
pub mod postgres;
