//! What a text of SQL does that outlives its transaction, as far as a look without a parser can tell: the
//! first words of each statement, and calls of a few functions. What functions, DO blocks and rules do inside
//! cannot be seen here.

use crate::protocol::exchange::{Act, Block};
use crate::protocol::settings::SettingsSeen;

/// Why a client keeps its server until it leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PinReason {
    /// The listener or the database says so.
    SessionMode,
    /// It is a replication connection.
    Replication,
    /// A setting that does not move with the client was set.
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
    /// A text that PostgreSQL may read in another way than the router does.
    Unclear,
    /// A named statement of the protocol that is not kept for the client: `max_prepared_statements` is 0, or it
    /// has too many.
    Statement,
}

impl PinReason {
    /// Whether the server is the client's from its first message on: what it prepares there needs no other name.
    pub fn is_from_the_start(self) -> bool {
        match self {
            PinReason::SessionMode | PinReason::Replication => true,
            PinReason::Set
            | PinReason::Listen
            | PinReason::Prepare
            | PinReason::TemporaryTable
            | PinReason::HoldCursor
            | PinReason::AdvisoryLock
            | PinReason::Load
            | PinReason::LongText
            | PinReason::Unclear
            | PinReason::Statement => false,
        }
    }

    /// Its name in logs and `SHOW CLIENTS`.
    pub fn name(self) -> &'static str {
        match self {
            PinReason::SessionMode => "session mode",
            PinReason::Replication => "replication",
            PinReason::Set => "set",
            PinReason::Listen => "listen",
            PinReason::Prepare => "prepare",
            PinReason::TemporaryTable => "temporary table",
            PinReason::HoldCursor => "cursor with hold",
            PinReason::AdvisoryLock => "advisory lock",
            PinReason::Load => "load",
            PinReason::LongText => "long text",
            PinReason::Unclear => "unclear text",
            PinReason::Statement => "prepared statement",
        }
    }
}

/// How a statement ends a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// By what the client wants kept.
    Commit,
    /// By giving it up.
    Rollback,
    /// By either, and another one begins at once.
    Chain,
}

/// What was seen in a text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Look {
    /// It is a BEGIN and nothing else.
    pub begins: bool,
    /// It may end a transaction.
    pub ends: bool,
    /// It ends the transaction, and does nothing else.
    pub only_ends: Option<End>,
    /// State that cannot move to another server.
    pub pins: Option<PinReason>,
    /// It holds more than one statement.
    pub is_several: bool,
    /// Settings that move with the client: its server reports them, or is asked for them.
    pub sets: SettingsSeen,
    /// It may drop every prepared statement, or reset every setting.
    pub drops: bool,
    /// RESET ALL.
    pub resets: bool,
}

impl Look {
    /// What it does when it is executed.
    pub fn act(&self) -> Act {
        let block = match (self.only_ends, self.ends, self.begins) {
            (Some(End::Rollback), ..) => Block::RollsBack,
            (Some(End::Commit | End::Chain) | None, true, _) => Block::MayEnd,
            (Some(End::Commit | End::Chain) | None, false, true) => Block::Begins,
            (Some(End::Commit | End::Chain) | None, false, false) => Block::Stays,
        };
        Act {
            block,
            drops: self.drops,
        }
    }

    fn pin(&mut self, why: PinReason) {
        self.pins = self.pins.or(Some(why));
    }

    /// Whatever it does, nothing of it is certain.
    fn is_unclear(&mut self) {
        self.ends = true;
        self.pin(PinReason::Unclear);
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
        seen.only_ends = None;
    }
    seen
}

/// The first place from `at` that is neither blank nor comment.
pub(super) fn skip_blank(sql: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match sql.get(at)? {
            b' ' | b'\t' | b'\n' | b'\r' | b'\x0b' | b'\x0c' => at += 1,
            b'-' if sql.get(at + 1) == Some(&b'-') => at = line_end(sql, at),
            b'/' if sql.get(at + 1) == Some(&b'*') => at = comment_end(sql, at),
            _ => return Some(at),
        }
    }
}

fn line_end(sql: &[u8], at: usize) -> usize {
    memchr::memchr2(b'\n', b'\r', &sql[at..]).map_or(sql.len(), |end| at + end + 1)
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
    /// Whether the last word stood in quotes.
    fn was_quoted(&self) -> bool {
        self.at
            .checked_sub(1)
            .is_some_and(|last| self.sql.get(last) == Some(&b'"'))
    }

    /// Whether the next thing is this letter.
    fn stands_before(&self, letter: u8) -> bool {
        skip_blank(self.sql, self.at).is_some_and(|next| self.sql[next] == letter)
    }

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
    if !sql[0].is_ascii_alphabetic() && sql[0] != b'(' {
        return seen.is_unclear();
    }
    // Most statements are none of these, and a first letter tells.
    if !matches!(sql[0] | 0x20, b'a'..=b'e' | b'l' | b'p' | b'r' | b's') {
        return;
    }
    let mut words = Words { sql, at: 0 };
    match words.next().as_str() {
        "begin" | "start" => seen.begins = true,
        "commit" | "end" => end(&mut words, End::Commit, seen),
        "abort" | "rollback" => end(&mut words, End::Rollback, seen),
        "prepare" if words.next() == "transaction" => seen.ends = true,
        "prepare" => seen.pin(PinReason::Prepare),
        "listen" => seen.pin(PinReason::Listen),
        "load" => seen.pin(PinReason::Load),
        "set" => set(&mut words, seen),
        // Of one setting the server's own value is not known here; RESET ALL is.
        "reset" => match words.next().as_str() {
            "all" => {
                seen.drops = true;
                seen.resets = true;
            }
            _ => seen.pin(PinReason::Set),
        },
        "discard" => seen.drops |= words.next() == "all",
        "deallocate" => {
            let mut what = words.next();
            if what == "prepare" {
                what = words.next();
            }
            seen.drops |= what == "all";
        }
        "declare" if holds(sql) => seen.pin(PinReason::HoldCursor),
        _ => {}
    }
}

/// Judges what follows a word that ends a transaction. What is not all of it is left to PostgreSQL: that may be one of two
/// phases, or refused.
fn end(words: &mut Words<'_>, end: End, seen: &mut Look) {
    let mut next = words.next();
    if ["work", "transaction"].contains(&next.as_str()) {
        next = words.next();
    }
    if end == End::Rollback && next == "to" {
        // A savepoint.
        return;
    }
    seen.ends = true;
    let end = match next.as_str() {
        "" => Some(end),
        "and" => match words.next().as_str() {
            "chain" => Some(End::Chain),
            "no" => (words.next() == "chain").then_some(end),
            _ => None,
        },
        _ => None,
    };
    let rest = skip_blank(words.sql, words.at);
    let is_over = rest.is_none_or(|at| words.sql[at] == b';');
    seen.only_ends = end.filter(|_| is_over && !words.was_quoted());
}

fn set(words: &mut Words<'_>, seen: &mut Look) {
    let mut name = words.next();
    if name == "session" {
        name = words.next();
    }
    let is_quoted = words.was_quoted();
    let name = match name.as_str() {
        // The first part of a longer name.
        _ if words.stands_before(b'.') => return seen.pin(PinReason::Set),
        // For this transaction only.
        "local" | "transaction" | "constraints" if !is_quoted => return,
        "time" if !is_quoted => "timezone",
        "names" if !is_quoted => "client_encoding",
        name => name,
    };
    // A path through a schema of temporary tables makes every table one.
    let is_temporary = name == "search_path" && find(&words.sql[words.at..], b"pg_temp");
    if is_temporary || !seen.sets.note(name) {
        seen.pin(PinReason::Set);
    }
}

fn find(text: &[u8], word: &[u8]) -> bool {
    memchr::memmem::find(&text.to_ascii_lowercase(), word).is_some()
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
    let mut updates = false;
    while let Some(letter) = sql.get(at) {
        match letter {
            b';' => return at + 1,
            b'\'' => at = text_end(sql, at, seen),
            b'"' => {
                let end = after(sql, at + 1, b'"');
                word(
                    sql,
                    (at + 1, end.saturating_sub(1)),
                    end,
                    &mut updates,
                    seen,
                );
                at = end;
            }
            b'-' if sql.get(at + 1) == Some(&b'-') => at = line_end(sql, at),
            b'/' if sql.get(at + 1) == Some(&b'*') => at = comment_end(sql, at),
            b'$' => at = dollar_end(sql, at),
            letter if is_name(*letter) && !letter.is_ascii_digit() => {
                let length = sql[at..].iter().position(|b| !is_name(*b));
                let end = length.map_or(sql.len(), |length| at + length);
                word(sql, (at, end), end, &mut updates, seen);
                at = end;
            }
            _ => at += 1,
        }
    }
    sql.len()
}

/// Judges a word, quoted or not, after which the text goes on at `next`.
fn word(sql: &[u8], (from, to): (usize, usize), next: usize, updates: &mut bool, seen: &mut Look) {
    let word = sql.get(from..to).unwrap_or_default();
    let is = |known: &[u8]| word.eq_ignore_ascii_case(known);
    let begins = |known: &[u8]| {
        let start = word.get(..known.len());
        start.is_some_and(|start| start.eq_ignore_ascii_case(known))
    };
    let rest = || Words { sql, at: next };
    match word.first().map(|letter| letter | 0x20) {
        Some(b'c') if is(b"create") && is_temporary(&mut rest()) => {
            seen.pin(PinReason::TemporaryTable);
        }
        Some(b'i') if is(b"into") && is_into_temporary(&mut rest()) => {
            seen.pin(PinReason::TemporaryTable);
        }
        Some(b's') if is(b"set_config") && !is_local(sql, next) => seen.pin(PinReason::Set),
        Some(b'u') if is(b"update") => *updates = true,
        // A name by the numbers of its letters.
        Some(b'u') if is(b"u") && sql.get(next..next + 2) == Some(b"&\"") => seen.is_unclear(),
        Some(b'd') if begins(b"dblink_connect") => seen.pin(PinReason::Unclear),
        Some(b't') if begins(b"trunkline_") => seen.pin(PinReason::Prepare),
        Some(b'p') if begins(b"pg_temp") => seen.pin(PinReason::TemporaryTable),
        Some(b'p') if *updates && is(b"pg_settings") => seen.pin(PinReason::Set),
        Some(b'p') if begins(b"pg_advisory_lock") || begins(b"pg_try_advisory_lock") => {
            seen.pin(PinReason::AdvisoryLock);
        }
        Some(b'p') if begins(b"pg_replication_origin_") => seen.pin(PinReason::Unclear),
        Some(_) | None => {}
    }
}

fn after(sql: &[u8], at: usize, letter: u8) -> usize {
    let rest = sql.get(at..).unwrap_or_default();
    memchr::memchr(letter, rest).map_or(sql.len(), |end| at + end + 1)
}

/// The place after a text in quotes. A doubled quote begins the next one at once. Backslashes count in
/// `E'...'`; before a quote in another text they count in a session without `standard_conforming_strings`.
fn text_end(sql: &[u8], at: usize, seen: &mut Look) -> usize {
    let has_escapes = at.checked_sub(1).is_some_and(|before| {
        let is_own = before.checked_sub(1).is_none_or(|b| !is_name(sql[b]));
        sql[before] | 0x20 == b'e' && is_own
    });
    if !has_escapes {
        let end = after(sql, at + 1, b'\'');
        if end >= 2 && sql.get(end - 2) == Some(&b'\\') {
            seen.is_unclear();
        }
        return end;
    }
    let mut at = at + 1;
    while let Some(letter) = sql.get(at) {
        match letter {
            b'\\' => {
                // In some encodings it is the second half of a letter.
                if sql[at - 1] >= 0x80 {
                    seen.is_unclear();
                }
                at += 2;
            }
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

/// Whether what follows `set_config` are three arguments, of which the last is a plain true.
fn is_local(sql: &[u8], at: usize) -> bool {
    let Some(open) = skip_blank(sql, at).filter(|open| sql[*open] == b'(') else {
        return false;
    };
    let (mut at, mut commas, mut last) = (open + 1, 0, open + 1);
    while let Some(letter) = sql.get(at) {
        match letter {
            b'\'' => at = after(sql, at + 1, b'\''),
            b',' => (at, commas, last) = (at + 1, commas + 1, at + 1),
            b')' => {
                let flag = sql[last..at].trim_ascii();
                return commas == 2 && flag.eq_ignore_ascii_case(b"true");
            }
            // Whatever this is, where it ends is another question.
            b'(' | b'"' | b'-' | b'/' | b'\\' | b'[' => return false,
            _ => at += 1,
        }
    }
    false
}

fn is_into_temporary(words: &mut Words<'_>) -> bool {
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
    fn no_spelling_hides_what_pins() {
        for (sql, reason) in [
            ("-- x\rSET role y", PinReason::Set),
            ("\x0bset role y", PinReason::Set),
            ("set\x0brole y", PinReason::Set),
            ("set local . x = 1", PinReason::Set),
            ("set \"local\".x = 1", PinReason::Set),
            ("set timezone.x = 1", PinReason::Set),
            ("set search_path = 'pg_temp'", PinReason::Set),
            ("reset work_mem", PinReason::Set),
            ("update pg_settings set setting = 1", PinReason::Set),
            (
                "with x as (select 1) update pg_catalog.\"pg_settings\" set setting = 1",
                PinReason::Set,
            ),
            (
                "create function pg_temp.f() returns int",
                PinReason::TemporaryTable,
            ),
            ("SELECT(1)INTO TEMP t", PinReason::TemporaryTable),
            (
                "explain analyze create temp table t as select 1",
                PinReason::TemporaryTable,
            ),
            (
                "select set_config('x.y', f(1, true), false)",
                PinReason::Set,
            ),
            (
                "select set_config /* x */ ('x.y', '1', false)",
                PinReason::Set,
            ),
            ("select \"set_config\"('x.y', '1', false)", PinReason::Set),
            ("select dblink_connect('x')", PinReason::Unclear),
            (
                "select U&\"set\\005fconfig\"('x.y', '1', false)",
                PinReason::Unclear,
            ),
            ("select 'x\\'; set role y; --'", PinReason::Unclear),
            ("deallocate trunkline_5", PinReason::Prepare),
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
            "reset all",
            "select * from pg_settings",
            "update t set x = 1",
            "select set_config('a,b', 'x)', true)",
            "select E'a\\'b'",
            "select temp from x",
            "update x set work_mem = 1",
            "deallocate all",
        ] {
            assert_eq!(pins(sql), None, "{sql}");
        }
    }

    #[test]
    fn a_setting_that_is_carried_is_seen() {
        for (sql, name) in [
            ("set search_path = x", "search_path"),
            ("SET extra_float_digits = 3", "extra_float_digits"),
            ("set session Statement_Timeout to 5", "statement_timeout"),
            ("set session \"timezone\" to 'UTC'", "TimeZone"),
            ("set time zone 'UTC'", "TimeZone"),
            ("set names 'utf8'", "client_encoding"),
            ("select 1; set application_name = 'x'", "application_name"),
        ] {
            let seen = look(sql.as_bytes());
            assert_eq!(seen.sets.names().collect::<Vec<_>>(), [name], "{sql}");
            assert!(seen.sets.only(|reported| reported != name).is_empty());
            assert_eq!(seen.pins, None, "{sql}");
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
            "rollback transaction and chain;",
            "abort and no chain -- x",
        ] {
            let seen = look(sql.as_bytes());
            assert!(seen.ends, "{sql}");
            let first = sql.as_bytes()[0].to_ascii_lowercase();
            let wanted = match first {
                _ if sql.contains("and chain") => End::Chain,
                b'a' | b'r' => End::Rollback,
                _ => End::Commit,
            };
            assert_eq!(seen.only_ends, Some(wanted), "{sql}");
            assert_eq!(
                seen.act().block == Block::RollsBack,
                wanted == End::Rollback
            );
        }
        // What ends nothing of this transaction, or is refused.
        for sql in [
            "commit prepared 'x'",
            "rollback prepared 'x'",
            "rollback x",
            "rollback and",
            "rollback (",
            "rollback \"work\"",
            "rollback; select 1",
        ] {
            let seen = look(sql.as_bytes());
            assert!(seen.ends && seen.only_ends.is_none(), "{sql}");
            assert_eq!(seen.act().block, Block::MayEnd, "{sql}");
        }
        assert!(look(b"prepare transaction 'x'").ends);
        let several = look(b"insert into x values (1); commit");
        assert!(several.ends && several.only_ends.is_none() && several.is_several);
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
