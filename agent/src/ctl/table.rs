//! Tables as patronictl draws them, and the same rows as TSV, JSON and YAML. Pure.

use std::fmt::Write;

use serde_json::{Map, Value};

use super::arguments::Format;

/// A column: its name in JSON and TSV, its head in the drawing, and its side.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    /// Name.
    pub name: &'static str,
    /// Head.
    pub head: &'static str,
    /// Numbers stand on the right.
    pub is_number: bool,
}

/// A table.
#[derive(Clone, Debug)]
pub struct Table {
    /// Stands in the upper border, such as ` Cluster: demo (7389) `.
    pub title: String,
    /// The columns.
    pub columns: Vec<Column>,
    /// One value for each column; null is an empty cell.
    pub rows: Vec<Vec<Value>>,
}

impl Table {
    /// As text that ends with a line end.
    pub fn render(&self, format: Format) -> String {
        match format {
            Format::Pretty => self.pretty(),
            Format::Tsv => self.tsv(),
            Format::Json => {
                let mut text = self.objects().to_string();
                text.push('\n');
                text
            }
            Format::Yaml => yaml(&self.objects()),
        }
    }

    fn pretty(&self) -> String {
        let widths: Vec<usize> = self
            .columns
            .iter()
            .enumerate()
            .map(|(at, column)| {
                let cells = self.rows.iter().map(|row| width(&cell(&row[at])));
                cells.chain([column.head.len()]).max().unwrap_or(0)
            })
            .collect();
        let border: String = widths
            .iter()
            .map(|width| format!("+{}", "-".repeat(width + 2)))
            .chain(["+".to_owned()])
            .collect();
        let mut text = titled(&border, &self.title);
        let heads: Vec<String> = self.columns.iter().map(|c| c.head.to_owned()).collect();
        text.push_str(&self.line(&widths, &heads));
        text.push_str(&border);
        text.push('\n');
        for row in &self.rows {
            let cells: Vec<String> = row.iter().map(cell).collect();
            text.push_str(&self.line(&widths, &cells));
        }
        text.push_str(&border);
        text.push('\n');
        text
    }

    fn line(&self, widths: &[usize], cells: &[String]) -> String {
        let mut line = String::new();
        for ((column, size), cell) in self.columns.iter().zip(widths).zip(cells) {
            let pad = " ".repeat(size.saturating_sub(width(cell)));
            let _ = match column.is_number {
                true => write!(line, "| {pad}{cell} "),
                false => write!(line, "| {cell}{pad} "),
            };
        }
        line.push_str("|\n");
        line
    }

    fn tsv(&self) -> String {
        let heads: Vec<&str> = self.columns.iter().map(|c| c.name).collect();
        let mut text = heads.join("\t");
        text.push('\n');
        for row in &self.rows {
            let cells: Vec<String> = row.iter().map(cell).collect();
            text.push_str(&cells.join("\t"));
            text.push('\n');
        }
        text
    }

    fn objects(&self) -> Value {
        self.rows
            .iter()
            .map(|row| {
                let fields = self.columns.iter().zip(row);
                fields
                    .filter(|(_, value)| !value.is_null())
                    .map(|(column, value)| (column.name.to_owned(), value.clone()))
                    .collect::<Map<_, _>>()
            })
            .collect()
    }
}

/// YAML of a JSON value, with a line end.
pub fn yaml(value: &Value) -> String {
    let mut text = serde_saphyr::to_string(value).unwrap_or_else(|_| value.to_string());
    if !text.ends_with('\n') {
        text.push('\n');
    }
    text
}

/// The border with the title laid over it, as patronictl does: cut rather than made wider.
fn titled(border: &str, title: &str) -> String {
    let room = border.len().saturating_sub(2);
    let title: String = title.chars().take(room).collect();
    let rest = border.get(1 + width(&title)..).unwrap_or("+");
    format!("+{title}{rest}\n")
}

fn width(text: &str) -> usize {
    text.chars().count()
}

fn cell(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Object(map) => map
            .iter()
            .map(|(key, value)| format!("{key}: {}", cell(value)))
            .collect::<Vec<_>>()
            .join(", "),
        Value::Bool(_) | Value::Number(_) | Value::Array(_) => value.to_string(),
    }
}
