//! `history`: when the leader changed.

use serde_json::Value;
use trunkline_shared::cluster::topology::FactKey;
use trunkline_shared::dcs::records::history_lines;

use super::arguments::Format;
use super::table::{Column, Table};
use super::{CtlError, Session};

const fn column(name: &'static str, is_number: bool) -> Column {
    Column {
        name,
        head: name,
        is_number,
    }
}

/// `trunkline history`
pub async fn show(session: &Session, format: Format) -> Result<(), CtlError> {
    let (_, view) = session.follow().await?;
    let lines = match view.raw.get(&FactKey::History) {
        Some(raw) => history_lines(&raw.text)
            .map_err(|why| CtlError::Failed(format!("the history cannot be read: {why}")))?,
        None => Vec::new(),
    };
    let text = |text: &Option<String>| text.clone().map_or(Value::Null, Value::from);
    let table = Table {
        title: String::new(),
        columns: vec![
            column("TL", true),
            column("LSN", true),
            column("Reason", false),
            column("Timestamp", false),
            column("New Leader", false),
        ],
        rows: lines
            .iter()
            .map(|line| {
                vec![
                    line.timeline.0.into(),
                    line.end.0.into(),
                    line.reason.clone().into(),
                    text(&line.time),
                    text(&line.leader),
                ]
            })
            .collect(),
    };
    session.terminal.print(&table.render(format))
}
