//! Replication connections: what their servers are opened with, and whose they are.

use super::*;

/// Logs in with these parameters.
async fn login(stack: &Stack, parameters: &str) -> Client {
    let mut client = stack.client().await;
    let body = format!("\0\x03\0\0{parameters}\0");
    let length = u32::try_from(body.len() + 4).unwrap().to_be_bytes();
    client.send(&[&length[..], body.as_bytes()].concat()).await;
    client
}

#[tokio::test]
async fn each_opens_a_server_with_its_own_parameters_and_takes_it_along() {
    let mut a = FakePostgres::start(false).await;
    let three = ONE.replace("size: 1", "size: 3, ignore_startup_parameters: x");
    let stack = stack(Mode::Statement, &three).await;
    stack.lead("a", a.address).await;
    let physical = "user\0app\0database\0replication\0replication\0true\0options\0-c a=b\0x\0on\0";
    let mut one = login(&stack, physical).await;
    one.ready().await;
    let mut two = login(&stack, "user\0app\0database\0app\0replication\0database\0").await;
    two.ready().await;
    let seen = a.until(|seen| seen.startups.len() == 2).await;
    let packet = |at: usize| String::from_utf8_lossy(&seen.startups[at][8..]).into_owned();
    assert_eq!(
        packet(0),
        "user\0app\0database\0replication\0replication\0true\0a\0b\0\0"
    );
    assert_eq!(
        packet(1),
        "user\0app\0database\0app\0replication\0database\0\0"
    );
    // Neither settings nor a look whether it is in recovery: it may take no SQL. A block is its own affair.
    assert_eq!(ask(&mut one, "begin").await, "CZT");
    one.send(&message(b'X', b"")).await;
    a.until(|seen| seen.ended == 1).await;
    two.send(&message(b'X', b"")).await;
    let seen = a.until(|seen| seen.ended == 2).await;
    assert_eq!(seen.queries, ["begin"]);
    // Nothing of it is left in the pool.
    let mut three = stack.session().await;
    assert_eq!(ask(&mut three, "select 1").await, "CZI");
    let seen = a.until(|seen| seen.queries.len() == 2).await;
    assert_eq!(seen.startups.len(), 3);
}

#[tokio::test]
async fn one_that_finds_no_place_hears_57014_and_the_places_come_back() {
    let impatient = ONE.replace("size: 1", "size: 1, query_wait_timeout: 300ms");
    let mut a = FakePostgres::start(false).await;
    let stack = stack(Mode::Transaction, &impatient).await;
    stack.lead("a", a.address).await;
    let replica = "user\0app\0database\0app\0replication\0database\0";
    let mut one = login(&stack, replica).await;
    one.ready().await;
    let mut two = login(&stack, replica).await;
    // AuthenticationOk comes before the wait for a server.
    assert_eq!(two.message().await.0, b'R');
    let (code, message_of_it) = two.fatal().await;
    assert_eq!(code, "57014");
    assert!(
        message_of_it.contains("query_wait_timeout"),
        "{message_of_it}"
    );
    one.send(&message(b'X', b"")).await;
    a.until(|seen| seen.ended == 1).await;
    let mut three = login(&stack, replica).await;
    three.ready().await;
}
