//! The way to one endpoint: TCP, and TLS with the one set of rules of both programs, under gRPC.
//!
//! The client library's own TLS refuses a certificate that is its own CA, which is what many etcd clusters
//! have.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint, Uri};

use super::EtcdConfigError;

/// The longest a TCP or TLS connection may take to open.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// HTTP/2 pings find connections whose other end vanished. etcd closes connections that ping more often
/// than each 5 s.
const PING_INTERVAL: Duration = Duration::from_secs(10);

/// How long an HTTP/2 ping may stay unanswered.
const PING_TIMEOUT: Duration = Duration::from_secs(5);

/// Either stream.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// The way to one endpoint.
#[derive(Clone)]
pub(super) struct Route {
    address: Arc<str>,
    tls: Option<(ServerName<'static>, Arc<ClientConfig>)>,
    endpoint: Endpoint,
}

impl Route {
    /// The way to `address` (`host:port`).
    pub(super) fn new(
        address: &str,
        tls: Option<Arc<ClientConfig>>,
    ) -> Result<Self, EtcdConfigError> {
        let wrong = || EtcdConfigError::Endpoint(address.to_owned());
        let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let tls = match tls {
            None => None,
            Some(tls) => {
                let name = ServerName::try_from(host.to_owned()).map_err(|_| wrong())?;
                Some((name, tls))
            }
        };
        // The scheme says only that this layer adds no TLS of its own.
        let uri: Uri = format!("http://{address}").parse().map_err(|_| wrong())?;
        let endpoint = Channel::builder(uri)
            .http2_keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT);
        Ok(Self {
            address: Arc::from(address),
            tls,
            endpoint,
        })
    }

    /// The endpoint's URL, for people.
    pub(super) fn url(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.address)
    }

    /// A channel that connects at first use, and again whenever its connection is lost.
    pub(super) fn channel(&self) -> Channel {
        let route = self.clone();
        let connect = tower::service_fn(move |_: Uri| {
            let route = route.clone();
            async move { route.connect().await.map(TokioIo::new) }
        });
        self.endpoint.connect_with_connector_lazy(connect)
    }

    async fn connect(&self) -> io::Result<Box<dyn Stream>> {
        match timeout(CONNECT_TIMEOUT, self.open()).await {
            Ok(opened) => opened,
            Err(_) => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("connect timeout: nothing within {CONNECT_TIMEOUT:?}"),
            )),
        }
    }

    async fn open(&self) -> io::Result<Box<dyn Stream>> {
        let failed = |what: &str, error: &io::Error| {
            io::Error::new(error.kind(), format!("connect error: {what}{error}"))
        };
        let tcp = TcpStream::connect(&*self.address);
        let tcp = tcp.await.map_err(|error| failed("", &error))?;
        tcp.set_nodelay(true)?;
        let Some((name, tls)) = &self.tls else {
            return Ok(Box::new(tcp));
        };
        let connector = TlsConnector::from(tls.clone());
        let stream = connector.connect(name.clone(), tcp).await;
        match stream {
            Ok(stream) => Ok(Box::new(stream)),
            Err(error) if error.to_string().contains("certificate") => Err(failed(
                "TLS (is etcd3.cacert the CA of this etcd?): ",
                &error,
            )),
            Err(error) => Err(failed("TLS: ", &error)),
        }
    }
}
