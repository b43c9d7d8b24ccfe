//! What the host does to PostgreSQL, as it is found at each look.

use trunkline_shared::cluster::Moment;
use trunkline_shared::service::clock;

use crate::decide::observation::HealthView;
use crate::postgres::health::HealthProbe;
use crate::postgres::scan::ProcessId;

/// What is remembered of it from look to look.
#[derive(Debug, Default)]
pub(super) struct Host {
    /// The postmaster that was found stopped at each look since then.
    stopped: Option<(ProcessId, Moment)>,
}

impl Host {
    pub(super) fn view(
        &mut self,
        probe: &HealthProbe,
        postmaster: Option<ProcessId>,
    ) -> HealthView {
        let found = probe.view();
        let stopped = postmaster.filter(|id| id.is_stopped());
        HealthView {
            writes_since: found.writes_since,
            is_nearly_full: found.is_nearly_full,
            postmaster_stopped_since: self.stopped_since(stopped, clock::now()),
        }
    }

    fn stopped_since(&mut self, stopped: Option<ProcessId>, now: Moment) -> Option<Moment> {
        let before = self.stopped;
        self.stopped = stopped.map(|id| match before {
            Some((of, since)) if of == id => (id, since),
            Some(_) | None => {
                let pid = id.pid;
                tracing::warn!(pid, "the postmaster is stopped, by a signal or a debugger");
                (id, now)
            }
        });
        self.stopped.map(|(_, since)| since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stop_counts_from_the_first_look_since_which_every_look_found_it() {
        let postmaster = |pid| {
            Some(ProcessId {
                pid,
                start_ticks: 7,
            })
        };
        let mut host = Host::default();
        let mut since = |stopped, now| host.stopped_since(stopped, Moment(now));
        assert_eq!(since(None, 1), None);
        assert_eq!(since(postmaster(5), 2), Some(Moment(2)));
        assert_eq!(since(postmaster(5), 3), Some(Moment(2)));
        assert_eq!(since(postmaster(6), 4), Some(Moment(4)));
        assert_eq!(since(None, 5), None);
        assert_eq!(since(postmaster(6), 6), Some(Moment(6)));
    }
}
