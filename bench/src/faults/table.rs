//! What people see of the rows: a line each while they run, one table at the end, counts of a long run.

use std::collections::BTreeMap;

use super::judged::{Line, named};
use super::promise::Conditions;
use super::row::Row;
use crate::report::{self, say};

/// The rows so far. They are told when this is dropped, so that an interrupted run tells them, too.
#[derive(Debug, Default)]
pub struct Told {
    lines: Vec<Line>,
}

impl Told {
    /// All of them.
    pub fn lines(&self) -> &[Line] {
        &self.lines
    }

    /// One more.
    pub fn take(&mut self, line: Line) {
        self.lines.push(line);
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        if !self.lines.is_empty() {
            say(format!("\n{}", table(&self.lines)));
            say(counts(&self.lines));
        }
    }
}

/// Every row with what it promises, or why it cannot be run.
pub fn list(rows: &[Row], conditions: &Conditions) -> String {
    let head = [
        "row",
        "fault",
        "beside the clients",
        "expected",
        "stall",
        "not here",
    ];
    let line = |row: &Row| {
        vec![
            row.label(),
            row.fault().to_owned(),
            row.besides().to_owned(),
            row.expected().to_owned(),
            row.bar(conditions).to_string(),
            row.obstacle(conditions).unwrap_or_default().to_owned(),
        ]
    };
    report::table(&head, &rows.iter().map(line).collect::<Vec<_>>())
}

/// An aligned table, which is Markdown, too.
pub fn table(lines: &[Line]) -> String {
    let head = [
        "row",
        "fault",
        "beside the clients",
        "expected",
        "bar",
        "stall ms",
        "one client ms",
        "r1 ms",
        "quiet ms",
        "changes",
        "errors",
        "lost",
        "of writes",
        "verdict",
    ];
    let round = |value: f64| match value.is_nan() {
        true => "-".to_owned(),
        false => format!("{value:.0}"),
    };
    let row = |line: &Line| {
        vec![
            line.row.clone(),
            line.fault.to_owned(),
            line.besides.to_owned(),
            line.expected.to_owned(),
            line.bar.clone(),
            round(line.stall_ms),
            round(line.one_client_ms),
            line.first_router_ms.map_or_else(String::new, round),
            round(line.quiet_ms),
            line.changes.to_string(),
            errors(&line.errors),
            line.verdict.lost.to_string(),
            line.verdict.acknowledged.to_string(),
            verdict(line).to_owned(),
        ]
    };
    report::table(&head, &lines.iter().map(row).collect::<Vec<_>>())
}

fn verdict(line: &Line) -> &'static str {
    match line.passed {
        true => "met",
        false => "MISSED",
    }
}

fn errors(errors: &BTreeMap<String, usize>) -> String {
    let each = errors
        .iter()
        .map(|(code, count)| format!("{count} {}", named(code)));
    match errors.is_empty() {
        true => "0".to_owned(),
        false => each.collect::<Vec<_>>().join(", "),
    }
}

/// One row, once it has ended.
pub fn story(line: &Line) -> String {
    let mut text = format!(
        "{} {}: stall {:.0} ms (bar {}), lost {} of {}, errors {}: {} after {:.0} s",
        line.row,
        line.fault,
        line.stall_ms,
        line.bar,
        line.verdict.lost,
        line.verdict.acknowledged,
        errors(&line.errors),
        verdict(line),
        line.seconds
    );
    for missed in &line.missed {
        // What the programs said last stands in the JSON.
        let first = missed.lines().next().unwrap_or_default();
        text += &format!("\n    FAULT {first}");
    }
    for note in &line.notes {
        text += &format!("\n    {note}");
    }
    text
}

/// How many rows were run and were as promised; which were not, and how often.
pub fn counts(lines: &[Line]) -> String {
    let met = lines.iter().filter(|line| line.passed).count();
    let written: usize = lines.iter().map(|line| line.verdict.acknowledged).sum();
    let lost: usize = lines.iter().map(|line| line.verdict.lost).sum();
    let mut text = format!(
        "{met} of {} rows as promised; {lost} of {written} acknowledged writes lost",
        lines.len()
    );
    let mut missed: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for line in lines {
        let (runs, misses) = missed.entry(&line.row).or_default();
        *runs += 1;
        *misses += usize::from(!line.passed);
    }
    let missed = missed.iter().filter(|(_, (_, misses))| *misses > 0);
    for (row, (runs, misses)) in missed {
        text += &format!("\nrow {row}: {misses} of {runs} missed");
    }
    text
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::faults::judged::described;
    use crate::faults::promise::Entrance;
    use crate::switchover::verdict::Verdict;

    fn conditions() -> Conditions {
        Conditions {
            synchronous: None,
            entrance: Entrance::Transaction,
            ttl: Duration::from_secs(5),
            is_root: true,
            can_starve: true,
        }
    }

    fn line(row: Row, passed: bool) -> Line {
        Line {
            passed,
            stall_ms: 12.4,
            errors: BTreeMap::from([(String::new(), 2), ("08007".to_owned(), 1)]),
            verdict: Verdict {
                acknowledged: 10,
                lost: usize::from(!passed),
                ..Verdict::default()
            },
            missed: match passed {
                true => Vec::new(),
                false => vec!["1 acknowledged writes are lost".to_owned()],
            },
            ..described(row, &conditions())
        }
    }

    #[test]
    fn every_row_is_listed_with_its_bar_or_with_why_not() {
        let list = list(&Row::ALL, &conditions());
        assert!(list.contains("| 5   | SIGKILL postmaster"));
        assert!(list.contains("<= 1500 ms"));
        assert!(list.contains("the wall clock is the whole machine's"));
        // The head and the line below it.
        assert_eq!(list.lines().count(), Row::ALL.len() + 2);
        let widths: std::collections::BTreeSet<_> =
            list.lines().map(|line| line.chars().count()).collect();
        assert_eq!(widths.len(), 1, "the table is aligned");
    }

    #[test]
    fn the_table_has_a_line_each_and_the_counts_name_what_was_missed() {
        let lines = [
            line(Row::Moves, true),
            line(Row::PowerOff, false),
            line(Row::PowerOff, true),
        ];
        let table = table(&lines);
        assert_eq!(table.lines().count(), 5);
        assert!(table.contains("2 closed, 1 08007") && table.contains("MISSED"));
        let counts = counts(&lines);
        assert!(counts.starts_with("2 of 3 rows as promised; 1 of 30 acknowledged writes lost"));
        assert!(counts.ends_with("row 13: 1 of 2 missed"));
    }

    #[test]
    fn a_missed_row_says_what_was_missed() {
        let story = story(&line(Row::PowerOff, false));
        assert!(
            story.contains("FAULT 1 acknowledged writes are lost"),
            "{story}"
        );
    }
}
