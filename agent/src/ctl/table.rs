//! Tables as patronictl draws them, and the same rows as TSV, JSON and YAML, byte for byte. Pure.

use std::fmt::Write;
use std::io;

use serde::Serialize;
use serde_json::ser::Formatter;
use serde_json::{Map, Value};

use super::arguments::Format;
use super::yaml;

/// A column: its name in JSON and TSV, its head in the drawing, and its side.
#[derive(Clone, Debug)]
pub struct Column {
    /// Name.
    pub name: String,
    /// Head.
    pub head: String,
    /// Numbers stand on the right.
    pub is_number: bool,
}

impl Column {
    /// A column whose head is its name.
    pub fn new(name: &str, is_number: bool) -> Self {
        Self {
            name: name.to_owned(),
            head: name.to_owned(),
            is_number,
        }
    }
}

/// A table.
#[derive(Clone, Debug)]
pub struct Table {
    /// Stands in the upper border, such as ` Cluster: demo (7389) `; empty for none.
    pub title: String,
    /// The columns.
    pub columns: Vec<Column>,
    /// One value for each column; null is an empty cell.
    pub rows: Vec<Vec<Value>>,
    /// In JSON and YAML a row has no fields for its empty cells.
    pub leaves_out_empty: bool,
    /// What stands between the cells of a line of TSV.
    pub delimiter: String,
}

impl Table {
    /// As text that ends with a line end.
    pub fn render(&self, format: Format) -> String {
        match format {
            Format::Pretty => self.pretty(),
            Format::Tsv => self.tsv(),
            Format::Json => format!("{}\n", json(&self.objects())),
            Format::Yaml => format!("{}\n", yaml::block(&self.objects())),
        }
    }

    fn pretty(&self) -> String {
        let rows: Vec<Vec<String>> = self
            .rows
            .iter()
            .map(|row| row.iter().map(cell).collect())
            .collect();
        let widths: Vec<usize> = self
            .columns
            .iter()
            .enumerate()
            .map(|(at, column)| {
                let cells = rows.iter().flat_map(|row| row[at].split('\n')).map(width);
                cells.chain([width(&column.head)]).max().unwrap_or(0)
            })
            .collect();
        let border: String = widths
            .iter()
            .map(|width| format!("+{}", "-".repeat(width + 2)))
            .chain(["+".to_owned()])
            .collect();
        // Cells of several lines would run into one another.
        let is_ruled = rows.iter().flatten().any(|cell| cell.contains('\n'));
        let mut text = titled(&border, &self.title);
        let heads: Vec<String> = self.columns.iter().map(|c| c.head.clone()).collect();
        text.push_str(&self.lines(&widths, &heads));
        text.push_str(&border);
        text.push('\n');
        for (at, row) in rows.iter().enumerate() {
            if is_ruled && at > 0 {
                let _ = writeln!(text, "{border}");
            }
            text.push_str(&self.lines(&widths, row));
        }
        text.push_str(&border);
        text.push('\n');
        text
    }

    /// One row: as many lines as its tallest cell has.
    fn lines(&self, widths: &[usize], cells: &[String]) -> String {
        let tallest = cells.iter().map(|cell| cell.split('\n').count()).max();
        let mut text = String::new();
        for at in 0..tallest.unwrap_or(1) {
            for ((column, size), cell) in self.columns.iter().zip(widths).zip(cells) {
                let part = cell.split('\n').nth(at).unwrap_or_default();
                let pad = " ".repeat(size.saturating_sub(width(part)));
                let _ = match column.is_number {
                    true => write!(text, "| {pad}{part} "),
                    false => write!(text, "| {part}{pad} "),
                };
            }
            text.push_str("|\n");
        }
        text
    }

    fn tsv(&self) -> String {
        let heads: Vec<&str> = self.columns.iter().map(|c| c.name.as_str()).collect();
        let mut text = String::new();
        if !heads.is_empty() {
            let _ = writeln!(text, "{}", heads.join(&self.delimiter));
        }
        for row in &self.rows {
            let cells: Vec<String> = row.iter().map(cell).collect();
            let _ = writeln!(text, "{}", cells.join(&self.delimiter));
        }
        text
    }

    fn objects(&self) -> Value {
        self.rows
            .iter()
            .map(|row| {
                let fields = self.columns.iter().zip(row);
                fields
                    .filter(|(_, value)| !self.leaves_out_empty || !value.is_null())
                    .map(|(column, value)| (column.name.clone(), value.clone()))
                    .collect::<Map<_, _>>()
            })
            .collect()
    }
}

/// The border with the title laid over it, as patronictl does: cut rather than made wider.
fn titled(border: &str, title: &str) -> String {
    if title.is_empty() {
        return format!("{border}\n");
    }
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
        Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => value.to_string(),
    }
}

/// JSON as Python's `json.dumps` writes it: blanks behind commas and colons, ASCII only.
pub fn json(value: &Value) -> String {
    let mut bytes = Vec::new();
    let mut writer = serde_json::Serializer::with_formatter(&mut bytes, Python);
    match value.serialize(&mut writer) {
        Ok(()) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(_) => value.to_string(),
    }
}

struct Python;

impl Formatter for Python {
    fn begin_array_value<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        match first {
            true => Ok(()),
            false => writer.write_all(b", "),
        }
    }

    fn begin_object_key<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        self.begin_array_value(writer, first)
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }

    fn write_string_fragment<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        for c in fragment.chars() {
            if c.is_ascii() {
                write!(writer, "{c}")?;
            } else {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    write!(writer, "\\u{unit:04x}")?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    #[test]
    fn json_is_written_as_python_writes_it() {
        let value = json!([{"a": 1, "b": "größe 🐘"}, {"c": [null, true]}]);
        assert_eq!(
            super::json(&value),
            "[{\"a\": 1, \"b\": \"gr\\u00f6\\u00dfe \\ud83d\\udc18\"}, {\"c\": [null, true]}]"
        );
    }
}
