//! What `auth.query` has said of users, for as long as that is taken for true. Pure.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use trunkline_shared::cluster::Moment;

use crate::auth::users::User;

/// How long an answer is used without asking again, be it a user or none: were the two times different, how long a
/// log-in takes would tell which it was. A user that is dropped or has expired comes in for this long; who fails to
/// prove itself is asked for once more in any case: a changed password is good at the next try, and at once where its salt
/// is the same (MD5).
pub const GOOD_FOR: Duration = Duration::from_secs(10);
/// The most answers that are kept: names are whatever clients say.
const MAX_ANSWERS: usize = 10_000;

/// A cluster, and a name of a user there.
pub type Who = (Box<str>, Box<str>);

/// An answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The user; none if there is no such one, or it may not log in.
    pub user: Option<Arc<User>>,
    /// When it was asked for.
    pub at: Moment,
}

/// The answers.
#[derive(Debug, Default)]
pub struct Answers {
    /// With the number of each.
    by_name: BTreeMap<Arc<Who>, (u64, Answer)>,
    /// Number, time and name of each, the oldest first; one that was noted again since stands here twice.
    in_order: VecDeque<(u64, Moment, Arc<Who>)>,
    last: u64,
}

impl Answers {
    /// What is to be taken for true now; none where it must be asked.
    pub fn find(&self, who: &Who, now: Moment) -> Option<&Answer> {
        let (_, found) = self.by_name.get(who)?;
        Some(found).filter(|answer| now.since(answer.at) < GOOD_FOR)
    }

    /// Notes an answer, and forgets those that are out of date, and the oldest ones where there are too many.
    pub fn note(&mut self, who: Who, answer: Answer) {
        let (who, now) = (Arc::new(who), answer.at);
        self.last += 1;
        self.in_order.push_back((self.last, now, who.clone()));
        self.by_name.insert(who, (self.last, answer));
        while let Some((number, at, oldest)) = self.in_order.front() {
            if now.since(*at) < GOOD_FOR && self.in_order.len() <= MAX_ANSWERS {
                break;
            }
            if self
                .by_name
                .get(oldest)
                .is_some_and(|(own, _)| own == number)
            {
                self.by_name.remove(oldest);
            }
            self.in_order.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const T: Moment = Moment(1_000_000_000_000);

    fn who(name: &str) -> Who {
        ("demo".into(), name.into())
    }

    fn answer(is_known: bool, at: Moment) -> Answer {
        let user = is_known.then(|| Arc::new(User::read("a", "pw".to_owned()).unwrap()));
        Answer { user, at }
    }

    fn is_user(answers: &Answers, name: &str, now: Moment) -> Option<bool> {
        let found = answers.find(&who(name), now);
        found.map(|answer| answer.user.is_some())
    }

    #[test]
    fn an_answer_is_good_for_its_time_and_the_later_one_counts() {
        let mut answers = Answers::default();
        answers.note(who("a"), answer(true, T));
        answers.note(who("b"), answer(false, T));
        let last = T + GOOD_FOR - Duration::from_millis(1);
        assert_eq!(is_user(&answers, "a", last), Some(true));
        assert_eq!(is_user(&answers, "b", last), Some(false));
        // Both end at once: a difference would tell one from the other.
        assert_eq!(is_user(&answers, "a", T + GOOD_FOR), None);
        assert_eq!(is_user(&answers, "b", T + GOOD_FOR), None);
        assert!(answers.find(&("other".into(), "a".into()), T).is_none());
        answers.note(who("a"), answer(false, last));
        assert_eq!(is_user(&answers, "a", T + GOOD_FOR), Some(false));
        // The entry that was replaced takes nothing away when its time is over.
        answers.note(who("c"), answer(true, T + GOOD_FOR));
        assert_eq!(is_user(&answers, "a", T + GOOD_FOR), Some(false));
        assert_eq!(answers.by_name.len(), 2);
    }

    #[test]
    fn answers_are_bounded_in_number() {
        let mut answers = Answers::default();
        for number in 0..MAX_ANSWERS + 5 {
            answers.note(who(&format!("x{number}")), answer(false, T));
        }
        assert_eq!(answers.by_name.len(), MAX_ANSWERS);
        assert_eq!(answers.in_order.len(), MAX_ANSWERS);
        assert_eq!(is_user(&answers, "x4", T), None);
        assert_eq!(is_user(&answers, "x5", T), Some(false));
        for _ in 0..MAX_ANSWERS * 2 {
            answers.note(who("one"), answer(true, T));
        }
        assert!(answers.in_order.len() <= MAX_ANSWERS);
        assert_eq!(is_user(&answers, "one", T), Some(true));
    }
}
