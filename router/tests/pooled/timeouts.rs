//! Clients whose time is over, by the three limits of PgBouncer's names.

use super::*;

/// A stack with a leader `a` and this limit of time.
async fn limited(limit: &str) -> (Stack, FakePostgres) {
    let a = FakePostgres::start(false).await;
    let limited = ONE.replace("size: 1", &format!("size: 1, {limit}: 200ms"));
    let stack = stack(Mode::Transaction, &limited).await;
    stack.lead("a", a.address).await;
    (stack, a)
}

#[tokio::test]
async fn a_log_in_and_a_connect_without_a_limit_are_not_over_at_once() {
    let mut a = FakePostgres::start(false).await;
    let none =
        "size: 1, client_login_timeout: 0, server_connect_timeout: 0, query_wait_timeout: 5s";
    let limits = ONE.replace("size: 1", none);
    let stack = stack(Mode::Transaction, &limits.replace("trust", "md5")).await;
    stack.lead("a", a.address).await;
    let mut client = stack.client().await;
    client.send(&startup("app")).await;
    let (kind, body) = client.message().await;
    assert_eq!((kind, &body[..4]), (b'R', &[0, 0, 0, 5][..]));
    client.send(&message(b'p', b"wrong\0")).await;
    assert_eq!(client.fatal().await.0, "28P01");
    let stack = self::stack(Mode::Transaction, &limits).await;
    stack.lead("a", a.address).await;
    let mut client = stack.session().await;
    assert_eq!(ask(&mut client, "select 1").await, "CZI");
    a.until(|seen| seen.startups.len() == 1).await;
}

#[tokio::test]
async fn who_is_idle_too_long_hears_57p05_and_who_is_in_a_transaction_does_not() {
    let (stack, _a) = limited("client_idle_timeout").await;
    let mut one = stack.session().await;
    let mut two = stack.session().await;
    assert_eq!(ask(&mut one, "begin").await, "CZT");
    let (code, message) = two.fatal().await;
    assert_eq!(code, "57P05");
    assert!(message.contains("client_idle_timeout"), "{message}");
    assert_eq!(ask(&mut one, "commit").await, "CZI");
    assert_eq!(one.fatal().await.0, "57P05");
}

#[tokio::test]
async fn who_is_idle_in_a_transaction_too_long_hears_25p03_and_the_server_is_closed() {
    let (stack, mut a) = limited("idle_transaction_timeout").await;
    let mut one = stack.session().await;
    let mut two = stack.session().await;
    assert_eq!(ask(&mut one, "begin").await, "CZT");
    let (code, message) = one.fatal().await;
    assert_eq!(code, "25P03");
    assert!(message.contains("idle_transaction_timeout"), "{message}");
    a.until(|seen| seen.ended == 1).await;
    assert_eq!(ask(&mut two, "select 1").await, "CZI");
}

#[tokio::test]
async fn a_query_without_an_answer_in_time_is_cancelled_and_its_outcome_is_told() {
    for (before, code) in [(None, "08007"), (Some("begin"), "57014")] {
        let (stack, mut a) = limited("query_timeout").await;
        let mut one = stack.session().await;
        if let Some(before) = before {
            ask(&mut one, before).await;
        }
        one.query("hang").await;
        let (told, message) = one.fatal().await;
        assert_eq!(told, code, "{before:?}");
        assert!(message.contains("query_timeout"), "{message}");
        a.until(|seen| seen.cancels.len() == 1 && seen.ended >= 1)
            .await;
    }
}
