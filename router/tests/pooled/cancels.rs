//! Cancel requests: to whose query they come, and to whose not.

use super::*;

#[tokio::test]
async fn a_cancel_reaches_the_server_of_the_session_and_only_while_it_works() {
    let (stack, mut a) = led(Mode::Transaction).await;
    let mut one = stack.client().await;
    one.send(&startup("app")).await;
    let key = loop {
        let (kind, body) = one.message().await;
        if kind == b'K' {
            break body;
        }
    };
    one.ready().await;
    let request = [&[0, 0, 0, 16, 4, 210, 22, 46][..], &key].concat();
    let cancel = async || {
        let mut canceller = stack.client().await;
        canceller.send(&request).await;
        assert_eq!(canceller.rest().await, b"");
    };
    cancel().await;
    assert_eq!(ask(&mut one, "select 1").await, "CZI");
    one.query("hang").await;
    a.until(|seen| seen.queries.len() == 2).await;
    cancel().await;
    let seen = a.until(|seen| !seen.cancels.is_empty()).await;
    // With the server's own key, which the client never saw.
    assert_eq!(
        seen.cancels,
        [[0, 0, 0, 16, 4, 210, 22, 46, 0, 0, 0, 9, 1, 2, 3, 4].to_vec()]
    );
}

/// Sends a cancel request and waits for its end.
async fn cancel(stack: &Stack, key: &[u8]) {
    let mut canceller = stack.client().await;
    let request = [&[0, 0, 0, 16, 4, 210, 22, 46][..], key].concat();
    canceller.send(&request).await;
    assert_eq!(canceller.rest().await, b"");
}

#[tokio::test]
async fn the_key_of_a_session_that_is_over_reaches_nobody() {
    let (stack, mut a) = led(Mode::Session).await;
    let (mut one, key) = keyed(&stack).await;
    one.send(&message(b'X', b"")).await;
    // The same server, whose own secret no client has seen.
    let (mut two, own) = keyed(&stack).await;
    assert!(key != own && key[4..] != [1, 2, 3, 4]);
    two.query("wait").await;
    a.until(|seen| seen.queries.iter().any(|q| q == "wait"))
        .await;
    cancel(&stack, &key).await;
    cancel(&stack, &[0, 0, 0, 9, 1, 2, 3, 4]).await;
    // Those before it would have come first.
    cancel(&stack, &own).await;
    assert_eq!(error(&mut two).await, "57014");
    assert_eq!(answer(&mut two).await, "ZI");
    let seen = a.until(|seen| !seen.cancels.is_empty()).await;
    assert_eq!((seen.startups.len(), seen.cancels.len()), (1, 1));
}

#[tokio::test]
async fn a_server_whose_cancel_did_not_end_is_nobody_elses() {
    let (stack, mut a) = led(Mode::Transaction).await;
    let (mut one, key) = keyed(&stack).await;
    one.query("wait long").await;
    a.until(|seen| seen.queries.len() == 1).await;
    cancel(&stack, &key).await;
    assert_eq!(error(&mut one).await, "57014");
    assert_eq!(answer(&mut one).await, "ZI");
    let mut two = stack.session().await;
    assert_eq!(ask(&mut two, "select 2").await, "CZI");
    let seen = a.until(|seen| seen.queries.len() == 2).await;
    assert_eq!(seen.startups.len(), 2, "it was given to the next client");
}

#[tokio::test]
async fn what_a_client_asks_after_its_cancel_waits_for_the_end_of_it() {
    let mut a = FakePostgres::start(false).await;
    let two_servers = ONE.replace("size: 1", "size: 2");
    let stack = stack(Mode::Session, &two_servers).await;
    stack.lead("a", a.address).await;
    let mut other = stack.session().await;
    let (mut one, key) = keyed(&stack).await;
    one.query("wait long").await;
    a.until(|seen| seen.queries.len() == 1).await;
    let began = clock::now();
    cancel(&stack, &key).await;
    assert_eq!(error(&mut one).await, "57014");
    assert_eq!(answer(&mut one).await, "ZI");
    one.query("select next").await;
    assert_eq!(ask(&mut other, "now").await, "CZI");
    assert_eq!(answer(&mut one).await, "CZI");
    let seen = a.until(|seen| seen.queries.len() == 3).await;
    // Later than this the router has given the cancel up, and the server with it.
    if clock::now().since(began) < CONNECT_TIME {
        assert_eq!(seen.queries, ["wait long", "now", "select next"]);
    }
}

#[tokio::test]
async fn a_request_that_waits_for_a_server_is_cancelled_here() {
    let (stack, a) = led(Mode::Transaction).await;
    let mut one = stack.session().await;
    ask(&mut one, "begin").await;
    let mut two = stack.client().await;
    two.send(&startup("app")).await;
    let key = loop {
        let (kind, body) = two.message().await;
        if kind == b'K' {
            break body;
        }
    };
    two.ready().await;
    two.query("select 2").await;
    // Sent again until the request has come to wait.
    let mut canceller = stack.client().await;
    let request = [&[0, 0, 0, 16, 4, 210, 22, 46][..], &key].concat();
    canceller.send(&request).await;
    let answered = async {
        let mut looks = tokio::time::interval(Duration::from_millis(50));
        loop {
            tokio::select! {
                code = error(&mut two) => return code,
                _ = looks.tick() => {
                    let mut canceller = stack.client().await;
                    canceller.send(&request).await;
                }
            }
        }
    };
    assert_eq!(answered.await, "57014");
    assert_eq!(answer(&mut two).await, "ZI");
    ask(&mut one, "commit").await;
    assert_eq!(ask(&mut two, "select 3").await, "CZI");
    drop(a);
}
