//! `synchronous_standby_names` as a value: what the agent writes there and reads back.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use trunkline_shared::cluster::MemberName;

/// Stands where commits are to wait although nobody is known to wait for. No member can have this name.
const PLACEHOLDER: &str = "__no_synchronous_standby__";

/// Whom commits wait for.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum SyncNames {
    /// Nobody: replication is asynchronous.
    #[default]
    Nobody,
    /// Nobody who exists: no commit is acknowledged.
    Blocked,
    /// Every one of these.
    All(BTreeSet<MemberName>),
    /// So many of these, whichever.
    Any(u32, BTreeSet<MemberName>),
    /// A text that the agent does not write: a user's, or one that names more than it waits for.
    Other(Arc<str>),
}

impl SyncNames {
    /// All of these; nobody if there are none.
    pub fn all(names: BTreeSet<MemberName>) -> Self {
        if names.is_empty() {
            SyncNames::Nobody
        } else {
            SyncNames::All(names)
        }
    }

    /// The names, and how many of them have a commit before it is acknowledged. Of a text of others nothing
    /// is taken for granted.
    pub fn waited_for(&self) -> (BTreeSet<MemberName>, usize) {
        match self {
            SyncNames::Nobody | SyncNames::Blocked | SyncNames::Other(_) => (BTreeSet::new(), 0),
            SyncNames::All(names) => (names.clone(), names.len()),
            SyncNames::Any(count, names) => {
                let count = usize::try_from(*count).unwrap_or(usize::MAX);
                (names.clone(), count.min(names.len()))
            }
        }
    }
}

fn listed(names: &BTreeSet<MemberName>) -> String {
    let quoted = names
        .iter()
        .map(|name| format!("\"{}\"", name.as_str().replace('"', "\"\"")));
    quoted.collect::<Vec<_>>().join(",")
}

impl fmt::Display for SyncNames {
    /// The text of the parameter.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SyncNames::Nobody => Ok(()),
            SyncNames::Blocked => write!(f, "\"{PLACEHOLDER}\""),
            SyncNames::All(names) if names.len() == 1 => f.write_str(&listed(names)),
            SyncNames::All(names) => write!(f, "{} ({})", names.len(), listed(names)),
            SyncNames::Any(count, names) => write!(f, "ANY {count} ({})", listed(names)),
            SyncNames::Other(text) => f.write_str(text),
        }
    }
}

impl From<&str> for SyncNames {
    /// Reads the text of the parameter, in every form PostgreSQL takes.
    fn from(text: &str) -> Self {
        read(text).unwrap_or_else(|| SyncNames::Other(Arc::from(text)))
    }
}

fn read(text: &str) -> Option<SyncNames> {
    let text = text.trim();
    if text.is_empty() {
        return Some(SyncNames::Nobody);
    }
    let Some((head, rest)) = text.split_once('(').filter(|(head, _)| !head.contains('"')) else {
        // A list without a number waits for the first that is connected.
        let names = names_of(text)?;
        return (names.len() == 1).then_some(SyncNames::All(names).or_blocked());
    };
    let names = names_of(rest.trim_end().strip_suffix(')')?)?;
    let words: Vec<&str> = head.split_whitespace().collect();
    let number = |word: &str| u32::from_str(word).ok();
    match words.as_slice() {
        [any, count] if any.eq_ignore_ascii_case("any") => {
            Some(SyncNames::Any(number(count)?, names))
        }
        [first, count] if first.eq_ignore_ascii_case("first") => first_of(number(count)?, names),
        [count] => first_of(number(count)?, names),
        _ => None,
    }
}

/// Only where all the names are waited for it is certain which.
fn first_of(count: u32, names: BTreeSet<MemberName>) -> Option<SyncNames> {
    let is_all = usize::try_from(count).is_ok_and(|count| count >= names.len());
    is_all.then_some(SyncNames::All(names).or_blocked())
}

impl SyncNames {
    fn or_blocked(self) -> Self {
        match &self {
            SyncNames::All(names)
                if names.len() == 1 && names.iter().all(|name| name.as_str() == PLACEHOLDER) =>
            {
                SyncNames::Blocked
            }
            SyncNames::All(_)
            | SyncNames::Nobody
            | SyncNames::Blocked
            | SyncNames::Any(..)
            | SyncNames::Other(_) => self,
        }
    }
}

/// Names apart by commas, quoted or bare; `None` if one of them is `*` or the text is none.
fn names_of(text: &str) -> Option<BTreeSet<MemberName>> {
    let mut names = BTreeSet::new();
    let mut rest = text.trim();
    loop {
        let (name, after) = one_name(rest)?;
        if name == "*" || name.is_empty() {
            return None;
        }
        names.insert(MemberName::new(&name));
        rest = after.trim_start();
        match rest.strip_prefix(',') {
            Some(more) => rest = more.trim_start(),
            None => break,
        }
    }
    rest.is_empty().then_some(names)
}

fn one_name(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ', '"', '(', ')']).unwrap_or(text.len());
        return Some((text[..end].to_owned(), &text[end..]));
    };
    let mut name = String::new();
    let mut characters = quoted.char_indices().peekable();
    while let Some((at, c)) = characters.next() {
        match c {
            '"' if characters.peek().is_some_and(|(_, next)| *next == '"') => {
                characters.next();
                name.push('"');
            }
            '"' => return Some((name, &quoted[at + 1..])),
            other => name.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(names: &[&str]) -> BTreeSet<MemberName> {
        names.iter().map(|name| MemberName::new(name)).collect()
    }

    #[test]
    fn what_is_written_reads_back() {
        for names in [
            SyncNames::Nobody,
            SyncNames::Blocked,
            SyncNames::All(set(&["b"])),
            SyncNames::All(set(&["pg-1.example", "say \"x\"", "ünix"])),
            SyncNames::Any(2, set(&["b", "c", "d"])),
        ] {
            assert_eq!(SyncNames::from(names.to_string().as_str()), names);
        }
    }

    #[test]
    fn what_patroni_or_a_user_wrote_is_read_and_nothing_uncertain_is_trusted() {
        for (text, names) in [
            ("b", SyncNames::All(set(&["b"]))),
            ("2 (b, \"c\")", SyncNames::All(set(&["b", "c"]))),
            ("FIRST 1 (b)", SyncNames::All(set(&["b"]))),
            ("any 1 (b,c)", SyncNames::Any(1, set(&["b", "c"]))),
            ("*", SyncNames::Other("*".into())),
            ("1 (b,c)", SyncNames::Other("1 (b,c)".into())),
            ("b, c", SyncNames::Other("b, c".into())),
            ("\"b", SyncNames::Other("\"b".into())),
        ] {
            assert_eq!(SyncNames::from(text), names, "{text}");
        }
        assert_eq!(SyncNames::from("*").waited_for(), (set(&[]), 0));
    }
}
