use super::*;

const SMALLEST: &str = r#"
etcd3: {hosts: "10.0.0.1:2379,10.0.0.2:2379"}
listeners:
  - {listen: "0.0.0.0:5432", scope: demo, target: primary}
  - {listen: "0.0.0.0:5433", scope: demo, target: replicas}
"#;

fn wrong(text: &str) -> String {
    let mistakes = RouterConfig::parse(text).unwrap_err();
    let each: Vec<String> = mistakes.iter().map(Mistake::to_string).collect();
    each.join("\n")
}

#[test]
fn the_smallest_useful_file_is_enough() {
    let config = RouterConfig::parse(SMALLEST).unwrap();
    assert_eq!(config.namespace, "/service");
    assert_eq!(config.http.listen.port(), 8010);
    assert_eq!(config.hold_timeout, Duration::from_secs(10));
    assert_eq!(config.listeners.len(), 2);
    assert_eq!(
        config.listeners[1].target,
        TargetKind::Replicas { falls_back: false }
    );
}

#[test]
fn every_mistake_is_named_with_its_line() {
    let text = r#"
etcd3: {hosts: "10.0.0.1:2379"}
listeners:
  - listen: nowhere
    scope: a/b
    target: master
    max_client_conn: 0
    proxy_protocol: require
  - {listen: "*:5433", scope: demo, target: replicas, mode: transactions}
switchover: {hold_timeout: soon}
replicas:
  fallback: leader
"#;
    assert_eq!(
        wrong(text),
        "\
line 12: replicas.fallback is \"leader\": none or primary is allowed
line 4: listeners[0].listen is \"nowhere\": an IP address and port is allowed, such as 0.0.0.0:5432 or [::]:5432
line 5: listeners[0].scope is \"a/b\": the name of a cluster, without /, is allowed
line 6: listeners[0].target is \"master\": primary or replicas is allowed
line 8: listeners[0].proxy_protocol: needs proxy_protocol_from: the networks whose header is believed
line 7: listeners[0].max_client_conn is 0: a number of at least 1 is allowed
line 9: listeners[1].mode is \"transactions\": tcp, session, transaction or statement is allowed
line 10: switchover.hold_timeout is \"soon\": a time up to 1h is allowed, such as 10s or 500ms"
    );
}

#[test]
fn keys_of_later_versions_are_refused_by_name() {
    let text = format!("{SMALLEST}admin: {{admin_users: x}}\n");
    assert!(wrong(&text).starts_with("admin: is for listeners in mode session"));
    let text = format!("{SMALLEST}pool: {{default_pool_size: 20}}\n");
    assert!(wrong(&text).starts_with("pool: is for listeners in mode session"));
    let pooled = SMALLEST.replace("replicas}", "replicas, mode: transaction}");
    let text = format!(
        "{pooled}pool: {{track_extra_parameters: 20}}
auth: {{query: x}}
"
    );
    assert_eq!(
        wrong(&text),
        "\
line 7: auth.query: needs auth.user: who asks PostgreSQL for users
auth.file: is missing; the path of a file of users is allowed, lines of \"name\" \"secret\" as in PgBouncer
line 6: pool.track_extra_parameters: is not available in this version"
    );
}

#[test]
fn the_pooling_sections_are_read_by_pgbouncers_names() {
    let pooled = SMALLEST.replace("replicas}", "replicas, mode: session}");
    let text = format!(
        "{pooled}auth: {{type: md5, file: /etc/users}}
pool: {{default_pool_size: 5, max_db_connections: 0, server_lifetime: 30min, ignore_startup_parameters: \"A, b\"}}
databases: {{app: {{dbname: production, pool_size: 50}}, \"*\": {{}}}}
users: {{batch: {{max_user_connections: 3}}}}
"
    );
    let config = RouterConfig::parse(&text).unwrap();
    assert_eq!(config.listeners[1].mode, Mode::Session);
    let pooling = config.pooling.unwrap();
    assert_eq!(pooling.pool.default_pool_size, 5);
    assert_eq!(pooling.pool.max_db_connections, usize::MAX);
    assert_eq!(pooling.pool.server_lifetime, Duration::from_secs(1800));
    assert_eq!(pooling.pool.query_wait_timeout, Duration::from_secs(120));
    assert_eq!(pooling.pool.ignore_startup_parameters, ["a", "b"]);
    let app = pooling.terms("app", "batch").unwrap();
    assert_eq!(&*app.dbname, "production");
    assert_eq!(app.pool.default_pool_size, 50);
    assert_eq!(app.pool.max_user_connections, 3);
    let other = pooling.terms("other", "app").unwrap();
    assert_eq!((&*other.dbname, other.pool), ("other", pooling.pool));
}

#[test]
fn a_listener_has_the_tls_of_the_file_or_its_own() {
    let pooled = SMALLEST
        .replace("primary}", "primary, mode: session}")
        .replace(
            "replicas}",
            "replicas, mode: transaction, tls: {mode: verify-ca, ca: /etc/ca.crt}}",
        );
    let text = format!(
        "{pooled}auth: {{file: x}}\ntls: {{client: {{mode: allow, cert: /etc/r.crt, key: /etc/r.key}}}}\n"
    );
    let config = RouterConfig::parse(&text).unwrap();
    let [one, two] = &config.listeners[..] else {
        panic!("two listeners");
    };
    assert_eq!(one.tls.mode, tls::TlsMode::Allow);
    assert_eq!(two.tls.mode, tls::TlsMode::VerifyCa);
    assert_eq!(one.tls.files.certificate, two.tls.files.certificate);
    assert_eq!(
        (one.tls.files.ca.is_some(), two.tls.files.ca.is_some()),
        (false, true)
    );
}

#[test]
fn mistakes_of_tls_are_named() {
    let text = format!("{SMALLEST}tls: {{client: {{mode: allow}}}}\n");
    assert!(wrong(&text).starts_with("line 6: tls: is for listeners in mode session"));
    let own = SMALLEST.replace("replicas}", "replicas, tls: {mode: allow}}");
    assert_eq!(
        wrong(&own),
        "line 5: listeners[1].tls: is not allowed in tcp mode: TLS passes through to PostgreSQL"
    );
    let pooled = SMALLEST.replace(
        "replicas}",
        "replicas, mode: session, tls: {mode: verify-full}}",
    );
    let text = format!("{pooled}auth: {{file: x}}\ntls:\n  client: {{mode: always}}\n");
    assert_eq!(
        wrong(&text),
        "\
line 8: tls.client.mode is \"always\": disable, allow, prefer, require, verify-ca or verify-full is allowed
line 5: listeners[1].tls.cert: is missing; TLS needs the file of the router's certificate
line 5: listeners[1].tls.ca: is missing; verify-ca and verify-full need the file of the CA of the clients"
    );
    let text = format!(
        "{}auth: {{file: x}}\ntls: {{client: {{cert: r.crt, key: r.key}}}}\n",
        SMALLEST.replace("replicas}", "replicas, mode: session}")
    );
    assert_eq!(
        wrong(&text),
        "line 7: tls.client.mode: is missing beside the files of TLS; disable, allow, require or verify-full is meant"
    );
    let folder = tempfile::tempdir().unwrap();
    let users = folder.path().join("users");
    std::fs::write(&users, "").unwrap();
    let text = format!(
        "{}auth: {{file: {}}}\ntls: {{client: {{mode: require, cert: /none.crt}}}}\n",
        SMALLEST
            .replace("}\n", ", mode: session}\n")
            .replace("2379\", mode: session", "2379\""),
        users.display()
    );
    let file = folder.path().join("router.yml");
    std::fs::write(&file, text).unwrap();
    let error = RouterConfig::load(&file).unwrap_err().to_string();
    // Once, however many listeners have it.
    assert_eq!(
        error
            .matches("line 7: tls.client: the certificate /none.crt cannot be used")
            .count(),
        1,
        "{error}"
    );
}

#[test]
fn the_file_of_users_is_read_with_the_rest() {
    let folder = tempfile::tempdir().unwrap();
    let users = folder.path().join("userlist.txt");
    let pooled = SMALLEST.replace("replicas}", "replicas, mode: session}");
    let text = format!("{pooled}auth: {{file: {}}}\n", users.display());
    let file = folder.path().join("router.yml");
    std::fs::write(&file, text).unwrap();
    let error = RouterConfig::load(&file).unwrap_err().to_string();
    assert!(error.contains("it cannot be read"), "{error}");
    std::fs::write(&users, "\"app\" \"hunter2\n").unwrap();
    let error = RouterConfig::load(&file).unwrap_err().to_string();
    assert!(
        error.contains("line 1: the secret is not") && !error.contains("hunter2"),
        "{error}"
    );
    std::fs::write(&users, "\"app\" \"hunter2\"\n").unwrap();
    let config = RouterConfig::load(&file).unwrap();
    assert!(!format!("{config:?}").contains("hunter2"));
    assert!(config.pooling.unwrap().users.find("app").is_some());
}

#[test]
fn unknown_keys_are_refused() {
    let text = format!("{SMALLEST}listner: 1\n");
    let said = wrong(&text);
    assert!(
        said.contains("listner") && said.contains("line 6"),
        "{said}"
    );
}

#[test]
fn a_password_is_never_shown_and_unknown_keys_of_etcd3_are_refused() {
    let with = |more: &str| SMALLEST.replace("etcd3: {", &format!("etcd3: {{{more}, "));
    let said = wrong(&with("username: root, password: 123456789"));
    assert_eq!(
        said,
        "line 2: etcd3.password: text is allowed; put it in quotes"
    );
    let said = wrong(&with("passwrd: hidden"));
    assert!(
        said.starts_with("line 2: etcd3.passwrd: is unknown; hosts, host"),
        "{said}"
    );
    assert!(!said.contains("hidden"));
    assert!(RouterConfig::parse(&with("username: root, password: \"1234\"")).is_ok());
}

#[test]
fn a_missing_section_is_named() {
    let said = wrong("name: r1\n");
    assert!(said.contains("etcd3: is missing") && said.contains("listeners: is missing"));
}

#[test]
fn what_may_change_live_needs_no_restart() {
    let old = RouterConfig::parse(SMALLEST).unwrap();
    let text = format!("{SMALLEST}switchover: {{hold_timeout: 3}}\nlog: {{level: debug}}\n");
    let new = RouterConfig::parse(&text).unwrap();
    assert!(old.needs_restart(&new).is_empty());
    let moved = SMALLEST.replace("5432", "6432");
    let moved = RouterConfig::parse(&moved).unwrap();
    assert_eq!(old.needs_restart(&moved), ["listeners"]);
}

#[test]
fn rules_of_access_are_read_with_the_rest_and_every_mistake_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let (users, hba) = (folder.path().join("users"), folder.path().join("hba"));
    std::fs::write(&users, "").unwrap();
    let pooled = SMALLEST.replace("replicas}", "replicas, mode: session}");
    let auth = format!("file: {}, hba_file: {}", users.display(), hba.display());
    let file = folder.path().join("router.yml");
    std::fs::write(&file, format!("{pooled}auth: {{type: hba, {auth}}}\n")).unwrap();
    std::fs::write(
        &hba,
        "host all all all trust\nhost all all all ldap\nhost\n",
    )
    .unwrap();
    let error = RouterConfig::load(&file).unwrap_err().to_string();
    assert!(
        error.contains("line 2: the method ldap is not available"),
        "{error}"
    );
    assert!(error.contains("line 3: the database is missing"), "{error}");
    std::fs::write(&hba, "hostssl all all all cert\n").unwrap();
    let config = RouterConfig::load(&file).unwrap();
    assert!(config.listeners[1].tls.asks_for_certificates);
    assert!(config.pooling.unwrap().auth.uses(Method::Cert));
    let encrypted = pooled.replace(
        "mode: session}",
        "mode: session, tls: {mode: allow, cert: x}}",
    );
    std::fs::write(&file, format!("{encrypted}auth: {{type: hba, {auth}}}\n")).unwrap();
    let error = RouterConfig::load(&file).unwrap_err().to_string();
    let words = "line 5: listeners[1].tls.ca: is missing; auth.hba_file has rules with cert";
    assert!(error.contains(words), "{error}");
    let text = format!("{pooled}auth: {{type: hba, file: x}}\n");
    assert!(wrong(&text).starts_with("auth.hba_file: is missing"));
    let text = format!("{pooled}auth: {{type: md5, {auth}}}\n");
    assert_eq!(wrong(&text), "line 6: auth.hba_file: is for auth.type: hba");
    let text = format!("{pooled}auth: {{type: cert, file: x}}\n");
    assert_eq!(
        wrong(&text),
        "listeners[1].tls.mode: auth.type: cert needs tls.client.mode: verify-full on every pooled listener"
    );
}

#[test]
fn a_mock_secret_that_is_too_short_is_named_and_not_shown() {
    let pooled = SMALLEST.replace("replicas}", "replicas, mode: session}");
    let with = |secret: &str| {
        RouterConfig::parse(&format!(
            "{pooled}auth: {{file: x, mock_secret: {secret}}}\n"
        ))
    };
    for secret in ["hunter2", "1234567", "[hunter2]"] {
        let said = with(secret).unwrap_err()[0].to_string();
        assert!(
            said.contains("auth.mock_secret: a text of at least 32 characters"),
            "{said}"
        );
        assert!(
            !said.contains("hunter2") && !said.contains("1234567"),
            "{said}"
        );
    }
    let secret = "a-secret-of-more-than-thirty-two-characters";
    let auth = with(secret).unwrap().pooling.unwrap().auth;
    assert!(auth.mock.is_some() && !format!("{auth:?}").contains("a-secret"));
    assert!(with("null").unwrap().pooling.unwrap().auth.mock.is_none());
}

#[test]
fn a_map_that_no_file_has_is_a_mistake() {
    let folder = tempfile::tempdir().unwrap();
    let [file, hba, ident] = ["router.yml", "hba", "ident"].map(|name| folder.path().join(name));
    let pooled = SMALLEST.replace("replicas}", "replicas, mode: session}");
    let auth = format!(
        "auth: {{type: hba, file: {}, hba_file: {}",
        folder.path().join("users").display(),
        hba.display()
    );
    std::fs::write(folder.path().join("users"), "").unwrap();
    std::fs::write(&hba, "hostssl all all all cert map=ops\n").unwrap();
    std::fs::write(&file, format!("{pooled}{auth}}}\n")).unwrap();
    let said = RouterConfig::load(&file).unwrap_err().to_string();
    assert!(
        said.contains("the map ops is not in auth.ident_file"),
        "{said}"
    );
    let text = format!("{pooled}{auth}, ident_file: {}}}\n", ident.display());
    std::fs::write(&file, text).unwrap();
    std::fs::write(&ident, "ops jane\n").unwrap();
    let said = RouterConfig::load(&file).unwrap_err().to_string();
    assert!(said.contains("line 1: a line is a map"), "{said}");
    std::fs::write(&ident, "ops jane app\n").unwrap();
    assert!(RouterConfig::load(&file).is_ok());
}

#[test]
fn users_are_looked_up_where_somebody_is_named_to_ask() {
    let folder = tempfile::tempdir().unwrap();
    let users = folder.path().join("users");
    let pooled = SMALLEST.replace("replicas}", "replicas, mode: session}");
    let with = |auth: &str| RouterConfig::parse(&format!("{pooled}auth: {{{auth}}}\n"));
    let auth = with("user: asker").unwrap().pooling.unwrap().auth;
    let lookup = auth.lookup.unwrap();
    assert_eq!(
        (lookup.user.as_str(), lookup.database.as_str()),
        ("asker", "postgres")
    );
    assert!(lookup.query.contains("pg_catalog.pg_authid") && auth.file.is_none());
    let mistakes = with("user: asker, query: select 1").unwrap_err();
    assert!(mistakes[0].to_string().contains("SQL with $1"));
    let file = folder.path().join("router.yml");
    let text = format!("{pooled}auth: {{user: asker, file: {}}}\n", users.display());
    std::fs::write(&file, text).unwrap();
    let verifier = "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=";
    std::fs::write(&users, format!("\"asker\" \"{verifier}\"\n")).unwrap();
    let error = RouterConfig::load(&file).unwrap_err().to_string();
    assert!(error.contains("by which nobody can log in"), "{error}");
    std::fs::write(&users, "\"asker\" \"secret\"\n").unwrap();
    assert!(RouterConfig::load(&file).is_ok());
}
