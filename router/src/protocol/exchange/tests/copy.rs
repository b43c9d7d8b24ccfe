//! COPY, and what it makes of a Sync.

use super::*;

#[test]
fn a_sync_before_the_end_of_copied_data_is_swallowed_and_one_after_it_is_not() {
    let mut talk = asked(&[EXECUTE, Expect::Sync]);
    hear(&mut talk, b"G");
    talk.sent(Expect::CopyEnd);
    talk.sent(Expect::Sync);
    assert_eq!(hear(&mut talk, b"CZ"), "CZ");
    assert!(talk.is_idle());
    // All sent ahead.
    let mut talk = asked(&[EXECUTE, Expect::CopyEnd, Expect::Sync]);
    assert_eq!(hear(&mut talk, b"GCZ"), "GCZ");
    assert!(talk.is_idle());
    // A COPY that fails.
    let mut talk = asked(&[EXECUTE, Expect::Sync]);
    hear(&mut talk, b"GE");
    assert!(!talk.is_idle());
    talk.sent(Expect::CopyEnd);
    talk.sent(Expect::Sync);
    assert_eq!(hear(&mut talk, b"Z"), "Z");
    // Whether the Sync before was ignored is not known: one more answer may come.
    assert!(!talk.is_idle() && talk.is_in_doubt());
    // Of a simple query.
    let mut talk = asked(&[QUERY]);
    hear(&mut talk, b"G");
    talk.sent(Expect::CopyEnd);
    assert_eq!(hear(&mut talk, b"CZ"), "CZ");
    assert!(talk.is_idle());
}

#[test]
fn a_sync_that_comes_while_data_is_copied_is_swallowed_too() {
    let mut talk = asked(&[Expect::Bind, EXECUTE, Expect::Sync]);
    assert_eq!(hear(&mut talk, b"2G"), "2G");
    talk.sent(Expect::Sync);
    talk.sent(Expect::CopyEnd);
    talk.sent(Expect::Sync);
    assert_eq!(hear(&mut talk, b"CZ"), "CZ");
    assert!(talk.is_idle());
}

#[test]
fn of_a_copy_that_failed_before_or_behind_a_sync_a_probe_tells_which() {
    // PostgreSQL came to the first Sync while it copied, or when it had failed: it answers one of two, or both.
    for (answers, more, told) in [
        (&b"EZ"[..], &b"3"[..], "-"),
        (b"EZ", b"Z3", "Z-"),
        (b"EZZ", b"", ""),
    ] {
        let mut talk = asked(&[Expect::Bind, EXECUTE, Expect::Sync]);
        assert_eq!(hear(&mut talk, b"2G"), "2G");
        talk.sent(Expect::CopyEnd);
        talk.sent(Expect::Sync);
        let heard = hear(&mut talk, answers);
        assert_eq!(heard.as_bytes(), answers);
        assert_eq!(talk.is_in_doubt(), !more.is_empty());
        if talk.is_in_doubt() {
            talk.sent(Expect::Probe);
            assert!(!talk.is_idle() && !talk.is_in_doubt() && talk.unanswered() == (0, false));
        }
        assert_eq!(hear(&mut talk, more), told);
        assert!(talk.is_idle());
    }
}

#[test]
fn what_is_asked_behind_a_copy_that_failed_is_not_answered_by_the_sync_of_that() {
    // The Sync was sent inside COPY, which had failed before it came to it.
    let failed = || {
        let mut talk = asked(&[QUERY]);
        hear(&mut talk, b"G");
        talk.sent(Expect::Sync);
        talk.sent(Expect::CopyEnd);
        talk
    };
    for (next, answer) in [(QUERY, &b"CZ"[..]), (Expect::Function, b"EZ")] {
        let mut talk = failed();
        talk.sent(next);
        assert_eq!(hear(&mut talk, b"EZZ"), "EZZ");
        assert_eq!(talk.unanswered(), (1, false));
        assert_eq!(hear(&mut talk, answer).as_bytes(), answer);
        assert!(talk.is_idle());
    }
    // What is asked behind the probe.
    let mut talk = failed();
    assert_eq!(hear(&mut talk, b"EZ"), "EZ");
    talk.sent(Expect::Probe);
    talk.sent(PARSE);
    talk.sent(Expect::Sync);
    assert_eq!(hear(&mut talk, b"Z31Z"), "Z-1Z");
    assert!(talk.is_idle());
    // There is no place for a probe inside a batch.
    let mut talk = failed();
    talk.sent(PARSE);
    assert_eq!(hear(&mut talk, b"EZ1"), "EZ1");
    assert!(!talk.is_in_doubt() && !talk.is_idle());
    talk.sent(Expect::Sync);
    assert_eq!(hear(&mut talk, b"Z"), "Z");
    assert!(talk.is_in_doubt());
}

#[test]
fn a_sync_that_is_answered_after_all_ends_what_the_server_ignores() {
    // An error of COPY before it reads anything: of a trigger, or by a cancel.
    let failed = || {
        let mut talk = asked(&[Expect::Bind, EXECUTE, Expect::Sync]);
        assert_eq!(hear(&mut talk, b"2GE"), "2GE");
        talk
    };
    let mut talk = failed();
    assert_eq!(hear(&mut talk, b"Z"), "Z");
    assert!(talk.is_idle() && !talk.is_skipping());
    talk.sent(QUERY);
    assert_eq!(talk.unanswered(), (1, false));
    // What was sent behind it is executed then, and was not counted.
    let mut talk = failed();
    talk.sent(Expect::CopyEnd);
    talk.sent(QUERY);
    assert_eq!(hear(&mut talk, b"Z"), "!");
    // Of which Sync the next answer is, nobody can tell.
    let mut talk = failed();
    talk.sent(QUERY);
    talk.sent(Expect::Sync);
    assert_eq!(hear(&mut talk, b"Z"), "!");
    assert_eq!(
        (talk.fate(), talk.unanswered()),
        (Fate::Unknown, (1, false))
    );
    // With nothing sent behind it the probe tells.
    let mut talk = failed();
    talk.sent(Expect::CopyEnd);
    talk.sent(Expect::Sync);
    assert_eq!(hear(&mut talk, b"Z"), "Z");
    assert!(talk.is_in_doubt());
    talk.sent(Expect::Probe);
    assert_eq!(talk.fate(), Fate::Nothing);
    assert_eq!(hear(&mut talk, b"3"), "-");
    assert!(talk.is_idle());
    talk = failed();
    talk.sent(Expect::Sync);
    assert_eq!(hear(&mut talk, b"Z"), "Z");
    talk.sent(Expect::Probe);
    assert_eq!(hear(&mut talk, b"E"), "!");
    // Sent ahead of the error.
    let mut talk = asked(&[EXECUTE, Expect::Sync]);
    hear(&mut talk, b"G");
    talk.sent(Expect::CopyEnd);
    talk.sent(PARSE);
    assert_eq!(hear(&mut talk, b"EZ"), "E!");
}

#[test]
fn a_sync_behind_another_message_is_not_inside_copy() {
    // The COPY fails at once, and the next query is answered as always.
    let mut talk = asked(&[QUERY, QUERY, Expect::Sync]);
    assert_eq!(hear(&mut talk, b"GEZCZ"), "GEZCZ");
    assert!(!talk.is_idle());
    assert_eq!(hear(&mut talk, b"Z"), "Z");
    assert!(talk.is_idle());
    let mut talk = asked(&[QUERY]);
    hear(&mut talk, b"G");
    talk.sent(QUERY);
    assert!(!talk.is_copying());
    talk.sent(Expect::Sync);
    assert_eq!(hear(&mut talk, b"EZCZ"), "EZCZ");
    assert!(!talk.is_idle() && !talk.is_in_doubt());
}

#[test]
fn each_copy_of_one_query_has_an_end_of_its_own() {
    let mut talk = asked(&[QUERY, Expect::CopyEnd, Expect::Sync]);
    assert_eq!(hear(&mut talk, b"GCG"), "GCG");
    assert!(talk.is_copying());
    talk.hold();
    assert!(!talk.is_held());
    talk.sent(Expect::CopyEnd);
    assert!(talk.is_held() && talk.is_copy_uncertain());
    assert_eq!(hear(&mut talk, b"CZ"), "CZ");
    assert!(talk.is_idle());
}

#[test]
fn what_follows_a_copy_with_a_sync_inside_waits_for_its_answer() {
    // Sent ahead, and once the server copies.
    let ahead = || asked(&[EXECUTE, Expect::Sync, Expect::CopyEnd]);
    let mut while_it_copies = asked(&[EXECUTE]);
    hear(&mut while_it_copies, b"G");
    while_it_copies.sent(Expect::Sync);
    assert!(!while_it_copies.is_copy_uncertain());
    while_it_copies.sent(Expect::CopyEnd);
    while_it_copies.sent(Expect::Sync);
    let mut ended = ahead();
    hear(&mut ended, b"G");
    ended.sent(Expect::Sync);
    for mut talk in [ended, while_it_copies] {
        assert!(talk.is_copy_uncertain());
        talk.hold();
        assert_eq!(hear(&mut talk, b"CZ"), "CZ");
        assert!(!talk.is_copy_uncertain() && !talk.is_held() && talk.is_idle());
    }
    // It fails at once, and both Syncs are answered.
    let mut talk = ahead();
    talk.sent(Expect::Sync);
    talk.hold();
    assert_eq!(hear(&mut talk, b"GEZ"), "GEZ");
    assert!(!talk.is_held() && talk.is_in_doubt());
    // Without one nothing is waited for.
    let mut talk = asked(&[EXECUTE, Expect::CopyEnd, Expect::Sync]);
    assert!(!talk.is_copy_uncertain());
    hear(&mut talk, b"GCZ");
    talk.sent(QUERY);
    assert!(!talk.is_copy_uncertain());
}
