//! Verdicts: what must be true during and after a run, told by asking the servers themselves.

pub mod convergence;
pub mod ledger;
pub mod leftovers;
pub mod list_append;
pub mod one_writer;
pub mod pages;
