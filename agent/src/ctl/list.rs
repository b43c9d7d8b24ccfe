//! `list` and `topology`: the members as patronictl shows them, and why there is no leader. Pure.

use std::fmt::Write;
use std::sync::Arc;

use serde_json::Value;
use trunkline_shared::cluster::member::ParameterChange;
use trunkline_shared::cluster::topology::Initialize;
use trunkline_shared::cluster::{ClusterName, Lsn, Member, Moment, Topology};
use trunkline_shared::dcs::watch::View;
use trunkline_shared::service::clock::WallTime;

use super::arguments::Format;
use super::table::{Column, Table};
use crate::api::view::{MemberView, members};
use crate::decide::Reason;

const fn column(name: &'static str, head: &'static str, is_number: bool) -> Column {
    Column {
        name,
        head,
        is_number,
    }
}

/// patronictl's columns; the first is only in TSV, JSON and YAML.
const COLUMNS: [Column; 10] = [
    column("Cluster", "Cluster", false),
    column("Member", "Member", false),
    column("Host", "Host", false),
    column("Role", "Role", false),
    column("State", "State", false),
    column("TL", "TL", true),
    column("Receive LSN", "Receive LSN", true),
    column("Receive Lag", "Lag", true),
    column("Replay LSN", "Replay LSN", true),
    column("Replay Lag", "Lag", true),
];

/// Columns that are shown only if a member has something in them.
const PENDING_RESTART: Column = column("Pending restart", "Pending restart", false);
const REASON: Column = column("Pending restart reason", "Pending restart reason", false);
const TAGS: Column = column("Tags", "Tags", false);

/// PostgreSQL's port, which is not shown unless somebody uses another one.
const USUAL_PORT: u16 = 5432;

/// The whole output of `list`.
pub fn render(
    cluster: &ClusterName,
    topology: &Topology,
    format: Format,
    extended: bool,
) -> String {
    let views = members(topology);
    let mut text = table(cluster, topology, &views, format, extended).render(format);
    if format == Format::Pretty {
        text.push_str(&notes(topology));
    }
    text
}

fn table(
    cluster: &ClusterName,
    topology: &Topology,
    views: &[MemberView],
    format: Format,
    extended: bool,
) -> Table {
    let mut columns = COLUMNS.to_vec();
    let has_pending = extended || views.iter().any(|view| view.has_pending_restart);
    let has_tags = extended || views.iter().any(is_tagged);
    let has_reason = extended || views.iter().any(|view| !view.pending_restart.is_empty());
    columns.extend(has_pending.then_some(PENDING_RESTART));
    columns.extend(has_reason.then_some(REASON));
    columns.extend(has_tags.then_some(TAGS));
    let with_port = shows_ports(views);
    let mut rows: Vec<Vec<Value>> = views
        .iter()
        .map(|view| {
            let mut row = row(cluster, view, with_port);
            let pending = || match view.has_pending_restart {
                true => Value::from("*"),
                false => Value::Null,
            };
            row.extend(has_pending.then(pending));
            row.extend(has_reason.then(|| reason(view, format)));
            row.extend(has_tags.then(|| match is_tagged(view) {
                true => view.tags.clone(),
                false => Value::Null,
            }));
            row
        })
        .collect();
    if format == Format::Pretty {
        columns.remove(0);
        rows.iter_mut().for_each(|row| {
            row.remove(0);
        });
    }
    Table {
        title: title(cluster, topology),
        columns,
        rows,
    }
}

/// The longest reason that a drawing shows, as patronictl has it.
const LONGEST_REASON: usize = 50;

/// Which values a restart changes.
fn reason(view: &MemberView, format: Format) -> Value {
    let change = |(name, change): (&Arc<str>, &ParameterChange)| {
        let text = format!("{name}: {}->{}", change.old, change.new);
        match format == Format::Pretty && text.chars().count() > LONGEST_REASON {
            true => format!("{name}: [hidden - too long]"),
            false => text,
        }
    };
    let changes: Vec<String> = view.pending_restart.iter().map(change).collect();
    match changes.is_empty() {
        true => Value::Null,
        false => changes.join(", ").into(),
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

fn row(cluster: &ClusterName, view: &MemberView, with_port: bool) -> Vec<Value> {
    let is_leader = matches!(view.role, "leader" | "standby_leader");
    let lsn = |lsn: Option<Lsn>| match lsn {
        Some(lsn) => lsn.to_string().into(),
        None if is_leader => Value::Null,
        None => "unknown".into(),
    };
    let lag = |lag: Option<u64>| match lag {
        Some(bytes) => megabytes(bytes).into(),
        None if is_leader => Value::Null,
        None => "unknown".into(),
    };
    let host = match with_port {
        true if view.host.contains(':') => format!("[{}]:{}", view.host, view.port),
        true => format!("{}:{}", view.host, view.port),
        false => view.host.clone(),
    };
    vec![
        cluster.as_str().into(),
        view.name.clone().into(),
        host.into(),
        title_case(view.role).into(),
        view.state.clone().into(),
        view.timeline.map_or(Value::Null, Value::from),
        lsn(view.received),
        lag(view.receive_lag),
        lsn(view.replayed),
        lag(view.replay_lag),
    ]
}

/// Rounded to whole megabytes, as patronictl shows lag.
fn megabytes(bytes: u64) -> u64 {
    (bytes + (1 << 19)) >> 20
}

/// `sync_standby` as `Sync Standby`.
fn title_case(role: &str) -> String {
    role.split('_')
        .map(|word| {
            let (first, rest) = word.split_at(word.len().min(1));
            format!("{}{rest}", first.to_ascii_uppercase())
        })
        .collect::<Vec<_>>()
        .join(" ")
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
        let from = request.leader.as_ref().map_or("(any)", |n| n.as_str());
        let to = request.candidate.as_ref().map_or("(any)", |n| n.as_str());
        let _ = match &request.scheduled_at {
            Some(at) => writeln!(text, " Switchover scheduled at: {at} from: {from} to: {to}"),
            None => writeln!(text, " Switchover requested from: {from} to: {to}"),
        };
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

/// The output of `topology`: members below the one they follow.
pub fn tree(cluster: &ClusterName, topology: &Topology) -> String {
    let mut views = members(topology);
    let leads = |view: &MemberView| matches!(view.role, "leader" | "standby_leader");
    let upstream = |view: &MemberView| {
        view.tags
            .get("replicatefrom")
            .and_then(Value::as_str)
            .map(str::to_owned)
    };
    views.sort_by_key(|view| (!leads(view), upstream(view), view.name.clone()));
    let mut ordered: Vec<(usize, MemberView)> = Vec::new();
    for view in views {
        let above = upstream(&view).and_then(|name| {
            let at = ordered.iter().position(|(_, known)| known.name == name)?;
            Some((at, ordered[at].0))
        });
        match above {
            Some((at, depth)) => ordered.insert(at + 1, (depth + 1, view)),
            None => ordered.push((usize::from(!leads(&view)), view)),
        }
    }
    let views: Vec<MemberView> = ordered
        .into_iter()
        .map(|(depth, mut view)| {
            if depth > 0 {
                view.name = format!("{}+ {}", "  ".repeat(depth - 1), view.name);
            }
            view
        })
        .collect();
    let mut text = table(cluster, topology, &views, Format::Pretty, false).render(Format::Pretty);
    text.push_str(&notes(topology));
    text
}

#[cfg(test)]
mod tests {
    use trunkline_shared::cluster::MemberName;
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

    fn member(name: &str) -> FactKey {
        FactKey::Member(MemberName::new(name))
    }

    const LEADER: &str = r#"{"conn_url":"postgres://10.0.0.1:5432/postgres","api_url":"http://10.0.0.1:8008/patroni","state":"running","role":"primary","version":"0.1.0","xlog_location":67109120,"timeline":2}"#;
    const REPLICA: &str = r#"{"conn_url":"postgres://10.0.0.2:5432/postgres","api_url":"http://10.0.0.2:8008/patroni","state":"running","role":"replica","version":"0.1.0","xlog_location":67109120,"receive_lsn":"0/4000100","replay_lsn":"0/2000100","replication_state":"streaming","timeline":2,"pending_restart":true,"pending_restart_reason":{"max_connections":{"old_value":"100","new_value":"200"}},"tags":{"nofailover":true}}"#;
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
        let text = render(&ClusterName::new("demo"), &topology, Format::Pretty, false);
        let expected = "\
+ Cluster: demo (7389012345678901234) -----------+----+-------------+---------+------------+---------+-----------------+------------------+
| Member | Host     | Role    | State            | TL | Receive LSN |     Lag | Replay LSN |     Lag | Pending restart | Tags             |
+--------+----------+---------+------------------+----+-------------+---------+------------+---------+-----------------+------------------+
| n1     | 10.0.0.1 | Leader  | running          |  2 |             |         |            |         |                 |                  |
| n2     | 10.0.0.2 | Replica | streaming        |  2 |   0/4000100 |       0 |  0/2000100 |      32 | *               | nofailover: true |
| n3     | 10.0.0.3 | Replica | creating replica |    |     unknown | unknown |    unknown | unknown |                 |                  |
+--------+----------+---------+------------------+----+-------------+---------+------------+---------+-----------------+------------------+
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
        let text = render(&cluster, &topology, Format::Pretty, false);
        assert!(
            text.ends_with(
                " No leader:\n  n2: This member would lose more than maximum_lag_on_failover. \
                 trunkline failover overrides this limit. (7 bytes)\n"
            ),
            "{text}"
        );
        let json = render(&cluster, &topology, Format::Json, false);
        let rows: Value = serde_json::from_str(&json).unwrap();
        assert_eq!(rows[0]["Member"], "n2");
        assert_eq!(rows[0]["Tags"]["nofailover"], true);
        let tsv = render(&cluster, &topology, Format::Tsv, false);
        assert!(
            tsv.starts_with("Cluster\tMember\tHost\tRole\tState\tTL\t"),
            "{tsv}"
        );
        let yaml = render(&cluster, &topology, Format::Yaml, false);
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
        let text = render(&ClusterName::new("demo"), &topology, Format::Pretty, false);
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
        let text = tree(&ClusterName::new("demo"), &topology);
        assert!(text.contains("| 10.0.0.1:5433 |"), "{text}");
    }
}
