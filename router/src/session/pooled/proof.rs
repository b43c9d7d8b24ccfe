//! How a client proves who it is: by what stands in `auth.file`, or by what PostgreSQL says of it.

use std::sync::Arc;

use tokio::time::{Instant, timeout_at};

use super::login::{asking, method, no_randomness, read_answer};
use super::lookup::Inquiry;
use super::whereabouts;
use crate::auth::certificate::{Binding, common_name};
use crate::auth::lookup::Answer;
use crate::auth::mock::MockSecret;
use crate::auth::scram::Shape;
use crate::auth::users::{Look, User};
use crate::auth::{Beginning, Method, Proven, RANDOM_BYTES, ServerSide, Step};
use crate::config::admin::is_console;
use crate::config::auth::AuthConfig;
use crate::error::SessionError;
use crate::in_force::Entrance;
use crate::listener::Listening;
use crate::pool::registry::Registry;
use crate::protocol::startup::Parameters;
use crate::session::reach::gone;
use crate::session::{Client, send};

/// Where somebody has come in, and what it says of itself.
pub(super) struct Arrival<'a> {
    pub(super) listening: &'a Arc<Listening>,
    pub(super) registry: &'a Arc<Registry>,
    pub(super) entrance: &'a Entrance,
    pub(super) asked: &'a Parameters,
    /// What SCRAM may be bound to; under TLS.
    pub(super) binding: Option<Binding>,
}

impl Arrival<'_> {
    /// The database and the user that it says.
    pub(super) fn names(&self) -> (&str, &str) {
        (&self.asked.database, &self.asked.user)
    }
}

/// Who has proved who it is.
pub(super) struct Admitted {
    pub(super) user: Arc<User>,
    pub(super) proven: Proven,
    /// What goes before AuthenticationOk.
    pub(super) greeting: Vec<u8>,
}

/// The exchange, within `client_login_timeout` with what PostgreSQL is asked for it.
pub(super) async fn authenticate(
    arrival: &Arrival<'_>,
    client: &mut Client,
) -> Result<Admitted, SessionError> {
    let config = &*arrival.entrance.pooling;
    let limit = config.pool.client_login_timeout;
    let until = (!limit.is_zero()).then(|| Instant::now() + limit);
    let name = arrival.asked.user.as_str();
    let method = method(&config.auth, client, arrival.asked)?;
    let listed = config.users.find(name).cloned();
    // A role of a cluster is nobody to the router itself, whatever it is called.
    let is_asked_for = listed.is_none() && !is_console(&arrival.asked.database);
    let lookup = config.auth.lookup.as_ref().filter(|_| is_asked_for);
    let asked = match lookup {
        Some(_) => whereabouts::asked(arrival, client, until).await?,
        None => None,
    };
    // Where there is no such cluster there is no such user, and a stranger cannot tell which it is.
    let inquiry = lookup.zip(asked.as_ref());
    let inquiry = inquiry.map(|(config, (cluster, _used))| Inquiry {
        listening: arrival.listening,
        cluster,
        registry: arrival.registry,
        entrance: arrival.entrance,
        config,
        method,
        name,
        until,
    });
    let answer = match &inquiry {
        Some(inquiry) => Some(inquire(inquiry, None, client).await?),
        None => None,
    };
    let user = listed.or_else(|| answer.as_ref()?.user.clone());
    let mock = arrival.registry.mock(config);
    let mut proof = Proof {
        method,
        name,
        random: arrival.registry.random().map_err(no_randomness)?,
        mock,
        look: match lookup {
            // As PostgreSQL makes them.
            Some(_) => Look::Scram(Shape::default()),
            None => config.users.mock_look(method, name, mock.bytes()),
        },
        binding: arrival.binding.clone(),
        certificate: shown(client, method, &config.auth, arrival.asked),
        said: Vec::new(),
    };
    let proving = within(until, proof.hear(user.as_deref(), client)).await;
    let proved = proving.unwrap_or(Err(SessionError::LoginTooSlow(limit)))?;
    if let (Some(user), Some((proven, greeting))) = (user, proved) {
        return Ok(Admitted {
            user,
            proven,
            greeting,
        });
    }
    // The secret may have changed since it was asked for: then what the client said is judged by the new one.
    if let (Some(inquiry), Some(before)) = (&inquiry, &answer) {
        let again = inquire(inquiry, Some(before), client).await?;
        if let Some(user) = again.user
            && let Some((proven, greeting)) = proof.repeat(&user)
        {
            return Ok(Admitted {
                user,
                proven,
                greeting,
            });
        }
    }
    let user = name.to_owned();
    Err(match method {
        Method::Cert => SessionError::WrongCertificate { user },
        Method::ScramSha256 | Method::Md5 | Method::Trust => SessionError::WrongPassword { user },
    })
}

/// What comes of it until then, if it does; `None` is no limit.
pub(super) async fn within<T>(until: Option<Instant>, work: impl Future<Output = T>) -> Option<T> {
    match until {
        Some(until) => timeout_at(until, work).await.ok(),
        None => Some(work.await),
    }
}

/// Asks PostgreSQL for the user, as long as the client is there.
async fn inquire(
    inquiry: &Inquiry<'_>,
    before: Option<&Answer>,
    client: &Client,
) -> Result<Answer, SessionError> {
    tokio::select! {
        biased;
        answer = inquiry.answer(before) => answer,
        () = gone(client.stream.socket()) => Err(SessionError::ClientGone),
    }
}

/// The name in the client's certificate, if it is to be known by that; where a map lets that name be the user, the user's.
fn shown(
    client: &Client,
    method: Method,
    config: &AuthConfig,
    asked: &Parameters,
) -> Option<String> {
    let tls = client.stream.session().filter(|_| method == Method::Cert)?;
    let name = common_name(tls.peer_certificates()?.first()?)?;
    match config.hba.map(&asking(client, asked)) {
        None => Some(name),
        Some(map) => {
            let is_allowed = config.ident.allows(map, &name, &asked.user);
            is_allowed.then(|| asked.user.clone())
        }
    }
}

/// How somebody proves who it is, and what it has said for that so far.
struct Proof<'a> {
    method: Method,
    name: &'a str,
    random: [u8; RANDOM_BYTES],
    mock: MockSecret,
    look: Look,
    binding: Option<Binding>,
    certificate: Option<String>,
    said: Vec<Vec<u8>>,
}

impl Proof<'_> {
    fn begin(&self, user: Option<&User>) -> (ServerSide, Step) {
        ServerSide::begin(Beginning {
            method: self.method,
            name: self.name,
            user,
            look: self.look,
            random: &self.random,
            mock: self.mock.bytes(),
            binding: self.binding.clone(),
            certificate: self.certificate.as_deref(),
        })
    }

    /// What the client proves, and a message that goes before AuthenticationOk; none if it does not.
    async fn hear(
        &mut self,
        user: Option<&User>,
        client: &mut Client,
    ) -> Result<Option<(Proven, Vec<u8>)>, SessionError> {
        let (mut exchange, mut step) = self.begin(user);
        loop {
            match step {
                Step::Ask(message) => send(&mut client.stream, &message).await?,
                Step::Proven(proven, last) => return Ok(Some((proven, last))),
                Step::Refused => return Ok(None),
            }
            let answer = read_answer(client).await?;
            step = exchange.answer(&answer)?;
            self.said.push(answer);
        }
    }

    /// The same with another secret, if what the client has said fits that already.
    fn repeat(&self, user: &User) -> Option<(Proven, Vec<u8>)> {
        let (mut exchange, mut step) = self.begin(Some(user));
        for answer in &self.said {
            step = exchange.answer(answer).ok()?;
        }
        match step {
            Step::Proven(proven, last) => Some((proven, last)),
            Step::Ask(_) | Step::Refused => None,
        }
    }
}
