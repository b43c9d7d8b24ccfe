//! The SQLSTATE codes that the router itself sends. Which is sent when is decided in `error.rs`.

/// `too_many_connections`.
pub const TOO_MANY_CONNECTIONS: &str = "53300";
/// `admin_shutdown`: nothing of the client's was lost, it may connect again at once.
pub const ADMIN_SHUTDOWN: &str = "57P01";
/// `cannot_connect_now`: try again later.
pub const CANNOT_CONNECT_NOW: &str = "57P03";
/// `transaction_resolution_unknown`: what was sent last may or may not have happened.
pub const TRANSACTION_RESOLUTION_UNKNOWN: &str = "08007";
/// `protocol_violation`.
pub const PROTOCOL_VIOLATION: &str = "08P01";
/// `feature_not_supported`.
pub const FEATURE_NOT_SUPPORTED: &str = "0A000";
