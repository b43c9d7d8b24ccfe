//! Judges the whole of Trunkline from outside: a demo, faults on real parts, measurements.
//!
//! * [`stack`]: etcd, agents, routers as child processes.
//! * [`load`]: clients and the record of what they saw.
//! * [`fault`]: what is done to the stack.
//! * [`check`]: verdicts on it.
//! * [`demo`], [`failover`], [`faults`], [`crashes`], [`cuts`], [`serial`], [`switchover`], [`side_by_side`],
//!   [`throughput`], [`soak`]: the commands made of these.
//! * [`report`]: progress and tables.
//! * [`simulation`]: the deterministic simulation, `trunkline-bench simulate`.
//! * [`model`]: every state of small clusters, `trunkline-bench model`.
//!
//! Nothing here imports the agent or the router: they are known by their files, ports and commands. The
//! simulation and the models are the exceptions.

pub mod check;
pub mod crashes;
pub mod cuts;
pub mod demo;
pub mod failover;
pub mod fault;
pub mod faults;
pub mod load;
pub mod model;
pub mod mutants;
pub mod patroni;
pub mod pools;
pub mod report;
pub mod serial;
pub mod side_by_side;
pub mod simulation;
pub mod soak;
pub mod stack;
pub mod switchover;
pub mod throughput;
