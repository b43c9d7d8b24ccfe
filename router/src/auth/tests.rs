use super::*;

const RANDOM: [u8; RANDOM_BYTES] = [5; RANDOM_BYTES];
const MOCK: [u8; 32] = [6; 32];

/// A whole login of a client with this password: how many questions it was asked, and whether it is in.
fn login(method: Method, list: &str, name: &str, password: &str) -> (usize, bool) {
    let users = Users::parse(list).unwrap();
    let (mut server, mut step) = ServerSide::begin(method, &users, name, &RANDOM, &MOCK);
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
    let begin = |method| ServerSide::begin(method, &users, "p", &RANDOM, &MOCK).0;
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
