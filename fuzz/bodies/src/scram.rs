//! Log-ins. On the side of the server nobody is let in whose messages are not, byte for byte, those of one who knows
//! the password; on the side of the client no server is believed that has not proved that it knows it.

use std::sync::{Arc, OnceLock};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use trunkline_router::auth::certificate::{Binding, common_name};
use trunkline_router::auth::md5::Md5Secret;
use trunkline_router::auth::scram::{Keys, Verifier};
use trunkline_router::auth::users::{User, Users};
use trunkline_router::auth::{
    Beginning, Channel, ClientSide, Credential, Method, Proven, RANDOM_BYTES, Reply, ServerSide,
    Step,
};

use crate::draw::Draw;

const PASSWORD: &str = "pencil";
const MOCK: [u8; 32] = [7; 32];
/// Kind and length.
const HEADER: usize = 5;
/// Iterations that a server may ask of a password here: each costs a hash.
const CHEAP: u32 = 200;
/// Messages of a server at the most.
const LONGEST: usize = 12;

/// Looks at a log-in.
pub fn run(data: &[u8]) {
    let mut draw = Draw::new(data);
    match draw.below(5) {
        0 | 1 => a_client_comes(&mut draw),
        2 | 3 => a_server_answers(&mut draw),
        _ => kept(&mut draw),
    }
}

fn users() -> &'static Users {
    static USERS: OnceLock<Users> = OnceLock::new();
    USERS.get_or_init(|| {
        let users = Users::parse(&format!(
            "\"plain\" \"{PASSWORD}\"\n\"hashed\" \"md5{}\"\n\"empty\" \"\"\n",
            // Of nobody's password.
            "0123456789abcdef".repeat(2)
        ));
        users.unwrap_or_default()
    })
}

/// The right password and a wrong one. What is derived of them is kept there.
fn credential(is_right: bool) -> Arc<Credential> {
    static KNOWN: OnceLock<[Arc<Credential>; 2]> = OnceLock::new();
    let plain = |text: &str| Arc::new(Credential::Plain(text.to_owned().into()));
    let known = KNOWN.get_or_init(|| [plain("pencils"), plain(PASSWORD)]);
    known[usize::from(is_right)].clone()
}

/// A log-in of a client that changes its messages on the way, or does not.
fn a_client_comes(draw: &mut Draw<'_>) {
    let method = draw.choice(&[Method::ScramSha256, Method::Md5]);
    let name = draw.choice(&["plain", "plain", "plain", "hashed", "empty", "nobody"]);
    let is_right = draw.flag();
    let random = [draw.byte(); RANDOM_BYTES];
    let user = users().find(name);
    let (mut router, mut step) = ServerSide::begin(Beginning {
        method,
        name,
        user: user.map(|user| &**user),
        look: users().mock_look(method, name, &MOCK),
        random: &random,
        mock: &MOCK,
        binding: None,
        certificate: None,
    });
    let mut client = ClientSide::new(name, credential(is_right), [draw.byte(); RANDOM_BYTES]);
    let mut is_changed = false;
    let mut proven = None;
    while let Step::Ask(message) = step {
        let own = match client.answer(&message[HEADER..]) {
            Ok(Reply::Send(own)) => own,
            // A change was answered; what else is said is anything.
            Ok(Reply::Wait | Reply::Done) | Err(_) => vec![0; HEADER],
        };
        let sent = draw.changed(&own[HEADER..]);
        is_changed |= sent != own[HEADER..];
        step = match router.answer(&sent) {
            Ok(Step::Proven(proof, last)) => {
                proven = Some(proof);
                is_welcomed(&mut client, method, &last);
                Step::Refused
            }
            Ok(step) => step,
            Err(_) => {
                assert!(is_changed, "a client that keeps to it is not understood");
                Step::Refused
            }
        };
    }
    let may_come_in = !is_changed && is_right && name == "plain";
    assert_eq!(proven.is_some(), may_come_in, "as {name} by {method:?}");
    assert!(router.answer(b"").is_err(), "the exchange is over");
}

/// The client believes the router that has let it in.
fn is_welcomed(client: &mut ClientSide, method: Method, last: &[u8]) {
    if method == Method::ScramSha256 {
        assert_eq!(client.answer(&last[HEADER..]), Ok(Reply::Wait));
    }
    assert_eq!(client.answer(&[0; 4]), Ok(Reply::Done));
}

/// What a log-in leaves: with these keys the user can log in.
fn keys() -> Option<Keys> {
    static KEPT: OnceLock<Option<Keys>> = OnceLock::new();
    KEPT.get_or_init(|| {
        let user = users().find("plain")?;
        let (mut router, step) = ServerSide::begin(Beginning {
            method: Method::ScramSha256,
            name: "plain",
            user: Some(user),
            look: users().mock_look(Method::ScramSha256, "plain", &MOCK),
            random: &[1; RANDOM_BYTES],
            mock: &MOCK,
            binding: None,
            certificate: None,
        });
        let mut client = ClientSide::new("plain", credential(true), [2; RANDOM_BYTES]);
        let mut step = step;
        while let Step::Ask(message) = step {
            let Ok(Reply::Send(own)) = client.answer(&message[HEADER..]) else {
                return None;
            };
            step = router.answer(&own[HEADER..]).ok()?;
        }
        match step {
            Step::Proven(Proven { keys }, _) => keys,
            Step::Ask(_) | Step::Refused => None,
        }
    })
    .clone()
}

/// A server that does not know the password.
fn a_server_answers(draw: &mut Draw<'_>) {
    let credential = match draw.below(5) {
        0 => Arc::new(Credential::Nothing),
        1 => Arc::new(Credential::Md5(Md5Secret::derive("app", PASSWORD))),
        2 => credential(true),
        _ => {
            let keys = keys();
            assert!(keys.is_some(), "a right proof leaves keys");
            Arc::new(keys.map_or(Credential::Nothing, Credential::Keys))
        }
    };
    let channel = match draw.below(3) {
        0 => Channel::Clear,
        _ => Channel::Tls {
            binding: None,
            must_be_bound: draw.flag(),
        },
    };
    let is_password = matches!(*credential, Credential::Plain(_));
    let nonce = [draw.byte(); RANDOM_BYTES];
    let mut client = ClientSide::new("app", credential, nonce).over(channel);
    let (mut has_begun, mut sent) = (false, 0);
    for _ in 0..LONGEST {
        if draw.is_over() {
            return;
        }
        let message = message(draw, &STANDARD.encode(nonce));
        let message = draw.changed(&message);
        if is_password && client.is_costly(&message) && iterations(&message) > CHEAP {
            return;
        }
        match client.answer(&message) {
            Ok(Reply::Send(own)) => {
                // A password message of MD5 names no mechanism.
                has_begun |= own[HEADER..].starts_with(b"SCRAM-SHA-256");
                sent += 1;
                assert!(sent <= 2, "a server has a third answer computed");
            }
            Ok(Reply::Wait) => assert!(!has_begun, "a proof without the password"),
            Ok(Reply::Done) => {
                assert!(!has_begun, "a server is believed that has proved nothing");
            }
            Err(_) => {}
        }
    }
}

/// How many iterations a server's first message asks for; none counts as many.
fn iterations(message: &[u8]) -> u32 {
    let text = String::from_utf8_lossy(message);
    let number = text.split(',').find_map(|part| part.strip_prefix("i="));
    number.map_or(u32::MAX, |number| number.parse().unwrap_or(u32::MAX))
}

/// The body of an authentication message.
fn message(draw: &mut Draw<'_>, nonce: &str) -> Vec<u8> {
    let with = |kind: u32, data: &[u8]| [&kind.to_be_bytes()[..], data].concat();
    match draw.below(7) {
        0 => with(0, b""),
        1 => with(5, draw.bytes(4)),
        2 => with(10, b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0"),
        3 => with(10, b"SCRAM-SHA-256\0\0"),
        4 => {
            let more = STANDARD.encode(draw.bytes(6));
            let salt = STANDARD.encode(draw.bytes(16));
            let first = format!("r={nonce}{more},s={salt},i={}", draw.byte());
            with(11, first.as_bytes())
        }
        5 => {
            let last = format!("v={}", STANDARD.encode(draw.bytes(32)));
            with(12, last.as_bytes())
        }
        _ => draw.short().to_vec(),
    }
}

/// What is kept of passwords, and certificates.
fn kept(draw: &mut Draw<'_>) {
    match draw.below(2) {
        0 => {
            let bytes = draw.rest();
            let binding = Binding::of(bytes);
            assert!(binding.is_none_or(|binding| binding.data().len() >= 32));
            assert!(!common_name(bytes).is_some_and(|name| name.contains('\0')));
        }
        _ => {
            let text = String::from_utf8_lossy(draw.rest());
            let verifier = Verifier::parse(&text);
            let is_md5 = Md5Secret::parse(&text).is_some();
            assert!(verifier.is_none() || !is_md5);
            if let Ok(user) = User::read("app", text.clone().into_owned()) {
                let shown = format!("{user:?}");
                // A text may be what is shown of every user.
                let of_another = User::read("app", "another".to_owned());
                let is_common = format!("{of_another:?}").contains(&*text);
                let is_secret = text.len() > 20 && !is_common;
                assert!(!(is_secret && shown.contains(&*text)), "a secret is shown");
            }
        }
    }
}
