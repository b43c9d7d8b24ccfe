use super::*;

fn told(text: &str) -> String {
    match Command::parse(text) {
        Ok(command) => format!("{command:?}"),
        Err(why) => why.to_string(),
    }
}

/// What PgBouncer 1.26.1 makes of the same texts, but for `SHOW TOPOLOGY` and `SHOW ROUTERS`.
#[test]
fn texts_are_read_as_pgbouncer_reads_them() {
    for (text, read) in [
        ("show version", "Show(Version)"),
        ("SHOW  version ;  ", "Show(Version)"),
        ("show topology", "Show(Topology)"),
        ("show routers", "Show(Routers)"),
        ("show timezone", "Show(Setting(\"TimeZone\", \"GMT\"))"),
        ("PAUSE", "Pause(None)"),
        ("pause \"a \"\"b\"\"\";", "Pause(Some(\"a \\\"b\\\"\"))"),
        ("resume app", "Resume(Some(\"app\"))"),
        ("disable App", "Disable(\"App\")"),
        ("enable app", "Enable(\"app\")"),
        ("enable", "a database is required"),
        ("kill", "Kill(None)"),
        ("KILL_CLIENT 44", "KillClient(44)"),
        ("kill_client", "invalid client pointer supplied"),
        ("kill_client abc", "invalid client pointer supplied"),
        ("kill_client 4294967296", "invalid client pointer supplied"),
        ("reconnect app", "Reconnect(Some(\"app\"))"),
        ("wait_close", "WaitClose(None)"),
        ("reload", "Reload"),
        ("shutdown", "Shutdown(Nothing)"),
        ("shutdown wait_for_servers", "Shutdown(Servers)"),
        ("SHUTDOWN WAIT_FOR_CLIENTS", "Shutdown(Clients)"),
        ("set verbose=1", "Set { key: \"verbose\", value: \"1\" }"),
        (
            "SET server_reset_query TO 'DISCARD ALL'",
            "Set { key: \"server_reset_query\", value: \"DISCARD ALL\" }",
        ),
        ("SET extra_float_digits = 3", "SetIgnored"),
    ] {
        assert_eq!(told(text), read, "{text}");
    }
}

#[test]
fn what_is_no_command_is_told_in_pgbouncers_words() {
    for text in [
        "",
        "  ",
        ";",
        "select 1",
        "begin",
        "show",
        "show foo",
        "show fds",
        "show version; show state",
        "show mem;;",
        "show version extra",
        "/* x */ show version",
        "-- x\nshow version",
        "resume 'app'",
        "pause \"app",
        "reload x",
        "suspend",
        "shutdown foo",
        "set x",
        "set verbose 1",
        "set a = b = c",
        "\"show\" version",
        "show\u{a0}version\u{2028}x",
    ] {
        let words = format!("invalid command '{text}', use SHOW HELP;");
        assert_eq!(told(text), words, "{text:?}");
    }
}

#[test]
fn who_may_only_look_changes_nothing() {
    for (text, only_looks) in [
        ("show config", true),
        ("set extra_float_digits = 3", true),
        ("set query_timeout = 3", false),
        ("pause", false),
        ("resume", false),
        ("disable a", false),
        ("enable a", false),
        ("reconnect", false),
        ("kill", false),
        ("kill_client 1", false),
        ("wait_close", false),
        ("reload", false),
        ("shutdown", false),
    ] {
        let command = Command::parse(text).unwrap();
        assert_eq!(command.only_looks(), only_looks, "{text}");
    }
}
