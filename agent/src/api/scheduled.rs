//! Restarts for later: kept by this agent, shown in its status, handed to the program that takes over from it, and
//! else dropped with it, as Patroni does.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::http::StatusCode;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use trunkline_shared::cluster::member::RestartSchedule;
use trunkline_shared::dcs::records::restart_schedule_to_json;
use trunkline_shared::service::clock::{self, WallTime};

use super::local::{self, RestartBody};
use super::{Api, text};

/// How often the clock is looked at while a restart is scheduled: it may be set meanwhile.
const LOOK: Duration = Duration::from_secs(1);
/// How Patroni's answer with 409 to a `POST /restart` for later begins.
pub const ALREADY_SCHEDULED: &str = "another restart is already scheduled";
/// Patroni's answer with 404 to `DELETE /restart` where none is scheduled.
pub const NONE_SCHEDULED: &str = "no restarts are scheduled";
/// The same where one has begun.
const BEGUN: &str = "no restarts are scheduled: the one that was is being carried out, which is not taken back; see its \
     progress in GET /patroni";
/// So much of the answer to it is logged, bytes.
const LONGEST_ANSWER: usize = 4096;

/// A restart for later.
#[derive(Clone, Debug)]
struct Scheduled {
    at: WallTime,
    asked: Asked,
    /// Its time has come and it was asked for: nothing takes it back any more. It stands until that is answered, for the
    /// program that may take over before anybody took it up.
    is_begun: bool,
}

/// What was asked for, as one program tells the next.
#[derive(Clone, Debug, Deserialize, Serialize)]
struct Asked {
    /// The request. Its conditions are to hold when the time comes.
    request: RestartBody,
    /// The start of the postmaster it was asked for: after another one the restart has happened.
    started: Option<Arc<str>>,
}

impl Asked {
    fn written(&self) -> &str {
        self.request.schedule.as_deref().unwrap_or_default()
    }
}

/// The restart that is scheduled on this member, one at most.
#[derive(Clone, Debug, Default)]
pub struct ScheduledRestart(Arc<Mutex<Option<Scheduled>>>);

impl ScheduledRestart {
    fn kept(&self) -> MutexGuard<'_, Option<Scheduled>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For the program that takes over: one line; `None` if none is scheduled.
    pub fn handed_on(&self) -> Option<String> {
        let kept = self.kept();
        serde_json::to_string(&kept.as_ref()?.asked).ok()
    }

    /// Keeps what the program before has [handed on](Self::handed_on). It happens once [`resume`] waits for it.
    pub fn take_over(&self, told: &str) {
        let asked: Option<Asked> = serde_json::from_str(told).ok();
        let due = asked.and_then(|asked| Some((WallTime::parse(asked.written())?, asked)));
        match due {
            Some((at, asked)) => {
                *self.kept() = Some(Scheduled {
                    at,
                    asked,
                    is_begun: false,
                });
            }
            None => tracing::warn!(
                told,
                "the scheduled restart that the program before has handed on is not understood and dropped"
            ),
        }
    }

    /// What is scheduled for that time, if it still is.
    fn standing(&self, due: WallTime) -> Option<Asked> {
        let kept = self.kept();
        let kept = kept.as_ref().filter(|kept| kept.at == due)?;
        Some(kept.asked.clone())
    }

    /// From now on it is not for later any more; `None` if it was taken back.
    fn begin(&self, due: WallTime) -> Option<Asked> {
        let mut kept = self.kept();
        let kept = kept.as_mut().filter(|kept| kept.at == due)?;
        kept.is_begun = true;
        Some(kept.asked.clone())
    }

    fn is_over(&self, due: WallTime) {
        self.kept().take_if(|kept| kept.at == due);
    }

    /// As in the status of the member; `None` if none is scheduled.
    pub(super) fn shown(&self) -> Option<Value> {
        self.recorded()
            .map(|scheduled| restart_schedule_to_json(&scheduled))
    }

    /// As in the member's record; `None` if none is scheduled. One that has begun is not, as in Patroni.
    pub fn recorded(&self) -> Option<RestartSchedule> {
        let kept = self.kept();
        let scheduled = kept.as_ref().filter(|kept| !kept.is_begun)?;
        Some(RestartSchedule {
            schedule: scheduled.asked.written().into(),
            postgres_version: scheduled
                .asked
                .request
                .postgres_version
                .as_deref()
                .map(Arc::from),
            postmaster_start_time: scheduled.asked.started.clone(),
        })
    }

    /// `DELETE /restart`, with Patroni's codes: what has begun is not scheduled any more.
    pub(super) fn delete(&self) -> Response {
        let mut kept = self.kept();
        if kept.as_ref().is_some_and(|kept| kept.is_begun) {
            return text(StatusCode::NOT_FOUND, BEGUN);
        }
        match kept.take() {
            Some(_) => text(StatusCode::OK, "scheduled restart deleted"),
            None => text(StatusCode::NOT_FOUND, NONE_SCHEDULED),
        }
    }
}

/// When something is scheduled for, if it may be: in the future, with an offset, and not in maintenance.
///
/// # Errors
/// Patroni's 400 or 422 with what is wrong.
pub(super) fn due(at: &str, what: &str, is_paused: bool) -> Result<WallTime, (u16, String)> {
    if is_paused {
        let why = format!("can't schedule {what} in the paused state");
        // Patroni's codes differ.
        return Err((if what == "restart" { 500 } else { 400 }, why));
    }
    if WallTime::parse(at).is_none() && WallTime::parse(&format!("{at}Z")).is_some() {
        let why = format!(
            "the scheduled time \"{at}\" has no offset, and nobody can know whose local time it is: write it as \
             2026-11-20T10:00:00+00:00"
        );
        return Err((400, why));
    }
    let Some(due) = WallTime::parse(at) else {
        let why = format!(
            "unable to parse the scheduled time \"{at}\": write it as ISO 8601 with its offset, such as \
             2026-11-20T10:00:00+00:00"
        );
        return Err((422, why));
    };
    if due <= clock::wall_clock() {
        return Err((422, format!("cannot schedule {what} in the past")));
    }
    Ok(due)
}

/// `POST /restart` with a `schedule`.
pub(super) fn restart(api: &Api, at: &str, body: RestartBody) -> Response {
    let published = api.published.load();
    let due = match due(at, "restart", published.is_paused) {
        Ok(due) => due,
        Err((status, why)) => {
            let status = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_REQUEST);
            return text(status, &why);
        }
    };
    let mut kept = api.scheduled_restart.kept();
    if let Some(other) = kept.as_ref() {
        let why = match other.is_begun {
            true => {
                "a scheduled restart is being carried out; ask again when it is over".to_owned()
            }
            false => format!("{ALREADY_SCHEDULED}; delete it first"),
        };
        return text(StatusCode::CONFLICT, &why);
    }
    let started = published.postmaster_start_time.as_ref();
    let asked = Asked {
        request: body,
        started: started.map(|time| time.text.clone()),
    };
    *kept = Some(Scheduled {
        at: due,
        asked,
        is_begun: false,
    });
    tokio::spawn(wait(api.clone(), due));
    text(StatusCode::ACCEPTED, "restart scheduled")
}

/// Waits for the restart that the program before has handed on, if there is one. To be called once a turn has
/// published which postmaster runs.
pub async fn resume(api: Api) {
    let due = api.scheduled_restart.kept().as_ref().map(|kept| kept.at);
    if let Some(due) = due {
        wait(api, due).await;
    }
}

/// Waits for its time, and asks for it if it still stands and its conditions hold then.
async fn wait(api: Api, due: WallTime) {
    loop {
        let is_there = api.scheduled_restart.kept().as_ref().map(|s| s.at) == Some(due);
        if !is_there {
            return;
        }
        let left = due.0.saturating_sub(clock::wall_clock().0);
        let Some(left) = u64::try_from(left).ok().filter(|left| *left > 0) else {
            break;
        };
        tokio::time::sleep(Duration::from_micros(left).min(LOOK)).await;
    }
    // It stands until it is carried out: while the program on disk takes over, nobody answers, and that one asks again.
    let asked = api.scheduled_restart.standing(due);
    let Some(asked) = asked else {
        return;
    };
    let published = api.published.load_full();
    let late = clock::wall_clock().0.saturating_sub(due.0);
    let late = Duration::from_micros(u64::try_from(late).unwrap_or(0));
    let now = published.postmaster_start_time.as_ref();
    let dropped = if published.is_paused {
        Some("the cluster is paused".to_owned())
    } else if late > published.topology.settings_or_default().loop_wait * 3 / 2 {
        Some(format!("it is {late:?} late"))
    } else if now.map(|time| time.text.clone()) != asked.started {
        Some("PostgreSQL was restarted since it was asked for".to_owned())
    } else {
        local::unmet(&asked.request, &published)
    };
    if let Some(why) = dropped {
        tracing::warn!(at = asked.written(), why, "a scheduled restart is dropped");
        api.scheduled_restart.is_over(due);
        return;
    }
    let Some(asked) = api.scheduled_restart.begin(due) else {
        return;
    };
    tracing::info!(at = asked.written(), "a scheduled restart begins");
    let answer = local::ask_for_restart(&api, &asked.request).await;
    api.scheduled_restart.is_over(due);
    let status = answer.status().as_u16();
    let text = axum::body::to_bytes(answer.into_body(), LONGEST_ANSWER).await;
    let text = text.unwrap_or_default();
    let answer = String::from_utf8_lossy(&text);
    match status {
        200 => tracing::info!(status, %answer, "a scheduled restart is over"),
        // Nobody waits for the answer.
        _ => tracing::warn!(status, %answer, "a scheduled restart was not carried out"),
    }
}
