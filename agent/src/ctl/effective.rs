//! `show-config`, and `--effective`: every value in force for the member of the file, and where it comes from.

use std::path::Path;

use super::arguments::{Format, ShowConfig};
use super::table::{Column, Table};
use super::{CtlError, Session, edit};
use crate::api::settings::{SettingsChangeError, read};
use crate::config::Environment;
use crate::config::effective::effective;

/// `trunkline show-config`
pub(super) async fn show_config(
    session: &Session,
    asked: &ShowConfig,
    path: Option<&Path>,
    env: &Environment,
) -> Result<(), CtlError> {
    match asked.effective {
        true => show(session, path, env, asked.format).await,
        false => edit::show(session).await,
    }
}

/// Prints the values in force.
async fn show(
    session: &Session,
    path: Option<&Path>,
    env: &Environment,
    format: Format,
) -> Result<(), CtlError> {
    let dynamic = match read(session.dcs.as_ref(), &session.keys).await {
        Ok((value, _)) => Some(value),
        Err(SettingsChangeError::Absent) => {
            session.terminal.warn(
                "There is no cluster yet: what is shown of its configuration is what bootstrap.dcs would begin with",
            );
            None
        }
        Err(error) => return Err(error.into()),
    };
    let (lines, warnings) = effective(path, env, dynamic.as_ref())?;
    for warning in warnings {
        session.terminal.warn(&warning.to_string());
    }
    let rows = lines.into_iter().map(|line| {
        let origin = line.origin.to_string();
        vec![line.key.into(), line.value.into(), origin.into()]
    });
    let table = Table {
        title: format!(" Cluster: {} ", session.cluster),
        columns: ["Key", "Value", "Origin"]
            .map(|name| Column::new(name, false))
            .into(),
        rows: rows.collect(),
        leaves_out_empty: true,
        delimiter: "\t".to_owned(),
    };
    session.terminal.print(&table.render(format))
}
