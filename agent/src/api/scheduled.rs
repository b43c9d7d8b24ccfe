//! Restarts for later: kept by this agent, shown in its status, and dropped with it, as Patroni does.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::http::StatusCode;
use axum::response::Response;
use serde_json::Value;
use trunkline_shared::cluster::member::RestartSchedule;
use trunkline_shared::dcs::records::restart_schedule_to_json;
use trunkline_shared::service::clock::{self, WallTime};

use super::local::{self, RestartBody};
use super::{Api, text};

/// How often the clock is looked at while a restart is scheduled: it may be set meanwhile.
const LOOK: Duration = Duration::from_secs(1);

/// A restart for later.
#[derive(Clone, Debug)]
struct Scheduled {
    at: WallTime,
    written: String,
    postgres_version: Option<Arc<str>>,
    /// The start of the postmaster it was asked for: after another one the restart has happened.
    started: Option<Arc<str>>,
}

/// The restart that is scheduled on this member, one at most.
#[derive(Clone, Debug, Default)]
pub struct ScheduledRestart(Arc<Mutex<Option<Scheduled>>>);

impl ScheduledRestart {
    fn kept(&self) -> MutexGuard<'_, Option<Scheduled>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether one is scheduled.
    pub fn is_there(&self) -> bool {
        self.kept().is_some()
    }

    /// As in the status of the member; `None` if none is scheduled.
    pub(super) fn shown(&self) -> Option<Value> {
        self.recorded()
            .map(|scheduled| restart_schedule_to_json(&scheduled))
    }

    /// As in the member's record; `None` if none is scheduled.
    pub fn recorded(&self) -> Option<RestartSchedule> {
        let kept = self.kept();
        let scheduled = kept.as_ref()?;
        Some(RestartSchedule {
            schedule: scheduled.written.as_str().into(),
            postgres_version: scheduled.postgres_version.clone(),
            postmaster_start_time: scheduled.started.clone(),
        })
    }

    /// `DELETE /restart`.
    pub(super) fn delete(&self) -> Response {
        match self.kept().take() {
            Some(_) => text(StatusCode::OK, "scheduled restart deleted"),
            None => text(StatusCode::NOT_FOUND, "no restarts are scheduled"),
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
    if kept.is_some() {
        return text(
            StatusCode::CONFLICT,
            "another restart is already scheduled; delete it first",
        );
    }
    let started = published.postmaster_start_time.as_ref();
    *kept = Some(Scheduled {
        at: due,
        written: at.to_owned(),
        postgres_version: body.postgres_version.as_deref().map(Arc::from),
        started: started.map(|time| time.text.clone()),
    });
    tokio::spawn(wait(api.clone(), due, body));
    text(StatusCode::ACCEPTED, "restart scheduled")
}

/// Waits for its time, and asks for it if it still stands and its conditions hold then.
async fn wait(api: Api, due: WallTime, body: RestartBody) {
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
    let Some(scheduled) = api.scheduled_restart.kept().take() else {
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
    } else if now.map(|time| time.text.clone()) != scheduled.started {
        Some("PostgreSQL was restarted since it was asked for".to_owned())
    } else {
        local::unmet(&body, &published)
    };
    if let Some(why) = dropped {
        tracing::warn!(
            at = scheduled.written,
            why,
            "a scheduled restart is dropped"
        );
        return;
    }
    tracing::info!(at = scheduled.written, "a scheduled restart begins");
    let answer = local::ask_for_restart(&api, &body).await;
    tracing::info!(
        status = answer.status().as_u16(),
        "a scheduled restart is over"
    );
}
