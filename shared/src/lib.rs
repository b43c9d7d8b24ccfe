//! What Trunkline's agent and router must agree on, and nothing else.
//!
//! A thing enters this crate only if the agent and the router would be wrong if they disagreed about
//! it, or if it is process plumbing that must be identical in both. Nothing here decides.
//!
//! * [`cluster`]: the model: members, leader and epoch, positions, settings, the [`cluster::Topology`].
//! * [`dcs`]: the consistent store: keys, records, the [`dcs::Dcs`] trait and its implementations.
//! * [`service`]: plumbing: clock, configuration files, logs, metrics, HTTP, signals, system calls.

pub mod cluster;
pub mod dcs;
pub mod service;
