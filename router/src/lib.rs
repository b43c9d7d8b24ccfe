//! The router: carries client connections to the right PostgreSQL.
//!
//! The way of a connection: [`listener`] accepts and counts it, a thread of [`cores`] gets it, [`session`]
//! reads its first packet, [`mod@route`] names a member by the table that [`topology`] publishes, and
//! [`session::relay`] carries bytes until either side, or the order of [`lanes`], ends it.
//!
//! The router is never the safety mechanism: it may serve nobody, it may not decide who leads.

pub mod admin;
pub mod auth;
pub mod cancel;
pub mod clusters;
pub mod config;
pub mod cores;
pub mod drain;
pub mod error;
pub mod fleet;
pub mod held_back;
pub mod http;
pub mod in_force;
pub mod lanes;
pub mod listener;
pub mod metrics;
pub mod pool;
pub mod protocol;
pub mod roster;
pub mod route;
pub mod run;
pub mod server;
pub mod session;
pub mod stream;
pub mod tally;
pub mod tls;
pub mod topology;
pub mod turns;
pub mod warm;
