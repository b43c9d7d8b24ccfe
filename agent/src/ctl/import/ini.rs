//! PgBouncer's file: sections, `key = value` to the end of the line, comments that begin a line, `%include`; and
//! its connection strings. As PgBouncer 1.26 reads them. Pure: who calls opens the files.

use std::sync::Arc;

use super::notes::Place;

/// Files within files.
const MAX_DEPTH: usize = 10;

/// A line `key = value`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Where it stands.
    pub place: Place,
    /// The section that it stands in.
    pub section: String,
    /// Its key.
    pub key: String,
    /// Its value; may be empty.
    pub value: String,
}

/// A file that PgBouncer would not read either.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {why}")]
pub struct Unreadable {
    /// Where.
    pub place: Place,
    /// Why.
    pub why: String,
}

/// Reads a file and those that it includes.
///
/// # Errors
/// The first line that cannot be read.
pub fn read(
    file: &str,
    open: &dyn Fn(&str) -> Result<String, String>,
) -> Result<Vec<Entry>, Unreadable> {
    let mut reader = Reader {
        open,
        section: None,
        entries: Vec::new(),
    };
    let place = Place {
        file: file.into(),
        line: 1,
    };
    let text = open(file).map_err(|why| Unreadable { place, why })?;
    reader.file(&file.into(), &text, 0)?;
    Ok(reader.entries)
}

struct Reader<'o> {
    open: &'o dyn Fn(&str) -> Result<String, String>,
    /// Goes on over the borders of files.
    section: Option<String>,
    entries: Vec<Entry>,
}

impl Reader<'_> {
    fn file(&mut self, file: &Arc<str>, text: &str, depth: usize) -> Result<(), Unreadable> {
        for (at, line) in text.lines().enumerate() {
            let place = Place {
                file: file.clone(),
                line: at + 1,
            };
            let line = line.trim();
            if line.is_empty() || line.starts_with([';', '#']) {
                continue;
            }
            let wrong = |why: &str| Unreadable {
                place: place.clone(),
                why: why.to_owned(),
            };
            if let Some(name) = line.strip_prefix("%include").filter(|n| is_blank(n)) {
                if depth == MAX_DEPTH {
                    return Err(wrong("files include each other too deeply"));
                }
                let name = name.trim();
                let text = (self.open)(name).map_err(|why| wrong(&why))?;
                self.file(&name.into(), &text, depth + 1)?;
            } else if let Some(rest) = line.strip_prefix('[') {
                let (name, _) = rest
                    .split_once(']')
                    .ok_or_else(|| wrong("] of a section is missing"))?;
                self.section = Some(name.to_owned());
            } else {
                let (key, value) = line
                    .split_once('=')
                    .ok_or_else(|| wrong("key = value is needed"))?;
                let section = self.section.clone();
                self.entries.push(Entry {
                    section: section.ok_or_else(|| wrong("a [section] must come first"))?,
                    key: unquoted(key.trim()),
                    value: value.trim().to_owned(),
                    place,
                });
            }
        }
        Ok(())
    }
}

fn is_blank(text: &str) -> bool {
    text.starts_with([' ', '\t'])
}

/// PgBouncer's manual allows names in double quotes, although its 1.26 does not read them.
fn unquoted(key: &str) -> String {
    let inside = key.strip_prefix('"').and_then(|k| k.strip_suffix('"'));
    inside.map_or_else(|| key.to_owned(), |inside| inside.replace("\"\"", "\""))
}

/// Keys and values of a connection string, in their order.
pub type Pairs = Vec<(String, String)>;

/// The pairs of a connection string: `key=value` with blanks between them, a value perhaps in single quotes,
/// which are doubled inside.
///
/// # Errors
/// What is wrong with it; never the string itself, which may hold a password.
pub fn pairs(text: &str) -> Result<Pairs, &'static str> {
    let mut pairs = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let (key, after) = rest
            .split_once('=')
            .ok_or("a key without = stands in the connection string")?;
        let key = key.trim_end();
        if key.is_empty() || key.contains(char::is_whitespace) {
            return Err("a key without = stands in the connection string");
        }
        let after = after.trim_start();
        let (value, after) = match after.strip_prefix('\'') {
            Some(quoted) => until_quote(quoted)?,
            None => {
                let end = after.find(char::is_whitespace).unwrap_or(after.len());
                let (value, after) = after.split_at(end);
                (value.to_owned(), after)
            }
        };
        pairs.push((key.to_owned(), value));
        rest = after.trim_start();
    }
    Ok(pairs)
}

fn until_quote(text: &str) -> Result<(String, &str), &'static str> {
    let mut value = String::new();
    let mut rest = text;
    loop {
        let (before, after) = rest
            .split_once('\'')
            .ok_or("a ' of the connection string has no end")?;
        value.push_str(before);
        match after.strip_prefix('\'') {
            Some(after) => {
                value.push('\'');
                rest = after;
            }
            None => return Ok((value, after)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_and_what_it_includes_are_one_text() {
        let open = |name: &str| match name {
            "main.ini" => {
                Ok("; c\n[databases]\n a = host=x ; no comment\n%include more.ini\nc=\n".into())
            }
            "more.ini" => Ok("b =\tdbname=y\n\n[pgbouncer]\n# c\n".into()),
            "loop.ini" => Ok("%include loop.ini".into()),
            other => Err(format!("{other} cannot be read")),
        };
        let entries = read("main.ini", &open).unwrap();
        let seen: Vec<String> = entries
            .iter()
            .map(|e| format!("{} [{}] {}={}", e.place, e.section, e.key, e.value))
            .collect();
        assert_eq!(
            seen,
            [
                "main.ini:3 [databases] a=host=x ; no comment",
                "more.ini:1 [databases] b=dbname=y",
                "main.ini:5 [pgbouncer] c=",
            ]
        );
        let why = read("loop.ini", &open).unwrap_err().to_string();
        assert_eq!(why, "loop.ini:1: files include each other too deeply");
        assert!(read("none.ini", &open).is_err());
    }

    /// What PgBouncer 1.26.1 takes and refuses.
    #[test]
    fn connection_strings_are_read_as_pgbouncer_reads_them() {
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        assert_eq!(
            pairs("host = 127.0.0.1 dbname='a b''c' user=x").unwrap(),
            [
                pair("host", "127.0.0.1"),
                pair("dbname", "a b'c"),
                pair("user", "x")
            ]
        );
        assert_eq!(pairs("").unwrap(), []);
        for bad in ["dbname=\"e f\" user=x", "user=x ; comment", "user='x"] {
            assert!(pairs(bad).is_err(), "{bad}");
        }
    }
}
