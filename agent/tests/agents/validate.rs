//! `--validate-config`, `--generate-config` and `--generate-sample-config` of the program itself, with the ports, the
//! folders and the PostgreSQL of this machine.

use std::fs;
use std::net::TcpListener;

use trunkline_agent::postgres::ServerRole;

use super::agents::{Agents, Asked};
use super::servers::{PATIENCE, Servers, on_every_major};

/// A file in which everything is right, on the addresses of `servers`.
fn right(servers: &Servers) -> String {
    let config = servers.config(1);
    format!(
        "scope: demo
name: n1
etcd3: {{hosts: \"{host}:2379\"}}
restapi: {{listen: \"{host}:8008\", connect_address: \"{host}:8008\"}}
postgresql:
  listen: {host}:5432
  connect_address: {host}:5432
  data_dir: {data}
  bin_dir: {bin}
  parameters: {{work_mem: 8MB}}
",
        host = config.connect_host,
        data = config.data_dir.display(),
        bin = config.bin_dir.as_ref().unwrap().display(),
    )
}

fn validated(servers: &Servers, text: &str, more: &[&str]) -> Asked {
    let file = servers.folder().join("checked.yml");
    fs::write(&file, text).unwrap();
    let mut words = vec!["--validate-config", file.to_str().unwrap()];
    words.extend(more);
    let mut asked = Agents::ask(servers, &words, &[]);
    let folder = format!("{}/", servers.folder().display());
    asked.err = asked.err.replace(&folder, "");
    asked
}

/// Every line of `wanted` is one of what was said.
fn says(asked: &Asked, wanted: &[&str]) {
    for line in wanted {
        assert!(asked.err.contains(line), "missing: {line}\n{}", asked.err);
    }
}

#[test]
fn every_mistake_that_ports_folders_and_programs_show_is_named_at_once() {
    on_every_major(
        "validate::every_mistake_that_ports_folders_and_programs_show_is_named_at_once",
        async |servers| {
            let host = servers.config(1).connect_host;
            let etcd = TcpListener::bind(format!("{host}:2379")).unwrap();
            let right = right(servers);
            let fine = validated(servers, &right, &[]);
            assert_eq!(fine.code, Some(0), "{fine:?}");
            assert_eq!(fine.err, "checked.yml: 0 error(s), 0 warning(s)\n");

            let busy = TcpListener::bind(format!("{host}:5432")).unwrap();
            let asked = validated(servers, &right, &[]);
            assert_eq!(asked.code, Some(1));
            says(
                &asked,
                &["error: checked.yml:6: postgresql.listen: port 5432 of "],
            );
            let ignored = validated(servers, &right, &["-i"]);
            assert_eq!(ignored.code, Some(0), "{ignored:?}");
            drop(busy);

            drop(etcd);
            let asked = validated(
                servers,
                &right.replace("bin_dir: /", "bin_dir: /nowhere/"),
                &[],
            );
            says(
                &asked,
                &[
                    "etcd3.hosts: ",
                    "is not reachable",
                    "does not exist; install PostgreSQL",
                ],
            );
        },
    );
}

#[test]
fn every_mistake_in_words_paths_programs_and_parameters_is_named_at_once() {
    on_every_major(
        "validate::every_mistake_in_words_paths_programs_and_parameters_is_named_at_once",
        async |servers| {
            let host = servers.config(1).connect_host;
            let etcd = TcpListener::bind(format!("{host}:2379")).unwrap();
            let right = right(servers);
            let folder = servers.folder().join("not-data");
            fs::create_dir(&folder).unwrap();
            fs::write(folder.join("file"), "").unwrap();
            let wrong = right
                .replace(&format!("listen: {host}:5432"), "listen: 192.0.2.1:5432")
                .replace(
                    &format!("connect_address: {host}:5432"),
                    "connect_address: localhost:5432",
                )
                .replace(
                    &servers.config(1).data_dir.display().to_string(),
                    folder.to_str().unwrap(),
                )
                .replace(
                    "work_mem: 8MB",
                    "work_mem: 1kB, shared_bufers: 1GB, jit: perhaps",
                )
                + "  callbacks: {on_start: /no/such/script}
  pre_promote: /etc/passwd --all
  pgpass: /no/such/folder/pgpass
  bin_name: {psql: psql_of_another}
  pg_ctl_timeout: soon
watchdog: {mode: required, device: /dev/null}
tags: {nofailover: perhaps}
";
            let asked = validated(servers, &wrong, &[]);
            assert_eq!(asked.code, Some(1));
            says(
                &asked,
                &[
                    "postgresql.pg_ctl_timeout: \"soon\" cannot be used",
                    "tags.nofailover: \"perhaps\" cannot be used",
                    "postgresql.listen: 192.0.2.1 is no address of this machine",
                    "postgresql.connect_address: nobody but this machine reaches localhost:5432",
                    "postgresql.data_dir: not-data is not empty, and no data directory",
                    "postgresql.bin_name.psql: ",
                    "postgresql.callbacks.on_start: /no/such/script cannot be run",
                    "postgresql.pre_promote: /etc/passwd cannot be run",
                    "postgresql.pgpass: /no/such/folder is no folder",
                    "watchdog.device: /dev/null is no watchdog device; with \"mode: required\"",
                    "warning: checked.yml:10: postgresql.parameters.shared_bufers: shared_bufers = 1GB: unknown",
                    "postgresql.parameters.work_mem: work_mem = 1kB: ",
                    "64kB is used",
                    "postgresql.parameters.jit: jit = perhaps: parameter \"jit\" requires a Boolean value; left out",
                    "checked.yml: 10 error(s), 3 warning(s)",
                ],
            );

            drop(etcd);
        },
    );
}

#[test]
fn a_configuration_of_a_running_instance_is_usable_once_what_it_asks_for_is_written() {
    on_every_major(
        "validate::a_configuration_of_a_running_instance_is_usable_once_what_it_asks_for_is_written",
        async |servers| {
            let door = servers.door(1);
            door.initialize().await.unwrap();
            door.start(ServerRole::Primary).await.unwrap();
            door.wait_ready(PATIENCE).await.unwrap();
            let config = servers.config(1);
            let dsn = format!(
                "host={} port={} user=postgres password=top-secret",
                config.socket_dirs[0].display(),
                config.port
            );
            let file = servers.folder().join("generated.yml");
            let words = ["--generate-config", file.to_str().unwrap(), "--dsn", &dsn];
            let made = Agents::ask(servers, &words, &[]);
            assert_eq!(made.code, Some(0), "{made:?}");
            let text = fs::read_to_string(&file).unwrap();
            for part in [
                "scope: test",
                "password: top-secret",
                "host all all 127.0.0.0/8 scram-sha-256",
                "use_pg_rewind: true",
            ] {
                assert!(text.contains(part), "{part}\n{text}");
            }
            let printed = config.data_dir.display().to_string();
            assert!(text.contains(&format!("data_dir: {printed}")), "{text}");
            // Nothing is overwritten.
            let again = Agents::ask(servers, &words, &[]);
            assert_eq!(again.code, Some(1));
            assert!(again.err.contains("is not overwritten"), "{again:?}");
            // What has to be written is an error until it is.
            let asked = validated(servers, &text, &["-i"]);
            assert_eq!(asked.code, Some(1));
            says(&asked, &["etcd3.hosts: \"#FILL_IN\" cannot be used"]);
            let etcd = TcpListener::bind(format!("{}:2379", config.connect_host)).unwrap();
            let host = &config.connect_host;
            let written: String = text
                .replace("hosts: \"#FILL_IN\"", &format!("hosts: {host}:2379"))
                .replace("hosts: '#FILL_IN'", &format!("hosts: {host}:2379"));
            let asked = validated(servers, &written, &["-i", "-p"]);
            assert_eq!(asked.code, Some(0), "{}\n{written}", asked.err);
            assert!(
                asked.out.contains("password: '***'")
                    || asked.out.contains("password: \"***\"")
                    || asked.out.contains("password: ***"),
                "{}",
                asked.out
            );
            assert!(!asked.out.contains("top-secret"));
            drop(etcd);

            let stopped = servers.config(2);
            let dsn = format!("host={} user=postgres", stopped.socket_dirs[0].display());
            let nobody = Agents::ask(servers, &["--generate-config", "--dsn", &dsn], &[]);
            assert_eq!(nobody.code, Some(1));
            assert!(
                nobody.err.contains("the instance does not answer"),
                "{nobody:?}"
            );
        },
    );
}
