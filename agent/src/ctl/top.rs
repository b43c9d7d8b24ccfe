//! `top`: the cluster as it is, redrawn: members, who holds what, how much of the lease is left, what happened last.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use hyper::Method;
use serde_json::Value;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use trunkline_shared::cluster::topology::FactKey;
use trunkline_shared::cluster::{MemberName, Moment, Topology};
use trunkline_shared::dcs::records::history_lines;
use trunkline_shared::dcs::watch::View;
use trunkline_shared::service::clock;
use trunkline_shared::service::http::HttpClient;

use super::arguments::Top;
use super::rest::request;
use super::{CtlError, Session, local_time};

mod events;
mod frame;
mod screen;

use events::Events;
use frame::{Frame, Status};
use screen::{Key, Screen};

/// How many lines of the history stand among the events at the beginning.
const HISTORY: usize = 5;

/// How long a member may take to say how it is.
const ANSWER: Duration = Duration::from_millis(900);

/// The shortest and the longest time between two drawings.
const REFRESH: std::ops::RangeInclusive<f64> = 0.2..=60.0;

/// `trunkline top`
pub(super) async fn top(session: &Session, asked: &Top) -> Result<(), CtlError> {
    if !REFRESH.contains(&asked.refresh) {
        return Err(CtlError::Usage(format!(
            "--refresh {}: seconds from {} to {} are needed",
            asked.refresh,
            REFRESH.start(),
            REFRESH.end()
        )));
    }
    if !session.terminal.is_drawn_on() || !session.terminal.is_interactive() {
        let why = "top needs a terminal; elsewhere use trunkline list --watch SECONDS";
        return Err(CtlError::Usage(why.to_owned()));
    }
    let (mut follow, view) = session.known().await?;
    let mut events = Events::default();
    for line in history(&view).into_iter().flatten() {
        events.add(line.0, line.1);
    }
    let mut asking = Asking::new(session.client()?);
    let mut ended = signal(SignalKind::terminate())
        .map_err(|error| CtlError::Output(format!("SIGTERM cannot be waited for: {error}")))?;
    let mut screen = Screen::open()?;
    let mut shown: Arc<Topology> = view.topology.clone();
    let mut tick = tokio::time::interval(Duration::from_secs_f64(asked.refresh));
    loop {
        let view = follow.views.borrow_and_update().clone();
        let time = local_time::to_seconds(clock::wall_clock());
        for text in events::changes(&shown, &view.topology) {
            events.add(time.clone(), text);
        }
        shown = view.topology.clone();
        let frame = Frame {
            cluster: &session.cluster,
            view: &view,
            statuses: &asking.statuses,
            events: &events,
            time,
            now: clock::now(),
        };
        screen.draw(&frame.lines(screen.size()))?;
        tokio::select! {
            _ = tick.tick() => asking.begin(&shown),
            Some((name, status)) = asking.next() => drop(asking.statuses.insert(name, status)),
            changed = follow.views.changed() => {
                changed.map_err(|_| CtlError::Failed("the cluster is not followed any more".to_owned()))?;
            }
            key = screen.key() => match key {
                Some(Key::Quit) | None => return Ok(()),
                Some(Key::Other) => {}
            },
            _ = ended.recv() => return Ok(()),
        }
    }
}

/// The last lines of the history, each with its time.
fn history(view: &View) -> Option<Vec<(String, String)>> {
    let lines = history_lines(&view.raw.get(&FactKey::History)?.text).ok()?;
    let newest = lines.len().saturating_sub(HISTORY);
    let told = lines[newest..].iter().map(|line| {
        let leader = line.leader.as_deref().unwrap_or("a new leader");
        let time = line.time.clone().unwrap_or_default();
        let time = time.get(..19).unwrap_or(&time).replace('T', " ");
        (
            time,
            format!(
                "timeline {} ended at {}: {leader} led",
                line.timeline, line.end
            ),
        )
    });
    Some(told.collect())
}

/// The members, asked how they are.
struct Asking {
    client: HttpClient,
    under_way: JoinSet<(MemberName, Status)>,
    statuses: BTreeMap<MemberName, Status>,
}

impl Asking {
    fn new(client: HttpClient) -> Self {
        Self {
            client,
            under_way: JoinSet::new(),
            statuses: BTreeMap::new(),
        }
    }

    /// Asks everybody, unless the last answers are still waited for.
    fn begin(&mut self, topology: &Topology) {
        self.statuses
            .retain(|name, _| topology.members.contains_key(name));
        if !self.under_way.is_empty() {
            return;
        }
        for member in topology.members.values() {
            let (name, url) = (member.name.clone(), member.api_url.clone());
            let client = self.client.clone();
            self.under_way.spawn(async move {
                let asked_at = clock::now();
                let asking = request(
                    &client,
                    &url,
                    Method::GET,
                    "/patroni",
                    String::new(),
                    ANSWER,
                );
                let status = match asking.await {
                    Ok(answer) => read(&answer.text, asked_at),
                    Err(_) => Status::silent(asked_at),
                };
                (name, status)
            });
        }
    }

    /// The next answer; never, while nobody is asked.
    async fn next(&mut self) -> Option<(MemberName, Status)> {
        match self.under_way.join_next().await {
            Some(Ok(answer)) => Some(answer),
            Some(Err(_)) => None,
            None => std::future::pending().await,
        }
    }
}

fn read(text: &str, asked_at: Moment) -> Status {
    let status: Value = serde_json::from_str(text).unwrap_or_default();
    let own = &status["trunkline"];
    Status {
        answers: true,
        asked_at,
        lease_left: own["lease_left_ms"].as_u64().map(Duration::from_millis),
        is_writable: own["writable"].as_bool().unwrap_or(false),
        reason: own["reason"].as_str().map(str::to_owned),
    }
}
