//! The endpoints: one client each, which of them is asked first, and the probe that finds out.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use etcd_client::{Channel, Client, ConnectOptions, LeaseKeepAliveStream, LeaseKeeper};
use tokio::sync::{Notify, OnceCell};
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::failure::{Failure, classify};
use super::route::Route;
use super::{EtcdConfig, EtcdConfigError, header, seconds_of};
use crate::cluster::Moment;
use crate::dcs::{LeaseAnswer, LeaseId};
use crate::service::clock;

/// How often the current endpoint, if it has nothing else to answer, and the bad ones are probed.
const PROBE_INTERVAL: Duration = Duration::from_millis(500);

/// How long a probe may stay unanswered.
const PROBE_TIMEOUT: Duration = Duration::from_millis(500);

/// A connection on which so many probes in a row got no answer is left for a new one: the path may have lost it (a
/// firewall that forgot it), and HTTP/2 pings find that out after 15 s only.
const SILENT_PROBES: u32 = 3;

/// One etcd member's client address.
pub(super) struct Endpoint {
    pub(super) url: String,
    route: Route,
    options: ConnectOptions,
    /// The same without a user.
    anonymous: ConnectOptions,
    client: Mutex<Arc<OnceCell<Client>>>,
    keep_alive: Mutex<Option<KeepAlive>>,
    is_bad: AtomicBool,
    /// Told when it becomes bad.
    pub(super) doubted: Notify,
    /// That it is bad was said as a warning.
    is_said: AtomicBool,
    /// [`Moment`] of the last answer.
    answered: AtomicU64,
    /// Probes without an answer since the last one, or since the client is this one.
    unanswered: AtomicU32,
    /// A new client logs in first, which an etcd under load can bear least: its connection is left to the pings.
    logs_in: bool,
}

/// An open stream of renewals. Whoever renews takes it out and puts it back after the answer, so that a
/// late answer to a renewal that was given up can never be taken for the next one's.
struct KeepAlive {
    lease: LeaseId,
    keeper: LeaseKeeper,
    stream: LeaseKeepAliveStream,
}

impl Endpoint {
    /// The client, connected (and logged in) at first use.
    pub(super) async fn client(&self) -> Result<Client, Failure> {
        let client = self.lock_client().clone();
        client
            .get_or_try_init(|| async {
                match Client::from_channel(
                    Channel::Tonic(self.route.channel()),
                    Some(self.options.clone()),
                )
                .await
                {
                    // Patroni, too, goes on without the user where etcd knows none.
                    Err(etcd_client::Error::GRpcStatus(status))
                        if status.message().contains("authentication is not enabled") =>
                    {
                        tracing::info!(endpoint = %self.url, "etcd has no authentication enabled");
                        Client::from_channel(
                            Channel::Tonic(self.route.channel()),
                            Some(self.anonymous.clone()),
                        )
                        .await
                    }
                    other => other,
                }
            })
            .await
            .cloned()
            .map_err(|error| match classify(&self.url, error) {
                // Logging in changes nothing in the store.
                Failure::Unknown(why) => Failure::NotExecuted(why),
                other => other,
            })
    }

    /// Renews the lease through the stream that is open, or a new one.
    pub(super) async fn keep_alive(&self, lease: LeaseId) -> Result<LeaseAnswer, Failure> {
        let mut open = self.lock_keep_alive().take();
        if open.as_ref().is_none_or(|open| open.lease != lease) {
            let answer = self.client().await?.lease_client().keep_alive(lease).await;
            open = match answer {
                Ok((keeper, stream)) => Some(KeepAlive {
                    lease,
                    keeper,
                    stream,
                }),
                Err(etcd_client::Error::LeaseKeepAliveError(why)) if why.contains("not found") => {
                    return Err(Failure::LeaseGone(lease));
                }
                Err(error) => return Err(classify(&self.url, error)),
            };
        }
        let Some(mut open) = open else {
            return Err(Failure::NotExecuted("no stream of renewals".to_owned()));
        };
        let failed = |error| classify(&self.url, error);
        open.keeper.keep_alive().await.map_err(failed)?;
        let Some(answer) = open.stream.message().await.map_err(failed)? else {
            return Err(Failure::Unknown("the stream of renewals ended".to_owned()));
        };
        if answer.ttl() <= 0 {
            return Err(Failure::LeaseGone(lease));
        }
        let answer = LeaseAnswer {
            header: header(answer.header()),
            lease,
            ttl: seconds_of(answer.ttl()),
        };
        *self.lock_keep_alive() = Some(open);
        Ok(answer)
    }

    fn lock_keep_alive(&self) -> std::sync::MutexGuard<'_, Option<KeepAlive>> {
        self.keep_alive
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_client(&self) -> std::sync::MutexGuard<'_, Arc<OnceCell<Client>>> {
        self.client.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whatever is asked next opens a new connection, if this one has been silent for long.
    fn leave_silent(&self) {
        let unanswered = self.unanswered.fetch_add(1, Ordering::Relaxed) + 1;
        if self.logs_in || unanswered < SILENT_PROBES {
            return;
        }
        self.unanswered.store(0, Ordering::Relaxed);
        *self.lock_client() = Arc::default();
        self.lock_keep_alive().take();
    }

    pub(super) fn is_bad(&self) -> bool {
        self.is_bad.load(Ordering::Relaxed)
    }

    fn is_quiet(&self) -> bool {
        let answered = Moment(self.answered.load(Ordering::Relaxed));
        clock::now().since(answered) >= PROBE_INTERVAL
    }

    /// Whether the member answers, and knows a leader.
    async fn probe(&self) -> Result<(), String> {
        let status = async { Ok(self.client().await?.maintenance_client().status().await) };
        match timeout(PROBE_TIMEOUT, status).await {
            Err(_) => {
                self.leave_silent();
                Err(format!("no answer to a probe within {PROBE_TIMEOUT:?}"))
            }
            Ok(Err::<_, Failure>(failure)) => Err(format!("{failure:?}")),
            Ok(Ok(Err(error))) => Err(error.to_string()),
            Ok(Ok(Ok(status))) if status.leader() == 0 => Err("it knows no etcd leader".to_owned()),
            Ok(Ok(Ok(_))) => Ok(()),
        }
    }
}

/// All of them.
pub(super) struct Endpoints {
    list: Vec<Arc<Endpoint>>,
    current: AtomicUsize,
}

impl Endpoints {
    pub(super) fn new(config: &EtcdConfig) -> Result<Self, EtcdConfigError> {
        let anonymous = ConnectOptions::new()
            .with_require_leader(true)
            .with_auto_token_refresh(true);
        let options = config.with_user(anonymous.clone());
        let mut list = Vec::new();
        for route in config.routes()? {
            list.push(Arc::new(Endpoint {
                url: route.url(),
                route,
                options: options.clone(),
                anonymous: anonymous.clone(),
                client: Mutex::default(),
                keep_alive: Mutex::new(None),
                is_bad: AtomicBool::new(false),
                doubted: Notify::new(),
                is_said: AtomicBool::new(false),
                answered: AtomicU64::new(0),
                unanswered: AtomicU32::new(0),
                logs_in: config.has_user(),
            }));
        }
        if list.is_empty() {
            return Err(EtcdConfigError::NoEndpoint);
        }
        Ok(Self {
            list,
            current: AtomicUsize::new(0),
        })
    }

    pub(super) fn len(&self) -> usize {
        self.list.len()
    }

    #[expect(
        clippy::indexing_slicing,
        reason = "the list is never empty and never changes"
    )]
    pub(super) fn at(&self, index: usize) -> &Arc<Endpoint> {
        &self.list[index % self.list.len()]
    }

    pub(super) fn current(&self) -> &Arc<Endpoint> {
        self.at(self.current.load(Ordering::Relaxed))
    }

    /// In which order to ask: the current one, the other good ones, the bad ones.
    pub(super) fn order(&self) -> Vec<usize> {
        let current = self.current.load(Ordering::Relaxed);
        let mut order: Vec<_> = (0..self.len())
            .map(|n| (current + n) % self.len())
            .collect();
        order.sort_by_key(|index| self.at(*index).is_bad());
        order
    }

    /// Notes an answer; `index` becomes current if it was not the first one asked.
    pub(super) fn answered(&self, index: usize, was_first: bool) {
        let endpoint = self.at(index);
        let now = clock::now().0;
        endpoint.answered.store(now, Ordering::Relaxed);
        endpoint.unanswered.store(0, Ordering::Relaxed);
        let was_bad = endpoint.is_bad.swap(false, Ordering::Relaxed);
        if endpoint.is_said.swap(false, Ordering::Relaxed) && was_bad {
            tracing::info!(endpoint = %endpoint.url, "the DCS endpoint answers again");
        }
        if !was_first || self.current().is_bad() {
            self.current.store(index, Ordering::Relaxed);
        }
    }

    /// Another endpoint answered first: this one is asked last until it answers a probe. Where all are well
    /// that happens now and then, so nobody is warned.
    pub(super) fn slower(&self, index: usize) {
        let endpoint = self.at(index);
        if !endpoint.is_bad.swap(true, Ordering::Relaxed) {
            tracing::debug!(endpoint = %endpoint.url, "the DCS endpoint is put last: another answered first");
            endpoint.doubted.notify_waiters();
        }
    }

    /// Notes a failure: the endpoint is asked last until it answers a probe.
    pub(super) fn failed(&self, index: usize, why: &str) {
        let endpoint = self.at(index);
        if !endpoint.is_bad.swap(true, Ordering::Relaxed) {
            endpoint.doubted.notify_waiters();
        }
        if !endpoint.is_said.swap(true, Ordering::Relaxed) {
            tracing::warn!(endpoint = %endpoint.url, why, "the DCS endpoint is put last");
        }
    }
}

/// Probes until the client is dropped.
pub(super) async fn probe(endpoints: Weak<Endpoints>) {
    let mut ticks = interval(PROBE_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(endpoints) = endpoints.upgrade() else {
            return;
        };
        let current = endpoints.current.load(Ordering::Relaxed);
        let due: Vec<_> = (0..endpoints.len())
            .filter(|index| {
                let endpoint = endpoints.at(*index);
                endpoint.is_bad() || *index == current && endpoint.is_quiet()
            })
            .collect();
        let probes = due.iter().map(|index| endpoints.at(*index).probe());
        let results = futures_util::future::join_all(probes).await;
        for (index, result) in due.iter().zip(results) {
            match result {
                Ok(()) => endpoints.answered(*index, true),
                Err(why) => endpoints.failed(*index, &why),
            }
        }
        if let Some(best) = endpoints.order().first() {
            endpoints.current.store(*best, Ordering::Relaxed);
        }
    }
}
