//! `auth.query`: a connection that no client ever has, on which PostgreSQL is asked for users.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::OwnedMutexGuard;
use tokio::time::sleep;
use tracing::warn;
use trunkline_shared::cluster::Moment;
use trunkline_shared::service::clock;

use super::login::{Identity, OpenFailed, open};
use super::{Complaint, QueryFailed, Server, Way};
use crate::auth::Credential;
use crate::auth::lookup::{Answer, Answers, Who};
use crate::auth::users::User;
use crate::config::auth::LookupConfig;

/// A connection on which nothing was asked for this long is closed.
const KEPT_FOR: Duration = Duration::from_secs(30);
/// How often it is looked at whether that is so, or its member serves no more.
const LOOK_AT_KEPT: Duration = Duration::from_secs(1);
/// The pause after it could not be opened; doubled at each failure.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// A line of the log at most so often says why nobody can be looked up.
const LOG_EVERY: Duration = Duration::from_secs(5);

/// Neither what a role or a database sets for itself, nor anything of a client, changes what the query means.
const SETTINGS: &[(&str, &str)] = &[
    ("search_path", "pg_catalog"),
    ("statement_timeout", "5s"),
    ("client_encoding", "UTF8"),
    ("application_name", "trunkline-router auth_query"),
];

/// The lines by cluster, and whether they lead to its writer.
type Lines = BTreeMap<(Box<str>, bool), Arc<Line>>;

/// Who asks, for all cores, and what was answered: a name is asked for once.
#[derive(Default)]
pub struct Lookups {
    lines: Mutex<Lines>,
    answers: Mutex<Answers>,
}

impl fmt::Debug for Lookups {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Lookups")
    }
}

/// The connection to a cluster's writer or to a reader. One query runs at a time; the others wait in their order, as
/// many as may log in at once.
#[derive(Default)]
pub struct Line {
    /// Absent while nobody has asked, and after a failure.
    connection: Arc<tokio::sync::Mutex<Option<Asker>>>,
    /// A task closes it in the end. Changed by whoever holds the connection.
    is_watched: AtomicBool,
    trouble: Mutex<Trouble>,
}

/// Why there is no connection.
#[derive(Clone, Debug, Default)]
pub struct Trouble {
    /// What happened last; none where all is well.
    pub why: Option<LookupFailed>,
    pause: Duration,
    /// Until then nobody tries again.
    pub retry_at: Moment,
    logged_at: Moment,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is inside stays whole whatever panics around it.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Lookups {
    /// The line to a cluster.
    pub fn line(&self, cluster: &str, is_writer: bool) -> Arc<Line> {
        let mut lines = locked(&self.lines);
        let line = lines.entry((cluster.into(), is_writer)).or_default();
        line.clone()
    }

    /// Forgets the lines to a cluster. What is open closes with its member's lane.
    pub fn forget_lines(&self, cluster: &str) {
        locked(&self.lines).retain(|(own, _), _| &**own != cluster);
    }

    /// What was answered, and is good still; if something newer is wanted, what was asked for after that moment.
    pub fn known(&self, who: &Who, after: Option<Moment>) -> Option<Answer> {
        let answers = locked(&self.answers);
        let found = answers.find(who, clock::now()).cloned();
        found.filter(|answer| after.is_none_or(|after| answer.at > after))
    }
}

/// An open connection, and what it was opened for.
struct Asker {
    server: Box<Server>,
    config: LookupConfig,
    used_at: Moment,
}

/// Why PostgreSQL cannot be asked.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LookupFailed {
    /// No connection.
    #[error(transparent)]
    Open(#[from] OpenFailed),
    /// The query is refused.
    #[error("{} (SQLSTATE {}; search_path is pg_catalog)", .0.message, .0.code)]
    Refused(Complaint),
    /// The connection was lost.
    #[error("the connection was lost, or the answer took too long")]
    Lost,
    /// The answer is none.
    #[error("the answer to the query {0}")]
    Answer(&'static str),
}

impl LookupFailed {
    /// Whether it will stay so until somebody changes something.
    pub fn is_lasting(&self) -> bool {
        match self {
            LookupFailed::Open(why) => why.is_lasting(),
            // Too little of something, a stop or a time-out, a conflict.
            LookupFailed::Refused(complaint) => !["53", "57", "40"]
                .iter()
                .any(|class| complaint.code.starts_with(class)),
            LookupFailed::Lost => false,
            LookupFailed::Answer(_) => true,
        }
    }

    /// What somebody hears who has proved nothing: neither the router's own user nor the query is shown.
    pub fn told(&self) -> String {
        match self {
            LookupFailed::Open(OpenFailed::Refused(_) | OpenFailed::NoLogin(_))
            | LookupFailed::Refused(_)
            | LookupFailed::Answer(_) => {
                "PostgreSQL does not answer the router's question".to_owned()
            }
            LookupFailed::Open(
                why @ (OpenFailed::LaneCut
                | OpenFailed::Unreachable(_)
                | OpenFailed::TooSlow
                | OpenFailed::InRecovery
                | OpenFailed::NoTls
                | OpenFailed::Handshake(_)
                | OpenFailed::Broken),
            ) => why.to_string(),
            LookupFailed::Lost => self.to_string(),
        }
    }
}

/// What a question needs besides the name.
pub struct Question {
    /// By which way.
    pub way: Way,
    /// What is asked, and by whom.
    pub config: LookupConfig,
    /// How the router proves that it is this user.
    pub credential: Credential,
    /// How long it may take to connect.
    pub connect_timeout: Duration,
    /// A connection older than this is opened anew.
    pub lifetime: Duration,
    /// `server_login_retry`: the longest pause after a failure, and that after PostgreSQL has refused the router's own user.
    pub longest_pause: Duration,
}

impl Line {
    /// What is wrong with it.
    pub fn trouble(&self) -> Trouble {
        locked(&self.trouble).clone()
    }

    /// Waits for its turn and asks for a user, unless the answer is known by then: somebody before may have asked for
    /// the same one. `None`: nobody tries now, see [`Line::trouble`].
    ///
    /// # Errors
    /// There is no answer.
    pub async fn ask(
        self: &Arc<Self>,
        lookups: &Arc<Lookups>,
        who: &Who,
        after: Option<Moment>,
        question: Question,
    ) -> Result<Option<Answer>, LookupFailed> {
        let turn = self.connection.clone().lock_owned().await;
        if let Some(answer) = lookups.known(who, after) {
            return Ok(Some(answer));
        }
        if clock::now() < self.trouble().retry_at {
            return Ok(None);
        }
        // Who leaves in the middle leaves it to its end: clients cannot make the router connect again and again.
        let (own, lookups, who) = (self.clone(), lookups.clone(), who.clone());
        let asking = tokio::spawn(own.ask_in_turn(turn, lookups, who, question));
        asking.await.unwrap_or(Err(LookupFailed::Lost)).map(Some)
    }

    async fn ask_in_turn(
        self: Arc<Self>,
        mut turn: OwnedMutexGuard<Option<Asker>>,
        lookups: Arc<Lookups>,
        who: Who,
        question: Question,
    ) -> Result<Answer, LookupFailed> {
        let longest_pause = question.longest_pause;
        let kept = turn.take().and_then(|asker| asker.if_usable(&question));
        let mut asker = match kept {
            Some(asker) => asker,
            None => {
                let opened = Asker::open(question).await;
                opened.map_err(|why| self.note_failure(why.into(), longest_pause))?
            }
        };
        let at = clock::now();
        let asked = asker.ask(&who.1).await;
        match &asked {
            Err(why) if !why.is_lasting() => {
                self.note_failure(why.clone(), longest_pause);
            }
            Ok(_) | Err(_) => {
                let mut trouble = locked(&self.trouble);
                let logged_at = trouble.logged_at;
                *trouble = Trouble {
                    logged_at,
                    ..Trouble::default()
                };
            }
        }
        if !matches!(asked, Err(LookupFailed::Lost)) {
            asker.used_at = clock::now();
            *turn = Some(asker);
            if !self.is_watched.swap(true, Ordering::Relaxed) {
                tokio::spawn(self.clone().watch());
            }
        }
        let answer = Answer { user: asked?, at };
        locked(&lookups.answers).note(who, answer.clone());
        Ok(answer)
    }

    /// Notes that there is no connection: those who wait do not all try it.
    fn note_failure(&self, why: LookupFailed, longest: Duration) -> LookupFailed {
        let mut trouble = locked(&self.trouble);
        trouble.pause = match why.is_lasting() {
            true => longest,
            false => (trouble.pause * 2).max(FIRST_PAUSE).min(longest),
        };
        trouble.retry_at = clock::now() + trouble.pause;
        trouble.why = Some(why.clone());
        why
    }

    /// Logs why nobody can be looked up, not for each who is not.
    pub fn log(&self, cluster: &str, why: &LookupFailed) {
        let now = clock::now();
        let is_due = {
            let mut trouble = locked(&self.trouble);
            let is_due = now.since(trouble.logged_at) >= LOG_EVERY;
            if is_due {
                trouble.logged_at = now;
            }
            is_due
        };
        if is_due {
            warn!(%cluster, "auth.query: users cannot be looked up: {why}");
        }
    }

    /// Closes the connection once it is not used any more.
    async fn watch(self: Arc<Self>) {
        loop {
            sleep(LOOK_AT_KEPT).await;
            let mut connection = self.connection.lock().await;
            match connection.take() {
                Some(asker) if asker.is_kept() => *connection = Some(asker),
                other => {
                    self.is_watched.store(false, Ordering::Relaxed);
                    if let Some(asker) = other {
                        asker.server.close();
                    }
                    return;
                }
            }
        }
    }
}

impl Asker {
    async fn open(question: Question) -> Result<Self, OpenFailed> {
        let Question {
            way,
            config,
            credential,
            connect_timeout,
            ..
        } = question;
        let identity = Identity {
            database: config.database.as_str().into(),
            user: config.user.as_str().into(),
            credential: Arc::new(credential),
            replication: None,
            settings: SETTINGS
                .iter()
                .map(|(name, value)| (String::from(*name), String::from(*value)))
                .collect(),
        };
        let server = open(Arc::new(way), identity, connect_timeout).await?;
        Ok(Self {
            server: Box::new(server),
            config,
            used_at: clock::now(),
        })
    }

    fn is_kept(&self) -> bool {
        clock::now().since(self.used_at) < KEPT_FOR && self.server.seat.notice().is_none()
    }

    /// Itself, if it is as it was left, and for this question.
    fn if_usable(mut self, question: &Question) -> Option<Self> {
        let age = clock::now().since(self.server.opened_at);
        let is_usable = self.config == question.config
            && age < question.lifetime
            && Arc::ptr_eq(
                &self.server.opened_by,
                &question.way.in_force.current().server,
            )
            && self.server.seat.notice().is_none()
            && self.server.stream.is_silent();
        is_usable.then_some(self)
    }

    /// Asks for a user; none if there is no such one, or it may not log in.
    async fn ask(&mut self, name: &str) -> Result<Option<Arc<User>>, LookupFailed> {
        let answered = self.server.ask(&self.config.query, name).await;
        if self.server.seat.notice().is_some() {
            // It has stopped leading meanwhile: another one knows better.
            return Err(LookupFailed::Lost);
        }
        match answered {
            Ok(rows) => {
                let secret = read(name, rows).map_err(LookupFailed::Answer)?;
                Ok(secret.map(|secret| Arc::new(user(name, secret))))
            }
            // A name that PostgreSQL cannot even read is nobody's.
            Err(QueryFailed::Refused(why)) if why.code.starts_with("22") => Ok(None),
            Err(QueryFailed::Refused(why)) => Err(LookupFailed::Refused(why)),
            Err(QueryFailed::Lost) => Err(LookupFailed::Lost),
        }
    }
}

/// A user by its secret. One that cannot be used is that of a user who cannot prove itself by a password.
fn user(name: &str, secret: String) -> User {
    User::read(name, secret).unwrap_or_else(|why| {
        warn!(
            user = name,
            "auth.query: this user cannot log in by a password: {why}"
        );
        User::without_password()
    })
}

/// The secret of a user, if there is one. A row holds the name and the secret; NULL is that of one who cannot prove
/// itself by a password. A row with another name is another user's: PostgreSQL cuts names that are too long.
fn read(name: &str, mut rows: Vec<Vec<Option<String>>>) -> Result<Option<String>, &'static str> {
    if rows.len() > 1 {
        return Err("has more than one row");
    }
    let Some(row) = rows.pop() else {
        return Ok(None);
    };
    let mut columns = row.into_iter();
    let (Some(found), Some(secret)) = (columns.next(), columns.next()) else {
        return Err("has fewer than two columns: the name and the secret");
    };
    if found.as_deref() != Some(name) {
        return Ok(None);
    }
    Ok(Some(secret.unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::Secret;

    fn row(columns: &[Option<&str>]) -> Vec<Option<String>> {
        columns.iter().map(|text| text.map(str::to_owned)).collect()
    }

    #[test]
    fn only_one_row_with_the_very_name_is_a_user() {
        let is_user = |rows| read("app", rows).map(|user| user.is_some());
        assert_eq!(is_user(vec![row(&[Some("app"), Some("md5")])]), Ok(true));
        assert_eq!(is_user(vec![]), Ok(false));
        assert_eq!(is_user(vec![row(&[Some("ap"), Some("x")])]), Ok(false));
        assert_eq!(is_user(vec![row(&[None, Some("x")])]), Ok(false));
        assert!(is_user(vec![row(&[Some("app")])]).is_err());
        assert!(is_user(vec![row(&[Some("app"), Some("x")]), row(&[])]).is_err());
    }

    #[test]
    fn nobody_proves_itself_by_no_password() {
        for secret in [None, Some(""), Some("SCRAM-SHA-256$1:x")] {
            let read = read("app", vec![row(&[Some("app"), secret])]).unwrap();
            assert!(matches!(user("app", read.unwrap()).secret(), Secret::Empty));
        }
    }

    #[test]
    fn who_has_proved_nothing_does_not_hear_who_asks() {
        let complaint = Complaint {
            code: "28P01".to_owned(),
            message: "password authentication failed for user \"asker\"".to_owned(),
            routine: String::new(),
            is_fatal: true,
        };
        let refused = LookupFailed::from(OpenFailed::Refused(complaint.clone()));
        for why in [refused, LookupFailed::Refused(complaint)] {
            assert!(why.is_lasting() && why.to_string().contains("asker"));
            assert!(!why.told().contains("asker"));
        }
    }
}
