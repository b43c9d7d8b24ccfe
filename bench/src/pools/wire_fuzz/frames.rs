//! What a session is answered, without what differs between two sessions that are answered alike.

use std::collections::BTreeMap;

use crate::pools::wire::Message;

/// The longest body that is shown, bytes.
const SHOWN: usize = 200;

/// What came of a round, or of a log-in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// Messages, a line each.
    pub lines: Vec<String>,
    /// What the server reports, as last heard, in this round.
    pub reported: BTreeMap<String, String>,
    /// Notifications, in any order among the messages.
    pub notified: Vec<String>,
    /// How the session has ended, if it has.
    pub end: Option<Ended>,
}

/// How a session ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// By the other side, with a FATAL of this code, or without a word.
    Closed(Option<String>),
    /// Nothing came within the limit, though the answer was not over.
    Hangs,
}

impl Answer {
    /// Takes one message.
    pub fn take(&mut self, message: &Message) {
        match message.kind {
            // Process and secret, of which each session has its own.
            b'K' => {}
            b'S' => {
                let text = String::from_utf8_lossy(&message.body).into_owned();
                if let Some((name, value)) = text.trim_end_matches('\0').split_once('\0') {
                    self.reported.insert(name.to_owned(), value.to_owned());
                }
            }
            // The process that notifies comes first.
            b'A' => {
                let rest = message.body.get(4..).unwrap_or_default();
                self.notified
                    .push(String::from_utf8_lossy(rest).into_owned());
            }
            b'E' | b'N' => self.lines.push(complaint(message)),
            b'T' => self.lines.push(format!("T {}", columns(&message.body))),
            kind => {
                let line = format!("{} {}", char::from(kind), shown(&message.body));
                self.lines.push(line);
            }
        }
    }
}

/// The fields that tell what is wrong. Where in PostgreSQL's source it was found is left out, and the names of
/// statements, of which a pooled client's have others on the server.
fn complaint(message: &Message) -> String {
    let mut line = char::from(message.kind).to_string();
    for code in *b"VCMDHP" {
        let text = message.field(code);
        if !text.is_empty() {
            line += &format!(" {}:{}", char::from(code), without_statements(&text));
        }
    }
    line
}

fn without_statements(text: &str) -> String {
    const BEFORE: &str = "prepared statement \"";
    let Some((before, rest)) = text.split_once(BEFORE) else {
        return text.to_owned();
    };
    let after = rest.split_once('"').map_or("", |(_, after)| after);
    format!("{before}{BEFORE}?\"{after}")
}

/// Names and types of columns: which table they are of is another number in every session with a table of its own.
fn columns(body: &[u8]) -> String {
    let mut rest = body.get(2..).unwrap_or_default();
    let mut columns = Vec::new();
    while let Some(end) = rest.iter().position(|byte| *byte == 0) {
        let (name, after) = rest.split_at(end);
        let Some((fixed, tail)) = after.get(1..).and_then(|after| after.split_at_checked(18))
        else {
            break;
        };
        let name = String::from_utf8_lossy(name);
        columns.push(format!("{name}:{:?}", &fixed[6..]));
        rest = tail;
    }
    columns.join(" ")
}

fn shown(body: &[u8]) -> String {
    let text = body.escape_ascii().to_string();
    match text.get(..SHOWN) {
        Some(beginning) if text.len() > SHOWN => {
            let sum = body.iter().fold(0u64, |sum, byte| {
                sum.wrapping_mul(31).wrapping_add(u64::from(*byte))
            });
            format!("{beginning}... of {} bytes, sum {sum:x}", body.len())
        }
        Some(_) | None => text,
    }
}

/// In what the two differ, in words; nothing if they are alike.
pub fn difference(direct: &Answer, routed: &Answer) -> Option<String> {
    let mut told = Vec::new();
    let lines = direct.lines.len().max(routed.lines.len());
    if let Some(at) = (0..lines).find(|at| !alike(direct.lines.get(*at), routed.lines.get(*at))) {
        for (who, lines) in [("PostgreSQL", &direct.lines), ("the router", &routed.lines)] {
            let from = at.saturating_sub(2);
            told.push(format!("{who} says, from message {from} on:"));
            let some = lines.iter().skip(from).take(6);
            told.extend(some.map(|line| format!("    {line}")));
        }
    }
    for (name, value) in &direct.reported {
        let other = routed.reported.get(name);
        if other != Some(value) {
            told.push(format!(
                "{name}: PostgreSQL reports {value:?}, the router {other:?}"
            ));
        }
    }
    // A router may say again what is so.
    if direct.notified != routed.notified {
        let both = (&direct.notified, &routed.notified);
        told.push(format!("notifications {both:?}"));
    }
    if direct.end != routed.end {
        let both = (&direct.end, &routed.end);
        told.push(format!(
            "the end: PostgreSQL {:?}, the router {:?}",
            both.0, both.1
        ));
    }
    (!told.is_empty()).then(|| told.join("\n"))
}

/// Whether it is the same answer. What a statement of the client's own is refused for in a transaction that has failed can differ: on a
/// server that has not prepared it yet the transaction's failure comes first, and it cannot be prepared.
fn alike(direct: Option<&String>, routed: Option<&String>) -> bool {
    let are_errors = |own: &String, other: &String| {
        own.starts_with("E V:ERROR") && other.starts_with("E V:ERROR C:25P02")
    };
    direct == routed
        || direct
            .zip(routed)
            .is_some_and(|(own, other)| are_errors(own, other))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(messages: &[(u8, &[u8])]) -> Answer {
        let mut answer = Answer::default();
        for (kind, body) in messages {
            answer.take(&Message {
                kind: *kind,
                body: body.to_vec(),
            });
        }
        answer
    }

    #[test]
    fn what_each_session_has_of_its_own_is_no_difference() {
        let error = |name: &str, line: &str| {
            format!(
                "SERROR\0VERROR\0C26000\0Mprepared statement \"{name}\" does not exist\0L{line}\0\0"
            )
        };
        let one = answer(&[
            (b'K', b"\0\0\0\x01abcd"),
            (b'S', b"TimeZone\0UTC\0"),
            (b'E', error("s1", "4").as_bytes()),
            (b'A', b"\0\0\0\x01wire\0\0"),
        ]);
        let two = answer(&[
            (b'A', b"\0\0\0\x02wire\0\0"),
            (b'E', error("trunkline_7", "9").as_bytes()),
            (b'S', b"TimeZone\0UTC\0"),
        ]);
        assert_eq!(difference(&one, &two), None);
    }

    #[test]
    fn in_a_failed_transaction_one_refusal_is_as_good_as_another() {
        let round = |code: &str, status: &[u8]| {
            let error = format!("SERROR\0VERROR\0C{code}\0Mno\0\0");
            answer(&[(b'E', error.as_bytes()), (b'Z', status)])
        };
        let own = round("08P01", b"E");
        assert_eq!(difference(&own, &round("25P02", b"E")), None);
        assert!(difference(&own, &round("25P02", b"I")).is_some());
        assert!(difference(&round("25P02", b"E"), &own).is_some());
    }

    #[test]
    fn every_difference_is_told() {
        let row = |text: &str| answer(&[(b'D', text.as_bytes()), (b'Z', b"I")]);
        assert!(difference(&row("one"), &row("two")).is_some());
        assert!(difference(&row("one"), &answer(&[(b'D', b"one")])).is_some());
        let long = |last: &str| row(&format!("{}{last}", "x".repeat(1000)));
        assert!(difference(&long("a"), &long("b")).is_some());
        let hangs = Answer {
            end: Some(Ended::Hangs),
            ..row("one")
        };
        assert!(difference(&row("one"), &hangs).is_some());
        assert!(difference(&answer(&[(b'S', b"a\0b\0")]), &answer(&[])).is_some());
    }
}
