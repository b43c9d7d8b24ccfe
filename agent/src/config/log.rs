//! `log:`

use serde_json::{Map, Value as Json};
use trunkline_shared::service::logging::{
    self, DEFAULT_QUEUE, LogFiles, LogSettings, Output, Style, StyleError,
};

use super::document::{Kind, Node, Scalar, Value};
use super::section::Section;

/// The file below `log.dir`, the one that Patroni writes: whoever collects it goes on.
const FILE: &str = "patroni.log";

/// Bytes of one file, unless set.
const FILE_SIZE: i64 = 25_000_000;

/// How many older ones are kept, unless set.
const FILE_NUM: i64 = 4;

/// Reads the section.
pub fn read(section: &Section<'_>) -> LogSettings {
    let level = section.text("level").unwrap_or_else(|| "INFO".to_owned());
    if !logging::is_level(&level)
        && let Some(node) = section.find("level")
    {
        let expected =
            "ERROR, WARNING, INFO, DEBUG, or a filter such as info,trunkline_agent::lease=debug";
        section.unusable("level", node, expected);
    }
    let settings = LogSettings {
        level,
        modules: modules(&section.section("loggers")),
        style: style(section),
        output: output(section),
        queue: section
            .integer("max_queue_size", 1, 1_000_000)
            .and_then(|size| usize::try_from(size).ok())
            .unwrap_or(DEFAULT_QUEUE),
    };
    section.without_effect(&[(
        "traceback_level",
        "there are no tracebacks, an error is one line at level ERROR or WARNING",
    )]);
    // A turn that changes nothing is not logged in the first place.
    section.acknowledge(&["deduplicate_heartbeat_logs", "loggers", "static_fields"]);
    section.end();
    settings
}

fn modules(section: &Section<'_>) -> Vec<(String, String)> {
    let mut modules = Vec::new();
    for entry in section.entries() {
        match &entry.node.value {
            Value::Scalar(scalar) if logging::is_word(&scalar.text) => {
                modules.push((entry.key.clone(), scalar.text.clone()));
            }
            Value::Scalar(_) | Value::List(_) | Value::Map(_) => {
                let expected = "one of: CRITICAL, ERROR, WARNING, INFO, DEBUG";
                section.unusable(&entry.key, &entry.node, expected);
            }
        }
    }
    modules
}

fn style(section: &Section<'_>) -> Style {
    let is_json = section
        .one_of("type", &[("plain", false), ("json", true)])
        .unwrap_or(false);
    let mut style = if is_json {
        Style::patroni_json()
    } else {
        Style::patroni()
    };
    if let Some(node) = section.find("format") {
        match shaped(node, is_json) {
            Ok(shaped) => style = shaped,
            Err(expected) => section.unusable("format", node, &expected),
        }
    }
    if let Some(format) = section.text("dateformat").filter(|f| !f.is_empty()) {
        match style.clone().with_dates(&format) {
            Ok(dated) => style = dated,
            Err(error) => {
                if let Some(node) = section.find("dateformat") {
                    section.unusable("dateformat", node, &format!("strftime's format; {error}"));
                }
            }
        }
    }
    style.with_fixed(static_fields(&section.section("static_fields")))
}

/// The look that `format` asks for; the error says what is allowed.
fn shaped(node: &Node, is_json: bool) -> Result<Style, String> {
    let said = |error: StyleError| error.to_string();
    match (&node.value, is_json) {
        (Value::Scalar(scalar), false) => Style::from_template(&scalar.text).map_err(said),
        (Value::Scalar(scalar), true) => Style::json_from_template(&scalar.text).map_err(said),
        (Value::List(items), true) => Style::json_of(fields(items)?).map_err(said),
        (Value::List(_) | Value::Map(_), _) => Err(
            "a template such as \"%(asctime)s %(levelname)s: %(message)s\", or with type: json a list of names \
             and of \"name: other name\""
                .to_owned(),
        ),
    }
}

fn fields(items: &[Node]) -> Result<Vec<(String, String)>, String> {
    let mut fields = Vec::new();
    for item in items {
        match &item.value {
            Value::Scalar(name) => fields.push((name.text.clone(), name.text.clone())),
            Value::Map(entries) => {
                for entry in entries {
                    match &entry.node.value {
                        Value::Scalar(shown) => {
                            fields.push((entry.key.clone(), shown.text.clone()));
                        }
                        Value::List(_) | Value::Map(_) => {
                            return Err(format!("\"{}\" with one other name", entry.key));
                        }
                    }
                }
            }
            Value::List(_) => return Err("names, and \"name: other name\"".to_owned()),
        }
    }
    Ok(fields)
}

fn static_fields(section: &Section<'_>) -> Map<String, Json> {
    let mut fields = Map::new();
    for entry in section.entries() {
        match &entry.node.value {
            Value::Scalar(scalar) => {
                fields.insert(entry.key.clone(), json(scalar));
            }
            Value::List(_) | Value::Map(_) => {
                section.unusable(&entry.key, &entry.node, "a single value");
            }
        }
    }
    fields
}

fn json(scalar: &Scalar) -> Json {
    match scalar.kind {
        Kind::Null => Json::Null,
        Kind::Boolean(value) => value.into(),
        Kind::Integer(value) => value.into(),
        Kind::Float(_) | Kind::Text => scalar.text.as_str().into(),
    }
}

fn output(section: &Section<'_>) -> Output {
    let number = |key: &str, default: i64, most: i64| {
        let told = section.integer(key, 0, most).unwrap_or(default);
        u64::try_from(told).unwrap_or(0)
    };
    let size = number("file_size", FILE_SIZE, i64::MAX);
    let kept = number("file_num", FILE_NUM, 10_000);
    let mode = mode(section);
    match section.file("dir") {
        None => Output::StandardError,
        Some(dir) => Output::Files(LogFiles {
            path: dir.join(FILE),
            size,
            kept: u32::try_from(kept).unwrap_or(u32::MAX),
            mode,
        }),
    }
}

/// Permissions are octal, whether written as `0640`, `"0640"`, `0o640` or `640`.
fn mode(section: &Section<'_>) -> Option<u32> {
    let text = section.text("mode")?;
    let mode = u32::from_str_radix(text.trim_start_matches("0o"), 8).ok();
    let mode = mode.filter(|mode| *mode <= 0o777);
    if let (None, Some(node)) = (mode, section.find("mode")) {
        section.unusable("mode", node, "permissions in octal, such as 0640");
    }
    mode
}
