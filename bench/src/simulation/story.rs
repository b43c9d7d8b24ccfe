//! The story of a failing seed: one line an event, kept only when a seed is played again for it.

use std::fmt;

use super::event::{NodeId, SECOND, Time};

/// Who does something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Actor {
    World,
    Dcs,
    Agent(NodeId),
    Fence(NodeId),
    Postgres(NodeId),
    Router(u8),
}

/// The name of a node.
pub(super) fn node_name(node: NodeId) -> char {
    char::from(b'a' + node)
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Actor::World => f.write_str("world"),
            Actor::Dcs => f.write_str("dcs"),
            Actor::Agent(node) => write!(f, "agent {}", node_name(*node)),
            Actor::Fence(node) => write!(f, "fence {}", node_name(*node)),
            Actor::Postgres(node) => write!(f, "pg {}", node_name(*node)),
            Actor::Router(router) => write!(f, "router {router}"),
        }
    }
}

/// The lines of one run.
#[derive(Default)]
pub(super) struct Story(Vec<(Time, Actor, String)>);

impl Story {
    pub(super) fn tell(&mut self, at: Time, actor: Actor, line: String) {
        // What an actor does again and again is told once.
        let repeats = self
            .0
            .iter()
            .rev()
            .take(40)
            .find(|(_, who, _)| *who == actor)
            .is_some_and(|(_, _, before)| *before == line);
        if !repeats {
            self.0.push((at, actor, line));
        }
    }

    /// The last lines; all of them where `limit` is `None`.
    pub(super) fn text(&self, limit: Option<usize>) -> String {
        let from = limit.map_or(0, |limit| self.0.len().saturating_sub(limit));
        self.0[from..]
            .iter()
            .map(|(at, actor, line)| {
                let seconds = at / SECOND;
                let micros = at % SECOND / 1000;
                format!(
                    "{seconds:>4}.{micros:06}  {:<9} {line}\n",
                    actor.to_string()
                )
            })
            .collect()
    }
}

/// Tells a line if anybody listens; the text is not made otherwise.
macro_rules! tell {
    ($world:expr, $actor:expr, $($text:tt)*) => {
        if $world.story.is_some() {
            let line = format!($($text)*);
            let now = $world.now;
            if let Some(story) = &mut $world.story {
                story.tell(now, $actor, line);
            }
        }
    };
}
pub(super) use tell;
