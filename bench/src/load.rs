//! Clients: writers, readers and appenders through the router, and the record of what each of them saw.

pub mod append;
pub mod history;
pub mod last_write;
pub mod readers;
pub mod writers;
