//! Visits every state that a model can come to, breadth first, so that the story of a broken property is a shortest one.
//!
//! A state that was visited is known by 128 bits of its hash: that any two of a hundred million differ in nothing of that is
//! less likely than one in 10^22. The hash has fixed keys, so that each run visits the same.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::hash::{DefaultHasher, Hash, Hasher};

use trunkline_shared::service::clock;

/// What a step does, and which member does it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Label {
    /// What happens.
    pub what: &'static str,
    /// To whom, counted from 1; 0 where it happens to all.
    pub who: u8,
}

/// One thing that may happen next.
#[derive(Clone, Debug)]
pub struct Step<S> {
    /// What.
    pub label: Label,
    /// What is true then.
    pub state: S,
    /// It is a fault: what must come true in the end must come true without any more of these.
    pub is_fault: bool,
}

/// Everything that may happen next, as a model adds it.
#[derive(Clone, Debug)]
pub struct Steps<S>(Vec<Step<S>>);

impl<S> Default for Steps<S> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<S> Steps<S> {
    /// This may happen, to this member, and then that is true. What changes nothing is left out by the search.
    pub fn add(&mut self, what: &'static str, who: u8, is_fault: bool, state: S) {
        let label = Label { what, who };
        self.0.push(Step {
            label,
            state,
            is_fault,
        });
    }

    /// Changes what each of them leads to.
    pub fn map(&mut self, change: impl Fn(&S) -> S) {
        for step in &mut self.0 {
            step.state = change(&step.state);
        }
    }
}

/// What can happen, and what must be true of it.
pub trait Model {
    /// A state, whole: equal states have equal futures.
    type State: Clone + Debug + PartialEq + Hash;

    /// What must be true of every state.
    fn properties(&self) -> &'static [&'static str];

    /// What must come true in the end where no more faults come; `None` where nothing has to.
    fn in_the_end(&self) -> Option<&'static str>;

    /// What must be reached by some state, or the model is too small to mean anything.
    fn sights(&self) -> &'static [&'static str];

    /// Where it begins.
    fn start(&self) -> Self::State;

    /// Adds everything that may happen next.
    fn steps(&self, state: &Self::State, steps: &mut Steps<Self::State>);

    /// Which of [`Self::properties`] are broken here, a bit each.
    fn broken(&self, state: &Self::State) -> u32;

    /// Whether what must come true in the end is true here.
    fn is_settled(&self, state: &Self::State) -> bool;

    /// Whether the model's own bounds may keep what has to come true from coming true after this state: it is not
    /// judged by that then.
    fn is_near_bound(&self, _state: &Self::State) -> bool {
        false
    }

    /// Which of [`Self::sights`] are seen here, a bit each.
    fn seen(&self, state: &Self::State) -> u32;
}

/// How far is looked.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// So many steps from the start.
    pub depth: u32,
    /// So many states: what does not fit in memory is not begun.
    pub states: usize,
    /// Only whether this property is broken counts; each, where absent.
    pub watched: Option<&'static str>,
}

impl Bounds {
    fn watches(&self, property: &str) -> bool {
        self.watched.is_none_or(|watched| watched == property)
    }
}

/// A property that is broken, and how it came about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    /// Which.
    pub property: &'static str,
    /// The steps that lead there, and the state after the last.
    pub story: Vec<String>,
}

/// How far a search has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// There is no other state.
    Whole,
    /// There is none within the depth that was asked for.
    ToDepth,
    /// There are more states than may be, or a property is broken.
    Short,
}

/// What was found.
#[derive(Clone, Debug)]
pub struct Explored {
    /// Different states.
    pub states: usize,
    /// Steps between them.
    pub steps: u64,
    /// The longest of the shortest ways to a state.
    pub depth: u32,
    /// What ended the search.
    pub reach: Reach,
    /// How long it took, seconds.
    pub seconds: f64,
    /// The first property that was broken.
    pub broken: Option<Broken>,
    /// The sights that no state shows.
    pub unseen: Vec<&'static str>,
}

/// One bit for each, from the lowest on.
pub(super) fn bits(all: &[bool]) -> u32 {
    let bits = all.iter().enumerate();
    bits.fold(0, |bits, (at, is_set)| bits | u32::from(*is_set) << at)
}

/// The search as far as it has come.
struct Search<'a, M: Model> {
    model: &'a M,
    bounds: Bounds,
    known: BTreeMap<u128, u32>,
    /// From where each state was reached first.
    reached: Vec<u32>,
    /// The steps that are no faults, backwards.
    back: Vec<(u32, u32)>,
    settled: Vec<u32>,
    near_bound: Vec<u32>,
    seen: u32,
    steps: u64,
}

/// What a state is known by.
fn fingerprint<S: Hash>(state: &S) -> u128 {
    let half = |key: u8| {
        let mut hasher = DefaultHasher::new();
        (key, state).hash(&mut hasher);
        u128::from(hasher.finish())
    };
    half(0) << 64 | half(1)
}

/// Visits every state within the bounds; ends at the first that breaks a property.
pub fn explore<M: Model>(model: &M, bounds: Bounds) -> Explored {
    let began = clock::now();
    let mut search = Search {
        model,
        bounds,
        known: BTreeMap::new(),
        reached: Vec::new(),
        back: Vec::new(),
        settled: Vec::new(),
        near_bound: Vec::new(),
        seen: 0,
        steps: 0,
    };
    let start = model.start();
    let mut broken = search.meet(0, fingerprint(&start), &start).err();
    let mut level = vec![(0, start)];
    let (mut depth, mut next, mut steps) = (0, Vec::new(), Steps::default());
    while broken.is_none() && depth < bounds.depth && search.known.len() < bounds.states {
        for (from, state) in level.drain(..) {
            model.steps(&state, &mut steps);
            broken = search.follow((from, &state), &mut steps, &mut next).err();
            if broken.is_some() {
                break;
            }
        }
        std::mem::swap(&mut level, &mut next);
        if level.is_empty() {
            break;
        }
        depth += 1;
    }
    let reach = match (&broken, level.is_empty()) {
        (None, true) => Reach::Whole,
        (None, false) if depth == bounds.depth => Reach::ToDepth,
        (_, _) => Reach::Short,
    };
    let broken = broken.or_else(|| search.dead_end(level.iter().map(|(id, _)| *id)));
    let unseen = model.sights().iter().enumerate();
    let unseen = unseen.filter(|(bit, _)| search.seen & (1 << *bit) == 0);
    Explored {
        states: search.known.len(),
        steps: search.steps,
        depth,
        reach,
        seconds: clock::now().since(began).as_secs_f64(),
        unseen: unseen.map(|(_, sight)| *sight).collect(),
        broken,
    }
}

impl<M: Model> Search<'_, M> {
    /// Takes every step; what is met for the first time is added to `next`.
    fn follow(
        &mut self,
        (from, before): (u32, &M::State),
        steps: &mut Steps<M::State>,
        next: &mut Vec<(u32, M::State)>,
    ) -> Result<(), Broken> {
        for step in steps.0.drain(..).filter(|step| step.state != *before) {
            self.steps += 1;
            let print = fingerprint(&step.state);
            let to = match self.known.get(&print).copied() {
                Some(to) => to,
                None => {
                    let to = self.meet(from, print, &step.state)?;
                    next.push((to, step.state));
                    to
                }
            };
            if !step.is_fault && to != from {
                self.back.push((to, from));
            }
        }
        Ok(())
    }

    /// The number of the next state.
    fn number(&self) -> u32 {
        u32::try_from(self.reached.len()).unwrap_or(u32::MAX)
    }

    fn meet(&mut self, from: u32, print: u128, state: &M::State) -> Result<u32, Broken> {
        let id = self.number();
        self.reached.push(from);
        self.seen |= self.model.seen(state);
        if self.model.is_settled(state) {
            self.settled.push(id);
        } else if self.model.is_near_bound(state) {
            self.near_bound.push(id);
        }
        let broken = self.model.broken(state);
        self.known.insert(print, id);
        let properties = self.model.properties().iter().enumerate();
        let mut broken = properties.filter(|(bit, _)| broken & 1 << *bit != 0);
        match broken.find(|(_, property)| self.bounds.watches(property)) {
            Some((_, property)) => Err(self.tell(property, id)),
            None => Ok(id),
        }
    }

    /// A state from which what must come true in the end cannot any more. Whatever was met and not followed is given
    /// the benefit of the doubt.
    fn dead_end(&mut self, unfollowed: impl Iterator<Item = u32>) -> Option<Broken> {
        let property = self.model.in_the_end();
        let property = property.filter(|property| self.bounds.watches(property))?;
        self.back.sort_unstable();
        let mut is_good = vec![false; self.reached.len()];
        let mut open: Vec<u32> = self.settled.iter().copied().chain(unfollowed).collect();
        while let Some(id) = open.pop() {
            if std::mem::replace(&mut is_good[id as usize], true) {
                continue;
            }
            let first = self.back.partition_point(|(to, _)| *to < id);
            let before = self.back[first..].iter().take_while(|(to, _)| *to == id);
            open.extend(before.map(|(_, from)| *from));
        }
        for id in &self.near_bound {
            is_good[*id as usize] = true;
        }
        let bad = is_good.iter().position(|is_good| !is_good)?;
        Some(self.tell(property, u32::try_from(bad).ok()?))
    }

    /// How a state came about: the way to it is gone once more.
    fn tell(&self, property: &'static str, id: u32) -> Broken {
        let (mut at, mut way) = (id, Vec::new());
        while at != 0 {
            way.push(at);
            at = self.reached[at as usize];
        }
        let (mut state, mut story) = (self.model.start(), Vec::new());
        for to in way.into_iter().rev() {
            let mut steps = Steps::default();
            self.model.steps(&state, &mut steps);
            let is_it =
                |step: &Step<M::State>| self.known.get(&fingerprint(&step.state)) == Some(&to);
            let Some(step) = steps.0.into_iter().find(is_it) else {
                break;
            };
            story.push(match step.label.who {
                0 => step.label.what.to_owned(),
                who => format!("n{who} {}", step.label.what),
            });
            state = step.state;
        }
        story.push(format!("{state:?}"));
        Broken { property, story }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The puzzle of two jugs, of five litres and three: fill, empty, pour until one is full or the other empty.
    struct Jugs {
        /// So many litres in the large jug are forbidden.
        forbidden: Option<u8>,
        /// So many are to be reached in the end.
        wanted: Option<u8>,
        can_empty: bool,
    }

    const LARGE: u8 = 5;
    const SMALL: u8 = 3;

    impl Model for Jugs {
        type State = (u8, u8);

        fn properties(&self) -> &'static [&'static str] {
            &["not so much"]
        }

        fn in_the_end(&self) -> Option<&'static str> {
            self.wanted.map(|_| "so much in the end")
        }

        fn sights(&self) -> &'static [&'static str] {
            &["one litre", "six litres"]
        }

        fn start(&self) -> (u8, u8) {
            (0, 0)
        }

        fn steps(&self, (large, small): &(u8, u8), steps: &mut Steps<(u8, u8)>) {
            let into_small = (*large).min(SMALL - small);
            let into_large = (*small).min(LARGE - large);
            let mut all = vec![
                ("fill large", (LARGE, *small)),
                ("fill small", (*large, SMALL)),
                ("pour into small", (large - into_small, small + into_small)),
                ("pour into large", (large + into_large, small - into_large)),
            ];
            if self.can_empty {
                all.push(("empty large", (0, *small)));
                all.push(("empty small", (*large, 0)));
            }
            for (what, state) in all {
                steps.add(what, 0, false, state);
            }
        }

        fn broken(&self, state: &(u8, u8)) -> u32 {
            u32::from(Some(state.0) == self.forbidden)
        }

        fn is_settled(&self, state: &(u8, u8)) -> bool {
            Some(state.0) == self.wanted
        }

        fn seen(&self, (large, small): &(u8, u8)) -> u32 {
            u32::from(large + small == 1) | u32::from(large + small == 6) << 1
        }
    }

    const ALL: Bounds = Bounds {
        depth: 100,
        states: 1000,
        watched: None,
    };
    const FREE: Jugs = Jugs {
        forbidden: None,
        wanted: None,
        can_empty: true,
    };

    #[test]
    fn two_jugs_have_sixteen_states_and_four_litres_take_six_steps() {
        let free = explore(&FREE, ALL);
        assert_eq!((free.states, free.reach), (16, Reach::Whole));
        assert!(free.broken.is_none() && free.unseen.is_empty());
        let four = Jugs {
            forbidden: Some(4),
            ..FREE
        };
        let broken = explore(&four, ALL).broken.unwrap();
        // Six steps, and the state after them.
        assert_eq!(broken.story.len(), 7, "{broken:?}");
        let watched = Some("so much in the end");
        assert!(explore(&four, Bounds { watched, ..ALL }).broken.is_none());
    }

    #[test]
    fn a_bound_is_kept_and_said() {
        let short = explore(&FREE, Bounds { depth: 2, ..ALL });
        assert_eq!((short.depth, short.reach), (2, Reach::ToDepth));
        let few = explore(&FREE, Bounds { states: 3, ..ALL });
        assert!(few.reach == Reach::Short && few.states < 16);
    }

    #[test]
    fn a_state_from_which_the_end_cannot_be_reached_is_found() {
        let four = Jugs {
            wanted: Some(4),
            ..FREE
        };
        assert!(explore(&four, ALL).broken.is_none());
        let stuck = Jugs {
            can_empty: false,
            ..four
        };
        let broken = explore(&stuck, ALL).broken.unwrap();
        assert_eq!(broken.property, "so much in the end");
    }

    #[test]
    fn what_no_state_shows_is_named() {
        let never = Jugs {
            can_empty: false,
            ..FREE
        };
        let bounds = Bounds { depth: 1, ..ALL };
        assert_eq!(explore(&never, bounds).unseen, ["one litre", "six litres"]);
    }
}
