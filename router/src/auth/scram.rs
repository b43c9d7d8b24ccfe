//! SCRAM-SHA-256 (RFC 5802, RFC 7677) as PostgreSQL speaks it, both sides, and bound to the server's certificate
//! under TLS (`-PLUS`).
//!
//! A client's proof is its ClientKey, hidden by a signature that the verifier's StoredKey makes: who knows
//! the verifier can take the key out of a right proof. With it the router logs in to a PostgreSQL that holds
//! the same verifier, and nobody ever needs the password.

use std::fmt;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::{digest, hmac, pbkdf2};
use secrecy::{ExposeSecret, SecretString};
use subtle::ConstantTimeEq;

use crate::auth::certificate::Binding;
use crate::auth::{Malformed, RANDOM_BYTES};

/// The most iterations that are accepted, of a server's offer or in a verifier: each costs a hash, and a
/// malicious server could ask for billions. 24 times PostgreSQL's default, as in pgjdbc and rust-postgres.
pub const MAX_ITERATIONS: u32 = 100_000;
/// Iterations of verifiers made here: PostgreSQL's default.
pub const ITERATIONS: u32 = 4096;
/// The longest message of an exchange, bytes: PostgreSQL's own limit for a password message is the same.
pub const MAX_MESSAGE: usize = 1024;
/// The longest salt, bytes.
const MAX_SALT: usize = 256;
/// The salt of verifiers made here, bytes: PostgreSQL's.
pub const SALT: usize = 16;
/// What every stored verifier begins with.
pub const STORED_PREFIX: &str = "SCRAM-SHA-256$";

/// The names of the mechanisms, as they go over the wire.
const PLAIN: &[u8] = b"SCRAM-SHA-256\0";
const PLUS: &[u8] = b"SCRAM-SHA-256-PLUS\0";

type Hash = [u8; 32];

/// ClientKey and ServerKey: whoever has them can log in as the user.
#[derive(Clone, PartialEq, Eq)]
pub struct Keys {
    client: Hash,
    server: Hash,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keys")
    }
}

/// What PostgreSQL stores of a password: `SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>`.
#[derive(Clone, PartialEq, Eq)]
pub struct Verifier {
    iterations: NonZeroU32,
    salt: Vec<u8>,
    stored: Hash,
    server: Hash,
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Verifier")
    }
}

impl Verifier {
    /// Reads PostgreSQL's stored form.
    pub fn parse(stored: &str) -> Option<Self> {
        let rest = stored.strip_prefix(STORED_PREFIX)?;
        let (cost, keys) = rest.split_once('$')?;
        let (iterations, salt) = cost.split_once(':')?;
        let (stored, server) = keys.split_once(':')?;
        let iterations: NonZeroU32 = iterations.parse().ok()?;
        let salt = STANDARD.decode(salt).ok()?;
        let is_sane = iterations.get() <= MAX_ITERATIONS && (1..=MAX_SALT).contains(&salt.len());
        is_sane.then_some(Self {
            iterations,
            salt,
            stored: hash_of(stored)?,
            server: hash_of(server)?,
        })
    }

    /// Makes one from a password. Costs [`ITERATIONS`] hashes.
    pub fn derive(password: &str, salt: &[u8]) -> Self {
        let iterations = Shape::default().iterations;
        let keys = Keys::derive(password, salt, iterations);
        Self {
            iterations,
            salt: salt.to_vec(),
            stored: sha256(&keys.client),
            server: keys.server,
        }
    }

    /// What an unknown user is answered with: the same at every attempt, so that it looks like a user, and
    /// proved by nothing.
    pub fn mock(user: &str, secret: &[u8; 32], shape: Shape) -> Self {
        Self {
            iterations: shape.iterations,
            salt: salt_for(user, secret, shape.salt_length),
            stored: labelled(secret, "stored", user),
            server: labelled(secret, "server", user),
        }
    }

    /// What a client sees of it before it has proved anything.
    pub fn shape(&self) -> Shape {
        Shape {
            iterations: self.iterations,
            salt_length: self.salt.len(),
        }
    }
}

/// What a verifier shows of itself to anybody who names its user. Mocks take theirs from the users of the
/// file, or those who differ from PostgreSQL's default would be known for real.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Shape {
    iterations: NonZeroU32,
    salt_length: usize,
}

impl Default for Shape {
    /// PostgreSQL's, and that of verifiers made here.
    fn default() -> Self {
        Self {
            iterations: NonZeroU32::new(ITERATIONS).unwrap_or(NonZeroU32::MIN),
            salt_length: SALT,
        }
    }
}

/// The salt of a user whose verifier is made here or does not exist: by one rule, so that it tells nothing.
pub fn salt_for(user: &str, secret: &[u8; 32], length: usize) -> Vec<u8> {
    let mut salt = labelled(secret, "salt", user).to_vec();
    while salt.len() < length {
        let more = sign(secret, &salt);
        salt.extend_from_slice(&more);
    }
    salt.truncate(length);
    salt
}

/// A hash of a name that nobody without the secret can make, another for each label. No label is the
/// beginning of another.
pub fn labelled(secret: &[u8; 32], label: &str, name: &str) -> Hash {
    sign(secret, format!("{label}:{name}").as_bytes())
}

impl Keys {
    fn derive(password: &str, salt: &[u8], iterations: NonZeroU32) -> Self {
        // As PostgreSQL and libpq: what cannot be normalised, or of which nothing would be left, is used as
        // it is.
        let normal = stringprep::saslprep(password);
        let normal = normal.ok().filter(|normal| !normal.is_empty());
        let normal = normal.as_deref().unwrap_or(password).as_bytes();
        let mut salted = [0; 32];
        pbkdf2::derive(
            pbkdf2::PBKDF2_HMAC_SHA256,
            iterations,
            salt,
            normal,
            &mut salted,
        );
        Self {
            client: sign(&salted, b"Client Key"),
            server: sign(&salted, b"Server Key"),
        }
    }
}

/// The client was not shown that binding is offered: somebody may be between. PostgreSQL's words.
pub const NOT_NEGOTIATED: Malformed = Malformed("SCRAM channel binding negotiation error");
/// The client was shown another certificate: somebody is between. PostgreSQL's words.
pub const NOT_BOUND: Malformed = Malformed("SCRAM channel binding check failed");

/// One exchange, on the side of the server.
pub struct ServerExchange {
    verifier: Arc<Verifier>,
    is_known: bool,
    nonce: String,
    /// What may be bound to; under TLS.
    binding: Option<Binding>,
    /// The client has chosen `-PLUS`.
    is_bound: bool,
    /// The client's header, such as `n,,`.
    header: String,
    /// First messages of both sides, joined.
    spoken: String,
}

impl ServerExchange {
    /// Begins. Where the user is not known every proof is wrong.
    pub fn new(verifier: Arc<Verifier>, is_known: bool, random: &[u8; RANDOM_BYTES]) -> Self {
        Self {
            verifier,
            is_known,
            nonce: STANDARD.encode(random),
            binding: None,
            is_bound: false,
            header: String::new(),
            spoken: String::new(),
        }
    }

    /// Offers to bind the exchange, where there is something to bind it to.
    pub fn offering(mut self, binding: Option<Binding>) -> Self {
        self.binding = binding;
        self
    }

    /// The mechanisms that are offered, each ended by a zero byte.
    pub fn mechanisms(&self) -> &'static [u8] {
        match self.binding {
            Some(_) => b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0",
            None => PLAIN,
        }
    }

    /// Takes the mechanism that the client has chosen. Whether it was offered.
    pub fn choose(&mut self, mechanism: &[u8]) -> bool {
        self.is_bound = mechanism == PLUS && self.binding.is_some();
        self.is_bound || mechanism == PLAIN
    }

    /// What a client says of binding must fit what it was offered and has chosen: one that was shown less than
    /// was offered has somebody between.
    fn judge(&self, flag: &str) -> Result<(), Malformed> {
        match (flag, self.is_bound) {
            ("n", false) => Ok(()),
            ("y", false) if self.binding.is_none() => Ok(()),
            ("y", false) => Err(NOT_NEGOTIATED),
            ("p=tls-server-end-point", true) => Ok(()),
            ("n" | "y", true) => Err(Malformed("SCRAM-SHA-256-PLUS without channel binding")),
            (_, false) => Err(Malformed("channel binding is not part of what was chosen")),
            (_, true) => Err(Malformed(
                "another channel binding than tls-server-end-point",
            )),
        }
    }

    /// Takes the client's first message and returns the server's.
    ///
    /// # Errors
    /// It is not such a message.
    pub fn first(&mut self, message: &[u8]) -> Result<String, Malformed> {
        let message = text(message)?;
        let mut parts = message.splitn(3, ',');
        let (binding, identity, bare) = (parts.next(), parts.next(), parts.next());
        self.judge(binding.ok_or(Malformed("an empty first message"))?)?;
        if identity != Some("") {
            return Err(Malformed("an authorization identity is not supported"));
        }
        let bare = bare.ok_or(Malformed("the first message is cut short"))?;
        if bare.starts_with("m=") {
            return Err(Malformed("a mandatory extension is not supported"));
        }
        let mut attributes = bare.split(',');
        let (user, nonce) = (attributes.next(), attributes.next());
        if !user.is_some_and(|user| user.starts_with("n=")) {
            return Err(Malformed("the first message names no user"));
        }
        let nonce = nonce.and_then(|nonce| nonce.strip_prefix("r="));
        let nonce = nonce.filter(|nonce| is_nonce(nonce));
        let nonce = nonce.ok_or(Malformed("the first message has no usable nonce"))?;
        self.nonce = format!("{nonce}{}", self.nonce);
        self.header = message[..message.len() - bare.len()].to_owned();
        let reply = format!(
            "r={},s={},i={}",
            self.nonce,
            STANDARD.encode(&self.verifier.salt),
            self.verifier.iterations
        );
        self.spoken = format!("{bare},{reply}");
        Ok(reply)
    }

    /// Takes the client's last message. With a right proof: the user's keys and the server's last message.
    ///
    /// # Errors
    /// It is not such a message.
    pub fn last(self, message: &[u8]) -> Result<Option<(Keys, String)>, Malformed> {
        let message = text(message)?;
        let (unproved, proof) = message
            .rsplit_once(",p=")
            .ok_or(Malformed("the last message has no proof"))?;
        let mut attributes = unproved.split(',');
        let binding = attributes.next().and_then(|a| a.strip_prefix("c="));
        let bound = self.binding.as_ref().filter(|_| self.is_bound);
        if binding != Some(channel(&self.header, bound).as_str()) {
            return Err(match bound {
                Some(_) => NOT_BOUND,
                None => Malformed("the channel binding is not the one that was begun with"),
            });
        }
        let nonce = attributes.next().and_then(|a| a.strip_prefix("r="));
        if nonce != Some(self.nonce.as_str()) {
            return Err(Malformed("the nonce is not the one of this exchange"));
        }
        let proof = hash_of(proof).ok_or(Malformed("the proof is not one"))?;
        let spoken = format!("{},{unproved}", self.spoken);
        let signature = sign(&self.verifier.stored, spoken.as_bytes());
        let client = exclusive_or(proof, signature);
        let is_right = bool::from(sha256(&client).ct_eq(&self.verifier.stored));
        if !is_right || !self.is_known {
            return Ok(None);
        }
        let server = self.verifier.server;
        let reply = format!("v={}", STANDARD.encode(sign(&server, spoken.as_bytes())));
        Ok(Some((Keys { client, server }, reply)))
    }
}

/// A password, and the keys that were last derived of it: PostgreSQL gives a user the same salt every time.
#[derive(Clone)]
pub struct Password(Arc<Known>);

struct Known {
    text: SecretString,
    derived: Mutex<Option<Derived>>,
}

struct Derived {
    salt: Vec<u8>,
    iterations: NonZeroU32,
    keys: Keys,
}

impl From<String> for Password {
    fn from(text: String) -> Self {
        Self(Arc::new(Known {
            text: text.into(),
            derived: Mutex::default(),
        }))
    }
}

impl Password {
    /// The password itself.
    pub fn expose(&self) -> &str {
        self.0.text.expose_secret()
    }

    fn known_keys(&self, offer: &Offer<'_>) -> Option<Keys> {
        let derived = self
            .0
            .derived
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let derived = derived.as_ref()?;
        let is_same = derived.salt == offer.salt && derived.iterations == offer.iterations;
        is_same.then(|| derived.keys.clone())
    }

    fn keys(&self, offer: &Offer<'_>) -> Keys {
        if let Some(keys) = self.known_keys(offer) {
            return keys;
        }
        let keys = Keys::derive(self.expose(), &offer.salt, offer.iterations);
        let mut derived = self
            .0
            .derived
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *derived = Some(Derived {
            salt: offer.salt.clone(),
            iterations: offer.iterations,
            keys: keys.clone(),
        });
        keys
    }
}

enum Means {
    Password(Password),
    Keys(Keys),
}

/// What a server's first message says.
struct Offer<'a> {
    nonce: &'a str,
    salt: Vec<u8>,
    iterations: NonZeroU32,
}

/// What a client says of binding the exchange to its channel.
#[derive(Clone, Debug)]
pub enum Flag {
    /// That it cannot.
    Unable,
    /// That it could, and was not offered it.
    NotOffered,
    /// That it does, to this.
    Bound(Binding),
}

/// One exchange, on the side of the client.
pub struct ClientExchange {
    means: Means,
    nonce: String,
    /// Such as `n,,`.
    header: &'static str,
    binding: Option<Binding>,
    /// What the server's last message must be; absent until its first one was answered.
    expected: Option<Hash>,
}

/// The server's message makes no sense, or asks for too much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Suspicious(pub &'static str);

impl ClientExchange {
    /// Begins with a password.
    pub fn with_password(password: Password, random: &[u8; RANDOM_BYTES]) -> Self {
        Self::new(Means::Password(password), random)
    }

    /// Begins with the keys that an exchange with a client left.
    pub fn with_keys(keys: Keys, random: &[u8; RANDOM_BYTES]) -> Self {
        Self::new(Means::Keys(keys), random)
    }

    fn new(means: Means, random: &[u8; RANDOM_BYTES]) -> Self {
        Self {
            means,
            nonce: STANDARD.encode(random),
            header: "n,,",
            binding: None,
            expected: None,
        }
    }

    /// Says this of binding.
    pub fn bound(mut self, flag: Flag) -> Self {
        (self.header, self.binding) = match flag {
            Flag::Unable => ("n,,", None),
            Flag::NotOffered => ("y,,", None),
            Flag::Bound(binding) => ("p=tls-server-end-point,,", Some(binding)),
        };
        self
    }

    /// The mechanism's name, ended by a zero byte.
    pub fn mechanism(&self) -> &'static [u8] {
        match self.binding {
            Some(_) => PLUS,
            None => PLAIN,
        }
    }

    /// The first message. PostgreSQL takes the user from the start-up packet.
    pub fn first(&self) -> String {
        format!("{}n=,r={}", self.header, self.nonce)
    }

    /// Whether the answer to the server's first message must be derived of the password.
    pub fn is_costly(&self, message: &[u8], max_iterations: u32) -> bool {
        let offer = text(message).map_err(|why| Suspicious(why.0));
        match (
            offer.and_then(|first| self.offer(first, max_iterations)),
            &self.means,
        ) {
            (Ok(offer), Means::Password(password)) => password.known_keys(&offer).is_none(),
            (Err(_), _) | (_, Means::Keys(_)) => false,
        }
    }

    fn offer<'a>(&self, first: &'a str, max_iterations: u32) -> Result<Offer<'a>, Suspicious> {
        // Each answer may cost `max_iterations` hashes.
        if self.expected.is_some() {
            return Err(Suspicious("it asks for a second proof"));
        }
        let mut attributes = first.split(',');
        let mut next = |name: &str| attributes.next().and_then(|a| a.strip_prefix(name));
        let nonce = next("r=").filter(|nonce| is_nonce(nonce));
        let nonce = nonce.ok_or(Suspicious("its first message has no usable nonce"))?;
        if !nonce.starts_with(&self.nonce) || nonce.len() == self.nonce.len() {
            return Err(Suspicious("its nonce does not continue ours"));
        }
        let salt = next("s=").and_then(|salt| STANDARD.decode(salt).ok());
        let salt = salt.filter(|salt| (1..=MAX_SALT).contains(&salt.len()));
        let salt = salt.ok_or(Suspicious("its first message has no usable salt"))?;
        let iterations = next("i=").and_then(|i| i.parse::<NonZeroU32>().ok());
        let iterations = iterations.ok_or(Suspicious("it names no number of iterations"))?;
        if iterations.get() > max_iterations {
            return Err(Suspicious("it asks for too many iterations"));
        }
        Ok(Offer {
            nonce,
            salt,
            iterations,
        })
    }

    /// Takes the server's first message and returns the last one of the client.
    ///
    /// # Errors
    /// It is not such a message, comes a second time, or asks for more than `max_iterations`.
    pub fn answer(&mut self, message: &[u8], max_iterations: u32) -> Result<String, Suspicious> {
        let first = text(message).map_err(|why| Suspicious(why.0))?;
        let offer = self.offer(first, max_iterations)?;
        let keys = match &self.means {
            Means::Password(password) => password.keys(&offer),
            Means::Keys(keys) => keys.clone(),
        };
        let nonce = offer.nonce;
        let channel = channel(self.header, self.binding.as_ref());
        let unproved = format!("c={channel},r={nonce}");
        let spoken = format!("n=,r={},{first},{unproved}", self.nonce);
        let signature = sign(&sha256(&keys.client), spoken.as_bytes());
        let proof = exclusive_or(keys.client, signature);
        self.expected = Some(sign(&keys.server, spoken.as_bytes()));
        Ok(format!("{unproved},p={}", STANDARD.encode(proof)))
    }

    /// Whether the server's last message proves that it knows the verifier.
    pub fn verify(&self, message: &[u8]) -> bool {
        let given = text(message)
            .ok()
            .and_then(|m| hash_of(m.strip_prefix("v=")?));
        match (given, self.expected) {
            (Some(given), Some(expected)) => bool::from(given.ct_eq(&expected)),
            (None, _) | (_, None) => false,
        }
    }
}

/// What stands after `c=` in the client's last message.
fn channel(header: &str, binding: Option<&Binding>) -> String {
    let data = binding.map_or(&[][..], Binding::data);
    STANDARD.encode([header.as_bytes(), data].concat())
}

fn text(message: &[u8]) -> Result<&str, Malformed> {
    if message.len() > MAX_MESSAGE {
        return Err(Malformed("a message that is too long"));
    }
    std::str::from_utf8(message).map_err(|_| Malformed("a message that is no text"))
}

/// Printable ASCII without a comma, by the grammar of RFC 5802.
fn is_nonce(nonce: &str) -> bool {
    !nonce.is_empty() && nonce.bytes().all(|b| b.is_ascii_graphic() && b != b',')
}

fn hash_of(encoded: &str) -> Option<Hash> {
    STANDARD.decode(encoded).ok()?.try_into().ok()
}

fn sign(key: &[u8], message: &[u8]) -> Hash {
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), message);
    let mut hash = [0; 32];
    hash.copy_from_slice(tag.as_ref());
    hash
}

fn sha256(message: &[u8]) -> Hash {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest::digest(&digest::SHA256, message).as_ref());
    hash
}

fn exclusive_or(mut one: Hash, other: Hash) -> Hash {
    one.iter_mut().zip(other).for_each(|(a, b)| *a ^= b);
    one
}

#[cfg(test)]
mod tests;
