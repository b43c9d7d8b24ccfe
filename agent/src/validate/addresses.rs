//! Where the member listens, how others reach it, and whether the DCS answers there.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream, lookup_host};
use tokio::time::timeout;

use super::{Asked, Findings};
use crate::config::Address;

/// Longest wait for one member of the DCS.
const CONNECT_LIMIT: Duration = Duration::from_secs(3);

/// Longest wait for the address of a name.
const LOOKUP_LIMIT: Duration = Duration::from_secs(5);

/// Under these a member can be reached by itself alone, as Patroni has them.
const NOBODY_ELSES: [&str; 6] = ["127.0.0.1", "0.0.0.0", "*", "::1", "::", "localhost"];

pub(super) async fn check(findings: &mut Findings<'_>, asked: Asked) {
    let config = findings.config;
    listens(findings, "restapi.listen", &config.restapi.listen, asked).await;
    listens(
        findings,
        "postgresql.listen",
        &config.postgresql.listen,
        asked,
    )
    .await;
    let reached = [
        (
            "restapi.connect_address",
            Some(&config.restapi.connect_address),
        ),
        (
            "postgresql.connect_address",
            Some(&config.postgresql.connect_address),
        ),
        (
            "postgresql.proxy_address",
            config.postgresql.proxy_address.as_ref(),
        ),
    ];
    for (key, address) in reached {
        if let Some(address) = address.filter(|a| NOBODY_ELSES.contains(&a.host.as_str())) {
            findings.mistake(
                key,
                format!(
                    "nobody but this machine reaches {address}; write the address at which the other members \
                     and the clients find it"
                ),
            );
        }
    }
    answers(findings).await;
}

/// Tries to listen where the configuration says, and lets go at once.
async fn listens(findings: &mut Findings<'_>, key: &str, listen: &Address, asked: Asked) {
    for host in listen.host.split(',').map(str::trim) {
        let hosts = match host {
            "*" => vec!["0.0.0.0", "::"],
            host => vec![host],
        };
        for (at, host) in hosts.into_iter().enumerate() {
            let found = resolve(host, listen.port).await;
            let addresses = match found {
                Ok(addresses) => addresses,
                Err(why) => {
                    findings.mistake(key, why);
                    continue;
                }
            };
            for address in addresses {
                let Err(error) = TcpListener::bind(address).await else {
                    continue;
                };
                // A machine without IPv6 listens without it where every address is meant.
                let is_spare = at > 0 && error.kind() != ErrorKind::AddrInUse;
                let is_ignored = asked.ignore_listen_port && error.kind() == ErrorKind::AddrInUse;
                if !is_spare && !is_ignored {
                    findings.mistake(key, refused(address, &error));
                }
            }
        }
    }
}

fn refused(address: SocketAddr, error: &std::io::Error) -> String {
    let port = address.port();
    match error.kind() {
        ErrorKind::AddrInUse => format!(
            "port {port} of {} is in use already; end what listens there, or use -i if it is this member's own",
            address.ip()
        ),
        ErrorKind::AddrNotAvailable => format!(
            "{} is no address of this machine; write one that it has, or 0.0.0.0",
            address.ip()
        ),
        ErrorKind::PermissionDenied => {
            format!("this user may not listen on port {port}; ports below 1024 need privileges")
        }
        _ => format!("cannot listen on {address}: {error}"),
    }
}

async fn resolve(host: &str, port: u16) -> Result<Vec<SocketAddr>, String> {
    match timeout(LOOKUP_LIMIT, lookup_host((host, port))).await {
        Ok(Ok(addresses)) => Ok(addresses.collect()),
        Ok(Err(error)) => Err(format!("{host} has no address: {error}")),
        Err(_) => Err(format!(
            "the address of {host} was not found within {LOOKUP_LIMIT:?}"
        )),
    }
}

/// One silent member of the DCS is what it is made for; a configuration by which none is found is wrong.
async fn answers(findings: &mut Findings<'_>) {
    let hosts = &findings.config.etcd.hosts;
    let mut silent = Vec::new();
    for host in hosts {
        let why = match timeout(CONNECT_LIMIT, TcpStream::connect(host)).await {
            Ok(Ok(_)) => continue,
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {CONNECT_LIMIT:?}"),
        };
        silent.push(format!("{host} is not reachable: {why}"));
    }
    let key = ["hosts", "host", "url"]
        .map(|key| format!("etcd3.{key}"))
        .into_iter()
        .find(|key| findings.config.source.has(key))
        .unwrap_or_else(|| "etcd3".to_owned());
    if silent.len() == hosts.len() {
        findings.mistake(
            &key,
            format!("{}; start etcd, or write where it is", silent.join("; ")),
        );
    } else {
        silent
            .into_iter()
            .for_each(|silent| findings.warn(&key, silent));
    }
}
