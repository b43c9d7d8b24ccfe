//! Agents that ask each other over TLS: the failsafe rounds, the command, and a certificate that is replaced.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use axum::body::Bytes;
use axum::http::Method;
use trunkline_shared::service::http::HttpClient;
use trunkline_shared::service::tls::{self, ServerCheck, TlsFiles};

use super::servers::Servers;
use super::*;

/// A certificate that is its own CA, for one address.
#[expect(
    clippy::disallowed_methods,
    reason = "openssl makes the certificates that the test is about"
)]
fn self_signed(folder: &Path, name: &str, address: &str) {
    let made = std::process::Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
        ])
        .args(["-days", "2", "-subj", &format!("/CN={name}")])
        .args(["-addext", &format!("subjectAltName=IP:{address}")])
        .args([
            "-keyout",
            &format!("{name}.key"),
            "-out",
            &format!("{name}.crt"),
        ])
        .current_dir(folder)
        .output()
        .expect("this test needs openssl: apt-get install openssl");
    assert!(
        made.status.success(),
        "{}",
        String::from_utf8_lossy(&made.stderr)
    );
}

/// Whether member 1 shows a certificate that `ca` vouches for.
async fn shows(agents: &Agents<'_>, ca: &Path) -> Option<u16> {
    let client = trusting(ca);
    let url = format!("https://{}:8008/liveness", agents.config(1).connect_host);
    let asked = client.request(Method::GET, &url, Bytes::new(), PATIENCE);
    asked.await.ok().map(|answer| answer.status)
}

/// A client that trusts `ca` and shows nothing.
fn trusting(ca: &Path) -> HttpClient {
    let files = TlsFiles {
        ca: Some(ca.to_owned()),
        ..TlsFiles::default()
    };
    let tls = tls::client(&files, ServerCheck::IssuerAndName).unwrap();
    HttpClient {
        tls: Some(Arc::new(tls)),
        credentials: None,
    }
}

/// Two agents with certificates of their own, each trusting both.
async fn a_pair<'a>(servers: &'a Servers, cafile: &Path) -> Agents<'a> {
    let mut agents = Agents::new(servers);
    let folder = servers.folder();
    let mut trusted = String::new();
    for index in [1, 2] {
        let name = format!("m{index}");
        self_signed(folder, &name, &agents.config(index).connect_host);
        trusted += &fs::read_to_string(folder.join(format!("{name}.crt"))).unwrap();
    }
    fs::write(cafile, trusted).unwrap();
    for index in [1, 2] {
        agents.restapi = format!(
            ", certfile: {0}/m{index}.crt, keyfile: {0}/m{index}.key, cafile: {1}, verify_client: optional, \
             authentication: {{username: admin, password: secret}}",
            folder.display(),
            cafile.display()
        );
        agents.start(index, 5);
        if index == 1 {
            let door = Postgres::new(agents.config(1)).unwrap();
            leads(&agents, &door, 1).await;
        }
    }
    let replica = Postgres::new(agents.config(2)).unwrap();
    wait_for(
        "a streaming replica",
        || agents.told(),
        async || {
            let status = answer(&replica).await.filter(|s| s.is_in_recovery)?;
            status.receiver.as_ref()?.is_streaming().then_some(())
        },
    )
    .await;
    agents
}

#[test]
fn agents_and_the_command_speak_https_and_a_replaced_certificate_is_taken_up() {
    on_every_major(
        "rest_over_tls::agents_and_the_command_speak_https_and_a_replaced_certificate_is_taken_up",
        async |servers| {
            let folder = servers.folder();
            let cafile = folder.join("trusted.crt");
            let agents = a_pair(servers, &cafile).await;

            // The command shows the agent's certificate and password.
            let said = agents.operate(1, &["restart", "test", "member-2", "--force"]);
            let is_done = said.as_ref().is_ok_and(|said| said.contains("Success"));
            assert!(is_done, "{said:?}");

            goes_on_by_consent(&agents, &cafile).await;

            // Another certificate in the same files: with a reload, and without a word.
            let (old, new) = (folder.join("old.crt"), folder.join("m1.crt"));
            for is_told in [true, false] {
                fs::copy(&new, &old).unwrap();
                assert_eq!(shows(&agents, &old).await, Some(200));
                self_signed(folder, "m1", &agents.config(1).connect_host);
                if is_told {
                    signal(agents.pid(1), Signal::HUP);
                }
                wait_for(
                    "the new certificate",
                    || agents.told(),
                    async || shows(&agents, &new).await.filter(|status| *status == 200),
                )
                .await;
                assert_eq!(shows(&agents, &old).await, None, "told: {is_told}");
            }
        },
    );
}

/// Without etcd member 1 goes on leading by the consent of member 2, which it asks over https.
async fn goes_on_by_consent(agents: &Agents<'_>, cafile: &Path) {
    let url = format!("https://{}:8008/failsafe", agents.config(1).connect_host);
    let client = trusting(cafile);
    wait_for(
        "the failsafe list",
        || agents.told(),
        async || {
            let asked = client.request(Method::GET, &url, Bytes::new(), PATIENCE);
            let list = String::from_utf8_lossy(&asked.await.ok()?.body).into_owned();
            list.contains("member-2").then_some(())
        },
    )
    .await;
    let door = Postgres::new(agents.config(1)).unwrap();
    let postmaster = door.adopt().unwrap();
    agents.freeze_etcd(true);
    let limit = deadline(agents, 1).expect("armed");
    wait_for(
        "a deadline beyond the lease",
        || agents.told(),
        async || {
            // More than a ttl beyond what the lease gave: only a round of consent moves it so far.
            let moved = deadline(agents, 1)?.since(limit);
            (moved > Duration::from_secs(6)).then_some(())
        },
    )
    .await;
    assert_eq!(door.adopt(), Some(postmaster), "PostgreSQL was not touched");
    agents.freeze_etcd(false);
}
