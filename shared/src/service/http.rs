//! The small HTTP server for health, metrics and operator calls, and the client that asks it.

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, CONNECTION, CONTENT_TYPE, HOST, HeaderValue};
use hyper::server::conn::http1::Builder;
use hyper::service::service_fn;
use hyper::{Method, Request, StatusCode, Uri};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ServerConfig};
use secrecy::{ExposeSecret, SecretString};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, Semaphore};
use tokio::time::{sleep, timeout};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use self::sending::Sending;
use super::tls::{self, Reloadable, ServerCheck, TlsError, TlsFiles};

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

/// How long a connection without a request yet may go on after the stop was asked for.
const FIRST_REQUEST: Duration = Duration::from_millis(500);

/// How long answers under way may take after the stop was asked for.
const DRAIN_LIMIT: Duration = Duration::from_secs(5);

/// The pause after the kernel refused a connection (out of file descriptors).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The longest answer the client takes, bytes.
pub const MAX_ANSWER: usize = 4 << 20;

/// How long the client tries to make a connection, TLS included: until then nothing was sent.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Who sent a request, as an extension of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Where the connection comes from; an IPv4 address that came over IPv6 is one of IPv4.
    pub address: IpAddr,
    /// Whether a certificate was shown and accepted.
    pub has_certificate: bool,
}

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
        let (stream, from) = match accepted {
            Ok(accepted) => accepted,
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
        let mut peer = Peer {
            address: from.ip().to_canonical(),
            has_certificate: false,
        };
        tasks.spawn(async move {
            let _permit = permit;
            match tls {
                None => serve_connection(stream, router, peer, stop).await,
                Some(settings) => {
                    let handshake = TlsAcceptor::from(settings).accept(stream);
                    match timeout(HEAD_TIMEOUT, handshake).await {
                        Ok(Ok(stream)) => {
                            peer.has_certificate = stream.get_ref().1.peer_certificates().is_some();
                            serve_connection(stream, router, peer, stop).await;
                        }
                        // The client's affair, and its to mend.
                        Ok(Err(error)) => {
                            tracing::debug!(%error, peer = %peer.address, "a TLS handshake failed");
                        }
                        Err(_) => tracing::debug!(peer = %peer.address, "a TLS handshake hung"),
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

async fn serve_connection<S>(stream: S, router: Router, peer: Peer, stop: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let asked = Notify::new();
    let answer = |mut request: Request<Incoming>| {
        asked.notify_one();
        request.extensions_mut().insert(peer);
        let answering = router.clone().oneshot(request);
        let stop = &stop;
        async move {
            let mut response = answering.await?;
            if stop.is_cancelled() {
                // The next request needs another connection.
                let close = HeaderValue::from_static("close");
                response.headers_mut().insert(CONNECTION, close);
            }
            Ok::<_, Infallible>(response)
        }
    };
    let connection = Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), service_fn(answer));
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            // Whoever has just connected is about to ask: a connection that is closed instead is taken for a "no".
            let first = timeout(FIRST_REQUEST, asked.notified());
            tokio::select! {
                ended = connection.as_mut() => ended,
                _ = first => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            }
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
    /// Somebody took the connection who is not whom we trust, or who does not trust us: the request was not sent.
    #[error("{url} is not trusted, or does not trust us: {why}")]
    Untrusted {
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
    /// User and password of HTTP basic authentication, sent with what changes something.
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
    /// A client that shows the certificate of `files` and trusts their CA, or any certificate if `is_insecure`. Where no
    /// file is named and the system trusts nobody, only `http` can be asked.
    ///
    /// # Errors
    /// A named file cannot be used.
    pub fn trusting(files: &TlsFiles, is_insecure: bool) -> Result<Self, TlsError> {
        let check = match is_insecure {
            true => ServerCheck::Nothing,
            false => ServerCheck::IssuerAndName,
        };
        let tls = match tls::client(files, check) {
            Ok(tls) => Some(Arc::new(tls)),
            Err(error) if *files != TlsFiles::default() => return Err(error),
            Err(_) => None,
        };
        Ok(Self {
            tls,
            credentials: None,
        })
    }

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
        let mut request = Request::builder().method(&method).uri(path).header(
            HOST,
            authority.as_str().rsplit('@').next().unwrap_or_default(),
        );
        if !body.is_empty() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        if let Some((user, password)) = &self.credentials
            && !method.is_safe()
        {
            let value = basic_authorization(user, password.expose_secret());
            request = request.header(AUTHORIZATION, value);
        }
        let request = request.body(Full::new(body)).map_err(|_| wrong())?;
        let late = |_| unreachable(format!("no connection within {CONNECT_TIMEOUT:?}"));
        let stream = timeout(CONNECT_TIMEOUT, TcpStream::connect((host, port)))
            .await
            .map_err(late)?
            .map_err(|error| unreachable(error.to_string()))?;
        let _ = stream.set_nodelay(true);
        if !is_tls {
            return send(stream, request, url).await;
        }
        let untrusted = |why: String| HttpError::Untrusted {
            url: url.to_owned(),
            why,
        };
        let tls = self.tls.clone().ok_or_else(|| {
            untrusted("no CA is known by which its certificate could be checked".to_owned())
        })?;
        let name = ServerName::try_from(host.to_owned()).map_err(|_| wrong())?;
        let handshake = TlsConnector::from(tls).connect(name, stream);
        let stream = timeout(CONNECT_TIMEOUT, handshake)
            .await
            .map_err(late)?
            .map_err(|error| untrusted(error.to_string()))?;
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

/// The value of the header `Authorization` for a user and a password.
pub fn basic_authorization(user: &str, password: &str) -> String {
    format!("Basic {}", base64(format!("{user}:{password}").as_bytes()))
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
