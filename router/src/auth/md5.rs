//! PostgreSQL's MD5 authentication: `md5(md5(password + user) + salt)`.

use std::fmt::{self, Write};

use md5::{Digest, Md5};

/// `md5` of password and user, in hexadecimal: what PostgreSQL stores after the word `md5`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Md5Secret([u8; 32]);

impl fmt::Debug for Md5Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Md5Secret")
    }
}

impl Md5Secret {
    /// From the password.
    pub fn derive(user: &str, password: &str) -> Self {
        Self(hexadecimal(&[password.as_bytes(), user.as_bytes()]))
    }

    /// Reads PostgreSQL's stored form.
    pub fn parse(stored: &str) -> Option<Self> {
        let digits = <[u8; 32]>::try_from(stored.strip_prefix("md5")?.as_bytes()).ok()?;
        let are_digits = digits.iter().all(u8::is_ascii_hexdigit);
        are_digits.then_some(Self(digits.map(|d| d.to_ascii_lowercase())))
    }

    /// What a client that knows the secret answers to this salt.
    pub fn response(&self, salt: [u8; 4]) -> String {
        let mut response = "md5".to_owned();
        for digit in hexadecimal(&[&self.0, &salt]) {
            response.push(char::from(digit));
        }
        response
    }
}

fn hexadecimal(parts: &[&[u8]]) -> [u8; 32] {
    let mut hash = Md5::new();
    for part in parts {
        hash.update(part);
    }
    let mut text = String::with_capacity(32);
    for byte in hash.finalize() {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
    }
    let mut digits = [b'0'; 32];
    digits.copy_from_slice(text.as_bytes());
    digits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_is_that_of_a_known_library() {
        let salt = [0x2a, 0x3d, 0x8f, 0xe0];
        let secret = Md5Secret::derive("md5_user", "password");
        assert_eq!(secret.response(salt), "md562af4dd09bbb41884907a838a3233294");
    }

    #[test]
    fn only_the_stored_form_is_read() {
        let stored = "md5A5E3D8F0a5e3d8f0a5e3d8f0a5e3d8f0";
        assert!(Md5Secret::parse(stored).is_some());
        assert!(Md5Secret::parse(&stored[..34]).is_none());
        assert!(Md5Secret::parse("md5g5e3d8f0a5e3d8f0a5e3d8f0a5e3d8f0").is_none());
        assert_eq!(format!("{:?}", Md5Secret::derive("a", "b")), "Md5Secret");
    }
}
