//! The server of a session is lost: what its client hears, and what goes on.

use super::*;

#[tokio::test]
async fn an_idle_client_does_not_notice_a_change_of_leader() {
    let (stack, mut a) = led(Mode::Transaction).await;
    let mut b = FakePostgres::start(false).await;
    let mut one = stack.session().await;
    assert_eq!(ask(&mut one, "select 1").await, "CZI");
    stack.put("leader", "b").await;
    a.until(|seen| seen.ended == 1).await;
    one.query("select 2").await;
    stack.member("b", b.address, "primary").await;
    assert_eq!(answer(&mut one).await, "CZI");
    b.until(|seen| seen.queries == ["select 2"]).await;
}

#[tokio::test]
async fn a_transaction_on_a_lost_leader_hears_40001_and_its_session_goes_on() {
    let (stack, mut a) = led(Mode::Transaction).await;
    let b = FakePostgres::start(false).await;
    let mut one = stack.session().await;
    ask(&mut one, "begin").await;
    stack.put("leader", "b").await;
    a.until(|seen| seen.ended == 1).await;
    stack.member("b", b.address, "primary").await;
    one.query("select 1").await;
    assert_eq!(error(&mut one).await, "40001");
    assert_eq!(answer(&mut one).await, "ZE");
    one.query("select 2").await;
    assert_eq!(error(&mut one).await, "25P02");
    assert_eq!(answer(&mut one).await, "ZE");
    assert_eq!(ask(&mut one, "commit").await, "CZI");
    assert_eq!(ask(&mut one, "select 3").await, "CZI");
}

#[tokio::test]
async fn the_end_of_a_lost_transaction_may_be_prepared_under_a_name_and_used_again() {
    let (stack, mut a) = led(Mode::Transaction).await;
    let mut b = FakePostgres::start(false).await;
    let mut one = stack.session().await;
    ask(&mut one, "begin").await;
    stack.put("leader", "b").await;
    a.until(|seen| seen.ended == 1).await;
    stack.member("b", b.address, "primary").await;
    let run = [
        message(b'B', b"\0end\0\0\0\0\0\0\0"),
        message(b'E', b"\0\0\0\0\0"),
        message(b'S', b""),
    ]
    .concat();
    one.query("select 1").await;
    assert_eq!(error(&mut one).await, "40001");
    assert_eq!(answer(&mut one).await, "ZE");
    let prepared = [message(b'P', b"end\0commit\0\0\0"), run.clone()].concat();
    one.send(&prepared).await;
    assert_eq!(answer(&mut one).await, "12CZI");
    // The new server gets to know it when it is asked to.
    one.send(&run).await;
    assert_eq!(answer(&mut one).await, "2CZI");
    b.until(|seen| seen.messages.iter().any(|(kind, _)| *kind == 'P'))
        .await;
}

#[tokio::test]
async fn an_unanswered_commit_hears_08007_and_its_session_goes_on() {
    for (statements, code, status) in [
        (&["hang"][..], "08007", "ZI"),
        (&["begin", "hang"], "40001", "ZE"),
        (&["begin", "commit; hang"], "08007", "ZI"),
        (&["stop"], "08007", "ZI"),
        (&["begin", "stop"], "40001", "ZE"),
    ] {
        let (stack, mut a) = led(Mode::Transaction).await;
        let mut one = stack.session().await;
        let (last, before) = statements.split_last().unwrap();
        for sql in before {
            ask(&mut one, sql).await;
        }
        one.query(last).await;
        a.until(|seen| seen.queries.iter().any(|q| q == last)).await;
        stack.delete("leader").await;
        assert_eq!(error(&mut one).await, code, "{statements:?}");
        assert_eq!(answer(&mut one).await, status, "{statements:?}");
    }
}

#[tokio::test]
async fn an_unanswered_rollback_has_what_it_wants() {
    let simple = vec![query("rollback -- hang")];
    let prepared = parse("r", "rollback -- hang");
    let by_parts = vec![prepared, bind("", "r"), execute(""), sync()];
    for (batch, told) in [(simple, "CZI"), (by_parts, "12CZI")] {
        let (stack, mut a) = led(Mode::Transaction).await;
        let mut b = FakePostgres::start(false).await;
        let mut one = stack.session().await;
        assert_eq!(ask(&mut one, "begin").await, "CZT");
        one.send(&batch.concat()).await;
        a.until(|seen| {
            let is_execute = |(kind, _): &(char, Vec<u8>)| *kind == 'E';
            seen.queries.len() == 2 || seen.messages.iter().any(is_execute)
        })
        .await;
        stack.put("leader", "b").await;
        stack.member("b", b.address, "primary").await;
        assert_eq!(answer(&mut one).await, told);
        assert_eq!(ask(&mut one, "select 1").await, "CZI");
        assert_eq!(b.until(|_| true).await.queries, ["select 1"]);
    }
}

#[tokio::test]
async fn who_waits_for_a_server_of_a_leader_that_hangs_goes_on_with_the_next_one() {
    let patient = ONE.replace("size: 1", "size: 1, server_connect_timeout: 1h");
    let stack = stack(Mode::Transaction, &patient).await;
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    stack.lead("a", silent.local_addr().unwrap()).await;
    let mut one = stack.client().await;
    one.send(&startup("app")).await;
    let _hanging = log_in_at(&silent).await;
    let b = FakePostgres::start(false).await;
    stack.put("leader", "b").await;
    stack.member("b", b.address, "primary").await;
    one.ready().await;
    assert_eq!(ask(&mut one, "select 1").await, "CZI");
}

/// What a client hears whose leader is lost after these batches, of which the last is not answered.
async fn told_after(mode: Mode, pooling: &str, batches: &[Vec<u8>]) -> String {
    let mut a = FakePostgres::start(false).await;
    let stack = stack(mode, pooling).await;
    stack.lead("a", a.address).await;
    let mut one = stack.session().await;
    let (last, before) = batches.split_last().unwrap();
    for batch in before {
        one.send(batch).await;
        answer(&mut one).await;
    }
    // Header and rest come apart.
    one.send(&last[..5]).await;
    let mut other = stack.client().await;
    other.send(&SSL_REQUEST).await;
    other.expect(b"N").await;
    one.send(&last[5..]).await;
    a.until(|seen| {
        let is_hanging = |query: &String| query.ends_with("hang");
        let is_execute = |(kind, _): &(char, Vec<u8>)| *kind == 'E';
        seen.queries.iter().any(is_hanging) || seen.messages.iter().any(is_execute)
    })
    .await;
    stack.delete("leader").await;
    loop {
        let (kind, body) = one.message().await;
        if kind == b'E' {
            let code = body.split(|b| *b == 0).find(|f| f.first() == Some(&b'C'));
            return String::from_utf8_lossy(&code.unwrap()[1..]).into_owned();
        }
    }
}

#[tokio::test]
async fn whatever_may_have_committed_is_told_08007() {
    let unprepared = ONE.replace("size: 1", "size: 1, max_prepared_statements: 0");
    let (commit, insert) = ("commit -- hang", "insert into t values (1) -- hang");
    let prepared = |name: &str, sql: &str| [parse(name, sql), sync()].concat();
    let run = |name: &str| [bind("", name), execute(""), sync()].concat();
    let (begin, listen) = (query("begin"), query("listen x"));
    let bound = [bind("p", "c"), sync()].concat();
    let ported = [execute("p"), sync()].concat();
    let unasked = [parse("", "begin"), sync(), query(insert)].concat();
    let long = query(&format!("commit /* {} */ -- hang", "x".repeat(1 << 20)));
    let (mode, other) = (Mode::Transaction, Mode::Session);
    let first = || begin.clone();
    let held = vec![first(), prepared("c", commit), bound, ported];
    let named = |sql: &str| vec![first(), prepared("c", sql), run("c")];
    let unnamed = |sql: &str| vec![first(), prepared("", sql), run("")];
    for (mode, pooling, batches, code) in [
        (other, ONE, vec![first(), query(commit)], "08007"),
        (other, ONE, vec![first(), query(insert)], "57P01"),
        (other, ONE, named(commit), "08007"),
        (other, ONE, named(insert), "57P01"),
        (other, ONE, vec![first(), long], "08007"),
        (mode, ONE, vec![listen, first(), query(commit)], "08007"),
        (mode, ONE, unnamed(commit), "08007"),
        (mode, ONE, unnamed(insert), "40001"),
        (mode, &unprepared, named(commit), "08007"),
        (mode, ONE, held, "08007"),
        (mode, ONE, vec![unasked], "08007"),
    ] {
        let told = told_after(mode, pooling, &batches).await;
        let said: Vec<_> = batches.iter().map(|b| String::from_utf8_lossy(b)).collect();
        let said: Vec<String> = said.iter().map(|s| s.chars().take(80).collect()).collect();
        assert_eq!(told, code, "{mode:?} {said:?}");
    }
}

/// Stops both cores until what it returns is dropped: what happens meanwhile they find all at once.
async fn hold_cores(stack: &Stack) -> Vec<std::sync::mpsc::Sender<()>> {
    let (held, mut threads) = tokio::sync::mpsc::unbounded_channel();
    let mut holds = Vec::new();
    // Each goes to the core with the fewest sessions, which are as many on both or one more.
    for _ in 0..4 {
        let (hold, until) = std::sync::mpsc::channel();
        let held = held.clone();
        stack._cores.spawn(|place| async move {
            let _place = place;
            let _ = held.send(std::thread::current().id());
            let _ = until.recv();
        });
        holds.push(hold);
    }
    let stopped = async {
        let first = threads.recv().await;
        while threads.recv().await == first {}
    };
    let stopped = tokio::time::timeout(Duration::from_secs(20), stopped).await;
    stopped.unwrap();
    holds
}

#[tokio::test]
async fn a_request_that_was_begun_when_its_server_was_lost_is_read_to_its_end() {
    let (stack, mut a) = led(Mode::Transaction).await;
    let mut one = stack.session().await;
    ask(&mut one, "begin").await;
    ask(&mut one, "doom").await;
    let hold = hold_cores(&stack).await;
    let second = query("select 2, 'Q and what else looks like a header'");
    let (half, rest) = second.split_at(20);
    one.send(&[query("select 1"), half.to_vec()].concat()).await;
    let mut cancel = tokio::net::TcpStream::connect(a.address).await.unwrap();
    let request = [&[0, 0, 0, 16, 4, 210, 22, 46][..], &[0; 8]].concat();
    tokio::io::AsyncWriteExt::write_all(&mut cancel, &request)
        .await
        .unwrap();
    a.until(|seen| seen.ended == 1).await;
    drop(hold);
    assert_eq!(error(&mut one).await, "40001");
    assert_eq!(answer(&mut one).await, "ZE");
    one.send(rest).await;
    assert_eq!(error(&mut one).await, "25P02");
    assert_eq!(answer(&mut one).await, "ZE");
    assert_eq!(ask(&mut one, "rollback").await, "CZI");
}

#[tokio::test]
async fn a_client_in_a_transaction_hears_that_the_router_stops() {
    let (stack, _a) = led(Mode::Transaction).await;
    let mut one = stack.session().await;
    ask(&mut one, "begin").await;
    stack.cluster.lanes.end_all(clock::now());
    let (code, message) = one.fatal().await;
    assert_eq!(code, "57P01");
    assert!(message.contains("router is stopping"), "{message}");
}

#[tokio::test]
async fn a_client_that_waits_for_a_server_or_a_leader_hears_that_the_router_stops() {
    for has_leader in [true, false] {
        let (stack, mut a) = led(Mode::Transaction).await;
        let mut one = stack.session().await;
        let mut two = stack.session().await;
        ask(&mut one, "begin").await;
        if !has_leader {
            stack.delete("leader").await;
            a.until(|seen| seen.ended == 1).await;
            one.query("select 1").await;
            assert_eq!(error(&mut one).await, "40001");
            assert_eq!(answer(&mut one).await, "ZE");
        }
        two.query("select 1").await;
        // It has long come to where it waits when these are answered; what is told is the same before.
        for _ in 0..50 {
            ask(&mut one, "select 2").await;
        }
        stack.listening.registry.as_ref().unwrap().end_all();
        let (code, message) = two.fatal().await;
        assert_eq!(code, "57P01");
        assert!(message.contains("router is stopping"), "{message}");
    }
}

#[tokio::test]
async fn a_client_pinned_to_a_lost_leader_hears_what_session_mode_says() {
    for (mode, first) in [(Mode::Transaction, "listen x"), (Mode::Session, "select 1")] {
        let (stack, _a) = led(mode).await;
        let mut one = stack.session().await;
        ask(&mut one, first).await;
        stack.delete("leader").await;
        assert_eq!(one.fatal().await.0, "57P01");
        let (stack, mut a) = led(mode).await;
        let mut one = stack.session().await;
        ask(&mut one, first).await;
        one.query("hang").await;
        a.until(|seen| seen.queries.iter().any(|q| q == "hang"))
            .await;
        stack.delete("leader").await;
        assert_eq!(one.fatal().await.0, "08007");
    }
}
