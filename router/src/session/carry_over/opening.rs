//! Whether what a client asks next may open a transaction block: in a planned change of leader that waits. Pure.

use std::collections::BTreeSet;

use super::Statements;
use super::look::{Look, look};
use crate::protocol::splice::{head, text};
use crate::topology::routing_table::Wants;

/// Looks at the first batch that the client has sent: while a planned change holds, what comes behind it goes nowhere before
/// it is answered, and is looked at then. Only what stands behind data of COPY goes with them. What is not whole, or of which
/// nobody knows what it does, may open a block.
pub fn wants(mut bytes: &[u8], own: Option<&Statements>) -> Wants {
    // Statements that these bytes prepare have been looked at when they are bound.
    let mut prepared: BTreeSet<&[u8]> = BTreeSet::new();
    let mut has_ended = true;
    let mut has_copied = false;
    while let Ok(Some((kind, total))) = head(bytes) {
        let Some((message, rest)) = bytes.split_at_checked(total) else {
            return Wants::Transaction;
        };
        let body = &message[5..];
        let opens = match (kind, text(body)) {
            (b'Q', Some((sql, _))) => may_open(&look(sql)),
            (b'P', Some((name, rest))) => {
                prepared.insert(name);
                text(rest).is_none_or(|(sql, _)| may_open(&look(sql)))
            }
            (b'B', Some((_, rest))) => text(rest)
                .is_none_or(|(name, _)| !prepared.contains(name) && may_open_by_name(name, own)),
            (b'Q' | b'P' | b'B', None) => true,
            (_, _) => false,
        };
        if opens {
            return Wants::Transaction;
        }
        has_ended = matches!(kind, b'Q' | b'S' | b'F');
        has_copied |= is_copied(kind);
        bytes = rest;
        let copies_on = has_copied || bytes.first().is_some_and(|kind| is_copied(*kind));
        if has_ended && !copies_on {
            return Wants::Statement;
        }
    }
    // A batch without its end goes on with nobody knows what.
    match has_ended && bytes.is_empty() {
        true => Wants::Statement,
        false => Wants::Transaction,
    }
}

/// Whether a message belongs to data that are copied in.
fn is_copied(kind: u8) -> bool {
    matches!(kind, b'd' | b'c' | b'f')
}

fn may_open(look: &Look) -> bool {
    look.begins || look.is_several || look.pins.is_some()
}

/// The unnamed statement was looked at in its own batch, or is the client's of an earlier one.
fn may_open_by_name(name: &[u8], own: Option<&Statements>) -> bool {
    let Some(own) = own else {
        return !name.is_empty();
    };
    match name {
        b"" => own.unnamed.as_deref().is_some_and(|tail| {
            let sql = tail.split(|byte| *byte == 0).next().unwrap_or_default();
            may_open(&look(sql))
        }),
        name => own.find(name).is_none_or(|it| may_open(&it.look)),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::session::carry_over::Shared;

    fn message(kind: u8, parts: &[&[u8]]) -> Vec<u8> {
        let body: Vec<u8> = parts.concat();
        let length = u32::try_from(body.len() + 4).unwrap();
        [&[kind][..], &length.to_be_bytes(), &body].concat()
    }

    fn query(sql: &str) -> Vec<u8> {
        message(b'Q', &[sql.as_bytes(), b"\0"])
    }

    fn parse_as(name: &str, sql: &str) -> Vec<u8> {
        message(b'P', &[name.as_bytes(), b"\0", sql.as_bytes(), b"\0\0\0"])
    }

    fn parse(sql: &str) -> Vec<u8> {
        parse_as("", sql)
    }

    fn bind(name: &str) -> Vec<u8> {
        message(b'B', &[b"\0", name.as_bytes(), b"\0\0\0\0\0\0\0"])
    }

    #[test]
    fn a_single_statement_ends_by_itself() {
        let sync = message(b'S', &[]);
        for single in [
            query("select 1"),
            query("insert into t values (1); "),
            query("copy t from stdin"),
            [parse("update t set n = 1"), bind(""), sync.clone()].concat(),
            [query("select 1"), query("select 2")].concat(),
            // Prepared under a name and run in one batch.
            [parse_as("s", "select 1"), bind("s"), sync.clone()].concat(),
            sync,
        ] {
            assert_eq!(wants(&single, None), Wants::Statement);
        }
    }

    #[test]
    fn what_may_open_a_block_is_a_transaction() {
        for opens in [
            query("begin"),
            query(" /* x */ START TRANSACTION READ ONLY"),
            query("begin; select 1"),
            query("select 1; begin"),
            [parse("begin"), bind("")].concat(),
            [parse("select 1"), bind(""), parse("begin")].concat(),
            [parse_as("s", "begin"), bind("s"), message(b'S', &[])].concat(),
            // Nobody knows how the batch goes on.
            [parse("select 1"), bind(""), message(b'H', &[])].concat(),
            // A statement that nobody knows here, and a text of which the end has not come.
            bind("s"),
            query("select 1")[..9].to_vec(),
            query("listen a"),
        ] {
            assert_eq!(wants(&opens, None), Wants::Transaction);
        }
    }

    #[test]
    fn what_stands_behind_the_first_batch_is_not_looked_at_but_behind_copied_data() {
        let sync = message(b'S', &[]);
        let by_parts = [parse("select 1"), bind(""), sync].concat();
        for first in [query("select 1"), by_parts] {
            for behind in [query("begin"), query("begin")[..9].to_vec(), parse("begin")] {
                let both = [first.clone(), behind].concat();
                assert_eq!(wants(&both, None), Wants::Statement);
            }
        }
        let copy = [query("copy t from stdin"), message(b'd', &[b"1"])].concat();
        let whole = [copy.clone(), message(b'c', &[])].concat();
        let opens = [whole.clone(), query("begin")].concat();
        assert_eq!(wants(&opens, None), Wants::Transaction);
        let goes_on = [whole, query("select 1")].concat();
        assert_eq!(wants(&goes_on, None), Wants::Statement);
        // Its end has not come.
        assert_eq!(wants(&copy, None), Wants::Transaction);
    }

    #[test]
    fn a_prepared_statement_is_known_by_its_name() {
        let mut shared = Shared::new();
        let mut own = Statements::default();
        let begin = shared.intern(b"begin\0\0\0", || 1);
        let select: Option<Arc<_>> = shared.intern(b"select 1\0\0\0", || 2);
        own.name(b"b", begin);
        own.name(b"s", select);
        let run = |name| [bind(name), message(b'S', &[])].concat();
        assert_eq!(wants(&run("s"), Some(&own)), Wants::Statement);
        assert_eq!(wants(&run("b"), Some(&own)), Wants::Transaction);
        own.unnamed = Some(Box::from(&b"begin\0\0\0"[..]));
        assert_eq!(wants(&run(""), Some(&own)), Wants::Transaction);
    }
}
