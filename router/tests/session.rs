//! Whole sessions over loopback sockets: a fake PostgreSQL behind, the in-memory DCS beside.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[expect(dead_code, reason = "other tests use more of it")]
mod support {
    pub mod client;
    #[expect(dead_code, reason = "pooled sessions use more of it")]
    pub mod fake_postgres;
    pub mod stack;
}

use std::time::Duration;

use support::client::SSL_REQUEST;
use support::fake_postgres::FakePostgres;
use support::stack::{Setup, Stack, startup};
use trunkline_router::config::ProxyProtocol;
use trunkline_router::route::TargetKind;

#[tokio::test]
async fn the_startup_packet_arrives_as_it_was_sent() {
    let mut a = FakePostgres::start(false).await;
    let stack = Stack::start(Setup::default()).await;
    stack.lead("a", a.address).await;
    let packet = startup("somebody");
    let mut client = stack.client().await;
    let (one, two) = packet.split_at(7);
    client.send(one).await;
    client.send(two).await;
    client.ready().await;
    let seen = a.until(|seen| !seen.startups.is_empty()).await;
    assert_eq!(seen.startups, [packet]);
    client.query("select 1").await;
    assert_eq!(client.message().await, (b'C', b"DONE\0".to_vec()));
}

#[tokio::test]
async fn an_idle_session_of_a_lost_leader_hears_57p01() {
    let mut a = FakePostgres::start(false).await;
    let stack = Stack::start(Setup::default()).await;
    stack.lead("a", a.address).await;
    let mut client = stack.session().await;
    stack.delete("leader").await;
    let (code, message) = client.fatal().await;
    assert_eq!(code, "57P01");
    assert!(message.contains("leader was lost"), "{message}");
    a.until(|seen| seen.ended == 1).await;
}

#[tokio::test]
async fn a_session_with_something_outstanding_hears_08007() {
    let mut a = FakePostgres::start(false).await;
    let stack = Stack::start(Setup::default()).await;
    stack.lead("a", a.address).await;
    let mut client = stack.session().await;
    client.query("hang").await;
    a.until(|seen| seen.queries.len() == 1).await;
    stack.delete("leader").await;
    assert_eq!(client.fatal().await.0, "08007");
    a.until(|seen| seen.ended == 1).await;
}

#[tokio::test]
async fn a_session_that_stands_inside_a_message_is_closed_without_a_word() {
    let a = FakePostgres::start(false).await;
    let stack = Stack::start(Setup::default()).await;
    stack.lead("a", a.address).await;
    let mut client = stack.session().await;
    client.query("half").await;
    client.expect(b"D\0\0\x10\0half").await;
    stack.delete("leader").await;
    assert_eq!(client.rest().await, b"", "not in the middle of a message");
}

#[tokio::test]
async fn what_passes_through_encrypted_is_only_closed() {
    let mut a = FakePostgres::start(true).await;
    let stack = Stack::start(Setup::default()).await;
    stack.lead("a", a.address).await;
    let mut client = stack.client().await;
    client.send(&SSL_REQUEST).await;
    client.expect(b"S").await;
    client.send(b"\x16\x03\x01secret").await;
    client.expect(b"\x16\x03\x01secret").await;
    stack.delete("leader").await;
    assert_eq!(client.rest().await, b"");
    a.until(|seen| seen.ended == 1).await;
}

#[tokio::test]
async fn a_refused_request_for_tls_goes_on_in_the_clear_on_the_same_server() {
    let mut a = FakePostgres::start(false).await;
    let stack = Stack::start(Setup::default()).await;
    stack.lead("a", a.address).await;
    let mut client = stack.client().await;
    client.send(&SSL_REQUEST).await;
    client.expect(b"N").await;
    client.send(&startup("app")).await;
    client.ready().await;
    a.until(|seen| seen.startups.len() == 1).await;
    client.send(&SSL_REQUEST[..0]).await;
    client.query("select 1").await;
    client.ready().await;
}

#[tokio::test]
async fn a_new_session_is_held_until_there_is_a_leader() {
    let a = FakePostgres::start(false).await;
    let stack = Stack::start(Setup::default()).await;
    stack.put("initialize", "7000000000000000001").await;
    let mut client = stack.client().await;
    client.send(&startup("app")).await;
    stack.until(|p| p.table.revision > 0).await;
    stack.lead("a", a.address).await;
    client.ready().await;
}

#[tokio::test]
async fn a_session_held_too_long_hears_why() {
    let setup = Setup {
        hold_timeout: Duration::from_millis(200),
        ..Setup::default()
    };
    let stack = Stack::start(setup).await;
    stack.put("initialize", "7000000000000000001").await;
    stack.until(|p| p.table.revision > 0).await;
    let mut client = stack.client().await;
    client.send(&startup("app")).await;
    let (code, message) = client.fatal().await;
    assert_eq!(code, "57P03");
    assert!(
        message.contains("no member holds the leader key"),
        "{message}"
    );
    // With a request for TLS first, the same word comes in the clear.
    let mut client = stack.client().await;
    client.send(&SSL_REQUEST).await;
    client.expect(b"N").await;
    client.send(&startup("app")).await;
    assert_eq!(client.fatal().await.0, "57P03");
}

#[tokio::test]
async fn a_held_client_that_leaves_is_noticed() {
    let stack = Stack::start(Setup::default()).await;
    let mut client = stack.client().await;
    client.send(&startup("app")).await;
    let clients = || stack.listening.clients();
    eventually(|| clients() == 1).await;
    drop(client);
    eventually(|| clients() == 0).await;
}

#[tokio::test]
async fn a_client_that_leaves_a_server_that_says_nothing_ends_its_session() {
    // Accepts, by its queue, and never says a word.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let stack = Stack::start(Setup::default()).await;
    stack.lead("a", silent.local_addr().unwrap()).await;
    for first in [&startup("app")[..], &SSL_REQUEST] {
        let mut client = stack.client().await;
        client.send(first).await;
        eventually(|| stack.cluster.lanes.open_sessions() == 1).await;
        drop(client);
        eventually(|| stack.cluster.lanes.open_sessions() == 0).await;
        eventually(|| stack.listening.clients() == 0).await;
    }
}

#[tokio::test]
async fn a_leader_that_refuses_connections_is_tried_again() {
    // A port that was free a moment ago and is free again.
    let vacant = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = vacant.local_addr().unwrap();
    drop(vacant);
    let stack = Stack::start(Setup {
        hold_timeout: Duration::from_millis(300),
        ..Setup::default()
    })
    .await;
    stack.lead("a", address).await;
    let mut client = stack.client().await;
    client.send(&startup("app")).await;
    let (code, message) = client.fatal().await;
    assert_eq!(code, "57P03");
    assert!(
        message.contains("the leader a cannot be reached"),
        "{message}"
    );
}

#[tokio::test]
async fn a_cancel_goes_to_every_member_of_the_target() {
    let mut a = FakePostgres::start(false).await;
    let mut b = FakePostgres::start(false).await;
    let mut c = FakePostgres::start(false).await;
    let stack = Stack::start(Setup {
        target: TargetKind::Replicas { falls_back: false },
        ..Setup::default()
    })
    .await;
    stack.lead("a", a.address).await;
    stack.member("b", b.address, "replica").await;
    stack.member("c", c.address, "replica").await;
    stack.until(|p| p.table.readers.len() == 3).await;
    let long_key = [&[0, 0, 0, 48, 4, 210, 22, 46, 0, 0, 0, 9][..], &[7; 36]].concat();
    for request in [
        &long_key[..],
        &[0, 0, 0, 16, 4, 210, 22, 46, 0, 0, 0, 9, 1, 2, 3, 4],
    ] {
        let mut client = stack.client().await;
        client.send(request).await;
        assert_eq!(client.rest().await, b"");
        for fake in [&mut a, &mut b, &mut c] {
            fake.until(|seen| seen.cancels.iter().any(|c| c == request))
                .await;
        }
    }
}

#[tokio::test]
async fn garbage_ends_only_the_one_who_sent_it() {
    let a = FakePostgres::start(false).await;
    let stack = Stack::start(Setup::default()).await;
    stack.lead("a", a.address).await;
    let mut good = stack.session().await;
    for garbage in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        b"\0\0\0\x08\xff\xff\xff\xff",
        b"\0\0\0\x04",
    ] {
        let mut client = stack.client().await;
        client.send(garbage).await;
        assert_eq!(client.fatal().await.0, "08P01");
    }
    good.query("select 1").await;
    good.ready().await;
}

#[tokio::test]
async fn half_a_startup_packet_holds_up_nobody() {
    let a = FakePostgres::start(false).await;
    let stack = Stack::start(Setup::default()).await;
    stack.lead("a", a.address).await;
    let mut half = stack.client().await;
    half.send(&startup("app")[..9]).await;
    let mut whole = stack.session().await;
    whole.query("select 1").await;
    whole.ready().await;
    half.send(&startup("app")[9..]).await;
    half.ready().await;
}

#[tokio::test]
async fn a_slow_reader_slows_only_itself() {
    let mut a = FakePostgres::start(false).await;
    let stack = Stack::start(Setup::default()).await;
    stack.lead("a", a.address).await;
    let mut slow = stack.session().await;
    // Far more than all buffers on the way hold together.
    slow.query("rows 20000").await;
    a.until(|seen| seen.queries.len() == 1).await;
    for _ in 0..10 {
        let mut other = stack.session().await;
        other.query("select 1").await;
        other.ready().await;
    }
    let mut rows = 0;
    while slow.message().await.0 == b'D' {
        rows += 1;
    }
    assert_eq!(rows, 20_000);
}

#[tokio::test]
async fn a_slow_reader_is_cut_like_everybody_else() {
    let mut a = FakePostgres::start(false).await;
    let stack = Stack::start(Setup::default()).await;
    stack.lead("a", a.address).await;
    let mut slow = stack.session().await;
    slow.query("rows 20000").await;
    a.until(|seen| seen.queries.len() == 1).await;
    stack.delete("leader").await;
    a.until(|seen| seen.ended == 1).await;
    // What was under way may have come; the end is in the middle of it, or is the FATAL.
    let rest = slow.rest().await;
    assert!(rest.len() < 20_000 * 4101);
}

#[tokio::test]
async fn one_client_too_many_hears_53300_and_the_limit() {
    let a = FakePostgres::start(false).await;
    let stack = Stack::start(Setup {
        max_client_conn: 1,
        ..Setup::default()
    })
    .await;
    stack.lead("a", a.address).await;
    let first = stack.session().await;
    let mut second = stack.client().await;
    second.send(&startup("app")).await;
    let (code, message) = second.fatal().await;
    assert_eq!(code, "53300");
    assert!(message.contains("allows 1 (max_client_conn)"), "{message}");
    drop(first);
    eventually(|| stack.listening.clients() == 0).await;
    stack.session().await;
}

#[tokio::test]
async fn a_server_that_dies_without_a_word_gets_one_from_the_router() {
    let a = FakePostgres::start(false).await;
    let stack = Stack::start(Setup::default()).await;
    stack.lead("a", a.address).await;
    let mut client = stack.session().await;
    client.query("die").await;
    let (code, message) = client.fatal().await;
    assert_eq!(code, "08007");
    assert!(message.contains("member a was lost"), "{message}");
}

#[tokio::test]
async fn reads_go_to_the_replica_with_the_fewest_sessions() {
    let a = FakePostgres::start(false).await;
    let mut b = FakePostgres::start(false).await;
    let mut c = FakePostgres::start(false).await;
    let stack = Stack::start(Setup {
        target: TargetKind::Replicas { falls_back: false },
        ..Setup::default()
    })
    .await;
    stack.lead("a", a.address).await;
    stack.member("b", b.address, "replica").await;
    stack.member("c", c.address, "replica").await;
    stack.until(|p| p.table.readers.len() == 3).await;
    let mut open = Vec::new();
    for _ in 0..4 {
        open.push(stack.session().await);
    }
    b.until(|seen| seen.startups.len() == 2).await;
    c.until(|seen| seen.startups.len() == 2).await;
    // A member that leaves takes its sessions with it, and only those.
    stack.delete("members/c").await;
    let mut alive = 0;
    for mut client in open {
        client.query("select 1").await;
        match client.message().await.0 {
            b'C' => alive += 1,
            kind => assert_eq!(kind, b'E'),
        }
    }
    assert_eq!(alive, 2);
}

#[tokio::test]
async fn without_a_fit_replica_each_is_named_with_its_reason() {
    let a = FakePostgres::start(false).await;
    let stack = Stack::start(Setup {
        target: TargetKind::Replicas { falls_back: false },
        ..Setup::default()
    })
    .await;
    stack.lead("a", a.address).await;
    let mut client = stack.client().await;
    client.send(&startup("app")).await;
    let (code, message) = client.fatal().await;
    assert_eq!(code, "57P03");
    assert!(
        message.ends_with("fit for reads: a is the primary"),
        "{message}"
    );
}

#[tokio::test]
async fn with_a_fallback_reads_go_to_the_leader_and_are_cut_with_it() {
    let a = FakePostgres::start(false).await;
    let stack = Stack::start(Setup {
        target: TargetKind::Replicas { falls_back: true },
        ..Setup::default()
    })
    .await;
    stack.lead("a", a.address).await;
    let mut client = stack.session().await;
    stack.delete("leader").await;
    assert_eq!(client.fatal().await.0, "57P01");
}

#[tokio::test]
async fn a_change_of_leader_moves_new_sessions_and_ends_old_ones() {
    let a = FakePostgres::start(false).await;
    let mut b = FakePostgres::start(false).await;
    let stack = Stack::start(Setup::default()).await;
    stack.lead("a", a.address).await;
    stack.member("b", b.address, "replica").await;
    let mut old = stack.session().await;
    stack.put("leader", "b").await;
    assert_eq!(old.fatal().await.0, "57P01");
    let mut new = stack.client().await;
    new.send(&startup("app")).await;
    stack.member("b", b.address, "primary").await;
    new.ready().await;
    b.until(|seen| seen.startups.len() == 1).await;
}

#[tokio::test]
async fn a_proxy_header_is_taken_off_and_a_missing_one_refused() {
    let mut a = FakePostgres::start(false).await;
    let stack = Stack::start(Setup {
        proxy_protocol: ProxyProtocol::Require,
        ..Setup::default()
    })
    .await;
    stack.lead("a", a.address).await;
    let mut client = stack.client().await;
    client
        .send(b"PROXY TCP4 10.1.2.3 10.0.0.1 4711 5432\r\n")
        .await;
    client.send(&startup("v1")).await;
    client.ready().await;
    let mut client = stack.client().await;
    client
        .send(b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x0a\x01\x02\x03\x0a\0\0\x01\x12\x67\x15\x38")
        .await;
    client.send(&startup("v2")).await;
    client.ready().await;
    let seen = a.until(|seen| seen.startups.len() == 2).await;
    assert_eq!(seen.startups, [startup("v1"), startup("v2")]);
    let mut client = stack.client().await;
    client.send(&startup("none")).await;
    assert_eq!(client.fatal().await.0, "08P01");
}

/// Waits for a condition that nothing announces.
async fn eventually(is_so: impl Fn() -> bool) {
    let wait = async {
        let mut looks = tokio::time::interval(Duration::from_millis(1));
        while !is_so() {
            looks.tick().await;
        }
    };
    tokio::time::timeout(support::stack::DEADLINE, wait)
        .await
        .unwrap();
}
