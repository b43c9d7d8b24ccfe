//! Runs every script of `tests/pool`: what a pool does about what happens to it.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

use std::collections::BTreeMap;
use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use goldenscript::{ArgumentConsumer, Command, Context, Runner};
use test_each_file::test_each_path;
use trunkline_router::pool::budget::{Budget, Budgets};
use trunkline_router::pool::gate::Gate;
use trunkline_router::pool::state::{Effect, Failure, PoolState, Rules, ServerId, WaiterId};
use trunkline_shared::cluster::{Moment, quantity};

test_each_path! { in "./router/tests/pool" => run }

fn run(path: &Path) {
    goldenscript::run(&mut Script::default(), path).expect("script");
}

/// Two pools at most, `p` and `q`, of one database and one user.
struct Script {
    now: Moment,
    budgets: Budgets,
    rules: Rules,
    gate: Arc<Gate>,
    pools: BTreeMap<String, PoolState>,
}

impl Default for Script {
    fn default() -> Self {
        let budget = |limit| Arc::new(Budget::new(limit));
        Self {
            now: Moment(1_000_000_000_000_000),
            budgets: Budgets {
                pool: budget(2),
                database: budget(usize::MAX),
                user: budget(usize::MAX),
            },
            rules: Rules {
                min_size: 0,
                reserve_size: 0,
                reserve_after: Duration::from_secs(5),
                lifetime: Duration::from_secs(3600),
                idle_timeout: Duration::from_secs(600),
                longest_pause: Duration::from_secs(1),
            },
            gate: Arc::default(),
            pools: BTreeMap::new(),
        }
    }
}

impl Script {
    fn set_rules(&mut self, args: &mut ArgumentConsumer<'_>) {
        let mut number =
            |key: &str, or: usize| args.take_key(key).map_or(or, |n| n.parse().unwrap());
        self.budgets.pool.set_limit(number("size", 2));
        self.budgets.database.set_limit(number("db", usize::MAX));
        self.budgets.user.set_limit(number("user", usize::MAX));
        self.rules.min_size = number("min", 0);
        self.rules.reserve_size = number("reserve", 0);
    }
}

impl Script {
    /// What an operator tells the database.
    fn tell_the_database(&self, word: &str) {
        match word {
            "renew" => self.gate.renew(self.now),
            _ => self.gate.pause(word == "pause"),
        }
    }
}

impl Runner for Script {
    type Command = Command;

    fn run(&mut self, command: &Command, context: &Context) -> Result<String, Box<dyn Error>> {
        let mut args = command.consume_args();
        match command.name.as_str() {
            "rules" => {
                self.set_rules(&mut args);
                args.reject_next()?;
                return Ok(String::new());
            }
            "after" => {
                let text = args.next_pos().unwrap();
                self.now = self.now + quantity::duration(text).unwrap();
                return Ok(String::new());
            }
            word @ ("pause" | "resume" | "renew") => {
                self.tell_the_database(word);
                return Ok(String::new());
            }
            _ => {}
        }
        let pool = context.prefix.clone().unwrap_or_else(|| "p".to_owned());
        let budgets = match pool.as_str() {
            // The other pool has a size of its own.
            "q" => Budgets {
                pool: Arc::new(Budget::new(2)),
                ..self.budgets.clone()
            },
            _ => self.budgets.clone(),
        };
        let (rules, gate) = (self.rules.clone(), self.gate.clone());
        let state = self
            .pools
            .entry(pool)
            .or_insert_with(|| PoolState::new(rules, budgets).behind(gate));
        let (mut effects, mut said) = (Vec::new(), Vec::new());
        let word = args.next_pos();
        let number = || word.unwrap()[1..].parse::<u32>().unwrap();
        let now = self.now;
        match command.name.as_str() {
            "checkout" => {
                let waiter = WaiterId(u64::from(number()));
                if let Some(server) = state.checkout(waiter, now, &mut effects) {
                    said.push(format!("c{} has s{}", waiter.0, server.0));
                }
            }
            "leave" => state.leave(WaiterId(u64::from(number()))),
            "checkin" => state.checkin(ServerId(number()), now, &mut effects),
            "lost" => state.lost(ServerId(number()), now, &mut effects),
            "connected" => state.connected(ServerId(number()), now, &mut effects),
            "failed" => {
                let is_lasting = args.next_pos() == Some("lasting");
                let failure = [Failure::Passing, Failure::Lasting][usize::from(is_lasting)];
                state.connect_failed(ServerId(number()), failure, now, &mut effects);
            }
            "maintain" => state.maintain(now, &mut effects),
            "ahead" => state.open_ahead(number().try_into().unwrap(), now, &mut effects),
            "give_up_ahead" => said.push(state.give_up_ahead(&mut effects).to_string()),
            "evict" => said.push(state.evict(&mut effects).to_string()),
            "hand_away" => said.push(format!("{:?}", state.hand_away().map(|s| s.0))),
            "adopt" => {
                said.push(format!(
                    "adopted as s{}",
                    state.adopt(now, now, &mut effects).0
                ));
            }
            "close" => state.close_all(&mut effects),
            "over" => said.push(state.is_over(now).to_string()),
            "counts" => said.push(format!("{:?}", state.counts())),
            other => return Err(format!("no such command: {other}").into()),
        }
        args.reject_next()?;
        said.extend(effects.iter().map(|effect| told(effect, now)));
        Ok(said.join("\n"))
    }
}

fn told(effect: &Effect, now: Moment) -> String {
    match effect {
        Effect::Connect(server) => format!("connect s{}", server.0),
        Effect::Grant { waiter, server } => format!("c{} gets s{}", waiter.0, server.0),
        Effect::Close(server, why) => format!("close s{} ({why:?})", server.0),
        Effect::Refuse { waiter, why } => format!("c{} refused ({why:?})", waiter.0),
        Effect::Starved => "starved".to_owned(),
        Effect::LookAt(at) => format!("look again in {:?}", now.until(*at)),
    }
}
