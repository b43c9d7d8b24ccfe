//! How a line looks: Python's templates and JSON fields, as Patroni's files have them. Pure but for the zone, which is
//! looked up once: a log line must not wait for a disk.

use std::fmt::Write;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::{Map, Value};

use crate::service::clock::WallTime;

/// The longest text that a width in a template may ask for.
const WIDEST: usize = 200;

/// A line's parts.
#[derive(Clone, Debug)]
pub struct Style {
    shape: Shape,
    dates: Dates,
    zone: TimeZone,
}

#[derive(Clone, Debug)]
enum Shape {
    Plain(Vec<Piece>),
    Json {
        fields: Vec<(Attribute, String)>,
        fixed: Map<String, Value>,
    },
}

/// A part of a template.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(String),
    Attribute { of: Attribute, width: Width },
}

/// `%(levelname)-8s`, `%(lineno)04d`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Width {
    least: usize,
    is_left: bool,
    has_zeros: bool,
}

/// How a time is written.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Dates {
    /// `2026-11-20 10:00:00,123`, local time: Python's.
    Python,
    /// `2026-11-20T10:00:00.123456Z`.
    Rfc3339,
    /// As `strftime` writes it, local time.
    Format(String),
}

/// What a template or a field may show: what Python's records have and a log line here can answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Attribute {
    AscTime,
    Created,
    FileName,
    Level,
    LevelName,
    LevelNo,
    LineNo,
    Message,
    Module,
    Msecs,
    Name,
    PathName,
    Process,
    ProcessName,
    ThreadName,
}

const ATTRIBUTES: [(&str, Attribute); 15] = [
    ("asctime", Attribute::AscTime),
    ("created", Attribute::Created),
    ("filename", Attribute::FileName),
    ("level", Attribute::Level),
    ("levelname", Attribute::LevelName),
    ("levelno", Attribute::LevelNo),
    ("lineno", Attribute::LineNo),
    ("message", Attribute::Message),
    ("module", Attribute::Module),
    ("msecs", Attribute::Msecs),
    ("name", Attribute::Name),
    ("pathname", Attribute::PathName),
    ("process", Attribute::Process),
    ("processName", Attribute::ProcessName),
    ("threadName", Attribute::ThreadName),
];

/// Why a style cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StyleError {
    /// A template or a list names something that a line does not have.
    #[error("\"{name}\" is nothing that a line has; allowed: {}", names())]
    Attribute {
        /// As written.
        name: String,
    },
    /// A `%` that begins nothing.
    #[error("the part \"{0}\" is not of the form %(name)s; a single % is written %%")]
    Template(String),
    /// `strftime` does not know it.
    #[error("the date format \"{format}\" cannot be used: {why}")]
    Dates {
        /// As written.
        format: String,
        /// Why not.
        why: String,
    },
}

fn names() -> String {
    ATTRIBUTES.map(|(name, _)| name).join(", ")
}

/// What happened, as a line shows it.
#[derive(Clone, Debug)]
pub(super) struct Said<'a> {
    pub at: WallTime,
    pub level: tracing::Level,
    /// The module, `trunkline_agent::lease`.
    pub target: &'a str,
    pub file: Option<&'a str>,
    pub line: Option<u32>,
    pub thread: Option<&'a str>,
    pub program: &'a str,
    pub message: String,
    pub fields: Vec<(&'static str, Value)>,
}

impl Style {
    /// Patroni's plain lines: `2026-11-20 10:00:00,123 INFO: message`.
    pub fn patroni() -> Self {
        let of = |of| Piece::Attribute {
            of,
            width: Width::default(),
        };
        let text = |text: &str| Piece::Text(text.to_owned());
        let pieces = vec![
            of(Attribute::AscTime),
            text(" "),
            of(Attribute::LevelName),
            text(": "),
            of(Attribute::Message),
        ];
        Self::of(Shape::Plain(pieces), Dates::Python)
    }

    /// Patroni's JSON: `asctime`, `levelname`, `message`, and what a line says beside them.
    pub fn patroni_json() -> Self {
        let field = |(name, of): (&str, Attribute)| (of, name.to_owned());
        let fields = [
            ("asctime", Attribute::AscTime),
            ("levelname", Attribute::LevelName),
            ("message", Attribute::Message),
        ];
        let shape = Shape::Json {
            fields: fields.map(field).into(),
            fixed: Map::new(),
        };
        Self::of(shape, Dates::Python)
    }

    /// `2026-11-20T10:00:00.123456Z  INFO trunkline_router::run: message`.
    pub fn plain() -> Self {
        let of = |of, least| Piece::Attribute {
            of,
            width: Width {
                least,
                ..Width::default()
            },
        };
        let text = |text: &str| Piece::Text(text.to_owned());
        let pieces = vec![
            of(Attribute::AscTime, 0),
            text(" "),
            of(Attribute::Level, 5),
            text(" "),
            of(Attribute::Name, 0),
            text(": "),
            of(Attribute::Message, 0),
        ];
        Self::of(Shape::Plain(pieces), Dates::Rfc3339)
    }

    /// The same as one JSON object: `timestamp`, `level`, `message`, what a line says beside them, and `target`.
    pub fn json() -> Self {
        let field = |(name, of): (&str, Attribute)| (of, name.to_owned());
        let fields = [
            ("timestamp", Attribute::AscTime),
            ("level", Attribute::Level),
            ("target", Attribute::Name),
            ("message", Attribute::Message),
        ];
        let shape = Shape::Json {
            fields: fields.map(field).into(),
            fixed: Map::new(),
        };
        Self::of(shape, Dates::Rfc3339)
    }

    fn of(shape: Shape, dates: Dates) -> Self {
        Self {
            shape,
            dates,
            zone: TimeZone::system(),
        }
    }

    /// Lines by a template such as `%(asctime)s %(levelname)s: %(message)s`.
    ///
    /// # Errors
    /// Names what the template asks for in vain.
    pub fn from_template(template: &str) -> Result<Self, StyleError> {
        Ok(Self::of(Shape::Plain(pieces(template)?), Dates::Python))
    }

    /// JSON objects with the fields that a template names.
    ///
    /// # Errors
    /// Names what the template asks for in vain.
    pub fn json_from_template(template: &str) -> Result<Self, StyleError> {
        let pieces = pieces(template)?;
        let fields = pieces.into_iter().filter_map(|piece| match piece {
            Piece::Attribute { of, .. } => Some((of, name_of(of).to_owned())),
            Piece::Text(_) => None,
        });
        let shape = Shape::Json {
            fields: fields.collect(),
            fixed: Map::new(),
        };
        Ok(Self::of(shape, Dates::Python))
    }

    /// JSON objects with these fields, each under its own name or another one.
    ///
    /// # Errors
    /// Names what is asked for in vain.
    pub fn json_of(fields: Vec<(String, String)>) -> Result<Self, StyleError> {
        let read = |(of, shown): (String, String)| Ok((attribute(&of)?, shown));
        let shape = Shape::Json {
            fields: fields.into_iter().map(read).collect::<Result<_, _>>()?,
            fixed: Map::new(),
        };
        Ok(Self::of(shape, Dates::Python))
    }

    /// With fields that are the same in every JSON object.
    pub fn with_fixed(mut self, told: Map<String, Value>) -> Self {
        if let Shape::Json { fixed, .. } = &mut self.shape {
            *fixed = told;
        }
        self
    }

    /// With times as `strftime` writes them.
    ///
    /// # Errors
    /// The format cannot be used.
    pub fn with_dates(mut self, format: &str) -> Result<Self, StyleError> {
        strftime(format, Timestamp::UNIX_EPOCH, &self.zone).map_err(|why| StyleError::Dates {
            format: format.to_owned(),
            why,
        })?;
        self.dates = Dates::Format(format.to_owned());
        Ok(self)
    }

    /// The line, with its end.
    pub(super) fn line(&self, said: Said<'_>) -> String {
        match &self.shape {
            Shape::Plain(pieces) => self.plain_line(pieces, &said),
            Shape::Json { fields, fixed } => self.json_line(fields, fixed, said),
        }
    }

    fn plain_line(&self, pieces: &[Piece], said: &Said<'_>) -> String {
        let mut line = String::with_capacity(200);
        for piece in pieces {
            match piece {
                Piece::Text(text) => line.push_str(text),
                Piece::Attribute { of, width } => {
                    let mut text = self.text(*of, said);
                    if *of == Attribute::Message {
                        for (name, value) in &said.fields {
                            let _ = match value {
                                Value::String(value) => write!(text, " {name}={value:?}"),
                                other => write!(text, " {name}={other}"),
                            };
                        }
                        // One event, one line.
                        text = text.replace('\n', "\\n");
                    }
                    width.put(&mut line, &text);
                }
            }
        }
        line.push('\n');
        line
    }

    fn json_line(
        &self,
        fields: &[(Attribute, String)],
        fixed: &Map<String, Value>,
        said: Said<'_>,
    ) -> String {
        let mut object = Map::new();
        for (of, name) in fields {
            let value = match of {
                Attribute::LevelNo => level_number(said.level).into(),
                Attribute::LineNo => said.line.into(),
                Attribute::Process => std::process::id().into(),
                Attribute::Created => (said.at.0 as f64 / 1e6).into(),
                Attribute::AscTime
                | Attribute::FileName
                | Attribute::Level
                | Attribute::LevelName
                | Attribute::Message
                | Attribute::Module
                | Attribute::Msecs
                | Attribute::Name
                | Attribute::PathName
                | Attribute::ProcessName
                | Attribute::ThreadName => self.text(*of, &said).into(),
            };
            object.insert(name.clone(), value);
        }
        for (name, value) in fixed {
            object.insert(name.clone(), value.clone());
        }
        for (name, value) in said.fields {
            // What the operator named stands.
            let name = match object.contains_key(name) {
                true => format!("{name}_"),
                false => name.to_owned(),
            };
            object.insert(name, value);
        }
        let mut line = Value::Object(object).to_string();
        line.push('\n');
        line
    }

    fn text(&self, of: Attribute, said: &Said<'_>) -> String {
        match of {
            Attribute::AscTime => self.time(said.at),
            Attribute::Created => format!("{:.6}", said.at.0 as f64 / 1e6),
            Attribute::FileName => {
                let path = said.file.unwrap_or_default();
                path.rsplit('/').next().unwrap_or(path).to_owned()
            }
            Attribute::Level => said.level.as_str().to_owned(),
            Attribute::LevelName => level_word(said.level).to_owned(),
            Attribute::LevelNo => level_number(said.level).to_string(),
            Attribute::LineNo => said.line.unwrap_or(0).to_string(),
            Attribute::Message => said.message.clone(),
            Attribute::Module => {
                let last = said.target.rsplit("::").next();
                last.unwrap_or(said.target).to_owned()
            }
            Attribute::Msecs => format!("{}", said.at.0.rem_euclid(1_000_000) / 1000),
            Attribute::Name => said.target.to_owned(),
            Attribute::PathName => said.file.unwrap_or_default().to_owned(),
            Attribute::Process => std::process::id().to_string(),
            Attribute::ProcessName => said.program.to_owned(),
            Attribute::ThreadName => said.thread.unwrap_or_default().to_owned(),
        }
    }

    fn time(&self, at: WallTime) -> String {
        let utc = || at.rfc3339();
        let Ok(instant) = Timestamp::from_microsecond(at.0) else {
            return utc();
        };
        let local = |format: &str| strftime(format, instant, &self.zone);
        match &self.dates {
            Dates::Python => local("%Y-%m-%d %H:%M:%S").map_or_else(
                |_| utc(),
                |text| format!("{text},{:03}", at.0.rem_euclid(1_000_000) / 1000),
            ),
            Dates::Rfc3339 => utc().replace("+00:00", "Z"),
            Dates::Format(format) => local(format).unwrap_or_else(|_| utc()),
        }
    }
}

impl Width {
    fn put(self, line: &mut String, text: &str) {
        let missing = self.least.saturating_sub(text.chars().count());
        let fill = if self.has_zeros && !self.is_left {
            "0"
        } else {
            " "
        };
        if self.is_left {
            line.push_str(text);
        }
        line.push_str(&fill.repeat(missing));
        if !self.is_left {
            line.push_str(text);
        }
    }
}

fn strftime(format: &str, at: Timestamp, zone: &TimeZone) -> Result<String, String> {
    let zoned = at.to_zoned(zone.clone());
    let text = jiff::fmt::strtime::format(format, &zoned);
    text.map_err(|error| error.to_string())
}

fn attribute(name: &str) -> Result<Attribute, StyleError> {
    let found = ATTRIBUTES.iter().find(|(known, _)| *known == name);
    let (_, attribute) = found.ok_or_else(|| StyleError::Attribute {
        name: name.to_owned(),
    })?;
    Ok(*attribute)
}

fn name_of(attribute: Attribute) -> &'static str {
    let found = ATTRIBUTES.iter().find(|(_, known)| *known == attribute);
    found.map_or("", |(name, _)| name)
}

/// Reads `%(name)s` with a width, `%%`, and text.
fn pieces(template: &str) -> Result<Vec<Piece>, StyleError> {
    let mut pieces = Vec::new();
    let mut rest = template;
    while let Some((before, after)) = rest.split_once('%') {
        if !before.is_empty() {
            pieces.push(Piece::Text(before.to_owned()));
        }
        if let Some(after) = after.strip_prefix('%') {
            pieces.push(Piece::Text("%".to_owned()));
            rest = after;
            continue;
        }
        let wrong =
            || StyleError::Template(format!("%{}", after.chars().take(20).collect::<String>()));
        let inside = after.strip_prefix('(').ok_or_else(wrong)?;
        let (name, conversion) = inside.split_once(')').ok_or_else(wrong)?;
        let end = conversion
            .find(|c: char| c.is_ascii_alphabetic())
            .ok_or_else(wrong)?;
        let (flags, letter) = conversion.split_at(end);
        let width = width(flags).ok_or_else(wrong)?;
        if !letter.starts_with(['s', 'd', 'i', 'f', 'r']) {
            return Err(wrong());
        }
        let of = attribute(name)?;
        pieces.push(Piece::Attribute { of, width });
        rest = &letter[1..];
    }
    if !rest.is_empty() {
        pieces.push(Piece::Text(rest.to_owned()));
    }
    Ok(pieces)
}

/// `-8`, `04`, `.3`: a precision is allowed and cuts nothing.
fn width(flags: &str) -> Option<Width> {
    let (flags, precision) = flags.split_once('.').unwrap_or((flags, ""));
    let digits = flags.trim_start_matches(['-', '+', ' ', '#', '0']);
    let marks = &flags[..flags.len() - digits.len()];
    let least = match digits {
        "" => 0,
        digits => digits.parse().ok().filter(|width| *width <= WIDEST)?,
    };
    precision
        .chars()
        .all(|c| c.is_ascii_digit())
        .then_some(Width {
            least,
            is_left: marks.contains('-'),
            has_zeros: marks.contains('0'),
        })
}

/// Python's words.
fn level_word(level: tracing::Level) -> &'static str {
    match level {
        tracing::Level::ERROR => "ERROR",
        tracing::Level::WARN => "WARNING",
        tracing::Level::INFO => "INFO",
        tracing::Level::DEBUG | tracing::Level::TRACE => "DEBUG",
    }
}

/// Python's numbers.
fn level_number(level: tracing::Level) -> u32 {
    match level {
        tracing::Level::ERROR => 40,
        tracing::Level::WARN => 30,
        tracing::Level::INFO => 20,
        tracing::Level::DEBUG => 10,
        tracing::Level::TRACE => 5,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn said() -> Said<'static> {
        Said {
            at: WallTime(1_795_860_000_123_456),
            level: tracing::Level::WARN,
            target: "trunkline_agent::lease::keeper",
            file: Some("agent/src/lease/keeper.rs"),
            line: Some(7),
            thread: Some("lease"),
            program: "trunkline-agent",
            message: "not renewed".to_owned(),
            fields: vec![("error", json!("cut\noff")), ("name", json!(3))],
        }
    }

    fn shown(style: Style) -> String {
        let utc = Style {
            zone: TimeZone::UTC,
            ..style
        };
        utc.line(said())
    }

    #[test]
    fn plain_lines_follow_pythons_templates() {
        assert_eq!(
            shown(Style::patroni()),
            "2026-11-28 10:00:00,123 WARNING: not renewed error=\"cut\\noff\" name=3\n"
        );
        assert_eq!(
            shown(Style::plain()),
            "2026-11-28T10:00:00.123456Z  WARN trunkline_agent::lease::keeper: not renewed \
             error=\"cut\\noff\" name=3\n"
        );
        let template =
            "%(levelname)-8s|%(lineno)04d|%(module)s|%(filename)s|%(threadName)s|100%%|%(levelno)s";
        assert_eq!(
            shown(Style::from_template(template).unwrap()),
            "WARNING |0007|keeper|keeper.rs|lease|100%|30\n"
        );
        let style = Style::patroni().with_dates("%d.%m.%Y %H:%M").unwrap();
        assert!(shown(style).starts_with("28.11.2026 10:00 WARNING:"));
    }

    #[test]
    fn json_has_the_fields_that_are_asked_for_under_their_names() {
        let object = |style: Style| serde_json::from_str::<Value>(&shown(style)).unwrap();
        assert_eq!(
            object(Style::patroni_json()),
            json!({"asctime": "2026-11-28 10:00:00,123", "levelname": "WARNING", "message": "not renewed",
                "error": "cut\noff", "name": 3})
        );
        let fields = [
            ("message", "message"),
            ("asctime", "@timestamp"),
            ("name", "name"),
        ];
        let fields = fields.map(|(of, shown)| (of.to_owned(), shown.to_owned()));
        let fixed = Map::from_iter([("app".to_owned(), json!("db"))]);
        let style = Style::json_of(fields.into()).unwrap().with_fixed(fixed);
        assert_eq!(
            object(style.with_dates("%s").unwrap()),
            json!({"message": "not renewed", "@timestamp": "1795860000", "app": "db",
                "name": "trunkline_agent::lease::keeper", "error": "cut\noff", "name_": 3})
        );
        let style = Style::json_from_template("%(levelno)d %(message)s").unwrap();
        assert_eq!(object(style)["levelno"], 30);
    }

    #[test]
    fn what_a_line_does_not_have_is_named() {
        for (template, part) in [
            ("%(funcName)s", "funcName"),
            ("%s", "%s"),
            ("%(message)", "%(message)"),
            ("%(message)999s", "%(message)999s"),
            ("%(message)x", "%(message)x"),
            ("%", "%"),
        ] {
            let error = Style::from_template(template).unwrap_err().to_string();
            assert!(error.contains(part), "{template}: {error}");
        }
        let error = Style::patroni()
            .with_dates("%d %!")
            .unwrap_err()
            .to_string();
        assert!(error.contains("%d %!"), "{error}");
    }
}
