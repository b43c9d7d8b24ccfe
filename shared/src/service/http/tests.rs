//! Server and client against each other, in the clear and over TLS.

use std::net::SocketAddr;

use axum::Extension;
use axum::http::HeaderMap;
use axum::routing::{get, post};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::service::tls::{self, ClientCertificates, ServerCheck, TlsFiles};

async fn start(tls: Option<ServerConfig>) -> (SocketAddr, CancellationToken) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let router = Router::new()
        .route("/health", get(|| async { "fine" }))
        .route(
            "/peer",
            get(|Extension(peer): Extension<Peer>| async move {
                format!("{} {}", peer.address, peer.has_certificate)
            }),
        )
        .route("/echo", post(|body: String| async move { body }))
        .route(
            "/who",
            post(|headers: HeaderMap| async move {
                headers
                    .get(AUTHORIZATION)
                    .map_or(String::new(), |v| v.to_str().unwrap().to_owned())
            }),
        )
        .route("/long", get(|| async { "x".repeat(MAX_ANSWER + 1) }))
        .route("/never", get(std::future::pending::<&str>));
    let tls = tls.map(|settings| Arc::new(Reloadable::new(settings)));
    tokio::spawn(serve(listener, router, tls, stop.clone()));
    (address, stop)
}

async fn ask(client: &HttpClient, method: Method, url: &str) -> Result<Answer, HttpError> {
    let limit = Duration::from_secs(5);
    client
        .request(method, url, Bytes::from_static(b"{}"), limit)
        .await
}

#[tokio::test]
async fn asks_and_answers() {
    let (address, stop) = start(None).await;
    let mut client = HttpClient::default();
    let health = ask(&client, Method::GET, &format!("http://{address}/health"))
        .await
        .unwrap();
    assert_eq!((health.status, &health.body[..]), (200, &b"fine"[..]));
    let echo = ask(&client, Method::POST, &format!("http://{address}/echo"))
        .await
        .unwrap();
    assert_eq!(&echo.body[..], b"{}");
    let peer = ask(&client, Method::GET, &format!("http://{address}/peer"))
        .await
        .unwrap();
    assert_eq!(&peer.body[..], b"127.0.0.1 false");
    let missing = ask(&client, Method::GET, &format!("http://{address}/none"))
        .await
        .unwrap();
    assert_eq!(missing.status, 404);
    client.credentials = Some(("user".to_owned(), "pass".into()));
    let who = ask(&client, Method::POST, &format!("http://{address}/who"))
        .await
        .unwrap();
    assert_eq!(&who.body[..], b"Basic dXNlcjpwYXNz");
    let long = ask(&client, Method::GET, &format!("http://{address}/long")).await;
    assert!(matches!(long, Err(HttpError::Broken { .. })), "{long:?}");
    let limit = Duration::from_millis(50);
    let url = format!("http://{address}/never");
    let never = client.request(Method::GET, &url, Bytes::new(), limit).await;
    assert!(matches!(never, Err(HttpError::Timeout { .. })), "{never:?}");
    stop.cancel();
}

#[tokio::test]
async fn says_why_nobody_answers() {
    let client = HttpClient::default();
    for url in ["", "host:80/x", "ftp://host/"] {
        let error = ask(&client, Method::GET, url).await;
        assert!(
            matches!(error, Err(HttpError::Address(_))),
            "{url}: {error:?}"
        );
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let closed = ask(&client, Method::GET, &format!("http://{address}/")).await;
    assert!(
        matches!(closed, Err(HttpError::Unreachable { .. })),
        "{closed:?}"
    );
}

/// As HAProxy's checks: connected, and the request a moment later.
#[tokio::test]
async fn who_has_just_connected_is_answered_after_the_stop() {
    let (address, stop) = start(None).await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    // Once another one was answered, this one was accepted before it.
    let client = HttpClient::default();
    let url = format!("http://{address}/health");
    ask(&client, Method::GET, &url).await.unwrap();
    stop.cancel();
    tokio::task::yield_now().await;
    stream
        .write_all(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.contains("connection: close"), "{answer}");
}

#[test]
fn base64_is_rfc_4648s() {
    for (plain, text) in [
        ("", ""),
        ("f", "Zg=="),
        ("fo", "Zm8="),
        ("foo", "Zm9v"),
        ("foob", "Zm9vYg=="),
    ] {
        assert_eq!(base64(plain.as_bytes()), text);
    }
}

/// Makes a self-signed certificate the way operators do.
#[expect(
    clippy::disallowed_methods,
    reason = "openssl makes the certificate that the test is about"
)]
fn self_signed(folder: &std::path::Path) -> TlsFiles {
    let (certificate, key) = (folder.join("server.crt"), folder.join("server.key"));
    let made = std::process::Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
        ])
        .args(["-nodes", "-days", "2", "-subj", "/CN=localhost"])
        .args(["-addext", "subjectAltName=DNS:localhost"])
        .arg("-keyout")
        .arg(&key)
        .arg("-out")
        .arg(&certificate)
        .output()
        .expect("this test needs openssl: apt-get install openssl");
    assert!(
        made.status.success(),
        "{}",
        String::from_utf8_lossy(&made.stderr)
    );
    TlsFiles {
        ca: Some(certificate.clone()),
        certificate: Some(certificate),
        key: Some(key),
    }
}

#[tokio::test]
async fn a_self_signed_certificate_pinned_as_its_own_ca_works_on_both_sides() {
    let folder = tempfile::tempdir().unwrap();
    let files = self_signed(folder.path());
    let server = tls::server(&files, ClientCertificates::Required).unwrap();
    let (address, stop) = start(Some(server)).await;
    let client = |check| HttpClient {
        tls: Some(Arc::new(tls::client(&files, check).unwrap())),
        credentials: None,
    };
    let by_name = format!("https://localhost:{}/health", address.port());
    let by_address = format!("https://{address}/health");
    for (check, url, is_fine) in [
        (ServerCheck::IssuerAndName, &by_name, true),
        (ServerCheck::IssuerAndName, &by_address, false),
        (ServerCheck::Issuer, &by_address, true),
        (ServerCheck::Nothing, &by_address, true),
    ] {
        let answer = ask(&client(check), Method::GET, url).await;
        assert_eq!(answer.is_ok(), is_fine, "{check:?} {url}: {answer:?}");
    }
    let url = format!("https://{address}/peer");
    let peer = ask(&client(ServerCheck::Issuer), Method::GET, &url).await;
    assert_eq!(&peer.unwrap().body[..], b"127.0.0.1 true");
    let without_certificate = HttpClient {
        tls: Some(Arc::new(
            tls::client(
                &TlsFiles {
                    ca: files.ca.clone(),
                    ..TlsFiles::default()
                },
                ServerCheck::Issuer,
            )
            .unwrap(),
        )),
        credentials: None,
    };
    assert!(
        ask(&without_certificate, Method::GET, &by_address)
            .await
            .is_err()
    );
    let other_folder = tempfile::tempdir().unwrap();
    let stranger = self_signed(other_folder.path());
    let stranger = HttpClient {
        tls: Some(Arc::new(
            tls::client(&stranger, ServerCheck::Issuer).unwrap(),
        )),
        credentials: None,
    };
    let refused = ask(&stranger, Method::GET, &by_address).await;
    assert!(
        matches!(refused, Err(HttpError::Untrusted { .. })),
        "{refused:?}"
    );
    stop.cancel();
}
