//! An open watch on one endpoint.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use etcd_client::{EventType, WatchOptions, WatchResponse, WatchStream};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, sleep_until};

use super::endpoint::Endpoint;
use super::failure::{Failure, classify};
use super::{Checks, entry, header};
use crate::cluster::Moment;
use crate::dcs::{DcsError, Revision, Watch, WatchEvent};
use crate::service::clock;

/// How often the server is asked for a sign of life.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);

/// How long the server may leave a question unanswered, or be silent, before the watch is given up.
const SILENCE_LIMIT: Duration = Duration::from_secs(2);

/// The same where the endpoint has failed to answer something else, or was slower than another: whoever waits for what a
/// watch shows, in a change of leader every client, does not wait out the silence of a member that is gone.
const DOUBT_LIMIT: Duration = Duration::from_millis(300);

/// A watch whose creation was confirmed.
pub(super) struct EtcdWatch {
    endpoint: Arc<Endpoint>,
    stream: WatchStream,
    ticks: Interval,
    heard: Instant,
    /// The question under way: one at a time, so that an answer is never taken for that to a later one.
    asked: Option<(Moment, Instant)>,
    /// Responses that came before the creation was confirmed.
    early: VecDeque<WatchResponse>,
}

/// Opens a watch and waits for its confirmation.
pub(super) async fn open(
    endpoint: &Arc<Endpoint>,
    prefix: &str,
    from: Revision,
    checks: &Checks,
) -> Result<EtcdWatch, Failure> {
    let options = WatchOptions::new().with_prefix().with_start_revision(from);
    let mut stream = endpoint
        .client()
        .await?
        .watch_client()
        .watch(prefix, Some(options))
        .await
        .map_err(|error| classify(&endpoint.url, error))?;
    let mut early = VecDeque::new();
    loop {
        let message = stream.message().await;
        let Some(response) = message.map_err(|error| classify(&endpoint.url, error))? else {
            return Err(Failure::NotExecuted("the watch ended at once".to_owned()));
        };
        checks.same_cluster(header(response.header()))?;
        if response.canceled() {
            return Err(match canceled(&endpoint.url, &response) {
                DcsError::Unreachable { why, .. } => Failure::NotExecuted(why),
                other => Failure::Final(other),
            });
        }
        let is_created = response.created();
        early.push_back(response);
        if is_created {
            break;
        }
    }
    let mut ticks = interval(PROGRESS_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks.reset();
    Ok(EtcdWatch {
        endpoint: endpoint.clone(),
        stream,
        ticks,
        heard: Instant::now(),
        asked: None,
        early,
    })
}

fn canceled(url: &str, response: &WatchResponse) -> DcsError {
    if response.compact_revision() > 0 {
        return DcsError::Compacted(response.compact_revision());
    }
    let why = response.cancel_reason();
    if why.contains("permission denied") {
        return DcsError::Refused {
            endpoint: url.to_owned(),
            why: why.to_owned(),
        };
    }
    lost(url, format!("the watch was cancelled: {why}"))
}

fn lost(url: &str, why: String) -> DcsError {
    DcsError::Unreachable {
        tried: url.to_owned(),
        why,
    }
}

#[async_trait]
impl Watch for EtcdWatch {
    async fn next(&mut self) -> Result<WatchEvent, DcsError> {
        loop {
            if let Some(response) = self.early.pop_front() {
                if let Some(event) = self.event(&response)? {
                    return Ok(event);
                }
                continue;
            }
            let endpoint = self.endpoint.clone();
            // Listening before looking, so that no doubt comes in between.
            let mut doubted = pin!(endpoint.doubted.notified());
            doubted.as_mut().enable();
            let is_doubted = endpoint.is_bad();
            let asked = self.asked.map_or(self.heard, |(_, at)| at);
            // etcd may answer the question late; under doubt anything that comes is a sign of life.
            let (silent_since, limit) = match is_doubted {
                true => (asked.max(self.heard), DOUBT_LIMIT),
                false => (asked, SILENCE_LIMIT),
            };
            tokio::select! {
                biased;
                message = self.stream.message() => match message {
                    Ok(Some(response)) => {
                        self.heard = Instant::now();
                        self.early.push_back(response);
                    }
                    Ok(None) => return Err(lost(&self.endpoint.url, "the watch ended".to_owned())),
                    Err(error) => return Err(lost(&self.endpoint.url, error.to_string())),
                },
                () = sleep_until(silent_since + limit) => {
                    if is_doubted && self.asked.is_none() {
                        self.ask().await?;
                        continue;
                    }
                    let why = format!("the watch was silent for {limit:?}");
                    return Err(lost(&self.endpoint.url, why));
                }
                _ = self.ticks.tick(), if self.asked.is_none() => self.ask().await?,
                () = doubted => {}
            }
        }
    }
}

impl EtcdWatch {
    /// Asks the server for a sign of life.
    async fn ask(&mut self) -> Result<(), DcsError> {
        self.asked = Some((clock::now(), Instant::now()));
        let asked = self.stream.request_progress().await;
        asked.map_err(|error| lost(&self.endpoint.url, error.to_string()))
    }

    fn event(&mut self, response: &WatchResponse) -> Result<Option<WatchEvent>, DcsError> {
        if response.canceled() {
            return Err(canceled(&self.endpoint.url, response));
        }
        let revision = header(response.header()).revision;
        if response.events().is_empty() {
            if response.created() {
                return Ok(None);
            }
            // What nobody asked for proves nothing.
            let asked = self.asked.take();
            return Ok(asked.map(|(asked, _)| WatchEvent::Progress { revision, asked }));
        }
        let changes = response
            .events()
            .iter()
            .filter_map(|event| {
                let found = entry(event.kv()?.clone());
                Some(match event.event_type() {
                    EventType::Put => (found.key.clone(), Some(found)),
                    EventType::Delete => (found.key, None),
                })
            })
            .collect();
        Ok(Some(WatchEvent::Changes { revision, changes }))
    }
}
