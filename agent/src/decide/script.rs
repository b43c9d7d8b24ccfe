//! Observations and decisions as text: the language of the scripts in `tests/decide`, of the journal and
//! of `trunkline explain`, so that a recorded incident becomes a test by copying it. Pure.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use trunkline_shared::cluster::member::{Member, SwitchoverReady, TrunklineFields};
use trunkline_shared::cluster::timeline::TimelineEnd;
use trunkline_shared::cluster::topology::{
    ClaimedTimeline, FailoverRequest, Initialize, SwitchoverRecord,
};
use trunkline_shared::cluster::{
    ClusterSettings, Leader, LeaderEpoch, MemberName, MemberRole, MemberState, Moment, SystemId,
    Tags, Timeline, TimelineHistory, Topology,
};

use super::callbacks::Callback;
use super::memory::Memory;
use super::observation::{
    BootstrapKind, CrashPolicy, DcsView, Due, FenceView, HealthView, Held, JobView, LeaseView,
    Local, LocalRequest, Me, NoRace, Observation, Peers, WatchdogView,
};
use super::store::StoreView;
use instance::{job, local, memory, peers};
use names::{ROLES, STATES, role_word, state_word};
pub use test_case::{outcome, test_case};
use words::{Words, split_words};

mod changes;
mod failsafe;
mod instance;
mod names;
mod output;
pub mod print;
mod slots;
mod store;
mod synchronous;
mod test_case;
mod words;

/// How far ahead an armed fence's deadline lies where a script does not say.
const ARMED_FOR: Duration = Duration::from_secs(3600);

/// What a line of a script says wrongly.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScriptError {
    /// No such command.
    #[error("unknown command \"{0}\"")]
    UnknownCommand(String),
    /// A word the command does not know.
    #[error("{command}: unknown word \"{word}\"")]
    UnknownWord {
        /// The command.
        command: String,
        /// The word.
        word: String,
    },
    /// A value that is not of the needed form.
    #[error("{command}: \"{value}\" is not {expected}")]
    WrongValue {
        /// The command.
        command: String,
        /// The value.
        value: String,
        /// What it should be.
        expected: &'static str,
    },
}

/// One command of a script: its name and its words, `key=value` or plain.
pub struct Line<'a> {
    /// The command.
    pub name: &'a str,
    /// The words; a plain word has no key.
    pub words: Vec<(Option<&'a str>, &'a str)>,
}

/// The settings of a script that says nothing else: `ttl 5 loop_wait 1 retry_timeout 2`.
fn script_settings() -> ClusterSettings {
    ClusterSettings {
        ttl: Duration::from_secs(5),
        loop_wait: Duration::from_secs(1),
        retry_timeout: Duration::from_secs(2),
        use_pg_rewind: true,
        ..ClusterSettings::default()
    }
}

/// An observation being described line by line.
#[derive(Clone, Debug)]
pub struct Scene {
    /// What the lines so far describe.
    pub seen: Observation,
    /// What the member remembers.
    pub memory: Memory,
    topology: Topology,
    settings: ClusterSettings,
    is_config_gone: bool,
    age: Option<Duration>,
}

impl Default for Scene {
    fn default() -> Self {
        let me = Me {
            name: MemberName::new("a"),
            address: Arc::from("a:5432"),
            tags: Tags::default(),
            crash_policy: CrashPolicy::Auto,
            may_replace_data: true,
            may_replace_unrewound: true,
            use_pg_rewind: None,
            callbacks: BTreeSet::new(),
            has_pre_promote: false,
            can_clone_without_leader: false,
            bootstrap: BootstrapKind::Initdb,
        };
        let topology = Topology {
            revision: 100,
            initialize: Initialize::Done(SystemId(7)),
            ..Topology::default()
        };
        let mut scene = Self {
            seen: Observation {
                now: Moment(1_000_000_000_000),
                me: Arc::new(me),
                dcs: DcsView::Unknown,
                store: StoreView::default(),
                lost_config: None,
                lease: LeaseView::NotHeld,
                local: Local::Empty,
                peers: Peers::NotAsked,
                job: JobView::default(),
                request: None,
                fence: FenceView {
                    is_live: true,
                    armed_until: None,
                    watchdog: WatchdogView::NotRequired,
                },
                health: HealthView::default(),
                no_race: NoRace::default(),
                is_shutting_down: false,
                is_bootstrap_unfinished: false,
                scheduled: None,
                chance: 0,
            },
            memory: Memory::default(),
            topology,
            settings: script_settings(),
            is_config_gone: false,
            age: Some(Duration::ZERO),
        };
        scene.settle();
        scene
    }
}

impl Scene {
    /// Takes in one line.
    pub fn take(&mut self, line: &Line<'_>) -> Result<(), ScriptError> {
        let words = Words::new(line);
        match line.name {
            "me" => self.me(&words)?,
            "settings" => self.settings(&words)?,
            "initialize" => self.initialize(&words)?,
            "leader" => self.leader(&words)?,
            "member" => self.member(&words)?,
            "status" => self.topology.status = Arc::new(slots::status(&words)?),
            "permanent" => slots::permanent(&mut self.settings, &words)?,
            "ignore" => slots::ignore(&mut self.settings, &words)?,
            "standby_cluster" => self.settings.standby_cluster = slots::standby_cluster(&words)?,
            "claimed" => {
                self.topology.claimed = claimed(&words)?;
                // That of the claim or of the history: the younger tells as much of either.
                self.topology.claim_and_history.0 = words.value("revision")?.unwrap_or(0);
                self.topology.is_history_behind = words.has("unrecorded");
            }
            "failover" => self.failover(&words)?,
            "switchover" => self.switchover(&words)?,
            "router" => changes::router(&mut self.topology.routers, &words)?,
            "planned" => self.memory.switchover = Some(changes::planned(&words, self.seen.now)?),
            "unrecorded" => self.memory.unrecorded = Some(changes::unrecorded(&words)?),
            "recorded" => {
                let text = words.first().unwrap_or_default();
                self.topology.last_change = Some(changes::epoch(&words, text)?);
            }
            "history" => self.history(&words)?,
            "sync" => self.topology.sync = synchronous::record(&words)?,
            "failsafe" => self.topology.failsafe = failsafe::list(&words),
            "no_race" => self.seen.no_race = failsafe::no_race(&words, self.seen.now)?,
            "store" => self.seen.store = store::view(&words)?,
            "disarmed" => {
                let names = words.plain().map(MemberName::new);
                self.topology.disarmed = names.filter(|n| n.as_str() != "none").collect();
            }
            "dcs" => {
                self.age = words
                    .seconds("age")?
                    .or_else(|| (!words.has("unknown")).then_some(Duration::ZERO));
            }
            "lease" => self.lease(&words)?,
            "local" => self.seen.local = local(&words, self.seen.now)?,
            "peers" => self.seen.peers = peers(&words)?,
            "job" => self.seen.job = job(&words, self.seen.now)?,
            "request" => {
                self.topology.revision = words.value("at")?.unwrap_or(self.topology.revision);
                self.seen.request = match words.first() {
                    Some("restart") => Some(LocalRequest::Restart(changes::drain(&words)?)),
                    Some("reinitialize") => Some(LocalRequest::Reinitialize),
                    _ => None,
                }
            }
            "fence" | "health" | "scheduled" => self.host(line.name, &words)?,
            "memory" => self.memory = memory(&words, self.seen.now)?,
            "shutdown" => self.seen.is_shutting_down = true,
            "bootstrap" => self.seen.is_bootstrap_unfinished = words.has("unfinished"),
            "chance" => {
                let drawn = words.first().unwrap_or("0");
                self.seen.chance = words.parse(drawn, "a number")?;
            }
            "later" => {
                let by = words.seconds("by")?.unwrap_or_default();
                self.seen.now = self.seen.now + by;
            }
            other => return Err(ScriptError::UnknownCommand(other.to_owned())),
        }
        words.may_say("none");
        words.finish()?;
        self.settle();
        Ok(())
    }

    /// Takes in one line of text: words apart by spaces, `key=value` or plain, values with spaces in double
    /// quotes. Empty lines and comments (`#`) say nothing.
    pub fn take_text(&mut self, text: &str) -> Result<(), ScriptError> {
        let mut words = split_words(text).into_iter();
        let Some(name) = words.next().filter(|name| !name.starts_with('#')) else {
            return Ok(());
        };
        let words: Vec<(Option<String>, String)> = words
            .map(|word| match word.split_once('=') {
                Some((key, value)) => (Some(key.to_owned()), value.to_owned()),
                None => (None, word),
            })
            .collect();
        let words = words
            .iter()
            .map(|(key, value)| (key.as_deref(), value.as_str()))
            .collect();
        self.take(&Line { name: &name, words })
    }

    /// What the machine and its clock say.
    fn host(&mut self, name: &str, words: &Words<'_, '_>) -> Result<(), ScriptError> {
        match name {
            "fence" => {
                words.may_say("dead");
                let left = words.seconds("left")?.unwrap_or(ARMED_FOR);
                let gone = words.seconds("gone")?.unwrap_or_default();
                let armed_until = words.has("armed").then_some(self.seen.now + left - gone);
                self.seen.fence = FenceView {
                    is_live: words.has("live"),
                    armed_until,
                    watchdog: match words.text("watchdog") {
                        Some("ready") => WatchdogView::Ready,
                        Some("failed") => WatchdogView::Failed,
                        _ => WatchdogView::NotRequired,
                    },
                };
            }
            "health" => {
                words.may_say("clear");
                let waits = words.seconds("write_waits")?;
                let stopped = words.seconds("postmaster_stopped")?;
                self.seen.health = HealthView {
                    writes_since: waits.map(|waits| self.seen.now.before(waits)),
                    is_nearly_full: words.has("nearly_full"),
                    postmaster_stopped_since: stopped.map(|stopped| self.seen.now.before(stopped)),
                };
            }
            _ => {
                let (left, late) = (words.seconds("in")?, words.seconds("ago")?);
                let readable = left.map(Due::In).or(late.map(Due::Ago));
                let unreadable = words.has("unreadable").then_some(Due::Unreadable);
                self.seen.scheduled = readable.or(unreadable);
            }
        }
        Ok(())
    }

    fn settle(&mut self) {
        let settings = (!self.is_config_gone).then(|| Arc::new(self.settings.clone()));
        self.topology.settings = settings;
        if let Some(doubt) = &mut self.seen.store.doubt {
            doubt.before = Arc::new(self.topology.clone());
        }
        self.seen.dcs = match self.age {
            Some(age) => DcsView::Known {
                topology: Arc::new(self.topology.clone()),
                age,
            },
            None => DcsView::Unknown,
        };
    }

    fn me(&mut self, words: &Words<'_, '_>) -> Result<(), ScriptError> {
        let me = Arc::make_mut(&mut self.seen.me);
        if let Some(name) = words.text("name") {
            me.name = MemberName::new(name);
            me.address = Arc::from(format!("{name}:5432"));
        }
        me.tags.nofailover = words.has("nofailover");
        me.tags.nostream = words.has("nostream");
        me.tags.replicatefrom = words.text("replicatefrom").map(MemberName::new);
        me.tags.failover_priority = words.value("priority")?;
        me.may_replace_data = !words.has("may_not_replace_data");
        me.may_replace_unrewound = !words.has("may_not_replace_unrewound");
        me.can_clone_without_leader = words.has("no_leader_method");
        me.bootstrap = match words.text("bootstrap") {
            None | Some("initdb") => BootstrapKind::Initdb,
            Some("custom") => BootstrapKind::Custom,
            Some("recovering") => BootstrapKind::CustomRecovering,
            Some(other) => return Err(words.wrong(other, "initdb, custom or recovering")),
        };
        me.has_pre_promote = words.has("pre_promote");
        let named = words.text("callbacks").unwrap_or_default();
        me.callbacks = Callback::ALL
            .into_iter()
            .filter(|callback| named.split('/').any(|name| name == callback.word()))
            .collect();
        me.use_pg_rewind = words.text("use_pg_rewind").map(|word| word == "true");
        me.crash_policy = match words.text("crash_policy") {
            None | Some("auto") => CrashPolicy::Auto,
            Some("restart") => CrashPolicy::Restart,
            Some("failover") => CrashPolicy::Failover,
            Some(other) => return Err(words.wrong(other, "auto, restart or failover")),
        };
        Ok(())
    }

    fn settings(&mut self, words: &Words<'_, '_>) -> Result<(), ScriptError> {
        self.topology.is_config_unreadable = words.has("unreadable");
        self.is_config_gone = words.has("gone") || self.topology.is_config_unreadable;
        self.seen.lost_config = words.has("lost").then(|| "{}".into());
        let s = &mut self.settings;
        s.ttl = words.seconds("ttl")?.unwrap_or(s.ttl);
        s.loop_wait = words.seconds("loop_wait")?.unwrap_or(s.loop_wait);
        s.retry_timeout = words.seconds("retry_timeout")?.unwrap_or(s.retry_timeout);
        s.primary_start_timeout = words
            .seconds("primary_start_timeout")?
            .unwrap_or(s.primary_start_timeout);
        s.maximum_lag_on_failover = words
            .value("maximum_lag_on_failover")?
            .unwrap_or(s.maximum_lag_on_failover);
        s.member_slots_ttl = words
            .seconds("member_slots_ttl")?
            .unwrap_or(s.member_slots_ttl);
        s.is_paused = words.has("paused");
        s.use_pg_rewind = !words.has("no_rewind");
        s.use_slots = !words.has("no_slots");
        s.check_timeline = words.has("check_timeline");
        let stop = words.seconds("primary_stop_timeout")?;
        s.primary_stop_timeout = stop.unwrap_or(s.primary_stop_timeout);
        synchronous::settings(s, words)?;
        failsafe::settings(s, words)?;
        Ok(())
    }

    fn initialize(&mut self, words: &Words<'_, '_>) -> Result<(), ScriptError> {
        self.topology.initialize = match words.first() {
            Some("absent") => Initialize::Absent,
            Some("running") => Initialize::Running,
            Some(id) => Initialize::Done(SystemId(words.parse(id, "a system identifier")?)),
            None => return Err(words.wrong("", "absent, running or a system identifier")),
        };
        Ok(())
    }

    fn leader(&mut self, words: &Words<'_, '_>) -> Result<(), ScriptError> {
        self.topology.leader = match words.first() {
            None | Some("none") => None,
            Some(name) => Some(Leader {
                member: MemberName::new(name),
                epoch: LeaderEpoch {
                    generation: words.value("generation")?.unwrap_or(0),
                    revision: words.value("revision")?.unwrap_or(10),
                },
                lease: words.value("lease")?.unwrap_or(1),
            }),
        };
        Ok(())
    }

    fn member(&mut self, words: &Words<'_, '_>) -> Result<(), ScriptError> {
        let Some(name) = words.first() else {
            return Err(words.wrong("", "a member's name"));
        };
        let name = MemberName::new(name);
        if words.has("gone") {
            self.topology.members.remove(&name);
            return Ok(());
        }
        let role = match words.text("role") {
            None => MemberRole::Replica,
            Some(word) => ROLES
                .into_iter()
                .find(|role| role_word(*role) == word)
                .ok_or_else(|| words.wrong(word, "a role"))?,
        };
        let state = match words.text("state") {
            None => MemberState::Running,
            Some(word) => STATES
                .into_iter()
                .find(|state| state_word(*state) == word)
                .ok_or_else(|| words.wrong(word, "a state"))?,
        };
        let ready = match words.text("ready") {
            None => None,
            Some(text) => Some(parse_ready(words, text)?),
        };
        let fields = TrunklineFields {
            ready,
            has_watchdog_failed: words.has("watchdog_failed"),
            system_id: words.value("system_id")?.map(SystemId),
            ..TrunklineFields::default()
        };
        let member = Member {
            address: words
                .text("address")
                .map_or_else(|| Arc::from(format!("{name}:5432")), Arc::from),
            api_url: Arc::from(words.text("api_url").unwrap_or_default()),
            role,
            state,
            timeline: words.value("tl")?.map(Timeline),
            position: words.value("position")?,
            received: None,
            replayed: None,
            is_streaming: Some(words.has("streaming")),
            tags: Tags {
                clonefrom: words.has("clonefrom"),
                nostream: words.has("nostream"),
                replicatefrom: words.text("replicatefrom").map(MemberName::new),
                ..synchronous::tags(words)?
            },
            is_checkpointed_after_promote: !words.has("unchecked"),
            has_pending_restart: false,
            pending_restart: Default::default(),
            scheduled_restart: None,
            proxy_address: None,
            is_paused: false,
            version: Arc::from(""),
            lease: words.value("lease")?.unwrap_or(0),
            revision: words.value("revision")?.unwrap_or(1),
            trunkline: (!words.has("patroni")).then_some(fields),
            name: name.clone(),
        };
        self.topology.members.insert(name, Arc::new(member));
        Ok(())
    }

    fn failover(&mut self, words: &Words<'_, '_>) -> Result<(), ScriptError> {
        self.topology.failover = (!words.has("none")).then_some(FailoverRequest {
            leader: words.text("leader").map(MemberName::new),
            candidate: words.text("candidate").map(MemberName::new),
            scheduled_at: words.text("at").map(Arc::from),
            drain: changes::drain(words)?,
            revision: words.value("revision")?.unwrap_or(20),
        });
        Ok(())
    }

    fn switchover(&mut self, words: &Words<'_, '_>) -> Result<(), ScriptError> {
        if words.has("none") {
            self.topology.switchover = None;
            return Ok(());
        }
        self.topology.switchover_revision = words.value("revision")?.unwrap_or(0);
        self.topology.switchover = Some(Arc::new(SwitchoverRecord {
            id: words.value("id")?.unwrap_or(20),
            epoch: LeaderEpoch {
                generation: 0,
                revision: words.value("epoch")?.unwrap_or(10),
            },
            from: MemberName::new(words.text("from").unwrap_or("a")),
            to: MemberName::new(words.text("to").unwrap_or("b")),
            stage: changes::stage(words, words.text("stage").unwrap_or("hold_all"))?,
            parts: changes::parts(words)?,
        }));
        Ok(())
    }

    fn history(&mut self, words: &Words<'_, '_>) -> Result<(), ScriptError> {
        let mut ends = Vec::new();
        for text in words.plain() {
            let (timeline, end) = text
                .split_once('@')
                .ok_or_else(|| words.wrong(text, "TIMELINE@END"))?;
            ends.push(TimelineEnd {
                timeline: Timeline(words.parse(timeline, "a timeline")?),
                end: words.parse(end, "a position")?,
            });
        }
        self.topology.history = Arc::new(TimelineHistory::new(ends));
        Ok(())
    }

    fn lease(&mut self, words: &Words<'_, '_>) -> Result<(), ScriptError> {
        self.seen.lease = match words.first() {
            Some("held") => {
                let left = words.seconds("left")?.unwrap_or(Duration::from_secs(4));
                let gone = words.seconds("gone")?.unwrap_or_default();
                LeaseView::Held(Held {
                    epoch: LeaderEpoch {
                        generation: words.value("generation")?.unwrap_or(0),
                        revision: words.value("revision")?.unwrap_or(10),
                    },
                    deadline: self.seen.now + left - gone,
                    is_key_missing: words.has("missing"),
                    has_unresolved_hand_over: words.has("unresolved"),
                    is_by_failsafe: words.has("by_failsafe"),
                })
            }
            Some("lost") => LeaseView::Lost,
            Some("none") => LeaseView::NotHeld,
            other => return Err(words.wrong(other.unwrap_or(""), "held, lost or none")),
        };
        Ok(())
    }
}

fn claimed(words: &Words<'_, '_>) -> Result<ClaimedTimeline, ScriptError> {
    let text = words.first().unwrap_or_default();
    let (timeline, parent) = text
        .split_once('@')
        .ok_or_else(|| words.wrong(text, "TIMELINE@PARENT"))?;
    Ok(ClaimedTimeline {
        timeline: Timeline(words.parse(timeline, "a timeline")?),
        parent: Timeline(words.parse(parent, "a timeline")?),
    })
}

fn parse_ready(words: &Words<'_, '_>, text: &str) -> Result<SwitchoverReady, ScriptError> {
    let (id, at) = text
        .split_once('@')
        .ok_or_else(|| words.wrong(text, "ID@POSITION"))?;
    Ok(SwitchoverReady {
        id: words.parse(id, "a number")?,
        replayed: words.parse(at, "a position")?,
    })
}
