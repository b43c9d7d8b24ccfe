//! Name, help and value of every metric that follows from the published state: Patroni's, with its labels,
//! and `trunkline_agent_*` beside them. Counters of what happened are added by the process's registry.

use std::fmt::Write;

use metrics::describe_counter;
use trunkline_shared::cluster::settings::SynchronousMode;
use trunkline_shared::cluster::{Lsn, MemberRole, MemberState, Moment};

use crate::api::Published;

/// Turns of the loop, by the reason they ended with.
pub const DECISIONS: &str = "trunkline_agent_decisions_total";
/// Actions that failed.
pub const ACTIONS_FAILED: &str = "trunkline_agent_actions_failed_total";
/// Turns that were skipped.
pub const TURNS_SKIPPED: &str = "trunkline_agent_turns_skipped_total";

/// Lines of the log that were lost.
pub const LOG_LINES_LOST: &str = "trunkline_agent_log_lines_lost_total";

/// Says what the process's own metrics are. Called once, after the recorder is installed.
pub fn describe() {
    describe_counter!(
        DECISIONS,
        "Turns of the loop, by the reason they ended with"
    );
    describe_counter!(
        ACTIONS_FAILED,
        "Actions that failed; the next turn decides anew"
    );
    describe_counter!(
        TURNS_SKIPPED,
        "Turns skipped because of a defect in the rules"
    );
    describe_counter!(
        LOG_LINES_LOST,
        "Lines of the log that could not be written as fast as they came, or not at all"
    );
}

/// The text exposition of the published state.
pub fn exposition(published: &Published, now: Moment) -> String {
    let mut text = String::with_capacity(8192);
    let labels = format!(
        "scope=\"{}\",name=\"{}\"",
        escaped(published.cluster.as_str()),
        escaped(published.name.as_str())
    );
    // Positions and timelines go back, too, so Patroni's counters are gauges here; writing to a String cannot fail.
    let mut put = |name: &str, help: &str, extra: &str, value: f64| {
        let _ = writeln!(
            text,
            "# HELP {name} {help}\n# TYPE {name} gauge\n{name}{{{labels}{extra}}} {value}"
        );
    };
    let facts = Facts { published, now };
    for metric in METRICS {
        let value = (metric.value)(&facts);
        put(metric.name, metric.help, "", value);
    }
    if let Some(reason) = &published.decided {
        let extra = format!(",reason=\"{}\"", reason.word());
        put(
            "trunkline_agent_reason_info",
            "Why the cluster is as it is, as this member sees it.",
            &extra,
            1.0,
        );
    }
    text
}

/// What a value is computed from.
struct Facts<'a> {
    published: &'a Published,
    now: Moment,
}

impl Facts<'_> {
    fn is_in_sync(&self, mode: SynchronousMode) -> bool {
        let topology = &self.published.topology;
        topology.settings_or_default().synchronous_mode == mode
            && topology
                .sync
                .as_ref()
                .is_some_and(|sync| sync.standbys.contains(&self.published.name))
    }
}

fn is(condition: bool) -> f64 {
    if condition { 1.0 } else { 0.0 }
}

fn lsn(lsn: Option<Lsn>) -> f64 {
    lsn.unwrap_or_default().0 as f64
}

/// One metric of the published state. All are gauges: Patroni calls some of them counters, which a rewind, a
/// restart or a change of role takes back, and which by Prometheus's rules would have to be named otherwise.
struct Metric {
    name: &'static str,
    help: &'static str,
    value: fn(&Facts<'_>) -> f64,
}

const fn gauge(name: &'static str, help: &'static str, value: fn(&Facts<'_>) -> f64) -> Metric {
    Metric { name, help, value }
}

/// All of them, in the order of the exposition.
const METRICS: &[Metric] = &[
    gauge(
        "patroni_version",
        "Version of the agent as a number.",
        |_| version_number(),
    ),
    gauge(
        "patroni_postgres_running",
        "Value is 1 if Postgres is running, 0 otherwise.",
        |f| is(f.published.state == MemberState::Running),
    ),
    gauge(
        "patroni_postmaster_start_time",
        "Epoch seconds since Postgres started.",
        |f| {
            f.published
                .postmaster_start_time
                .as_ref()
                .map_or(0.0, |t| t.seconds)
        },
    ),
    gauge(
        "patroni_primary",
        "Value is 1 if this node is the leader, 0 otherwise.",
        |f| is(f.published.holds_lease(f.now) && f.published.role == MemberRole::Primary),
    ),
    gauge(
        "patroni_xlog_location",
        "Current location of the Postgres transaction log, 0 if this node is not the leader.",
        |f| lsn(f.published.position),
    ),
    gauge(
        "patroni_standby_leader",
        "Value is 1 if this node is the standby_leader, 0 otherwise.",
        |f| is(f.published.role == MemberRole::StandbyLeader),
    ),
    gauge(
        "patroni_replica",
        "Value is 1 if this node is a replica, 0 otherwise.",
        |f| is(f.published.role == MemberRole::Replica),
    ),
    gauge(
        "patroni_sync_standby",
        "Value is 1 if this node is a sync standby, 0 otherwise.",
        |f| is(f.is_in_sync(SynchronousMode::On)),
    ),
    gauge(
        "patroni_quorum_standby",
        "Value is 1 if this node is a quorum standby, 0 otherwise.",
        |f| is(f.is_in_sync(SynchronousMode::Quorum)),
    ),
    gauge(
        "patroni_xlog_received_location",
        "Current location of the received Postgres transaction log, 0 if this node is not a replica.",
        |f| lsn(f.published.received),
    ),
    gauge(
        "patroni_xlog_replayed_location",
        "Current location of the replayed Postgres transaction log, 0 if this node is not a replica.",
        |f| lsn(f.published.replayed),
    ),
    gauge(
        "patroni_xlog_replayed_timestamp",
        "Current timestamp of the replayed Postgres transaction log, 0 if null.",
        |f| {
            f.published
                .replayed_timestamp
                .as_ref()
                .map_or(0.0, |t| t.seconds)
        },
    ),
    gauge(
        "patroni_xlog_paused",
        "Value is 1 if the replaying of Postgres transaction log is paused, 0 otherwise.",
        |f| is(f.published.is_replay_paused),
    ),
    gauge(
        "patroni_postgres_streaming",
        "Value is 1 if Postgres is streaming, 0 otherwise.",
        |f| is(f.published.replication_state.as_deref() == Some("streaming")),
    ),
    gauge(
        "patroni_postgres_in_archive_recovery",
        "Value is 1 if Postgres is replicating from archive, 0 otherwise.",
        |f| is(f.published.replication_state.as_deref() == Some("in archive recovery")),
    ),
    gauge(
        "patroni_postgres_server_version",
        "Version of Postgres (if running), 0 otherwise.",
        |f| f.published.server_version.map_or(0.0, f64::from),
    ),
    gauge(
        "patroni_cluster_unlocked",
        "Value is 1 if the cluster is unlocked, 0 if locked.",
        |f| is(f.published.topology.leader.is_none()),
    ),
    gauge(
        "patroni_failsafe_mode_is_active",
        "Value is 1 if failsafe mode is active, 0 if inactive.",
        |f| is(f.published.is_failsafe_active),
    ),
    gauge(
        "patroni_failsafe_mode_enabled",
        "Value is 1 if failsafe mode is enabled, 0 otherwise.",
        |f| {
            let settings = f.published.topology.settings_or_default();
            is(settings.failsafe_mode == Some(true))
        },
    ),
    gauge(
        "patroni_failsafe_member",
        "Value is 1 if this node is a member of the failsafe topology, 0 otherwise.",
        |f| {
            let failsafe = &f.published.topology.failsafe;
            is(failsafe.contains_key(&f.published.name))
        },
    ),
    gauge(
        "patroni_failover_priority",
        "Failover priority of this node, 0 if it never becomes the leader.",
        |f| f64::from(f.published.tags.priority()),
    ),
    gauge(
        "patroni_postgres_timeline",
        "Postgres timeline of this node (if running), 0 otherwise.",
        |f| f.published.timeline.map_or(0.0, |t| f64::from(t.0)),
    ),
    gauge(
        "patroni_dcs_last_seen",
        "Epoch timestamp when DCS was last contacted successfully.",
        |f| f.published.dcs_last_seen as f64,
    ),
    gauge(
        "patroni_pending_restart",
        "Value is 1 if the node needs a restart, 0 otherwise.",
        |f| is(f.published.has_pending_restart),
    ),
    gauge(
        "patroni_is_paused",
        "Value is 1 if auto failover is disabled, 0 otherwise.",
        |f| is(f.published.is_paused),
    ),
    gauge(
        "patroni_postgres_state",
        "Numeric representation of Postgres state.",
        |f| f64::from(f.published.state as u8),
    ),
    gauge(
        "trunkline_agent_writable",
        "Value is 1 if PostgreSQL accepts writes, 0 otherwise.",
        |f| is(f.published.is_writable),
    ),
    gauge(
        "trunkline_agent_lease_left_seconds",
        "How long this member may lead without another renewal, 0 if it does not.",
        |f| f.published.lease_left_ms(f.now) as f64 / 1000.0,
    ),
    gauge(
        "trunkline_agent_epoch_generation",
        "First part of the epoch under which this member leads, 0 if it does not.",
        |f| f.published.epoch.unwrap_or_default().generation as f64,
    ),
    gauge(
        "trunkline_agent_epoch_revision",
        "Second part of the epoch under which this member leads, 0 if it does not.",
        |f| f.published.epoch.unwrap_or_default().revision as f64,
    ),
    gauge(
        "trunkline_agent_last_tick_age_seconds",
        "Time since the last turn of the loop ended.",
        |f| f.now.since(f.published.last_tick).as_secs_f64(),
    ),
];

/// `1.2.3` as 010203, Patroni's form.
fn version_number() -> f64 {
    env!("CARGO_PKG_VERSION")
        .split('.')
        .filter_map(|part| part.parse::<u32>().ok())
        .fold(0.0, |sum, part| sum * 100.0 + f64::from(part))
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use trunkline_shared::cluster::{ClusterName, MemberName};

    use super::*;
    use crate::decide::Reason;

    #[test]
    fn a_reason_is_labelled_with_its_word_alone() {
        let now = Moment(1);
        let (cluster, name) = (ClusterName::new("c"), MemberName::new("n"));
        let mut published = Published::before_the_first_tick(cluster, name, now);
        published.reason = Some("This member follows the leader. (n2 at 0/5000000)".into());
        published.decided = Some(Reason::Following);
        let text = exposition(&published, now);
        assert!(text.contains(",reason=\"following\"} 1\n"), "{text}");
        assert!(!text.contains("n2"), "{text}");
    }

    /// What `promtool check metrics` complains of.
    #[test]
    fn every_metric_has_help_and_type_once_and_no_gauge_is_called_a_total() {
        let now = Moment(1);
        let (cluster, name) = (ClusterName::new("c"), MemberName::new("n"));
        let text = exposition(&Published::before_the_first_tick(cluster, name, now), now);
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let name = line.split('{').next().unwrap();
            for head in [
                format!("# HELP {name} "),
                format!("# TYPE {name} gauge\n"),
                format!("{name}{{"),
            ] {
                assert_eq!(text.matches(&head).count(), 1, "{head}");
            }
            assert!(!name.ends_with("_total"), "{name}");
        }
    }
}
