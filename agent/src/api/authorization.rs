//! Basic authentication of unsafe methods, compared in constant time.

use axum::http::{HeaderMap, header};
use axum::response::Response;
use secrecy::ExposeSecret;

use super::with_status;
use crate::config::RestCredentials;

/// The answer to a request that may not pass; `None` lets it pass.
pub fn refusal(headers: &HeaderMap, wanted: Option<&RestCredentials>) -> Option<Response> {
    let wanted = wanted?;
    let given = headers
        .get(header::AUTHORIZATION)
        .map_or(&b""[..], |value| value.as_bytes());
    let expected = basic(&wanted.username, wanted.password.expose_secret());
    if is_equal(given, expected.as_bytes()) {
        return None;
    }
    let text = if given.is_empty() {
        "no credentials: this method needs the user and password of restapi.authentication"
    } else {
        "wrong user or password"
    };
    let mut response = with_status(401, "text/plain", text.to_owned());
    let value = header::HeaderValue::from_static("Basic realm=\"trunkline\"");
    response
        .headers_mut()
        .insert(header::WWW_AUTHENTICATE, value);
    Some(response)
}

/// The value of the `Authorization` header for a user and a password.
pub fn basic(username: &str, password: &str) -> String {
    format!(
        "Basic {}",
        base64(format!("{username}:{password}").as_bytes())
    )
}

/// Takes as long for a wrong first byte as for a wrong last one. Only the length shows.
fn is_equal(given: &[u8], expected: &[u8]) -> bool {
    if given.len() != expected.len() {
        return false;
    }
    let difference = given
        .iter()
        .zip(expected)
        .fold(0u8, |sum, (a, b)| sum | (a ^ b));
    std::hint::black_box(difference) == 0
}

fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let group = chunk
            .iter()
            .chain([0, 0].iter())
            .take(3)
            .fold(0u32, |group, byte| group << 8 | u32::from(*byte));
        for at in 0..4 {
            if at <= chunk.len() {
                let index = usize::from((group >> (18 - 6 * at)) as u8 & 0x3F);
                text.push(char::from(LETTERS[index]));
            } else {
                text.push('=');
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_rfc_4648() {
        for (plain, coded) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(plain.as_bytes()), coded);
        }
    }
}
