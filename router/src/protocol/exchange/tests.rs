use super::*;

mod copy;

const PARSE: Expect = Expect::Parse {
    statement: 7,
    is_hidden: false,
};
const HIDDEN: Expect = Expect::Parse {
    statement: 8,
    is_hidden: true,
};

const STAYS: Act = act(Block::Stays);
const BEGINS: Act = act(Block::Begins);
const ENDS: Act = act(Block::MayEnd);
const EXECUTE: Expect = Expect::Execute(STAYS);
const QUERY: Expect = Expect::Query(STAYS);

const fn act(block: Block) -> Act {
    Act {
        block,
        drops: false,
    }
}

fn asked(expects: &[Expect]) -> Exchange {
    let mut talk = Exchange::default();
    expects.iter().for_each(|e| talk.sent(*e));
    talk
}

/// The server's messages by kind; `Z` is idle, `z` in a transaction. What is passed, `-` for what is hidden.
fn hear(talk: &mut Exchange, kinds: &[u8]) -> String {
    let mut heard = String::new();
    for kind in kinds {
        let mut owed = Vec::new();
        talk.settle(&mut owed);
        heard.extend(
            owed.iter()
                .filter(|b| b.is_ascii_digit())
                .map(|b| char::from(*b)),
        );
        let verdict = match kind {
            b'Z' => talk.ready(Status::Idle),
            b'z' => talk.ready(Status::Transaction),
            other => talk.answered(*other, |_| {}),
        };
        heard.push(match verdict {
            Verdict::Pass => char::from(*kind),
            Verdict::Hide => '-',
            Verdict::Lost => '!',
        });
    }
    heard
}

#[test]
fn a_simple_query_is_over_with_its_ready_for_query() {
    let mut talk = asked(&[QUERY]);
    assert!(!talk.is_idle());
    assert_eq!(hear(&mut talk, b"TDDCTDC"), "TDDCTDC");
    assert!(!talk.is_idle());
    hear(&mut talk, b"Z");
    assert!(talk.is_idle());
}

#[test]
fn what_the_router_asked_is_hidden_and_what_it_owes_comes_in_its_place() {
    let mut talk = asked(&[
        HIDDEN,
        Expect::Bind,
        Expect::OwedParse,
        EXECUTE,
        Expect::OwedClose,
        Expect::Sync,
    ]);
    assert_eq!(hear(&mut talk, b"12DCZ"), "-21DC3Z");
    assert!(talk.is_idle());
}

#[test]
fn of_a_query_in_the_place_of_a_deallocate_only_an_error_is_told() {
    let mut talk = asked(&[Expect::Deallocate, QUERY]);
    assert_eq!(hear(&mut talk, b"TDC"), "---");
    let mut owed = Vec::new();
    assert_eq!(talk.settle(&mut owed), 1);
    assert_eq!(owed, b"C\0\0\0\x0fDEALLOCATE\0");
    assert_eq!(hear(&mut talk, b"ZCZ"), "ZCZ");
    let mut talk = asked(&[Expect::Deallocate]);
    let mut heard = Vec::new();
    assert_eq!(talk.answered(b'E', |what| heard.push(what)), Verdict::Pass);
    assert_eq!(heard, [Heard::NotRenamed(1)]);
    assert_eq!(hear(&mut talk, b"z"), "z");
    // Ahead of it in the same batch something fails.
    let mut talk = asked(&[PARSE, Expect::Deallocate, Expect::Sync]);
    let mut heard = Vec::new();
    talk.answered(b'E', |what| heard.push(what));
    assert_eq!(heard, [Heard::NotRenamed(2), Heard::NotPrepared(7)]);
    assert_eq!(hear(&mut talk, b"Z"), "Z");
}

#[test]
fn after_an_error_nothing_is_owed_until_the_sync() {
    let mut talk = asked(&[
        PARSE,
        HIDDEN,
        Expect::OwedParse,
        Expect::Bind,
        Expect::Sync,
        Expect::OwedParse,
    ]);
    talk.sent(Expect::Sync);
    let mut forgotten = Vec::new();
    assert_eq!(talk.answered(b'E', |s| forgotten.push(s)), Verdict::Pass);
    let all = [
        Heard::NotRenamed(2),
        Heard::NotPrepared(8),
        Heard::NotPrepared(7),
    ];
    assert_eq!(forgotten, all);
    assert_eq!(hear(&mut talk, b"ZZ"), "Z1Z");
    assert!(talk.is_idle());
}

#[test]
fn an_error_before_the_sync_was_sent_swallows_what_follows() {
    let mut talk = asked(&[Expect::Bind, EXECUTE]);
    hear(&mut talk, b"E");
    talk.sent(Expect::Bind);
    talk.sent(QUERY);
    assert!(!talk.is_idle());
    talk.sent(Expect::Sync);
    assert_eq!(hear(&mut talk, b"Z"), "Z");
    assert!(talk.is_idle());
}

#[test]
fn an_answer_to_nothing_is_not_trusted() {
    for kind in *b"123TDCIsGHZzdcVKRx" {
        assert_eq!(hear(&mut asked(&[]), &[kind]), "!", "{}", char::from(kind));
    }
    assert_eq!(hear(&mut asked(&[Expect::Sync]), b"NASE"), "NASE");
    assert_eq!(hear(&mut asked(&[Expect::Bind]), b"1"), "!");
    assert_eq!(hear(&mut asked(&[Expect::Bind]), b"Z"), "!");
}

#[test]
fn without_a_sync_a_batch_is_not_over_when_all_is_answered() {
    let mut talk = asked(&[PARSE]);
    hear(&mut talk, b"1");
    assert!(!talk.is_idle() && !talk.is_quiet());
    assert_eq!(talk.unanswered(), (0, true));
}

#[test]
fn the_fate_is_known_where_no_end_was_asked_for() {
    let mut talk = Exchange::default();
    assert_eq!(talk.fate(), Fate::Nothing);
    talk.sent(QUERY);
    assert_eq!(talk.fate(), Fate::Unknown, "a statement of its own");
    hear(&mut talk, b"CZ");
    talk.sent(Expect::Query(BEGINS));
    assert_eq!(talk.fate(), Fate::Undone, "BEGIN");
    hear(&mut talk, b"Cz");
    assert_eq!(talk.fate(), Fate::Undone);
    talk.sent(QUERY);
    assert_eq!(talk.fate(), Fate::Undone);
    talk.sent(Expect::Query(ENDS));
    assert_eq!(talk.fate(), Fate::Unknown, "COMMIT");
    assert_eq!(talk.unanswered(), (2, false));
    hear(&mut talk, b"CzCZ");
    assert_eq!(talk.fate(), Fate::Nothing);
    talk.sent(QUERY);
    talk.sent(Expect::Query(BEGINS));
    assert_eq!(talk.fate(), Fate::Unknown, "something ran before the BEGIN");
}

#[test]
fn a_begin_protects_its_own_batch_and_only_once_it_is_executed() {
    let begun = [PARSE, Expect::Bind, Expect::Execute(BEGINS), EXECUTE];
    assert_eq!(asked(&begun).fate(), Fate::Undone);
    assert_eq!(asked(&[PARSE, Expect::Bind]).fate(), Fate::Unknown);
    // If the BEGIN fails, the statement of the next batch runs on its own.
    let mut talk = asked(&begun);
    talk.sent(Expect::Sync);
    assert_eq!(talk.fate(), Fate::Undone);
    talk.sent(EXECUTE);
    assert_eq!(talk.fate(), Fate::Unknown);
    // Answered parts of a batch count as much as those to come.
    let mut talk = asked(&begun);
    hear(&mut talk, b"12C");
    assert_eq!(talk.fate(), Fate::Undone);
    talk.sent(Expect::Execute(ENDS));
    hear(&mut talk, b"CC");
    assert_eq!(talk.fate(), Fate::Unknown, "a COMMIT that is answered");
    // What an earlier transaction began says nothing about what comes after its end.
    let mut talk = asked(&[Expect::Query(BEGINS)]);
    talk.sent(Expect::Query(ENDS));
    talk.sent(QUERY);
    hear(&mut talk, b"CzCZ");
    assert_eq!(talk.fate(), Fate::Unknown);
}

#[test]
fn what_may_be_one_of_two_is_only_known_where_both_are_alike() {
    assert_eq!(STAYS.or(STAYS), STAYS);
    assert_eq!(STAYS.or(ENDS), ENDS);
    assert_eq!(BEGINS.or(STAYS), ENDS);
}

#[test]
fn what_an_error_skips_is_taken_back_from_the_last_to_the_first() {
    let close = Expect::Close {
        statement: 8,
        is_hidden: true,
    };
    // 8 gives way to 7, is closed and comes back in the place of another one: the server has done none of it.
    let mut talk = asked(&[Expect::Bind, close, PARSE, HIDDEN, Expect::Sync]);
    let mut back = Vec::new();
    talk.answered(b'E', |heard| back.push(heard));
    let all = [
        Heard::NotRenamed(1),
        Heard::NotPrepared(8),
        Heard::NotPrepared(7),
        Heard::NotClosed(8),
    ];
    assert_eq!(back, all);
    assert!(!talk.is_skipping());
    let mut prepared = crate::server::Prepared::default();
    prepared.add(8, 10);
    back.drain(..).for_each(|heard| prepared.hear(heard));
    assert!(prepared.touch(8) && !prepared.touch(7));
}

#[test]
fn what_may_drop_every_statement_is_waited_for() {
    let drops = Act {
        drops: true,
        ..STAYS
    };
    let mut talk = asked(&[QUERY, Expect::Query(drops)]);
    assert!(talk.may_drop());
    hear(&mut talk, b"CZC");
    assert!(talk.may_drop());
    hear(&mut talk, b"Z");
    assert!(!talk.may_drop());
    talk.sent(Expect::Bind);
    talk.sent(Expect::Execute(drops));
    assert!(talk.may_drop());
    talk.answered(b'E', |_| {});
    assert!(!talk.may_drop() && talk.is_skipping());
}

#[test]
fn what_follows_the_sync_behind_an_error_is_not_ignored() {
    let mut talk = asked(&[Expect::Bind]);
    talk.answered(b'E', |_| {});
    assert!(talk.is_skipping());
    talk.sent(Expect::Bind);
    talk.sent(Expect::Sync);
    assert!(!talk.is_skipping());
    talk.sent(QUERY);
    assert_eq!(hear(&mut talk, b"Z"), "Z");
    assert!(!talk.is_idle());
    assert_eq!(hear(&mut talk, b"TDCZ"), "TDCZ");
    assert!(talk.is_idle());
}

#[test]
fn what_an_unanswered_batch_has_changed_is_uncertain_for_the_next_one_only() {
    let mut talk = asked(&[PARSE]);
    assert!(!talk.are_statements_uncertain());
    talk.sent(Expect::Sync);
    assert!(talk.are_statements_uncertain() && !talk.is_unnamed_uncertain());
    talk.hold();
    assert_eq!(hear(&mut talk, b"1"), "1");
    assert!(talk.is_held());
    assert_eq!(hear(&mut talk, b"Z"), "Z");
    assert!(!talk.are_statements_uncertain() && !talk.is_held());
}

#[test]
fn a_query_that_is_skipped_is_no_batch_that_anything_waits_for() {
    for skipped in [QUERY, Expect::Function, Expect::Deallocate] {
        let mut talk = asked(&[PARSE, skipped]);
        assert_eq!(hear(&mut talk, b"E"), "E");
        talk.sent(Expect::Sync);
        assert_eq!(hear(&mut talk, b"Z"), "Z");
        assert!(talk.is_idle());
        // The next one on this server prepares a statement, and binds it.
        talk.sent(PARSE);
        talk.sent(Expect::Sync);
        assert_eq!(hear(&mut talk, b"1Z"), "1Z");
        assert!(!talk.are_statements_uncertain());
        talk.hold();
        assert!(!talk.is_held());
    }
}

#[test]
fn what_may_drop_statements_and_copies_in_is_not_waited_for() {
    let drops = Act {
        drops: true,
        ..STAYS
    };
    let mut talk = asked(&[Expect::Query(drops)]);
    assert!(talk.may_drop());
    assert_eq!(hear(&mut talk, b"CG"), "CG");
    assert!(!talk.may_drop() && talk.is_copying());
    talk.sent(Expect::CopyEnd);
    assert!(talk.may_drop() && !talk.is_copying());
    assert_eq!(hear(&mut talk, b"CZ"), "CZ");
    assert!(talk.is_idle());
}

#[test]
fn a_transaction_may_have_failed_from_what_is_outstanding_in_it() {
    let begin = Expect::Query(BEGINS);
    assert!(!asked(&[]).may_have_failed() && !asked(&[QUERY, PARSE]).may_have_failed());
    assert!(asked(&[QUERY, begin]).may_have_failed());
    let mut talk = asked(&[begin]);
    hear(&mut talk, b"Cz");
    assert!(!talk.may_have_failed());
    talk.sent(QUERY);
    assert!(talk.may_have_failed());
    hear(&mut talk, b"E");
    talk.ready(Status::Failed);
    assert!(talk.may_have_failed());
    // What fails in the same batch is followed by nothing but its Sync.
    talk = asked(&[]);
    talk.sent(Expect::Execute(BEGINS));
    assert!(!talk.may_have_failed());
    talk.sent(Expect::Sync);
    assert!(talk.may_have_failed());
    assert_eq!(hear(&mut talk, b"C"), "C");
    assert!(talk.may_have_failed());
}

#[test]
fn a_batch_that_was_sent_whole_is_answered_whatever_follows_it() {
    let answered = |expects: &[Expect]| asked(expects).is_answered_in_any_case();
    assert!(answered(&[QUERY]) && answered(&[EXECUTE, Expect::Sync]));
    assert!(answered(&[QUERY, PARSE, EXECUTE, Expect::Sync]));
    // Nothing is outstanding, or more has to come.
    assert!(!answered(&[]) && !answered(&[EXECUTE]) && !answered(&[Expect::Sync, PARSE]));
    // Data of COPY may be waited for.
    let mut copying = asked(&[QUERY]);
    hear(&mut copying, b"G");
    assert!(!copying.is_answered_in_any_case());
    copying.sent(Expect::CopyEnd);
    copying.sent(QUERY);
    assert!(!copying.is_answered_in_any_case());
    hear(&mut copying, b"CZ");
    assert!(copying.is_answered_in_any_case());
    hear(&mut copying, b"CZ");
    assert!(!copying.is_answered_in_any_case());
}

#[test]
fn of_a_request_that_is_disowned_only_its_ready_for_query_is_told() {
    // The wait of a simple query was cancelled, or that of the first of two batches at its Sync.
    let mut talk = asked(&[QUERY, EXECUTE, Expect::Sync]);
    assert!(talk.disown() && !talk.disown(), "told once");
    assert_eq!(hear(&mut talk, b"NCTDCIZCZ"), "N-----ZCZ");
    // A COMMIT in the middle of a batch: what follows was executed, and is not told.
    let mut talk = asked(&[
        Expect::Execute(ENDS),
        Expect::OwedParse,
        Expect::Bind,
        EXECUTE,
        Expect::OwedClose,
        Expect::Sync,
        Expect::OwedParse,
        Expect::Sync,
    ]);
    talk.disown();
    assert_eq!(hear(&mut talk, b"C2SDCZZ"), "--S--Z1Z");
    assert!(talk.is_idle());
    // A failure behind it is one failure too many.
    let mut talk = asked(&[QUERY, QUERY]);
    talk.disown();
    assert_eq!(hear(&mut talk, b"CEZCZ"), "--ZCZ");
}

#[test]
fn a_server_that_waits_for_data_of_a_disowned_request_is_given_up() {
    let mut talk = asked(&[QUERY]);
    talk.disown();
    assert_eq!(hear(&mut talk, b"CG"), "-!");
    let mut talk = asked(&[QUERY]);
    talk.disown();
    assert_eq!(hear(&mut talk, b"CHdcCZ"), "-----Z");
}
