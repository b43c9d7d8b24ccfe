//! A configuration as a tree in which every value knows where it was written, so that a mistake can be
//! named with its file and line after files were merged and the environment was laid over them.

use std::fmt;
use std::sync::Arc;

use serde::Deserialize;
use serde::de::{self, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{DuplicateKeyPolicy, Spanned};

/// Where a value was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A line of a file, from 1.
    File {
        /// The file as it was named.
        path: Arc<str>,
        /// The line.
        line: u64,
    },
    /// An environment variable.
    Environment(Arc<str>),
    /// The cluster's configuration in the DCS.
    Dynamic,
    /// Nowhere: what holds where nothing is written.
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::File { path, line } => write!(f, "{path}:{line}"),
            Origin::Environment(name) => write!(f, "environment variable {name}"),
            Origin::Dynamic => f.write_str("dynamic configuration"),
            Origin::Default => f.write_str("default"),
        }
    }
}

/// One value with its origin.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Where it was written.
    pub origin: Origin,
    /// What was written.
    pub value: Value,
}

/// What was written.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A single value.
    Scalar(Scalar),
    /// A list.
    List(Vec<Node>),
    /// A mapping, in the order of the file.
    Map(Vec<Entry>),
}

/// One key of a mapping.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// Where the key stands; its value may begin on a later line.
    pub origin: Origin,
    /// Its value.
    pub node: Node,
}

/// A single value: its text as written (without quotes), and what YAML takes it for.
#[derive(Clone, Debug, PartialEq)]
pub struct Scalar {
    /// The text.
    pub text: String,
    /// Its YAML kind.
    pub kind: Kind,
}

/// What YAML takes a scalar for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// `null`, `~` or nothing.
    Null,
    /// `true`, `on`, `yes` and their opposites, unquoted.
    Boolean(bool),
    /// An integer.
    Integer(i64),
    /// A number with a fraction, or one too large for an integer.
    Float(f64),
    /// Anything else.
    Text,
}

/// The text is not YAML.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Malformed {
    /// The line, from 1; 0 if the parser does not say.
    pub line: u64,
    /// What the parser says.
    pub why: String,
}

impl Node {
    /// A mapping without keys.
    pub fn empty(path: &str) -> Self {
        Self {
            origin: Origin::File {
                path: Arc::from(path),
                line: 1,
            },
            value: Value::Map(Vec::new()),
        }
    }

    /// A text from an environment variable.
    pub fn from_environment(variable: &str, text: &str) -> Self {
        let scalar = match serde_saphyr::from_str::<Spanned<Raw>>(text) {
            Ok(spanned) => match spanned.value {
                Raw::Boolean(b) if text.len() > 1 => Kind::Boolean(b),
                Raw::Integer(i) => Kind::Integer(i),
                Raw::Float(x) => Kind::Float(x),
                Raw::Null | Raw::Boolean(_) | Raw::Text(_) | Raw::List(_) | Raw::Map(_) => {
                    Kind::Text
                }
            },
            Err(_) => Kind::Text,
        };
        Self {
            origin: Origin::Environment(Arc::from(variable)),
            value: Value::Scalar(Scalar {
                text: text.to_owned(),
                kind: scalar,
            }),
        }
    }

    /// The same value as if it had all been written at `origin`.
    pub fn moved_to(self, origin: &Origin) -> Self {
        let value = match self.value {
            Value::Scalar(scalar) => Value::Scalar(scalar),
            Value::List(items) => Value::List(
                items
                    .into_iter()
                    .map(|item| item.moved_to(origin))
                    .collect(),
            ),
            Value::Map(entries) => {
                let moved = entries.into_iter().map(|entry| Entry {
                    key: entry.key,
                    origin: origin.clone(),
                    node: entry.node.moved_to(origin),
                });
                Value::Map(moved.collect())
            }
        };
        Self {
            origin: origin.clone(),
            value,
        }
    }

    /// A JSON value that was written at `origin`.
    pub fn from_json(json: &serde_json::Value, origin: &Origin) -> Self {
        use serde_json::Value as Json;
        let scalar = |text: String, kind| Value::Scalar(Scalar { text, kind });
        let value = match json {
            Json::Null => scalar(String::new(), Kind::Null),
            Json::Bool(flag) => scalar(flag.to_string(), Kind::Boolean(*flag)),
            Json::Number(number) => {
                let kind = number.as_i64().map(Kind::Integer);
                let float = || Kind::Float(number.as_f64().unwrap_or(f64::NAN));
                scalar(number.to_string(), kind.unwrap_or_else(float))
            }
            Json::String(text) => scalar(text.clone(), Kind::Text),
            Json::Array(items) => {
                let nodes = items.iter().map(|item| Self::from_json(item, origin));
                Value::List(nodes.collect())
            }
            Json::Object(map) => {
                let entries = map.iter().map(|(key, item)| Entry {
                    key: key.clone(),
                    origin: origin.clone(),
                    node: Self::from_json(item, origin),
                });
                Value::Map(entries.collect())
            }
        };
        Self {
            origin: origin.clone(),
            value,
        }
    }

    /// The value of `key` if this is a mapping that has it.
    pub fn child(&self, key: &str) -> Option<&Node> {
        match &self.value {
            Value::Map(entries) => entries.iter().find(|e| e.key == key).map(|e| &e.node),
            Value::Scalar(_) | Value::List(_) => None,
        }
    }

    /// Whether nothing was written.
    pub fn is_null(&self) -> bool {
        matches!(&self.value, Value::Scalar(s) if s.kind == Kind::Null)
    }

    /// Lays `over` above this: mappings are merged key by key, anything else is replaced.
    pub fn merge(&mut self, over: Node) {
        match (&mut self.value, over.value) {
            (Value::Map(mine), Value::Map(theirs)) => {
                for entry in theirs {
                    match mine.iter_mut().find(|e| e.key == entry.key) {
                        Some(known) => {
                            known.origin = entry.origin;
                            known.node.merge(entry.node);
                        }
                        None => mine.push(entry),
                    }
                }
            }
            (mine, theirs) => {
                *mine = theirs;
                self.origin = over.origin;
            }
        }
    }

    /// Leaves of every key that stands more than once the last one.
    fn keep_last(&mut self, path: &str, duplicates: &mut Vec<Duplicate>) {
        match &mut self.value {
            Value::Scalar(_) => {}
            Value::List(items) => {
                for (at, item) in items.iter_mut().enumerate() {
                    item.keep_last(&format!("{path}[{at}]"), duplicates);
                }
            }
            Value::Map(entries) => {
                let mut kept: Vec<Entry> = Vec::with_capacity(entries.len());
                for entry in std::mem::take(entries) {
                    let key = match path {
                        "" => entry.key.clone(),
                        path => format!("{path}.{}", entry.key),
                    };
                    match kept.iter_mut().find(|known| known.key == entry.key) {
                        Some(known) => {
                            duplicates.push(Duplicate {
                                key,
                                last: entry.origin.clone(),
                                before: known.origin.clone(),
                            });
                            *known = entry;
                        }
                        None => kept.push(entry),
                    }
                }
                for entry in &mut kept {
                    let path = match path {
                        "" => entry.key.clone(),
                        path => format!("{path}.{}", entry.key),
                    };
                    entry.node.keep_last(&path, duplicates);
                }
                *entries = kept;
            }
        }
    }

    /// The value nested below one mapping per key of `path`.
    pub fn nested(self, path: &[&str]) -> Self {
        path.iter().rev().fold(self, |node, key| Self {
            origin: node.origin.clone(),
            value: Value::Map(vec![Entry {
                key: (*key).to_owned(),
                origin: node.origin.clone(),
                node,
            }]),
        })
    }

    /// The same as JSON.
    pub fn to_json(&self) -> serde_json::Value {
        match &self.value {
            Value::Scalar(scalar) => scalar.to_json(),
            Value::List(items) => items.iter().map(Node::to_json).collect(),
            Value::Map(entries) => entries
                .iter()
                .map(|e| (e.key.clone(), e.node.to_json()))
                .collect::<serde_json::Map<_, _>>()
                .into(),
        }
    }
}

impl Scalar {
    fn to_json(&self) -> serde_json::Value {
        match self.kind {
            Kind::Null => serde_json::Value::Null,
            Kind::Boolean(b) => b.into(),
            Kind::Integer(i) => i.into(),
            Kind::Float(x) => x.into(),
            Kind::Text => self.text.clone().into(),
        }
    }
}

/// A key that stands more than once in its mapping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Duplicate {
    /// Its full name.
    pub key: String,
    /// Where it stands that counts: the last one, as Patroni's YAML has it.
    pub last: Origin,
    /// Where it stands that does not.
    pub before: Origin,
}

/// Reads one file's text, with every key that was written more than once. An empty file is an empty mapping.
pub fn parse(path: &str, source: &str) -> Result<(Node, Vec<Duplicate>), Malformed> {
    let malformed = |error: serde_saphyr::Error| Malformed {
        line: error.location().map_or(0, |at| at.line()),
        why: first_line(&error.without_snippet().to_string()),
    };
    let path: Arc<str> = Arc::from(path);
    let mut duplicates = Vec::new();
    let node = match serde_saphyr::from_str::<Spanned<Raw>>(source) {
        Ok(raw) => located(raw, &path, source),
        Err(error) => {
            let options = serde_saphyr::options! { duplicate_keys: DuplicateKeyPolicy::LastWins };
            let read = serde_saphyr::from_str_with_options::<Spanned<Raw>>(source, options);
            let raw = read.map_err(malformed)?;
            let mut node = located(raw, &path, source);
            node.keep_last("", &mut duplicates);
            // The library shows no second key where one is a number.
            if duplicates.is_empty() {
                return Err(malformed(error));
            }
            node
        }
    };
    if node.is_null() {
        return Ok((Node::empty(&path), duplicates));
    }
    Ok((node, duplicates))
}

fn first_line(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    // The place is printed before the text already.
    line.rsplit_once(" at line ")
        .map_or(line, |(why, _)| why)
        .trim_end_matches(", set DuplicateKeyPolicy in Options if acceptable")
        .to_owned()
}

fn located(raw: Spanned<Raw>, path: &Arc<str>, source: &str) -> Node {
    let span = raw.referenced.span();
    let written = || {
        let start = usize::try_from(span.byte_offset()?).ok()?;
        let length = usize::try_from(span.byte_len()?).ok()?;
        source.get(start..start.checked_add(length)?)
    };
    let plain = |kind, fallback: String| Scalar {
        text: written().map_or(fallback, str::to_owned),
        kind,
    };
    let line = raw.referenced.line();
    let value = match raw.value {
        Raw::Null => Value::Scalar(plain(Kind::Null, String::new())),
        Raw::Boolean(b) => {
            let mut scalar = plain(Kind::Boolean(b), b.to_string());
            // YAML 1.1 of the libraries in use reads a bare `y` or `n` as a letter.
            if scalar.text.len() == 1 {
                scalar.kind = Kind::Text;
            }
            Value::Scalar(scalar)
        }
        Raw::Integer(i) => Value::Scalar(plain(Kind::Integer(i), i.to_string())),
        Raw::Float(x) => Value::Scalar(plain(Kind::Float(x), x.to_string())),
        Raw::Text(text) => Value::Scalar(Scalar {
            text,
            kind: Kind::Text,
        }),
        Raw::List(items) => Value::List(
            items
                .into_iter()
                .map(|item| located(item, path, source))
                .collect(),
        ),
        Raw::Map(entries) => Value::Map(
            entries
                .into_iter()
                .map(|(key, node)| Entry {
                    origin: Origin::File {
                        path: path.clone(),
                        line: key.referenced.line(),
                    },
                    key: key.value,
                    node: located(node, path, source),
                })
                .collect(),
        ),
    };
    Node {
        origin: Origin::File {
            path: path.clone(),
            line,
        },
        value,
    }
}

/// What serde makes of a YAML value before it is given its place.
#[derive(Debug)]
enum Raw {
    Null,
    Boolean(bool),
    Integer(i64),
    Float(f64),
    Text(String),
    List(Vec<Spanned<Raw>>),
    Map(Vec<(Spanned<String>, Spanned<Raw>)>),
}

struct RawVisitor;

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_none<E: de::Error>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Raw, E> {
        Ok(Raw::Boolean(value))
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Raw, E> {
        Ok(Raw::Integer(value))
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Raw, E> {
        Ok(i64::try_from(value).map_or(Raw::Float(value as f64), Raw::Integer))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Raw, E> {
        Ok(Raw::Float(value))
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Raw, E> {
        Ok(Raw::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Raw, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Raw::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Raw, A::Error> {
        let mut map = Vec::new();
        while let Some(entry) = entries.next_entry()? {
            map.push(entry);
        }
        Ok(Raw::Map(map))
    }
}
