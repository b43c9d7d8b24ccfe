//! What somebody hears who says that it is a user whom nobody knows.

use super::*;

/// The salt and the iterations that this name is told, at a router with this file.
async fn told(stack: &Stack, user: &str) -> String {
    let mut client = stack.client().await;
    client.send(&startup(user)).await;
    let (kind, body) = client.message().await;
    assert_eq!((kind, &body[..4]), (b'R', &[0, 0, 0, 10][..]));
    let first = b"SCRAM-SHA-256\0\0\0\0\x0dn,,n=,r=nonce";
    let length = u32::try_from(first.len() + 4).unwrap().to_be_bytes();
    client.send(&[b"p", &length[..], first].concat()).await;
    let (kind, body) = client.message().await;
    assert_eq!((kind, &body[..4]), (b'R', &[0, 0, 0, 11][..]));
    let text = String::from_utf8(body[4..].to_vec()).unwrap();
    let (nonce, told) = text.split_once(',').unwrap();
    assert!(nonce.starts_with("r=nonce"), "{text}");
    told.to_owned()
}

async fn router(secret: &str) -> Stack {
    Stack::start(Setup {
        mode: Mode::Transaction,
        pooling: Some(format!(
            "\"app\" \"secret\"\n---\nauth: {{file: x{secret}}}\n"
        )),
        ..Setup::default()
    })
    .await
}

#[tokio::test]
async fn names_of_nobody_and_operators_of_the_router_are_not_asked_for() {
    let mut a = FakePostgres::start(false).await;
    let asking =
        "\"asker\" \"secret\"\n---\nauth: {user: asker, file: x}\nadmin: {admin_users: chief}\n";
    let stack = stack(Mode::Transaction, asking).await;
    stack.lead("a", a.address).await;
    let asked = async |user: &str, database: &str| {
        let body = format!("user\0{user}\0database\0{database}\0\0");
        let length = u32::try_from(body.len() + 8).unwrap().to_be_bytes();
        let mut client = stack.client().await;
        let packet = [&length[..], &[0, 3, 0, 0], body.as_bytes()].concat();
        client.send(&packet).await;
        let (kind, body) = client.message().await;
        assert_eq!((kind, &body[..4]), (b'R', &[0, 0, 0, 10][..]));
    };
    asked(&"x".repeat(128), "app").await;
    asked("chief", "pgbouncer").await;
    // What was asked for was so before the answer came.
    assert!(a.until(|_| true).await.startups.is_empty());
    asked("chief", "app").await;
    asked(&"x".repeat(127), "app").await;
    let seen = a.until(|seen| !seen.startups.is_empty()).await;
    let binds = seen.messages.iter().filter(|(kind, _)| *kind == 'B');
    assert_eq!(binds.count(), 2);
}

#[tokio::test]
async fn with_one_mock_secret_all_routers_tell_strangers_the_same() {
    let secret = format!(", mock_secret: {}", "s".repeat(32));
    let (one, two) = (router(&secret).await, router(&secret).await);
    let other = router(&secret.replace("ss", "st")).await;
    let (own, own_too) = (router("").await, router("").await);
    // Of a user whose password stands in the file it is the same rule that makes the salt.
    for user in ["nobody", "app"] {
        let same = told(&one, user).await;
        assert_eq!(told(&two, user).await, same);
        assert_eq!(told(&one, user).await, same);
        for differs in [&other, &own] {
            assert_ne!(told(differs, user).await, same);
        }
        assert_ne!(told(&own, user).await, told(&own_too, user).await);
        assert_eq!(told(&own, user).await, told(&own, user).await);
    }
    assert_ne!(told(&one, "nobody").await, told(&one, "nobody else").await);
}
