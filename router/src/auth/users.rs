//! The users that the router knows: PgBouncer's `userlist.txt`, `"name" "secret"` on each line.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use secrecy::ExposeSecret;

use crate::auth::md5::Md5Secret;
use crate::auth::scram::{SALT, STORED_PREFIX, Shape, Verifier, labelled, salt_for};
use crate::auth::{Credential, Method, Secret};

/// The longest name, bytes: PostgreSQL's NAMEDATALEN less one, with room for PgBouncer's longer ones.
pub const MAX_NAME: usize = 127;
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

    /// One by what PostgreSQL, or the file, keeps of the password.
    ///
    /// # Errors
    /// It cannot be used.
    pub fn read(name: &str, secret: String) -> Result<Self, &'static str> {
        Ok(Self::new(kind_of(name, secret)?))
    }

    /// One who cannot prove itself by a password.
    pub fn without_password() -> Self {
        Self::new(Secret::Empty)
    }

    /// How the router logs in as this user, who has proved nothing.
    pub fn credential(&self) -> Credential {
        match &self.secret {
            Secret::Plain(password) => {
                Credential::Plain(password.expose_secret().to_owned().into())
            }
            Secret::Md5(secret) => Credential::Md5(*secret),
            Secret::Scram(_) | Secret::Empty => Credential::Nothing,
        }
    }

    /// What is kept of the password.
    pub fn secret(&self) -> &Secret {
        &self.secret
    }

    /// What a SCRAM exchange is checked against; `None` where there is nothing to check. The salt of one that
    /// is made here comes from the name and this process's own secret.
    pub fn verifier(&self, name: &str, mock: &[u8; 32]) -> Option<Arc<Verifier>> {
        match &self.secret {
            Secret::Scram(verifier) => Some(verifier.clone()),
            Secret::Md5(_) | Secret::Empty => None,
            Secret::Plain(password) => {
                let make = || {
                    let salt = salt_for(name, mock, SALT);
                    Arc::new(Verifier::derive(password.expose_secret(), &salt))
                };
                Some(self.verifier.get_or_init(make).clone())
            }
        }
    }

    /// How the user's exchange looks to somebody who has proved nothing: `None` if as that of nobody.
    fn look(&self, method: Method) -> Option<Look> {
        match (method, &self.secret) {
            (Method::Trust | Method::Cert, _) | (_, Secret::Empty) => None,
            (Method::ScramSha256, Secret::Md5(_)) => None,
            (Method::ScramSha256, Secret::Plain(_)) => Some(Look::Scram(Shape::default())),
            (Method::Md5, Secret::Md5(_) | Secret::Plain(_)) => Some(Look::Md5),
            (_, Secret::Scram(verifier)) => Some(Look::Scram(verifier.shape())),
        }
    }
}

/// How an exchange looks to somebody who has proved nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Look {
    /// A salt of four random bytes.
    Md5,
    /// The user's salt and iterations.
    Scram(Shape),
}

/// All users, by name.
#[derive(Debug, Default)]
pub struct Users {
    by_name: BTreeMap<Box<str>, Arc<User>>,
    /// How the exchanges of the users look by `md5` and by `scram-sha-256`, in order.
    looks: [Vec<Look>; 2],
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
            let secret = kind_of(&name, secret).map_err(|why| BadLine { line: at + 1, why })?;
            let user = Arc::new(User::new(secret));
            users.by_name.insert(name.into(), user);
        }
        users.looks = [Method::Md5, Method::ScramSha256].map(|method| {
            let each = users.by_name.values();
            let mut looks: Vec<Look> = each.filter_map(|user| user.look(method)).collect();
            looks.sort_unstable();
            looks
        });
        Ok(users)
    }

    /// Makes what log-ins by `scram-sha-256` are checked against, before anybody comes: the first log-in of a
    /// user must not take longer than that of nobody. What `earlier` has made of the same passwords is taken
    /// over; each other one costs about a millisecond.
    pub fn derive(&self, mock: &[u8; 32], earlier: Option<&Self>) {
        for (name, user) in &self.by_name {
            let Secret::Plain(password) = &user.secret else {
                continue;
            };
            let before = earlier.and_then(|earlier| earlier.find(name));
            let before = before.filter(|before| match &before.secret {
                Secret::Plain(old) => old.expose_secret() == password.expose_secret(),
                Secret::Md5(_) | Secret::Scram(_) | Secret::Empty => false,
            });
            if let Some(made) = before.and_then(|before| before.verifier.get()) {
                // One that is there already is the same one.
                let _ = user.verifier.set(made.clone());
            }
            user.verifier(name, mock);
        }
    }

    /// How the exchange of a user who is not in the file looks: as that of one who is, chosen by the name and
    /// in the proportions of the file. A file that changes a little changes few of these answers.
    pub fn mock_look(&self, method: Method, name: &str, mock: &[u8; 32]) -> Look {
        let (looks, none) = match method {
            Method::Md5 => (&self.looks[0], Look::Md5),
            Method::ScramSha256 | Method::Trust | Method::Cert => {
                (&self.looks[1], Look::Scram(Shape::default()))
            }
        };
        let [a, b, c, d, ..] = labelled(mock, "look", name);
        let chosen = u64::from(u32::from_be_bytes([a, b, c, d]));
        let count = u64::try_from(looks.len()).unwrap_or(u64::MAX);
        let at = usize::try_from(chosen.saturating_mul(count) >> 32).unwrap_or(usize::MAX);
        looks.get(at).copied().unwrap_or(none)
    }

    /// The names of all.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.by_name.keys().map(AsRef::as_ref)
    }

    /// The user of this name.
    pub fn find(&self, name: &str) -> Option<&Arc<User>> {
        self.by_name.get(name)
    }
}

fn kind_of(name: &str, secret: String) -> Result<Secret, &'static str> {
    // PostgreSQL keeps no empty password, hashed or not, and lets nobody in by one.
    Ok(if secret.is_empty() {
        Secret::Empty
    } else if let Some(md5) = Md5Secret::parse(&secret) {
        match md5 == Md5Secret::derive(name, "") {
            true => Secret::Empty,
            false => Secret::Md5(md5),
        }
    } else if let Some(verifier) = Verifier::parse(&secret) {
        Secret::Scram(Arc::new(verifier))
    } else if secret.starts_with(STORED_PREFIX) {
        // Taken for a password, the verifier itself would let its reader in.
        return Err(
            "the secret begins as a SCRAM-SHA-256 verifier and is none with at most 100000 iterations",
        );
    } else {
        Secret::Plain(secret.into())
    })
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
            other @ (Secret::Md5(_) | Secret::Scram(_) | Secret::Empty) => format!("{other:?}"),
        };
        assert_eq!(plain("app"), "later");
        assert_eq!(plain("we\"ird"), "p\"w");
        assert_eq!(plain("old"), "Secret(md5)");
        assert!(users.find("nobody").is_none());
    }

    #[test]
    fn a_line_that_cannot_be_read_is_named_and_not_shown() {
        for (text, said) in [
            ("app hunter2\n", "line 1: the name is not"),
            ("\"app\" hunter2\n", "line 1: the secret is not"),
            ("\n\"app\" \"hunter2\n", "line 2: the secret is not"),
            ("\"\" \"hunter2\"\n", "line 1: the name is empty"),
            (
                "\"app\" \"SCRAM-SHA-256$200000:hunter2\"\n",
                "line 1: the secret begins as a SCRAM-SHA-256 verifier",
            ),
        ] {
            let error = Users::parse(text).unwrap_err().to_string();
            assert!(error.starts_with(said), "{error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn nothing_of_a_secret_is_in_the_debug_form() {
        let users = Users::parse("\"app\" \"hunter2\"\n").unwrap();
        users.find("app").unwrap().verifier("app", &[7; 32]);
        assert!(!format!("{users:?}").contains("hunter2"));
    }

    #[test]
    fn what_log_ins_are_checked_against_is_made_before_anybody_comes() {
        let users = Users::parse("\"p\" \"pw\"\n\"q\" \"old\"\n").unwrap();
        users.derive(&[7; 32], None);
        let made = |users: &Users, name: &str| {
            let user = users.find(name).unwrap();
            user.verifier.get().cloned().unwrap()
        };
        let reloaded = Users::parse("\"p\" \"pw\"\n\"q\" \"new\"\n").unwrap();
        reloaded.derive(&[7; 32], Some(&users));
        // Not made again of the same password, and not kept of another.
        assert!(Arc::ptr_eq(&made(&users, "p"), &made(&reloaded, "p")));
        assert!(made(&users, "q") != made(&reloaded, "q"));
    }
}
