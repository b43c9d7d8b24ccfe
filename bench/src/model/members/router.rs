//! The router of a cluster whose leader is to change: the real step from table to table, of which only the hold counts.

use trunkline_router::topology::routing_table::{Hold, HoldStage, RoutingTable};
use trunkline_router::topology::transition::{Health, Rules, View, transition};
use trunkline_shared::cluster::{Leader, Topology};

use super::planned::{REQUEST_ID, show_record};
use super::shown::LONG;
use super::turn::Members;
use super::{Held, Router, State};
use crate::model::checker::Steps;
use crate::model::look::{NOW, epoch, name, plain_topology};

impl Members {
    /// It looks at the store, says what it holds, or has held for as long as it may.
    pub(super) fn of_router(&self, state: &State, steps: &mut Steps<State>) {
        let Some(router) = state.router else {
            return;
        };
        let mut next = *state;
        next.router = Some(self.looked(state, router, false));
        steps.add("the router looks", 0, false, next);
        if router.holds.is_some() {
            next.router = Some(self.looked(state, router, true));
            steps.add("the router has held for long enough", 0, false, next);
        }
        let mut next = *state;
        next.store.said = router.holds;
        if let (Some(held), Some(router)) = (router.holds, &mut next.router)
            && held.is_all
        {
            router.said_all = held.revision;
        }
        steps.add("the router says what it holds", 0, false, next);
    }

    fn looked(&self, state: &State, router: Router, is_over: bool) -> Router {
        let topology = self.shown(state);
        let view = View {
            topology: &topology,
            proven_at: NOW,
        };
        let rules = Rules {
            hold_timeout: Some(LONG),
            ..Rules::default()
        };
        let before = table(router, is_over);
        let (after, _) = transition(&before, Some(view), &Health::default(), &rules, NOW);
        Router {
            holds: after.hold.map(|hold| held(&hold)),
            outlived: after.outlived.map(|(_, epoch)| number(epoch.revision)),
            ..router
        }
    }

    fn shown(&self, state: &State) -> Topology {
        let mut topology = plain_topology(&self.settings);
        topology.leader = state.store.key.map(|(who, number)| Leader {
            member: name(who),
            epoch: epoch(number),
            lease: i64::from(who) + 1,
        });
        show_record(&mut topology, &state.store);
        topology
    }
}

fn table(router: Router, is_over: bool) -> RoutingTable {
    RoutingTable {
        hold: router.holds.map(|held| Hold {
            switchover: REQUEST_ID,
            epoch: epoch(held.epoch),
            revision: i64::from(held.revision),
            stage: match held.is_all {
                true => HoldStage::All,
                false => HoldStage::Transactions,
            },
            since: if is_over { NOW.before(LONG) } else { NOW },
        }),
        outlived: router.outlived.map(|number| (REQUEST_ID, epoch(number))),
        ..RoutingTable::default()
    }
}

fn held(hold: &Hold) -> Held {
    Held {
        is_all: hold.stage == HoldStage::All,
        epoch: number(hold.epoch.revision),
        revision: number(hold.revision),
    }
}

fn number(revision: i64) -> u8 {
    u8::try_from(revision).unwrap_or(u8::MAX)
}
