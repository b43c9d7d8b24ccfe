//! `routers`: the fleet, by the records that the routers keep in the DCS.

use serde_json::Value;
use trunkline_shared::cluster::router::{Acknowledged, RouterRecord, name_and_instance};
use trunkline_shared::cluster::{ClusterName, LeaderEpoch, Topology};
use trunkline_shared::dcs::records::hold_stage_word;
use trunkline_shared::service::clock;

use super::arguments::Format;
use super::list::staleness;
use super::table::{Column, Table};
use super::{CtlError, Session};

/// `trunkline routers`
pub(super) async fn show(session: &Session, format: Format) -> Result<(), CtlError> {
    let (_, view) = session.known().await?;
    let text = render(&session.cluster, &view.topology, format);
    session.terminal.print(&text)?;
    match staleness(&view, clock::now(), clock::wall_clock()) {
        Some(stale) => Err(CtlError::Failed(stale)),
        None => Ok(()),
    }
}

/// The routers of a cluster; for people, with a note on those that are behind.
fn render(cluster: &ClusterName, topology: &Topology, format: Format) -> String {
    let current = topology.epoch();
    let rows: Vec<Vec<Value>> = topology
        .routers
        .iter()
        .map(|(key, record)| row(key, record, current))
        .collect();
    let behind = rows.iter().filter(|row| row[5] == "behind").count();
    let table = Table {
        title: match format {
            Format::Pretty => format!(" Routers of cluster: {cluster} "),
            Format::Tsv | Format::Json | Format::Yaml => String::new(),
        },
        columns: vec![
            Column::new("Router", false),
            Column::new("Instance", false),
            Column::new("Version", false),
            Column::new("HTTP", false),
            Column::new("Epoch", true),
            Column::new("Routing", false),
            Column::new("Hold timeout (ms)", true),
            Column::new("Writer sessions", true),
            Column::new("Held clients", true),
            Column::new("Acknowledged", false),
        ],
        rows,
        leaves_out_empty: false,
        delimiter: "\t".to_owned(),
    };
    let mut text = table.render(format);
    if format == Format::Pretty && topology.routers.is_empty() {
        text.push_str(" No router is registered\n");
    }
    if let (Format::Pretty, Some(epoch), 1..) = (format, current, behind) {
        let routers = match behind {
            1 => "1 router has".to_owned(),
            count => format!("{count} routers have"),
        };
        text.push_str(&format!(
            " {routers} not applied the leader's epoch {epoch} yet\n"
        ));
    }
    text
}

fn row(key: &str, record: &RouterRecord, current: Option<LeaderEpoch>) -> Vec<Value> {
    let (name, instance) = name_and_instance(key);
    let epoch = record.epoch.map(|epoch| epoch.to_string());
    let hold = u64::try_from(record.hold_timeout.as_millis()).unwrap_or(u64::MAX);
    let acknowledged = record.acknowledged.map(|said: Acknowledged| {
        format!("{} of {}", hold_stage_word(said.stage), said.switchover)
    });
    vec![
        name.into(),
        instance.into(),
        (&*record.version).into(),
        (&*record.http_url).into(),
        epoch.unwrap_or_default().into(),
        routing(record.epoch, current).into(),
        hold.into(),
        record.writer_sessions.into(),
        record.held_clients.into(),
        acknowledged.unwrap_or_default().into(),
    ]
}

/// Whether the sessions of a router go to the leader of this moment.
fn routing(own: Option<LeaderEpoch>, current: Option<LeaderEpoch>) -> &'static str {
    match (own, current) {
        (_, None) => "no leader",
        (Some(own), Some(current)) if own >= current => "current",
        (Some(_) | None, Some(_)) => "behind",
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use trunkline_shared::cluster::{Leader, MemberName};
    use trunkline_shared::dcs::records::router_from_json;

    use super::*;

    fn fleet(leader: Option<i64>) -> Topology {
        let record = |text: &str| Arc::new(router_from_json(text).unwrap());
        let routers = BTreeMap::from([
            (
                Arc::from("r1/41-0000000a"),
                record(
                    r#"{"version":"0.1.0","http_url":"http://r1:8010","hold_timeout":10000,"epoch":"1.42",
                    "writer_sessions":120,"held_clients":0,"switchover":{"id":77,"stage":"hold_all"}}"#,
                ),
            ),
            (
                Arc::from("r2/7-0000000b"),
                record(r#"{"http_url":"http://r2:8010","hold_timeout":500,"epoch":"1.40"}"#),
            ),
            (
                Arc::from("r3/9-0000000c"),
                record(r#"{"http_url":"http://r3:8010","hold_timeout":500}"#),
            ),
        ]);
        Topology {
            routers: Arc::new(routers),
            leader: leader.map(|revision| Leader {
                member: MemberName::new("n1"),
                epoch: LeaderEpoch {
                    generation: 1,
                    revision,
                },
                lease: 1,
            }),
            ..Topology::default()
        }
    }

    #[test]
    fn routers_that_are_behind_the_leader_are_marked() {
        let text = render(&ClusterName::new("demo"), &fleet(Some(42)), Format::Pretty);
        let expected = "\
+ Routers of cluster: demo ------+----------------+-------+---------+-------------------+-----------------+--------------+----------------+
| Router | Instance    | Version | HTTP           | Epoch | Routing | Hold timeout (ms) | Writer sessions | Held clients | Acknowledged   |
+--------+-------------+---------+----------------+-------+---------+-------------------+-----------------+--------------+----------------+
| r1     | 41-0000000a | 0.1.0   | http://r1:8010 |  1.42 | current |             10000 |             120 |            0 | hold_all of 77 |
| r2     | 7-0000000b  |         | http://r2:8010 |  1.40 | behind  |               500 |               0 |            0 |                |
| r3     | 9-0000000c  |         | http://r3:8010 |       | behind  |               500 |               0 |            0 |                |
+--------+-------------+---------+----------------+-------+---------+-------------------+-----------------+--------------+----------------+
 2 routers have not applied the leader's epoch 1.42 yet
";
        assert_eq!(text, expected, "\n{text}");
    }

    #[test]
    fn a_cluster_without_routers_says_so() {
        let cluster = ClusterName::new("demo");
        let none = Topology::default();
        let text = render(&cluster, &none, Format::Pretty);
        assert!(text.ends_with("+\n No router is registered\n"), "{text}");
        let json = render(&cluster, &none, Format::Json);
        assert_eq!(json.trim(), "[]");
    }

    #[test]
    fn programs_read_rows_without_notes() {
        let cluster = ClusterName::new("demo");
        let json = render(&cluster, &fleet(Some(42)), Format::Json);
        let rows: Value = serde_json::from_str(&json).unwrap();
        assert_eq!(rows[0]["Router"], "r1");
        assert_eq!(rows[0]["Writer sessions"], 120);
        assert_eq!(rows[1]["Routing"], "behind");
        let tsv = render(&cluster, &fleet(None), Format::Tsv);
        assert_eq!(tsv.lines().count(), 4);
        assert!(tsv.contains("\tno leader\t"), "{tsv}");
        let yaml = render(&cluster, &fleet(Some(42)), Format::Yaml);
        assert!(yaml.contains("Router: r3"), "{yaml}");
    }
}
