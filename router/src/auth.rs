//! Who a client is, and how the router proves who it is to PostgreSQL: the exchanges of both sides, message
//! by message. Pure: nonces and salts are given, nothing is read or sent here.
//!
//! An unknown user, or one whose secret does not fit the method, goes through the same messages as a known
//! one and fails at the same place with the same words.

#![deny(clippy::wildcard_enum_match_arm)]

use std::fmt;
use std::sync::Arc;

use secrecy::{ExposeSecret, SecretString};
use subtle::ConstantTimeEq;

use crate::auth::certificate::Binding;
use crate::auth::md5::Md5Secret;
use crate::auth::scram::{
    ClientExchange, Flag, Keys, MAX_ITERATIONS, Password, ServerExchange, Verifier,
};
use crate::auth::users::{Look, User};
use crate::protocol::messages;

pub mod certificate;
pub mod hba;
pub mod ident;
pub mod lookup;
pub mod md5;
pub mod mock;
pub mod scram;
pub mod users;

/// Bytes of randomness that one exchange uses.
pub const RANDOM_BYTES: usize = 24;

/// `auth.type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// SCRAM-SHA-256 for everybody.
    ScramSha256,
    /// MD5; for a user whose secret is a SCRAM verifier, SCRAM-SHA-256. As in PgBouncer.
    Md5,
    /// The name of the client's certificate, which TLS has checked, is the user's.
    Cert,
    /// A known user is believed.
    Trust,
}

impl Method {
    /// Its name in the file.
    pub fn name(self) -> &'static str {
        match self {
            Method::ScramSha256 => "scram-sha-256",
            Method::Md5 => "md5",
            Method::Cert => "cert",
            Method::Trust => "trust",
        }
    }
}

/// What is kept of a user's password.
pub enum Secret {
    /// The password itself.
    Plain(SecretString),
    /// PostgreSQL's `md5...`.
    Md5(Md5Secret),
    /// PostgreSQL's `SCRAM-SHA-256$...`.
    Scram(Arc<Verifier>),
    /// None: the user can only be trusted.
    Empty,
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Secret::Plain(_) => "Secret(plain)",
            Secret::Md5(_) => "Secret(md5)",
            Secret::Scram(_) => "Secret(scram)",
            Secret::Empty => "Secret(empty)",
        })
    }
}

/// What a client has proved.
#[derive(Debug, Default)]
pub struct Proven {
    /// By SCRAM: what lets the router log in to PostgreSQL as this user without the password, where
    /// PostgreSQL holds the same verifier.
    pub keys: Option<Keys>,
}

/// What comes next in the exchange with a client.
#[derive(Debug)]
pub enum Step {
    /// Send this message and wait for the client's answer.
    Ask(Vec<u8>),
    /// The client is who it says. What is to be sent before AuthenticationOk comes along, and may be empty.
    Proven(Proven, Vec<u8>),
    /// It is not, or there is no such user.
    Refused,
}

/// The client's message makes no sense in this exchange.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("authentication: {0}")]
pub struct Malformed(pub &'static str);

/// What an exchange with a client begins with.
pub struct Beginning<'a> {
    /// How the client proves who it is.
    pub method: Method,
    /// Who it says it is.
    pub name: &'a str,
    /// That user, if there is one.
    pub user: Option<&'a User>,
    /// How the exchange looks where there is none.
    pub look: Look,
    /// Used for this exchange only.
    pub random: &'a [u8; RANDOM_BYTES],
    /// The secret from which the answers for unknown users are derived.
    pub mock: &'a [u8; 32],
    /// What SCRAM may be bound to; under TLS.
    pub binding: Option<Binding>,
    /// The name in a certificate that TLS has checked.
    pub certificate: Option<&'a str>,
}

/// The exchange with one client, on the side of the server.
pub struct ServerSide {
    state: State,
}

enum State {
    Md5 {
        secret: Option<Md5Secret>,
        salt: [u8; 4],
    },
    ScramFirst(Box<ServerExchange>),
    ScramLast(Box<ServerExchange>),
    Over,
}

impl ServerSide {
    /// Begins.
    pub fn begin(beginning: Beginning<'_>) -> (Self, Step) {
        let Beginning {
            method,
            name,
            user,
            look,
            random,
            mock,
            binding,
            certificate,
        } = beginning;
        let scram = |verifier: Arc<Verifier>, is_known: bool| {
            let exchange = ServerExchange::new(verifier, is_known, random).offering(binding);
            let ask = messages::ask_sasl(exchange.mechanisms());
            let state = State::ScramFirst(Box::new(exchange));
            (Self { state }, Step::Ask(ask))
        };
        let md5 = |secret: Option<Md5Secret>| {
            let [a, b, c, d, ..] = *random;
            let salt = [a, b, c, d];
            let state = State::Md5 { secret, salt };
            (Self { state }, Step::Ask(messages::ask_md5(salt)))
        };
        let verifier = user.and_then(|user| match (method, user.secret()) {
            (Method::Trust | Method::Cert, _) => None,
            (Method::ScramSha256, _) => user.verifier(name, mock),
            (Method::Md5, Secret::Scram(verifier)) => Some(verifier.clone()),
            (Method::Md5, Secret::Plain(_) | Secret::Md5(_) | Secret::Empty) => None,
        });
        let secret = user.and_then(|user| match (method, user.secret()) {
            (Method::Md5, Secret::Md5(secret)) => Some(*secret),
            (Method::Md5, Secret::Plain(password)) => {
                Some(Md5Secret::derive(name, password.expose_secret()))
            }
            (Method::Md5, Secret::Scram(_) | Secret::Empty)
            | (Method::ScramSha256 | Method::Trust | Method::Cert, _) => None,
        });
        match (method, verifier, secret, look) {
            (Method::Trust | Method::Cert, ..) => {
                let is_right = method == Method::Trust || certificate == Some(name);
                let step = match user {
                    Some(_) if is_right => Step::Proven(Proven::default(), Vec::new()),
                    Some(_) | None => Step::Refused,
                };
                let state = State::Over;
                (Self { state }, step)
            }
            (_, Some(verifier), _, _) => scram(verifier, true),
            (_, None, Some(secret), _) => md5(Some(secret)),
            (_, None, None, Look::Md5) => md5(None),
            (_, None, None, Look::Scram(shape)) => {
                scram(Arc::new(Verifier::mock(name, mock, shape)), false)
            }
        }
    }

    /// Takes the body of the client's PasswordMessage, SASLInitialResponse or SASLResponse.
    ///
    /// # Errors
    /// The message is not one of this exchange.
    pub fn answer(&mut self, body: &[u8]) -> Result<Step, Malformed> {
        match std::mem::replace(&mut self.state, State::Over) {
            State::Md5 { secret, salt } => {
                let Some(given) = body.strip_suffix(b"\0") else {
                    return Err(Malformed("the password is not terminated"));
                };
                // Computed for unknown users, too: it takes the same time.
                let wanted = secret.unwrap_or(Md5Secret::derive("", "")).response(salt);
                let is_right = bool::from(wanted.as_bytes().ct_eq(given)) && secret.is_some();
                Ok(if is_right {
                    Step::Proven(Proven::default(), Vec::new())
                } else {
                    Step::Refused
                })
            }
            State::ScramFirst(mut exchange) => {
                let first = initial_response(&mut exchange, body)?;
                let reply = exchange.first(first)?;
                self.state = State::ScramLast(exchange);
                Ok(Step::Ask(messages::sasl_continue(reply.as_bytes())))
            }
            State::ScramLast(exchange) => Ok(match exchange.last(body)? {
                Some((keys, reply)) => Step::Proven(
                    Proven { keys: Some(keys) },
                    messages::sasl_final(reply.as_bytes()),
                ),
                None => Step::Refused,
            }),
            State::Over => Err(Malformed("a message after the end of the exchange")),
        }
    }
}

/// The data of a SASLInitialResponse for a mechanism that is offered.
fn initial_response<'a>(
    exchange: &mut ServerExchange,
    body: &'a [u8],
) -> Result<&'a [u8], Malformed> {
    let end = body.iter().position(|b| *b == 0).map_or(0, |end| end + 1);
    let (mechanism, rest) = body.split_at(end);
    if !exchange.choose(mechanism) {
        return Err(Malformed(
            "the client chose a mechanism that was not offered",
        ));
    }
    let (length, data) = rest
        .split_at_checked(4)
        .ok_or(Malformed("the initial response is cut short"))?;
    let length = <[u8; 4]>::try_from(length).map_or(0, u32::from_be_bytes);
    if usize::try_from(length) != Ok(data.len()) {
        return Err(Malformed(
            "the initial response has another length than it says",
        ));
    }
    Ok(data)
}

/// What the router logs in to PostgreSQL with.
#[derive(Default)]
pub enum Credential {
    /// Nothing: PostgreSQL must trust it.
    #[default]
    Nothing,
    /// The password.
    Plain(Password),
    /// PostgreSQL's `md5...`.
    Md5(Md5Secret),
    /// What a client's SCRAM exchange left.
    Keys(Keys),
}

impl Credential {
    /// Whether both are the same password: then what was derived of it is kept.
    pub fn is_same_password(&self, other: &Self) -> bool {
        match (self, other) {
            (Credential::Plain(own), Credential::Plain(other)) => own.expose() == other.expose(),
            (
                Credential::Nothing
                | Credential::Plain(_)
                | Credential::Md5(_)
                | Credential::Keys(_),
                _,
            ) => false,
        }
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Credential::Nothing => "Credential(nothing)",
            Credential::Plain(_) => "Credential(plain)",
            Credential::Md5(_) => "Credential(md5)",
            Credential::Keys(_) => "Credential(keys)",
        })
    }
}

/// What to do about a server's authentication message.
#[derive(Debug, PartialEq, Eq)]
pub enum Reply {
    /// Send this message.
    Send(Vec<u8>),
    /// Nothing: more is to come.
    Wait,
    /// The server is satisfied.
    Done,
}

/// The server asks for what it does not get.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoLogin {
    /// It wants a secret that the router does not have.
    #[error(
        "PostgreSQL asks for {wanted} authentication and the router has no fitting secret of this user; \
         put its password or its SCRAM-SHA-256 verifier into auth.file"
    )]
    NoSecret {
        /// What it wants.
        wanted: &'static str,
    },
    /// It wants a method that the router does not use.
    #[error("PostgreSQL asks for an authentication method that the router does not use: {0}")]
    Method(&'static str),
    /// Nothing tells who answers.
    #[error(
        "PostgreSQL's certificate allows no channel binding (as those of Ed25519), and tls.server.mode: require does \
         not verify it: somebody may be between; give PostgreSQL an ECDSA or RSA certificate, or set verify-full"
    )]
    Unbound,
    /// It does not behave as a server that knows this user.
    #[error("PostgreSQL did not keep to the authentication exchange: {0}")]
    Untrustworthy(&'static str),
}

/// What an exchange with PostgreSQL runs through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Channel {
    /// No TLS: there is nothing to bind to.
    Clear,
    /// TLS.
    Tls {
        /// What SCRAM can be bound to; none where the binding is not defined for the certificate.
        binding: Option<Binding>,
        /// A server that can bind is not spoken to without.
        must_be_bound: bool,
    },
}

/// The exchange with PostgreSQL, on the side of the client.
pub struct ClientSide {
    user: String,
    credential: Arc<Credential>,
    nonce: [u8; RANDOM_BYTES],
    channel: Channel,
    has_begun: bool,
    scram: Option<Box<ClientExchange>>,
    is_verified: bool,
}

impl ClientSide {
    /// Begins as this user.
    pub fn new(user: &str, credential: Arc<Credential>, nonce: [u8; RANDOM_BYTES]) -> Self {
        Self {
            user: user.to_owned(),
            credential,
            nonce,
            channel: Channel::Clear,
            has_begun: false,
            scram: None,
            is_verified: false,
        }
    }

    /// Says what the exchange runs through: SCRAM is bound to that, where the server offers it.
    pub fn over(mut self, channel: Channel) -> Self {
        self.channel = channel;
        self
    }

    /// What SCRAM says of binding. As libpq: under TLS a server that does not offer it is told that it could be done,
    /// so that one that did offer it finds somebody between. Where the certificate allows no binding libpq ends; here
    /// that is so where TLS is demanded and nothing but the binding tells who answers. Where the certificate is
    /// verified nobody is between, and where TLS is only preferred nobody was promised so.
    fn flag(&mut self, is_offered: bool) -> Result<Flag, NoLogin> {
        match (
            std::mem::replace(&mut self.channel, Channel::Clear),
            is_offered,
        ) {
            (Channel::Clear, _) => Ok(Flag::Unable),
            (Channel::Tls { .. }, false) => Ok(Flag::NotOffered),
            (
                Channel::Tls {
                    binding: Some(binding),
                    ..
                },
                true,
            ) => Ok(Flag::Bound(binding)),
            (
                Channel::Tls {
                    binding: None,
                    must_be_bound,
                },
                true,
            ) => match must_be_bound {
                true => Err(NoLogin::Unbound),
                false => Ok(Flag::Unable),
            },
        }
    }

    /// Whether the answer to this body costs thousands of hashes.
    pub fn is_costly(&self, body: &[u8]) -> bool {
        let (Some(exchange), Some(data)) = (&self.scram, body.strip_prefix(b"\0\0\0\x0b")) else {
            return false;
        };
        exchange.is_costly(data, MAX_ITERATIONS)
    }

    /// Each method and each of its messages is taken once, in their order: what a server may make the router
    /// compute has an end.
    fn begins(&mut self) -> Result<(), NoLogin> {
        match std::mem::replace(&mut self.has_begun, true) {
            true => Err(NoLogin::Untrustworthy("it began the exchange twice")),
            false => Ok(()),
        }
    }

    /// Takes the body of an authentication message (`R`).
    ///
    /// # Errors
    /// The server cannot be satisfied, or is not to be trusted with more.
    pub fn answer(&mut self, body: &[u8]) -> Result<Reply, NoLogin> {
        let Some((kind, data)) = body.split_at_checked(4) else {
            return Err(NoLogin::Untrustworthy("a message that is cut short"));
        };
        match <[u8; 4]>::try_from(kind).map_or(u32::MAX, u32::from_be_bytes) {
            // A server that began SCRAM must end it with its own proof.
            0 if self.scram.is_some() && !self.is_verified => Err(NoLogin::Untrustworthy(
                "it said yes without proving that it knows the password",
            )),
            0 => Ok(Reply::Done),
            3 => Err(NoLogin::Method(
                "a password in the clear; use scram-sha-256 in pg_hba.conf",
            )),
            5 => self.md5(data),
            10 => self.sasl(data),
            11 => self.sasl_continue(data),
            12 => self.sasl_final(data),
            _ => Err(NoLogin::Method("neither SCRAM-SHA-256 nor MD5")),
        }
    }

    fn md5(&mut self, salt: &[u8]) -> Result<Reply, NoLogin> {
        self.begins()?;
        let salt = <[u8; 4]>::try_from(salt)
            .map_err(|_| NoLogin::Untrustworthy("a salt of another length than four bytes"))?;
        let secret = match &*self.credential {
            Credential::Plain(password) => Md5Secret::derive(&self.user, password.expose()),
            Credential::Md5(secret) => *secret,
            Credential::Nothing | Credential::Keys(_) => {
                return Err(NoLogin::NoSecret { wanted: "md5" });
            }
        };
        Ok(Reply::Send(messages::password(
            secret.response(salt).as_bytes(),
        )))
    }

    fn sasl(&mut self, mechanisms: &[u8]) -> Result<Reply, NoLogin> {
        self.begins()?;
        let offers = |name: &[u8]| mechanisms.split(|b| *b == 0).any(|m| m == name);
        let flag = self.flag(offers(b"SCRAM-SHA-256-PLUS"))?;
        if !matches!(flag, Flag::Bound(_)) && !offers(b"SCRAM-SHA-256") {
            return Err(NoLogin::Method("SASL without SCRAM-SHA-256"));
        }
        let exchange = match &*self.credential {
            Credential::Plain(password) => {
                ClientExchange::with_password(password.clone(), &self.nonce)
            }
            Credential::Keys(keys) => ClientExchange::with_keys(keys.clone(), &self.nonce),
            Credential::Nothing | Credential::Md5(_) => {
                return Err(NoLogin::NoSecret {
                    wanted: "scram-sha-256",
                });
            }
        };
        let exchange = exchange.bound(flag);
        let first = messages::sasl_initial(exchange.mechanism(), exchange.first().as_bytes());
        self.scram = Some(Box::new(exchange));
        Ok(Reply::Send(first))
    }

    fn sasl_continue(&mut self, data: &[u8]) -> Result<Reply, NoLogin> {
        let exchange = self.scram.as_mut();
        let exchange = exchange.ok_or(NoLogin::Untrustworthy("an exchange that never began"))?;
        let last = exchange.answer(data, MAX_ITERATIONS);
        let last = last.map_err(|why| NoLogin::Untrustworthy(why.0))?;
        Ok(Reply::Send(messages::password_raw(last.as_bytes())))
    }

    fn sasl_final(&mut self, data: &[u8]) -> Result<Reply, NoLogin> {
        if self.is_verified {
            return Err(NoLogin::Untrustworthy("it ended the exchange twice"));
        }
        let is_right = self.scram.as_ref().is_some_and(|e| e.verify(data));
        if !is_right {
            return Err(NoLogin::Untrustworthy(
                "its proof is wrong: it does not know this user's password",
            ));
        }
        self.is_verified = true;
        Ok(Reply::Wait)
    }
}

#[cfg(test)]
mod tests;
