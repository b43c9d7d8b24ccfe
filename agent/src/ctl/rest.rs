//! One HTTP request to an agent.

use std::time::Duration;

use hyper::Method;
use hyper::body::Bytes;
use trunkline_shared::service::http::{HttpClient, HttpError};

/// An agent's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The body.
    pub text: String,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RestError {
    /// The agent was not reached; the request was not sent.
    #[error("the agent was not reached: {0}")]
    NotReached(HttpError),
    /// The request may have been carried out.
    #[error("the agent gave no answer: {0}; the request may have been carried out")]
    NoAnswer(HttpError),
}

/// Sends a request to the agent whose record names `api_url`; `longest` is how long the answer may take.
pub async fn request(
    client: &HttpClient,
    api_url: &str,
    method: Method,
    path: &str,
    body: String,
    longest: Duration,
) -> Result<Answer, RestError> {
    let url = format!("{}{path}", without_path(api_url));
    let asked = client.request(method, &url, Bytes::from(body), longest);
    match asked.await {
        Ok(answer) => Ok(Answer {
            status: answer.status,
            text: String::from_utf8_lossy(&answer.body).into_owned(),
        }),
        Err(
            error @ (HttpError::Address(_)
            | HttpError::Unreachable { .. }
            | HttpError::Untrusted { .. }),
        ) => Err(RestError::NotReached(error)),
        Err(error @ (HttpError::Broken { .. } | HttpError::Timeout { .. })) => {
            Err(RestError::NoAnswer(error))
        }
    }
}

/// `https://host:port/patroni` to `https://host:port`.
fn without_path(api_url: &str) -> &str {
    let from = api_url.find("://").map_or(0, |at| at + 3);
    let end = api_url[from..].find('/');
    &api_url[..end.map_or(api_url.len(), |at| from + at)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_of_the_record_is_left_out() {
        for (url, base) in [
            ("http://10.0.0.1:8008/patroni", "http://10.0.0.1:8008"),
            ("https://[::1]:8008", "https://[::1]:8008"),
            ("h:8008/patroni", "h:8008"),
        ] {
            assert_eq!(without_path(url), base);
        }
    }
}
