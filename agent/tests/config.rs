//! What the agent says about a configuration, claim by claim: each script in `tests/config` is one.
//!
//! Commands:
//! * `only LINE...`: a single file with these lines.
//! * `with LINE... [VARIABLE=value...]`: a folder with a small working file and one with these lines laid
//!   over it, and an environment.
//! * `environment VARIABLE=value...`: no file, the environment alone.
//! * `listens`: where the last configuration that was usable listens, and how others reach that.
//! * `guards`: whom the REST API lets change something, and as whom others are asked.
//! * `means`: what it says of initdb, the watchdog and the tags.
//! * `show KEY...`: the effective values whose key begins so, of the last configuration that was usable.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt::Write as _;
use std::path::Path;

use goldenscript::Argument;
use trunkline_agent::config::{self, AgentConfig, UserPassword};

const WORKING: &str = "\
scope: demo
name: n1
etcd3:
  hosts: 10.0.0.1:2379
restapi:
  listen: 10.0.0.1:8008
postgresql:
  listen: 10.0.0.1:5432
  data_dir: /data
";

#[derive(Default)]
struct Runner {
    last: Option<AgentConfig>,
}

impl Runner {
    fn load(
        &mut self,
        files: &[(&str, String)],
        path: &str,
        env: &BTreeMap<String, String>,
    ) -> Result<String, Box<dyn Error>> {
        let dir = tempfile::tempdir()?;
        for (name, text) in files {
            std::fs::write(dir.path().join(name), text)?;
        }
        let mut output = String::new();
        let loaded = match path {
            "" => config::load(dir.path(), env),
            "-" => config::load_environment(env),
            path => config::load(&dir.path().join(path), env),
        };
        match loaded {
            Ok((config, warnings)) => {
                for warning in warnings {
                    writeln!(output, "warning: {warning}")?;
                }
                writeln!(output, "usable")?;
                self.last = Some(config);
            }
            Err(error) => {
                for mistake in error.mistakes {
                    writeln!(output, "mistake: {mistake}")?;
                }
                for warning in error.warnings {
                    writeln!(output, "warning: {warning}")?;
                }
                self.last = None;
            }
        }
        let shown = dir.path().display().to_string();
        Ok(output
            .replace(&format!("{shown}/"), "")
            .replace(&shown, "FOLDER"))
    }
}

impl goldenscript::Runner for Runner {
    type Command = goldenscript::Command;

    fn run(
        &mut self,
        command: &goldenscript::Command,
        _context: &goldenscript::Context,
    ) -> Result<String, Box<dyn Error>> {
        let mut lines = String::new();
        let mut env = BTreeMap::new();
        for argument in &command.args {
            match argument {
                Argument::Positional(line) => writeln!(lines, "{line}")?,
                Argument::KeyValue(key, value) => {
                    env.insert(key.clone(), value.clone());
                }
                other => return Err(format!("unexpected argument {other}").into()),
            }
        }
        match command.name.as_str() {
            "only" => self.load(&[("n1.yml", lines)], "n1.yml", &env),
            "with" => {
                let files = [("1.yml", WORKING.to_owned()), ("2.yml", lines)];
                self.load(&files, "", &env)
            }
            "environment" => self.load(&[], "-", &env),
            "nothing" => self.load(&[], "", &env),
            "no_such_file" => self.load(&[], "n1.yml", &env),
            "show" => {
                let config = self.last.as_ref().ok_or("no usable configuration")?;
                let mut output = String::new();
                for prefix in lines.lines() {
                    for line in config.effective.iter().filter(|l| l.starts_with(prefix)) {
                        writeln!(output, "{line}")?;
                    }
                }
                Ok(output)
            }
            "listens" => {
                let config = self.last.as_ref().ok_or("no usable configuration")?;
                let (api, server) = (&config.restapi, &config.postgresql);
                Ok(format!(
                    "restapi {} reached at {}\npostgresql {} reached at {}\n",
                    api.listen, api.connect_address, server.listen, server.connect_address
                ))
            }
            "guards" => {
                let config = self.last.as_ref().ok_or("no usable configuration")?;
                let name = |user: &Option<UserPassword>| {
                    let user = user.as_ref();
                    user.map_or("(anybody)".to_owned(), |user| user.username.clone())
                };
                let (own, others) = (&config.restapi, &config.rest_client);
                Ok(format!(
                    "restapi asks for {}, others are asked as {}\n",
                    name(&own.authentication),
                    name(&others.authentication)
                ))
            }
            "means" => Ok(meaning(
                self.last.as_ref().ok_or("no usable configuration")?,
            )),
            "agent" => Ok(format!("{:#?}\n", self.last.as_ref().ok_or("none")?.etcd)),
            name => Err(format!("unknown command {name}").into()),
        }
    }
}

/// What a configuration says of initdb, the watchdog and the tags.
fn meaning(config: &AgentConfig) -> String {
    let mut output = String::new();
    for option in &config.bootstrap.initdb {
        let value = option.value.as_ref();
        let value = value.map_or(String::new(), |value| format!("={value}"));
        let _ = writeln!(output, "initdb --{}{value}", option.name);
    }
    let (watchdog, tags) = (config.watchdog.mode, &config.tags);
    let (leads, is_synchronous) = (tags.may_lead(), tags.may_be_synchronous());
    let _ = writeln!(output, "watchdog {watchdog:?}");
    let _ = writeln!(
        output,
        "may lead {leads}, may be synchronous {is_synchronous}"
    );
    output
}

macro_rules! scripts {
    ($($name:ident),* $(,)?) => {
        $(#[test]
        fn $name() {
            let path = concat!("tests/config/", stringify!($name));
            goldenscript::run(&mut Runner::default(), Path::new(path)).unwrap();
        })*

        #[test]
        fn every_script_is_run() {
            let listed = [$(stringify!($name)),*];
            for entry in std::fs::read_dir("tests/config").unwrap() {
                let name = entry.unwrap().file_name().into_string().unwrap();
                assert!(listed.contains(&name.as_str()), "{name} is not in the list");
            }
        }
    };
}

scripts! {
    a_mistake_names_file_line_key_value_and_what_is_allowed,
    a_key_that_stands_twice_is_named_and_the_last_one_counts,
    what_patroni_accepts_is_accepted,
    who_may_change_something_is_read_in_both_forms,
    an_unknown_key_warns_with_the_one_that_was_meant,
    keys_not_acted_on_yet_are_named,
    operators_scripts_are_commands_split_as_a_shell_does,
    other_stores_are_refused_with_what_to_write,
    the_environment_overrides_and_trunkline_wins_over_patroni,
    times_that_do_not_fit_are_reported_and_not_bent,
    ways_to_make_data_are_read_as_patroni_reads_them,
    secrets_are_masked,
    the_log_is_read_as_patroni_reads_it,
    the_rest_api_and_its_clients_are_read_as_patroni_reads_them,
    what_is_dangerous_to_ignore_is_refused,
    the_url_of_etcd_wins_and_brings_its_own_login,
    files_of_a_folder_are_merged_in_order,
    every_mistake_in_a_file_is_named_with_what_is_allowed,
    every_mistake_in_the_environment_is_named_by_its_variable,
    a_document_in_the_environment_stands_in_the_place_of_a_file,
    keys_that_change_nothing_are_named_with_the_reason,
    parameters_on_which_members_must_agree_come_from_the_cluster_alone,
    the_environment_reaches_every_section,
}

#[test]
fn the_sample_is_usable_without_a_warning() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sample.yml");
    std::fs::write(&path, config::SAMPLE).unwrap();
    let (_, warnings) = config::load(&path, &BTreeMap::new()).unwrap();
    assert_eq!(warnings, Vec::new());
}

/// What people publish: placeholders in addresses, groups of quotes, every usual section.
const FIELD: &str = r#"
scope: prod-1
namespace: /db/
name: $MY_NAME

restapi:
  listen: "0.0.0.0:8008"
  connect_address: "$MY_IP:8008"
  authentication:
    username: patroni
    password: secret

etcd3:
  hosts: ['192.0.2.1:2379', '192.0.2.2:2379']

bootstrap:
  dcs:
    ttl: 30
    loop_wait: 10
    retry_timeout: 10
    maximum_lag_on_failover: 1048576
    postgresql:
      use_pg_rewind: false
      use_slots: true
      parameters:
        archive_mode: "on"
        archive_command: "/bin/true"
  initdb:
  - encoding: UTF8
  - data-checksums
  - auth-local: peer
  pg_hba:
  - host replication replicator 0.0.0.0/0 scram-sha-256
  users:
    admin:
      password: admin%
      options:
        - createrole
        - createdb

postgresql:
  listen: "0.0.0.0:5432"
  connect_address: "$MY_IP:5432"
  data_dir: /var/lib/pgsql/14/data
  bin_dir: /usr/pgsql-14/bin
  pgpass: /tmp/pgpass0
  authentication:
    replication: {username: replicator, password: confidential}
    superuser: {username: postgres, password: secret}
    rewind: {username: rewind_user, password: secret}
  parameters:
    unix_socket_directories: '/var/run/postgresql,/tmp'

watchdog:
  mode: required
  device: /dev/watchdog
  safety_margin: 5

tags:
  nofailover: false
  noloadbalance: false
  clonefrom: false
  nosync: false
"#;

#[test]
fn a_file_as_it_is_found_in_the_field_is_usable() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("patroni.yml");
    std::fs::write(&path, FIELD).unwrap();
    let (config, warnings) = config::load(&path, &BTreeMap::new()).unwrap();
    let words: Vec<String> = warnings.iter().map(ToString::to_string).collect();
    assert_eq!(words.len(), 2, "{words:#?}");
    assert_eq!(config.namespace, "db");
    assert_eq!(config.etcd.hosts.len(), 2);
    assert_eq!(config.bootstrap.initdb.len(), 3);
    assert_eq!(config.postgresql.replication.username, "replicator");
    assert_eq!(
        config.bootstrap.dcs.get("failsafe_mode"),
        Some(&serde_json::Value::Bool(true))
    );
}
