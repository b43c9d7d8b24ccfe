//! `list` and `topology`: the members as patronictl shows them, and why there is no leader.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;

use serde_json::Value;
use trunkline_shared::cluster::member::{ParameterChange, RestartSchedule};
use trunkline_shared::cluster::topology::Initialize;
use trunkline_shared::cluster::{ClusterName, Lsn, Member, MemberName, Moment, Topology};
use trunkline_shared::dcs::watch::{Follow, View};
use trunkline_shared::service::clock::{self, WallTime};

use super::arguments::{self, Format, Watch};
use super::table::{Column, Table};
use super::watching::watching;
use super::{CtlError, Desk, Session, accept_dcs, clusters, local_time, yaml};
use crate::api::view::{MemberView, members};
use crate::decide::Reason;

/// PostgreSQL's port, which is not shown unless somebody uses another one.
const USUAL_PORT: u16 = 5432;

/// A change of a parameter that is longer is not shown to people.
const LONGEST_CHANGE: usize = 50;

/// How the members are shown.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    /// How the table is printed.
    pub(super) format: Format,
    /// With columns that nobody has anything in.
    pub(super) is_extended: bool,
    /// Members stand below the one that they follow.
    pub(super) is_tree: bool,
}

impl Shape {
    /// For people, as before a question.
    pub(super) const PLAIN: Shape = Shape {
        format: Format::Pretty,
        is_extended: false,
        is_tree: false,
    };
}

/// `trunkline list`
pub(super) async fn list(desk: &Desk, asked: &arguments::List) -> Result<(), CtlError> {
    let shape = Shape {
        format: asked.format,
        is_extended: asked.extended,
        is_tree: false,
    };
    show(desk, &asked.clusters, shape, &asked.watch, asked.timestamp).await
}

/// `trunkline topology`
pub(super) async fn topology(desk: &Desk, asked: &arguments::Topology) -> Result<(), CtlError> {
    let shape = Shape {
        is_tree: true,
        ..Shape::PLAIN
    };
    show(desk, &asked.clusters, shape, &asked.watch, false).await
}

async fn show(
    desk: &Desk,
    names: &[String],
    shape: Shape,
    watch: &Watch,
    has_time: bool,
) -> Result<(), CtlError> {
    let every = watch.interval()?;
    let mut followed = Vec::new();
    for session in desk.sessions(names).await? {
        let (follow, _) = session.follow().await?;
        followed.push((session, follow));
    }
    watching(&desk.terminal, every, async || {
        if has_time {
            let now = local_time::to_seconds(clock::wall_clock());
            desk.terminal.line(&now)?;
        }
        for (session, follow) in &followed {
            show_one(session, follow, shape, every.is_some()).await?;
        }
        Ok(())
    })
    .await
}

async fn show_one(
    session: &Session,
    follow: &Follow,
    shape: Shape,
    is_watched: bool,
) -> Result<(), CtlError> {
    let view = follow.views.borrow().clone();
    let text = render(&session.cluster, &view.topology, shape);
    session.terminal.print(&text)?;
    if shape.format == Format::Pretty
        && clusters::is_known(&view.topology)
        && view.topology.leader.is_none()
        && let Some(why) = accept_dcs::disbelief(session).await
    {
        session.terminal.line(&format!("  {why}"))?;
    }
    let stale = staleness(&view, clock::now(), clock::wall_clock());
    match (is_watched, stale) {
        (false, Some(stale)) => Err(CtlError::Failed(stale)),
        (false, None) if !clusters::is_known(&view.topology) => {
            Err(clusters::unknown(session).await?)
        }
        (true, Some(stale)) if shape.format == Format::Pretty => {
            session.terminal.line(&format!(" {stale}"))
        }
        // What another program reads as a table stays one.
        (true, Some(stale)) => {
            session.terminal.warn(&stale);
            Ok(())
        }
        (true | false, None) => Ok(()),
    }
}

/// The members of a cluster, and, for people, what else is to be known of it.
pub(super) fn render(cluster: &ClusterName, topology: &Topology, shape: Shape) -> String {
    let views = match shape.is_tree {
        true => tree(members(topology)),
        false => members(topology),
    };
    let mut text = table(cluster, topology, &views, shape).render(shape.format);
    if shape.format == Format::Pretty {
        text.push_str(&notes(topology));
    }
    text
}

/// patronictl's columns; the first is only in TSV, JSON and YAML.
fn columns(views: &[MemberView], shape: Shape) -> Vec<Column> {
    let lag = |name: &str| Column {
        head: "Lag".to_owned(),
        ..Column::new(name, true)
    };
    let mut columns = vec![
        Column::new("Cluster", false),
        Column::new("Member", false),
        Column::new("Host", false),
        Column::new("Role", false),
        Column::new("State", false),
        Column::new("TL", true),
        Column::new("Receive LSN", true),
        lag("Receive Lag"),
        Column::new("Replay LSN", true),
        lag("Replay Lag"),
    ];
    let is_there = |has: fn(&MemberView) -> bool| shape.is_extended || views.iter().any(has);
    for (name, is_there) in [
        ("Pending restart", is_there(|view| view.has_pending_restart)),
        (
            "Pending restart reason",
            is_there(|view| !view.pending_restart.is_empty()),
        ),
        (
            "Scheduled restart",
            is_there(|view| view.scheduled_restart.is_some()),
        ),
        ("Tags", is_there(is_tagged)),
    ] {
        columns.extend(is_there.then(|| Column::new(name, false)));
    }
    columns
}

fn table(cluster: &ClusterName, topology: &Topology, views: &[MemberView], shape: Shape) -> Table {
    let mut columns = columns(views, shape);
    let with_port = shows_ports(views);
    let mut rows: Vec<Vec<Value>> = views
        .iter()
        .map(|view| {
            columns
                .iter()
                .map(|column| cell(&column.name, cluster, view, shape, with_port))
                .collect()
        })
        .collect();
    if shape.format == Format::Pretty {
        columns.remove(0);
        rows.iter_mut().for_each(|row| {
            row.remove(0);
        });
    }
    Table {
        title: title(cluster, topology),
        columns,
        rows,
        leaves_out_empty: true,
        delimiter: "\t".to_owned(),
    }
}

fn is_tagged(view: &MemberView) -> bool {
    view.tags.as_object().is_some_and(|tags| !tags.is_empty())
}

/// Ports are shown when one is unusual or when two members share a host.
fn shows_ports(views: &[MemberView]) -> bool {
    let mut hosts: Vec<&str> = views.iter().map(|view| view.host.as_str()).collect();
    hosts.sort_unstable();
    let are_shared = hosts.windows(2).any(|pair| pair[0] == pair[1]);
    are_shared
        || views
            .iter()
            .any(|view| view.port != USUAL_PORT && view.port != 0)
}

/// What stands in a column; null if nothing does.
fn cell(
    column: &str,
    cluster: &ClusterName,
    view: &MemberView,
    shape: Shape,
    with_port: bool,
) -> Value {
    let (received, receive_lag, replayed, replay_lag) = positions(view);
    let is_leader = matches!(view.role, "leader" | "standby_leader");
    let lsn = |lsn: Option<Lsn>| match lsn {
        Some(lsn) => lsn.to_string().into(),
        None if is_leader => Value::Null,
        None => "unknown".into(),
    };
    let lag = |lag: Option<u64>| lag.map_or(Value::Null, |bytes| megabytes(bytes).into());
    match column {
        "Cluster" => cluster.as_str().into(),
        "Member" => view.name.clone().into(),
        "Host" => match with_port {
            true if view.host.contains(':') => format!("[{}]:{}", view.host, view.port).into(),
            true => format!("{}:{}", view.host, view.port).into(),
            false => view.host.clone().into(),
        },
        "Role" => title_case(view.role).into(),
        "State" => view.state.clone().into(),
        "TL" => view.timeline.map_or(Value::Null, Value::from),
        "Receive LSN" => lsn(received),
        "Receive Lag" => lag(receive_lag),
        "Replay LSN" => lsn(replayed),
        "Replay Lag" => lag(replay_lag),
        "Pending restart" if view.has_pending_restart => "*".into(),
        "Pending restart reason" if !view.pending_restart.is_empty() => {
            changes(&view.pending_restart, shape.format).into()
        }
        "Scheduled restart" => {
            let scheduled = view.scheduled_restart.as_ref();
            scheduled.map_or(Value::Null, |scheduled| when(scheduled).into())
        }
        "Tags" if is_tagged(view) => match shape.format {
            Format::Pretty if shape.is_tree => yaml::flow(&view.tags).into(),
            Format::Pretty => yaml::block(&view.tags).trim_end().into(),
            Format::Tsv => yaml::flow(&view.tags).into(),
            Format::Json | Format::Yaml => view.tags.clone(),
        },
        _ => Value::Null,
    }
}

/// Received and replayed, each with its lag. A member that says neither, but where it is, is read as older
/// versions wrote it.
fn positions(view: &MemberView) -> (Option<Lsn>, Option<u64>, Option<Lsn>, Option<u64>) {
    let is_old = view.received.is_none() && view.replayed.is_none();
    match (is_old, view.state == "streaming") {
        (true, true) => (view.position, view.lag, None, None),
        (true, false) => (None, None, view.position, view.lag),
        (false, _) => (
            view.received,
            view.receive_lag,
            view.replayed,
            view.replay_lag,
        ),
    }
}

/// Each parameter with its old and its new value, one in a line.
fn changes(parameters: &BTreeMap<Arc<str>, ParameterChange>, format: Format) -> String {
    let change = |(name, change): (&Arc<str>, &ParameterChange)| {
        let full = format!("{name}: {}->{}", change.old, change.new);
        match format == Format::Pretty && full.chars().count() > LONGEST_CHANGE {
            true => format!("{name}: [hidden - too long]"),
            false => full,
        }
    };
    let lines: Vec<String> = parameters.iter().map(change).collect();
    lines.join("\n")
}

fn when(scheduled: &RestartSchedule) -> String {
    match &scheduled.postgres_version {
        Some(version) => format!("{} if version < {version}", scheduled.schedule),
        None => scheduled.schedule.to_string(),
    }
}

/// Rounded to whole megabytes as Python rounds: halves go to the even one.
fn megabytes(bytes: u64) -> u64 {
    let (whole, rest) = (bytes >> 20, bytes & ((1 << 20) - 1));
    match rest.cmp(&(1 << 19)) {
        std::cmp::Ordering::Less => whole,
        std::cmp::Ordering::Equal => whole + (whole & 1),
        std::cmp::Ordering::Greater => whole + 1,
    }
}

/// `sync_standby` as `Sync Standby`.
pub(super) fn title_case(role: &str) -> String {
    role.split('_')
        .map(|word| {
            let (first, rest) = word.split_at(word.len().min(1));
            format!("{}{rest}", first.to_ascii_uppercase())
        })
        .collect::<Vec<_>>()
        .join(" ")
}

/// The members, each below the one that it follows, with names that show it.
fn tree(views: Vec<MemberView>) -> Vec<MemberView> {
    let leads = |view: &MemberView| matches!(view.role, "leader" | "standby_leader");
    let leader = views
        .iter()
        .find(|view| leads(view))
        .map(|l| l.name.clone());
    let upstream = |view: &MemberView| {
        let named = view.tags.get("replicatefrom").and_then(Value::as_str);
        let is_replica = |name: &&str| {
            let mut others = views.iter().filter(|other| !leads(other));
            others.any(|other| other.name == *name && other.name != view.name)
        };
        let above = named.filter(is_replica).map(str::to_owned);
        above.or_else(|| leader.clone())
    };
    let mut left: Vec<(Option<String>, MemberView)> = Vec::new();
    let mut ordered: Vec<(usize, MemberView)> = Vec::new();
    for view in &views {
        match leads(view) {
            true => ordered.push((0, view.clone())),
            false => left.push((upstream(view), view.clone())),
        }
    }
    place(leader.as_deref(), 1, &mut left, &mut ordered);
    // Members that name one another follow nobody else: they are shown all the same.
    ordered.extend(left.into_iter().map(|(_, view)| (1, view)));
    ordered
        .into_iter()
        .map(|(depth, mut view)| {
            if depth > 0 {
                view.name = format!("{}+ {}", "  ".repeat(depth - 1), view.name);
            }
            view
        })
        .collect()
}

/// Takes those who follow `above` out of `left`, each with those who follow it.
fn place(
    above: Option<&str>,
    depth: usize,
    left: &mut Vec<(Option<String>, MemberView)>,
    ordered: &mut Vec<(usize, MemberView)>,
) {
    while let Some(at) = left.iter().position(|(of, _)| of.as_deref() == above) {
        let (_, view) = left.remove(at);
        let name = view.name.clone();
        ordered.push((depth, view));
        place(Some(&name), depth + 1, left, ordered);
    }
}

fn title(cluster: &ClusterName, topology: &Topology) -> String {
    match topology.initialize {
        Initialize::Done(id) => format!(" Cluster: {cluster} ({id}) "),
        Initialize::Running => format!(" Cluster: {cluster} (initializing) "),
        Initialize::Absent => format!(" Cluster: {cluster} (uninitialized) "),
    }
}

/// Lines below the table: pause, requests, and why there is no leader.
fn notes(topology: &Topology) -> String {
    let mut text = String::new();
    if topology.settings_or_default().is_paused {
        text.push_str(" Maintenance mode: on\n");
    }
    if let Some(request) = &topology.failover {
        let (from, to) = (request.leader.as_ref(), request.candidate.as_ref());
        match &request.scheduled_at {
            Some(at) => {
                let _ = writeln!(text, " Switchover scheduled at: {at}");
                for (word, name) in [("from", from), ("to", to)] {
                    if let Some(name) = name {
                        let _ = writeln!(text, "{word:>24}: {name}");
                    }
                }
            }
            None => {
                let from = from.map_or("(any)", MemberName::as_str);
                let to = to.map_or("(any)", MemberName::as_str);
                let _ = writeln!(text, " Switchover requested from: {from} to: {to}");
            }
        }
    }
    if topology.leader.is_none() {
        text.push_str(&why_no_leader(topology));
    }
    let is_unready = |member: &&Arc<Member>| {
        let own = member.trunkline.as_ref();
        let word = own.and_then(|own| own.reason.as_deref());
        topology.leader.is_some() && word == Some(Reason::LogicalSlotNotReady.word())
    };
    for member in topology.members.values().filter(is_unready) {
        text.push_str(&what_it_says(member));
    }
    text
}

/// What every member says about it, in the sentence that log, metric and runbook share.
fn why_no_leader(topology: &Topology) -> String {
    let mut text = " No leader:\n".to_owned();
    if topology.members.is_empty() {
        text.push_str("  no member is registered; start an agent\n");
    }
    for name in &topology.disarmed {
        let _ = writeln!(
            text,
            "  {name}: its fence was disarmed in pause; see \"trunkline resume\""
        );
    }
    for member in topology.members.values() {
        let _ = write!(text, " {}", what_it_says(member));
    }
    text
}

fn what_it_says(member: &Member) -> String {
    let own = member.trunkline.as_ref();
    let word = own.and_then(|own| own.reason.as_deref());
    let sentence = word.map(|word| match Reason::from_word(word) {
        Some(reason) => reason.sentence(),
        None => word,
    });
    let state = trunkline_shared::dcs::records::state_word(member.state);
    let detail = own.and_then(|own| own.detail.as_deref());
    let detail = detail.map_or(String::new(), |detail| format!(" ({detail})"));
    format!(" {}: {}{detail}\n", member.name, sentence.unwrap_or(state))
}

/// Why what is shown may not be the cluster as it is now; `None` if the DCS vouches for it. `now` and `wall`
/// are the same moment.
pub fn staleness(view: &View, now: Moment, wall: WallTime) -> Option<String> {
    if let Some(why) = &view.went_back {
        return Some(format!(
            "The DCS shows less than it did before ({why}); what is shown is from before"
        ));
    }
    let why = view.last_error.as_deref()?;
    let Some(at) = view.proven_at else {
        return Some(format!("The DCS has not answered: {why}"));
    };
    let ago = i64::try_from(now.since(at).as_micros()).unwrap_or(i64::MAX);
    let since = WallTime(wall.0.saturating_sub(ago)).rfc3339();
    Some(format!(
        "The DCS has not answered since {since} ({why}); what is shown is from before"
    ))
}

#[cfg(test)]
mod tests {
    use trunkline_shared::cluster::topology::{Change, FactKey};
    use trunkline_shared::dcs::records;

    use super::*;

    fn topology(keys: &[(FactKey, &str)]) -> Topology {
        let mut topology = Topology::default();
        for (revision, (key, value)) in (1..).zip(keys) {
            topology.apply(&Change {
                key: key.clone(),
                fact: Some(records::parse(key, value.as_bytes())),
                revision,
                lease: 7,
            });
        }
        topology
    }

    fn shape(format: Format) -> Shape {
        Shape {
            format,
            ..Shape::PLAIN
        }
    }

    fn member(name: &str) -> FactKey {
        FactKey::Member(MemberName::new(name))
    }

    const LEADER: &str = r#"{"conn_url":"postgres://10.0.0.1:5432/postgres","api_url":"http://10.0.0.1:8008/patroni","state":"running","role":"primary","version":"0.1.0","xlog_location":67109120,"timeline":2}"#;
    const REPLICA: &str = r#"{"conn_url":"postgres://10.0.0.2:5432/postgres","api_url":"http://10.0.0.2:8008/patroni","state":"running","role":"replica","version":"0.1.0","xlog_location":67109120,"receive_lsn":"0/4000100","replay_lsn":"0/2000100","replication_state":"streaming","timeline":2,"pending_restart":true,"tags":{"nofailover":true}}"#;
    const NEW: &str = r#"{"conn_url":"postgres://10.0.0.3:5432/postgres","api_url":"http://10.0.0.3:8008/patroni","state":"creating replica","role":"uninitialized","version":"0.1.0"}"#;

    #[test]
    fn the_table_is_drawn_as_patronictl_draws_it() {
        let topology = topology(&[
            (FactKey::Initialize, "7389012345678901234"),
            (FactKey::Leader, "n1"),
            (member("n1"), LEADER),
            (member("n2"), REPLICA),
            (member("n3"), NEW),
        ]);
        let text = render(&ClusterName::new("demo"), &topology, Shape::PLAIN);
        let expected = "\
+ Cluster: demo (7389012345678901234) -----------+----+-------------+-----+------------+-----+-----------------+------------------+
| Member | Host     | Role    | State            | TL | Receive LSN | Lag | Replay LSN | Lag | Pending restart | Tags             |
+--------+----------+---------+------------------+----+-------------+-----+------------+-----+-----------------+------------------+
| n1     | 10.0.0.1 | Leader  | running          |  2 |             |     |            |     |                 |                  |
| n2     | 10.0.0.2 | Replica | streaming        |  2 |   0/4000100 |   0 |  0/2000100 |  32 | *               | nofailover: true |
| n3     | 10.0.0.3 | Replica | creating replica |    |     unknown |     |    unknown |     |                 |                  |
+--------+----------+---------+------------------+----+-------------+-----+------------+-----+-----------------+------------------+
";
        assert_eq!(text, expected, "\n{text}");
    }

    #[test]
    fn without_a_leader_it_says_why_and_json_is_unharmed() {
        let lonely = REPLICA.replacen(
            '{',
            r#"{"trunkline":{"reason":"too_far_behind","detail":"7 bytes"},"#,
            1,
        );
        let topology = topology(&[(member("n2"), &lonely)]);
        let cluster = ClusterName::new("demo");
        let text = render(&cluster, &topology, Shape::PLAIN);
        assert!(
            text.ends_with(
                " No leader:\n  n2: This member would lose more than maximum_lag_on_failover. \
                 trunkline failover overrides this limit. (7 bytes)\n"
            ),
            "{text}"
        );
        let json = render(&cluster, &topology, shape(Format::Json));
        let rows: Value = serde_json::from_str(&json).unwrap();
        assert_eq!(rows[0]["Member"], "n2");
        assert_eq!(rows[0]["Tags"]["nofailover"], true);
        let tsv = render(&cluster, &topology, shape(Format::Tsv));
        assert!(
            tsv.starts_with("Cluster\tMember\tHost\tRole\tState\tTL\t"),
            "{tsv}"
        );
        let yaml = render(&cluster, &topology, shape(Format::Yaml));
        assert!(yaml.contains("Member: n2"), "{yaml}");
    }

    #[test]
    fn a_member_without_the_logical_slots_says_so_beside_a_leader() {
        let unready = REPLICA.replacen(
            '{',
            r#"{"trunkline":{"reason":"logical_slot_not_ready","detail":"decoded"},"#,
            1,
        );
        let topology = topology(&[
            (FactKey::Leader, "n1"),
            (member("n1"), LEADER),
            (member("n2"), &unready),
        ]);
        let text = render(&ClusterName::new("demo"), &topology, Shape::PLAIN);
        assert!(text.contains("\n n2: Copies of the leader's"), "{text}");
        assert!(text.ends_with(" (decoded)\n"), "{text}");
    }

    #[test]
    fn a_view_that_the_dcs_does_not_vouch_for_says_so() {
        let now = Moment::default() + std::time::Duration::from_secs(60);
        let wall = WallTime::parse("2026-11-20T10:01:00Z").unwrap();
        let mut view = View {
            proven_at: Some(Moment::default()),
            ..View::default()
        };
        assert_eq!(staleness(&view, now, wall), None);
        view.last_error = Some("refused".into());
        assert_eq!(
            staleness(&view, now, wall).unwrap(),
            "The DCS has not answered since 2026-11-20T10:00:00.000000+00:00 (refused); what is shown is \
             from before"
        );
        view.went_back = Some("revision 5 after 9".into());
        assert!(staleness(&view, now, wall).unwrap().contains("revision 5"));
    }

    #[test]
    fn ports_are_shown_when_they_tell_something() {
        let near = REPLICA.replace("10.0.0.2:5432", "10.0.0.1:5433");
        let topology = topology(&[(member("n1"), LEADER), (member("n2"), &near)]);
        let text = render(&ClusterName::new("demo"), &topology, Shape::PLAIN);
        assert!(text.contains("| 10.0.0.1:5433 |"), "{text}");
    }
}
