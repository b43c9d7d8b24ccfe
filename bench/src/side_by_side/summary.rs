//! What the rounds of each fault cost each system. Pure.

use std::collections::BTreeMap;

use serde::Serialize;

use super::event::Event;
use super::site::System;
use crate::report;
use crate::switchover::verdict::Verdict;

/// One fault, once.
#[derive(Clone, Debug, Serialize)]
pub struct Line {
    /// Whom it met.
    pub system: System,
    /// What was done.
    pub event: Event,
    /// The longest time without an acknowledged write of anybody, in milliseconds.
    pub stall_ms: f64,
    /// The same of the client that waited longest.
    pub one_client_ms: f64,
    /// From its beginning until one led, all streamed and every client wrote.
    pub whole_ms: f64,
    /// Errors of clients, by SQLSTATE.
    pub errors: BTreeMap<String, usize>,
    /// What became of the writes.
    #[serde(flatten)]
    pub verdict: Verdict,
}

/// All rounds of one fault on one system.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// What was done.
    pub event: Event,
    /// Whom it met.
    pub system: System,
    /// How often.
    pub rounds: usize,
    /// The middle one of the stalls, in milliseconds.
    pub median_ms: f64,
    /// The longest one.
    pub longest_ms: f64,
    /// The longest wait of one client.
    pub one_client_ms: f64,
    /// Errors of all rounds, by SQLSTATE.
    pub errors: BTreeMap<String, usize>,
    /// What became of the writes of all rounds.
    #[serde(flatten)]
    pub verdict: Verdict,
}

/// Sums up: by fault, and within it by system.
pub fn sum_up(lines: &[Line]) -> Vec<Summary> {
    let mut groups: BTreeMap<(Event, System), Vec<&Line>> = BTreeMap::new();
    for line in lines {
        let group = groups.entry((line.event, line.system)).or_default();
        group.push(line);
    }
    groups
        .into_iter()
        .map(|(key, group)| one(key, &group))
        .collect()
}

fn one((event, system): (Event, System), lines: &[&Line]) -> Summary {
    let stalls: Vec<f64> = lines.iter().map(|line| line.stall_ms).collect();
    let longest = |of: fn(&Line) -> f64| lines.iter().map(|line| of(line)).fold(0.0, f64::max);
    let mut errors = BTreeMap::new();
    for (code, count) in lines.iter().flat_map(|line| &line.errors) {
        *errors.entry(code.clone()).or_default() += count;
    }
    let verdicts = lines.iter().map(|line| line.verdict);
    Summary {
        event,
        system,
        rounds: lines.len(),
        median_ms: report::median(&stalls).unwrap_or_default(),
        longest_ms: longest(|line| line.stall_ms),
        one_client_ms: longest(|line| line.one_client_ms),
        errors,
        verdict: verdicts.fold(Verdict::default(), Verdict::and),
    }
}

/// What of Trunkline's is not as it must be: losses, doubles, errors of a planned change, a stall that is longer than a
/// rival's.
pub fn missed(summaries: &[Summary]) -> Vec<String> {
    let mut missed = Vec::new();
    let is_ours = |one: &&Summary| one.system == System::Trunkline;
    for own in summaries.iter().filter(is_ours) {
        let event = own.event;
        let Verdict {
            lost,
            doubled,
            torn,
            undead,
            ..
        } = own.verdict;
        if lost > 0 && !event.may_lose() {
            missed.push(format!("{event}: {lost} acknowledged writes are lost"));
        }
        if doubled + torn + undead > 0 {
            missed.push(format!(
                "{event}: {doubled} writes are there twice, {torn} in part, {undead} although refused"
            ));
        }
        if event == Event::Switchover && !own.errors.is_empty() {
            missed.push(format!("{event}: {} for the clients", named(&own.errors)));
        }
        let is_ahead = |one: &&Summary| one.event == event && one.median_ms < own.median_ms;
        for rival in summaries.iter().filter(is_ahead) {
            missed.push(format!(
                "{event}: the median stall is {:.0} ms, of {} {:.0} ms",
                own.median_ms, rival.system, rival.median_ms
            ));
        }
    }
    missed
}

/// An aligned table, which is Markdown, too.
pub fn table(summaries: &[Summary]) -> String {
    let head = [
        "fault",
        "system",
        "rounds",
        "stall p50 ms",
        "longest ms",
        "one client ms",
        "errors",
        "lost",
        "doubled",
        "of writes",
    ];
    let row = |one: &Summary| {
        vec![
            one.event.to_string(),
            one.system.to_string(),
            one.rounds.to_string(),
            format!("{:.0}", one.median_ms),
            format!("{:.0}", one.longest_ms),
            format!("{:.0}", one.one_client_ms),
            named(&one.errors),
            one.verdict.lost.to_string(),
            (one.verdict.doubled + one.verdict.undead).to_string(),
            one.verdict.acknowledged.to_string(),
        ]
    };
    let rows: Vec<_> = summaries.iter().map(row).collect();
    report::table(&head, &rows)
}

/// How many in all, and of each SQLSTATE.
fn named(errors: &BTreeMap<String, usize>) -> String {
    let all: usize = errors.values().sum();
    let each = errors.iter().map(|(code, count)| {
        let code = if code.is_empty() {
            "closed"
        } else {
            code.as_str()
        };
        format!("{count} {code}")
    });
    match errors.is_empty() {
        true => "0".to_owned(),
        false => format!("{all}: {}", each.collect::<Vec<_>>().join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(system: System, event: Event, stall_ms: f64, code: &str, lost: usize) -> Line {
        Line {
            system,
            event,
            stall_ms,
            one_client_ms: stall_ms + 1.0,
            whole_ms: 0.0,
            errors: BTreeMap::from([(code.to_owned(), 2)]),
            verdict: Verdict {
                acknowledged: 10,
                lost,
                ..Verdict::default()
            },
        }
    }

    #[test]
    fn rounds_are_summed_up_by_fault_and_system() {
        let lines = [
            line(System::Patroni, Event::Switchover, 9.0, "", 0),
            line(System::Trunkline, Event::Switchover, 1.0, "40001", 0),
            line(System::Patroni, Event::Switchover, 4.0, "08P01", 1),
            line(System::Patroni, Event::Switchover, 5.0, "", 0),
        ];
        let sums = sum_up(&lines);
        let [own, theirs] = &sums[..] else {
            panic!("two groups");
        };
        assert_eq!((own.system, own.rounds), (System::Trunkline, 1));
        assert_eq!((theirs.median_ms, theirs.longest_ms), (5.0, 9.0));
        assert_eq!(theirs.one_client_ms, 10.0);
        assert_eq!((theirs.verdict.lost, theirs.verdict.acknowledged), (1, 30));
        assert_eq!(named(&theirs.errors), "6: 4 closed, 2 08P01");
        assert_eq!(named(&BTreeMap::new()), "0");
    }

    #[test]
    fn only_what_is_ours_is_judged_and_losses_only_where_none_may_be() {
        let judged = |event, own: f64, lost| {
            let mut ours = line(System::Trunkline, event, own, "08007", lost);
            if event == Event::Switchover {
                ours.errors.clear();
            }
            let theirs = line(System::Patroni, event, 5.0, "08P01", 9);
            missed(&sum_up(&[ours, theirs])).len()
        };
        assert_eq!(judged(Event::PostmasterKilled, 5.0, 3), 0);
        assert_eq!(judged(Event::PostmasterKilled, 5.1, 3), 1);
        assert_eq!(judged(Event::Switchover, 5.0, 0), 0);
        assert_eq!(judged(Event::EtcdOutage, 1.0, 1), 1);
        let own = line(System::Trunkline, Event::Switchover, 1.0, "40001", 0);
        assert_eq!(missed(&sum_up(&[own])).len(), 1);
    }
}
