//! The registry of metrics and its text exposition.

use std::time::Duration;

use metrics_exporter_prometheus::{BuildError, PrometheusBuilder, PrometheusHandle};
use tokio::time::{MissedTickBehavior, interval};

/// How often histogram samples are folded into their buckets; without it they pile up in memory.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

/// Upper bounds of every histogram that has none of its own, in seconds: from a query through the router to
/// a failover.
pub const DEFAULT_BUCKETS: [f64; 19] = [
    0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5,
    1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
];

/// The registry could not be installed: another one is there, or the buckets are empty.
#[derive(Debug, thiserror::Error)]
#[error("the metrics cannot be recorded: {0}")]
pub struct MetricsError(#[from] BuildError);

/// The exposition. Clones show the same registry.
#[derive(Clone, Debug)]
pub struct Metrics {
    handle: PrometheusHandle,
}

impl Metrics {
    /// Makes the registry that the `metrics` macros write to. Once per process.
    ///
    /// # Errors
    /// If there is one already.
    pub fn install() -> Result<Self, MetricsError> {
        let handle = PrometheusBuilder::new()
            .set_buckets(&DEFAULT_BUCKETS)?
            .install_recorder()?;
        Ok(Self { handle })
    }

    /// All metrics in Prometheus's text form (content type `text/plain; version=0.0.4`).
    pub fn render(&self) -> String {
        self.handle.render()
    }

    /// Folds samples until it is dropped. Run it in a task.
    pub async fn upkeep(self) {
        let mut ticks = interval(UPKEEP_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.handle.run_upkeep();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn histograms_have_buckets_and_the_registry_exists_once() {
        let metrics = Metrics::install().unwrap();
        metrics::histogram!("trunkline_test_seconds").record(0.2);
        let text = metrics.render();
        assert!(
            text.contains("trunkline_test_seconds_bucket{le=\"0.25\"} 1"),
            "{text}"
        );
        assert!(Metrics::install().is_err());
    }
}
