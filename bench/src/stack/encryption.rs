//! TLS on both sides of a stack's router: one certificate for all who show one.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::Signal;
use trunkline_shared::service::clock;

use super::process::find;
use super::{APP, Stack};

const LIMIT: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(50);

/// The files of the certificate that everybody shows.
#[derive(Clone, Debug)]
pub struct Certificate {
    /// In PEM.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

impl Certificate {
    /// A new one, of the kind that is common for PostgreSQL: ECDSA on P-256, signed by itself.
    async fn make(stack: &Stack) -> Result<Self> {
        let openssl = find("openssl").context("openssl is missing: apt-get install openssl")?;
        let (cert, key) = (
            stack.folder().join("tls.crt"),
            stack.folder().join("tls.key"),
        );
        let (cert_file, key_file) = (cert.to_string_lossy(), key.to_string_lossy());
        let words = [
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-days",
            "2",
            "-subj",
            "/CN=bench",
            "-addext",
            "subjectAltName=DNS:bench",
            "-keyout",
            &key_file,
            "-out",
            &cert_file,
        ];
        stack.tool(&openssl, &words).finish(LIMIT).await?;
        Ok(Self { cert, key })
    }
}

/// What tells libpq, and drivers that do as it does, whether to encrypt.
pub fn of_libpq(is_on: bool) -> (String, String) {
    let mode = if is_on { "require" } else { "disable" };
    ("PGSSLMODE".to_owned(), mode.to_owned())
}

/// Waits until the load's user gets a session there, encrypted or in the clear.
pub async fn until_open(stack: &Stack, host: &str, port: u16, is_encrypted: bool) -> Result<()> {
    let deadline = clock::now() + LIMIT;
    let port = port.to_string();
    let words = ["-h", host, "-p", &port, "-U", APP, "-c", "SELECT 1", APP];
    loop {
        let mut asked = stack.client_program("psql", &words);
        asked.env.push(of_libpq(is_encrypted));
        let Err(error) = asked.finish(LIMIT).await else {
            return Ok(());
        };
        if clock::now() >= deadline {
            return Err(error);
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// PostgreSQL and the router of a running stack go over to TLS, which both of them do without a restart.
pub async fn turn_on(stack: &Stack, leader: usize) -> Result<Certificate> {
    let own = Certificate::make(stack).await?;
    let (cert, key) = (own.cert.display(), own.key.display());
    let direct = stack.members[leader].sql(APP).await?;
    for setting in [
        format!("ssl_cert_file = '{cert}'"),
        format!("ssl_key_file = '{key}'"),
        "ssl = on".to_owned(),
    ] {
        direct
            .batch_execute(&format!("ALTER SYSTEM SET {setting}"))
            .await?;
    }
    direct.batch_execute("SELECT pg_reload_conf()").await?;
    let file = &stack.router.config;
    let text = std::fs::read_to_string(file)?;
    let tls = format!(
        "tls: {{client: {{mode: require, cert: {cert}, key: {key}}}, server: {{mode: require}}}}\n"
    );
    stack.write("r1/router.yml", &(text + &tls))?;
    stack.router.id()?.signal(Signal::HUP);
    Ok(own)
}
