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
    /// A line for each number of the matrix instead of one for each run.
    is_summed: bool,
}

impl Told {
    /// Those of a long run are told by their sums.
    pub fn summed(is_summed: bool) -> Told {
        Told {
            lines: Vec::new(),
            is_summed,
        }
    }

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
            let table = match self.is_summed {
                true => summary(&self.lines),
                false => table(&self.lines),
            };
            say(format!("\n{table}"));
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
        "on lists",
        "mode",
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
            line.lists.transactions.to_string(),
            line.mode.clone(),
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
        "{} {} ({}): stall {:.0} ms (bar {}), lost {} of {}, {} on lists ({} lost), {} looks, errors {}: {} after {:.0} s",
        line.row,
        line.fault,
        line.mode,
        line.stall_ms,
        line.bar,
        line.verdict.lost,
        line.verdict.acknowledged,
        line.lists.transactions,
        line.lists.transactions_lost,
        line.lists.looks,
        errors(&line.errors),
        verdict(line),
        line.seconds
    );
    // What the programs said last stands in the JSON.
    for (word, all) in [("VIOLATION", &line.missed), ("LATE", &line.late)] {
        for missed in all {
            let first = missed.lines().next().unwrap_or_default();
            text += &format!("\n    {word} {first}");
        }
    }
    for note in &line.notes {
        text += &format!("\n    {note}");
    }
    text
}

/// What was seen of each row of a long run, in the order of the matrix.
pub fn summary(lines: &[Line]) -> String {
    let head = [
        "row",
        "fault",
        "runs",
        "violations",
        "late",
        "longest stall ms",
        "changes",
        "lost",
        "of writes",
        "on lists",
        "looks",
    ];
    let mut rows: BTreeMap<(usize, &str), Vec<&Line>> = BTreeMap::new();
    for line in lines {
        let place = Row::ALL.iter().position(|row| row.label() == line.row);
        let place = place.unwrap_or(Row::ALL.len());
        rows.entry((place, &line.row)).or_default().push(line);
    }
    let told = |((_, row), lines): (&(usize, &str), &Vec<&Line>)| {
        let sum = |of: fn(&Line) -> usize| lines.iter().map(|line| of(line)).sum::<usize>();
        let longest = lines.iter().map(|line| line.stall_ms).fold(0.0, f64::max);
        let fault = lines.first().map_or("", |line| line.fault);
        vec![
            (*row).to_owned(),
            fault.to_owned(),
            lines.len().to_string(),
            sum(|line| usize::from(!line.missed.is_empty())).to_string(),
            sum(|line| usize::from(!line.late.is_empty())).to_string(),
            format!("{longest:.0}"),
            sum(|line| line.changes).to_string(),
            sum(|line| line.verdict.lost).to_string(),
            sum(|line| line.verdict.acknowledged).to_string(),
            sum(|line| line.lists.transactions).to_string(),
            sum(|line| line.lists.looks).to_string(),
        ]
    };
    report::table(&head, &rows.iter().map(told).collect::<Vec<_>>())
}

/// How many rows were run and were as promised; which were not, and how often; the same by mode.
pub fn counts(lines: &[Line]) -> String {
    let met = lines.iter().filter(|line| line.passed).count();
    let sum = |of: fn(&Line) -> usize| lines.iter().map(of).sum::<usize>();
    let mut text = format!(
        "{met} of {} rows as promised, {} with violations, {} late; {} of {} acknowledged writes lost; {} transactions on \
         lists ({} lost), {} sessions on read ports",
        lines.len(),
        violations(lines),
        sum(|line| usize::from(!line.late.is_empty())),
        sum(|line| line.verdict.lost),
        sum(|line| line.verdict.acknowledged),
        sum(|line| line.lists.transactions),
        sum(|line| line.lists.transactions_lost),
        sum(|line| line.lists.looks)
    );
    let mut parts: BTreeMap<String, (usize, usize, usize)> = BTreeMap::new();
    for line in lines {
        for part in [format!("row {}", line.row), format!("mode {}", line.mode)] {
            let (runs, violations, late) = parts.entry(part).or_default();
            *runs += 1;
            *violations += usize::from(!line.missed.is_empty());
            *late += usize::from(!line.late.is_empty());
        }
    }
    let is_told = |part: &str, bad: usize| bad > 0 || part.starts_with("mode");
    for (part, (runs, violations, late)) in parts {
        if is_told(&part, violations + late) {
            text += &format!("\n{part}: {runs} runs, {violations} with violations, {late} late");
        }
    }
    text
}

/// Rows in which a guarantee was broken.
pub fn violations(lines: &[Line]) -> usize {
    let all = lines.iter().filter(|line| !line.missed.is_empty());
    all.count()
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
            can_fail_calls: true,
            can_set_clocks: true,
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
        assert!(list.contains("<= 1000 ms"));
        assert!(list.contains("libfaketime does not reach"));
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
        assert!(counts.starts_with("2 of 3 rows as promised, 1 with violations, 0 late; 1 of 30"));
        assert!(counts.contains("row 13: 2 runs, 1 with violations, 0 late"));
        assert!(counts.contains("mode async, transaction: 3 runs, 1 with violations"));
    }

    #[test]
    fn a_long_run_is_told_by_the_numbers_of_the_matrix() {
        let lines = [
            line(Row::PowerOff, false),
            line(Row::Moves, true),
            line(Row::PowerOff, true),
        ];
        let summary = summary(&lines);
        let rows: Vec<_> = summary.lines().skip(2).collect();
        assert_eq!(rows.len(), 2);
        assert!(rows[0].contains("planned changes") && rows[1].contains("power off P"));
    }

    #[test]
    fn a_missed_row_says_what_was_missed() {
        let story = story(&line(Row::PowerOff, false));
        assert!(
            story.contains("VIOLATION 1 acknowledged writes are lost"),
            "{story}"
        );
    }
}
