//! Name, help and labels of every metric; those of pools are in [`pools`]. Handles are made once; the data path only adds to them.

use std::sync::Arc;

use metrics::{
    Counter, Gauge, Histogram, counter, describe_counter, describe_gauge, describe_histogram,
    gauge, histogram,
};

pub mod pools;
pub mod shared;

const SESSIONS_OPENED: &str = "trunkline_router_sessions_opened_total";
const SESSIONS_ENDED: &str = "trunkline_router_sessions_ended_total";
const SESSIONS: &str = "trunkline_router_sessions";
const HELD: &str = "trunkline_router_held_clients";
const BYTES_TO_SERVER: &str = "trunkline_router_bytes_to_server_total";
const BYTES_TO_CLIENT: &str = "trunkline_router_bytes_to_client_total";
const CONNECT_SECONDS: &str = "trunkline_router_server_connect_seconds";
const CUT_SECONDS: &str = "trunkline_router_cut_seconds";
const HOLD_SECONDS: &str = "trunkline_router_hold_seconds";
const CANCELS: &str = "trunkline_router_cancels_total";
const WRITER_KNOWN: &str = "trunkline_router_writer_known";
const READERS_FIT: &str = "trunkline_router_readers_fit";
const EPOCH: &str = "trunkline_router_epoch_revision";
const CHANGES: &str = "trunkline_router_leader_changes_total";
const CLUSTERS: &str = "trunkline_router_clusters";

/// Says what each metric is. Called once, after the recorder is installed.
pub fn describe() {
    describe_counter!(
        SESSIONS_OPENED,
        "Sessions connected to a server, by listener"
    );
    describe_counter!(
        SESSIONS_ENDED,
        "Sessions ended by an error, by listener and reason"
    );
    describe_gauge!(SESSIONS, "Clients connected now, by listener");
    describe_gauge!(HELD, "Clients waiting for a leader now, by listener");
    describe_counter!(
        BYTES_TO_SERVER,
        "Bytes passed to servers by ended sessions, by listener"
    );
    describe_counter!(
        BYTES_TO_CLIENT,
        "Bytes passed to clients by ended sessions, by listener"
    );
    describe_histogram!(CONNECT_SECONDS, "Time to connect to a server, by listener");
    describe_histogram!(
        CUT_SECONDS,
        "Time from the event to the end of a session that was cut, by listener"
    );
    describe_histogram!(
        HOLD_SECONDS,
        "Time that clients waited for a leader, by listener"
    );
    describe_counter!(CANCELS, "Cancel requests passed on, by listener");
    describe_gauge!(WRITER_KNOWN, "1 while the writer is known, by scope");
    describe_gauge!(READERS_FIT, "Replicas fit to serve reads, by scope");
    describe_gauge!(EPOCH, "Revision part of the writer's epoch, by scope");
    describe_counter!(CHANGES, "Changes of the writer, by scope");
    describe_gauge!(CLUSTERS, "Clusters that are followed now");
}

/// One listener's handles.
pub struct Metrics {
    listener: Arc<str>,
    /// Sessions connected to a server.
    pub sessions_opened: Counter,
    /// Clients connected now.
    pub sessions: Gauge,
    /// Clients held now.
    pub held: Gauge,
    /// Bytes passed to servers.
    pub bytes_to_server: Counter,
    /// Bytes passed to clients.
    pub bytes_to_client: Counter,
    /// Time to connect.
    pub connect_seconds: Histogram,
    /// Time from event to end of a cut session.
    pub cut_seconds: Histogram,
    /// Time a client was held.
    pub hold_seconds: Histogram,
    /// Cancels passed on.
    pub cancels: Counter,
}

impl Metrics {
    /// The handles of the listener at this address.
    pub fn new(listener: &str) -> Self {
        let label = || [("listener", listener.to_owned())];
        Self {
            sessions_opened: counter!(SESSIONS_OPENED, &label()),
            sessions: gauge!(SESSIONS, &label()),
            held: gauge!(HELD, &label()),
            bytes_to_server: counter!(BYTES_TO_SERVER, &label()),
            bytes_to_client: counter!(BYTES_TO_CLIENT, &label()),
            connect_seconds: histogram!(CONNECT_SECONDS, &label()),
            cut_seconds: histogram!(CUT_SECONDS, &label()),
            hold_seconds: histogram!(HOLD_SECONDS, &label()),
            cancels: counter!(CANCELS, &label()),
            listener: Arc::from(listener),
        }
    }

    /// Counts a session that ended with an error. Not on the data path.
    pub fn ended(&self, reason: &'static str) {
        counter!(SESSIONS_ENDED, "listener" => self.listener.to_string(), "reason" => reason)
            .increment(1);
    }
}

/// So many clusters are followed now.
pub fn clusters(count: usize) {
    gauge!(CLUSTERS).set(count as f64);
}

/// One cluster's handles.
pub struct ClusterMetrics {
    /// Whether the writer is known.
    pub writer_known: Gauge,
    /// Fit replicas.
    pub readers_fit: Gauge,
    /// Revision of the writer's epoch.
    pub epoch: Gauge,
    /// Changes of the writer.
    pub changes: Counter,
}

impl ClusterMetrics {
    /// The handles of the cluster of this name.
    pub fn new(scope: &str) -> Self {
        let label = || [("scope", scope.to_owned())];
        Self {
            writer_known: gauge!(WRITER_KNOWN, &label()),
            readers_fit: gauge!(READERS_FIT, &label()),
            epoch: gauge!(EPOCH, &label()),
            changes: counter!(CHANGES, &label()),
        }
    }

    /// The cluster is not followed any more.
    pub fn retire(&self) {
        self.writer_known.set(0.0);
        self.readers_fit.set(0.0);
    }
}
