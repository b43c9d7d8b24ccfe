//! At which step of each change its candidate is hurt. Pure.

use std::time::Duration;

use super::harm::Harm;
use super::steps::Step;

/// Every other time it happens the moment a step is seen, else within this time of it: as long as a step lasts.
const WITHIN: Duration = Duration::from_millis(40);

/// What happens in one change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drawn {
    pub harm: Harm,
    /// It happens once this step is seen.
    pub step: Step,
    /// How long after that.
    pub after: Duration,
}

/// So many, the harms in turn; each meets every step at which it means something before it meets one again.
pub fn list(seed: u64, harms: &[Harm], count: usize) -> Vec<Drawn> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut left: Vec<Vec<Step>> = vec![Vec::new(); harms.len()];
    let mut list = Vec::new();
    for (harm, place) in harms.iter().zip(0..).cycle().take(count) {
        let steps: &mut Vec<Step> = &mut left[place];
        if steps.is_empty() {
            steps.extend(Step::ALL.iter().filter(|step| **step <= harm.last_step()));
            random.shuffle(steps);
        }
        let Some(step) = steps.pop() else { break };
        let after = match random.bool() {
            true => Duration::ZERO,
            false => WITHIN.mul_f64(random.f64()),
        };
        list.push(Drawn {
            harm: *harm,
            step,
            after,
        });
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_harm_meets_every_step_of_its_own_once_before_it_meets_one_again() {
        let harms = [Harm::KillNode, Harm::BlockReplay];
        let list = list(7, &harms, 18);
        let steps = |harm: Harm, count: usize| {
            let own = list.iter().filter(|drawn| drawn.harm == harm);
            let mut steps: Vec<_> = own.map(|drawn| drawn.step).take(count).collect();
            steps.sort_unstable();
            steps
        };
        assert_eq!(steps(Harm::KillNode, 9), Step::ALL);
        assert_eq!(steps(Harm::BlockReplay, 4), Step::ALL[..4]);
        assert!(list.iter().all(|drawn| drawn.after < WITHIN));
        assert_eq!(super::list(7, &harms, 18), list);
    }
}
