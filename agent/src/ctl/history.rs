//! `history`: when the leader changed.

use serde_json::Value;
use trunkline_shared::cluster::topology::FactKey;
use trunkline_shared::dcs::records::history_lines;

use super::arguments::Format;
use super::table::{Column, Table};
use super::{CtlError, Session};

/// `trunkline history`
pub(super) async fn show(session: &Session, format: Format) -> Result<(), CtlError> {
    let (_, view) = session.known().await?;
    let lines = match view.raw.get(&FactKey::History) {
        Some(raw) => history_lines(&raw.text)
            .map_err(|why| CtlError::Failed(format!("the history cannot be read: {why}")))?,
        None => Vec::new(),
    };
    let text = |text: &Option<String>| Value::from(text.as_deref().unwrap_or_default());
    let table = Table {
        title: String::new(),
        columns: vec![
            Column::new("TL", true),
            Column::new("LSN", true),
            Column::new("Reason", false),
            Column::new("Timestamp", false),
            Column::new("New Leader", false),
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
        leaves_out_empty: false,
        delimiter: "\t".to_owned(),
    };
    session.terminal.print(&table.render(format))
}
