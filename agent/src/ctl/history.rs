//! `history`: when the leader changed.

use serde_json::Value;
use trunkline_shared::cluster::MemberName;
use trunkline_shared::cluster::switchover::LeaderChange;
use trunkline_shared::cluster::topology::FactKey;
use trunkline_shared::dcs::records::{changes_from_json, history_lines};
use trunkline_shared::dcs::watch::View;

use super::arguments::{Format, History};
use super::table::{Column, Table};
use super::{CtlError, Session};

/// `trunkline history`
pub(super) async fn show(session: &Session, asked: &History) -> Result<(), CtlError> {
    let (_, view) = session.known().await?;
    if asked.parts {
        return show_parts(session, &view, asked.format);
    }
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
    session.terminal.print(&table.render(asked.format))
}

/// The columns of the parts, in the order of the record.
const PARTS: [&str; 6] = [
    "Checkpoint",
    "Hold",
    "Hold All",
    "Stop",
    "Hand Over",
    "Promote",
];

/// The changes of leader that wrote down how long they took, in milliseconds. The checkpoint holds nobody up.
fn show_parts(session: &Session, view: &View, format: Format) -> Result<(), CtlError> {
    let changes = match view.raw.get(&FactKey::Changes) {
        Some(raw) => changes_from_json(&raw.text).map_err(|why| {
            CtlError::Failed(format!("the parts of the history cannot be read: {why}"))
        })?,
        None => Vec::new(),
    };
    let mut columns = vec![
        Column::new("Epoch", false),
        Column::new("Timestamp", false),
        Column::new("Old Leader", false),
        Column::new("New Leader", false),
    ];
    columns.extend(PARTS.map(|part| Column::new(part, true)));
    let row = |change: &LeaderChange| {
        let from = change.from.as_ref().map(MemberName::as_str);
        let mut row: Vec<Value> = vec![
            change.epoch.to_string().into(),
            change.at.to_string().into(),
            from.unwrap_or_default().into(),
            change.to.as_str().into(),
        ];
        row.extend(change.parts.named().map(|(_, took)| {
            took.map_or_else(
                || Value::from(""),
                |took| Value::from((took.as_secs_f64() * 1e4).round() / 10.0),
            )
        }));
        row
    };
    let table = Table {
        title: String::new(),
        columns,
        rows: changes.iter().map(row).collect(),
        leaves_out_empty: false,
        delimiter: "\t".to_owned(),
    };
    session.terminal.print(&table.render(format))
}
