//! The secret from which the answers to unknown users are derived: by one rule for each name, so that they tell
//! nothing, and are the same whenever the secret is. Pure.

use std::fmt;

use ring::digest::{SHA256, digest};

/// The shortest text that a secret is made of, characters: nobody who sees answers may find it by trying.
const SHORTEST: usize = 32;

/// Such a secret.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct MockSecret([u8; 32]);

impl MockSecret {
    /// Of random bytes: for one process.
    pub fn of_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Of a text: for whoever knows it. `None` if that is too short.
    pub fn of_text(text: &str) -> Option<Self> {
        let hash = digest(&SHA256, format!("trunkline mock secret\0{text}").as_bytes());
        let is_long = text.chars().count() >= SHORTEST;
        let bytes = hash.as_ref().try_into().ok()?;
        is_long.then_some(Self(bytes))
    }

    /// The key of the derivations.
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for MockSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MockSecret")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_text_is_one_secret_and_a_short_one_is_none() {
        let text = "correct horse battery staple, and 1 more";
        let own = MockSecret::of_text(text).unwrap();
        assert!(MockSecret::of_text(text) == Some(own));
        assert!(MockSecret::of_text(&text.replace('1', "2")) != Some(own));
        assert!(MockSecret::of_text(&"x".repeat(SHORTEST - 1)).is_none());
        assert!(MockSecret::of_text(&"x".repeat(SHORTEST)).is_some());
        assert_eq!(format!("{own:?}"), "MockSecret");
    }
}
