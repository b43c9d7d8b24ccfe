//! TLS on both sides of every way: one certificate for all, and the settings of each.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::Signal;

use crate::stack::process::find;
use crate::stack::{APP, Stack};

const LIMIT: Duration = Duration::from_secs(30);

/// The files of the certificate that everybody shows.
#[derive(Clone, Debug)]
pub struct Certificate {
    pub cert: PathBuf,
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
