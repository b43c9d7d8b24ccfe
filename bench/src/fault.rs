//! Faults: processes killed and frozen, nodes cut off from all or from some, CPU time taken away, fsync that fails, the store
//! disturbed.

pub mod links;
pub mod node;
pub mod processor;
pub mod store;
pub mod synced;
