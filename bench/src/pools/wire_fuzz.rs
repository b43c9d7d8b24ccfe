//! `trunkline-bench pools wire-fuzz`: sessions drawn by a number, valid and invalid, cut off at any byte, are led with
//! PostgreSQL itself and through each mode of the router, and compared message by message.
//!
//! Others use the same few servers meanwhile, so what a session finds there is not what it has left. A difference is
//! told with the number by which that session alone is led again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use fastrand::Rng;
use tokio_postgres::Row;
use trunkline_shared::service::clock;

use crate::load::writers;
use crate::pools::wire::{Message, Wire, bind, execute, parse, query, sync};
use crate::report::{self, Progress, say};
use crate::stack::router::Pooled;
use crate::stack::{APP, Layout, Plan, Stack};
use frames::{Answer, Ended, difference};
use script::{End, Script};
use side::Side;

mod frames;
mod script;
mod side;

/// The modes, each with the port of its listener.
const MODES: [(&str, u16); 3] = [
    ("transaction", 5434),
    ("session", 5435),
    ("statement", 5436),
];
/// Servers of the pool: less than there are clients.
const SERVERS: usize = 3;
/// Others on the pool.
const NEIGHBOURS: usize = 3;
/// Differences that are told; more add nothing.
const MAX_TOLD: usize = 20;
/// A table into which COPY fails before it reads anything.
const REFUSED: &str = "CREATE TABLE refused (n int, t text); GRANT ALL ON refused TO PUBLIC;
    CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''refused''; END';
    CREATE TRIGGER refuse BEFORE INSERT ON refused FOR EACH STATEMENT EXECUTE FUNCTION refuse()";
/// How long what a dead client has left open may hold the table.
const LOCK_LIMIT: &str = "SET lock_timeout = '30s'";

/// The router's console.
const CONSOLE: &str = "pgbouncer";
/// Columns of its SHOW CLIENTS and SHOW SERVERS, counted from 0.
const PORT: usize = 6;
const REMOTE_PID: usize = 16;
/// The servers of the load's user.
const BACKENDS: &str = "SELECT pid::text FROM pg_stat_activity \
    WHERE usename = $1::text AND backend_type = 'client backend'";
/// Nobody has to do with a client that is gone for longer.
const SETTLE_LIMIT: Duration = Duration::from_secs(60);
/// How soon that is looked at again.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// The options of `pools wire-fuzz`.
#[derive(Args, Debug)]
pub struct WireFuzzOptions {
    /// How long
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// The number that sessions are drawn by, if not one by chance
    #[arg(long)]
    seed: Option<u64>,
    /// Only the session of this number
    #[arg(long)]
    session: Option<u64>,
    /// At most so many sessions
    #[arg(long)]
    sessions: Option<u64>,
}

impl WireFuzzOptions {
    /// So many sessions of one seed, as a test leads them: however long they take.
    pub const fn short(seed: u64, sessions: u64) -> Self {
        Self {
            seconds: 600,
            seed: Some(seed),
            session: None,
            sessions: Some(sessions),
        }
    }
}

/// What was done.
#[derive(Debug, Default)]
struct Done {
    sessions: u64,
    rounds: u64,
    messages: u64,
    answers: u64,
    torn: u64,
    breaches: u64,
    compared: [u64; MODES.len()],
    differences: Vec<String>,
}

struct Ground {
    stack: Stack,
    direct: Side,
    owner: tokio_postgres::Client,
}

impl Ground {
    async fn prepare(progress: &Progress) -> Result<Self> {
        let listeners = MODES.map(|(mode, port)| (port, mode));
        let plan = Plan {
            pooled: Some(Pooled {
                listeners: listeners.to_vec(),
                auth: "trust",
                size: SERVERS,
                alias: None,
            }),
            etcd_members: 1,
            ..Plan::new(Layout::Loopback)
        };
        let stack = Stack::start(&plan, progress).await?;
        let leader = stack.leader().await?;
        writers::prepare(&stack, leader).await?;
        let owner = stack.members[leader].sql(APP).await?;
        let table = format!("CREATE TABLE wire (n int, t text); ALTER TABLE wire OWNER TO {APP}");
        owner.batch_execute(&table).await?;
        owner.batch_execute(REFUSED).await?;
        owner.batch_execute(LOCK_LIMIT).await?;
        Ok(Self {
            direct: Side::Direct(stack.members[leader].socket().join(".s.PGSQL.5432")),
            owner,
            stack,
        })
    }

    fn address(&self, port: u16) -> String {
        format!("{}:{port}", self.stack.router.address)
    }

    /// Leads a session and says what it was told, and what it has left in the table.
    async fn play(&self, side: &Side, script: &Script) -> Result<(Vec<Answer>, Vec<String>)> {
        let empty = self.owner.batch_execute("TRUNCATE wire").await;
        empty.context("a client that is gone still holds the table")?;
        let (mut answers, port) = side::play(side, script).await?;
        let quiet = self.settle(port).await;
        quiet.context("what a client that is gone has asked for is still done")?;
        // What is torn off may have run before the client was gone, or not.
        let is_torn = matches!(script.end, End::Torn(_));
        let rows = match is_torn {
            true => Vec::new(),
            false => self.rows().await?,
        };
        // Who says something that no client may say is closed, in whatever words.
        if let (End::Breach(_), Some(last)) = (&script.end, answers.last_mut())
            && matches!(last.end, Some(Ended::Closed(_)))
        {
            last.end = Some(Ended::Closed(None));
        }
        Ok((answers, rows))
    }

    /// Waits until nobody has to do with the client of this port any more, and nothing is left of it in PostgreSQL: what
    /// it has asked for last would be found by the next one.
    async fn settle(&self, port: Option<u16>) -> Result<()> {
        let (_, console) = MODES[0];
        let parameters = [("user", APP), ("database", CONSOLE)];
        let mut wire = Wire::connect(&self.address(console), &parameters).await?;
        let port = port.map(|port| port.to_string());
        let until = clock::now() + SETTLE_LIMIT;
        while clock::now() < until {
            let clients = wire.ask(&query("SHOW CLIENTS")).await?;
            let is_known = port
                .as_ref()
                .is_some_and(|port| column(&clients, PORT).contains(port));
            let backends = self.owner.query(BACKENDS, &[&APP]).await?;
            // Later: what the router has opened meanwhile is among them.
            let servers = column(&wire.ask(&query("SHOW SERVERS")).await?, REMOTE_PID);
            let is_own = |row: &Row| servers.contains(&row.get::<_, String>(0));
            if !is_known && backends.iter().all(is_own) {
                return Ok(());
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        bail!("not over after {} s", SETTLE_LIMIT.as_secs())
    }

    async fn rows(&self) -> Result<Vec<String>> {
        let sql = "SELECT n || ' ' || length(t) || ' ' || md5(t) FROM wire ORDER BY 1";
        let rows = self.owner.query(sql, &[]).await?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }
}

/// A column of the console's answer.
fn column(answer: &[Message], number: usize) -> Vec<String> {
    let rows = answer.iter().filter(|message| message.kind == b'D');
    rows.filter_map(|row| row.columns().into_iter().nth(number))
        .collect()
}

/// Runs it; whether nothing differed.
pub async fn run(options: &WireFuzzOptions) -> Result<bool> {
    let progress = Progress::new();
    let seed = options.seed.unwrap_or_else(|| fastrand::u64(..1_000_000));
    let ground = Ground::prepare(&progress).await?;
    progress.step(format!(
        "{} s of drawn sessions, seed {seed}",
        options.seconds
    ));
    let is_over = Arc::new(AtomicBool::new(false));
    let mut neighbours = tokio::task::JoinSet::new();
    for number in 0..NEIGHBOURS {
        let (_, port) = MODES[[0, 0, 2][number % 3]];
        neighbours.spawn(neighbour(ground.address(port), number, is_over.clone()));
    }
    let until = clock::now() + Duration::from_secs(options.seconds);
    let mut done = Done::default();
    let mut number = options.session.unwrap_or(0);
    let has_more = |led: u64| options.sessions.is_none_or(|most| led < most);
    while clock::now() < until && has_more(done.sessions) && done.differences.len() < MAX_TOLD {
        let led = session(&ground, seed, number, &mut done).await;
        led.with_context(|| format!("session {number} of seed {seed}"))
            .with_context(|| format!("the router said last:\n{}", ground.stack.router.tail()))?;
        match options.session {
            Some(_) => break,
            None => number += 1,
        }
    }
    is_over.store(true, Ordering::Relaxed);
    while let Some(ended) = neighbours.join_next().await {
        ended?.context("a neighbour")?;
    }
    progress.done();
    print(&done, seed);
    Ok(done.differences.is_empty())
}

async fn session(ground: &Ground, seed: u64, number: u64, done: &mut Done) -> Result<()> {
    let script = script::draw(&mut Rng::with_seed(
        seed.wrapping_mul(1 << 32).wrapping_add(number),
    ));
    let direct = ground.play(&ground.direct, &script).await?;
    done.sessions += 1;
    done.rounds += script.rounds.len() as u64;
    done.messages += script
        .rounds
        .iter()
        .map(|round| round.sent.len() as u64)
        .sum::<u64>();
    done.answers += direct
        .0
        .iter()
        .map(|answer| answer.lines.len() as u64)
        .sum::<u64>();
    done.torn += u64::from(matches!(script.end, End::Torn(_)));
    done.breaches += u64::from(matches!(script.end, End::Breach(_)));
    for (at, (mode, port)) in MODES.into_iter().enumerate() {
        if mode == "statement" && !script.is_plain {
            continue;
        }
        let routed = ground
            .play(&Side::Routed(ground.address(port)), &script)
            .await?;
        done.compared[at] += 1;
        if let Some(told) = compare(&script, &direct, &routed) {
            let head = format!("session {number}, {mode}: --seed {seed} --session {number}");
            say(format!("{head}\n{told}\n"));
            done.differences.push(head);
        }
    }
    Ok(())
}

/// In what a session differs, and what it was.
fn compare(
    script: &Script,
    direct: &(Vec<Answer>, Vec<String>),
    routed: &(Vec<Answer>, Vec<String>),
) -> Option<String> {
    let none = Answer::default();
    let rounds = direct.0.len().max(routed.0.len());
    for at in 0..rounds {
        let own = direct.0.get(at).unwrap_or(&none);
        let other = routed.0.get(at).unwrap_or(&none);
        if let Some(told) = difference(own, other) {
            return Some(format!("{}{told}", story(script, at)));
        }
    }
    (direct.1 != routed.1).then(|| {
        let whole = story(script, rounds);
        format!(
            "{whole}rows left: {:?}\nby the router: {:?}",
            direct.1, routed.1
        )
    })
}

/// What the session has said up to the answer of this number; the first one is that to its log-in.
fn story(script: &Script, answer: usize) -> String {
    let mut told = format!("settings {:?}\n", script.settings);
    for (at, round) in script.rounds.iter().enumerate().take(answer) {
        told += &format!("round {at}, in pieces of {:?}:\n", round.pieces);
        for sent in &round.sent {
            told += &format!("    {}\n", sent.story);
        }
    }
    if answer > script.rounds.len() {
        told += &match &script.end {
            End::Said => "Terminate\n".to_owned(),
            End::Closed => "closed\n".to_owned(),
            End::Torn(bytes) => format!("{} bytes more, and closed\n", bytes.len()),
            End::Breach(sent) => format!("{}\n", sent.story),
        };
    }
    told
}

/// Another client, of the same names, which finds what it has left and nothing else.
async fn neighbour(address: String, number: usize, is_over: Arc<AtomicBool>) -> Result<()> {
    let own = format!("neighbour {number}");
    let parameters = [("user", APP), ("database", APP), ("application_name", &own)];
    while !is_over.load(Ordering::Relaxed) {
        let mut wire = Wire::connect(&address, &parameters).await?;
        let text = format!("SELECT 'of {own}', $1::text");
        wire.ask(&[parse("s1", &text), sync()].concat()).await?;
        for _ in 0..20 {
            let asked = [bind("", "s1", Some("x")), execute("", 0), sync()].concat();
            for bytes in [asked, query("SHOW application_name")] {
                let answer = wire.ask(&bytes).await?;
                let row = answer.iter().find(|message| message.kind == b'D');
                let found = row.map(|row| row.columns().join(" ")).unwrap_or_default();
                anyhow::ensure!(found.contains(&own), "{own} finds {found:?}: {answer:?}");
            }
        }
    }
    Ok(())
}

fn print(done: &Done, seed: u64) {
    let row = |at: usize| {
        let (mode, _) = MODES[at];
        let marker = format!(", {mode}: ");
        let differ = done
            .differences
            .iter()
            .filter(|head| head.contains(&marker))
            .count();
        vec![
            mode.to_owned(),
            done.compared[at].to_string(),
            differ.to_string(),
        ]
    };
    let rows: Vec<_> = (0..MODES.len()).map(row).collect();
    say(report::table(
        &["mode", "sessions compared", "that differ"],
        &rows,
    ));
    say(format!(
        "seed {seed}: {} sessions drawn, {} of them cut off inside a round and {} that broke the protocol; {} rounds, {} \
         messages, {} answers of PostgreSQL",
        done.sessions, done.torn, done.breaches, done.rounds, done.messages, done.answers
    ));
}
