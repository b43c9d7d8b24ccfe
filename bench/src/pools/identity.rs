//! The identity oracle: clients that share one server live mixed lives at random, and every answer must be their own.
//! Each session has a token of its own, and everything it leaves on a server bears it; all of them use the same names.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use fastrand::Rng;
use trunkline_shared::service::clock;

use super::Ground;
use super::life::{Life, Step};

/// The most steps of one session, where the oracle is all there is.
pub const STEPS: usize = 40;
/// So many more once a client keeps the server: the others wait for it.
const STEPS_PINNED: usize = 3;

/// What was done, over all clients.
#[derive(Clone, Debug, Default)]
pub struct Done {
    /// Sessions.
    pub sessions: u64,
    /// How often each step.
    pub steps: BTreeMap<Step, u64>,
    /// Rows committed by each token.
    pub committed: Vec<(String, u64)>,
}

/// How a session ends.
#[derive(Clone, Copy, Debug)]
enum End {
    /// Terminate.
    Said,
    /// The socket is closed.
    Closed,
    /// In the middle of a message.
    Torn,
    /// With a query under way.
    Asking,
    /// In a transaction.
    InTransaction,
}

const ENDS: [End; 5] = [
    End::Said,
    End::Closed,
    End::Torn,
    End::Asking,
    End::InTransaction,
];

/// Lives one session after another, of so many steps at the most, until the time is over. The first answer that is
/// another's ends it.
pub async fn client(
    ground: &Ground,
    number: usize,
    (seed, steps): (u64, usize),
    time: Duration,
) -> Result<Done> {
    let mut rng = Rng::with_seed(seed.wrapping_add(number as u64));
    let until = clock::now() + time;
    let mut done = Done::default();
    while clock::now() < until {
        let token = format!("c{number}s{}", done.sessions);
        let mut life = Life::begin(ground, &token).await?;
        let lived = live(&mut life, steps, &mut rng, &mut done).await;
        lived.with_context(|| format!("{token}, after {}", life.story()))?;
        done.committed.push((token, life.committed));
        done.sessions += 1;
        end(life, *rng.choice(&ENDS).unwrap_or(&End::Said)).await?;
    }
    Ok(done)
}

async fn live(life: &mut Life, steps: usize, rng: &mut Rng, done: &mut Done) -> Result<()> {
    let all = Step::value_variants();
    let mut left = rng.usize(1..=steps);
    while left > 0 {
        left -= 1;
        let was_pinned = life.is_pinned;
        let step = all[rng.usize(..all.len())];
        life.step(step, rng)
            .await
            .with_context(|| format!("{step:?}"))?;
        *done.steps.entry(step).or_default() += 1;
        if life.is_pinned && !was_pinned {
            left = left.min(STEPS_PINNED);
        }
    }
    Ok(())
}

async fn end(mut life: Life, end: End) -> Result<()> {
    let bytes = match end {
        End::Said => super::wire::terminate(),
        End::Closed => return Ok(()),
        End::Torn => {
            let mut whole = super::wire::query(&format!("SELECT '{}'", life.token));
            whole.truncate(whole.len() / 2);
            whole
        }
        End::Asking => super::wire::query("SELECT pg_sleep(0.2)"),
        End::InTransaction => {
            let begin = super::wire::query("BEGIN");
            let row = life.insert(0);
            life.wire.ask(&begin).await?;
            life.wire.ask(&super::wire::query(&row)).await?;
            return Ok(());
        }
    };
    life.wire.send(&bytes).await
}

/// Every row that a session has committed is there, and no other.
pub async fn count(ground: &Ground, done: &[Done]) -> Result<u64> {
    let rows = ground
        .direct
        .query("SELECT who, count(*) FROM seen GROUP BY who", &[])
        .await?;
    let mut found: BTreeMap<String, i64> =
        rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    let mut all = 0;
    for (token, committed) in done.iter().flat_map(|done| &done.committed) {
        let rows = found.remove(token).unwrap_or(0);
        if u64::try_from(rows) != Ok(*committed) {
            bail!("{token} has committed {committed} rows, and {rows} are there");
        }
        all += committed;
    }
    match found.first_key_value() {
        Some((token, rows)) => bail!("{rows} rows of {token} are there, which committed none"),
        None => Ok(all),
    }
}
