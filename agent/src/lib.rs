//! The HA agent: keeps one PostgreSQL in its right role.
//!
//! `Wake → observe → decide → act → record`. [`decide`] is pure and holds every rule; [`lease`] holds the
//! right to lead and its deadline; [`tick`] is the loop, [`run`] builds and wires everything.

pub mod act;
pub mod api;
pub mod config;
pub mod ctl;
pub mod decide;
pub mod fence;
pub mod generate;
pub mod journal;
pub mod lease;
pub mod metrics;
pub mod observe;
pub mod postgres;
pub mod recreation;
pub mod run;
pub mod tick;
pub mod validate;
pub mod watchdog;
