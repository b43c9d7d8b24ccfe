//! TLS towards PostgreSQL: asked for before anything else is said.

use std::net::IpAddr;

use rustls::pki_types::ServerName;
use tokio::io::AsyncReadExt;

use super::Way;
use super::login::OpenFailed;
use crate::protocol::messages::{ENCRYPTION_REFUSED, SSL_REQUEST, TLS_ACCEPTED};
use crate::stream::Stream;

/// Begins TLS on a new connection, as the settings have it.
///
/// # Errors
/// It is demanded and cannot be had, or the server is not trusted.
pub(super) async fn encrypt(stream: &mut Stream, way: &Way) -> Result<(), OpenFailed> {
    let tls = way.tls.current();
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
    let name = server_name(&way.address, place);
    let shaken = stream.connect(settings.clone(), name).await;
    shaken.map_err(|why| OpenFailed::Handshake(why.to_string()))
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
