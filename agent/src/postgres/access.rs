//! Who may connect after a restart in a synchronous mode: first only the agent and receivers of WAL, so that no
//! client sees commits that nobody confirmed (`ha.md` 9).
//!
//! `hba_file` cannot be changed by a reload, so such a server is started with a link: it names a file made
//! from the user's lines without those for clients, and is then turned to the user's own file.

use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::config::PostgresConfig;
use super::files::{read_text, remove_file, write_file};
use super::settings::{BASE_CONF, HEADER, is_managed, read_setting};
use super::{Postgres, PostgresError};

/// What `hba_file` names.
const LINK: &str = "hba.conf";
/// The lines for the agent and for receivers of WAL.
const CLOSED: &str = "hba.closed.conf";

/// Keeps clients out of the server that is about to start; the argument to start it with. `None` where the
/// user's file refers to other files by their place beside it: it could not be read through a link.
pub(super) fn close(config: &PostgresConfig) -> Result<Option<String>, PostgresError> {
    let own = own_file(config)?;
    let text = read_text(&own)?;
    if has_relative_reference(&text) {
        tracing::warn!(
            file = %own.display(),
            "commits that no standby confirmed may become visible: client access cannot be closed, since \
             pg_hba.conf includes files by relative names; write absolute ones"
        );
        return Ok(None);
    }
    let roles = [&config.superuser, &config.replication, &config.rewind];
    let roles = roles.map(|role| role.username.as_str());
    let has_password = config.superuser.password.is_some();
    let closed = config.run_dir.join(CLOSED);
    write_file(&closed, &without_clients(&text, &roles, has_password))?;
    turn_to(config, &closed)?;
    let link = config.run_dir.join(LINK);
    Ok(Some(format!("--hba_file={}", link.display())))
}

/// A server that starts as usual has nothing closed.
pub(super) fn forget(config: &PostgresConfig) -> Result<(), PostgresError> {
    remove_file(&config.run_dir.join(LINK))?;
    remove_file(&config.run_dir.join(CLOSED))
}

/// The link names `target` from now on.
fn turn_to(config: &PostgresConfig, target: &Path) -> Result<(), PostgresError> {
    let (link, new) = (config.run_dir.join(LINK), config.run_dir.join("hba.new"));
    remove_file(&new)?;
    let turned = symlink(target, &new).and_then(|()| std::fs::rename(&new, &link));
    turned.map_err(PostgresError::file("turn", &link))
}

/// The file of the user's lines, as the server would find it.
fn own_file(config: &PostgresConfig) -> Result<PathBuf, PostgresError> {
    if is_managed(config, "hba_file", &config.pg_hba) {
        return Ok(config.config_dir().join("pg_hba.conf"));
    }
    let base = config.config_dir().join(BASE_CONF);
    let base = config.custom_conf.as_deref().unwrap_or(&base);
    let named = match config.parameters.get("hba_file") {
        Some(file) => Some(file.clone()),
        None => read_setting(&read_text(base)?, "hba_file"),
    };
    let file = named.unwrap_or_else(|| "pg_hba.conf".to_owned());
    Ok(config.data_dir.join(file))
}

impl Postgres {
    /// Whether clients are kept out of the running server.
    pub fn is_access_closed(&self) -> bool {
        let target: io::Result<PathBuf> = std::fs::read_link(self.config().run_dir.join(LINK));
        target.is_ok_and(|target| target.ends_with(CLOSED))
    }

    /// Lets clients in.
    pub fn open_access(&self) -> Result<(), PostgresError> {
        let config = self.config();
        turn_to(&config, &own_file(&config)?)?;
        self.reload()
    }
}

/// The fields of a line: apart by blanks, but not within quotes.
fn fields(line: &str) -> Vec<&str> {
    split(line, char::is_whitespace)
}

/// Splits outside of quotes; a comment ends the text.
fn split(text: &str, is_end: impl Fn(char) -> bool) -> Vec<&str> {
    let (mut parts, mut begin, mut is_quoted) = (Vec::new(), None, false);
    for (at, c) in text.char_indices() {
        if c == '"' {
            is_quoted = !is_quoted;
        }
        if !is_quoted && (is_end(c) || c == '#') {
            parts.extend(begin.take().map(|begin: usize| &text[begin..at]));
            if c == '#' {
                return parts;
            }
        } else if begin.is_none() {
            begin = Some(at);
        }
    }
    parts.extend(begin.map(|begin| &text[begin..]));
    parts
}

fn is_include(fields: &[&str]) -> bool {
    matches!(
        fields,
        ["include" | "include_if_exists" | "include_dir", ..]
    )
}

fn has_relative_reference(text: &str) -> bool {
    text.lines().any(|line| {
        let fields = fields(line);
        if let (true, [_, file, ..]) = (is_include(&fields), fields.as_slice()) {
            return !file.trim_matches('"').starts_with('/');
        }
        let listed = fields.iter().skip(1).take(2);
        let mut names = listed.flat_map(|field| split(field, |c| c == ','));
        names.any(|name| name.starts_with('@') && !name.trim_matches(['@', '"']).starts_with('/'))
    })
}

/// The lines with which only `roles` get in, the superuser the first of them, and whoever receives WAL. How
/// each proves who it is stays as the user wrote it.
fn without_clients(text: &str, roles: &[&str], has_password: bool) -> String {
    let mut closed = HEADER.to_owned();
    for line in text.lines() {
        let fields = fields(line);
        let [kind, databases, users, rest @ ..] = fields.as_slice() else {
            continue;
        };
        if is_include(&fields) {
            continue;
        }
        let rest = rest.join(" ");
        if rest.split(' ').any(|word| word == "reject") {
            closed.push_str(line.trim());
            closed.push('\n');
            continue;
        }
        let databases = split(databases, |c| c == ',');
        if databases.contains(&"replication") {
            closed.push_str(&format!("{kind} replication {users} {rest}\n"));
        }
        let databases: Vec<&str> = databases
            .into_iter()
            .filter(|d| *d != "replication")
            .collect();
        let users = split(users, |c| c == ',');
        let is_let = |role: &&&str| {
            users
                .iter()
                .any(|user| *user == "all" || user.trim_matches('"') == **role)
        };
        let let_in: Vec<&&str> = roles.iter().filter(is_let).collect();
        if databases.is_empty() || let_in.is_empty() {
            continue;
        }
        let let_in: Vec<String> = let_in.iter().map(|role| format!("\"{role}\"")).collect();
        let (databases, users) = (databases.join(","), let_in.join(","));
        closed.push_str(&format!("{kind} {databases} {users} {rest}\n"));
    }
    if let Some(superuser) = roles.first() {
        // Where it got in through a group or an included file.
        let method = if has_password { "md5" } else { "peer" };
        closed.push_str(&format!("local all \"{superuser}\" {method}\n"));
        if has_password {
            closed.push_str(&format!("host all \"{superuser}\" samehost md5\n"));
        }
    }
    closed
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROLES: [&str; 3] = ["postgres", "replicator", "rewinder"];

    fn closed(text: &str) -> String {
        let text = without_clients(text, &ROLES, true);
        text.strip_prefix(HEADER).unwrap_or_default().to_owned()
    }

    #[test]
    fn only_the_agents_roles_and_receivers_of_wal_are_let_in() {
        let text = "\
# TYPE DATABASE USER ADDRESS METHOD
local all all trust
host  all,replication  app,\"postgres\"  10.0.0.0/8  scram-sha-256 # a comment
host \"my db\" \"the app\" 10.0.0.0 255.0.0.0 md5
host replication barman 10.0.0.9/32 cert map=x
host all all 1.2.3.4/32 reject
hostssl all +staff all cert
";
        assert_eq!(
            closed(text),
            "\
local all \"postgres\",\"replicator\",\"rewinder\" trust
host replication app,\"postgres\" 10.0.0.0/8 scram-sha-256
host all \"postgres\" 10.0.0.0/8 scram-sha-256
host replication barman 10.0.0.9/32 cert map=x
host all all 1.2.3.4/32 reject
local all \"postgres\" md5
host all \"postgres\" samehost md5
"
        );
    }

    #[test]
    fn the_agent_gets_in_where_a_group_or_an_included_file_let_it_in() {
        assert_eq!(
            closed("include /etc/hba\nlocal all +dba md5\n"),
            "local all \"postgres\" md5\nhost all \"postgres\" samehost md5\n"
        );
    }

    #[test]
    fn a_file_that_refers_to_its_neighbours_is_not_read_through_a_link() {
        assert!(has_relative_reference("local all @users md5"));
        assert!(has_relative_reference("include_dir hba.d"));
        assert!(!has_relative_reference(
            "local all @/etc/users md5 # @users"
        ));
        assert!(!has_relative_reference(
            "include \"/etc/hba\"\nlocal all all trust"
        ));
    }
}
