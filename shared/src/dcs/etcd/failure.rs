//! What one endpoint's error proves.

use etcd_client::Error;

use crate::dcs::DcsError;

/// Why an attempt at one endpoint brought no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// The request was surely not executed; another endpoint may be asked.
    NotExecuted(String),
    /// The request may have been executed, or may be yet.
    Unknown(String),
    /// The endpoint says that the lease has ended. A new etcd leader says so, for a moment, of leases it
    /// has not applied yet.
    LeaseGone(i64),
    /// The endpoint knows less than was seen, or belongs to another cluster.
    WentBack(String),
    /// Any endpoint would say the same.
    Final(DcsError),
}

/// gRPC's status codes, by number.
mod code {
    pub(super) const INVALID_ARGUMENT: i32 = 3;
    pub(super) const NOT_FOUND: i32 = 5;
    pub(super) const PERMISSION_DENIED: i32 = 7;
    pub(super) const RESOURCE_EXHAUSTED: i32 = 8;
    pub(super) const FAILED_PRECONDITION: i32 = 9;
    pub(super) const OUT_OF_RANGE: i32 = 11;
    pub(super) const UNIMPLEMENTED: i32 = 12;
    pub(super) const UNAUTHENTICATED: i32 = 16;
}

/// Texts of errors that are raised before a request is proposed or sent.
const NOT_EXECUTED: [&str; 9] = [
    "connect error",
    "dns error",
    "tcp open error",
    "connect timeout",
    "etcdserver: no leader",
    "etcdserver: not leader",
    "raft proposal dropped",
    "etcdserver: too many requests",
    "revision of auth store is old",
];

/// Texts of errors about who asks.
const REFUSED: [&str; 4] = [
    "authentication failed",
    "user name is empty",
    "permission denied",
    "invalid auth token",
];

/// What `error`, from the endpoint at `url`, proves.
pub(super) fn classify(url: &str, error: Error) -> Failure {
    let status = match error {
        Error::GRpcStatus(status) => status,
        Error::InvalidArgs(_) | Error::InvalidUri(_) | Error::InvalidMetadataValue(_) => {
            return Failure::Final(DcsError::Rejected(error.to_string()));
        }
        other => return Failure::Unknown(other.to_string()),
    };
    let text = words(&status);
    let says = |texts: &[&str]| texts.iter().any(|words| text.contains(words));
    if says(&REFUSED) {
        return Failure::Final(DcsError::Refused {
            endpoint: url.to_owned(),
            why: text,
        });
    }
    if says(&NOT_EXECUTED) {
        return Failure::NotExecuted(text);
    }
    match i32::from(status.code()) {
        code::NOT_FOUND if text.contains("lease not found") => Failure::LeaseGone(0),
        code::OUT_OF_RANGE if text.contains("compacted") => Failure::Final(DcsError::Compacted(0)),
        code::PERMISSION_DENIED | code::UNAUTHENTICATED => Failure::Final(DcsError::Refused {
            endpoint: url.to_owned(),
            why: text,
        }),
        code::INVALID_ARGUMENT
        | code::NOT_FOUND
        | code::RESOURCE_EXHAUSTED
        | code::FAILED_PRECONDITION
        | code::OUT_OF_RANGE
        | code::UNIMPLEMENTED => Failure::Final(DcsError::Rejected(text)),
        _ => Failure::Unknown(text),
    }
}

/// The status's own text and those of its causes: a connection error stands only in the latter.
fn words(status: &tonic::Status) -> String {
    let mut text = status.message().to_owned();
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        let words = error.to_string();
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        cause = error.source();
    }
    text
}
