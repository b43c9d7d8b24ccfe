//! `trunkline-bench model`: every state of small clusters, not only those that a number draws.
//!
//! The real `decide`, lease arithmetic and arming, in worlds that are small enough to be visited whole: who may claim the
//! leader key, a hand-over of it, whom commits wait for, the fence, and where a router sends writes. What surrounds those
//! functions in the programs is modelled, with a pause possible between any two steps; `bench/COMMANDS.md` says what is
//! left out.

mod checker;
mod fence;
mod hand_over;
mod look;
mod members;
mod race;
mod right;
mod routing;
mod rule;
mod synchronous;

use std::str::FromStr;

use anyhow::{Result, bail};
use clap::Args;
use trunkline_shared::cluster::settings::SynchronousMode;

use crate::report::{self, Progress, say};
use checker::{Model, explore};
use fence::Fenced;
use hand_over::HandOver;
use race::Race;
use routing::Routing;
use synchronous::Synchronous;

pub use checker::{Bounds, Broken, Explored, Reach};
pub use rule::Rule;

/// What fits in a few gigabytes.
const STATES: usize = 16_000_000;

/// The options of `model`.
#[derive(Args, Debug)]
pub struct ModelOptions {
    /// One model alone, by its name in the table
    name: Option<String>,
    /// The size of the tests, which all end within seconds
    #[arg(long)]
    small: bool,
    /// The size of that one model: writes and faults of sync-...; faults of the fence, and 0; leaderships and changes
    /// of the store of routing; faults and leaderships of race and race-sync; faults and members of hand-over
    #[arg(long, requires = "name", conflicts_with = "small", value_name = "A,B")]
    size: Option<Size>,
    /// So many states of each model at the most
    #[arg(long, default_value_t = STATES)]
    states: usize,
    /// So many steps from its start, where it is not to be visited whole
    #[arg(long, requires = "name")]
    depth: Option<u32>,
}

/// How much may happen: two numbers, which each model says itself ([`Named::size`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub u8, pub u8);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("\"{text}\" is no size; write two numbers as 1,3");
        let (first, second) = text.split_once(',').ok_or_else(wrong)?;
        let number = |text: &str| text.trim().parse::<u8>().map_err(|_| wrong());
        Ok(Self(number(first)?, number(second)?))
    }
}

/// The models.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Named {
    /// `synchronous_mode: on`.
    SyncOn,
    /// The same, where commits wait rather than go on without a standby.
    SyncStrict,
    /// `synchronous_mode: quorum`.
    SyncQuorum,
    /// The deadline and who keeps it.
    Fence,
    /// Where a router sends writes.
    Routing,
    /// Who may claim the leader key.
    Race,
    /// The same where commits wait for a standby.
    RaceSync,
    /// A planned change of leader.
    HandOver,
}

impl Named {
    /// Every model.
    pub const ALL: [Named; 8] = [
        Named::SyncOn,
        Named::SyncStrict,
        Named::SyncQuorum,
        Named::Fence,
        Named::Routing,
        Named::Race,
        Named::RaceSync,
        Named::HandOver,
    ];

    /// Its name on the command line and in the table.
    pub fn word(self) -> &'static str {
        match self {
            Named::SyncOn => "sync-on",
            Named::SyncStrict => "sync-strict",
            Named::SyncQuorum => "sync-quorum",
            Named::Fence => "fence",
            Named::Routing => "routing",
            Named::Race => "race",
            Named::RaceSync => "race-sync",
            Named::HandOver => "hand-over",
        }
    }

    /// How many members it has at this size.
    pub fn members(self, size: Size) -> usize {
        match self {
            Named::SyncOn
            | Named::SyncStrict
            | Named::SyncQuorum
            | Named::Routing
            | Named::Race
            | Named::RaceSync => 3,
            Named::HandOver => usize::from(size.1),
            Named::Fence => 2,
        }
    }

    /// The rules that can be broken in it, each with the property that then must be found broken.
    pub fn rules(self) -> &'static [(Rule, &'static str)] {
        match self {
            Named::SyncOn | Named::SyncStrict => rule::SYNC,
            Named::SyncQuorum => rule::QUORUM,
            Named::Fence => rule::FENCE,
            Named::Routing => rule::ROUTING,
            Named::Race => rule::RACE,
            Named::RaceSync => rule::RACE_SYNC,
            Named::HandOver => rule::HAND_OVER,
        }
    }

    /// Its size in every test run, of seconds, or in `bench/long`, of a minute.
    pub fn size(self, is_full: bool) -> Size {
        match (self, is_full) {
            // Writes, and faults.
            (Named::SyncOn | Named::SyncStrict | Named::SyncQuorum, false) => Size(2, 1),
            (Named::SyncOn | Named::SyncStrict | Named::SyncQuorum, true) => Size(4, 4),
            // Faults alone.
            (Named::Fence, false) => Size(1, 0),
            (Named::Fence, true) => Size(4, 0),
            // Leaderships, and changes of the store.
            (Named::Routing, false) => Size(2, 5),
            (Named::Routing, true) => Size(3, 6),
            // Faults, and leaderships.
            (Named::Race | Named::RaceSync, false) => Size(1, 4),
            (Named::Race | Named::RaceSync, true) => Size(2, 5),
            // Faults, and members.
            (Named::HandOver, false) => Size(1, 2),
            (Named::HandOver, true) => Size(1, 3),
        }
    }

    /// Visits its states at the size of the tests, or at full size.
    pub fn visit(self, is_full: bool) -> Outcome {
        let bounds = Bounds {
            depth: u32::MAX,
            states: STATES,
            watched: None,
        };
        self.run_within(self.size(is_full), bounds, None)
    }

    /// The size at which a broken rule is found.
    fn size_to_break(self, rule: Rule) -> Size {
        match rule {
            // Two leaders have to be lost: the one that is replaced, and the one whose promotion was slept through.
            Rule::ClaimUncompared => Size(2, 3),
            // That nothing leads to the end is known of a whole world alone.
            Rule::TracesLeft => Size(0, 2),
            _ => self.size(false),
        }
    }

    /// Breaks a rule, until the property that must be broken is.
    pub fn break_rule(self, rule: Rule, property: &'static str) -> Outcome {
        self.break_within(self.size_to_break(rule), STATES, (rule, property))
    }

    fn break_within(self, size: Size, states: usize, broken: (Rule, &'static str)) -> Outcome {
        let bounds = Bounds {
            depth: u32::MAX,
            states,
            watched: Some(broken.1),
        };
        self.run_within(size, bounds, Some(broken.0))
    }

    fn run_within(self, Size(first, second): Size, bounds: Bounds, rule: Option<Rule>) -> Outcome {
        let synchronous =
            |mode, is_strict| Synchronous::new(mode, is_strict, (first, second), rule);
        match self {
            Named::SyncOn => explored(&synchronous(SynchronousMode::On, false), bounds),
            Named::SyncStrict => explored(&synchronous(SynchronousMode::On, true), bounds),
            Named::SyncQuorum => explored(&synchronous(SynchronousMode::Quorum, false), bounds),
            Named::Fence => explored(&Fenced::new(first, rule), bounds),
            Named::Routing => explored(&Routing::new((first, second), rule), bounds),
            Named::Race => explored(&Race::new(false, (first, second), rule), bounds),
            Named::RaceSync => explored(&Race::new(true, (first, second), rule), bounds),
            Named::HandOver => explored(&HandOver::new((first, second), rule), bounds),
        }
    }
}

/// What came of one model.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// What was looked for: of every state, and in the end.
    pub properties: Vec<&'static str>,
    /// What was found.
    pub explored: Explored,
}

fn explored<M: Model>(model: &M, bounds: Bounds) -> Outcome {
    let properties = model.properties().iter().copied();
    Outcome {
        properties: properties.chain(model.in_the_end()).collect(),
        explored: explore(model, bounds),
    }
}

impl Outcome {
    /// Whether every state was visited, within the depth if one is set, all that must hold does, and all that must be
    /// seen was.
    pub fn is_well(&self) -> bool {
        let explored = &self.explored;
        explored.reach != Reach::Short && explored.broken.is_none() && explored.unseen.is_empty()
    }
}

/// Visits the states of every model, then breaks its rules one by one; whether all is well.
pub fn run(options: &ModelOptions) -> Result<bool> {
    let wanted = |model: &Named| {
        options
            .name
            .as_ref()
            .is_none_or(|name| model.word() == name)
    };
    let models: Vec<Named> = Named::ALL.into_iter().filter(wanted).collect();
    if models.is_empty() {
        let words = Named::ALL.map(Named::word).join(", ");
        bail!("there is no such model; the models are {words}");
    }
    let progress = Progress::new();
    let (mut rows, mut broken, mut is_well) = (Vec::new(), Vec::new(), true);
    for model in models {
        progress.step(model.word());
        let size = options.size.unwrap_or(model.size(!options.small));
        let bounds = Bounds {
            depth: options.depth.unwrap_or(u32::MAX),
            states: options.states,
            watched: None,
        };
        let outcome = model.run_within(size, bounds, None);
        is_well &= outcome.is_well();
        rows.push(row(model, size, &outcome));
        tell(&progress, &outcome.explored);
        for (rule, property) in model.rules() {
            progress.step(format!("{} with {}", model.word(), rule.word()));
            let size = options.size.unwrap_or(model.size_to_break(*rule));
            let outcome = model.break_within(size, options.states, (*rule, *property));
            let explored = outcome.explored;
            let found = explored.broken.as_ref().map(|broken| broken.property);
            is_well &= found == Some(*property);
            broken.push(broken_row(model, *rule, property, &explored));
        }
    }
    progress.done();
    let head = [
        "model",
        "members",
        "depth",
        "states",
        "steps",
        "whole",
        "properties",
        "s",
        "verdict",
    ];
    say(report::table(&head, &rows));
    let head = [
        "model",
        "rule broken",
        "must break",
        "breaks",
        "after steps",
        "states",
    ];
    say(report::table(&head, &broken));
    say(if is_well { "all is well" } else { "FAILED" });
    Ok(is_well)
}

fn row(model: Named, size: Size, outcome: &Outcome) -> Vec<String> {
    let explored = &outcome.explored;
    vec![
        model.word().to_owned(),
        model.members(size).to_string(),
        explored.depth.to_string(),
        explored.states.to_string(),
        explored.steps.to_string(),
        match explored.reach {
            Reach::Whole => "yes",
            Reach::ToDepth => "to this depth",
            Reach::Short => "no",
        }
        .to_owned(),
        outcome.properties.len().to_string(),
        format!("{:.1}", explored.seconds),
        match (&explored.broken, explored.unseen.is_empty()) {
            (Some(broken), _) => format!("BROKEN: {}", broken.property),
            (None, false) => format!("NEVER SEEN: {}", explored.unseen.join(", ")),
            (None, true) if explored.reach == Reach::Short => "TOO LARGE".to_owned(),
            (None, true) => "holds".to_owned(),
        },
    ]
}

fn broken_row(model: Named, rule: Rule, property: &str, explored: &Explored) -> Vec<String> {
    let found = explored.broken.as_ref();
    vec![
        model.word().to_owned(),
        rule.word().to_owned(),
        property.to_owned(),
        found.map_or("NOTHING", |broken| broken.property).to_owned(),
        // The last line of the story is the state itself.
        found.map_or(0, |broken| broken.story.len() - 1).to_string(),
        explored.states.to_string(),
    ]
}

/// The story of a property that is broken and should hold.
fn tell(progress: &Progress, explored: &Explored) {
    let Some(broken) = &explored.broken else {
        return;
    };
    progress.line(format!("{} is broken:", broken.property));
    for line in &broken.story {
        progress.line(format!("  {line}"));
    }
}
