use super::*;

/// In the place of a database.
const PHYSICAL: &str = "(physical replication)";

fn asking<'a>(address: &str, is_encrypted: bool, database: &'a str, user: &'a str) -> Asking<'a> {
    Asking {
        address: address.parse().unwrap(),
        is_encrypted,
        database: Some(database).filter(|name| *name != PHYSICAL),
        user,
    }
}

#[test]
fn the_first_rule_that_fits_decides() {
    let hba = Hba::parse(
        "# who may come\n\
         local all all trust\n\
         host all bad all reject\n\
         hostssl app, \"other db\" app,\"all\" 10.0.0.0/8 scram-sha-256 # and a comment\n\
         hostnossl sameuser all 192.168.0.0 255.255.0.0 md5\n\
         host replication all ::/0 trust\n\
         hostssl all all fd00::/8 \\\n   cert\n\
         host last \"we\"\"ird\" fd00:: ff00:: trust\n",
    )
    .unwrap();
    use Method::{Cert, Md5, ScramSha256, Trust};
    for (address, is_encrypted, database, user, verdict) in [
        ("10.1.2.3", true, "app", "bad", Some(Verdict::Reject)),
        (
            "10.1.2.3",
            true,
            "app",
            "app",
            Some(Verdict::By(ScramSha256)),
        ),
        (
            "::ffff:10.1.2.3",
            true,
            "other db",
            "app",
            Some(Verdict::By(ScramSha256)),
        ),
        // Quoted, it is a user of that name.
        (
            "10.1.2.3",
            true,
            "app",
            "all",
            Some(Verdict::By(ScramSha256)),
        ),
        ("10.1.2.3", true, "app", "x", None),
        ("10.1.2.3", false, "app", "app", None),
        ("11.1.2.3", true, "app", "app", None),
        ("192.168.9.9", false, "x", "x", Some(Verdict::By(Md5))),
        ("192.168.9.9", false, "x", "y", None),
        ("192.168.9.9", true, "x", "x", None),
        ("fd00::1", true, "x", "y", Some(Verdict::By(Cert))),
        ("fd00::1", false, "replication", "y", None),
        ("fd00::1", false, PHYSICAL, "y", Some(Verdict::By(Trust))),
        ("fd00::1", true, PHYSICAL, "y", Some(Verdict::By(Trust))),
        ("10.1.2.3", true, PHYSICAL, "app", None),
        ("10.1.2.3", true, PHYSICAL, "bad", None),
        (
            "fd00::1",
            false,
            "last",
            "we\"ird",
            Some(Verdict::By(Trust)),
        ),
    ] {
        let asking = asking(address, is_encrypted, database, user);
        assert_eq!(hba.verdict(&asking), verdict, "{asking:?}");
    }
    assert!(hba.uses(Cert) && hba.uses(Trust));
    assert!(!Hba::default().uses(Trust));
}

/// Lines, and what is said of each.
const UNUSABLE: &[(&str, &str)] = &[
    (
        "hosts all all all trust",
        "hosts is not available: local, host",
    ),
    (
        "hostgssenc all all all trust",
        "hostgssenc is not available",
    ),
    ("include other.conf", "include is not available"),
    ("host", "the database is missing"),
    ("host all", "the user is missing"),
    ("host all all", "the address is missing"),
    ("local all all", "the method is missing"),
    ("host all all 10.0.0.1", "the address's mask is missing"),
    ("host all all 10.0.0.1 trust", "trust is no mask"),
    (
        "host all all 10.0.0.1 255.0.255.0 trust",
        "255.0.255.0 is no mask",
    ),
    (
        "host all all 10.0.0.0/33 trust",
        "10.0.0.0/33 is no network",
    ),
    (
        "host all all samenet trust",
        "samenet is not available: an address",
    ),
    (
        "host all all db.example.com trust",
        "db.example.com is not available",
    ),
    ("host all all all", "the method is missing"),
    ("host all all all password", "password is not available"),
    ("host all all all ldap", "the method ldap is not available"),
    ("host all all all cert", "cert is for hostssl"),
    ("hostnossl all all all cert", "cert is for hostssl"),
    (
        "hostssl all all all cert clientcert=1",
        "the option clientcert=1 is not available",
    ),
    ("host all all all md5 map=x", "map is for the method cert"),
    (
        "host @dbs all all trust",
        "@dbs is not available: names are not read",
    ),
    ("host all @users all trust", "@users is not available"),
    (
        "host all +group all trust",
        "+group is not available: the router knows no",
    ),
    ("host samerole all all trust", "samerole is not available"),
    ("host /^a all all trust", "/^a is not available: regular"),
    ("host all \"open all trust", "a quote is not closed"),
    (
        "host,local all all all trust",
        "more than one kind of connection",
    ),
    ("host all all all trust,md5", "more than one method"),
];

#[test]
fn every_line_that_cannot_be_used_is_named() {
    for (line, said) in UNUSABLE {
        let text = format!("# first\n\n{line}\nhost all all all trust\n");
        let mistakes = Hba::parse(&text).unwrap_err();
        let [mistake] = &mistakes[..] else {
            panic!("{line}: {mistakes:?}");
        };
        let shown = mistake.to_string();
        assert!(
            shown.starts_with("line 3: ") && shown.contains(said),
            "{line}: {shown}"
        );
    }
    let two = Hba::parse("x\nhost all all all trust\ny\n").unwrap_err();
    assert_eq!([two[0].line, two[1].line], [1, 3]);
}

#[test]
fn an_empty_file_lets_nobody_in() {
    for text in ["", "\n\n", "# host all all all trust\n", " \t\\\n# x"] {
        let hba = Hba::parse(text).unwrap();
        assert_eq!(hba.verdict(&asking("127.0.0.1", true, "a", "a")), None);
    }
}
