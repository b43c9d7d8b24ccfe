//! The small HTTP server for health, metrics and operator calls, and the client that asks it.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use hyper::server::conn::http1::Builder;
use hyper::{Method, Request, StatusCode, Uri};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ServerConfig};
use secrecy::{ExposeSecret, SecretString};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::sending::Sending;
use super::tls::Reloadable;

mod sending;

/// Connections served at a time; more are closed at once, so that health checks can never eat the memory.
pub const MAX_CONNECTIONS: usize = 512;

/// How long a client may take for a TLS handshake, or for a request's head; also how long it may idle.
const HEAD_TIMEOUT: Duration = Duration::from_secs(15);

/// How long a client may take to read what was sent; then it is cut off, so that clients that never read
/// cannot hold all connections.
const SEND_TIMEOUT: Duration = Duration::from_secs(15);

/// The longest head of a request, bytes; a longer one is answered with 431.
const MAX_HEAD: usize = 64 << 10;

/// How long answers under way may take after the stop was asked for.
const DRAIN_LIMIT: Duration = Duration::from_secs(5);

/// The pause after the kernel refused a connection (out of file descriptors).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The longest answer the client takes, bytes.
pub const MAX_ANSWER: usize = 4 << 20;

/// Serves until `stop`, then lets answers under way finish.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    tls: Option<Arc<Reloadable<ServerConfig>>>,
    stop: CancellationToken,
) {
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let tasks = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "accepting HTTP connections");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(permit) = permits.clone().try_acquire_owned() else {
            tracing::warn!(
                limit = MAX_CONNECTIONS,
                "too many HTTP connections; one is closed"
            );
            continue;
        };
        // Answers are small and must not wait for more.
        let _ = stream.set_nodelay(true);
        let stream = Sending::new(stream, SEND_TIMEOUT);
        let (router, stop) = (router.clone(), stop.clone());
        let tls = tls.as_ref().map(|tls| tls.current());
        tasks.spawn(async move {
            let _permit = permit;
            match tls {
                None => serve_connection(stream, router, stop).await,
                Some(settings) => {
                    let handshake = TlsAcceptor::from(settings).accept(stream);
                    // A failed handshake is the client's affair.
                    if let Ok(Ok(stream)) = timeout(HEAD_TIMEOUT, handshake).await {
                        serve_connection(stream, router, stop).await;
                    }
                }
            }
        });
    }
    tasks.close();
    if timeout(DRAIN_LIMIT, tasks.wait()).await.is_err() {
        tracing::warn!(open = tasks.len(), "HTTP answers are cut off");
    }
}

async fn serve_connection<S>(stream: S, router: Router, stop: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let connection = Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "an HTTP connection ended");
    }
}

/// Why a request brought no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HttpError {
    /// The address is none.
    #[error(
        "\"{0}\" is not a usable address; allowed: http://host:port/path or https://host:port/path"
    )]
    Address(String),
    /// Nobody took the connection: the request was not sent.
    #[error("{url} cannot be reached: {why}")]
    Unreachable {
        /// Who was asked.
        url: String,
        /// Why.
        why: String,
    },
    /// The connection broke after the request was sent, or the answer is too long.
    #[error("{url} did not answer: {why}")]
    Broken {
        /// Who was asked.
        url: String,
        /// Why.
        why: String,
    },
    /// The time is over.
    #[error("{url} did not answer within {limit:?}")]
    Timeout {
        /// Who was asked.
        url: String,
        /// The time it had.
        limit: Duration,
    },
}

/// A client for other members' and routers' APIs.
#[derive(Clone, Debug, Default)]
pub struct HttpClient {
    /// For `https`; without it such addresses are refused.
    pub tls: Option<Arc<ClientConfig>>,
    /// User and password of HTTP basic authentication.
    pub credentials: Option<(String, SecretString)>,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The body.
    pub body: Bytes,
}

impl HttpClient {
    /// One request over a connection of its own; a body is sent as JSON.
    ///
    /// # Errors
    /// See [`HttpError`]. Any status is an answer.
    pub async fn request(
        &self,
        method: Method,
        url: &str,
        body: Bytes,
        limit: Duration,
    ) -> Result<Answer, HttpError> {
        match timeout(limit, self.exchange(method, url, body)).await {
            Ok(result) => result,
            Err(_) => Err(HttpError::Timeout {
                url: url.to_owned(),
                limit,
            }),
        }
    }

    async fn exchange(&self, method: Method, url: &str, body: Bytes) -> Result<Answer, HttpError> {
        let wrong = || HttpError::Address(url.to_owned());
        let uri: Uri = url.parse().map_err(|_| wrong())?;
        let authority = uri.authority().ok_or_else(wrong)?;
        let is_tls = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(wrong()),
        };
        let host = authority
            .host()
            .trim_start_matches('[')
            .trim_end_matches(']');
        let port = authority
            .port_u16()
            .unwrap_or(if is_tls { 443 } else { 80 });
        let unreachable = |why: String| HttpError::Unreachable {
            url: url.to_owned(),
            why,
        };
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        let mut request = Request::builder().method(method).uri(path).header(
            HOST,
            authority.as_str().rsplit('@').next().unwrap_or_default(),
        );
        if !body.is_empty() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        if let Some((user, password)) = &self.credentials {
            let pair = format!("{user}:{}", password.expose_secret());
            request = request.header(AUTHORIZATION, format!("Basic {}", base64(pair.as_bytes())));
        }
        let request = request.body(Full::new(body)).map_err(|_| wrong())?;
        let stream = TcpStream::connect((host, port))
            .await
            .map_err(|error| unreachable(error.to_string()))?;
        let _ = stream.set_nodelay(true);
        if !is_tls {
            return send(stream, request, url).await;
        }
        let tls = self
            .tls
            .clone()
            .ok_or_else(|| unreachable("no TLS settings for https".to_owned()))?;
        let name = ServerName::try_from(host.to_owned()).map_err(|_| wrong())?;
        let stream = TlsConnector::from(tls)
            .connect(name, stream)
            .await
            .map_err(|error| unreachable(error.to_string()))?;
        send(stream, request, url).await
    }
}

async fn send<S>(stream: S, request: Request<Full<Bytes>>, url: &str) -> Result<Answer, HttpError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let broken = |why: String| HttpError::Broken {
        url: url.to_owned(),
        why,
    };
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| broken(error.to_string()))?;
    let exchange = async {
        let response = sender
            .send_request(request)
            .await
            .map_err(|error| broken(error.to_string()))?;
        let status: StatusCode = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER)
            .collect()
            .await
            .map_err(|error| broken(error.to_string()))?;
        Ok(Answer {
            status: status.as_u16(),
            body: body.to_bytes(),
        })
    };
    let mut exchange = std::pin::pin!(exchange);
    let mut connection = std::pin::pin!(connection);
    // The connection moves the bytes; it may end before the answer is collected, which is no error.
    tokio::select! {
        result = exchange.as_mut() => result,
        _ = connection.as_mut() => exchange.await,
    }
}

/// RFC 4648, with padding.
fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let number = (0..3).fold(0u32, |sum, at| {
            sum << 8 | u32::from(group.get(at).copied().unwrap_or(0))
        });
        for at in 0..4 {
            if at <= group.len() {
                let index = (number >> (18 - 6 * at)) & 63;
                text.push(char::from(LETTERS[index as usize]));
            } else {
                text.push('=');
            }
        }
    }
    text
}

#[cfg(test)]
mod tests;
