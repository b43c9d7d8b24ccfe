//! Faults: processes killed and frozen, nodes cut off, the store disturbed.

pub mod node;
pub mod store;
