//! YAML files to types: every mistake is reported with file, line, key, value and what is allowed.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use secrecy::SecretString;
use serde::Deserialize;
use serde::de::{DeserializeOwned, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use serde_saphyr::Spanned;

use crate::cluster::quantity::{self, BOOLEAN_FORMS, DURATION_FORMS, SIZE_FORMS};

/// The longest file that is read, bytes.
const MAX_FILE: u64 = 4 << 20;

/// Why a file cannot be used. Mend it at the place named.
#[derive(Debug, thiserror::Error)]
pub enum ConfigFileError {
    /// The file cannot be read at all.
    #[error("{file} cannot be read: {source}")]
    Read {
        /// The file.
        file: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is too long for a configuration.
    #[error("{file} has {length} bytes; a configuration file may have {MAX_FILE}")]
    TooLong {
        /// The file.
        file: PathBuf,
        /// Its length, bytes.
        length: u64,
    },
    /// The text is not YAML, or not of the expected form.
    #[error("{file}:{line}: {message}")]
    Form {
        /// The file.
        file: PathBuf,
        /// The line, from 1.
        line: u64,
        /// The key on that line, where there is one, and what is wrong.
        message: String,
    },
    /// A value is well-formed but not usable.
    #[error("{file}:{line}: {key}: {value} is not usable; allowed: {allowed}")]
    Value {
        /// The file.
        file: PathBuf,
        /// The line, from 1; 0 if the key stands nowhere.
        line: u64,
        /// The key, with dots between the levels.
        key: String,
        /// What stands there.
        value: String,
        /// What may stand there.
        allowed: String,
    },
}

fn text_of(file: &Path) -> Result<String, ConfigFileError> {
    let failed = |source| ConfigFileError::Read {
        file: file.to_owned(),
        source,
    };
    let length = std::fs::metadata(file).map_err(failed)?.len();
    if length > MAX_FILE {
        return Err(ConfigFileError::TooLong {
            file: file.to_owned(),
            length,
        });
    }
    std::fs::read_to_string(file).map_err(failed)
}

/// Reads a file straight into a type.
///
/// # Errors
/// Names file, line and key of the first mistake.
pub fn read<T: DeserializeOwned>(file: &Path) -> Result<T, ConfigFileError> {
    parse(file, &text_of(file)?)
}

/// As [`read`], from text; `file` is for the errors.
///
/// # Errors
/// As [`read`].
pub fn parse<T: DeserializeOwned>(file: &Path, text: &str) -> Result<T, ConfigFileError> {
    serde_saphyr::from_str_with_options(text, options()).map_err(|error| form(file, text, &error))
}

fn options() -> serde_saphyr::Options {
    serde_saphyr::options! { with_snippet: false }
}

fn form(file: &Path, text: &str, error: &serde_saphyr::Error) -> ConfigFileError {
    let line = error.location().map_or(0, |location| location.line());
    let at = usize::try_from(line).unwrap_or(0);
    let key = at
        .checked_sub(1)
        .and_then(|at| text.lines().nth(at))
        .and_then(|line| line.split_once(':'))
        .map(|(key, _)| {
            key.trim()
                .trim_start_matches("- ")
                .trim_matches(['"', '\''])
        })
        .filter(|key| !key.is_empty() && !key.contains(char::is_whitespace));
    // The place is named once, by us.
    let words = error.to_string();
    let words = words.split(" at line ").next().unwrap_or_default();
    let words = words
        .lines()
        .next()
        .unwrap_or_default()
        .trim_end_matches([':', ' ']);
    ConfigFileError::Form {
        file: file.to_owned(),
        line,
        message: match key {
            Some(key) if !words.contains(&format!("`{key}`")) => format!("{key}: {words}"),
            _ => words.to_owned(),
        },
    }
}

/// A file as plain values, with the line of every key: for layers that are merged before they are typed.
#[derive(Clone, Debug, Default)]
pub struct Document {
    file: PathBuf,
    value: Value,
    lines: BTreeMap<String, u64>,
}

impl Document {
    /// Reads a file. An empty one is an empty object.
    ///
    /// # Errors
    /// Names file and line of the first mistake.
    pub fn read(file: &Path) -> Result<Self, ConfigFileError> {
        Self::parse(file, &text_of(file)?)
    }

    /// As [`Document::read`], from text.
    ///
    /// # Errors
    /// As [`Document::read`].
    pub fn parse(file: &Path, text: &str) -> Result<Self, ConfigFileError> {
        let tree: Option<Spanned<Tree>> = parse(file, text)?;
        let mut lines = BTreeMap::new();
        let value = match tree {
            None => Value::Object(Map::new()),
            Some(tree) => tree.value.into_value("", &mut lines),
        };
        let value = if value.is_null() {
            Value::Object(Map::new())
        } else {
            value
        };
        Ok(Self {
            file: file.to_owned(),
            value,
            lines,
        })
    }

    /// The values.
    pub fn value(&self) -> &Value {
        &self.value
    }

    /// The file.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// The value under a key with dots between the levels.
    pub fn get(&self, key: &str) -> Option<&Value> {
        key.split('.')
            .try_fold(&self.value, |value, part| value.get(part))
    }

    /// The line of a key, or of the nearest level above it that stands in the file; 0 if none does.
    pub fn line_of(&self, key: &str) -> u64 {
        let mut key = key;
        loop {
            if let Some(line) = self.lines.get(key) {
                return *line;
            }
            match key.rsplit_once('.') {
                Some((above, _)) => key = above,
                None => return 0,
            }
        }
    }

    /// Every key, with dots between the levels, in order; for warnings about unknown ones.
    pub fn keys(&self) -> impl Iterator<Item = (&str, u64)> {
        self.lines.iter().map(|(key, line)| (key.as_str(), *line))
    }

    /// The error that a value is not usable.
    pub fn unusable(&self, key: &str, allowed: &str) -> ConfigFileError {
        let value = self
            .get(key)
            .map_or_else(|| "nothing".to_owned(), Value::to_string);
        ConfigFileError::Value {
            file: self.file.clone(),
            line: self.line_of(key),
            key: key.to_owned(),
            value,
            allowed: allowed.to_owned(),
        }
    }
}

/// YAML with places.
enum Tree {
    Scalar(Value),
    List(Vec<Spanned<Tree>>),
    Map(Vec<(Spanned<String>, Spanned<Tree>)>),
}

impl Tree {
    fn into_value(self, path: &str, lines: &mut BTreeMap<String, u64>) -> Value {
        let below = |part: &str| match path {
            "" => part.to_owned(),
            _ => format!("{path}.{part}"),
        };
        match self {
            Tree::Scalar(value) => value,
            Tree::List(list) => list
                .into_iter()
                .enumerate()
                .map(|(at, item)| {
                    let path = below(&at.to_string());
                    lines.insert(path.clone(), item.referenced.line());
                    item.value.into_value(&path, lines)
                })
                .collect(),
            Tree::Map(pairs) => pairs
                .into_iter()
                .map(|(key, value)| {
                    let path = below(&key.value);
                    lines.insert(path.clone(), key.referenced.line());
                    (key.value, value.value.into_value(&path, lines))
                })
                .collect::<Map<_, _>>()
                .into(),
        }
    }
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TreeVisitor)
    }
}

struct TreeVisitor;

impl<'de> Visitor<'de> for TreeVisitor {
    type Value = Tree;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value, a list or a map")
    }

    fn visit_unit<E>(self) -> Result<Tree, E> {
        Ok(Tree::Scalar(Value::Null))
    }

    fn visit_none<E>(self) -> Result<Tree, E> {
        Ok(Tree::Scalar(Value::Null))
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Tree, D::Error> {
        Tree::deserialize(deserializer)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Tree, E> {
        Ok(Tree::Scalar(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Tree, E> {
        Ok(Tree::Scalar(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Tree, E> {
        Ok(Tree::Scalar(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Tree, E> {
        let number = Number::from_f64(value).map_or(Value::Null, Value::Number);
        Ok(Tree::Scalar(number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Tree, E> {
        Ok(Tree::Scalar(value.into()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Tree, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = list.next_element()? {
            items.push(item);
        }
        Ok(Tree::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Tree, A::Error> {
        let mut pairs = Vec::new();
        while let Some(pair) = map.next_entry()? {
            pairs.push(pair);
        }
        Ok(Tree::Map(pairs))
    }
}

/// A scalar as text, however YAML reads it: `30`, `30s` and `on` are all of use here.
struct Scalar(String);

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Value::deserialize(deserializer)? {
            Value::String(text) => Ok(Scalar(text)),
            Value::Number(number) => Ok(Scalar(number.to_string())),
            Value::Bool(flag) => Ok(Scalar(flag.to_string())),
            other => Err(serde::de::Error::custom(format!(
                "{other} is not usable; allowed: text, a number or a boolean"
            ))),
        }
    }
}

fn quantity<'de, D: Deserializer<'de>, T>(
    deserializer: D,
    read: fn(&str) -> Option<T>,
    allowed: &str,
) -> Result<T, D::Error> {
    let Scalar(text) = Scalar::deserialize(deserializer)?;
    read(&text).ok_or_else(|| {
        serde::de::Error::custom(format!("\"{text}\" is not usable; allowed: {allowed}"))
    })
}

/// For `#[serde(deserialize_with)]`: a duration with units; a bare number is seconds.
///
/// # Errors
/// Says what stands there and what may.
pub fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    quantity(deserializer, quantity::duration, DURATION_FORMS)
}

/// For `#[serde(deserialize_with)]`: as [`duration`], absent or null is `None`.
///
/// # Errors
/// As [`duration`].
pub fn optional_duration<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Duration>, D::Error> {
    #[derive(Deserialize)]
    struct Wrapped(#[serde(deserialize_with = "duration")] Duration);
    Ok(Option::<Wrapped>::deserialize(deserializer)?.map(|wrapped| wrapped.0))
}

/// For `#[serde(deserialize_with)]`: a size with units; a bare number is bytes.
///
/// # Errors
/// Says what stands there and what may.
pub fn bytes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    quantity(deserializer, quantity::bytes, SIZE_FORMS)
}

/// For `#[serde(deserialize_with)]`: a boolean in any of Patroni's spellings.
///
/// # Errors
/// Says what stands there and what may.
pub fn boolean<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    quantity(deserializer, quantity::boolean, BOOLEAN_FORMS)
}

/// Lays environment variables over a document: `overrides` names, for each variable without its prefix, the
/// key it sets (dots between the levels). Text that reads as a YAML number or boolean stays text: the types
/// decide. Prefixes are tried in order; returns the variables used.
pub fn apply_environment(
    target: &mut Value,
    environment: &BTreeMap<String, String>,
    prefixes: &[&str],
    overrides: &[(&str, &str)],
) -> Vec<String> {
    let mut used = Vec::new();
    for (variable, key) in overrides {
        let found = prefixes.iter().find_map(|prefix| {
            let name = format!("{prefix}{variable}");
            environment.get(&name).map(|text| (name, text))
        });
        if let Some((name, text)) = found {
            set(target, key, Value::String(text.clone()));
            used.push(name);
        }
    }
    used
}

/// Puts a value under a key with dots between the levels, making the levels.
pub fn set(target: &mut Value, key: &str, value: Value) {
    let mut place = target;
    for part in key.split('.') {
        if !place.is_object() {
            *place = Value::Object(Map::new());
        }
        let Value::Object(map) = place else { return };
        place = map.entry(part).or_insert(Value::Null);
    }
    *place = value;
}

/// A secret that stands in a file of its own; a line end at its end is not part of it.
///
/// # Errors
/// If the file cannot be read.
pub fn secret_from_file(file: &Path) -> Result<SecretString, ConfigFileError> {
    Ok(SecretString::from(
        text_of(file)?.trim_end_matches(['\r', '\n']),
    ))
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Example {
        #[serde(deserialize_with = "duration")]
        ttl: Duration,
        #[serde(default, deserialize_with = "optional_duration")]
        wait: Option<Duration>,
        #[serde(default, deserialize_with = "bytes")]
        lag: u64,
        #[serde(default, deserialize_with = "boolean")]
        pause: bool,
    }

    fn example(text: &str) -> Result<Example, String> {
        parse(Path::new("x.yml"), text).map_err(|error| error.to_string())
    }

    #[test]
    fn quantities_are_read_with_units_and_in_every_spelling() {
        let read = example("ttl: 30\nwait: 500ms\nlag: 1MB\npause: on\n").unwrap();
        assert_eq!(read.ttl, Duration::from_secs(30));
        assert_eq!(read.wait, Some(Duration::from_millis(500)));
        assert_eq!((read.lag, read.pause), (1 << 20, true));
        assert_eq!(example("ttl: 30s\nwait:\n").unwrap().wait, None);
    }

    #[test]
    fn a_mistake_is_named_with_file_line_key_value_and_what_is_allowed() {
        let error = example("lag: 5\nttl: soon\n").unwrap_err();
        for part in [
            "x.yml:2: ",
            "ttl: ",
            "\"soon\"",
            "allowed: a number of seconds",
        ] {
            assert!(error.contains(part), "{error}");
        }
        let error = example("ttl: 5\ntll: 7\n").unwrap_err();
        for part in ["x.yml:2: ", "`tll`", "ttl, wait"] {
            assert!(error.contains(part), "{error}");
        }
        let error = example("ttl: [\n").unwrap_err();
        assert!(error.starts_with("x.yml:"), "{error}");
    }

    #[test]
    fn a_document_knows_the_line_of_every_key() {
        let text = "scope: demo\npostgresql:\n  parameters:\n    work_mem: 4MB\n  listen:\n    - a\n    - b\n";
        let document = Document::parse(Path::new("x.yml"), text).unwrap();
        assert_eq!(
            document.get("postgresql.parameters.work_mem").unwrap(),
            "4MB"
        );
        assert_eq!(document.line_of("postgresql.parameters.work_mem"), 4);
        assert_eq!(document.line_of("postgresql.parameters.missing"), 3);
        assert_eq!(document.line_of("nowhere"), 0);
        assert_eq!(document.line_of("postgresql.listen.1"), 7);
        let error = document
            .unusable("postgresql.parameters.work_mem", "more")
            .to_string();
        assert_eq!(
            error,
            "x.yml:4: postgresql.parameters.work_mem: \"4MB\" is not usable; allowed: more"
        );
        assert!(
            Document::parse(Path::new("x.yml"), "")
                .unwrap()
                .value()
                .is_object()
        );
        assert!(Document::parse(Path::new("x.yml"), "a: 1\na: 2\n").is_err());
    }

    #[test]
    fn the_environment_lies_above_the_file() {
        let environment = [
            ("TRUNKLINE_NAME", "a"),
            ("PATRONI_NAME", "b"),
            ("PATRONI_SCOPE", "s"),
        ]
        .map(|(name, text)| (name.to_owned(), text.to_owned()))
        .into();
        let mut value = serde_json::json!({"name": "file", "etcd3": 1});
        let used = apply_environment(
            &mut value,
            &environment,
            &["TRUNKLINE_", "PATRONI_"],
            &[
                ("NAME", "name"),
                ("SCOPE", "scope"),
                ("ETCD3_HOSTS", "etcd3.hosts"),
            ],
        );
        assert_eq!(used, ["TRUNKLINE_NAME", "PATRONI_SCOPE"]);
        assert_eq!(
            value,
            serde_json::json!({"name": "a", "etcd3": 1, "scope": "s"})
        );
        set(&mut value, "etcd3.hosts", "h".into());
        assert_eq!(value["etcd3"]["hosts"], "h");
    }

    #[test]
    fn a_secret_is_read_without_its_line_end() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("secret");
        std::fs::write(&file, "s3cret \n").unwrap();
        assert_eq!(secret_from_file(&file).unwrap().expose_secret(), "s3cret ");
        assert!(secret_from_file(folder.path()).is_err());
    }
}
