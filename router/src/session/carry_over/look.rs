//! What a text of SQL does that outlives its transaction, as far as a look without a parser can tell: the
//! first words of each statement, and calls of a few functions. What functions, DO blocks and rules do inside
//! cannot be seen here.

use crate::protocol::exchange::{Act, Block};
use crate::protocol::settings::tracked;

/// Why a client keeps its server until it leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PinReason {
    /// The listener or the database says so.
    SessionMode,
    /// A setting that PostgreSQL does not report was set.
    Set,
    /// LISTEN.
    Listen,
    /// PREPARE in SQL.
    Prepare,
    /// A temporary table.
    TemporaryTable,
    /// A cursor WITH HOLD.
    HoldCursor,
    /// An advisory lock of the session.
    AdvisoryLock,
    /// LOAD.
    Load,
    /// A text too long to be looked at as a whole.
    LongText,
}

impl PinReason {
    /// Its name in logs and `SHOW CLIENTS`.
    pub fn name(self) -> &'static str {
        match self {
            PinReason::SessionMode => "session mode",
            PinReason::Set => "set",
            PinReason::Listen => "listen",
            PinReason::Prepare => "prepare",
            PinReason::TemporaryTable => "temporary table",
            PinReason::HoldCursor => "cursor with hold",
            PinReason::AdvisoryLock => "advisory lock",
            PinReason::Load => "load",
            PinReason::LongText => "long text",
        }
    }
}

/// What was seen in a text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Look {
    /// It is a BEGIN and nothing else.
    pub begins: bool,
    /// It may end a transaction.
    pub ends: bool,
    /// It ends the transaction, and does nothing else.
    pub only_ends: bool,
    /// State that cannot move to another server.
    pub pins: Option<PinReason>,
    /// It holds more than one statement.
    pub is_several: bool,
}

impl Look {
    /// What it does when it is executed.
    pub fn act(&self) -> Act {
        let block = match (self.ends, self.begins) {
            (true, _) => Block::MayEnd,
            (false, true) => Block::Begins,
            (false, false) => Block::Stays,
        };
        Act {
            block,
            drops: false,
        }
    }
}

/// Looks at a text.
pub fn look(sql: &[u8]) -> Look {
    let mut seen = Look::default();
    let mut at = 0;
    let mut statements = 0;
    while let Some(start) = skip_blank(sql, at) {
        if sql[start] == b';' {
            at = start + 1;
            continue;
        }
        statements += 1;
        begin(&sql[start..], &mut seen);
        at = body(sql, start, &mut seen);
    }
    seen.is_several = statements > 1;
    if statements != 1 {
        seen.begins = false;
        seen.only_ends = false;
    }
    seen
}

/// The first place from `at` that is neither blank nor comment.
fn skip_blank(sql: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match sql.get(at)? {
            letter if letter.is_ascii_whitespace() => at += 1,
            b'-' if sql.get(at + 1) == Some(&b'-') => at = line_end(sql, at),
            b'/' if sql.get(at + 1) == Some(&b'*') => at = comment_end(sql, at),
            _ => return Some(at),
        }
    }
}

fn line_end(sql: &[u8], at: usize) -> usize {
    memchr::memchr(b'\n', &sql[at..]).map_or(sql.len(), |end| at + end + 1)
}

/// Comments nest.
fn comment_end(sql: &[u8], at: usize) -> usize {
    let (mut at, mut depth) = (at + 2, 1);
    while depth > 0 {
        match sql.get(at..at + 2) {
            Some(b"/*") => (depth, at) = (depth + 1, at + 2),
            Some(b"*/") => (depth, at) = (depth - 1, at + 2),
            Some(_) => at += 1,
            None => return sql.len(),
        }
    }
    at
}

/// The words of a statement, in lower case, without what is between them.
struct Words<'a> {
    sql: &'a [u8],
    at: usize,
}

impl Words<'_> {
    /// The next word, cut at sixty-four letters; empty at the end or before something else.
    fn next(&mut self) -> String {
        let Some(start) = skip_blank(self.sql, self.at) else {
            return String::new();
        };
        let quoted = self.sql[start] == b'"';
        let from = start + usize::from(quoted);
        let rest = &self.sql[from..];
        let end = rest.iter().position(|b| !is_name(*b) && *b != b'.');
        let word = &rest[..end.unwrap_or(rest.len())];
        self.at = from + word.len() + usize::from(quoted);
        let word = &word[..word.len().min(64)];
        String::from_utf8_lossy(word).to_ascii_lowercase()
    }
}

fn is_name(letter: u8) -> bool {
    letter.is_ascii_alphanumeric() || letter == b'_' || letter == b'$' || letter >= 0x80
}

/// Judges a statement by its first words.
fn begin(sql: &[u8], seen: &mut Look) {
    // Most statements are none of these, and a first letter tells.
    if !matches!(sql[0] | 0x20, b'a'..=b'e' | b'l' | b'p' | b'r' | b's') {
        return;
    }
    let mut words = Words { sql, at: 0 };
    let first = words.next();
    let pin = match first.as_str() {
        "begin" => {
            seen.begins = true;
            None
        }
        "start" => {
            seen.begins = true;
            None
        }
        "commit" | "end" | "abort" => {
            seen.ends = true;
            seen.only_ends = true;
            None
        }
        "rollback" => {
            let to_savepoint = {
                let next = words.next();
                let is_filler = ["work", "transaction"].contains(&next.as_str());
                next == "to" || is_filler && words.next() == "to"
            };
            seen.ends |= !to_savepoint;
            seen.only_ends = !to_savepoint;
            None
        }
        "prepare" if words.next() == "transaction" => {
            seen.ends = true;
            None
        }
        "prepare" => Some(PinReason::Prepare),
        "listen" => Some(PinReason::Listen),
        "load" => Some(PinReason::Load),
        "set" => set(&mut words),
        "declare" => holds(sql).then_some(PinReason::HoldCursor),
        "create" => is_temporary(&mut words).then_some(PinReason::TemporaryTable),
        _ => None,
    };
    seen.pins = seen.pins.or(pin);
}

fn set(words: &mut Words<'_>) -> Option<PinReason> {
    let mut name = words.next();
    if name == "session" {
        name = words.next();
        if name == "characteristics" || name == "authorization" {
            return Some(PinReason::Set);
        }
    }
    match name.as_str() {
        // For this transaction only.
        "local" | "transaction" | "constraints" => None,
        // TIME ZONE and NAMES are tracked under other names.
        "time" | "names" => None,
        name if tracked(name).is_some() => None,
        _ => Some(PinReason::Set),
    }
}

/// TEMP stands before the kind of what is created; after it comes the name.
fn is_temporary(words: &mut Words<'_>) -> bool {
    let mut has_kind = false;
    for _ in 0..8 {
        let word = words.next();
        match word.as_str() {
            "or" | "replace" | "global" | "local" | "unlogged" | "recursive" | "if" | "not"
            | "exists" => {}
            "table" | "view" | "sequence" if !has_kind => has_kind = true,
            "temp" | "temporary" if !has_kind => return true,
            name => return name.starts_with("pg_temp"),
        }
    }
    false
}

/// Whether a cursor is declared WITH HOLD. The words before its query are few.
fn holds(sql: &[u8]) -> bool {
    let mut words = Words { sql, at: 0 };
    let mut before = String::new();
    for _ in 0..16 {
        let word = words.next();
        match word.as_str() {
            "hold" => return before == "with",
            "for" | "" => return false,
            _ => before = word,
        }
    }
    false
}

/// Goes over a statement to its end; returns the place after it.
fn body(sql: &[u8], start: usize, seen: &mut Look) -> usize {
    let mut at = start;
    while let Some(letter) = sql.get(at) {
        match letter {
            b';' => return at + 1,
            b'\'' => at = text_end(sql, at),
            b'"' => at = after(sql, at + 1, b'"'),
            b'-' if sql.get(at + 1) == Some(&b'-') => at = line_end(sql, at),
            b'/' if sql.get(at + 1) == Some(&b'*') => at = comment_end(sql, at),
            b'$' => at = dollar_end(sql, at),
            b'(' => {
                call(sql, at, seen);
                at += 1;
            }
            b'i' | b'I' if is_into_temporary(sql, at) => {
                seen.pins = seen.pins.or(Some(PinReason::TemporaryTable));
                at += 1;
            }
            _ => at += 1,
        }
    }
    sql.len()
}

fn after(sql: &[u8], at: usize, letter: u8) -> usize {
    let rest = sql.get(at..).unwrap_or_default();
    memchr::memchr(letter, rest).map_or(sql.len(), |end| at + end + 1)
}

/// The place after a text in quotes. A doubled quote begins the next one at once. Backslashes count in
/// `E'...'`; a session without `standard_conforming_strings` is not looked into any deeper.
fn text_end(sql: &[u8], at: usize) -> usize {
    let has_escapes = at.checked_sub(1).is_some_and(|before| {
        let is_own = before.checked_sub(1).is_none_or(|b| !is_name(sql[b]));
        sql[before] | 0x20 == b'e' && is_own
    });
    if !has_escapes {
        return after(sql, at + 1, b'\'');
    }
    let mut at = at + 1;
    while let Some(letter) = sql.get(at) {
        match letter {
            b'\\' => at += 2,
            b'\'' => return at + 1,
            _ => at += 1,
        }
    }
    sql.len()
}

/// The place after a text in dollars, or after the dollar of a parameter.
fn dollar_end(sql: &[u8], at: usize) -> usize {
    let is_inside_name = at > 0 && is_name(sql[at - 1]);
    let rest = &sql[at + 1..];
    let tag = rest.iter().position(|b| !is_name(*b) || *b == b'$');
    let Some(tag) = tag.filter(|end| rest[*end] == b'$' && !is_inside_name) else {
        return at + 1;
    };
    if rest.first().is_some_and(u8::is_ascii_digit) {
        return at + 1;
    }
    let quote = &sql[at..at + tag + 2];
    let inside = at + quote.len();
    memchr::memmem::find(&sql[inside..], quote).map_or(sql.len(), |end| inside + end + quote.len())
}

/// Judges the function that is called with the parenthesis at `at`.
fn call(sql: &[u8], at: usize, seen: &mut Look) {
    let before = sql[..at].trim_ascii_end();
    let before = before.strip_suffix(b"\"").unwrap_or(before);
    let start = before
        .iter()
        .rposition(|b| !is_name(*b))
        .map_or(0, |p| p + 1);
    let name = &before[start..];
    let is = |known: &[u8]| name.eq_ignore_ascii_case(known);
    let pin = match name.len() {
        10 if is(b"set_config") => (!is_local(&sql[at..])).then_some(PinReason::Set),
        16 if is(b"pg_advisory_lock") => Some(PinReason::AdvisoryLock),
        20 if is(b"pg_try_advisory_lock") => Some(PinReason::AdvisoryLock),
        23 if is(b"pg_advisory_lock_shared") => Some(PinReason::AdvisoryLock),
        27 if is(b"pg_try_advisory_lock_shared") => Some(PinReason::AdvisoryLock),
        _ => None,
    };
    seen.pins = seen.pins.or(pin);
}

/// Whether the last argument of `set_config` is a plain true.
fn is_local(arguments: &[u8]) -> bool {
    let end = memchr::memchr(b')', arguments).unwrap_or(arguments.len());
    let arguments = arguments[..end].trim_ascii_end();
    let last = arguments.rsplit(|b| *b == b',').next().unwrap_or_default();
    last.trim_ascii().eq_ignore_ascii_case(b"true")
}

fn is_into_temporary(sql: &[u8], at: usize) -> bool {
    let is_word = at > 0 && sql[at - 1].is_ascii_whitespace();
    let is_into = sql
        .get(at..at + 4)
        .is_some_and(|w| w.eq_ignore_ascii_case(b"into"));
    if !is_word || !is_into {
        return false;
    }
    let mut words = Words { sql, at: at + 4 };
    let mut word = words.next();
    if word == "local" || word == "global" {
        word = words.next();
    }
    word == "temp" || word == "temporary" || word.starts_with("pg_temp")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pins(sql: &str) -> Option<PinReason> {
        look(sql.as_bytes()).pins
    }

    #[test]
    fn what_outlives_its_transaction_pins() {
        for (sql, reason) in [
            ("LISTEN x", PinReason::Listen),
            ("set work_mem = '4MB'", PinReason::Set),
            ("SET SESSION search.path TO x", PinReason::Set),
            ("set role x", PinReason::Set),
            ("SET SESSION AUTHORIZATION x", PinReason::Set),
            (
                "set session characteristics as transaction read only",
                PinReason::Set,
            ),
            (
                "/* a /* b */ */ -- c\n prepare x as select 1",
                PinReason::Prepare,
            ),
            ("select 1; load 'x'", PinReason::Load),
            ("create temp table x()", PinReason::TemporaryTable),
            (
                "CREATE LOCAL TEMPORARY TABLE x()",
                PinReason::TemporaryTable,
            ),
            (
                "create or replace temp view x as select 1",
                PinReason::TemporaryTable,
            ),
            (
                "create table if not exists pg_temp.x()",
                PinReason::TemporaryTable,
            ),
            ("select 1 into temp x", PinReason::TemporaryTable),
            (
                "declare c binary cursor with hold for select 1",
                PinReason::HoldCursor,
            ),
            ("select pg_advisory_lock(1)", PinReason::AdvisoryLock),
            (
                "select pg_catalog . \"pg_try_advisory_lock\" (1)",
                PinReason::AdvisoryLock,
            ),
            ("select set_config('x.y', $1, false)", PinReason::Set),
            ("select set_config('x.y', $1, $2)", PinReason::Set),
            (
                "select 'a', E'\\'', $$;$$, $q$ ' $q$; listen x",
                PinReason::Listen,
            ),
        ] {
            assert_eq!(pins(sql), Some(reason), "{sql}");
        }
    }

    #[test]
    fn what_ends_with_its_transaction_or_is_tracked_does_not() {
        for sql in [
            "",
            ";;",
            "select 1",
            "set local work_mem = '4MB'",
            "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE",
            "set constraints all deferred",
            "set application_name = 'x'",
            "set time zone 'UTC'",
            "set names 'utf8'",
            "set \"timezone\" to 'UTC'",
            "select pg_advisory_xact_lock(1)",
            "select set_config('x.y', $1, true)",
            "select 'listen; listen x'",
            "select $1; select \"; listen x\"",
            "select $a$; listen x $a$",
            "-- listen x",
            "create table temp(x int)",
            "create table temporary_things(x int)",
            "insert into temperature select 1",
            "declare c cursor for select hold from with_hold",
            "select temp from x",
            "update x set work_mem = 1",
            "deallocate all",
        ] {
            assert_eq!(pins(sql), None, "{sql}");
        }
    }

    #[test]
    fn ends_and_begins_are_seen() {
        for sql in [
            "commit",
            " END;",
            "abort",
            "rollback work",
            "ROLLBACK",
            "commit and chain",
        ] {
            let seen = look(sql.as_bytes());
            assert!(seen.ends && seen.only_ends, "{sql}");
        }
        assert!(look(b"prepare transaction 'x'").ends);
        let several = look(b"insert into x values (1); commit");
        assert!(several.ends && !several.only_ends && several.is_several);
        for sql in [
            "rollback to x",
            "rollback work to savepoint x",
            "savepoint x",
            "select 1",
        ] {
            assert!(!look(sql.as_bytes()).ends, "{sql}");
        }
        assert!(look(b"begin").begins && look(b"start transaction read only;").begins);
        assert!(!look(b"begin; insert into x values (1)").begins);
    }

    #[test]
    fn no_text_whatever_breaks_the_look() {
        let pieces = [
            "'", "\"", "$", "$$", "--", "/*", "*/", "\\", "E'", ";", "(", "i", "into", "\n", "é",
        ];
        for one in pieces {
            for two in pieces {
                for three in pieces {
                    look(format!("{one}{two}{three}").as_bytes());
                    look(format!("set {one} {two}{three}").as_bytes());
                }
            }
        }
    }
}
