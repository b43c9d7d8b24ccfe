//! A table as the console sends it: columns with PostgreSQL's types, rows of text.

use crate::protocol::messages::frame;

/// The type of a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `text`.
    Text,
    /// `integer`.
    Integer,
    /// `bigint`.
    BigInteger,
    /// `numeric`.
    Numeric,
}

impl Kind {
    /// The number of the type, and the length of its values.
    fn oid(self) -> (u32, i16) {
        match self {
            Kind::Text => (25, -1),
            Kind::Integer => (23, 4),
            Kind::BigInteger => (20, 8),
            Kind::Numeric => (1700, -1),
        }
    }
}

/// Name and type.
pub type Column = (&'static str, Kind);

/// A value; `None` is NULL.
pub type Cell = Option<String>;

/// A text.
pub fn text(value: impl Into<String>) -> Cell {
    Some(value.into())
}

/// A number.
pub fn number(value: impl ToString) -> Cell {
    Some(value.to_string())
}

/// Columns and rows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// The columns.
    pub columns: Vec<Column>,
    /// The rows; each has a cell for every column.
    pub rows: Vec<Vec<Cell>>,
}

impl Table {
    /// A table of these columns without a row.
    pub fn of(columns: &[Column]) -> Self {
        Self {
            columns: columns.to_vec(),
            rows: Vec::new(),
        }
    }

    /// Appends RowDescription and a DataRow for every row.
    pub fn write(&self, out: &mut Vec<u8>) {
        let count = |many: usize| u16::try_from(many).unwrap_or(u16::MAX).to_be_bytes();
        frame(out, b'T', |body| {
            body.extend_from_slice(&count(self.columns.len()));
            for (name, kind) in &self.columns {
                let (oid, length) = kind.oid();
                body.extend_from_slice(name.as_bytes());
                // No table, no number in it.
                body.extend_from_slice(&[0; 7]);
                body.extend_from_slice(&oid.to_be_bytes());
                body.extend_from_slice(&length.to_be_bytes());
                // No modifier; as text.
                body.extend_from_slice(&(-1_i32).to_be_bytes());
                body.extend_from_slice(&[0; 2]);
            }
        });
        for row in &self.rows {
            frame(out, b'D', |body| {
                body.extend_from_slice(&count(row.len()));
                for cell in row {
                    let Some(value) = cell else {
                        body.extend_from_slice(&(-1_i32).to_be_bytes());
                        continue;
                    };
                    let length = u32::try_from(value.len()).unwrap_or(0);
                    body.extend_from_slice(&length.to_be_bytes());
                    body.extend_from_slice(value.as_bytes());
                }
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_written_as_postgresql_writes_it() {
        let mut table = Table::of(&[("a", Kind::Integer), ("b", Kind::Text)]);
        table.rows.push(vec![number(7), None]);
        let mut out = Vec::new();
        table.write(&mut out);
        let described = b"T\0\0\0\x2e\0\x02a\0\0\0\0\0\0\0\0\0\0\x17\0\x04\xff\xff\xff\xff\0\0\
                          b\0\0\0\0\0\0\0\0\0\0\x19\xff\xff\xff\xff\xff\xff\0\0";
        let row = b"D\0\0\0\x0f\0\x02\0\0\0\x017\xff\xff\xff\xff";
        assert_eq!(out, [&described[..], &row[..]].concat());
    }
}
