//! What was seen of a row against what it promises. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use trunkline_shared::cluster::Moment;

use super::lists::{self, Lists};
use super::promise::Conditions;
use super::row::Row;
use crate::crashes::deserved::{self, Loss};
use crate::failover::losses::{self, FaultLine};
use crate::failover::sequence::Inflicted;
use crate::load::history::{Cut, Gaps, History, Outcome, Write};
use crate::stack::member::MAXIMUM_LAG;
use crate::switchover::clients::{Kind, Told};
use crate::switchover::verdict::{self, Rows, Verdict};

/// How many errors that were not deserved, and lost writes, are told in full.
const NAMED: usize = 5;

/// What the row itself knows that the clients do not.
#[derive(Debug, Default)]
pub struct Evidence {
    /// Between these no client of the first router may be told that a write is committed.
    pub silent: Option<(Moment, Moment)>,
    /// The ends of servers, where every error is to be held against them.
    pub ends: Vec<Loss>,
    /// What breaks a promise: of the data, of one writer, of what is answered, of who leads, of becoming whole again. That a
    /// fault turned out to show nothing, too.
    pub faults: Vec<String>,
    /// What took too long.
    pub late: Vec<String>,
    /// What else is worth knowing.
    pub notes: Vec<String>,
}

/// What was seen of one row.
#[derive(Debug)]
pub struct Facts<'a> {
    /// The row.
    pub row: Row,
    /// What the run has.
    pub conditions: &'a Conditions,
    /// What clients saw, on the first router and on the second.
    pub histories: &'a [History; 2],
    /// The errors again, with what was asked for.
    pub told: &'a [Told],
    /// When the first fault began.
    pub began: Moment,
    /// The longest gaps of the quiet time before, by router.
    pub quiet: [Gaps; 2],
    /// Each fault of the row.
    pub inflicted: &'a [Inflicted],
    /// What the last leader has.
    pub rows: &'a BTreeMap<(i32, i64), Rows>,
    /// Transactions on lists, and what readers saw of them.
    pub lists: &'a Lists,
    /// What the row itself knows.
    pub evidence: Evidence,
}

/// One line of the table.
#[derive(Clone, Debug, Serialize)]
pub struct Line {
    /// The row's number.
    pub row: String,
    /// What was done.
    pub fault: &'static str,
    /// What was to come of it.
    pub expected: &'static str,
    /// Who was there beside the clients of every row.
    pub besides: &'static str,
    /// How long writes may pause.
    pub bar: String,
    /// The longest time without an acknowledged write of anybody on a router that is held against the bar.
    pub stall_ms: f64,
    /// The same of the client that waited longest.
    pub one_client_ms: f64,
    /// The stall on a first router that the fault is about.
    pub first_router_ms: Option<f64>,
    /// The longest time without one before the fault.
    pub quiet_ms: f64,
    /// Faults after which another timeline was current.
    pub changes: usize,
    /// Errors of clients, by SQLSTATE; of all routers.
    pub errors: BTreeMap<String, usize>,
    /// What became of the writes.
    #[serde(flatten)]
    pub verdict: Verdict,
    /// How long the row took.
    pub seconds: f64,
    /// What was judged beside the writes.
    #[serde(flatten)]
    pub lists: lists::Counts,
    /// How commits waited for standbys, and how the clients came in.
    pub mode: String,
    /// Whether everything was as promised.
    pub passed: bool,
    /// What breaks a promise.
    pub missed: Vec<String>,
    /// What took too long.
    pub late: Vec<String>,
    /// What else is worth knowing.
    pub notes: Vec<String>,
    /// What each fault of the row cost.
    pub parts: Vec<FaultLine>,
}

/// Judges a row.
pub fn judge(facts: Facts<'_>) -> Line {
    let (row, conditions) = (facts.row, facts.conditions);
    let both = both(facts.histories);
    let lost = verdict::lost(&both, facts.rows);
    let lost: Vec<_> = lost.iter().map(|write| (write.writer, write.seq)).collect();
    let (parts, beyond) = losses::assess(facts.inflicted, &both, &lost, MAXIMUM_LAG);
    let verdict = verdict::judge(&both, facts.rows);
    let is_judged = [!row.hurts_router(), true];
    let stalls = facts.histories.each_ref().map(|own| stall(&facts, own));
    let may_lose = row.may_lose(conditions);
    let (lists, anomalies) = lists::judge(facts.lists, facts.inflicted, may_lose);
    let mut missed = facts.evidence.faults.clone();
    let mut late = facts.evidence.late.clone();
    for (place, (gaps, quiet)) in stalls.iter().zip(facts.quiet).enumerate() {
        if is_judged[place] {
            let pause = row.bar(conditions).missed(*gaps, quiet);
            late.extend(pause.map(|pause| format!("clients of r{}: {pause}", place + 1)));
        }
        let cuts = &facts.histories[place].cuts;
        missed.extend(unheard_of(&facts, cuts, is_judged[place]));
    }
    missed.extend(of_writes(verdict, may_lose));
    match may_lose {
        true => missed.extend(beyond),
        false => missed.extend(gone_missing(&facts, &both)),
    }
    missed.extend(anomalies);
    missed.extend(flapping(&facts));
    missed.extend(broken_silence(&facts));
    missed.extend(undeserved(&facts));
    let judged = |of: fn(&Gaps) -> Duration| {
        let own = stalls.iter().zip(is_judged).filter(|(_, judged)| *judged);
        // Of a row that broke off before its first fault had ended no time is known.
        let longest = own.map(|(gaps, _)| millis(of(gaps))).fold(0.0, f64::max);
        if facts.inflicted.is_empty() {
            f64::NAN
        } else {
            longest
        }
    };
    let longest_quiet = facts.quiet.iter().map(|quiet| quiet.anybody).max();
    Line {
        stall_ms: judged(|gaps| gaps.anybody),
        one_client_ms: judged(|gaps| gaps.one_writer),
        first_router_ms: row.hurts_router().then(|| millis(stalls[0].anybody)),
        quiet_ms: millis(longest_quiet.unwrap_or_default()),
        changes: facts
            .inflicted
            .iter()
            .filter(|one| one.fork.is_some())
            .count(),
        errors: since(facts.began, &both.cuts),
        verdict,
        lists,
        passed: missed.is_empty() && late.is_empty(),
        missed,
        late,
        notes: facts.evidence.notes,
        parts,
        ..described(row, conditions)
    }
}

/// A row of which nothing is known yet.
pub fn described(row: Row, conditions: &Conditions) -> Line {
    Line {
        row: row.label(),
        fault: row.fault(),
        expected: row.expected(),
        besides: row.besides(),
        bar: row.bar(conditions).to_string(),
        stall_ms: f64::NAN,
        one_client_ms: f64::NAN,
        first_router_ms: None,
        quiet_ms: f64::NAN,
        changes: 0,
        errors: BTreeMap::new(),
        verdict: Verdict::default(),
        lists: lists::Counts::default(),
        mode: conditions.mode(),
        seconds: 0.0,
        passed: false,
        missed: Vec::new(),
        late: Vec::new(),
        notes: Vec::new(),
        parts: Vec::new(),
    }
}

fn both(histories: &[History; 2]) -> History {
    let mut both = histories[0].clone();
    both.writes.extend(&histories[1].writes);
    both.cuts.extend(histories[1].cuts.iter().cloned());
    crate::crashes::place(&mut both);
    both
}

/// How often each error was heard from then on.
fn since(began: Moment, cuts: &[Cut]) -> BTreeMap<String, usize> {
    let mut errors = BTreeMap::new();
    for cut in cuts.iter().filter(|cut| cut.at >= began) {
        *errors.entry(cut.code.clone()).or_default() += 1;
    }
    errors
}

/// The longest gaps while one of the faults stood, or the cluster was not whole yet.
fn stall(facts: &Facts<'_>, own: &History) -> Gaps {
    let gaps = facts.inflicted.iter().map(|one| {
        let whole = one.whole.unwrap_or(one.healed);
        own.gaps(one.began, whole)
    });
    gaps.fold(Gaps::default(), longer)
}

/// The longer of each.
fn longer(one: Gaps, other: Gaps) -> Gaps {
    Gaps {
        anybody: one.anybody.max(other.anybody),
        one_writer: one.one_writer.max(other.one_writer),
    }
}

/// Errors that nobody may hear, those of before the fault among them. What an error says of a write is held against
/// the rows apart from that.
fn unheard_of(facts: &Facts<'_>, cuts: &[Cut], is_judged: bool) -> Vec<String> {
    let may_hear = |cut: &&Cut| {
        cut.at >= facts.began && (!is_judged || facts.row.may_hear(&cut.code, facts.conditions))
    };
    let mut heard: BTreeMap<&str, Vec<&Cut>> = BTreeMap::new();
    for cut in cuts.iter().filter(|cut| !may_hear(cut)) {
        heard.entry(named(&cut.code)).or_default().push(cut);
    }
    let told = |(code, cuts): (&str, Vec<&Cut>)| {
        let of = |told: &&Told| {
            cuts.iter()
                .any(|c| c.client == told.client && c.at == told.at)
        };
        let first = facts.told.iter().find(of).map_or_else(String::new, |told| {
            let (client, asked, words) = (told.client, told.request, &told.words);
            format!(": client {client} asked for {asked:?}: {words}")
        });
        format!("{} times a client heard {code}{first}", cuts.len())
    };
    heard.into_iter().map(told).collect()
}

/// A SQLSTATE, or what it means to hear none.
pub fn named(code: &str) -> &str {
    match code {
        "" => "closed",
        code => code,
    }
}

fn of_writes(verdict: Verdict, may_lose: bool) -> Vec<String> {
    let Verdict {
        acknowledged,
        lost,
        doubled,
        torn,
        undead,
    } = verdict;
    let mut missed = Vec::new();
    if acknowledged == 0 {
        missed.push("nothing was acknowledged: nothing is shown".to_owned());
    }
    if lost > 0 && !may_lose {
        missed.push(format!("{lost} acknowledged writes are lost"));
    }
    if doubled + torn + undead > 0 {
        missed.push(format!(
            "{doubled} writes are there twice, {torn} in part, {undead} although refused"
        ));
    }
    missed
}

/// Those of which none may be lost, one by one.
fn gone_missing(facts: &Facts<'_>, both: &History) -> Vec<String> {
    let since = |moment: Moment| (moment.0 as f64 - facts.began.0 as f64) / 1e6;
    let tell = |write: &Write| {
        let found = facts.rows.get(&(write.writer, write.seq));
        format!(
            "client {} ({:?}) was told that its write {} is committed, and {} of its {} rows are there: asked {:.1} ms and \
             told {:.1} ms after the row began, at WAL byte {:X}",
            write.writer,
            Kind::of(write.writer),
            write.seq,
            found.map_or(0, |found| found.parts),
            Kind::of(write.writer).parts(),
            since(write.sent),
            since(write.done),
            write.position
        )
    };
    let lost = verdict::lost(both, facts.rows);
    lost.into_iter().take(NAMED).map(tell).collect()
}

/// Timelines that one fault of a row may not have begun.
fn flapping(facts: &Facts<'_>) -> Vec<String> {
    let begun = |one: &Inflicted| {
        let after = one.after.as_ref().map_or(one.before.1, |(_, after)| *after);
        after.saturating_sub(one.before.1)
    };
    let flaps = facts.inflicted.iter().filter(|one| begun(one) > 1);
    let told = flaps.map(|one| format!("{}: {} timelines were begun", one.what, begun(one)));
    match facts.row.must_not_flap() {
        true => told.collect(),
        false => Vec::new(),
    }
}

fn broken_silence(facts: &Facts<'_>) -> Option<String> {
    let (from, until) = facts.evidence.silent?;
    let writes = facts.histories[0].writes.iter();
    let told = writes.filter(|write| {
        write.outcome == Outcome::Acknowledged && write.done > from && write.done < until
    });
    let count = told.count();
    (count > 0).then(|| format!("r1 told of {count} commits beside another leader"))
}

fn undeserved(facts: &Facts<'_>) -> Vec<String> {
    if facts.evidence.ends.is_empty() {
        return Vec::new();
    }
    let none = Rows { count: 0, parts: 0 };
    let why = |told: &Told| {
        let found = facts.rows.get(&(told.client, told.seq)).unwrap_or(&none);
        let why = deserved::judge(told, *found, &facts.evidence.ends).err()?;
        Some(format!(
            "client {} was told {} of {:?} ({}): {why}",
            told.client,
            named(&told.code),
            told.request,
            told.words
        ))
    };
    let all: Vec<_> = facts.told.iter().filter_map(why).collect();
    let more = all.len().saturating_sub(NAMED);
    let told = all.into_iter().take(NAMED);
    told.chain((more > 0).then(|| format!("and {more} more errors that nobody deserved")))
        .collect()
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::list_append::{self, Operation, Status, Transaction};
    use crate::faults::promise::Entrance;
    use crate::switchover::clients::Request;

    fn at(ms: u64) -> Moment {
        Moment(ms * 1_000_000)
    }

    /// A write of client 0 (the first router) or 4 (the second one), acknowledged at this millisecond.
    fn write(writer: i32, seq: i64, ms: u64) -> Write {
        Write {
            writer,
            seq,
            sent: at(ms),
            done: at(ms),
            outcome: Outcome::Acknowledged,
            position: 0,
        }
    }

    fn cut(client: i32, ms: u64, code: &str) -> Cut {
        Cut {
            client,
            at: at(ms),
            code: code.to_owned(),
        }
    }

    /// Both routers' clients wrote each tenth of a second, but for a pause of the first one from 1000 to 3000.
    fn histories() -> [History; 2] {
        let writes = |writer: i32, pauses: bool| {
            let stamps = (0..60u64).map(|place| place * 100);
            let told = stamps.filter(|ms| !pauses || *ms <= 1000 || *ms >= 3000);
            let writes = told.map(|ms| write(writer, i64::try_from(ms).unwrap(), ms));
            History {
                writes: writes.collect(),
                cuts: Vec::new(),
            }
        };
        [writes(0, true), writes(4, false)]
    }

    fn rows(histories: &[History; 2]) -> BTreeMap<(i32, i64), Rows> {
        let writes = histories.iter().flat_map(|history| &history.writes);
        let one = Rows { count: 1, parts: 1 };
        writes
            .map(|write| ((write.writer, write.seq), one))
            .collect()
    }

    fn inflicted(timelines: u64) -> Inflicted {
        Inflicted {
            what: "a fault".to_owned(),
            on: "n1".to_owned(),
            on_leader: true,
            began: at(1000),
            healed: at(2000),
            whole: Some(at(4000)),
            before: ("n1".to_owned(), 1),
            after: Some(("n2".to_owned(), 1 + timelines)),
            fork: (timelines > 0).then_some(0),
        }
    }

    /// 1 and 2 were appended and acknowledged, and the list is this in the end.
    fn lists_of(list: &[i64]) -> Lists {
        let transaction = |ms: u64, operation| Transaction {
            client: 0,
            begin: at(ms),
            end: at(ms + 1),
            status: Status::Ok,
            operations: vec![operation],
        };
        let transactions = vec![
            transaction(100, Operation::Append(1, 1)),
            transaction(200, Operation::Append(1, 2)),
            transaction(6000, Operation::Read(1, list.to_vec())),
        ];
        Lists {
            history: list_append::History { transactions },
            looks: Vec::new(),
        }
    }

    struct Case {
        row: Row,
        histories: [History; 2],
        rows: BTreeMap<(i32, i64), Rows>,
        told: Vec<Told>,
        lists: Lists,
        evidence: Evidence,
        timelines: u64,
    }

    impl Case {
        fn of(row: Row) -> Case {
            let histories = histories();
            Case {
                row,
                rows: rows(&histories),
                histories,
                told: Vec::new(),
                lists: lists_of(&[1, 2]),
                evidence: Evidence::default(),
                timelines: 0,
            }
        }

        fn judged(self) -> Line {
            let conditions = Conditions {
                synchronous: None,
                entrance: Entrance::Transaction,
                ttl: Duration::from_secs(5),
                is_root: true,
                can_starve: true,
                can_fail_calls: true,
                can_set_clocks: true,
            };
            let quiet = Gaps {
                anybody: Duration::from_millis(100),
                one_writer: Duration::from_millis(100),
            };
            judge(Facts {
                row: self.row,
                conditions: &conditions,
                histories: &self.histories,
                told: &self.told,
                began: at(900),
                quiet: [quiet; 2],
                inflicted: &[inflicted(self.timelines)],
                rows: &self.rows,
                lists: &self.lists,
                evidence: self.evidence,
            })
        }
    }

    #[test]
    fn a_pause_of_one_router_counts_unless_the_fault_is_about_that_router() {
        let line = Case::of(Row::AgentKilled).judged();
        assert_eq!(line.stall_ms, 2000.0);
        assert!(
            line.late[0].starts_with("clients of r1: "),
            "{:?}",
            line.late
        );
        assert!(line.missed.is_empty() && !line.passed);
        let line = Case::of(Row::RouterKilled).judged();
        assert_eq!((line.stall_ms, line.first_router_ms), (100.0, Some(2000.0)));
        assert!(line.passed, "{:?}", line.missed);
    }

    #[test]
    fn errors_count_where_nobody_may_hear_them_and_always_before_the_fault() {
        let heard = |row, ms, code| {
            let mut case = Case::of(row);
            case.histories[1].cuts.push(cut(4, ms, code));
            let line = case.judged();
            (line.late.len(), line.missed.len())
        };
        assert_eq!(heard(Row::PowerOff, 1500, "40001"), (0, 0));
        assert_eq!(heard(Row::PowerOff, 800, "40001"), (0, 1));
        assert_eq!(heard(Row::PowerOff, 1500, "25006"), (0, 1));
        assert_eq!(heard(Row::RouterKilled, 1500, "40001"), (0, 1));
        let mut of_victim = Case::of(Row::RouterKilled);
        of_victim.histories[0].cuts.push(cut(0, 1500, ""));
        assert!(of_victim.judged().passed);
    }

    #[test]
    fn a_lost_write_counts_where_none_may_be_lost() {
        let lost = |row| {
            let mut case = Case::of(row);
            case.rows.remove(&(4, 1500));
            case.timelines = 1;
            let line = case.judged();
            assert_eq!(line.verdict.lost, 1);
            line.passed
        };
        assert!(lost(Row::PowerOff));
        assert!(!lost(Row::RouterKilled));
    }

    #[test]
    fn an_append_that_is_lost_counts_where_none_may_be_lost() {
        let lost = |row| {
            let mut case = Case::of(row);
            case.lists = lists_of(&[1]);
            case.timelines = 1;
            case.judged().missed.len()
        };
        assert_eq!(lost(Row::PowerOff), 0);
        assert!(lost(Row::RouterKilled) > 0);
    }

    #[test]
    fn a_row_in_which_nothing_was_acknowledged_shows_nothing() {
        let mut case = Case::of(Row::DisksFull);
        case.histories = [History::default(), History::default()];
        assert!(!case.judged().passed);
    }

    #[test]
    fn a_fault_may_begin_one_timeline_where_nothing_may_flap() {
        let flaps = |row, timelines| {
            let mut case = Case::of(row);
            case.timelines = timelines;
            !case.judged().passed
        };
        assert!(!flaps(Row::FlappingLink, 1) && flaps(Row::FlappingLink, 2));
        assert!(!flaps(Row::PowerOff, 2));
    }

    #[test]
    fn a_router_on_the_wrong_side_tells_of_no_commit() {
        let silent = |from, until| {
            let mut case = Case::of(Row::PartitionWithRouter);
            case.evidence.silent = Some((at(from), at(until)));
            case.judged().passed
        };
        assert!(silent(1100, 2900) && !silent(1100, 3100));
    }

    #[test]
    fn where_ends_of_servers_are_known_every_error_is_held_against_them() {
        let told = |sent: u64| {
            let mut case = Case::of(Row::StatementsInFlight);
            case.evidence.ends.push(Loss {
                killed: at(1000),
                gone: at(1100),
            });
            case.told.push(Told {
                client: 0,
                seq: 1,
                request: Request::Statement,
                began: at(sent),
                sent: at(sent),
                at: at(sent + 200),
                code: "08007".to_owned(),
                words: String::new(),
                is_fatal: false,
            });
            let missed = case.judged().missed;
            missed
                .iter()
                .any(|missed| missed.contains("no server was lost"))
        };
        assert!(!told(1050) && told(1500));
    }
}
