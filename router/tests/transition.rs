//! Runs every script of `tests/transition` and `tests/route`: a behaviour each, named by its claim. To record
//! a new one, write its commands, run with `UPDATE_GOLDENFILES=1`, and review what it wrote.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::error::Error;
use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use goldenscript::{Argument, Command, Context, Runner};
use test_each_file::test_each_path;
use trunkline_router::route::balance::Load;
use trunkline_router::route::{NoRoute, RouteRequest, TargetKind, route};
use trunkline_router::topology::routing_table::{LaneId, LastLeader, RoutingTable, Wants, Writer};
use trunkline_router::topology::transition::{Answer, Health, Rules, Testimony, View, transition};
use trunkline_shared::cluster::member::TrunklineFields;
use trunkline_shared::cluster::topology::{Initialize, Status, SwitchoverRecord, SwitchoverStage};
use trunkline_shared::cluster::{
    Leader, LeaderEpoch, Lsn, Member, MemberName, MemberRole, MemberState, Moment, SystemId, Tags,
    Timeline, Topology, quantity,
};

test_each_path! { in "./router/tests/transition" as transition => run }
test_each_path! { in "./router/tests/route" as route => run }

fn run(path: &Path) {
    goldenscript::run(&mut Script::default(), path).expect("script");
}

/// Where the leader's WAL stands in every script.
const OPTIME: u64 = 1_000_000;

struct Script {
    now: Moment,
    topology: Topology,
    proven_at: Option<Moment>,
    health: Health,
    rules: Rules,
    table: RoutingTable,
    loads: Vec<(MemberName, Load)>,
}

impl Default for Script {
    fn default() -> Self {
        Self {
            now: Moment(1_000_000_000_000),
            topology: Topology {
                initialize: Initialize::Done(SystemId(7)),
                status: Arc::new(Status {
                    optime: Lsn(OPTIME),
                    ..Status::default()
                }),
                ..Topology::default()
            },
            proven_at: None,
            health: Health::default(),
            rules: Rules::default(),
            table: RoutingTable::default(),
            loads: Vec::new(),
        }
    }
}

struct Words<'a>(&'a Command);

impl Words<'_> {
    fn first(&self) -> &str {
        self.positional(0).unwrap_or_default()
    }

    fn positional(&self, at: usize) -> Option<&str> {
        let mut words = self.0.args.iter().filter_map(|arg| match arg {
            Argument::Positional(word) => Some(word.as_str()),
            _ => None,
        });
        words.nth(at)
    }

    fn get(&self, key: &str) -> Option<&str> {
        self.0.args.iter().find_map(|arg| match arg {
            Argument::KeyValue(k, value) if k == key => Some(value.as_str()),
            _ => None,
        })
    }

    fn number(&self, key: &str) -> Option<u64> {
        self.get(key).map(|text| text.parse().unwrap())
    }

    fn time(&self, text: &str) -> Duration {
        quantity::duration(text).unwrap()
    }
}

fn epoch(text: &str) -> LeaderEpoch {
    let (generation, revision) = text.split_once('.').unwrap_or(("0", text));
    LeaderEpoch {
        generation: generation.parse().unwrap(),
        revision: revision.parse().unwrap(),
    }
}

impl Runner for Script {
    type Command = Command;

    fn run(&mut self, command: &Command, _: &Context) -> Result<String, Box<dyn Error>> {
        let words = Words(command);
        match command.name.as_str() {
            "leader" => self.leader(&words),
            "member" => self.member(&words),
            "forget" => {
                self.topology
                    .members
                    .remove(&MemberName::new(words.first()));
            }
            // What the leader's agent announces.
            "switchover" => self.switchover(&words),
            "initialize" => {
                self.topology.initialize = match words.first() {
                    "absent" => Initialize::Absent,
                    id => Initialize::Done(SystemId(id.parse()?)),
                }
            }
            "generation" => self.topology.generation = words.first().parse()?,
            "max_lag" => self.rules.max_lag = quantity::bytes(words.first()),
            "hold_timeout" => self.rules.hold_timeout = quantity::duration(words.first()),
            "silence" => self.proven_at = self.proven_at.map(|at| at - words.time(words.first())),
            "answer" => self.answer(&words),
            "down" => {
                self.health.down.insert(MemberName::new(words.first()));
            }
            "up" => {
                self.health.down.remove(&MemberName::new(words.first()));
            }
            "load" => self.load(&words),
            // The DCS shows what stands here; the revision goes up.
            "view" => {
                self.topology.revision = match words.number("revision") {
                    Some(revision) => i64::try_from(revision)?,
                    None => self.topology.revision + 1,
                };
                self.proven_at = Some(self.now);
                return Ok(self.step());
            }
            // Time passes; the DCS says nothing.
            "after" => {
                self.now = self.now + words.time(words.first());
                return Ok(self.step());
            }
            // Time passes, and the DCS proves that it lives.
            "alive" => {
                self.now = self.now + words.time(words.first());
                self.proven_at = Some(self.now);
                return Ok(self.step());
            }
            "step" => return Ok(self.step()),
            // The router starts anew with what its state file holds.
            "restart" => {
                let last = self.table.last.take();
                self.table =
                    RoutingTable::remembering(last.map(|l| LastLeader { lane: None, ..l }));
                self.health = Health::default();
                self.proven_at = None;
            }
            "route" => return Ok(self.route(&words)),
            other => return Err(format!("no such command: {other}").into()),
        }
        Ok(String::new())
    }
}

impl Script {
    fn leader(&mut self, words: &Words<'_>) {
        self.topology.leader = (words.first() != "none").then(|| Leader {
            member: MemberName::new(words.first()),
            epoch: epoch(words.get("epoch").unwrap_or("10")),
            lease: 1,
        });
    }

    fn switchover(&mut self, words: &Words<'_>) {
        let stage = match words.first() {
            "none" => return self.topology.switchover = None,
            "hold_transactions" => SwitchoverStage::HoldTransactions,
            "hold_all" => SwitchoverStage::HoldAll,
            "stopped" => SwitchoverStage::Stopped {
                shutdown_checkpoint: Lsn(OPTIME),
            },
            "resume" => SwitchoverStage::Resume,
            other => panic!("no stage {other}"),
        };
        let record = SwitchoverRecord {
            id: 7,
            epoch: epoch(words.get("epoch").unwrap_or("10")),
            from: MemberName::new(words.get("from").unwrap_or("a")),
            to: MemberName::new(words.get("to").unwrap_or("b")),
            stage,
            parts: Default::default(),
        };
        self.topology.switchover = Some(Arc::new(record));
    }

    fn member(&mut self, words: &Words<'_>) {
        let name = MemberName::new(words.first());
        let role = match words.get("role").unwrap_or("replica") {
            "primary" => MemberRole::Primary,
            "replica" => MemberRole::Replica,
            "standby_leader" => MemberRole::StandbyLeader,
            "demoted" => MemberRole::Demoted,
            "promoted" => MemberRole::Promoted,
            "uninitialized" => MemberRole::Uninitialized,
            other => panic!("no role {other}"),
        };
        let state = match words.get("state").unwrap_or("running") {
            "running" => MemberState::Running,
            "starting" => MemberState::Starting,
            "stopping" => MemberState::Stopping,
            "stopped" => MemberState::Stopped,
            "crashed" => MemberState::Crashed,
            "creating" => MemberState::CreatingReplica,
            "initializing" => MemberState::InitializingNewCluster,
            other => panic!("no state {other}"),
        };
        let position = Lsn(OPTIME - words.number("lag").unwrap_or(0));
        let revision = i64::try_from(words.number("revision").unwrap_or(11)).unwrap();
        let stamped = words.get("epoch").map(epoch);
        let record = Member {
            address: words
                .get("address")
                .map_or_else(|| format!("{name}:5432").into(), Arc::from),
            api_url: format!("http://{name}:8008/patroni").into(),
            role,
            state,
            timeline: Some(Timeline(
                u32::try_from(words.number("timeline").unwrap_or(1)).unwrap(),
            )),
            position: Some(position),
            received: Some(position),
            replayed: Some(position),
            is_streaming: words.get("streaming").map(|word| word == "yes"),
            tags: Tags {
                noloadbalance: words.get("noloadbalance").is_some(),
                ..Tags::default()
            },
            is_checkpointed_after_promote: true,
            has_pending_restart: false,
            pending_restart: std::collections::BTreeMap::new(),
            scheduled_restart: None,
            proxy_address: None,
            is_paused: false,
            version: "4".into(),
            lease: 1,
            revision,
            trunkline: (words.get("product") != Some("patroni")).then(|| TrunklineFields {
                epoch: stamped,
                ..TrunklineFields::default()
            }),
            name: name.clone(),
        };
        self.topology.members.insert(name, Arc::new(record));
    }

    /// The last leader's agent has answered just now.
    fn answer(&mut self, words: &Words<'_>) {
        let answer = match words.first() {
            "writable" => Answer::Writable {
                until: self.now + words.time(words.get("left").unwrap()),
            },
            "refused" => Answer::Refused,
            "silent" => Answer::Silent,
            other => panic!("no answer {other}"),
        };
        self.health.hear(Testimony {
            epoch: epoch(words.get("epoch").unwrap_or("10")),
            asked_at: self.now,
            answer,
        });
    }

    fn load(&mut self, words: &Words<'_>) {
        let load = Load {
            open: usize::try_from(words.number("open").unwrap_or(0)).unwrap(),
            since_start: words.number("since_start").unwrap_or(0),
        };
        self.loads.push((MemberName::new(words.first()), load));
    }

    fn step(&mut self) -> String {
        let view = self.proven_at.map(|proven_at| View {
            topology: &self.topology,
            proven_at,
        });
        let (next, commands) = transition(&self.table, view, &self.health, &self.rules, self.now);
        let (again, none) = transition(&next, view, &self.health, &self.rules, self.now);
        assert_eq!((&again, &none), (&next, &Vec::new()), "a step settles");
        assert_lawful(&self.table, &next);
        let mut text = writer_line(&next.writer);
        if let Some(hold) = next.hold {
            let _ = write!(
                text,
                "  switchover {} holds {:?}",
                hold.switchover, hold.stage
            );
        }
        if let Some(candidate) = &next.candidate {
            let _ = write!(text, "  to {} lane {}", candidate.member, candidate.lane.0);
        }
        if let Some((doubt, _)) = next.doubt {
            let asked = next
                .question
                .as_ref()
                .map_or("nobody", |q| q.member.as_str());
            let _ = write!(text, "  doubt={doubt:?} asks={asked}");
        }
        if let Some(at) = next.look_again_at {
            let _ = write!(text, "  looks again in {:?}", self.now.until(at));
        }
        for command in &commands {
            let _ = write!(text, "\n{command:?}").map(|()| ());
        }
        for (name, reader) in &next.readers {
            let LaneId(lane) = reader.lane;
            let fitness = reader
                .unfit
                .as_ref()
                .map_or("fit".to_owned(), ToString::to_string);
            let _ = write!(text, "\n  {name} lane {lane}: {fitness}");
        }
        self.table = next;
        text.replace(&format!("{:?}", self.now), "now")
    }

    fn route(&self, words: &Words<'_>) -> String {
        let kind = match words.first() {
            "primary" => TargetKind::Primary,
            "replicas" => TargetKind::Replicas {
                falls_back: words.get("fallback") == Some("primary"),
            },
            other => panic!("no target {other}"),
        };
        let tried: Vec<MemberName> = words
            .get("tried")
            .map(|list| list.split(',').map(MemberName::new).collect())
            .unwrap_or_default();
        let request = RouteRequest {
            kind,
            wants: match words.get("wants").unwrap_or("session") {
                "session" => Wants::Session,
                "transaction" => Wants::Transaction,
                "statement" => Wants::Statement,
                other => panic!("nobody wants {other}"),
            },
            tried: &tried,
        };
        let load = |lane: LaneId| {
            let member = self.table.readers.iter().find(|(_, r)| r.lane == lane);
            self.loads
                .iter()
                .rev()
                .find(|(name, _)| member.is_some_and(|(m, _)| m == name))
                .map(|(_, load)| *load)
                .unwrap_or_default()
        };
        match route(&request, &self.table, &load) {
            Ok(target) => format!("{} lane {} {:?}", target.member, target.lane.0, target.why),
            Err(NoRoute::NoReplica { reasons }) => reasons
                .iter()
                .map(|(member, why)| format!("no replica: {member} {why}\n"))
                .collect(),
            Err(other) => format!("{other:?}"),
        }
    }
}

fn writer_line(writer: &Writer) -> String {
    match writer {
        Writer::Known {
            member,
            epoch,
            lane,
            ..
        } => format!("writer {member} epoch {epoch} lane {}", lane.0),
        Writer::Promoting { member, epoch } => format!("promoting {member} epoch {epoch}"),
        Writer::None { why } => format!("no writer: {why}"),
    }
}

/// What holds at every step of every script.
fn assert_lawful(old: &RoutingTable, new: &RoutingTable) {
    assert!(
        old.highest_epoch <= new.highest_epoch,
        "the epoch goes back"
    );
    assert!(old.next_lane <= new.next_lane, "lanes are numbered anew");
    for lane in new.lanes() {
        let is_old = old.lanes().any(|known| known == lane);
        assert!(
            is_old || lane.0 >= old.next_lane,
            "a lane that was cut comes back"
        );
    }
    if let Writer::Known { epoch, lane, .. } = &new.writer {
        assert_eq!(Some(*epoch), new.last.as_ref().map(|l| l.epoch));
        assert_eq!(Some(*lane), new.last.as_ref().and_then(|l| l.lane));
    }
}
