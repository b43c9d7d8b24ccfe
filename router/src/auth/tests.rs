use super::*;
use crate::auth::users::Users;
use crate::error::SessionError;

const RANDOM: [u8; RANDOM_BYTES] = [5; RANDOM_BYTES];
const MOCK: [u8; 32] = [6; 32];

fn begin(
    method: Method,
    users: &Users,
    name: &str,
    binding: Option<Binding>,
) -> (ServerSide, Step) {
    ServerSide::begin(Beginning {
        method,
        name,
        user: users.find(name).map(Arc::as_ref),
        look: users.mock_look(method, name, &MOCK),
        random: &RANDOM,
        mock: &MOCK,
        binding,
        certificate: None,
    })
}

/// A whole login of a client with this password: how many questions it was asked, and whether it is in.
fn login(method: Method, list: &str, name: &str, password: &str) -> (usize, bool) {
    let users = Users::parse(list).unwrap();
    let (mut server, mut step) = begin(method, &users, name, None);
    let credential = Arc::new(Credential::Plain(password.to_owned().into()));
    let mut client = ClientSide::new(name, credential, [7; RANDOM_BYTES]);
    for asked in 0.. {
        match step {
            Step::Ask(message) => {
                let Reply::Send(reply) = client.answer(&message[5..]).unwrap() else {
                    panic!("the client had nothing to say");
                };
                step = server.answer(&reply[5..]).unwrap();
            }
            Step::Proven(_, message) => {
                if !message.is_empty() {
                    assert_eq!(client.answer(&message[5..]).unwrap(), Reply::Wait);
                }
                assert_eq!(client.answer(&[0; 4]).unwrap(), Reply::Done);
                return (asked, true);
            }
            Step::Refused => return (asked, false),
        }
    }
    unreachable!()
}

#[test]
fn every_kind_of_secret_lets_its_user_in_by_the_methods_it_fits() {
    let list = "\"p\" \"pw\"\n";
    assert_eq!(login(Method::ScramSha256, list, "p", "pw"), (2, true));
    assert_eq!(login(Method::Md5, list, "p", "pw"), (1, true));
    assert_eq!(login(Method::Trust, list, "p", "any"), (0, true));
    assert_eq!(login(Method::Trust, list, "q", "any"), (0, false));
}

#[test]
fn unknown_users_cost_the_same_questions_as_known_ones() {
    for (method, list) in [
        (Method::ScramSha256, "\"p\" \"pw\"\n"),
        (
            Method::ScramSha256,
            "\"p\" \"md5a5e3d8f0a5e3d8f0a5e3d8f0a5e3d8f0\"\n",
        ),
        (Method::Md5, "\"p\" \"pw\"\n"),
        (
            Method::Md5,
            "\"p\" \"SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=\"\n",
        ),
    ] {
        let known = login(method, list, "p", "wrong");
        let unknown = login(method, list, "nobody", "wrong");
        assert_eq!(known, unknown, "{method:?}");
        assert!(!known.1);
    }
}

#[test]
fn a_server_that_says_yes_in_the_middle_of_scram_is_not_believed() {
    let credential = Arc::new(Credential::Plain("pw".to_owned().into()));
    let mut client = ClientSide::new("p", credential, RANDOM);
    assert!(matches!(
        client.answer(b"\0\0\0\x0aSCRAM-SHA-256\0\0"),
        Ok(Reply::Send(_))
    ));
    let error = client.answer(&[0; 4]).unwrap_err();
    assert!(error.to_string().contains("without proving"), "{error}");
}

#[test]
fn a_password_is_never_sent_in_the_clear() {
    let credential = Arc::new(Credential::Plain("pw".to_owned().into()));
    let mut client = ClientSide::new("p", credential, RANDOM);
    assert!(matches!(
        client.answer(b"\0\0\0\x03"),
        Err(NoLogin::Method(_))
    ));
    let credential = Arc::new(Credential::Nothing);
    let mut client = ClientSide::new("p", credential, RANDOM);
    let error = client.answer(b"\0\0\0\x0aSCRAM-SHA-256\0\0").unwrap_err();
    assert_eq!(
        error,
        NoLogin::NoSecret {
            wanted: "scram-sha-256"
        }
    );
    for message in [
        &b""[..],
        b"\0\0\0",
        b"\0\0\0\x05\x01",
        b"\0\0\0\x07",
        b"\0\0\0\x0c",
    ] {
        assert!(client.answer(message).is_err(), "{message:?}");
    }
}

#[test]
fn a_client_that_answers_something_else_is_named() {
    let users = Users::parse("\"p\" \"pw\"\n").unwrap();
    let begin = |method| begin(method, &users, "p", None).0;
    for body in [
        &b""[..],
        b"SCRAM-SHA-256-PLUS\0\0\0\0\x01n",
        b"SCRAM-SHA-256\0\0\0",
        b"SCRAM-SHA-256\0\xff\xff\xff\xffn,,",
    ] {
        assert!(begin(Method::ScramSha256).answer(body).is_err(), "{body:?}");
    }
    assert!(begin(Method::Md5).answer(b"md5").is_err());
    let mut over = begin(Method::Md5);
    assert!(matches!(over.answer(b"md5\0"), Ok(Step::Refused)));
    assert!(over.answer(b"md5\0").is_err());
}

#[test]
fn an_empty_secret_lets_nobody_in() {
    // The second is the MD5 of no password and the name.
    for list in [
        "\"p\" \"\"\n",
        "\"p\" \"md583878c91171338902e0fe0fb97a8c47a\"\n",
    ] {
        for method in [Method::ScramSha256, Method::Md5] {
            let known = login(method, list, "p", "");
            assert_eq!(known, login(method, list, "nobody", ""), "{method:?}");
            assert!(!known.1);
        }
    }
}

/// The first answer that says something of the user: to SCRAM's first message, or the request for MD5.
fn first_answer(method: Method, users: &Users, name: &str) -> String {
    let (mut server, step) = begin(method, users, name, None);
    let Step::Ask(message) = step else {
        panic!("nothing is asked");
    };
    let credential = Arc::new(Credential::Plain("pw".to_owned().into()));
    let mut client = ClientSide::new(name, credential, [7; RANDOM_BYTES]);
    let Reply::Send(first) = client.answer(&message[5..]).unwrap() else {
        panic!("the client had nothing to say");
    };
    if !first.ends_with(b"\0") {
        let Step::Ask(reply) = server.answer(&first[5..]).unwrap() else {
            panic!("no salt");
        };
        let reply = String::from_utf8(reply[9..].to_vec()).unwrap();
        return reply.split_once(",s=").unwrap().1.to_owned();
    }
    "md5".to_owned()
}

#[test]
fn the_answers_to_those_who_have_proved_nothing_tell_nobody_from_a_user() {
    let plain = Users::parse("\"p\" \"pw\"\n\"q\" \"pw\"\n").unwrap();
    let salt = |users: &Users, name: &str| first_answer(Method::ScramSha256, users, name);
    // One salt for all who are known by a password would tell them from all others.
    assert_ne!(salt(&plain, "p"), salt(&plain, "q"));
    // The same rule for a name, whether it is in the file or not.
    let other = Users::parse("\"x\" \"pw\"\n").unwrap();
    assert_eq!(salt(&plain, "p"), salt(&other, "p"));
    // Nothing of the secret itself is in it.
    assert!(!salt(&plain, "p").starts_with("BgYG"));
    // Where all users have other iterations and salts, so have those who are none.
    let odd = "SCRAM-SHA-256$8192:c2FsdHNhbHRzYWx0c2FsdHNhbHRzYWx0c2FsdHNhbHRzYWx0c2FsdA==$\
               WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=";
    let odd = Users::parse(&format!("\"p\" \"{odd}\"\n")).unwrap();
    let (known, unknown) = (salt(&odd, "p"), salt(&odd, "nobody"));
    assert!(
        known.ends_with("i=8192") && unknown.ends_with("i=8192"),
        "{unknown}"
    );
    assert_eq!(known.len(), unknown.len());
}

#[test]
fn unknown_users_are_asked_by_both_methods_where_known_ones_are() {
    let verifier = "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$\
               WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=";
    let users = format!("\"p\" \"pw\"\n\"q\" \"{verifier}\"\n");
    let users = Users::parse(&users).unwrap();
    let names = (0..64).map(|number| format!("nobody{number}"));
    let asked = names.map(|name| first_answer(Method::Md5, &users, &name) == "md5");
    let count = asked.filter(|is_md5| *is_md5).count();
    assert!((1..64).contains(&count), "{count} of 64 by MD5");
}

#[test]
fn a_server_keeps_to_one_method_and_the_order_of_its_messages() {
    let begin = b"\0\0\0\x0aSCRAM-SHA-256\0\0";
    let md5 = b"\0\0\0\x05salt";
    for second in [&begin[..], &md5[..], b"\0\0\0\x0cv=AAAA"] {
        for first in [&begin[..], &md5[..]] {
            let credential = Arc::new(Credential::Plain("pw".to_owned().into()));
            let mut client = ClientSide::new("p", credential, RANDOM);
            assert!(matches!(client.answer(first), Ok(Reply::Send(_))));
            assert!(
                matches!(client.answer(second), Err(NoLogin::Untrustworthy(_))),
                "{second:?}"
            );
        }
    }
}

fn tls(binding: Option<&Binding>) -> Channel {
    Channel::Tls {
        binding: binding.cloned(),
        must_be_bound: false,
    }
}

/// A log-in where each side has, or has not, something to bind to; somebody between may hide the offer. The
/// client's first message, if the log-in succeeds.
fn bound(server: Option<&Binding>, client: Channel, hides: bool) -> Option<String> {
    let users = Users::parse("\"p\" \"pw\"\n").unwrap();
    let (mut server, step) = begin(Method::ScramSha256, &users, "p", server.cloned());
    let Step::Ask(mut offer) = step else {
        panic!("nothing is asked");
    };
    if hides {
        offer = messages::ask_sasl(b"SCRAM-SHA-256\0");
    }
    let credential = Arc::new(Credential::Plain("pw".to_owned().into()));
    let mut own = ClientSide::new("p", credential, [7; RANDOM_BYTES]).over(client);
    let Reply::Send(first) = own.answer(&offer[5..]).unwrap() else {
        panic!("the client had nothing to say");
    };
    let Step::Ask(salt) = server.answer(&first[5..]).ok()? else {
        panic!("no salt");
    };
    let Reply::Send(last) = own.answer(&salt[5..]).unwrap() else {
        panic!("no proof");
    };
    let Step::Proven(..) = server.answer(&last[5..]).ok()? else {
        return None;
    };
    Some(String::from_utf8_lossy(&first[5..]).into_owned())
}

#[test]
fn an_exchange_is_bound_to_the_certificate_where_both_sides_can() {
    let own = Binding::for_test(1);
    let first = |server, client| bound(server, client, false).unwrap();
    let both = first(Some(&own), tls(Some(&own)));
    assert!(both.starts_with("SCRAM-SHA-256-PLUS\0") && both.contains("p=tls-server-end-point,,"));
    assert!(first(Some(&own), tls(None)).contains("n,,"));
    assert!(first(None, tls(Some(&own))).contains("y,,"));
    assert!(first(None, tls(None)).contains("y,,"));
    assert!(first(None, Channel::Clear).contains("n,,"));
}

#[test]
fn who_sits_between_two_tls_connections_is_found() {
    let (own, other) = (Binding::for_test(1), Binding::for_test(2));
    // Another certificate was shown to the client.
    assert_eq!(bound(Some(&own), tls(Some(&other)), false), None);
    // The offer of binding was hidden from it, by one whose certificate can be bound to or, as Ed25519's, not.
    assert_eq!(bound(Some(&own), tls(Some(&own)), true), None);
    assert_eq!(bound(Some(&own), tls(None), true), None);
}

#[test]
fn where_nothing_but_the_binding_tells_who_answers_it_is_not_left_out() {
    let credential = Arc::new(Credential::Plain("pw".to_owned().into()));
    let own = ClientSide::new("p", credential, [7; RANDOM_BYTES]);
    let mut own = own.over(Channel::Tls {
        binding: None,
        must_be_bound: true,
    });
    let offer = messages::ask_sasl(b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0");
    assert_eq!(own.answer(&offer[5..]), Err(NoLogin::Unbound));
}

#[test]
fn a_client_binds_only_as_it_was_offered_and_has_chosen() {
    let users = Users::parse("\"p\" \"pw\"\n").unwrap();
    let own = Binding::for_test(1);
    let said = |binding: Option<&Binding>, mechanism: &str, header: &str| {
        let mut server = begin(Method::ScramSha256, &users, "p", binding.cloned()).0;
        let first = messages::sasl_initial(
            format!("{mechanism}\0").as_bytes(),
            format!("{header}n=,r=abc").as_bytes(),
        );
        server.answer(&first[5..]).map(|_| ()).map_err(|why| why.0)
    };
    let (plain, plus) = ("SCRAM-SHA-256", "SCRAM-SHA-256-PLUS");
    assert!(said(Some(&own), plus, "p=tls-server-end-point,,").is_ok());
    assert!(said(Some(&own), plain, "n,,").is_ok());
    for (binding, mechanism, header) in [
        (None, plus, "p=tls-server-end-point,,"),
        (None, plain, "p=tls-server-end-point,,"),
        (Some(&own), plain, "p=tls-server-end-point,,"),
        (Some(&own), plain, "y,,"),
        (Some(&own), plus, "n,,"),
        (Some(&own), plus, "y,,"),
        (Some(&own), plus, "p=tls-unique,,"),
        (Some(&own), "SCRAM-SHA-256-PLU", "n,,"),
        (Some(&own), "", "n,,"),
    ] {
        assert!(
            said(binding, mechanism, header).is_err(),
            "{mechanism} {header}"
        );
    }
}

#[test]
fn a_certificate_lets_in_the_user_it_names_and_no_other() {
    let users = Users::parse("\"p\" \"\"\n\"q\" \"\"\n").unwrap();
    let log_in = |name: &str, certificate: Option<&str>| {
        let (_, step) = ServerSide::begin(Beginning {
            method: Method::Cert,
            name,
            user: users.find(name).map(Arc::as_ref),
            look: users.mock_look(Method::Cert, name, &MOCK),
            random: &RANDOM,
            mock: &MOCK,
            binding: None,
            certificate,
        });
        matches!(step, Step::Proven(..))
    };
    assert!(log_in("p", Some("p")));
    for (name, certificate) in [
        ("p", Some("q")),
        ("p", None),
        ("p", Some("")),
        ("x", Some("x")),
    ] {
        assert!(!log_in(name, certificate), "{name} {certificate:?}");
    }
}

#[test]
fn who_may_have_somebody_between_is_told_so_by_postgresqls_code() {
    for why in [scram::NOT_NEGOTIATED, scram::NOT_BOUND] {
        assert_eq!(SessionError::from(why).sqlstate(), Some("28000"));
    }
    let other = SessionError::from(Malformed("other"));
    assert_eq!(other.sqlstate(), Some("08P01"));
}
