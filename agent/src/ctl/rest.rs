//! One HTTP request to an agent.

use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::header;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::api::authorization::basic;
use crate::config::RestCredentials;
use secrecy::ExposeSecret;

/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(2);

/// The largest answer read.
const LARGEST_ANSWER: usize = 1 << 20;

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
    #[error("the agent at {url} was not reached: {why}")]
    NotReached {
        /// Its URL.
        url: String,
        /// What the system says.
        why: String,
    },
    /// The request may have been carried out.
    #[error("the agent at {url} did not answer: {why}; the request may have been carried out")]
    NoAnswer {
        /// Its URL.
        url: String,
        /// What was seen.
        why: String,
    },
}

/// Sends a request to the agent whose record names `api_url`; `longest` is how long the answer may take.
pub async fn request(
    api_url: &str,
    method: &str,
    path: &str,
    body: String,
    authentication: Option<&RestCredentials>,
    longest: Duration,
) -> Result<Answer, RestError> {
    let not_reached = |why: String| RestError::NotReached {
        url: api_url.to_owned(),
        why,
    };
    let no_answer = |why: String| RestError::NoAnswer {
        url: api_url.to_owned(),
        why,
    };
    let host = api_url
        .strip_prefix("http://")
        .ok_or_else(|| not_reached("only http is supported by this version".to_owned()))?;
    let host = host.split('/').next().unwrap_or(host);
    let stream = timeout(CONNECT, TcpStream::connect(host))
        .await
        .map_err(|_| not_reached(format!("no connection within {CONNECT:?}")))?
        .map_err(|error| not_reached(error.to_string()))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| not_reached(error.to_string()))?;
    let driver = tokio::spawn(connection);
    let mut request = hyper::Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, host)
        .header(header::CONTENT_TYPE, "application/json");
    if let Some(user) = authentication {
        let value = basic(&user.username, user.password.expose_secret());
        request = request.header(header::AUTHORIZATION, value);
    }
    let request = request
        .body(Full::new(Bytes::from(body)))
        .map_err(|error| not_reached(error.to_string()))?;
    let exchange = async {
        let response = sender
            .send_request(request)
            .await
            .map_err(|error| no_answer(error.to_string()))?;
        let status = response.status().as_u16();
        let body = Limited::new(response.into_body(), LARGEST_ANSWER)
            .collect()
            .await
            .map_err(|error| no_answer(error.to_string()))?;
        let text = String::from_utf8_lossy(&body.to_bytes()).into_owned();
        Ok(Answer { status, text })
    };
    let answer = timeout(longest, exchange).await.unwrap_or_else(|_| {
        Err(no_answer(format!(
            "no answer within {} s",
            longest.as_secs()
        )))
    });
    driver.abort();
    answer
}
