//! A failing seed with as few faults as still break the same invariant: delta debugging over the faults that were drawn.

use std::fmt;
use std::str::FromStr;

use super::{Coverage, Failure, Invariant, Options, play};

/// Faults of a seed, by their number in the order of their times.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FaultSet(u64);

impl FaultSet {
    /// Whether this fault is one of them. A seed draws fewer than 64.
    pub fn contains(self, number: u8) -> bool {
        self.0 & FaultSet::bit(number) != 0
    }

    /// Whether it names none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    fn bit(number: u8) -> u64 {
        1_u64.checked_shl(u32::from(number)).unwrap_or(0)
    }

    fn with(self, numbers: &[u8]) -> Self {
        let bits = numbers.iter().map(|number| FaultSet::bit(*number));
        FaultSet(bits.fold(self.0, |all, bit| all | bit))
    }
}

impl fmt::Display for FaultSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let numbers = (0..64).filter(|number| self.contains(*number));
        let words: Vec<_> = numbers.map(|number: u8| number.to_string()).collect();
        f.write_str(&words.join(","))
    }
}

impl FromStr for FaultSet {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers = text.split(',').map(|word| {
            let number = word.trim().parse().ok();
            number.filter(|number| *number < 64)
        });
        let numbers: Option<Vec<u8>> = numbers.collect();
        let numbers = numbers.ok_or_else(|| {
            format!("\"{text}\" names no faults; write their numbers as 1,4, each below 64")
        })?;
        Ok(FaultSet::default().with(&numbers))
    }
}

/// A failing seed, made as small as it gets.
#[derive(Clone, Debug)]
pub struct Shrunk {
    /// The seed, and all that is to be played of it.
    pub seed: u64,
    /// With what is left out.
    pub options: Options,
    /// How many faults were drawn.
    pub drawn: u8,
    /// How many are left.
    pub left: u8,
    /// What is broken still.
    pub failure: Failure,
}

/// So many histories are played at the most to make one smaller.
const MOST_PLAYED: u32 = 500;

/// Leaves out faults, at first half of them, at last one by one, as long as the same invariant is broken. What is left
/// is needed: without any single one of it, that invariant holds. `None` if the seed breaks none.
pub fn shrink(seed: u64, options: Options) -> Option<Shrunk> {
    let played = |options| play(seed, options, &mut Coverage::default(), false);
    let first = played(options);
    let mut failure = first.failure?;
    let awaited = failure.invariant;
    let (mut options, mut left) = (options, numbers(first.drawn, options.without));
    let (mut size, mut count) = (left.len().div_ceil(2), 0);
    while size > 0 && count < MOST_PLAYED {
        let before = left.len();
        let mut at = 0;
        while at < left.len() && count < MOST_PLAYED {
            let chunk = &left[at..left.len().min(at + size)];
            let fewer = Options {
                without: options.without.with(chunk),
                ..options
            };
            count += 1;
            let still = played(fewer).failure;
            match still.filter(|failure| failure.invariant == awaited) {
                Some(still) => {
                    (options, failure) = (fewer, still);
                    left.drain(at..(at + size).min(left.len()));
                }
                None => at += size,
            }
        }
        let is_least = size == 1 && left.len() == before;
        size = match (is_least, left.len() == before) {
            (true, _) => 0,
            (false, true) => size.div_ceil(2),
            (false, false) => size.min(left.len().div_ceil(2)),
        };
    }
    Some(Shrunk {
        seed,
        options,
        drawn: first.drawn,
        left: u8::try_from(left.len()).unwrap_or(u8::MAX),
        failure,
    })
}

fn numbers(drawn: u8, without: FaultSet) -> Vec<u8> {
    (0..drawn)
        .filter(|number| !without.contains(*number))
        .collect()
}

impl Shrunk {
    /// Which invariant.
    pub fn invariant(&self) -> Invariant {
        self.failure.invariant
    }

    /// Its story, what was broken, and the command that plays it again.
    pub fn story(&self) -> String {
        let told = play(self.seed, self.options, &mut Coverage::default(), true);
        format!(
            "{}\nseed {}: {:?} broken at {:.3} s: {}\nby {} of {} faults; play it again: {}",
            told.story.unwrap_or_default(),
            self.seed,
            self.failure.invariant,
            self.failure.at as f64 / 1e9,
            self.failure.detail,
            self.left,
            self.drawn,
            again(self.seed, self.options),
        )
    }
}

/// The command that plays a seed again and tells its story.
pub fn again(seed: u64, options: Options) -> String {
    let mut words = format!("trunkline-bench simulate --replay {seed}");
    if !options.without.is_empty() {
        words += &format!(" --without {}", options.without);
    }
    if let Some(rule) = options.rule {
        words += &format!(" --break {}", rule.word());
    }
    if options.is_patient {
        words += " --patient";
    }
    words += &format!(" --members {}", options.members.unwrap_or(0));
    words + &format!(" --seconds {}", options.seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_is_read_as_it_is_written() {
        let set: FaultSet = "4, 1,63".parse().unwrap();
        assert_eq!(set.to_string(), "1,4,63");
        assert!(set.contains(4) && !set.contains(0) && !set.contains(200));
        assert!("1,64".parse::<FaultSet>().is_err() && "".parse::<FaultSet>().is_err());
        assert!(FaultSet::default().is_empty() && !set.is_empty());
    }
}
