//! Planned changes whose candidate dies, hangs or lags in the middle, at a step that is drawn. It stays hurt until the
//! change has come to an end, whichever that is, and is healed then.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;
use trunkline_shared::cluster::Moment;
use trunkline_shared::service::clock;

use super::clients::Clients;
use super::verdict::{self, Verdict};
use super::{LOOK, PORT, SwitchoverOptions, WHOLE, quantile};
use crate::load::history::History;
use crate::load::last_write::LastWrite;
use crate::load::writers;
use crate::report::{self, Progress, say};
use crate::stack::{APP, Stack};
use bars::{Facts, Outcome};
use drawn::Drawn;
use harm::{Victim, Wound};
use steps::{Course, Step, Watch};

pub mod bars;
pub mod drawn;
pub mod harm;
pub mod steps;

/// A step that has not come within this time of the request does not come any more.
const STEP_LIMIT: Duration = Duration::from_secs(10);
/// Within this time of the command's end somebody leads, or nobody does before the candidate is healed.
const OUTCOME_LIMIT: Duration = Duration::from_secs(60);

/// One change.
#[derive(Debug, Serialize)]
struct Change {
    harm: harm::Harm,
    drawn: Step,
    /// The furthest step that was seen when it was done; nothing if it came too late, or the change did not come so far.
    hurt_at: Option<Step>,
    after_ms: f64,
    from: String,
    /// Who was hurt.
    candidate: String,
    /// Whether the key named it when that was done.
    had_key: bool,
    /// Whether the key ever did.
    has_key_moved: bool,
    /// Whether etcd elected a leader meanwhile: its leader was cut off with the candidate.
    has_store_elected: bool,
    outcome: Outcome,
    /// Who led then.
    leader: String,
    is_told_done: bool,
    command_ms: f64,
    stall_ms: f64,
    one_client_ms: f64,
    longest_stall_ms: f64,
    errors: BTreeMap<String, usize>,
    missed: Vec<String>,
    #[serde(skip)]
    times: Times,
}

#[derive(Clone, Copy, Debug)]
struct Times {
    asked: Moment,
    /// When the next one began, or the run ended.
    over: Moment,
    /// Between these the member that was hurt could acknowledge what nobody else has.
    alone: Option<(Moment, Moment)>,
}

#[derive(Debug, Serialize)]
struct Results {
    machine: String,
    clients: i32,
    synchronous: String,
    seed: u64,
    changes: Vec<Change>,
    #[serde(flatten)]
    verdict: Verdict,
    /// Of the lost writes those that the candidate acknowledged as leader before it died, to replicas that need not have
    /// them yet.
    lost_with_candidate: usize,
}

/// Runs it; whether every bar was met.
pub async fn run(options: &SwitchoverOptions) -> Result<bool> {
    let progress = Progress::new();
    let seed = options.seed.unwrap_or_else(|| fastrand::u64(..1_000_000));
    let list = drawn::list(seed, &options.candidate, options.times);
    let mut stack = super::start(options, &progress).await?;
    let leader = stack.leader().await?;
    harm::prepare(&stack.members[leader].sql(APP).await?).await?;
    let config = writers::client_config(&stack.router.address, PORT);
    let load = Clients::start(&config, None, options.clients);
    let last = load.last_write();
    let mut changes = Vec::new();
    let ended = change_all(options, &list, &mut stack, &last, &progress, &mut changes).await;
    let [history, _] = load.finish().await?;
    progress.done();
    if let Some(folder) = &options.keep_logs {
        stack.keep_logs(folder)?;
    }
    let ttl = Duration::from_secs(u64::from(stack.timing.ttl));
    for change in &mut changes {
        measure(change, &history, ttl, options.judges_times);
    }
    if let Err(error) = ended {
        tell_changes(&changes);
        return Err(error);
    }
    let rows = super::rows(&mut stack).await?;
    let is_excused = |at: Moment| {
        let alone = changes.iter().filter_map(|change| change.times.alone);
        let mut alone = alone.filter(|_| options.sync.is_none());
        alone.any(|(from, until)| at >= from && at < until)
    };
    let lost = verdict::lost(&history, &rows);
    let lost_with_candidate = lost.iter().filter(|write| is_excused(write.done)).count();
    let results = Results {
        machine: report::machine(),
        clients: options.clients,
        synchronous: format!("{:?}", options.sync),
        seed,
        changes,
        verdict: verdict::judge(&history, &rows),
        lost_with_candidate,
    };
    if let Some(file) = &options.json {
        std::fs::write(file, serde_json::to_string_pretty(&results)?)?;
    }
    Ok(tell(&results))
}

/// Makes the changes, each once the cluster is whole; what was made stands in `changes` after an error too.
async fn change_all(
    options: &SwitchoverOptions,
    list: &[Drawn],
    stack: &mut Stack,
    last: &LastWrite,
    progress: &Progress,
    changes: &mut Vec<Change>,
) -> Result<()> {
    for (number, drawn) in list.iter().enumerate() {
        tokio::time::sleep(Duration::from_millis(options.quiet)).await;
        let from = stack.leader().await?;
        super::until_caught_up(stack, from).await?;
        let (change, wound) = change_one(*drawn, stack, from, last).await?;
        progress.step(format!(
            "{} of {}: {} when {}: {}",
            number + 1,
            list.len(),
            drawn.harm.name(),
            change.hurt_at.map_or("-", Step::name),
            change.outcome.name(),
        ));
        if let Some(before) = changes.last_mut() {
            before.times.over = change.times.asked;
        }
        changes.push(change);
        if let Some(wound) = wound {
            wound.heal(stack).await?;
        }
        let whole = until_whole(stack).await;
        if let Some(change) = changes.last_mut() {
            change.times.over = clock::now();
        }
        whole?;
    }
    Ok(())
}

/// Makes one change, hurts its candidate at a step that the seed draws, and heals it once the change has come to an end:
/// how it ended, and the furthest step that was seen by then.
pub async fn hurt_one(
    stack: &mut Stack,
    harm: harm::Harm,
    seed: u64,
    last: &LastWrite,
) -> Result<(Outcome, Option<Step>)> {
    let drawn = drawn::list(seed, &[harm], 1);
    let drawn = drawn.first().context("it means nothing at any step")?;
    let from = stack.leader().await?;
    super::until_caught_up(stack, from).await?;
    let (change, wound) = change_one(*drawn, stack, from, last).await?;
    if let Some(wound) = wound {
        wound.heal(stack).await?;
    }
    Ok((change.outcome, change.hurt_at))
}

/// The store is whole, too: a member of it that was cut off with the candidate disturbs the others when it is back.
async fn until_whole(stack: &mut Stack) -> Result<()> {
    stack.until_converged(WHOLE).await?;
    let is_healthy = async |stack: &Stack| {
        for etcd in &stack.etcd {
            if !etcd.is_healthy().await {
                return false;
            }
        }
        true
    };
    stack.until("all of etcd", WHOLE, is_healthy).await
}

/// What was done to the candidate.
struct Hurt {
    /// The furthest step that was seen by then.
    at: Option<Step>,
    /// When it had been done.
    done: Moment,
    candidate: usize,
    wound: Wound,
}

/// Makes one and hurts its candidate, and waits for how it ends.
async fn change_one(
    drawn: Drawn,
    stack: &Stack,
    from: usize,
    last: &LastWrite,
) -> Result<(Change, Option<Wound>)> {
    let mut victims = Vec::new();
    for index in (0..stack.members.len()).filter(|index| *index != from) {
        victims.push(Victim::look(stack, index).await?);
    }
    let leader = stack.members[from].sql(APP).await?;
    let term = stack.etcd[from].term().await?;
    // The candidate is never the leader, so this member of etcd stays within reach.
    let watch = Watch::start(&stack.etcd[from], &stack.members[from].name).await?;
    let asked = clock::now();
    let hurting = async {
        if !watch.until(drawn.step, STEP_LIMIT).await {
            return Ok(None);
        }
        tokio::time::sleep(drawn.after).await;
        hurt(drawn, stack, victims, &leader, &watch).await
    };
    let switching = async {
        let said = stack.trunkline(&["switchover", "--force"]).await;
        (said.is_ok(), clock::now())
    };
    let (hurt, (is_told_done, answered)) = tokio::join!(hurting, switching);
    let hurt: Option<Hurt> = hurt?;
    let since = hurt
        .as_ref()
        .map_or(answered, |hurt| hurt.done.max(answered));
    let leads = until_somebody_leads(stack, &watch, last, since).await?;
    let change = describe(drawn, stack, from, &watch.course(), hurt.as_ref(), leads);
    let is_alone = !leads && stack.alone_in_sync().await?.as_ref() == Some(&change.candidate);
    let outcome = match change.outcome {
        Outcome::Nobody if is_alone => Outcome::OnlyIt,
        other => other,
    };
    // No other harm touches etcd.
    let has_store_elected =
        drawn.harm == harm::Harm::CutNode && stack.etcd[from].term().await? > term;
    let change = Change {
        outcome,
        is_told_done,
        has_store_elected,
        command_ms: millis(answered.since(asked)),
        times: Times {
            asked,
            over: clock::now(),
            ..change.times
        },
        ..change
    };
    Ok((change, hurt.map(|hurt| hurt.wound)))
}

async fn hurt(
    drawn: Drawn,
    stack: &Stack,
    mut victims: Vec<Victim>,
    leader: &tokio_postgres::Client,
    watch: &Watch,
) -> Result<Option<Hurt>> {
    // Of replicas that are equal the first by its name is chosen: the likely one before anybody is named.
    let place = match &watch.course().candidate {
        Some(name) => {
            let index = stack.index_of(name)?;
            let place = victims.iter().position(|victim| victim.index == index);
            place.with_context(|| format!("the candidate {name} is the leader"))?
        }
        None => 0,
    };
    let victim = victims.swap_remove(place);
    let candidate = victim.index;
    let wound = drawn.harm.inflict(stack, victim, leader).await?;
    let done = clock::now();
    Ok(wound.map(|wound| Hurt {
        at: watch.course().furthest(done),
        done,
        candidate,
        wound,
    }))
}

/// Waits until the member that the key names says that it leads, and writes flow; whether that came in time.
async fn until_somebody_leads(
    stack: &Stack,
    watch: &Watch,
    last: &LastWrite,
    since: Moment,
) -> Result<bool> {
    let deadline = clock::now() + OUTCOME_LIMIT;
    while clock::now() < deadline {
        let leader = stack.index_of(watch.course().leader())?;
        let leads = stack.members[leader].ask_primary().await;
        if leads.is_ok_and(|leads| leads) && last.done() > since {
            return Ok(true);
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok(false)
}

/// The change as the store showed it.
fn describe(
    drawn: Drawn,
    stack: &Stack,
    from: usize,
    course: &Course,
    hurt: Option<&Hurt>,
    leads: bool,
) -> Change {
    let from = stack.members[from].name.clone();
    let candidate = match hurt {
        Some(hurt) => stack.members[hurt.candidate].name.clone(),
        None => course.candidate.clone().unwrap_or_default(),
    };
    let leader = course.leader().to_owned();
    let moved = course.led_by(&candidate);
    let outcome = match moved {
        _ if !leads => Outcome::Nobody,
        Some(_) if leader == candidate => Outcome::MovedToIt,
        Some(_) => Outcome::PassedOn,
        None if leader == from => Outcome::RolledBack,
        None => Outcome::Another,
    };
    let next = course.leaders.iter().find(|(_, at)| Some(*at) > moved);
    let alone = moved.zip(next.map(|(_, at)| *at));
    Change {
        harm: drawn.harm,
        drawn: drawn.step,
        hurt_at: hurt.and_then(|hurt| hurt.at),
        after_ms: millis(drawn.after),
        from,
        candidate,
        had_key: moved.is_some_and(|at| hurt.is_some_and(|hurt| at <= hurt.done)),
        has_key_moved: moved.is_some(),
        has_store_elected: false,
        outcome,
        leader,
        is_told_done: false,
        command_ms: 0.0,
        stall_ms: 0.0,
        one_client_ms: 0.0,
        longest_stall_ms: 0.0,
        errors: BTreeMap::new(),
        missed: Vec::new(),
        times: Times {
            asked: clock::now(),
            over: clock::now(),
            alone,
        },
    }
}

/// Holds it against what the clients saw.
fn measure(change: &mut Change, history: &History, ttl: Duration, judges_times: bool) {
    let Times { asked, over, .. } = change.times;
    let gaps = history.gaps(asked, over);
    change.stall_ms = millis(gaps.anybody);
    change.one_client_ms = millis(gaps.one_writer);
    for cut in &history.cuts {
        if cut.at >= asked && cut.at < over {
            *change.errors.entry(cut.code.clone()).or_default() += 1;
        }
    }
    let facts = Facts {
        harm: change.harm,
        has_key_moved: change.has_key_moved,
        has_store_elected: change.has_store_elected,
        outcome: change.outcome,
        stall: gaps.anybody,
        errors: &change.errors,
        is_told_done: change.is_told_done,
    };
    change.longest_stall_ms = millis(bars::longest_stall(&facts, ttl));
    change.missed = bars::missed(&facts, ttl, judges_times);
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn tell_changes(changes: &[Change]) {
    let head = [
        "harm",
        "step",
        "+ ms",
        "key",
        "outcome",
        "stall ms",
        "allowed",
        "one client",
        "command",
        "errors",
        "missed",
    ];
    let row = |change: &Change| {
        let step = change.hurt_at.map_or("not hurt", Step::name);
        let key = match (change.had_key, change.has_key_moved) {
            (true, _) => "moved",
            (false, true) => "moves after",
            (false, false) => "stays",
        };
        vec![
            change.harm.name(),
            match change.has_store_elected {
                true => format!("{step}, etcd elects"),
                false => step.to_owned(),
            },
            format!("{:.0}", change.after_ms),
            key.to_owned(),
            change.outcome.name().to_owned(),
            format!("{:.0}", change.stall_ms),
            format!("{:.0}", change.longest_stall_ms),
            format!("{:.0}", change.one_client_ms),
            format!("{:.0}", change.command_ms),
            codes(&change.errors),
            change.missed.join("; "),
        ]
    };
    let rows: Vec<_> = changes.iter().map(row).collect();
    say(report::table(&head, &rows));
}

/// A line for each harm.
fn tell_harms(changes: &[Change]) {
    let head = [
        "harm",
        "changes",
        "rolled back",
        "moved to it",
        "another",
        "passed on",
        "nobody",
        "key stays: p50 ms",
        "longest",
        "errors",
        "key moves: p50 ms",
        "longest",
        "errors",
    ];
    let mut harms: Vec<_> = changes.iter().map(|change| change.harm).collect();
    harms.sort_unstable();
    harms.dedup();
    let row = |harm: &harm::Harm| {
        let own: Vec<_> = changes.iter().filter(|c| c.harm == *harm).collect();
        let mut row = vec![harm.name(), own.len().to_string()];
        for outcome in Outcome::ALL {
            let count = own.iter().filter(|c| c.outcome == outcome).count();
            row.push(count.to_string());
        }
        for has_key_moved in [false, true] {
            let part = own.iter().filter(|c| c.has_key_moved == has_key_moved);
            let mut stalls: Vec<_> = part.clone().map(|c| c.stall_ms).collect();
            stalls.sort_by(f64::total_cmp);
            let errors: usize = part.flat_map(|c| c.errors.values()).sum();
            for cell in [quantile(&stalls, 0.5), quantile(&stalls, 1.0)] {
                row.push(match stalls.is_empty() {
                    true => String::new(),
                    false => format!("{cell:.0}"),
                });
            }
            row.push(errors.to_string());
        }
        row
    };
    let rows: Vec<_> = harms.iter().map(row).collect();
    say(report::table(&head, &rows));
}

fn codes(errors: &BTreeMap<String, usize>) -> String {
    let one = |(code, count): (&String, &usize)| match code.is_empty() {
        true => format!("{count} cut"),
        false => format!("{count} {code}"),
    };
    errors.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// Prints the results; whether they are within the bars.
fn tell(results: &Results) -> bool {
    let (changes, verdict) = (&results.changes, &results.verdict);
    tell_changes(changes);
    tell_harms(changes);
    let lost = verdict.lost - results.lost_with_candidate;
    say(format!(
        "{} writes acknowledged, {lost} lost, {} doubled, {} torn, {} undead; {} more that the candidate had acknowledged as \
         leader were lost with it",
        verdict.acknowledged,
        verdict.doubled,
        verdict.torn,
        verdict.undead,
        results.lost_with_candidate
    ));
    let unhurt = changes.iter().filter(|c| c.hurt_at.is_none()).count();
    say(format!(
        "{} clients, synchronous: {}, seed {}; {}",
        results.clients, results.synchronous, results.seed, results.machine
    ));
    let is_true = lost + verdict.doubled + verdict.torn + verdict.undead == 0;
    let has_missed = changes.iter().any(|change| !change.missed.is_empty());
    // One that came a moment too late says nothing; were it the rule, nothing would be shown.
    let is_shown = unhurt * 4 <= changes.len();
    if unhurt > 0 {
        say(format!("in {unhurt} changes it came too late"));
    }
    let is_met = is_true && !has_missed && is_shown;
    say(format!(
        "{}: nothing lost or doubled; without an error and within 2 s where the key stays; within 2 s, or ttl + 2 s without the \
         candidate's agent, where it moves",
        if is_met { "met" } else { "MISSED" }
    ));
    is_met
}
