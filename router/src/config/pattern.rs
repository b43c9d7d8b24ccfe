//! Names with `*` in them: which databases of clients an entry is for, and which cluster and database of PostgreSQL
//! that comes to. Pure.

use std::fmt;

/// A name in which each `*` stands for one character or more.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pattern {
    /// What stands before, between and behind the stars; one more than there are stars.
    parts: Vec<Box<str>>,
}

/// A pattern, letter by letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Letter {
    /// This one.
    Only(char),
    /// Any one: the first of a star.
    Any,
    /// Any number of any: the others of a star.
    Rest,
}

impl Pattern {
    /// Reads one. Every text is a pattern.
    pub fn new(text: &str) -> Self {
        Self {
            parts: text.split('*').map(Box::from).collect(),
        }
    }

    /// How many stars it has; with none it is a plain name.
    pub fn stars(&self) -> usize {
        self.parts.len().saturating_sub(1)
    }

    /// What stands before the first star.
    pub fn beginning(&self) -> &str {
        self.parts.first().map_or("", |part| part)
    }

    /// How many bytes are not stars. Of two patterns that match a name the longer one is meant.
    pub fn literal_length(&self) -> usize {
        self.parts.iter().map(|part| part.len()).sum()
    }

    /// What each star stands for in this name, the earlier ones as little as possible; `None` if the name does not
    /// match.
    pub fn taken<'a>(&self, name: &'a str) -> Option<Vec<&'a str>> {
        let (first, others) = self.parts.split_first()?;
        let mut rest = name.strip_prefix(&**first)?;
        let Some((last, between)) = others.split_last() else {
            return rest.is_empty().then(Vec::new);
        };
        let mut taken = Vec::with_capacity(others.len());
        for part in between {
            let one = rest.chars().next()?.len_utf8();
            let at = one + rest.get(one..)?.find(&**part)?;
            taken.push(rest.get(..at)?);
            rest = rest.get(at + part.len()..)?;
        }
        let own = rest.strip_suffix(&**last)?;
        taken.push(own);
        (!own.is_empty()).then_some(taken)
    }

    /// Whether this name matches.
    pub fn matches(&self, name: &str) -> bool {
        self.taken(name).is_some()
    }

    /// The name that it becomes: each star is what the star of the same place stood for elsewhere.
    pub fn filled(&self, taken: &[&str]) -> String {
        let mut name = String::new();
        for (at, part) in self.parts.iter().enumerate() {
            if let Some(taken) = at.checked_sub(1).and_then(|star| taken.get(star)) {
                name.push_str(taken);
            }
            name.push_str(part);
        }
        name
    }

    /// Whether a name could match both.
    pub fn overlaps(&self, other: &Pattern) -> bool {
        let (ours, theirs) = (self.letters(), other.letters());
        // `is_shared[at]`: what is left of ours can be the same as what is left of theirs from `at` on.
        let mut is_shared = vec![false; theirs.len() + 1];
        for i in (0..=ours.len()).rev() {
            let below = std::mem::replace(&mut is_shared, vec![false; theirs.len() + 1]);
            for j in (0..=theirs.len()).rev() {
                let (own, other) = (ours.get(i).copied(), theirs.get(j).copied());
                let beside = is_shared.get(j + 1).copied().unwrap_or(false);
                let across = below.get(j + 1).copied().unwrap_or(false);
                let under = below.get(j).copied().unwrap_or(false);
                let is_so = match (own, other) {
                    (None, None) => true,
                    (Some(Letter::Rest), None) => under,
                    (None, Some(Letter::Rest)) => beside,
                    (None, Some(_)) | (Some(_), None) => false,
                    // It ends here, or takes one more of the other's.
                    (Some(Letter::Rest), Some(_)) | (Some(_), Some(Letter::Rest)) => {
                        under || beside
                    }
                    (Some(Letter::Only(one)), Some(Letter::Only(two))) => one == two && across,
                    (Some(Letter::Any), Some(_)) | (Some(_), Some(Letter::Any)) => across,
                };
                if let Some(place) = is_shared.get_mut(j) {
                    *place = is_so;
                }
            }
        }
        is_shared.first().copied().unwrap_or(false)
    }

    fn letters(&self) -> Vec<Letter> {
        let mut letters = Vec::new();
        for (at, part) in self.parts.iter().enumerate() {
            if at > 0 {
                letters.extend([Letter::Any, Letter::Rest]);
            }
            letters.extend(part.chars().map(Letter::Only));
        }
        letters
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.parts.join("*"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(pattern: &str, name: &str) -> Option<Vec<String>> {
        let taken = Pattern::new(pattern)
            .taken(name)?
            .into_iter()
            .map(str::to_owned)
            .collect();
        Some(taken)
    }

    #[test]
    fn a_star_stands_for_one_character_or_more() {
        assert_eq!(taken("shard_*", "shard_7").unwrap(), ["7"]);
        assert_eq!(taken("shard_*", "shard_"), None);
        assert_eq!(taken("*_ro", "app_ro").unwrap(), ["app"]);
        assert_eq!(taken("*_ro", "_ro"), None);
        assert_eq!(taken("*", "ä").unwrap(), ["ä"]);
        assert_eq!(taken("a*a", "aa"), None);
        assert_eq!(taken("a*a", "aaa").unwrap(), ["a"]);
        assert_eq!(taken("app", "app").unwrap(), Vec::<String>::new());
        assert_eq!(taken("app", "apple"), None);
    }

    #[test]
    fn of_several_stars_the_earlier_ones_take_little() {
        assert_eq!(
            taken("*_shard_*", "app_shard_7_shard_8").unwrap(),
            ["app", "7_shard_8"]
        );
        assert_eq!(taken("*__*", "a___b").unwrap(), ["a", "_b"]);
        assert_eq!(taken("**", "äöü").unwrap(), ["ä", "öü"]);
        assert_eq!(taken("**", "ä"), None);
        assert_eq!(taken("a*b*c", "abbc"), None);
        assert_eq!(taken("a*b*c", "axbyc").unwrap(), ["x", "y"]);
    }

    #[test]
    fn what_the_stars_took_is_put_elsewhere() {
        let filled = |template: &str| Pattern::new(template).filled(&["a", "b"]);
        assert_eq!(filled("shard-*"), "shard-a");
        assert_eq!(filled("*-*.x"), "a-b.x");
        assert_eq!(filled("app"), "app");
    }

    #[test]
    fn two_patterns_overlap_if_a_name_could_match_both() {
        let overlap = |one: &str, two: &str| {
            let (one, two) = (Pattern::new(one), Pattern::new(two));
            assert_eq!(one.overlaps(&two), two.overlaps(&one));
            one.overlaps(&two)
        };
        assert!(!overlap("app_*", "web_*"));
        assert!(overlap("app_*", "*_app"));
        assert!(overlap("*a", "a*"));
        assert!(!overlap("*_rw", "*_ro"));
        assert!(overlap("a*", "ab"));
        assert!(!overlap("ab*", "ab"));
        assert!(overlap("*", "x"));
        assert!(overlap("a*b*c", "a*c"));
        assert!(!overlap("a*b", "a"));
        assert!(!overlap("**", "x"));
        assert!(overlap("**", "xy"));
    }
}
