//! One picture of the cluster. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;
use trunkline_shared::cluster::{ClusterName, MemberName, Moment, Topology};
use trunkline_shared::dcs::watch::View;

use super::events::{Events, planned};
use crate::api::view::{MemberView, members};
use crate::ctl::arguments::Format;
use crate::ctl::list::title_case;
use crate::ctl::table::{Column, Table};

/// Lines that stand beside table and events.
const FRAME_LINES: usize = 9;

/// What a member said of itself.
#[derive(Clone, Debug)]
pub(super) struct Status {
    /// It answered.
    pub(super) answers: bool,
    /// When it was asked.
    pub(super) asked_at: Moment,
    /// For how long it might lead then.
    pub(super) lease_left: Option<Duration>,
    /// Its PostgreSQL accepts writes.
    pub(super) is_writable: bool,
    /// What it decided last, and why.
    pub(super) reason: Option<String>,
}

impl Status {
    /// It did not answer.
    pub(super) fn silent(asked_at: Moment) -> Self {
        Self {
            answers: false,
            asked_at,
            lease_left: None,
            is_writable: false,
            reason: None,
        }
    }
}

/// What is drawn.
pub(super) struct Frame<'f> {
    /// The cluster.
    pub(super) cluster: &'f ClusterName,
    /// As the DCS shows it.
    pub(super) view: &'f View,
    /// What the members said.
    pub(super) statuses: &'f BTreeMap<MemberName, Status>,
    /// What happened.
    pub(super) events: &'f Events,
    /// The time for people.
    pub(super) time: String,
    /// The same moment.
    pub(super) now: Moment,
}

impl Frame<'_> {
    /// As many lines as fit, none longer than the screen is wide.
    pub(super) fn lines(&self, (width, height): (usize, usize)) -> Vec<String> {
        let topology = &self.view.topology;
        let mut lines = vec![
            format!(
                "trunkline top: cluster {}    {}    {}",
                self.cluster,
                self.time,
                self.dcs()
            ),
            self.leader(topology),
            format!("holds: {}", held(topology, topology.routers.len())),
            String::new(),
        ];
        let views = members(topology);
        lines.extend(self.table(&views).lines().map(str::to_owned));
        lines.push(String::new());
        for view in &views {
            lines.push(format!("{}: {}", view.name, self.reason(&view.name)));
        }
        lines.push(String::new());
        let room = height.saturating_sub(lines.len() + 2).max(1);
        lines.push("last events, the newest first".to_owned());
        let events = self.events.newest(room);
        lines.extend(events.map(|(time, text)| format!("  {time:<19}  {text}")));
        lines.truncate(height.saturating_sub(1).max(FRAME_LINES.min(height)));
        lines.resize(height.saturating_sub(1), String::new());
        lines.push("q or Ctrl-C: quit".to_owned());
        lines.truncate(height);
        let cut = |line: String| line.chars().take(width).collect();
        lines.into_iter().map(cut).collect()
    }

    /// How new the picture is.
    fn dcs(&self) -> String {
        if let Some(why) = &self.view.went_back {
            return format!("the DCS shows less than before: {why}");
        }
        let since = self.view.proven_at.map(|at| self.now.since(at).as_secs());
        match (&self.view.last_error, since) {
            (None, _) => "the DCS answers".to_owned(),
            (Some(why), Some(since)) => format!("the DCS is silent for {since} s: {why}"),
            (Some(why), None) => format!("the DCS is silent: {why}"),
        }
    }

    fn leader(&self, topology: &Topology) -> String {
        let paused = match topology.settings_or_default().is_paused {
            true => ", maintenance mode: on",
            false => "",
        };
        let Some(leader) = &topology.leader else {
            return format!("leader: nobody{paused}");
        };
        let status = self.statuses.get(&leader.member);
        let writable = match status {
            Some(status) if status.is_writable => ", accepts writes",
            Some(status) if !status.answers => ", its agent does not answer",
            Some(_) => ", accepts no writes",
            None => "",
        };
        format!(
            "leader: {} (epoch {}), lease left {}{writable}{paused}",
            leader.member,
            leader.epoch,
            self.lease_left(&leader.member)
        )
    }

    /// How long a member may lead from now on.
    fn lease_left(&self, name: &MemberName) -> String {
        let status = self.statuses.get(name);
        let left = status.and_then(|status| {
            Some(
                status
                    .lease_left?
                    .saturating_sub(self.now.since(status.asked_at)),
            )
        });
        left.map_or_else(
            || "unknown".to_owned(),
            |left| format!("{:.1} s", left.as_secs_f64()),
        )
    }

    fn reason(&self, name: &str) -> String {
        match self.statuses.get(&MemberName::new(name)) {
            None => "is being asked".to_owned(),
            Some(status) if !status.answers => "its agent does not answer".to_owned(),
            Some(status) => status
                .reason
                .clone()
                .unwrap_or_else(|| "says no reason".to_owned()),
        }
    }

    fn table(&self, views: &[MemberView]) -> String {
        let columns = [
            "Member",
            "Host",
            "Role",
            "State",
            "TL",
            "Receive lag",
            "Replay lag",
            "Restart",
            "Lease",
        ];
        let is_number = |name: &str| matches!(name, "TL" | "Receive lag" | "Replay lag" | "Lease");
        let row = |view: &MemberView| {
            let leads = matches!(view.role, "leader" | "standby_leader");
            let lag = |lag: Option<u64>| match lag {
                Some(bytes) => size(bytes).into(),
                None if leads => Value::Null,
                None => "unknown".into(),
            };
            vec![
                view.name.clone().into(),
                format!("{}:{}", view.host, view.port).into(),
                title_case(view.role).into(),
                view.state.clone().into(),
                view.timeline.map_or(Value::Null, Value::from),
                lag(view.receive_lag),
                lag(view.replay_lag),
                if view.has_pending_restart {
                    "pending".into()
                } else {
                    Value::Null
                },
                match leads {
                    true => self.lease_left(&MemberName::new(&view.name)).into(),
                    false => Value::Null,
                },
            ]
        };
        let table = Table {
            title: String::new(),
            columns: columns
                .map(|name| Column::new(name, is_number(name)))
                .into(),
            rows: views.iter().map(row).collect(),
            leaves_out_empty: true,
            delimiter: "\t".to_owned(),
        };
        table.render(Format::Pretty)
    }
}

/// Who holds what.
fn held(topology: &Topology, routers: usize) -> String {
    let mut held = Vec::new();
    match &topology.leader {
        Some(leader) => held.push(format!("leader key {}", leader.member)),
        None => held.push("leader key nobody".to_owned()),
    }
    if let Some(sync) = &topology.sync
        && !sync.standbys.is_empty()
    {
        let names: Vec<&str> = sync.standbys.iter().map(MemberName::as_str).collect();
        held.push(format!("commits wait for {}", names.join(", ")));
    }
    if let Some(request) = &topology.failover {
        let to = request
            .candidate
            .as_ref()
            .map_or("anybody", MemberName::as_str);
        let when = request.scheduled_at.as_deref().unwrap_or("now");
        held.push(format!("change of leader to {to}, {when}"));
    }
    if let Some(record) = &topology.switchover {
        held.push(planned(record));
    }
    if !topology.disarmed.is_empty() {
        let names: Vec<&str> = topology.disarmed.iter().map(MemberName::as_str).collect();
        held.push(format!("fence asleep on {}", names.join(", ")));
    }
    // A router's key that is not there says nothing: those of this version register none.
    if routers > 0 {
        held.push(format!("routers {routers}"));
    }
    held.join("; ")
}

/// Bytes for people.
fn size(bytes: u64) -> String {
    match bytes {
        0..=9_999 => format!("{bytes} B"),
        10_000..=10_239_999 => format!("{} kB", bytes >> 10),
        _ => format!("{} MB", bytes >> 20),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use trunkline_shared::cluster::topology::{Change, FactKey};
    use trunkline_shared::dcs::records;

    use super::*;

    #[test]
    fn a_picture_fits_the_screen_and_says_who_leads_for_how_long() {
        let mut topology = Topology::default();
        let a = MemberName::new("a");
        let member =
            r#"{"conn_url":"postgres://a:5432/x","state":"running","role":"primary","timeline":3}"#;
        for (key, value) in [(FactKey::Leader, "a"), (FactKey::Member(a.clone()), member)] {
            topology.apply(&Change {
                fact: Some(records::parse(&key, value.as_bytes())),
                key,
                revision: 1,
                lease: 7,
            });
        }
        let view = View {
            topology: Arc::new(topology),
            ..View::default()
        };
        let now = Moment::default() + Duration::from_secs(60);
        let status = Status {
            answers: true,
            asked_at: now,
            lease_left: Some(Duration::from_millis(3900)),
            is_writable: true,
            reason: Some("This member leads.".to_owned()),
        };
        let mut events = Events::default();
        events.add(
            "2026-11-20 10:00:00".to_owned(),
            "a holds the leader key".to_owned(),
        );
        let frame = Frame {
            cluster: &ClusterName::new("demo"),
            view: &view,
            statuses: &[(a, status)].into(),
            events: &events,
            time: "2026-11-20 10:00:01".to_owned(),
            now: now + Duration::from_millis(900),
        };
        let lines = frame.lines((100, 20));
        assert_eq!(lines.len(), 20);
        assert!(
            lines[1].contains("leader: a (epoch 0.1), lease left 3.0 s, accepts writes"),
            "{lines:#?}"
        );
        assert!(
            lines.iter().any(|line| line == "a: This member leads."),
            "{lines:#?}"
        );
        assert!(
            lines
                .iter()
                .any(|line| line.ends_with("a holds the leader key")),
            "{lines:#?}"
        );
        for size in [(20, 5), (40, 8), (300, 60)] {
            let lines = frame.lines(size);
            assert_eq!(lines.len(), size.1);
            assert!(lines.iter().all(|line| line.chars().count() <= size.0));
            assert!(lines[size.1 - 1].starts_with('q'), "{lines:#?}");
        }
    }
}
