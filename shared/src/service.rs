//! Process plumbing that must be identical in both programs.

pub mod clock;
pub mod config_file;
pub mod http;
pub mod logging;
pub mod metrics;
pub mod network;
pub mod shutdown;
pub mod sys;
pub mod tls;
