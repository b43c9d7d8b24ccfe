//! Where a configuration comes from: a file, a folder of files, the environment.

use std::path::Path;

use super::document::{self, Duplicate, Node, Value};
use super::environment::{self, Environment};
use super::{ConfigError, Mistake, Warning, section};

/// The merged document, and warnings about keys that stand twice and variables that nobody reads.
pub fn read(path: Option<&Path>, env: &Environment) -> Result<(Node, Vec<Warning>), ConfigError> {
    let mut mistakes = Vec::new();
    let name = path.map_or_else(
        || "environment".to_owned(),
        |path| path.display().to_string(),
    );
    let mut document = Node::empty(&name);
    let mut warnings = Vec::new();
    for file in path.map_or(Ok(Vec::new()), files)? {
        match read_file(&file) {
            Ok((node, duplicates)) => {
                warnings.extend(duplicates.into_iter().map(Warning::DuplicateKey));
                document.merge(node);
            }
            Err(mistake) => mistakes.push(mistake),
        }
    }
    let overlay = environment::overlay(env, path.is_some());
    mistakes.extend(overlay.mistakes);
    warnings.extend(overlay.warnings);
    document.merge(overlay.document);
    if mistakes.is_empty() {
        Ok((document, warnings))
    } else {
        Err(ConfigError { mistakes, warnings })
    }
}

fn files(path: &Path) -> Result<Vec<String>, ConfigError> {
    let shown = path.display().to_string();
    if !path.is_dir() {
        return Ok(vec![shown]);
    }
    let unreadable = |error: std::io::Error| {
        ConfigError::from(vec![Mistake::Unreadable {
            path: shown.clone(),
            why: error.to_string(),
        }])
    };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(path).map_err(unreadable)? {
        let file = entry.map_err(unreadable)?.path();
        let is_yaml = file.extension().is_some_and(|e| e == "yml" || e == "yaml");
        if is_yaml && file.is_file() {
            found.push(file.display().to_string());
        }
    }
    found.sort();
    if found.is_empty() {
        return Err(vec![Mistake::NoFiles { path: shown }].into());
    }
    Ok(found)
}

fn read_file(path: &str) -> Result<(Node, Vec<Duplicate>), Mistake> {
    let source = std::fs::read_to_string(path).map_err(|error| Mistake::Unreadable {
        path: path.to_owned(),
        why: error.to_string(),
    })?;
    of_text(path, &source)
}

/// What a file's text holds; `path` is for what is said of it.
pub fn of_text(path: &str, source: &str) -> Result<(Node, Vec<Duplicate>), Mistake> {
    let (document, duplicates) =
        document::parse(path, source).map_err(|malformed| Mistake::Malformed {
            path: path.to_owned(),
            line: malformed.line,
            why: malformed.why,
        })?;
    match &document.value {
        Value::Map(_) => Ok((document, duplicates)),
        Value::Scalar(_) | Value::List(_) => Err(Mistake::Unusable {
            origin: document.origin.clone(),
            key: "the file".to_owned(),
            value: section::shown(&document),
            expected: "a mapping (lines of the form \"key: value\")".to_owned(),
        }),
    }
}
