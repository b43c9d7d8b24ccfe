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
/// `serialization_failure`: the transaction did not happen, and may be repeated as a whole.
pub const SERIALIZATION_FAILURE: &str = "40001";
/// `in_failed_sql_transaction`.
pub const IN_FAILED_TRANSACTION: &str = "25P02";
/// `query_canceled`.
pub const QUERY_CANCELED: &str = "57014";
/// `invalid_password`.
pub const INVALID_PASSWORD: &str = "28P01";
/// `invalid_catalog_name`.
pub const INVALID_CATALOG_NAME: &str = "3D000";
/// `program_limit_exceeded`.
pub const PROGRAM_LIMIT_EXCEEDED: &str = "54000";
/// `invalid_authorization_specification`.
pub const INVALID_AUTHORIZATION: &str = "28000";
/// `invalid_parameter_value`.
pub const INVALID_PARAMETER_VALUE: &str = "22023";
/// `undefined_object`: no such setting.
pub const UNDEFINED_OBJECT: &str = "42704";
/// `invalid_sql_statement_name`: no such prepared statement.
pub const INVALID_STATEMENT_NAME: &str = "26000";
/// `duplicate_prepared_statement`.
pub const DUPLICATE_STATEMENT: &str = "42P05";
/// `idle_session_timeout`.
pub const IDLE_SESSION_TIMEOUT: &str = "57P05";
/// `idle_in_transaction_session_timeout`.
pub const IDLE_IN_TRANSACTION_TIMEOUT: &str = "25P03";
