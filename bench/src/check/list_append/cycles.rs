//! Circles of relations: whether there are any of the kinds that matter, exactly; and of each knot of them a short one.

use std::collections::{BTreeMap, VecDeque};

use petgraph::algo::kosaraju_scc;
use petgraph::graph::DiGraph;

use super::edges::{Edge, Edges, Why};
use super::{Anomaly, History, Kind, Level, name};

/// From so many relations of one knot a short circle is looked for; any of them lies on some circle.
const TRIES: usize = 64;

/// One search: among which relations, and one of which must be part of the circle.
struct Search {
    allows: fn(&Why) -> bool,
    starts: fn(&Why) -> bool,
    /// Whether no read that missed something may stand right behind another.
    apart: bool,
}

/// The searches of a level, each of which finds what the ones before it do not.
fn searches(level: Level) -> Vec<Search> {
    let mut all = vec![
        search(Why::is_wrote, Why::is_wrote, false),
        search(Why::is_flow, Why::is_read, false),
    ];
    if level >= Level::RepeatableRead {
        all.push(search(Why::is_untimed, Why::is_missed, true));
    }
    if level >= Level::Serializable {
        all.push(search(Why::is_untimed, Why::is_missed, false));
    }
    all.push(match level {
        Level::ReadCommitted => search(|why| !why.is_missed(), Why::is_began, false),
        Level::RepeatableRead => search(|_| true, Why::is_began, true),
        Level::Serializable => search(|_| true, Why::is_began, false),
    });
    all
}

fn search(allows: fn(&Why) -> bool, starts: fn(&Why) -> bool, apart: bool) -> Search {
    Search {
        allows,
        starts,
        apart,
    }
}

/// The circles that this level forbids.
pub fn find(history: &History, edges: &Edges, level: Level) -> Vec<Anomaly> {
    let mut found: Vec<Anomaly> = Vec::new();
    for search in searches(level) {
        for circle in search.circles(edges) {
            let anomaly = told(history, edges, &circle);
            if !found.contains(&anomaly) {
                found.push(anomaly);
            }
        }
    }
    found
}

/// A relation between the nodes that a search walks: with `apart`, every place twice, so that a node remembers whether the
/// relation that led to it was a missed read.
#[derive(Clone, Copy)]
struct Step {
    from: u32,
    to: u32,
    edge: usize,
}

impl Search {
    fn steps(&self, edges: &Edges) -> Vec<Step> {
        let mut steps = Vec::new();
        for (edge, one) in edges.all.iter().enumerate() {
            let (from, to) = (one.from as u32, one.to as u32);
            match (self.apart, one.why.is_missed()) {
                _ if !(self.allows)(&one.why) => {}
                (false, _) => steps.push(Step { from, to, edge }),
                (true, true) => steps.push(Step {
                    from: from * 2,
                    to: to * 2 + 1,
                    edge,
                }),
                (true, false) => steps.extend([0, 1].map(|state| Step {
                    from: from * 2 + state,
                    to: to * 2,
                    edge,
                })),
            }
        }
        steps
    }

    /// A short circle of each knot that has one with a relation to start from, as relations in their order.
    fn circles(&self, edges: &Edges) -> Vec<Vec<Edge>> {
        let steps = self.steps(edges);
        let graph = DiGraph::<(), ()>::from_edges(steps.iter().map(|step| (step.from, step.to)));
        let mut knot_of: BTreeMap<u32, usize> = BTreeMap::new();
        let knots = kosaraju_scc(&graph);
        for (knot, nodes) in knots.iter().enumerate().filter(|(_, it)| it.len() > 1) {
            knot_of.extend(nodes.iter().map(|node| (node.index() as u32, knot)));
        }
        let mut inside: BTreeMap<usize, Vec<Step>> = BTreeMap::new();
        for step in steps {
            let knot = knot_of.get(&step.from);
            if let Some(knot) = knot
                && knot_of.get(&step.to) == Some(knot)
            {
                inside.entry(*knot).or_default().push(step);
            }
        }
        let shortest = |steps: &Vec<Step>| self.shortest(edges, steps);
        inside.values().filter_map(shortest).collect()
    }

    /// The shortest circle through one of the first relations of a knot that a circle may start from.
    fn shortest(&self, edges: &Edges, steps: &[Step]) -> Option<Vec<Edge>> {
        let mut next: BTreeMap<u32, Vec<Step>> = BTreeMap::new();
        for step in steps {
            next.entry(step.from).or_default().push(*step);
        }
        let starts = steps
            .iter()
            .filter(|step| (self.starts)(&edges.all[step.edge].why));
        let circles = starts.take(TRIES).filter_map(|start| {
            let mut circle = vec![edges.all[start.edge]];
            circle.extend(way(edges, &next, start.to, start.from)?);
            Some(circle)
        });
        let length = |circle: &Vec<Edge>| {
            let steps = circle.iter().filter(|edge| edge.to < edges.transactions);
            steps.count()
        };
        circles.min_by_key(length)
    }
}

/// The way over the fewest transactions; moments cost nothing.
fn way(edges: &Edges, next: &BTreeMap<u32, Vec<Step>>, from: u32, to: u32) -> Option<Vec<Edge>> {
    let mut reached: BTreeMap<u32, Option<Step>> = BTreeMap::new();
    let mut waiting = VecDeque::from([(from, None)]);
    while let Some((node, by)) = waiting.pop_front() {
        if reached.contains_key(&node) {
            continue;
        }
        reached.insert(node, by);
        if node == to {
            let mut way = Vec::new();
            let mut last = by;
            while let Some(step) = last {
                way.push(edges.all[step.edge]);
                last = reached.get(&step.from).copied().flatten();
            }
            way.reverse();
            return Some(way);
        }
        for step in next.get(&node).into_iter().flatten() {
            let is_moment = edges.all[step.edge].to >= edges.transactions;
            match is_moment {
                true => waiting.push_front((step.to, Some(*step))),
                false => waiting.push_back((step.to, Some(*step))),
            }
        }
    }
    None
}

fn told(history: &History, edges: &Edges, circle: &[Edge]) -> Anomaly {
    Anomaly {
        kind: kind(circle),
        is_realtime: circle.iter().any(|edge| !edge.why.is_untimed()),
        story: story(history, edges, circle),
    }
}

fn kind(circle: &[Edge]) -> Kind {
    let missed: Vec<_> = circle.iter().map(|edge| edge.why.is_missed()).collect();
    let behind = missed.iter().cycle().skip(1);
    let is_adjacent = missed.iter().zip(behind).any(|(one, next)| *one && *next);
    match missed.iter().filter(|missed| **missed).count() {
        0 if circle.iter().any(|edge| edge.why.is_read()) => Kind::G1c,
        0 => Kind::G0,
        1 => Kind::GSingle,
        _ if is_adjacent => Kind::G2Item,
        _ => Kind::GNonadjacent,
    }
}

/// A line for each relation; a chain of moments is one.
fn story(history: &History, edges: &Edges, circle: &[Edge]) -> Vec<String> {
    // From a transaction on, so that no chain of moments is torn.
    let is_transaction = |edge: &Edge| edge.from < edges.transactions;
    let first = circle.iter().position(is_transaction).unwrap_or_default();
    let turned = circle[first..].iter().chain(&circle[..first]);
    let mut lines = Vec::new();
    let mut ended = circle[first].from;
    for edge in turned {
        let names = || (name(history, edge.from), name(history, edge.to));
        match edge.why {
            Why::Wrote { key, values } => {
                let ([one, next], (from, to)) = (values, names());
                lines.push(format!(
                    "{from} appended {one} to key {key}, and {to} {next} behind it"
                ));
            }
            Why::Read { key, value } => {
                let (from, to) = names();
                lines.push(format!(
                    "{from} appended {value} to key {key}, and {to} read it"
                ));
            }
            Why::Missed { key, value } => {
                let (from, to) = names();
                lines.push(format!(
                    "{from} read key {key} without {value}, which {to} appended"
                ));
            }
            Why::Ended => ended = edge.from,
            Why::Clock => {}
            Why::Began => {
                let (before, after) = (name(history, ended), name(history, edge.to));
                lines.push(format!("{before} had ended before {after} began"));
            }
        }
    }
    lines
}
