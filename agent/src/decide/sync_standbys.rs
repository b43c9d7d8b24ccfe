//! Synchronous replication: who may lead without losing an acknowledged commit.
//!
//! The rules of `patroni.md` 2.2 (8, 11) and 2.9. What an operator asks for with `trunkline failover` may
//! lose commits and is not held back here.

pub(super) mod election;
