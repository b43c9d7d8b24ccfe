//! The REST API over TLS: certificates as operators make them, and who may do what.

use std::path::{Path, PathBuf};

use trunkline_agent::config::Allowlist;
use trunkline_shared::service::network::Network;
use trunkline_shared::service::tls::{self, ClientCertificates, ServerCheck, TlsFiles};

use super::*;

/// A folder in which certificates are made.
struct Authority(tempfile::TempDir);

impl Authority {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    #[expect(
        clippy::disallowed_methods,
        clippy::expect_used,
        reason = "openssl makes the certificates that the tests are about"
    )]
    fn openssl(&self, arguments: &str) {
        let made = std::process::Command::new("openssl")
            .args(arguments.split(' '))
            .current_dir(self.0.path())
            .output()
            .expect("this test needs openssl: apt-get install openssl");
        let said = String::from_utf8_lossy(&made.stderr);
        assert!(made.status.success(), "{arguments}: {said}");
    }

    /// A certificate that is its own CA, for the address the tests listen on.
    fn self_signed(&self, name: &str) -> TlsFiles {
        self.openssl(&format!(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN={name} \
             -addext subjectAltName=IP:127.0.0.1 -keyout {name}.key -out {name}.crt"
        ));
        TlsFiles {
            certificate: Some(self.path(&format!("{name}.crt"))),
            key: Some(self.path(&format!("{name}.key"))),
            ca: Some(self.path(&format!("{name}.crt"))),
        }
    }

    /// A certificate that `ca` signed; what it is checked by is `ca`.
    fn signed(&self, name: &str, ca: &str) -> TlsFiles {
        std::fs::write(self.path("names"), "subjectAltName=IP:127.0.0.1").unwrap();
        self.openssl(&format!(
            "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN={name} -keyout {name}.key -out {name}.csr"
        ));
        self.openssl(&format!(
            "x509 -req -in {name}.csr -CA {ca}.crt -CAkey {ca}.key -CAcreateserial -days 2 -extfile names -out {name}.crt"
        ));
        TlsFiles {
            certificate: Some(self.path(&format!("{name}.crt"))),
            key: Some(self.path(&format!("{name}.key"))),
            ca: Some(self.path(&format!("{ca}.crt"))),
        }
    }
}

fn client(files: &TlsFiles) -> HttpClient {
    HttpClient {
        tls: Some(Arc::new(
            tls::client(files, ServerCheck::IssuerAndName).unwrap(),
        )),
        credentials: None,
    }
}

/// Trusts the CA and shows nothing.
fn without_certificate(files: &TlsFiles) -> HttpClient {
    client(&TlsFiles {
        ca: files.ca.clone(),
        ..TlsFiles::default()
    })
}

async fn served(files: &TlsFiles, clients: ClientCertificates) -> Fixture {
    let settings = tls::server(files, clients).unwrap();
    let access = Access {
        needs_certificate: clients != ClientCertificates::Ignore,
        ..Access::default()
    };
    Fixture::with(access, Some(Arc::new(Reloadable::new(settings)))).await
}

/// The status of a request, `None` where TLS lets nobody through.
async fn status(fixture: &Fixture, client: &HttpClient, method: &str, path: &str) -> Option<u16> {
    match fixture.ask(client, method, path, json!({})).await {
        Ok(answer) => Some(answer.status),
        // A server that demands a certificate ends the connection after the handshake of TLS 1.3.
        Err(RestError::NotReached(_) | RestError::NoAnswer(_)) => None,
    }
}

#[tokio::test]
async fn https_demands_certificates_as_verify_client_says() {
    let authority = Authority::new();
    let own = authority.self_signed("n1");
    let stranger = client(&TlsFiles {
        ca: own.ca.clone(),
        ..authority.self_signed("stranger")
    });
    authority.self_signed("ca");
    let by_ca = authority.signed("n2", "ca");
    for (files, shows) in [(&own, client(&own)), (&by_ca, client(&by_ca))] {
        let plain = without_certificate(files);
        for (clients, safe, unsafe_without, unsafe_with) in [
            (ClientCertificates::Ignore, Some(200), Some(404), Some(404)),
            (
                ClientCertificates::Optional,
                Some(200),
                Some(403),
                Some(404),
            ),
            (ClientCertificates::Required, None, None, Some(404)),
        ] {
            let fixture = served(files, clients).await;
            fixture.publish(as_primary);
            let at = |client| status(&fixture, client, "GET", "/primary");
            assert_eq!(at(&plain).await, safe, "{clients:?}");
            assert_eq!(at(&shows).await, Some(200), "{clients:?}");
            let delete = |client| status(&fixture, client, "DELETE", "/restart");
            assert_eq!(delete(&plain).await, unsafe_without, "{clients:?}");
            assert_eq!(delete(&shows).await, unsafe_with, "{clients:?}");
            if clients != ClientCertificates::Ignore {
                assert_eq!(at(&stranger).await, None, "{clients:?}");
            }
        }
    }
    // Who does not know the CA does not even ask, and says whom it distrusts.
    let fixture = served(&own, ClientCertificates::Ignore).await;
    let distrusting = without_certificate(&by_ca);
    let refused = fixture.ask(&distrusting, "GET", "/", Value::Null).await;
    let said = refused.unwrap_err().to_string();
    assert!(said.contains("is not trusted"), "{said}");
}

#[tokio::test]
async fn a_new_certificate_counts_for_the_next_connection() {
    let authority = Authority::new();
    let (first, second) = (
        authority.self_signed("first"),
        authority.self_signed("second"),
    );
    let settings = tls::server(&first, ClientCertificates::Ignore).unwrap();
    let settings = Arc::new(Reloadable::new(settings));
    let fixture = Fixture::with(Access::default(), Some(settings.clone())).await;
    let knows = [without_certificate(&first), without_certificate(&second)];
    let ask = |at: usize| status(&fixture, &knows[at], "GET", "/liveness");
    assert_eq!((ask(0).await, ask(1).await), (Some(200), None));
    settings.replace(tls::server(&second, ClientCertificates::Ignore).unwrap());
    assert_eq!((ask(0).await, ask(1).await), (None, Some(200)));
}

#[test]
fn a_key_with_a_password_is_refused_with_what_to_do() {
    let authority = Authority::new();
    let files = authority.self_signed("n1");
    authority.openssl("pkcs8 -topk8 -v2 aes256 -in n1.key -out locked.key -passout pass:secret");
    let locked = TlsFiles {
        key: Some(authority.path("locked.key")),
        ..files
    };
    let error = tls::server(&locked, ClientCertificates::Ignore).unwrap_err();
    let said = error.to_string();
    assert!(
        said.contains("locked.key") && said.contains("openssl pkey"),
        "{said}"
    );
    let missing = TlsFiles {
        certificate: Some(Path::new("/nowhere/n1.crt").to_owned()),
        ..locked
    };
    let error = tls::server(&missing, ClientCertificates::Ignore).unwrap_err();
    assert!(error.to_string().contains("/nowhere/n1.crt"), "{error}");
}

#[tokio::test]
async fn the_allowlist_keeps_strangers_from_changing_things_and_from_nothing_else() {
    let listed = |networks: &[&str], hosts: &[&str], includes_members| Access {
        allowlist: Allowlist {
            networks: networks.iter().filter_map(|n| Network::parse(n)).collect(),
            hosts: hosts.iter().map(|host| (*host).to_owned()).collect(),
            includes_members,
        },
        ..Access::default()
    };
    let fixture = Fixture::with(Access::default(), None).await;
    fixture.publish(as_primary);
    for (access, is_in) in [
        (listed(&[], &[], false), true),
        (listed(&["127.0.0.0/8"], &[], false), true),
        (listed(&["10.0.0.0/8", "127.0.0.1"], &[], false), true),
        (listed(&["10.0.0.0/8"], &[], false), false),
        (listed(&["10.0.0.0/8"], &["localhost"], false), true),
        (listed(&[], &["no-such-host.invalid"], false), false),
        // Members by their hosts, which are none here.
        (listed(&[], &[], true), false),
    ] {
        let shown = format!("{access:?}");
        fixture.access.replace(access);
        let answer = fixture.send("DELETE", "/restart", Value::Null).await;
        let expected = if is_in { 404 } else { 403 };
        assert_eq!(answer.status, expected, "{shown}: {}", answer.text);
        assert_eq!(fixture.get("/primary").await.status, 200, "{shown}");
        let consent = fixture.send("POST", "/failsafe", json!({"name": "n2"}));
        assert_ne!(consent.await.status, 403, "{shown}");
    }
    // A member whose host is this one.
    fixture.publish(|published| {
        let (key, record) = member("n2", "replica");
        let record = record.replace("http://n2:8008", "http://127.0.0.1:8008");
        published.topology = topology(1, &[(FactKey::Leader, "n1"), (key, &record)]);
    });
    fixture.access.replace(listed(&[], &[], true));
    let answer = fixture.send("DELETE", "/restart", Value::Null).await;
    assert_eq!(answer.status, 404, "{}", answer.text);
}

#[tokio::test]
async fn every_answer_carries_the_headers_of_the_file() {
    let header = |name: &'static str, value: &'static str| {
        let name = axum::http::HeaderName::from_static(name);
        (name, axum::http::HeaderValue::from_static(value))
    };
    let access = Access {
        headers: vec![
            header("x-frame-options", "SAMEORIGIN"),
            header("server", "Trunkline"),
        ],
        needs_certificate: true,
        ..Access::default()
    };
    let fixture = Fixture::with(access, None).await;
    for (request, status) in [
        ("GET /liveness", "200"),
        ("HEAD /primary", "503"),
        ("GET /nonsense", "404"),
        ("POST /restart", "403"),
    ] {
        let mut stream = TcpStream::connect(fixture.address).await.unwrap();
        let head = format!("{request} HTTP/1.1\r\nhost: n1\r\nconnection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = String::new();
        let mut stream = BufReader::new(stream);
        tokio::io::AsyncReadExt::read_to_string(&mut stream, &mut answer)
            .await
            .unwrap();
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}")),
            "{answer}"
        );
        assert!(
            answer.contains("x-frame-options: SAMEORIGIN\r\n"),
            "{answer}"
        );
        assert!(answer.contains("server: Trunkline\r\n"), "{answer}");
    }
}
