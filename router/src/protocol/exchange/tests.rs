use super::*;

const PARSE: Expect = Expect::Parse {
    statement: 7,
    is_hidden: false,
};
const HIDDEN: Expect = Expect::Parse {
    statement: 8,
    is_hidden: true,
};

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
    let mut talk = asked(&[Expect::Query]);
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
        Expect::Execute,
        Expect::OwedClose,
        Expect::Sync,
    ]);
    assert_eq!(hear(&mut talk, b"12DCZ"), "-21DC3Z");
    assert!(talk.is_idle());
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
    assert_eq!(forgotten, [7, 8]);
    assert_eq!(hear(&mut talk, b"ZZ"), "Z1Z");
    assert!(talk.is_idle());
}

#[test]
fn an_error_before_the_sync_was_sent_swallows_what_follows() {
    let mut talk = asked(&[Expect::Bind, Expect::Execute]);
    hear(&mut talk, b"E");
    talk.sent(Expect::Bind);
    talk.sent(Expect::Query);
    assert!(!talk.is_idle());
    talk.sent(Expect::Sync);
    assert_eq!(hear(&mut talk, b"Z"), "Z");
    assert!(talk.is_idle());
}

#[test]
fn a_sync_before_the_end_of_copied_data_is_swallowed_and_one_after_it_is_not() {
    let mut talk = asked(&[Expect::Execute, Expect::Sync]);
    hear(&mut talk, b"G");
    talk.sent(Expect::CopyEnd);
    talk.sent(Expect::Sync);
    assert_eq!(hear(&mut talk, b"CZ"), "CZ");
    assert!(talk.is_idle());
    // All sent ahead.
    let mut talk = asked(&[Expect::Execute, Expect::CopyEnd, Expect::Sync]);
    assert_eq!(hear(&mut talk, b"GCZ"), "GCZ");
    assert!(talk.is_idle());
    // A COPY that fails.
    let mut talk = asked(&[Expect::Execute, Expect::Sync]);
    hear(&mut talk, b"GE");
    assert!(!talk.is_idle());
    talk.sent(Expect::CopyEnd);
    talk.sent(Expect::Sync);
    assert_eq!(hear(&mut talk, b"Z"), "Z");
    assert!(talk.is_idle());
    // Of a simple query.
    let mut talk = asked(&[Expect::Query]);
    hear(&mut talk, b"G");
    talk.sent(Expect::CopyEnd);
    assert_eq!(hear(&mut talk, b"CZ"), "CZ");
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
    talk.sent(Expect::Query);
    assert_eq!(talk.fate(), Fate::Unknown, "a statement of its own");
    hear(&mut talk, b"CZ");
    talk.asked(true, false);
    talk.sent(Expect::Query);
    assert_eq!(talk.fate(), Fate::Undone, "BEGIN");
    hear(&mut talk, b"Cz");
    assert_eq!(talk.fate(), Fate::Undone);
    talk.sent(Expect::Query);
    assert_eq!(talk.fate(), Fate::Undone);
    talk.asked(false, true);
    talk.sent(Expect::Query);
    assert_eq!(talk.fate(), Fate::Unknown, "COMMIT");
    assert_eq!(talk.unanswered(), (2, false));
    hear(&mut talk, b"CzCZ");
    assert_eq!(talk.fate(), Fate::Nothing);
    talk.sent(Expect::Query);
    talk.asked(true, false);
    talk.sent(Expect::Query);
    assert_eq!(talk.fate(), Fate::Unknown, "something ran before the BEGIN");
}
