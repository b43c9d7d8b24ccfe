//! Makes data directories: a new one by initdb, a copy by pg_basebackup.

use std::path::Path;
use std::time::Duration;

use secrecy::ExposeSecret;

use trunkline_shared::cluster::SystemId;

use super::directory::{
    UNFINISHED, check_space, complete_and_swap, empty, empty_tablespaces, making_marker,
    place_for_basebackup, place_for_copy, remove_tree, set_failed_aside, tablespaces, tree_bytes,
};
use super::dynamic_config;
use super::files::{remove_file, sync_directory, write_file, write_pgpass};
use super::process::Tool;
use super::settings::conninfo;
use super::sql::{Target, quote_identifier, quote_literal};
use super::{Credentials, Postgres, PostgresError, Upstream};

/// Longest initdb.
const INITDB_LIMIT: Duration = Duration::from_secs(600);

/// Longest base backup: a week. It is ended earlier by dropping the call.
const BASEBACKUP_LIMIT: Duration = Duration::from_secs(7 * 24 * 3600);

/// Longest question to a source before anything is removed for its copy.
const IDENTIFY_LIMIT: Duration = Duration::from_secs(10);

/// Longest of the statements that make the roles.
const ROLES_LIMIT: Duration = Duration::from_secs(30);

/// Options of initdb that the agent sets itself.
const REFUSED_INITDB: [&str; 7] = [
    "pgdata",
    "username",
    "pwfile",
    "pwprompt",
    "sync-only",
    "show",
    "no-sync",
];

/// Options of pg_basebackup that the agent sets itself.
pub const REFUSED_BASEBACKUP: [&str; 11] = [
    "pgdata",
    "format",
    "wal-method",
    "xlog-method",
    "gzip",
    "dbname",
    "host",
    "port",
    "username",
    "password",
    "no-sync",
];

/// What pg_rewind's role must be allowed to call (PostgreSQL manual, pg_rewind).
const REWIND_FUNCTIONS: [&str; 4] = [
    "pg_catalog.pg_ls_dir(text, boolean, boolean)",
    "pg_catalog.pg_stat_file(text, boolean)",
    "pg_catalog.pg_read_binary_file(text)",
    "pg_catalog.pg_read_binary_file(text, bigint, bigint, boolean)",
];

/// Options that pg_basebackup knows from a major version on.
const NEWER_BASEBACKUP: [(&str, u32); 2] = [("compress", 15), ("sync-method", 17)];

/// Whether an option is unknown to programs of this version; it is then left out and named.
fn is_too_new(name: &str, major: Option<u32>) -> bool {
    let since = NEWER_BASEBACKUP.iter().find(|(newer, _)| *newer == name);
    let is_too_new = since.is_some_and(|(_, since)| major.is_some_and(|major| major < *since));
    if is_too_new {
        tracing::warn!(
            option = name,
            ?major,
            "pg_basebackup of this version does not take it"
        );
    }
    is_too_new
}

fn options(given: &[(String, Option<String>)], refused: &[&str]) -> Vec<String> {
    given
        .iter()
        .filter(|(name, _)| !refused.contains(&name.as_str()))
        .map(|(name, value)| match value {
            Some(value) => format!("--{name}={value}"),
            None => format!("--{name}"),
        })
        .collect()
}

impl Postgres {
    /// Makes a new data directory with initdb. It takes its place only when whole; after an error nothing
    /// is left of it.
    pub async fn initialize(&self) -> Result<(), PostgresError> {
        let config = self.config();
        if let Some(method) = &config.custom_bootstrap {
            return self.bootstrap_by(method).await;
        }
        let place = place_for_copy(&config)?;
        let mut arguments = options(&config.initdb, &REFUSED_INITDB);
        arguments.push(format!("--username={}", config.superuser.username));
        let pwfile = config.run_dir.join("initdb.pw");
        if let Some(password) = &config.superuser.password {
            write_file(&pwfile, password.expose_secret())?;
            arguments.push(format!("--pwfile={}", pwfile.display()));
        }
        arguments.push(format!("--pgdata={}", place.display()));
        let result = self
            .tool("initdb", arguments, INITDB_LIMIT, "initdb")
            .run()
            .await;
        remove_file(&pwfile)?;
        let result = result.and_then(|_| mark_unfinished(&place));
        self.put_in_place(&place, result)
    }

    /// A made directory is swapped in; a failed one removed.
    fn put_in_place(
        &self,
        place: &Path,
        result: Result<(), PostgresError>,
    ) -> Result<(), PostgresError> {
        let config = self.config();
        let result = result.and_then(|()| dynamic_config::forget(place));
        match result {
            Ok(()) if place == config.data_dir => remove_file(&making_marker(&config)),
            Ok(()) => complete_and_swap(&config),
            Err(error) => {
                self.discard(place)?;
                Err(error)
            }
        }
    }

    /// Removes what a failed run left; of a mount point only the content.
    fn discard(&self, place: &Path) -> Result<(), PostgresError> {
        if place != self.config().data_dir {
            return remove_tree(place);
        }
        empty(place)?;
        remove_file(&making_marker(&self.config()))
    }

    /// Makes the roles of a new cluster, on its first start as a primary: superuser's password,
    /// replication, rewind with its grants, and the configured extra ones.
    pub async fn create_roles(&self) -> Result<(), PostgresError> {
        let config = self.config();
        let mut sql = String::new();
        if config.superuser.password.is_some() {
            sql.push_str(&role_sql(&config.superuser, &["SUPERUSER"]));
        }
        if config.replication.username != config.superuser.username {
            sql.push_str(&role_sql(&config.replication, &["REPLICATION"]));
        }
        for extra in &config.bootstrap_roles {
            let options: Vec<&str> = extra.options.iter().map(String::as_str).collect();
            sql.push_str(&role_sql(&extra.credentials, &options));
        }
        if config.use_pg_rewind && config.rewind.username != config.superuser.username {
            if config.rewind.username != config.replication.username {
                sql.push_str(&role_sql(&config.rewind, &[]));
            }
            let rewind = quote_identifier(&config.rewind.username);
            for function in REWIND_FUNCTIONS {
                sql.push_str(&format!(
                    "GRANT EXECUTE ON FUNCTION {function} TO {rewind};\n"
                ));
            }
        }
        // Passwords must reach no log, whatever the configuration logs; a connection of its own, because
        // what is set by the text itself comes too late for that text.
        let target = Target::local(&config).without_log();
        target.query_once(&sql, ROLES_LIMIT).await?;
        Ok(())
    }

    /// What a new cluster gets before its identity is recorded: roles, then the operator's own script.
    pub async fn finish_bootstrap(&self) -> Result<(), PostgresError> {
        self.create_roles().await?;
        self.post_bootstrap().await
    }

    /// Copies `source` with pg_basebackup. The copy is made beside the data directory and swapped in when it
    /// is whole and on disk; the directory it replaces is kept aside. Dropping the call ends it; what is
    /// left is removed by the next one, or when the agent starts.
    ///
    /// The instance must be stopped. A copy with another system identifier than `expected` is removed.
    /// Follow it with [`Postgres::start`] as a replica of an upstream.
    pub async fn copy_from(
        &self,
        source: &Upstream,
        expected: Option<SystemId>,
    ) -> Result<(), PostgresError> {
        let config = self.config();
        self.must_be_stopped()?;
        let place = place_for_basebackup(&config)?;
        let old = config.data_dir.clone();
        let bytes = tokio::task::spawn_blocking(move || tree_bytes(&old)).await;
        check_space(&config, bytes.unwrap_or(0))?;
        write_pgpass(&config)?;
        if !tablespaces(&config.data_dir).is_empty() {
            // Nothing is removed for a copy that cannot begin.
            self.identify(source, expected).await?;
            let config = config.clone();
            let emptying = tokio::task::spawn_blocking(move || empty_tablespaces(&config));
            emptying.await.unwrap_or(Ok(()))?;
        }
        let tool = Tool {
            passfile: Some(&config.pgpass),
            ..self.tool(
                "pg_basebackup",
                self.basebackup_arguments(source, &place),
                BASEBACKUP_LIMIT,
                "the base backup",
            )
        };
        let result = match tool.run().await {
            Ok(_) => self.check_system(&place, source, expected).await,
            Err(error) => Err(error),
        };
        self.put_in_place(&place, result)
    }

    /// Asks the source, as the base backup will, for the identity of its data.
    async fn identify(
        &self,
        source: &Upstream,
        expected: Option<SystemId>,
    ) -> Result<(), PostgresError> {
        let config = self.config();
        let port = source.port.to_string();
        let mut fields = vec![
            ("host", source.host.as_str()),
            ("port", port.as_str()),
            ("user", config.replication.username.as_str()),
            ("replication", "true"),
        ];
        fields.extend(config.replication.connection_fields());
        let mut arguments = ["-X", "-A", "-t", "-q", "-w", "-d"]
            .map(str::to_owned)
            .to_vec();
        arguments.extend([
            conninfo(&fields),
            "-c".to_owned(),
            "IDENTIFY_SYSTEM".to_owned(),
        ]);
        let tool = Tool {
            passfile: Some(&config.pgpass),
            ..self.tool(
                "psql",
                arguments,
                IDENTIFY_LIMIT,
                "the question to the source",
            )
        };
        let answer = tool.run().await?.stdout;
        let found = answer
            .split('|')
            .next()
            .and_then(|id| id.trim().parse().ok());
        let found = found.map(SystemId).ok_or(PostgresError::Unreadable {
            what: "what the source says of itself",
            text: answer.clone(),
        })?;
        match expected {
            Some(expected) if expected != found => Err(PostgresError::ForeignSystem {
                source_address: format!("{}:{}", source.host, source.port),
                found,
                expected,
            }),
            Some(_) | None => Ok(()),
        }
    }

    async fn check_system(
        &self,
        place: &Path,
        source: &Upstream,
        expected: Option<SystemId>,
    ) -> Result<(), PostgresError> {
        let found = self.control_data_of(place).await?.system_id;
        match expected {
            Some(expected) if expected != found => Err(PostgresError::ForeignSystem {
                source_address: format!("{}:{}", source.host, source.port),
                found,
                expected,
            }),
            _ => Ok(()),
        }
    }

    /// Whether the data here was made for a new cluster whose identity was never recorded.
    pub fn is_bootstrap_unfinished(&self) -> bool {
        self.config().data_dir.join(UNFINISHED).exists()
    }

    /// From now on the data here counts as a cluster's.
    pub fn bootstrap_is_finished(&self) -> Result<(), PostgresError> {
        let data_dir = &self.config().data_dir;
        remove_file(&data_dir.join(UNFINISHED))?;
        sync_directory(data_dir)
    }

    /// Takes the data of a bootstrap that failed out of the way: it is kept as `<data_dir>.failed`, of which
    /// there is one, or removed where the place cannot be renamed. The instance must be dead.
    pub async fn discard_bootstrap(&self) -> Result<(), PostgresError> {
        let config = self.config();
        if !self.is_dead().await {
            return Err(self.running(self.adopt().map_or(0, |id| id.pid)));
        }
        if !self.is_bootstrap_unfinished() {
            return Err(PostgresError::NotUnfinished {
                data_dir: config.data_dir.clone(),
            });
        }
        // Of a large directory this takes minutes.
        let moving = tokio::task::spawn_blocking(move || set_failed_aside(&config));
        moving.await.unwrap_or(Ok(()))
    }

    fn basebackup_arguments(&self, source: &Upstream, place: &Path) -> Vec<String> {
        let config = self.config();
        let port = source.port.to_string();
        let mut fields = vec![
            ("host", source.host.as_str()),
            ("port", port.as_str()),
            ("user", config.replication.username.as_str()),
        ];
        fields.extend(config.replication.connection_fields());
        fields.push(("application_name", &config.member_name));
        let dbname = conninfo(&fields);
        let given: Vec<_> = config
            .basebackup
            .iter()
            .filter(|(name, _)| !is_too_new(name, self.program_major()))
            .cloned()
            .collect();
        let mut arguments = options(&given, &REFUSED_BASEBACKUP);
        arguments.extend([
            format!("--pgdata={}", place.display()),
            "--wal-method=stream".to_owned(),
            format!("--dbname={dbname}"),
            "--no-password".to_owned(),
        ]);
        if !config
            .basebackup
            .iter()
            .any(|(name, _)| name == "checkpoint")
        {
            arguments.push("--checkpoint=fast".to_owned());
        }
        if let Some(slot) = &source.slot {
            arguments.push(format!("--slot={slot}"));
        }
        arguments
    }
}

/// The directory is a new cluster's, and no cluster's yet.
pub(crate) fn mark_unfinished(place: &Path) -> Result<(), PostgresError> {
    write_file(&place.join(UNFINISHED), "")?;
    sync_directory(place)
}

/// Creates a role, or gives an existing one its options and password.
fn role_sql(role: &Credentials, options: &[&str]) -> String {
    let password = role.password.as_ref().map_or_else(String::new, |password| {
        format!(" PASSWORD {}", quote_literal(password.expose_secret()))
    });
    let definition = format!(
        "ROLE {} WITH LOGIN {}{password}",
        quote_identifier(&role.username),
        options.join(" ")
    );
    let name = quote_literal(&role.username);
    let (create, alter) = (
        quote_literal(&format!("CREATE {definition}")),
        quote_literal(&format!("ALTER {definition}")),
    );
    format!(
        "DO $trunkline$ BEGIN IF EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = {name}) \
         THEN EXECUTE {alter}; ELSE EXECUTE {create}; END IF; END $trunkline$;\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refused_options_are_left_out() {
        let given = vec![
            ("data-checksums".to_owned(), None),
            ("encoding".to_owned(), Some("UTF8".to_owned())),
            ("pgdata".to_owned(), Some("/elsewhere".to_owned())),
        ];
        assert_eq!(
            options(&given, &REFUSED_INITDB),
            ["--data-checksums", "--encoding=UTF8"]
        );
    }

    #[test]
    fn a_role_is_created_or_altered_with_its_password_quoted() {
        let role = Credentials {
            username: "o\"r".into(),
            password: Some("it's".into()),
            connection: std::collections::BTreeMap::new(),
        };
        let sql = role_sql(&role, &["REPLICATION"]);
        assert!(sql.contains("CREATE ROLE \"o\"\"r\" WITH LOGIN REPLICATION PASSWORD ''it''''s''"));
        assert!(sql.contains("rolname = 'o\"r'"));
    }
}
