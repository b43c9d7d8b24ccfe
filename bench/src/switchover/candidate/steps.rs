//! The steps of a planned change as the store shows them to whoever watches it.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Serialize;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStdout};
use tokio::sync::watch;
use trunkline_shared::cluster::Moment;
use trunkline_shared::service::clock;

use crate::stack::etcd::Etcd;
use crate::stack::member::SCOPE;

/// Written until the watch shows it, which has begun then. It is below no cluster.
const MARK: &str = "/trunkline-bench/watch";
/// How long that may take.
const LIMIT: Duration = Duration::from_secs(10);

/// A step of a change, in the order in which they come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// The operator's request stands in the store; no candidate is named yet.
    Requested,
    /// The old leader has announced the candidate: routers hold new transactions.
    HoldTransactions,
    /// The router has said that none runs any more.
    Drained,
    /// Routers are to hold everything.
    HoldAll,
    /// The router has said that it does: PostgreSQL is stopped next.
    Held,
    /// The old leader has stopped.
    Stopped,
    /// The candidate has said that it has the last record.
    Confirmed,
    /// The leader key names the candidate.
    KeyMoved,
    /// The candidate says that it accepts writes.
    Promoted,
}

impl Step {
    /// Every step, in order.
    pub const ALL: [Step; 9] = [
        Step::Requested,
        Step::HoldTransactions,
        Step::Drained,
        Step::HoldAll,
        Step::Held,
        Step::Stopped,
        Step::Confirmed,
        Step::KeyMoved,
        Step::Promoted,
    ];

    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Step::Requested => "requested",
            Step::HoldTransactions => "hold transactions",
            Step::Drained => "drained",
            Step::HoldAll => "hold all",
            Step::Held => "held",
            Step::Stopped => "stopped",
            Step::Confirmed => "confirmed",
            Step::KeyMoved => "key moved",
            Step::Promoted => "promoted",
        }
    }
}

/// What was seen of one change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Course {
    from: String,
    id: Option<u64>,
    /// Who is to lead, once the old leader has said so.
    pub candidate: Option<String>,
    /// The steps, each with when it was seen first.
    pub steps: Vec<(Step, Moment)>,
    /// Whom the leader key came to name, and when.
    pub leaders: Vec<(String, Moment)>,
    is_live: bool,
}

impl Course {
    /// Of a change away from this leader.
    pub fn new(from: &str) -> Course {
        Course {
            from: from.to_owned(),
            ..Course::default()
        }
    }

    /// Takes note of a key that was written.
    pub fn take(&mut self, at: Moment, key: &str, value: &str) {
        self.is_live |= key == MARK;
        let below = key.strip_prefix("/service/");
        let below = below.and_then(|rest| rest.strip_prefix(SCOPE)?.strip_prefix('/'));
        let Some(below) = below else {
            return;
        };
        let json = || serde_json::from_str(value).unwrap_or(Value::Null);
        let step = match (below, below.split_once('/')) {
            ("leader", _) => self.led(at, value),
            ("failover", _) => (json()["leader"] == *self.from).then_some(Step::Requested),
            ("trunkline/switchover", _) => self.announced(&json()),
            (_, Some(("routers", _))) => self.acknowledged(&json()),
            (_, Some(("members", name))) if self.candidate.as_deref() == Some(name) => {
                self.said_by_candidate(&json())
            }
            (_, _) => None,
        };
        if let Some(step) = step.filter(|step| !self.has(*step)) {
            self.steps.push((step, at));
        }
    }

    fn led(&mut self, at: Moment, name: &str) -> Option<Step> {
        // A leader may write its own key again, as it does on a new lease.
        if self.leaders.last().is_none_or(|(leader, _)| leader != name) {
            self.leaders.push((name.to_owned(), at));
        }
        let is_candidate = self.candidate.as_deref() == Some(name);
        is_candidate.then_some(Step::KeyMoved)
    }

    fn announced(&mut self, record: &Value) -> Option<Step> {
        if record["from"] != *self.from {
            return None;
        }
        self.id = record["id"].as_u64();
        self.candidate = record["to"].as_str().map(str::to_owned);
        match record["stage"].as_str() {
            Some("hold_transactions") => Some(Step::HoldTransactions),
            Some("hold_all") => Some(Step::HoldAll),
            Some("stopped") => Some(Step::Stopped),
            Some(_) | None => None,
        }
    }

    fn acknowledged(&self, record: &Value) -> Option<Step> {
        let said = &record["switchover"];
        if self.id.is_none() || said["id"].as_u64() != self.id {
            return None;
        }
        match said["stage"].as_str() {
            Some("hold_transactions") => Some(Step::Drained),
            Some("hold_all") => Some(Step::Held),
            Some(_) | None => None,
        }
    }

    fn said_by_candidate(&self, record: &Value) -> Option<Step> {
        let is_primary = record["role"] == "primary" && record["state"] == "running";
        if is_primary && self.has(Step::KeyMoved) {
            return Some(Step::Promoted);
        }
        let ready = record["trunkline"]["ready"]["id"].as_u64();
        (ready.is_some() && ready == self.id).then_some(Step::Confirmed)
    }

    /// Whether this step was seen.
    pub fn has(&self, step: Step) -> bool {
        self.steps.iter().any(|(seen, _)| *seen == step)
    }

    /// Whether this step was seen, or a later one.
    fn has_come_to(&self, step: Step) -> bool {
        self.steps.iter().any(|(seen, _)| *seen >= step)
    }

    /// The furthest step that was seen until then.
    pub fn furthest(&self, until: Moment) -> Option<Step> {
        let seen = self.steps.iter().filter(|(_, at)| *at <= until);
        seen.map(|(step, _)| *step).max()
    }

    /// When the leader key came to name this member.
    pub fn led_by(&self, name: &str) -> Option<Moment> {
        let mut leaders = self.leaders.iter();
        leaders
            .find(|(leader, _)| leader == name)
            .map(|(_, at)| *at)
    }

    /// Whom the leader key names now, as far as was seen.
    pub fn leader(&self) -> &str {
        self.leaders.last().map_or(&self.from, |(name, _)| name)
    }
}

/// A running watch of one change.
#[derive(Debug)]
pub struct Watch {
    course: watch::Receiver<Course>,
    _child: Child,
}

impl Watch {
    /// Watches through one etcd member, which must stay reachable. It has begun when this returns.
    pub async fn start(etcd: &Etcd, from: &str) -> Result<Watch> {
        let mut child = etcd.watch_below("/")?;
        let output = child.stdout.take().context("etcdctl watch has no output")?;
        let (sender, course) = watch::channel(Course::new(from));
        tokio::spawn(follow(output, sender));
        let deadline = clock::now() + LIMIT;
        while !course.borrow().is_live {
            etcd.write(MARK, "").await?;
            if clock::now() >= deadline {
                bail!("etcdctl shows no change of the store within {LIMIT:?}");
            }
        }
        Ok(Watch {
            course,
            _child: child,
        })
    }

    /// What was seen so far.
    pub fn course(&self) -> Course {
        self.course.borrow().clone()
    }

    /// Waits for this step, or a later one; whether it came in time.
    pub async fn until(&self, step: Step, limit: Duration) -> bool {
        let mut course = self.course.clone();
        let come = course.wait_for(|course| course.has_come_to(step));
        matches!(tokio::time::timeout(limit, come).await, Ok(Ok(_)))
    }
}

/// Reads events, each of three lines: kind, key, value.
async fn follow(output: ChildStdout, course: watch::Sender<Course>) {
    let mut lines = BufReader::new(output).lines();
    while let Ok(Some(kind)) = lines.next_line().await {
        let at = clock::now();
        if kind != "PUT" {
            continue;
        }
        let (Ok(Some(key)), Ok(Some(value))) = (lines.next_line().await, lines.next_line().await)
        else {
            return;
        };
        course.send_modify(|course| course.take(at, &key, &value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Moment {
        Moment(ms * 1_000_000)
    }

    #[test]
    fn a_change_is_followed_step_by_step() {
        let mut course = Course::new("n1");
        let record = |stage: &str| {
            format!(r#"{{"id":7,"epoch":"0.3","from":"n1","to":"n2","stage":"{stage}"}}"#)
        };
        let router = |id: u64, stage: &str| {
            format!(r#"{{"version":"0.1.0","switchover":{{"id":{id},"stage":"{stage}"}}}}"#)
        };
        let ready =
            r#"{"role":"replica","state":"running","trunkline":{"ready":{"id":7,"replayed":9}}}"#;
        let primary = r#"{"role":"primary","state":"running"}"#;
        let written = [
            // What an earlier change has left says nothing.
            ("routers/r1/1", router(6, "hold_all")),
            ("members/n2", primary.to_owned()),
            ("failover", r#"{"leader":"n1"}"#.to_owned()),
            ("trunkline/switchover", record("hold_transactions")),
            ("routers/r1/1", router(7, "hold_transactions")),
            ("trunkline/switchover", record("hold_all")),
            ("routers/r1/1", router(7, "hold_all")),
            ("trunkline/switchover", record("stopped")),
            ("members/n3", ready.to_owned()),
            ("members/n2", ready.to_owned()),
            ("leader", "n2".to_owned()),
            ("members/n2", primary.to_owned()),
            ("leader", "n2".to_owned()),
            ("members/n2", primary.to_owned()),
        ];
        for (ms, (key, value)) in (0..).zip(&written) {
            course.take(at(ms), &format!("/service/{SCOPE}/{key}"), value);
        }
        let steps: Vec<_> = course.steps.iter().map(|(step, _)| *step).collect();
        assert_eq!(steps, Step::ALL);
        assert_eq!(course.furthest(at(8)), Some(Step::Stopped));
        assert_eq!(course.furthest(at(1)), None);
        assert_eq!(course.leaders, [("n2".to_owned(), at(10))]);
        assert_eq!(course.led_by("n2"), Some(at(10)));
        assert_eq!(course.led_by("n1"), None);
        assert_eq!(course.leader(), "n2");
    }

    #[test]
    fn a_key_that_another_member_takes_is_not_moved() {
        let mut course = Course::new("n1");
        let record = r#"{"id":7,"from":"n1","to":"n2","stage":"stopped"}"#;
        course.take(at(0), "/service/demo/trunkline/switchover", record);
        assert_eq!(course.leader(), "n1");
        course.take(at(1), "/service/demo/leader", "n3");
        course.take(at(2), "/service/other/leader", "n2");
        assert!(!course.has(Step::KeyMoved));
        assert_eq!(course.leader(), "n3");
    }
}
