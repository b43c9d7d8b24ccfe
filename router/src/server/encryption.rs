//! TLS towards PostgreSQL: asked for before anything else is said.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use rustls::pki_types::ServerName;
use tokio::io::AsyncReadExt;
use tracing::warn;

use super::Way;
use super::login::{OpenFailed, connect_to};
use crate::protocol::messages::{ENCRYPTION_REFUSED, SSL_REQUEST, TLS_ACCEPTED};
use crate::stream::Stream;
use crate::tls::ServerTls;

/// Connects to PostgreSQL, under TLS as the settings have it; and those settings.
///
/// # Errors
/// It cannot be reached; or TLS is demanded and cannot be had, or the server is not trusted.
pub(super) async fn reach(way: &Way) -> Result<(Stream, Arc<ServerTls>), OpenFailed> {
    let tls = way.in_force.current().server.clone();
    let mut stream = connect(way).await?;
    match encrypt(&mut stream, &way.address, &tls).await {
        // As libpq does: what is only preferred keeps nobody from his data.
        Err(OpenFailed::Handshake(why)) if !tls.is_required() => {
            warn!(member = %way.member, "spoken to in the clear (tls.server.mode), since TLS cannot be begun: {why}");
            Ok((connect(way).await?, tls))
        }
        Err(why) => Err(why),
        Ok(()) => Ok((stream, tls)),
    }
}

async fn connect(way: &Way) -> Result<Stream, OpenFailed> {
    let socket = connect_to(&way.places).await;
    let socket = socket.map_err(|error| OpenFailed::Unreachable(Arc::new(error)))?;
    Ok(Stream::from(socket))
}

/// Begins TLS on a new connection to this address, as the settings have it.
///
/// # Errors
/// It is demanded and cannot be had, or the server is not trusted.
pub(super) async fn encrypt(
    stream: &mut Stream,
    address: &str,
    tls: &ServerTls,
) -> Result<(), OpenFailed> {
    let Some(settings) = tls.settings() else {
        return Ok(());
    };
    let broken = |_| OpenFailed::Broken;
    stream.send(SSL_REQUEST).await.map_err(broken)?;
    // One byte is read and no more: what follows it belongs to the handshake, or was put there by somebody else. An
    // error message in the clear is anybody's too, and is not shown.
    let answer = stream.read_u8().await.map_err(broken)?;
    if answer == ENCRYPTION_REFUSED[0] {
        return match tls.is_required() {
            true => Err(OpenFailed::NoTls),
            false => Ok(()),
        };
    }
    if answer != TLS_ACCEPTED {
        return Err(OpenFailed::Broken);
    }
    let place = stream.socket().peer_addr().map_err(broken)?.ip();
    let name = server_name(address, place);
    let shaken = stream.connect(settings.clone(), name).await;
    shaken.map_err(|why| refused(&why))
}

/// Why a connection under TLS failed. What TLS itself finds wrong stays so until somebody changes something; a
/// connection that ended or was reset is a server that stops, and the next one is waited for.
pub(super) fn refused(why: &io::Error) -> OpenFailed {
    if why.kind() != io::ErrorKind::InvalidData {
        return OpenFailed::Broken;
    }
    let why = why.to_string();
    let advice = if why.contains("UnsupportedCertVersion") {
        "; it is a certificate of version 1, which only modes below verify-ca take: make it anew with a \
         subjectAltName (openssl x509 -req -extfile)"
    } else if why.contains("HandshakeFailure") || why.contains("BadSignature") {
        "; use a key of ECDSA P-256 or P-384, or of RSA with 2048 bits or more, and TLS 1.2 or 1.3"
    } else {
        ""
    };
    OpenFailed::Handshake(format!("{why}{advice}"))
}

/// The name that the server's certificate must have: the host of the member's record. What cannot be a name is
/// checked as the address it led to.
fn server_name(address: &str, place: IpAddr) -> ServerName<'static> {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    ServerName::try_from(host.to_owned()).unwrap_or(ServerName::IpAddress(place.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_tls_itself_refuses_is_lasting() {
        let refused = |kind| refused(&io::Error::new(kind, "why")).is_lasting();
        assert!(refused(io::ErrorKind::InvalidData));
        for passing in [
            io::ErrorKind::UnexpectedEof,
            io::ErrorKind::ConnectionReset,
            io::ErrorKind::BrokenPipe,
            io::ErrorKind::TimedOut,
        ] {
            assert!(!refused(passing), "{passing}");
        }
    }

    #[test]
    fn the_name_is_the_host_of_the_record() {
        let place = IpAddr::from([10, 0, 0, 9]);
        for (address, name) in [
            ("db1.example.com:5432", "db1.example.com"),
            ("10.0.0.1:5432", "10.0.0.1"),
            ("[::1]:5432", "::1"),
            ("no name:5432", "10.0.0.9"),
        ] {
            assert_eq!(server_name(address, place).to_str(), name);
        }
    }
}
