//! The users that the router knows: PgBouncer's `userlist.txt`, `"name" "secret"` on each line.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use secrecy::ExposeSecret;

use crate::auth::Secret;
use crate::auth::md5::Md5Secret;
use crate::auth::scram::Verifier;

/// The longest name, bytes: PostgreSQL's NAMEDATALEN less one, with room for PgBouncer's longer ones.
const MAX_NAME: usize = 127;
/// The longest secret, bytes: PgBouncer's limit.
const MAX_SECRET: usize = 2047;

/// One user.
#[derive(Debug)]
pub struct User {
    secret: Secret,
    /// Made once of a plain password, since that takes thousands of hashes.
    verifier: OnceLock<Arc<Verifier>>,
}

impl User {
    fn new(secret: Secret) -> Self {
        Self {
            secret,
            verifier: OnceLock::new(),
        }
    }

    /// What is kept of the password.
    pub fn secret(&self) -> &Secret {
        &self.secret
    }

    /// What a SCRAM exchange is checked against; `None` for an MD5 secret. The salt of one that is made here
    /// comes from this process's own secret.
    pub fn verifier(&self, salt_from: &[u8; 32]) -> Option<Arc<Verifier>> {
        match &self.secret {
            Secret::Scram(verifier) => Some(verifier.clone()),
            Secret::Md5(_) => None,
            Secret::Plain(password) => {
                let make =
                    || Arc::new(Verifier::derive(password.expose_secret(), &salt_from[..16]));
                Some(self.verifier.get_or_init(make).clone())
            }
        }
    }
}

/// All users, by name.
#[derive(Debug, Default)]
pub struct Users {
    by_name: BTreeMap<Box<str>, Arc<User>>,
}

/// A line of the file cannot be read. The line is not shown: it holds a secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {why}; a line is \"name\" \"secret\"")]
pub struct BadLine {
    /// Its number, from one.
    pub line: usize,
    /// What is wrong.
    pub why: &'static str,
}

impl Users {
    /// Reads the text of a file. Empty lines, and those that begin with `;`, are skipped; what follows the
    /// secret is ignored; of two lines with one name the later counts. As in PgBouncer.
    ///
    /// # Errors
    /// The first line that cannot be read.
    pub fn parse(text: &str) -> Result<Self, BadLine> {
        let mut users = Self::default();
        for (at, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with(';') {
                continue;
            }
            let (name, secret) = fields(line).map_err(|why| BadLine { line: at + 1, why })?;
            users
                .by_name
                .insert(name.into(), Arc::new(User::new(kind_of(secret))));
        }
        Ok(users)
    }

    /// The user of this name.
    pub fn find(&self, name: &str) -> Option<&Arc<User>> {
        self.by_name.get(name)
    }

    /// Whether any secret is a SCRAM verifier.
    pub fn has_scram(&self) -> bool {
        let mut users = self.by_name.values();
        users.any(|user| matches!(user.secret, Secret::Scram(_)))
    }
}

fn kind_of(secret: String) -> Secret {
    if let Some(md5) = Md5Secret::parse(&secret) {
        Secret::Md5(md5)
    } else if let Some(verifier) = Verifier::parse(&secret) {
        Secret::Scram(Arc::new(verifier))
    } else {
        Secret::Plain(secret.into())
    }
}

fn fields(line: &str) -> Result<(String, String), &'static str> {
    let (name, rest) = quoted(line).ok_or("the name is not in double quotes")?;
    let (secret, _) = quoted(rest.trim_start()).ok_or("the secret is not in double quotes")?;
    if name.is_empty() || name.len() > MAX_NAME {
        return Err("the name is empty or longer than 127 bytes");
    }
    if secret.len() > MAX_SECRET {
        return Err("the secret is longer than 2047 bytes");
    }
    Ok((name, secret))
}

/// A text in double quotes, in which two of them stand for one; and what follows it.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut rest = text.strip_prefix('"')?;
    let mut content = String::new();
    loop {
        let (part, after) = rest.split_once('"')?;
        content.push_str(part);
        match after.strip_prefix('"') {
            Some(more) => {
                content.push('"');
                rest = more;
            }
            None => return Some((content, after)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_read_as_pgbouncer_reads_it() {
        let text = "; users\n\n\"app\" \"secret\"\n\"we\"\"ird\" \"p\"\"w\" more\n\
                    \"old\" \"md5a5e3d8f0a5e3d8f0a5e3d8f0a5e3d8f0\"\n\"app\" \"later\"\n";
        let users = Users::parse(text).unwrap();
        let plain = |name: &str| match users.find(name).unwrap().secret() {
            Secret::Plain(password) => password.expose_secret().to_owned(),
            other @ (Secret::Md5(_) | Secret::Scram(_)) => format!("{other:?}"),
        };
        assert_eq!(plain("app"), "later");
        assert_eq!(plain("we\"ird"), "p\"w");
        assert_eq!(plain("old"), "Secret(md5)");
        assert!(users.find("nobody").is_none() && !users.has_scram());
    }

    #[test]
    fn a_line_that_cannot_be_read_is_named_and_not_shown() {
        for (text, said) in [
            ("app hunter2\n", "line 1: the name is not"),
            ("\"app\" hunter2\n", "line 1: the secret is not"),
            ("\n\"app\" \"hunter2\n", "line 2: the secret is not"),
            ("\"\" \"hunter2\"\n", "line 1: the name is empty"),
        ] {
            let error = Users::parse(text).unwrap_err().to_string();
            assert!(error.starts_with(said), "{error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn nothing_of_a_secret_is_in_the_debug_form() {
        let users = Users::parse("\"app\" \"hunter2\"\n").unwrap();
        users.find("app").unwrap().verifier(&[7; 32]);
        assert!(!format!("{users:?}").contains("hunter2"));
    }
}
