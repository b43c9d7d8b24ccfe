//! A ROLLBACK that was sent and not answered, and whose server is lost. The transaction is undone in any case, so nothing is
//! unknown: the client hears what it would have heard.

use super::{Block, Exchange, Expect, Place};
use crate::protocol::messages::{
    self, BIND_COMPLETE, CLOSE_COMPLETE, NO_DATA, NO_PARAMETERS, PARSE_COMPLETE,
};

impl Exchange {
    /// Whether the batch that was sent last only gives the transaction up, and those before it, if they are not answered
    /// either, stood in that transaction.
    pub(super) fn gives_up(&self) -> bool {
        let start = self.start_of_last();
        let mut last = self.queue.range(start..);
        let before = self.queue.range(..start);
        let place = before.fold(self.place, Place::behind);
        let is_placed = match place {
            Place::Supposed | Place::Inside => true,
            Place::Outside | Place::Begun | Place::GivenUp => start == 0,
            Place::Unknown => false,
        };
        let mut is_over = place == Place::GivenUp;
        is_placed && last.all(|asked| does_nothing_else(asked, &mut is_over))
    }

    /// Writes what the client is owed for the batch that was sent last, where [`super::Fate::GivenUp`] is the fate. Returns
    /// how many changes of names are certain by it.
    pub fn give_up(&self, out: &mut Vec<u8>) -> usize {
        let last = self.queue.range(self.start_of_last()..);
        let renamed = last.clone().filter(|asked| asked.renames()).count();
        for asked in last {
            answer(asked, out);
        }
        renamed
    }

    /// Where the batch that was sent last begins, of which the first answers may have come.
    fn start_of_last(&self) -> usize {
        let but_one = self.queue.len().saturating_sub(1);
        let mut before = self.queue.range(..but_one);
        let end = before.rposition(Expect::ends_a_batch);
        end.map_or(0, |end| end + 1)
    }
}

/// Whether a request belongs to a batch that gives a transaction up and does nothing else. `is_over`: it is given up by what
/// stands before.
fn does_nothing_else(asked: &Expect, is_over: &mut bool) -> bool {
    match asked {
        Expect::Execute(act) | Expect::Query(act) => {
            *is_over = true;
            act.block == Block::RollsBack
        }
        // Under a name that may be taken: only PostgreSQL knows.
        Expect::Parse {
            statement: 0,
            is_hidden: true,
        }
        | Expect::Close {
            statement: 0,
            is_hidden: true,
        } => false,
        // What is prepared behind the end may be anything.
        Expect::Parse { .. } | Expect::OwedParse | Expect::Bind => !*is_over,
        Expect::Describe { block, .. } => !*is_over && *block == Block::RollsBack,
        Expect::Close { .. } | Expect::Sync | Expect::OwedClose | Expect::Probe => true,
        Expect::ExecuteDeallocate
        | Expect::Function
        | Expect::CopyEnd
        | Expect::Deallocate
        | Expect::OwedDeallocate => false,
    }
}

/// What answers such a request.
fn answer(asked: &Expect, out: &mut Vec<u8>) {
    match asked {
        Expect::Parse {
            is_hidden: true, ..
        }
        | Expect::Close {
            is_hidden: true, ..
        } => {}
        Expect::Parse { .. } | Expect::OwedParse => out.extend_from_slice(PARSE_COMPLETE),
        Expect::Close { .. } | Expect::OwedClose => out.extend_from_slice(CLOSE_COMPLETE),
        Expect::Bind => out.extend_from_slice(BIND_COMPLETE),
        Expect::Describe { is_statement, .. } => {
            if *is_statement {
                out.extend_from_slice(NO_PARAMETERS);
            }
            out.extend_from_slice(NO_DATA);
        }
        Expect::Execute(_) => messages::command_complete(out, "ROLLBACK"),
        Expect::Query(_) => {
            messages::command_complete(out, "ROLLBACK");
            messages::ready(out, b'I');
        }
        Expect::Sync => messages::ready(out, b'I'),
        // Those are in no such batch.
        Expect::ExecuteDeallocate
        | Expect::Function
        | Expect::CopyEnd
        | Expect::Probe
        | Expect::Deallocate
        | Expect::OwedDeallocate => {}
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Act, Fate, Status};
    use super::*;

    const STAYS: Act = act(Block::Stays);
    const ENDS: Act = act(Block::MayEnd);
    const ROLLBACK: Act = act(Block::RollsBack);
    const PARSE: Expect = Expect::Parse {
        statement: 7,
        is_hidden: false,
    };
    const DESCRIBE: Expect = Expect::Describe {
        is_statement: false,
        block: Block::RollsBack,
    };
    const DESCRIBE_ANOTHER: Expect = Expect::Describe {
        is_statement: true,
        block: Block::Stays,
    };

    const fn act(block: Block) -> Act {
        Act {
            block,
            drops: false,
        }
    }

    /// What was asked in a transaction, and outside of any.
    fn asked(is_inside: bool, expects: &[Expect]) -> Exchange {
        let mut talk = Exchange::default();
        if is_inside {
            talk.sent(Expect::Query(act(Block::Begins)));
            talk.answered(b'C', |_| {});
            talk.ready(Status::Transaction);
        }
        expects.iter().for_each(|expect| talk.sent(*expect));
        talk
    }

    fn told(talk: &Exchange) -> (usize, String) {
        let mut out = Vec::new();
        let renamed = talk.give_up(&mut out);
        let mut rest = &out[..];
        let mut kinds = String::new();
        while let Some((kind, tail)) = rest.split_first() {
            kinds.push(char::from(*kind));
            let length = u32::from_be_bytes(tail[..4].try_into().unwrap());
            rest = &tail[length as usize..];
        }
        (renamed, kinds)
    }

    #[test]
    fn a_rollback_that_is_not_answered_leaves_nothing_unknown() {
        let simple = Expect::Query(ROLLBACK);
        for is_inside in [true, false] {
            let talk = asked(is_inside, &[simple]);
            assert_eq!(talk.fate(), Fate::GivenUp);
            assert_eq!(told(&talk), (0, "CZ".to_owned()));
        }
        let execute = Expect::Execute(ROLLBACK);
        let mut parts = asked(
            true,
            &[PARSE, Expect::Bind, DESCRIBE, execute, Expect::Sync],
        );
        assert_eq!(parts.fate(), Fate::GivenUp);
        assert_eq!(told(&parts), (1, "12nCZ".to_owned()));
        for (answers, left) in [(&b"12"[..], "nCZ"), (b"nC", "Z")] {
            for kind in answers {
                parts.answered(*kind, |_| {});
            }
            assert_eq!(parts.fate(), Fate::GivenUp);
            assert_eq!(told(&parts), (0, left.to_owned()));
        }
        // The batch has no end yet.
        let open = asked(true, &[Expect::OwedParse, Expect::Bind, execute]);
        assert_eq!(
            (open.fate(), told(&open)),
            (Fate::GivenUp, (1, "12C".to_owned()))
        );
        // What was asked before it in the same transaction is undone with it.
        let behind = asked(true, &[PARSE, Expect::Execute(STAYS), Expect::Sync, simple]);
        assert_eq!(behind.fate(), Fate::GivenUp);
        assert_eq!(
            (behind.unanswered(), told(&behind)),
            ((2, false), (0, "CZ".to_owned()))
        );
        let begun = [Expect::Query(act(Block::Begins)), simple];
        assert_eq!(asked(false, &begun).fate(), Fate::GivenUp);
    }

    #[test]
    fn what_stands_on_its_own_beside_a_rollback_stays_unknown() {
        let (rollback, stays) = (Expect::Query(ROLLBACK), Expect::Query(STAYS));
        for (is_inside, expects) in [
            (true, &[rollback, stays][..]),
            (false, &[stays, rollback]),
            (true, &[Expect::Query(ENDS), rollback]),
            // Whether that is prepared nobody knows, nor what it has for columns.
            (true, &[rollback, PARSE, Expect::Sync]),
            (true, &[Expect::Execute(ROLLBACK), PARSE, Expect::Sync]),
            (true, &[DESCRIBE_ANOTHER, rollback]),
            (
                true,
                &[Expect::Execute(ROLLBACK), DESCRIBE_ANOTHER, Expect::Sync],
            ),
            (
                true,
                &[
                    Expect::Execute(STAYS),
                    Expect::Execute(ROLLBACK),
                    Expect::Sync,
                ],
            ),
        ] {
            assert_eq!(
                asked(is_inside, expects).fate(),
                Fate::Unknown,
                "{expects:?}"
            );
        }
        let again = [rollback, Expect::Query(act(Block::Begins)), stays];
        assert_eq!(asked(true, &again).fate(), Fate::Unknown);
        assert_eq!(asked(true, &again[..2]).fate(), Fate::Undone);
    }
}
