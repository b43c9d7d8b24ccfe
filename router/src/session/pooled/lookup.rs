//! Users that are not in `auth.file`: the cluster that they want to is asked for them.

use std::sync::Arc;

use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep};
use trunkline_shared::cluster::Moment;
use trunkline_shared::service::clock;

use super::acquire::way_by;
use super::proof::within;
use crate::auth::lookup::Answer;
use crate::auth::users::MAX_NAME;
use crate::auth::{Method, Secret};
use crate::config::auth::LookupConfig;
use crate::error::SessionError;
use crate::in_force::Entrance;
use crate::listener::Listening;
use crate::pool::registry::Registry;
use crate::route::{NoRoute, TargetKind};
use crate::server::Way;
use crate::server::lookup::{Line, LookupFailed, Question};
use crate::topology::Cluster;
use crate::topology::routing_table::Wants;

/// One log-in, as far as PostgreSQL is asked for it.
pub(super) struct Inquiry<'a> {
    pub(super) listening: &'a Arc<Listening>,
    /// It is followed for as long as this is asked.
    pub(super) cluster: &'a Cluster,
    pub(super) registry: &'a Arc<Registry>,
    pub(super) entrance: &'a Entrance,
    pub(super) config: &'a LookupConfig,
    pub(super) method: Method,
    pub(super) name: &'a str,
    /// The end of `client_login_timeout`, if it has one.
    pub(super) until: Option<Instant>,
}

impl Inquiry<'_> {
    /// The user as PostgreSQL knows it. After `before` something newer is wanted.
    ///
    /// # Errors
    /// PostgreSQL cannot be asked.
    pub(super) async fn answer(&self, before: Option<&Answer>) -> Result<Answer, SessionError> {
        if self.name.len() > MAX_NAME {
            // Nobody's: it is neither asked for nor kept, however long it is.
            let (user, at) = (None, clock::now());
            return Ok(Answer { user, at });
        }
        let cluster = self.cluster.name.as_str();
        let is_writer = self.listening.kind() == TargetKind::Primary;
        let line = self.entrance.lookups.line(cluster, is_writer);
        let began = clock::now();
        let after = before.map(|before| before.at);
        let answered = within(self.until, self.persist(&line, began, after)).await;
        answered.unwrap_or_else(|| match self.way_now() {
            Ok(_) => {
                let why = line.trouble().why.unwrap_or(LookupFailed::Lost);
                Err(self.failed(&line, &why))
            }
            Err(why) => Err(self.no_route(why, began)),
        })
    }

    /// Asks until there is an answer, or it is clear that there will be none.
    async fn persist(
        &self,
        line: &Arc<Line>,
        began: Moment,
        after: Option<Moment>,
    ) -> Result<Answer, SessionError> {
        let lookups = &self.entrance.lookups;
        let cluster = self.cluster.name.as_str();
        let who = (cluster.into(), self.name.into());
        loop {
            if let Some(answer) = lookups.known(&who, after) {
                return Ok(answer);
            }
            let question = self.question(began).await?;
            let why = match line.ask(lookups, &who, after, question).await {
                Ok(Some(answer)) => {
                    self.derive(&answer).await;
                    return Ok(answer);
                }
                Ok(None) => line.trouble().why,
                Err(why) => {
                    line.log(cluster, &why);
                    Some(why)
                }
            };
            if let Some(why) = why.filter(LookupFailed::is_lasting) {
                return Err(self.failed(line, &why));
            }
            sleep(line.trouble().retry_at.since(clock::now())).await;
        }
    }

    /// Makes aside what takes thousands of hashes: a core carries many sessions.
    async fn derive(&self, answer: &Answer) {
        if self.method != Method::ScramSha256 {
            return;
        }
        if let Some(user) = answer.user.clone()
            && matches!(user.secret(), Secret::Plain(_))
        {
            let mock = self.registry.mock(&self.entrance.pooling);
            let name = self.name.to_owned();
            // What is not made here is made when it is needed.
            let _ = spawn_blocking(move || user.verifier(&name, mock.bytes())).await;
        }
    }

    fn failed(&self, line: &Line, why: &LookupFailed) -> SessionError {
        let cluster = self.cluster.name.clone();
        line.log(cluster.as_str(), why);
        SessionError::NoLookup {
            cluster,
            why: why.told(),
        }
    }

    fn no_route(&self, why: NoRoute, began: Moment) -> SessionError {
        let waited = clock::now().since(began);
        SessionError::no_route(&self.cluster.name, why, waited)
    }

    /// Where and how to ask, within the time that clients are held for a leader.
    async fn question(&self, began: Moment) -> Result<Question, SessionError> {
        let pooling = &self.entrance.pooling;
        let own = pooling.users.find(&self.config.user);
        Ok(Question {
            way: self.way(began).await?,
            config: self.config.clone(),
            credential: own.map(|user| user.credential()).unwrap_or_default(),
            connect_timeout: pooling.pool.server_connect_timeout,
            lifetime: pooling.pool.server_lifetime,
            longest_pause: pooling.pool.server_login_retry,
        })
    }

    fn way_now(&self) -> Result<Way, NoRoute> {
        let published = self.cluster.published();
        let cluster = (self.cluster, &*published);
        way_by(self.listening, cluster, self.registry, || Wants::Statement)
    }

    async fn way(&self, began: Moment) -> Result<Way, SessionError> {
        let listening = self.listening;
        let limit = listening.hold_timeout();
        loop {
            let mut changed = self.cluster.changes();
            let why = match self.way_now() {
                Ok(way) => return Ok(way),
                Err(why) => why,
            };
            let waited = clock::now().since(began);
            if !matches!(why, NoRoute::Hold(_)) || waited >= limit {
                return Err(self.no_route(why, began));
            }
            tokio::select! {
                _ = changed.changed() => {}
                () = sleep(limit - waited) => {}
            }
        }
    }
}
