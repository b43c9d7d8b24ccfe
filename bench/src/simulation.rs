//! The deterministic simulation: the agents' real `decide` and lease arithmetic, and the routers, in a
//! world of one DCS, fake PostgreSQL servers, clocks that drift and a network that fails.
//!
//! A seed is the whole world: the same seed plays the same events. Faults strike for a while, with the
//! invariants checked after every event; then all faults end and the cluster must converge.

mod act;
mod agent;
mod bank;
mod breaks;
mod clients;
pub mod command;
mod coverage;
mod disks;
mod event;
mod failsafe;
mod fake_postgres;
mod faults;
mod fence;
mod fleet;
mod hands;
mod instance;
mod invariants;
mod jobs;
mod lease_task;
mod lost_config;
mod lost_disks;
mod lost_memory;
mod network;
mod node;
mod pause;
mod peers;
mod plan;
mod replay;
mod replication;
mod requests;
mod routers;
mod schedules;
mod shrink;
mod slots;
mod standby;
mod store;
mod story;
mod synchronous;
mod together;
mod transactions;
mod word;
mod world;

use std::ops::Range;

use fastrand::Rng;
use trunkline_shared::service::clock;

pub use bank::{BANK, Caught, Known, Planted, Search, Searched};
pub use breaks::{Break, Bug, NoSuchRule, noticed_by};
pub use coverage::{Coverage, RARE, UNREACHED};
pub use invariants::{Failure, Invariant};
pub use shrink::{FaultSet, Shrunk, shrink};

use event::SECOND;
use plan::{Plan, Shape};
use story::Story;
use world::World;

/// What is to be played.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How many members every seed has; each draws its own number where absent.
    pub members: Option<u8>,
    /// How long faults strike, virtual seconds.
    pub seconds: u64,
    /// A rule broken on purpose.
    pub rule: Option<Break>,
    /// Plays on past what other invariants notice of that, until its own does: the harm itself is to be seen.
    pub is_patient: bool,
    /// Faults that are left out.
    pub without: FaultSet,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            members: Some(3),
            seconds: 60,
            rule: None,
            is_patient: false,
            without: FaultSet::default(),
        }
    }
}

/// What one seed came to.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Events played.
    pub events: u64,
    /// Faults that struck.
    pub faults: u64,
    /// Faults that were drawn, those left out among them.
    pub drawn: u8,
    /// The invariant that was broken, if one was.
    pub failure: Option<Failure>,
    /// What a patient run found broken before.
    pub noted: Option<Failure>,
    /// The story, if asked for.
    pub story: Option<String>,
}

/// What many seeds came to.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Seeds played.
    pub seeds: u64,
    /// Events played.
    pub events: u64,
    /// Faults that struck.
    pub faults: u64,
    /// Real time, seconds.
    pub seconds: f64,
    /// What was reached.
    pub coverage: Coverage,
    /// The seeds that broke an invariant, in order.
    pub failures: Vec<(u64, Failure)>,
}

/// Plays one seed.
pub fn play(seed: u64, options: Options, coverage: &mut Coverage, tells: bool) -> Outcome {
    let mut rng = Rng::with_seed(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0x0074_7275_6e6b);
    let shape = Shape {
        members: options.members,
        lasts: options.seconds.max(20) * SECOND,
    };
    let mut plan = Plan::draw(&mut rng, shape);
    let drawn = u8::try_from(plan.faults.len()).unwrap_or(u8::MAX);
    plan.leave_out(options.without);
    let story = tells.then(Story::default);
    let mut world = World::new(rng, plan, options.rule, story);
    if let Some(rule) = options.rule.filter(|_| options.is_patient) {
        world.awaited = noticed_by(rule);
    }
    world.play();
    coverage.add(&world.coverage);
    let story = world.story.as_ref().map(|story| {
        let limit = if world.failure.is_some() {
            STORY_LINES
        } else {
            usize::MAX
        };
        format!("{}{}", world.plan.text(), story.text(Some(limit)))
    });
    Outcome {
        events: world.events,
        faults: world.faults,
        drawn,
        failure: world.failure,
        noted: world.noted,
        story,
    }
}

/// How many lines before a failure are told.
const STORY_LINES: usize = 400;

/// Plays a range of seeds; stops after `stop_after` failures.
pub fn play_all(seeds: Range<u64>, options: Options, stop_after: usize) -> Report {
    let begin = clock::now();
    let mut report = Report::default();
    for seed in seeds {
        let outcome = play(seed, options, &mut report.coverage, false);
        report.seeds += 1;
        report.events += outcome.events;
        report.faults += outcome.faults;
        if let Some(failure) = outcome.failure {
            report.failures.push((seed, failure));
            if report.failures.len() >= stop_after {
                break;
            }
        }
    }
    report.seconds = clock::now().since(begin).as_secs_f64();
    report
}
