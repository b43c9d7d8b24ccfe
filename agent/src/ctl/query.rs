//! `query`: SQL for a member that is chosen by its role or its name. Values of TSV and tables are written as
//! patronictl writes them (`True`, `None`), those of JSON and YAML by their types.

use std::io::Read;
use std::time::Duration;

use serde_json::Value;
use tokio::time::timeout;
use tokio_postgres::types::Type;
use tokio_postgres::{Client, Config, NoTls, SimpleQueryMessage};
use trunkline_shared::cluster::{Member, Topology};

use super::arguments::{Format, Query, Role};
use super::dsn::{any_member, host_and_port};
use super::members::has_role;
use super::table::{Column, Table};
use super::terminal::Label;
use super::watching::watching;
use super::{CtlError, Session};
use crate::config::Environment;

mod password_file;

/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(5);

/// `trunkline query`
pub(super) async fn query(
    session: &Session,
    asked: &Query,
    env: &Environment,
) -> Result<(), CtlError> {
    let sql = sql(asked)?;
    let every = asked.watch.interval()?;
    let (_follow, view) = session.known().await?;
    let access = Access::new(session, asked, env).await?;
    let (client, member) = connect(session, asked, &view.topology, &access).await?;
    session.terminal.goes_on(&format!(
        "a statement that was begun may go on in PostgreSQL of {member}"
    ));
    let label = Label::new(format!("waiting for PostgreSQL of {member}"));
    watching(&session.terminal, every, async || {
        let asking = answer(&client, &sql);
        match session.terminal.waiting(&label, asking).await {
            Ok(answer) => {
                let table = answer.table(asked.format, &asked.delimiter);
                session.terminal.print(&table.render(asked.format))
            }
            Err(why) if every.is_some() && !client.is_closed() => {
                session.terminal.warn(&why);
                Ok(())
            }
            Err(why) => Err(CtlError::Failed(format!("{member}: {why}"))),
        }
    })
    .await
}

fn sql(asked: &Query) -> Result<String, CtlError> {
    let usage = |why: &str| Err(CtlError::Usage(why.to_owned()));
    match (&asked.command, &asked.file) {
        (Some(_), Some(_)) => usage("--file and --command are mutually exclusive options"),
        (None, None) => usage("You need to specify either --command or --file"),
        (Some(command), None) => Ok(command.clone()),
        (None, Some(file)) => {
            let read = match file.to_str() {
                Some("-") => {
                    let mut text = String::new();
                    std::io::stdin().read_to_string(&mut text).map(|_| text)
                }
                _ => std::fs::read_to_string(file),
            };
            read.map_err(|error| {
                CtlError::Usage(format!("{} cannot be read: {error}", file.display()))
            })
        }
    }
}

/// Who connects, and to which database.
struct Access<'e> {
    user: String,
    database: String,
    password: Option<String>,
    env: &'e Environment,
}

impl<'e> Access<'e> {
    async fn new(session: &Session, asked: &Query, env: &'e Environment) -> Result<Self, CtlError> {
        let named = |names: &[&str]| names.iter().find_map(|name| env.get(*name).cloned());
        let user = asked.username.clone();
        let Some(user) = user.or_else(|| named(&["PGUSER", "USER", "LOGNAME"])) else {
            let why = "no user is named: give one by -U, or set PGUSER";
            return Err(CtlError::Usage(why.to_owned()));
        };
        let database = asked.dbname.clone().or_else(|| named(&["PGDATABASE"]));
        let password = match asked.password {
            true => Some(session.terminal.secret("Password").await?),
            false => named(&["PGPASSWORD"]),
        };
        Ok(Self {
            database: database.unwrap_or_else(|| user.clone()),
            user,
            password,
            env,
        })
    }

    fn config(&self, member: &Member) -> Config {
        let (host, port) = host_and_port(member);
        let mut config = Config::new();
        config
            .host(host)
            .port(port.parse().unwrap_or(5432))
            .user(&self.user)
            .dbname(&self.database)
            .application_name("trunkline")
            .connect_timeout(CONNECT);
        let found = self
            .password
            .clone()
            .or_else(|| password_file::find(self.env, [host, port, &self.database, &self.user]));
        if let Some(password) = found {
            config.password(password);
        }
        config
    }
}

/// A connection to the first member that is what was asked for, and its name.
async fn connect(
    session: &Session,
    asked: &Query,
    topology: &Topology,
    access: &Access<'_>,
) -> Result<(Client, String), CtlError> {
    let candidates: Vec<&Member> = match (asked.role, &asked.member) {
        (Some(role), None) if role != Role::Leader => {
            let members = topology.members.values();
            let fit = members.filter(|member| has_role(topology, &member.name, role));
            fit.map(AsRef::as_ref).collect()
        }
        (role, member) => vec![any_member(topology, role, member.as_deref())?],
    };
    let mut tried = Vec::new();
    for member in candidates {
        let label = Label::new(format!("connecting to {}", member.name));
        let connecting = connect_to(member, asked.role, access);
        match session.terminal.waiting(&label, connecting).await {
            Ok(client) => return Ok((client, member.name.to_string())),
            Err(why) => tried.push(format!("{}: {why}", member.name)),
        }
    }
    let what = match (asked.role, &asked.member) {
        (_, Some(member)) => format!("No connection to member {member} is available"),
        (Some(role), None) => format!("No connection to role {} is available", role.word()),
        (None, None) => "No connection is available".to_owned(),
    };
    let tried = match tried.is_empty() {
        true => "there is no such member".to_owned(),
        false => tried.join("; "),
    };
    Err(CtlError::Failed(format!("{what}: {tried}")))
}

async fn connect_to(
    member: &Member,
    role: Option<Role>,
    access: &Access<'_>,
) -> Result<Client, String> {
    let config = access.config(member);
    let connecting = timeout(CONNECT, config.connect(NoTls));
    let (client, connection) = connecting
        .await
        .map_err(|_| format!("no connection within {} s", CONNECT.as_secs()))?
        .map_err(|error| said(&error))?;
    tokio::spawn(connection);
    // The DCS may be behind: PostgreSQL itself says what it is.
    let wanted = match role {
        None | Some(Role::Any | Role::Leader) => return Ok(client),
        Some(Role::Primary) => "f",
        Some(Role::Replica | Role::Standby | Role::StandbyLeader) => "t",
    };
    let asking = client.simple_query("SELECT pg_catalog.pg_is_in_recovery()");
    let rows = asking.await.map_err(|error| said(&error))?;
    let is_so = rows
        .iter()
        .any(|row| matches!(row, SimpleQueryMessage::Row(row) if row.get(0) == Some(wanted)));
    match is_so {
        true => Ok(client),
        false => Err("its PostgreSQL is not of that role now".to_owned()),
    }
}

/// What PostgreSQL, or the way to it, says.
fn said(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(error) => format!(
            "{}, SQLSTATE: {}: {}",
            error.severity(),
            error.code().code(),
            error.message()
        ),
        None => {
            let mut text = error.to_string();
            let mut source = std::error::Error::source(error);
            while let Some(error) = source {
                text = format!("{text}: {error}");
                source = error.source();
            }
            text
        }
    }
}

/// The rows of the last statement that has any.
#[derive(Default)]
struct Rows {
    names: Vec<String>,
    /// As far as they are known.
    types: Vec<Type>,
    rows: Vec<Vec<Option<String>>>,
}

async fn answer(client: &Client, sql: &str) -> Result<Rows, String> {
    // Of several statements the types are not known: their values are text.
    let types = client.prepare(sql).await.map(|statement| {
        let columns = statement.columns().iter();
        columns.map(|column| column.type_().clone()).collect()
    });
    let messages = client.simple_query(sql).await.map_err(|e| said(&e))?;
    let mut rows = Rows {
        types: types.unwrap_or_default(),
        ..Rows::default()
    };
    for message in messages {
        match message {
            SimpleQueryMessage::RowDescription(columns) => {
                rows.names = columns.iter().map(|c| c.name().to_owned()).collect();
                rows.rows.clear();
            }
            SimpleQueryMessage::Row(row) => {
                let cells = (0..row.len()).map(|at| row.get(at).map(str::to_owned));
                rows.rows.push(cells.collect());
            }
            _ => {}
        }
    }
    Ok(rows)
}

impl Rows {
    fn table(&self, format: Format, delimiter: &str) -> Table {
        let value = |at: usize, text: &Option<String>| {
            let value = typed(text.as_deref(), self.types.get(at));
            match format {
                Format::Json | Format::Yaml => value,
                Format::Pretty | Format::Tsv => as_python(value, text.as_deref()).into(),
            }
        };
        let row = |row: &Vec<Option<String>>| {
            let cells = row.iter().enumerate();
            cells.map(|(at, text)| value(at, text)).collect()
        };
        Table {
            title: String::new(),
            columns: self.names.iter().map(|n| Column::new(n, false)).collect(),
            rows: self.rows.iter().map(row).collect(),
            leaves_out_empty: false,
            delimiter: delimiter.to_owned(),
        }
    }
}

/// A value by its type.
fn typed(text: Option<&str>, of: Option<&Type>) -> Value {
    let Some(text) = text else {
        return Value::Null;
    };
    let parsed = match of {
        Some(&Type::BOOL) => Some(Value::Bool(text == "t")),
        Some(&Type::INT2 | &Type::INT4 | &Type::INT8 | &Type::OID) => {
            text.parse::<i64>().ok().map(Value::from)
        }
        Some(&Type::FLOAT4 | &Type::FLOAT8) => text.parse::<f64>().ok().map(Value::from),
        Some(&Type::JSON | &Type::JSONB) => serde_json::from_str(text).ok(),
        Some(_) | None => None,
    };
    parsed.unwrap_or_else(|| text.into())
}

/// A value as patronictl writes it for people: as text of Python.
fn as_python(value: Value, text: Option<&str>) -> String {
    match value {
        Value::Null => "None".to_owned(),
        Value::Bool(true) => "True".to_owned(),
        Value::Bool(false) => "False".to_owned(),
        Value::Number(_) | Value::String(_) | Value::Array(_) | Value::Object(_) => {
            text.unwrap_or_default().to_owned()
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_are_written_by_their_types_and_for_people_as_patronictl_does() {
        let rows = Rows {
            names: ["t", "n", "f", "j", "x"].map(str::to_owned).into(),
            types: vec![
                Type::BOOL,
                Type::INT8,
                Type::FLOAT8,
                Type::JSONB,
                Type::TEXT,
            ],
            rows: vec![
                ["t", "7", "0.5", "{\"a\": 1}", "7"]
                    .map(|t| Some(t.to_owned()))
                    .into(),
                vec![None; 5],
            ],
        };
        let text = rows.table(Format::Tsv, "|").render(Format::Tsv);
        assert_eq!(
            text,
            "t|n|f|j|x\nTrue|7|0.5|{\"a\": 1}|7\nNone|None|None|None|None\n"
        );
        let text = rows.table(Format::Json, "|").render(Format::Json);
        let value: Value = serde_json::from_str(&text).unwrap();
        let first = json!({"t": true, "n": 7, "f": 0.5, "j": {"a": 1}, "x": "7"});
        let second = json!({"t": null, "n": null, "f": null, "j": null, "x": null});
        assert_eq!(value, json!([first, second]));
    }
}
