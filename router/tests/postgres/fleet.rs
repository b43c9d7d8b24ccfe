//! Two routers before one cluster, behind a load balancer that sends a cancel to either.

use super::support::in_fleet::{join, knows};
use super::*;

#[test]
fn a_cancel_reaches_its_query_through_the_other_router_in_every_pooled_mode() {
    as_postgres(
        "fleet::a_cancel_reaches_its_query_through_the_other_router_in_every_pooled_mode",
        async || {
            let server = Postgres::start();
            for mode in [Mode::Transaction, Mode::Session, Mode::Statement] {
                let one = server.router(mode).await;
                let setup = server.setup(mode, "", TlsSection::default());
                let two = Stack::start_in(one.dcs.clone(), setup).await;
                two.until(|p| p.table.has_writer()).await;
                let _members = (join(&one, "one").await, join(&two, "two").await);
                knows(&one, 2).await;
                knows(&two, 2).await;
                for (own, other) in [(&one, &two), (&two, &one)] {
                    cancelled_through(&server, own, other).await;
                }
            }
        },
    );
}

/// A query at one router, and its cancel through another; the session goes on.
async fn cancelled_through(server: &Postgres, own: &Stack, other: &Stack) {
    let client = connect(own, "sleeper").await;
    let token = client.cancel_token();
    let sleeping = tokio::spawn(async move {
        let sql = "select pg_sleep(600)";
        let failed = client.simple_query(sql).await.unwrap_err();
        (failed.code().unwrap().code().to_owned(), client)
    });
    let running = "select count(*) from pg_stat_activity where query like 'select pg_sleep(600%' \
                   and state = 'active'";
    let mut looks = tokio::time::interval(std::time::Duration::from_millis(20));
    while server.ask(running) != "1" {
        looks.tick().await;
    }
    let stream = tokio::net::TcpStream::connect(other.address).await.unwrap();
    token.cancel_query_raw(stream, NoTls).await.unwrap();
    let (code, client) = sleeping.await.unwrap();
    assert_eq!(code, "57014");
    assert_eq!(text(&client, "select 'on'").await, "on");
}
