use super::*;

/// RFC 7677, section 3: the only test vector there is.
const STORED: &str = "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=";

#[test]
fn the_stored_form_of_the_rfc_vector_is_derived_and_read() {
    let salt = STANDARD.decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap();
    let derived = Verifier::derive("pencil", &salt);
    assert!(derived == Verifier::parse(STORED).unwrap());
    for wrong in [
        "SCRAM-SHA-256$0:W22ZaJ0SNY7soEsUEjb6gQ==$a:b",
        "SCRAM-SHA-256$4096:$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=",
        &STORED.replace("4096", "100001"),
        &STORED.replace("WG5d", ""),
    ] {
        assert!(Verifier::parse(wrong).is_none(), "{wrong}");
    }
}

#[test]
fn the_exchange_of_the_rfc_vector_is_proved() {
    let verifier = Arc::new(Verifier::parse(STORED).unwrap());
    let mut server = ServerExchange::new(verifier, true, &[0; RANDOM_BYTES]);
    server.nonce = "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0".to_owned();
    let reply = server.first(b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO").unwrap();
    assert_eq!(
        reply,
        "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
    );
    let last = b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";
    let (_, reply) = server.last(last).unwrap().unwrap();
    assert_eq!(reply, "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=");
}

#[test]
fn what_cannot_be_normalised_is_the_password_as_it_is() {
    // A control character, a private one, unassigned, both directions, and one of which nothing is left.
    for odd in [
        "pa\tss",
        "\u{e000}",
        "\u{378}",
        "\u{5d0}a\u{5d0}b",
        "\u{ad}",
    ] {
        let verifier = Verifier::derive(odd, b"salt");
        assert!(verifier != Verifier::derive("", b"salt"), "{odd:?}");
        assert!(verifier != Verifier::derive("other\t", b"salt"), "{odd:?}");
        let client = ClientExchange::with_password(odd.to_owned().into(), &[2; RANDOM_BYTES]);
        assert!(talk(verifier, true, client).is_some(), "{odd:?}");
    }
    // What can be is the same password.
    assert!(Verifier::derive("I\u{ad}X", b"salt") == Verifier::derive("IX", b"salt"));
}

/// Both sides with each other: what the server learns of the client's keys, if all is well.
fn talk(verifier: Verifier, is_known: bool, mut client: ClientExchange) -> Option<(Keys, bool)> {
    let mut server = ServerExchange::new(Arc::new(verifier), is_known, &[1; RANDOM_BYTES]);
    let reply = server.first(client.first().as_bytes()).unwrap();
    let last = client.answer(reply.as_bytes(), MAX_ITERATIONS).unwrap();
    let (keys, reply) = server.last(last.as_bytes()).unwrap()?;
    Some((keys, client.verify(reply.as_bytes())))
}

#[test]
fn keys_taken_from_a_proof_log_in_without_the_password() {
    let verifier = Verifier::derive("secret", b"salt");
    let with_password =
        ClientExchange::with_password("secret".to_owned().into(), &[2; RANDOM_BYTES]);
    let (keys, is_mutual) = talk(verifier.clone(), true, with_password).unwrap();
    assert!(is_mutual);
    let with_keys = ClientExchange::with_keys(keys, &[3; RANDOM_BYTES]);
    assert!(talk(verifier, true, with_keys.clone_for_test()).unwrap().1);
    // Another verifier of the same password has other keys.
    let other = Verifier::derive("secret", b"pepper");
    assert!(talk(other, true, with_keys).is_none());
}

#[test]
fn a_wrong_password_and_an_unknown_user_fail_at_the_same_place() {
    let client = |password: &str| {
        ClientExchange::with_password(password.to_owned().into(), &[2; RANDOM_BYTES])
    };
    assert!(talk(Verifier::derive("secret", b"salt"), true, client("wrong")).is_none());
    let mock = Verifier::mock("nobody", &[9; 32], Shape::default());
    assert!(
        mock == Verifier::mock("nobody", &[9; 32], Shape::default()),
        "the same salt at every attempt"
    );
    assert!(talk(mock, false, client("secret")).is_none());
    // Even who would know the mock's password is not let in.
    assert!(talk(Verifier::derive("secret", b"salt"), false, client("secret")).is_none());
}

#[test]
fn what_a_client_may_not_say_is_named() {
    let first = |message: &[u8]| {
        let verifier = Arc::new(Verifier::derive("secret", b"salt"));
        let mut server = ServerExchange::new(verifier, true, &[1; RANDOM_BYTES]);
        server.first(message).map(|_| ()).map_err(|why| why.0)
    };
    assert!(first(b"y,,n=,r=abc").is_ok());
    for (message, said) in [
        (&b"p=tls-server-end-point,,n=,r=abc"[..], "channel binding"),
        (b"n,a=other,n=,r=abc", "authorization identity"),
        (b"n,,m=x,n=,r=abc", "mandatory extension"),
        (b"n,,n=", "usable nonce"),
        (b"n,,n=,r=", "usable nonce"),
        (b"n,,n=,r=a\x01c", "usable nonce"),
        (b"n", "authorization identity"),
        (b"\xff", "no text"),
        (&[b'n'; MAX_MESSAGE + 1], "too long"),
    ] {
        let why = first(message).unwrap_err();
        assert!(why.contains(said), "{why}");
    }
    let last = |message: &str| {
        let verifier = Arc::new(Verifier::derive("secret", b"salt"));
        let mut server = ServerExchange::new(verifier, true, &[1; RANDOM_BYTES]);
        server.first(b"n,,n=,r=abc").unwrap();
        let message = message.replace("NONCE", &server.nonce);
        server
            .last(message.as_bytes())
            .map(|_| ())
            .map_err(|why| why.0)
    };
    for (message, said) in [
        ("c=biws,r=NONCE", "no proof"),
        ("c=eSws,r=NONCE,p=AAAA", "channel binding"),
        ("c=biws,r=abc,p=AAAA", "nonce"),
        ("c=biws,r=NONCE,p=AAAA", "proof is not one"),
    ] {
        let why = last(message).unwrap_err();
        assert!(why.contains(said), "{why}");
    }
}

#[test]
fn what_a_malicious_server_asks_is_refused_before_it_costs_anything() {
    let answer = |message: &str| {
        let mut client =
            ClientExchange::with_password("secret".to_owned().into(), &[2; RANDOM_BYTES]);
        let message = message.replace("NONCE", &client.nonce);
        let answer = client.answer(message.as_bytes(), MAX_ITERATIONS);
        answer.map(|_| ()).map_err(|why| why.0)
    };
    assert!(answer("r=NONCEmore,s=c2FsdA==,i=4096").is_ok());
    for (message, said) in [
        ("r=NONCE,s=c2FsdA==,i=4096", "continue ours"),
        ("r=other,s=c2FsdA==,i=4096", "continue ours"),
        ("r=NONCEmore,s=,i=4096", "usable salt"),
        ("r=NONCEmore,s=c2FsdA==,i=0", "no number"),
        ("r=NONCEmore,s=c2FsdA==,i=4000000000", "too many"),
        ("r=NONCEmore,s=c2FsdA==", "no number"),
        ("e=other-error", "usable nonce"),
    ] {
        let why = answer(message).unwrap_err();
        assert!(why.contains(said), "{why}");
    }
    let mut client = ClientExchange::with_password("secret".to_owned().into(), &[2; RANDOM_BYTES]);
    assert!(!client.verify(b"v=AAAA"), "nothing was answered yet");
    let first = format!("r={}x,s=c2FsdA==,i=1", client.nonce);
    client.answer(first.as_bytes(), MAX_ITERATIONS).unwrap();
    for wrong in [
        "v=",
        "e=invalid-proof",
        "v=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
    ] {
        assert!(!client.verify(wrong.as_bytes()), "{wrong}");
    }
}

#[test]
fn a_server_gets_one_proof_and_one_derivation_per_salt() {
    let password = Password::from("secret".to_owned());
    let client = || ClientExchange::with_password(password.clone(), &[2; RANDOM_BYTES]);
    let mut first = client();
    let offer = format!("r={}more,s=c2FsdA==,i=4096", first.nonce);
    assert!(first.is_costly(offer.as_bytes(), MAX_ITERATIONS));
    let proof = first.answer(offer.as_bytes(), MAX_ITERATIONS).unwrap();
    let again = first.answer(offer.as_bytes(), MAX_ITERATIONS);
    assert_eq!(again, Err(Suspicious("it asks for a second proof")));
    // The next log-in with the same salt has the keys at hand.
    let mut next = client();
    assert!(!next.is_costly(offer.as_bytes(), MAX_ITERATIONS));
    assert_eq!(next.answer(offer.as_bytes(), MAX_ITERATIONS), Ok(proof));
    for other in [offer.replace("4096", "4097"), offer.replace("c2Fs", "c2Es")] {
        assert!(
            client().is_costly(other.as_bytes(), MAX_ITERATIONS),
            "{other}"
        );
    }
    let too_much = offer.replace("4096", "100001");
    assert!(!client().is_costly(too_much.as_bytes(), MAX_ITERATIONS));
}

impl ClientExchange {
    fn clone_for_test(&self) -> Self {
        let means = match &self.means {
            Means::Password(password) => Means::Password(password.clone()),
            Means::Keys(keys) => Means::Keys(keys.clone()),
        };
        Self {
            means,
            nonce: self.nonce.clone(),
            header: self.header,
            binding: self.binding.clone(),
            expected: None,
        }
    }
}
