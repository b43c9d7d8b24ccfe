//! Requests to this agent alone: they go to its loop through a channel and come back with what became of
//! them.

use std::time::Duration;

use axum::response::Response;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};
use trunkline_shared::cluster::switchover::Drain;
use trunkline_shared::cluster::{MemberName, MemberRole, quantity};
use trunkline_shared::dcs::records::{drain_from_json, role_from_word, role_word};

use super::{Api, Published, scheduled, with_status};

/// How long the loop may take to take a request up, and to be done with a restart.
const LONGEST: Duration = Duration::from_secs(3600);

/// A request to this agent alone. The loop answers through `answer`; dropping it counts as refused.
#[derive(Debug)]
pub enum LocalRequest {
    /// Restart PostgreSQL.
    Restart {
        /// How long routers hold new transactions for it until those that run have ended, and what follows.
        drain: Drain,
        /// Answered when PostgreSQL runs again, or when it is known that it will not.
        answer: oneshot::Sender<LocalOutcome>,
    },
    /// Replace the data by a new clone.
    Reinitialize {
        /// Even while another long job runs: refused then, for this version does not cut it off.
        force: bool,
        /// Answered as soon as the job has started or was refused.
        answer: oneshot::Sender<LocalOutcome>,
    },
    /// Read the configuration again.
    Reload {
        /// Answered when the new configuration is in force, or was found wrong.
        answer: oneshot::Sender<LocalOutcome>,
    },
}

/// What became of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LocalOutcome {
    /// Done; says what.
    Done(String),
    /// Not begun; says why.
    Refused(String),
    /// Begun and failed, or done in part; says how.
    Failed(String),
    /// Not begun, and asking again the same way will not help; says why.
    Unsupported(String),
}

/// The body of `POST /restart`. A condition that is not understood would restart what it was to spare.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RestartBody {
    restart_pending: Option<bool>,
    role: Option<String>,
    pub(super) postgres_version: Option<String>,
    timeout: Option<serde_json::Value>,
    pub(super) schedule: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    drain_timeout: Option<serde_json::Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    on_timeout: Option<serde_json::Value>,
}

impl RestartBody {
    /// What becomes of the transactions that run on a leader.
    fn drain(&self) -> Result<Drain, String> {
        let fields = [
            ("drain_timeout", &self.drain_timeout),
            ("on_timeout", &self.on_timeout),
        ];
        let said = fields.into_iter().filter_map(|(name, value)| {
            let value = value.clone()?;
            Some((name.to_owned(), value))
        });
        drain_from_json(&said.collect())
    }
}

/// The body of `POST /reinitialize`.
#[derive(Debug, Default, Deserialize)]
struct ReinitializeBody {
    #[serde(default)]
    force: bool,
    #[serde(default, rename = "from-leader", alias = "from_leader")]
    from_leader: bool,
}

/// `POST /restart`.
pub async fn restart(api: &Api, body: &[u8]) -> Response {
    let body: RestartBody = match parsed(body) {
        Ok(body) => body,
        Err(wrong) => return with_status(400, "text/plain", wrong),
    };
    if let Err(wrong) = limit(&body).and(body.drain()) {
        return with_status(400, "text/plain", wrong);
    }
    let held = why_not(&body, &api.published.load());
    if let Err(wrong) = held {
        return with_status(400, "text/plain", wrong);
    }
    if let Some(at) = body.schedule.clone().filter(|at| at != "now") {
        // Its conditions are to hold when it comes.
        return scheduled::restart(api, &at, body);
    }
    if let Ok(Some(why)) = held {
        return with_status(503, "text/plain", why);
    }
    ask_for_restart(api, &body).await
}

/// The condition that does not hold now, if any.
pub(super) fn unmet(body: &RestartBody, published: &Published) -> Option<String> {
    why_not(body, published).unwrap_or_else(Some)
}

/// Restarts now and waits for the outcome, for the request's `timeout` at the longest. How long PostgreSQL may take to
/// start is the cluster's to say (`primary_start_timeout`): whether a start goes on decides who leads.
pub(super) async fn ask_for_restart(api: &Api, body: &RestartBody) -> Response {
    let (answer, outcome) = oneshot::channel();
    let drain = body.drain().unwrap_or_default();
    let sent = LocalRequest::Restart { drain, answer };
    let limit = limit(body).unwrap_or(LONGEST);
    let asking = response(&api.requests, sent, outcome, 200);
    tokio::time::timeout(limit, asking)
        .await
        .unwrap_or_else(|_| {
            let text = format!(
                "the restart is not finished after {limit:?} and goes on (the timeout ends this answer, not the start: \
                 primary_start_timeout limits that); see GET /patroni"
            );
            with_status(503, "text/plain", text)
        })
}

/// `timeout`: seconds, or a quantity such as `1min`.
fn limit(body: &RestartBody) -> Result<Duration, String> {
    let Some(value) = body.timeout.as_ref().filter(|value| !value.is_null()) else {
        return Ok(LONGEST);
    };
    let text = match value {
        serde_json::Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let limit = quantity::duration(&text).filter(|limit| !limit.is_zero());
    limit.ok_or_else(|| format!("timeout \"{text}\" is no time above 0 such as 30 or 1min"))
}

/// The condition of the request that does not hold, if any.
fn why_not(body: &RestartBody, published: &Published) -> Result<Option<String>, String> {
    if body.restart_pending == Some(true) && !published.has_pending_restart {
        return Ok(Some(
            "restart conditions are not satisfied: no restart is pending".to_owned(),
        ));
    }
    if let Some(word) = body.role.as_deref().filter(|word| !word.is_empty()) {
        let wanted = match word {
            "leader" | "master" => MemberRole::Primary,
            word => role_from_word(word).ok_or_else(|| format!("role \"{word}\" is not known"))?,
        };
        if wanted != published.role {
            return Ok(Some(format!(
                "restart conditions are not satisfied: this member is {}",
                role_word(published.role)
            )));
        }
    }
    if let Some(text) = body
        .postgres_version
        .as_deref()
        .filter(|text| !text.is_empty())
    {
        let wanted = version_number(text)
            .ok_or_else(|| format!("postgres_version \"{text}\" is not of the form 15.3"))?;
        if published
            .server_version
            .is_some_and(|running| running >= wanted)
        {
            return Ok(Some(format!(
                "restart conditions are not satisfied: PostgreSQL is not older than {text}"
            )));
        }
    }
    Ok(None)
}

/// `15.3` as 150003; the three parts of versions before 10 are taken, too.
pub(crate) fn version_number(text: &str) -> Option<u32> {
    let mut parts = text.split('.').map(str::parse::<u32>);
    let major = parts.next()?.ok()?.checked_mul(10_000)?;
    let second = parts.next().unwrap_or(Ok(0)).ok()?;
    let number = match parts.next() {
        Some(third) => second.checked_mul(100)?.checked_add(third.ok()?)?,
        None => second,
    };
    let is_over = parts.next().is_none() && number < 10_000;
    is_over.then_some(major + number)
}

/// `POST /reinitialize`.
pub async fn reinitialize(api: &Api, body: &[u8]) -> Response {
    let body: ReinitializeBody = match parsed(body) {
        Ok(body) => body,
        Err(wrong) => return with_status(400, "text/plain", wrong),
    };
    let published = api.published.load_full();
    let leader = published.topology.leader.as_ref();
    // Who leads a standby cluster is copied from another one.
    let settings = published.topology.settings_or_default();
    let is_source = settings.standby_cluster.is_none();
    let refused = match leader {
        None => Some("there is no leader to copy from"),
        Some(leader) if leader.member == published.name && is_source => {
            Some("this member is the leader; switch over first")
        }
        Some(_) => None,
    };
    if let Some(why) = refused {
        return with_status(503, "text/plain", format!("cannot reinitialize: {why}"));
    }
    if body.from_leader
        && let Some(other) = tagged_to_clone_from(&published)
    {
        let text = format!(
            "from-leader cannot be promised by this version while another member is tagged clonefrom: a \
             second attempt may copy from {other}; leave from-leader out, or remove the tag first"
        );
        return with_status(422, "text/plain", text);
    }
    let (answer, outcome) = oneshot::channel();
    let sent = LocalRequest::Reinitialize {
        force: body.force,
        answer,
    };
    response(&api.requests, sent, outcome, 200).await
}

/// A replica from which a copy may be taken in place of the leader.
fn tagged_to_clone_from(published: &Published) -> Option<MemberName> {
    let topology = &published.topology;
    let leader = topology.leader.as_ref().map(|leader| &leader.member);
    topology
        .members
        .values()
        .find(|m| m.tags.clonefrom && m.name != published.name && Some(&m.name) != leader)
        .map(|m| m.name.clone())
}

/// `POST /reload`.
pub async fn reload(api: &Api) -> Response {
    let (answer, outcome) = oneshot::channel();
    response(&api.requests, LocalRequest::Reload { answer }, outcome, 202).await
}

fn parsed<T: Default + serde::de::DeserializeOwned>(body: &[u8]) -> Result<T, String> {
    if body.trim_ascii().is_empty() {
        return Ok(T::default());
    }
    object(body)
}

/// Reads a JSON object; a list of the same values is none.
pub(super) fn object<T: serde::de::DeserializeOwned>(body: &[u8]) -> Result<T, String> {
    if body.trim_ascii_start().first() != Some(&b'{') {
        return Err("the body must be a JSON object".to_owned());
    }
    serde_json::from_slice(body)
        .map_err(|error| format!("the body is not the JSON expected: {error}"))
}

async fn response(
    requests: &mpsc::Sender<LocalRequest>,
    request: LocalRequest,
    outcome: oneshot::Receiver<LocalOutcome>,
    done: u16,
) -> Response {
    // A full queue means that requests come faster than PostgreSQL can restart: nobody is served by more.
    if requests.try_send(request).is_err() {
        let text = "the agent is busy with other requests; try again".to_owned();
        return with_status(503, "text/plain", text);
    }
    match tokio::time::timeout(LONGEST, outcome).await {
        Ok(Ok(LocalOutcome::Done(text))) => with_status(done, "text/plain", text),
        Ok(Ok(LocalOutcome::Refused(text) | LocalOutcome::Failed(text))) => {
            with_status(503, "text/plain", text)
        }
        Ok(Ok(LocalOutcome::Unsupported(text))) => with_status(422, "text/plain", text),
        Ok(Err(_)) => {
            let text = "the agent dropped the request; see its log".to_owned();
            with_status(503, "text/plain", text)
        }
        Err(_) => {
            let text = "the request is not finished; see the agent's log".to_owned();
            with_status(503, "text/plain", text)
        }
    }
}
