//! Clients under TLS: who gets it, who must have it, and what is not believed before it.

use tokio::io::AsyncReadExt;
use trunkline_router::config::tls::{TlsMode, TlsSection};
use trunkline_router::config::{ListenerConfig, ProxyProtocol};
use trunkline_router::in_force::InForce;
use trunkline_router::route::TargetKind;
use trunkline_router::stream::Stream;
use trunkline_shared::service::tls::{self, ClientCertificates, ServerCheck, TlsFiles};

use super::support::certificates::Certificates;
use super::support::stack::pooling_of;
use super::*;

fn setup(mode: TlsMode, files: TlsFiles) -> Setup {
    Setup {
        mode: Mode::Transaction,
        pooling: Some(ONE.to_owned()),
        tls: TlsSection {
            mode,
            files,
            ..TlsSection::default()
        },
        ..Setup::default()
    }
}

/// Takes up other sections, as a reload does. The listeners that keep what they have.
fn reload(stack: &Stack, sections: &str, mode: Mode, tls: TlsSection) -> Vec<String> {
    let own = ListenerConfig {
        listen: stack.address,
        scope: Some(stack.cluster.name.clone()),
        target: TargetKind::Primary,
        mode,
        proxy_protocol: ProxyProtocol::Off,
        proxy_protocol_from: Vec::new(),
        max_client_conn: 100,
        tls,
        is_console: false,
    };
    let registry = stack.listening.registry.as_ref().unwrap();
    let now = registry.in_force.current();
    let (next, kept) = now.followed_by(pooling_of(sections), &[own]).unwrap();
    registry.reload(next);
    kept
}

async fn encrypted_by(setup: Setup) -> (Stack, FakePostgres) {
    let a = FakePostgres::start(false).await;
    let stack = Stack::start(setup).await;
    stack.lead("a", a.address).await;
    (stack, a)
}

/// A listener with TLS in this mode, and a leader behind.
async fn encrypted(mode: TlsMode, files: TlsFiles) -> (Stack, FakePostgres) {
    encrypted_by(setup(mode, files)).await
}

/// What a client trusts, and shows if it has something.
fn trusting(ca: &Certificates, own: Option<TlsFiles>) -> rustls::ClientConfig {
    let files = TlsFiles {
        ca: Some(ca.file("ca.crt")),
        ..own.unwrap_or_default()
    };
    tls::client(&files, ServerCheck::IssuerAndName).unwrap()
}

async fn shake_hands(client: &mut Client, settings: rustls::ClientConfig) -> std::io::Result<()> {
    let name = "localhost".try_into().unwrap();
    let connecting = client.stream.connect(settings.into(), name);
    tokio::time::timeout(DEADLINE, connecting).await.unwrap()
}

/// A client under TLS, that was answered `S`.
async fn secret(stack: &Stack, settings: rustls::ClientConfig) -> std::io::Result<Client> {
    let mut client = stack.client().await;
    client.send(&SSL_REQUEST).await;
    client.expect(b"S").await;
    shake_hands(&mut client, settings).await?;
    Ok(client)
}

#[tokio::test]
async fn who_asks_for_tls_gets_it_and_who_does_not_goes_on_in_the_clear() {
    let ca = Certificates::new();
    let (stack, mut a) = encrypted(TlsMode::Allow, ca.issue("router")).await;
    let mut one = secret(&stack, trusting(&ca, None)).await.unwrap();
    one.send(&startup("app")).await;
    one.ready().await;
    let mut two = stack.session().await;
    for _ in 0..3 {
        assert_eq!(ask(&mut one, "begin").await, "CZT");
        two.query("select 2").await;
        assert_eq!(ask(&mut one, "commit").await, "CZI");
        assert_eq!(answer(&mut two).await, "CZI");
    }
    // More than any buffer holds, to one that does not read; then everything.
    one.query("rows 20000").await;
    a.until(|seen| seen.queries.len() == 10).await;
    assert_eq!(answer(&mut one).await.len(), 20_002);
    // And from the client, in pieces that end anywhere.
    let long = query(&format!("select '{}'", "x".repeat(200_000)));
    for piece in long.chunks(70_001) {
        one.send(piece).await;
    }
    assert_eq!(answer(&mut one).await, "CZI");
    // A second request for it, inside.
    let mut three = secret(&stack, trusting(&ca, None)).await.unwrap();
    three.send(&SSL_REQUEST).await;
    assert_eq!(three.fatal().await.0, "08P01");
}

#[tokio::test]
async fn tls_that_begins_unasked_must_name_the_protocol() {
    let ca = Certificates::new();
    let (stack, _a) = encrypted(TlsMode::Require, ca.issue("router")).await;
    let mut settings = trusting(&ca, None);
    settings.alpn_protocols = vec![b"postgresql".to_vec()];
    let mut client = stack.client().await;
    shake_hands(&mut client, settings.clone()).await.unwrap();
    client.send(&startup("app")).await;
    client.ready().await;
    assert_eq!(ask(&mut client, "select 1").await, "CZI");
    // One that names nothing, and one that names something else, even if it asks first.
    let mut client = stack.client().await;
    shake_hands(&mut client, trusting(&ca, None)).await.unwrap();
    assert_eq!(client.rest().await, b"");
    settings.alpn_protocols = vec![b"http/1.1".to_vec()];
    assert!(secret(&stack, settings).await.is_err());
}

#[tokio::test]
async fn where_tls_is_demanded_a_log_in_in_the_clear_is_refused() {
    let ca = Certificates::new();
    let (stack, _a) = encrypted(TlsMode::Require, ca.issue("router")).await;
    let mut client = stack.client().await;
    client.send(&startup("app")).await;
    let (code, text) = client.fatal().await;
    assert_eq!(code, "28000");
    let words = "no pg_hba.conf entry for host \"127.0.0.1\", user \"app\", database \"app\", no encryption";
    assert_eq!(text, words);
    // A request for GSS is refused, and TLS may still follow it.
    let mut client = stack.client().await;
    client.send(&[0, 0, 0, 8, 4, 210, 22, 48]).await;
    client.expect(b"N").await;
    client.send(&SSL_REQUEST).await;
    client.expect(b"S").await;
    shake_hands(&mut client, trusting(&ca, None)).await.unwrap();
    client.send(&startup("app")).await;
    client.ready().await;
}

#[tokio::test]
async fn a_certificate_is_demanded_of_clients_where_it_is_to_be_verified() {
    let ca = Certificates::new();
    let (stack, _a) = encrypted(TlsMode::VerifyCa, ca.issue("router")).await;
    let known = trusting(&ca, Some(ca.issue("app")));
    let mut client = secret(&stack, known).await.unwrap();
    client.send(&startup("app")).await;
    client.ready().await;
    let other = Certificates::new();
    let stranger = other.issue("app");
    for settings in [trusting(&ca, None), trusting(&ca, Some(stranger))] {
        // In TLS 1.3 the client hears of it after its own handshake.
        if let Ok(mut client) = secret(&stack, settings).await {
            assert_eq!(client.rest().await, b"");
        }
    }
}

#[tokio::test]
async fn what_comes_in_the_clear_before_the_handshake_is_never_used() {
    let ca = Certificates::new();
    let setup = Setup {
        proxy_protocol: ProxyProtocol::Accept,
        ..setup(TlsMode::Allow, ca.issue("router"))
    };
    let (stack, _a) = encrypted_by(setup).await;
    // The router has read it, since it looks for a PROXY header there.
    let header = b"PROXY TCP4 127.0.0.1 127.0.0.1 5 6\r\n";
    let mut client = stack.client().await;
    let smuggled = [&header[..], &SSL_REQUEST, &startup("app")].concat();
    client.send(&smuggled).await;
    let (code, text) = client.fatal().await;
    assert_eq!(code, "08P01");
    assert!(text.contains("unencrypted data"), "{text}");
    // It is in the socket still, or comes after the answer: it is no handshake.
    let (stack, _a) = encrypted(TlsMode::Allow, ca.issue("router")).await;
    for early in [&startup("app")[..], b"", b"\x16\x03"] {
        let mut client = stack.client().await;
        client.send(&SSL_REQUEST).await;
        client.send(early).await;
        client.expect(b"S").await;
        client.send(&startup("app")).await;
        let said = client.rest().await;
        // Nothing but an alert.
        assert_eq!(said.first(), Some(&21), "{said:?}");
    }
}

#[tokio::test]
async fn a_handshake_that_never_ends_and_one_that_is_too_long_end_only_their_sender() {
    let ca = Certificates::new();
    let (stack, _a) = encrypted(TlsMode::Allow, ca.issue("router")).await;
    let mut good = secret(&stack, trusting(&ca, None)).await.unwrap();
    good.send(&startup("app")).await;
    good.ready().await;
    let mut silent = stack.client().await;
    silent.send(&SSL_REQUEST).await;
    silent.expect(b"S").await;
    // The first half of a record.
    silent.send(&[22, 3, 1, 2, 0, 1]).await;
    // A ClientHello that claims 64 KB, and 9,000 bytes of it.
    let mut huge = stack.client().await;
    huge.send(&SSL_REQUEST).await;
    huge.expect(b"S").await;
    let mut record = vec![22, 3, 1, 0x23, 0x28, 1, 0, 0xff, 0xf0];
    record.resize(5 + 9000, 0);
    huge.send(&record).await;
    // Who came first has not been given up yet.
    tokio::select! {
        biased;
        _ = silent.rest() => panic!("a handshake of any length is waited for"),
        _ = huge.rest() => {}
    }
    assert_eq!(ask(&mut good, "select 1").await, "CZI");
    silent.rest().await;
    assert_eq!(ask(&mut good, "select 1").await, "CZI");
}

#[tokio::test]
async fn a_changed_certificate_is_in_force_for_those_who_come_later() {
    let ca = Certificates::new();
    let (stack, _a) = encrypted(TlsMode::Allow, ca.issue("router")).await;
    let mut before = secret(&stack, trusting(&ca, None)).await.unwrap();
    before.send(&startup("app")).await;
    before.ready().await;
    let registry = stack.listening.registry.as_ref().unwrap();
    let renewed = || {
        let mut next = InForce::clone(&registry.in_force.current());
        (next.renew(), next)
    };
    assert!(renewed().0.is_empty());
    ca.issue("router");
    let (looked, next) = renewed();
    assert!(looked.iter().all(|(_, taken)| taken.is_ok()) && looked.len() == 1);
    let seen = registry.in_force.current();
    assert!(registry.in_force.exchange(&seen, next));
    let after = secret(&stack, trusting(&ca, None)).await.unwrap();
    let shown = |stream: &Stream| stream.session().unwrap().peer_certificates().unwrap()[0].clone();
    assert_ne!(shown(&before.stream), shown(&after.stream));
    assert_eq!(ask(&mut before, "select 1").await, "CZI");
    std::fs::write(ca.file("router.crt"), "no certificate").unwrap();
    assert!(renewed().0[0].1.is_err());
    // A reload that came while the files were read stays.
    ca.issue("router");
    let seen = registry.in_force.current();
    let (_, late) = renewed();
    reload(
        &stack,
        ONE,
        Mode::Transaction,
        setup(TlsMode::Require, ca.issue("router")).tls,
    );
    assert!(!registry.in_force.exchange(&seen, late));
    let mut client = stack.client().await;
    client.send(&startup("app")).await;
    assert_eq!(client.fatal().await.0, "28000");
}

#[tokio::test]
async fn a_rule_decides_who_comes_in_and_by_what() {
    let ca = Certificates::new();
    let rules = "\"app\" \"\"\n\"other\" \"\"\n-hba-\nhost all bad all reject\nhostssl app all 127.0.0.0/8 cert\n\
                 hostnossl app other 127.0.0.1/32 trust\n---\nauth: {type: hba, file: x, hba_file: x}\n";
    let mut by = setup(TlsMode::Allow, ca.issue("router"));
    by.pooling = Some(rules.to_owned());
    by.tls.asks_for_certificates = true;
    let (stack, _a) = encrypted_by(by).await;
    let mut client = stack.client().await;
    client.send(&startup("other")).await;
    client.ready().await;
    for (user, words) in [
        (
            "bad",
            "pg_hba.conf rejects connection for host \"127.0.0.1\", user \"bad\", database \"app\", no encryption",
        ),
        (
            "app",
            "no pg_hba.conf entry for host \"127.0.0.1\", user \"app\", database \"app\", no encryption",
        ),
    ] {
        let mut client = stack.client().await;
        client.send(&startup(user)).await;
        assert_eq!(client.fatal().await, ("28000".to_owned(), words.to_owned()));
    }
    let own = ca.issue("app");
    let mut client = secret(&stack, trusting(&ca, Some(own.clone())))
        .await
        .unwrap();
    client.send(&startup("app")).await;
    client.ready().await;
    // Another one's certificate, and none.
    for own in [Some(own), None] {
        let mut client = secret(&stack, trusting(&ca, own)).await.unwrap();
        client.send(&startup("other")).await;
        let (code, text) = client.fatal().await;
        assert_eq!(code, "28000");
        assert_eq!(text, "certificate authentication failed for user \"other\"");
    }
}

#[tokio::test]
async fn by_a_map_a_certificate_is_good_for_the_users_that_it_names() {
    let ca = Certificates::new();
    let rules = "\"app\" \"\"\n\"other\" \"\"\n\"third\" \"\"\n-hba-\nhostssl all third all cert map=any\n\
                 hostssl all all all cert map=ops\n-ident-\nops jane app\nops jane nobody\nops third third\nany eve all\n\
                 ---\nauth: {type: hba, file: x, hba_file: x}\n";
    let mut by = setup(TlsMode::Allow, ca.issue("router"));
    by.pooling = Some(rules.to_owned());
    by.tls.asks_for_certificates = true;
    let (stack, _a) = encrypted_by(by).await;
    for (certificate, user, is_let_in) in [
        ("jane", "app", true),
        ("jane", "other", false),
        // Known to the map, and to nobody else.
        ("jane", "nobody", false),
        // The name alone is nothing where a map decides, and each rule has its own.
        ("app", "app", false),
        ("third", "third", false),
        ("eve", "third", true),
        ("eve", "app", false),
    ] {
        let settings = trusting(&ca, Some(ca.issue(certificate)));
        let mut client = secret(&stack, settings).await.unwrap();
        client.send(&startup(user)).await;
        match is_let_in {
            true => client.ready().await,
            false => {
                let words = format!("certificate authentication failed for user \"{user}\"");
                assert_eq!(client.fatal().await, ("28000".to_owned(), words));
            }
        }
    }
}

/// Everybody proves by password.
const PROVED: &str = "\"app\" \"secret\"\n---\nauth: {type: scram-sha-256, file: x}\n";

#[tokio::test]
async fn no_reload_lets_anybody_in_without_the_proof_of_either_file() {
    let ca = Certificates::new();
    let files = ca.issue("router");
    let section = |mode| setup(mode, files.clone()).tls;
    let (stack, _a) = encrypted_by(Setup {
        pooling: Some(PROVED.to_owned()),
        ..setup(TlsMode::Allow, files.clone())
    })
    .await;
    // It has met the old TLS, and says who it is when the new users are in force, for whom certificates are the proof.
    let mut early = stack.client().await;
    early.send(&[0, 0, 0, 8, 4, 210, 22, 48]).await;
    early.expect(b"N").await;
    let kept = reload(&stack, ONE, Mode::Transaction, section(TlsMode::VerifyFull));
    assert!(kept.is_empty());
    early.send(&startup("app")).await;
    let (kind, body) = early.message().await;
    assert_eq!((kind, &body[..4]), (b'R', &[0, 0, 0, 10][..]));
    let mut late = stack.client().await;
    late.send(&startup("app")).await;
    assert_eq!(late.fatal().await.0, "28000");
    // The file has this port in tcp mode now: until a restart it stays as it was.
    let kept = reload(&stack, ONE, Mode::Tcp, TlsSection::default());
    assert_eq!(kept, [stack.address.to_string()]);
    let mut late = stack.client().await;
    late.send(&startup("app")).await;
    assert_eq!(late.fatal().await.0, "28000");
}

/// A leader under TLS that loses so many connections in the handshake, and clients of these settings.
async fn both_under(ca: &Certificates, mode: Mode, lost: usize) -> (Stack, FakePostgres) {
    let settings = tls::server(&ca.issue("server"), ClientCertificates::Ignore).unwrap();
    let a = FakePostgres::start_under(settings, lost).await;
    let stack = Stack::start(Setup {
        mode,
        ..setup(TlsMode::Allow, ca.issue("router"))
    })
    .await;
    stack.lead("a", a.address).await;
    (stack, a)
}

async fn session(stack: &Stack, ca: &Certificates) -> Client {
    let mut client = secret(stack, trusting(ca, None)).await.unwrap();
    client.send(&startup("app")).await;
    client.ready().await;
    client
}

#[tokio::test]
async fn servers_of_an_older_tls_section_are_closed_as_they_come_free() {
    let ca = Certificates::new();
    let (stack, mut a) = both_under(&ca, Mode::Transaction, 0).await;
    let own = || setup(TlsMode::Allow, ca.issue("router")).tls;
    let in_force = &stack.listening.registry.as_ref().unwrap().in_force;
    let before = in_force.current().server.clone();
    // The same once more, further down in the file: nothing is opened anew.
    reload(&stack, &format!("{ONE}\n"), Mode::Transaction, own());
    assert!(std::sync::Arc::ptr_eq(&before, &in_force.current().server));
    let mut one = session(&stack, &ca).await;
    let mut two = session(&stack, &ca).await;
    assert_eq!(ask(&mut two, "begin").await, "CZT");
    let stricter = format!("{ONE}tls: {{server: {{mode: require}}}}\n");
    reload(&stack, &stricter, Mode::Transaction, own());
    let mut looks = tokio::time::interval(std::time::Duration::from_millis(50));
    // One that is at work finishes what it does.
    assert_eq!(ask(&mut two, "select 2").await, "CZT");
    assert_eq!(ask(&mut two, "commit").await, "CZI");
    let renewed = async {
        loop {
            looks.tick().await;
            assert_eq!(ask(&mut one, "select 1").await, "CZI");
            let seen = a.until(|_| true).await;
            if seen.startups.len() == 2 && seen.ended == 1 {
                return;
            }
        }
    };
    tokio::time::timeout(DEADLINE, renewed).await.unwrap();
}

#[tokio::test]
async fn a_server_that_is_lost_in_the_handshake_is_waited_for() {
    let ca = Certificates::new();
    let (stack, mut a) = both_under(&ca, Mode::Transaction, 2).await;
    let mut one = session(&stack, &ca).await;
    assert_eq!(ask(&mut one, "select 1").await, "CZI");
    let seen = a.until(|seen| seen.queries.len() == 1).await;
    assert_eq!((seen.asked_for_tls, seen.startups.len()), (3, 1));
}

#[tokio::test]
async fn a_server_under_tls_goes_from_core_to_core() {
    let ca = Certificates::new();
    let (stack, mut a) = both_under(&ca, Mode::Transaction, 0).await;
    let mut one = session(&stack, &ca).await;
    let mut two = session(&stack, &ca).await;
    for _ in 0..5 {
        assert_eq!(ask(&mut one, "select 1").await, "CZI");
        assert_eq!(ask(&mut two, "rows 20").await.len(), 22);
    }
    let seen = a.until(|seen| seen.queries.len() == 10).await;
    assert_eq!(seen.startups.len(), 1);
}

#[tokio::test]
async fn an_idle_server_that_said_something_under_tls_is_given_to_nobody() {
    let ca = Certificates::new();
    for what in ["fatal", "goodbye", "half", "nonsense", "end"] {
        let (stack, mut a) = both_under(&ca, Mode::Transaction, 0).await;
        let mut one = session(&stack, &ca).await;
        assert_eq!(ask(&mut one, &format!("later {what}")).await, "CZI");
        a.now();
        a.until(|seen| seen.ended == 1 || seen.messages.iter().any(|(kind, _)| *kind == '!'))
            .await;
        assert_eq!(ask(&mut one, "select 1").await, "CZI", "{what}");
        let seen = a.until(|seen| seen.queries.len() == 2).await;
        assert_eq!(seen.startups.len(), 2, "{what}");
    }
}

#[tokio::test]
async fn a_cut_under_tls_is_told_at_a_boundary_and_never_inside_a_message() {
    let ca = Certificates::new();
    for mode in [Mode::Transaction, Mode::Session] {
        let (stack, mut a) = both_under(&ca, mode, 0).await;
        let mut one = session(&stack, &ca).await;
        one.query("hang").await;
        a.until(|seen| seen.queries.len() == 1).await;
        stack.delete("leader").await;
        assert_eq!(error(&mut one).await, "08007");
        let (stack, mut a) = both_under(&ca, mode, 0).await;
        let mut one = session(&stack, &ca).await;
        one.query("half").await;
        one.expect(b"D\0\0\x10\0half").await;
        a.until(|seen| seen.queries.len() == 1).await;
        stack.delete("leader").await;
        assert_eq!(one.rest().await, b"");
    }
}

#[tokio::test]
async fn the_servers_own_goodbye_ends_as_tls_ends() {
    let ca = Certificates::new();
    let (stack, _a) = both_under(&ca, Mode::Session, 0).await;
    let mut one = session(&stack, &ca).await;
    one.query("stop").await;
    assert_eq!(error(&mut one).await, "57P01");
    // Without TLS's own end this is an error.
    let mut byte = [0];
    let ended = tokio::time::timeout(DEADLINE, one.stream.read(&mut byte));
    assert_eq!(ended.await.unwrap().unwrap(), 0);
}

#[tokio::test]
async fn a_cancel_of_what_runs_under_tls_stays_under_tls_whatever_is_reloaded() {
    let ca = Certificates::new();
    let (stack, mut a) = both_under(&ca, Mode::Transaction, 0).await;
    let mut one = secret(&stack, trusting(&ca, None)).await.unwrap();
    one.send(&startup("app")).await;
    let key = loop {
        let (kind, body) = one.message().await;
        if kind == b'K' {
            break body;
        }
    };
    one.ready().await;
    one.query("wait").await;
    a.until(|seen| seen.queries.len() == 1).await;
    let clear = format!("{ONE}tls: {{server: {{mode: disable}}}}\n");
    reload(
        &stack,
        &clear,
        Mode::Transaction,
        setup(TlsMode::Allow, ca.issue("router")).tls,
    );
    let mut canceller = stack.client().await;
    canceller
        .send(&[&[0, 0, 0, 16, 4, 210, 22, 46], &key[..]].concat())
        .await;
    canceller.rest().await;
    assert_eq!(answer(&mut one).await, "EZI");
    let seen = a.until(|seen| !seen.cancels.is_empty()).await;
    assert_eq!((seen.cancels.len(), seen.encrypted_cancels), (1, 1));
}
