//! YAML as patronictl writes it (PyYAML's `safe_dump`: sorted keys, width 200), so that a diff of two outputs
//! shows differences of the cluster and not of the program. Pure.

use std::fmt::Write;

use serde_json::{Map, Value};

mod scalar;

/// How far one level stands to the right of the one above.
const INDENT: usize = 2;

/// A line longer than this is broken at the next blank.
const WIDTH: usize = 200;

/// A value with one key or item a line; ends with a line end.
pub fn block(value: &Value) -> String {
    let mut out = Writer::default();
    match value {
        Value::Object(map) if !map.is_empty() => out.mapping(map, 0, true),
        Value::Array(items) if !items.is_empty() => out.sequence(items, 0, true),
        other => out.scalar(other, INDENT),
    }
    out.text.push('\n');
    out.text
}

/// A value in one line, without a line end.
pub fn flow(value: &Value) -> String {
    match value {
        Value::Object(map) => {
            let pair = |(key, value): (&String, &Value)| {
                format!("{}: {}", scalar::key(key, true), flow(value))
            };
            let pairs: Vec<String> = sorted(map).into_iter().map(pair).collect();
            format!("{{{}}}", pairs.join(", "))
        }
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(flow).collect();
            format!("[{}]", items.join(", "))
        }
        Value::String(text) => scalar::key(text, true),
        other => plain(other),
    }
}

fn sorted(map: &Map<String, Value>) -> Vec<(&String, &Value)> {
    let mut pairs: Vec<(&String, &Value)> = map.iter().collect();
    pairs.sort_by_key(|(key, _)| *key);
    pairs
}

/// What is neither text nor holds other values.
fn plain(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(flag) => flag.to_string(),
        Value::Number(number) => match number.as_f64() {
            Some(float) if number.is_f64() => python_float(float),
            _ => number.to_string(),
        },
        Value::String(text) => text.clone(),
        Value::Array(_) => "[]".to_owned(),
        Value::Object(_) => "{}".to_owned(),
    }
}

/// `1e+16` gets a point, as YAML 1.1 wants one in a float.
fn python_float(number: f64) -> String {
    let text = format!("{number:?}");
    match text.split_once('e') {
        Some((digits, power)) => {
            let digits = match digits.contains('.') {
                true => digits.to_owned(),
                false => format!("{digits}.0"),
            };
            let sign = if power.starts_with('-') { "" } else { "+" };
            format!("{digits}e{sign}{power}")
        }
        None => text,
    }
}

#[derive(Default)]
struct Writer {
    text: String,
}

impl Writer {
    /// Where the next character stands in its line.
    fn column(&self) -> usize {
        let line = self.text.rsplit('\n').next().unwrap_or_default();
        line.chars().count()
    }

    fn line(&mut self, indent: usize) {
        if !self.text.is_empty() {
            self.text.push('\n');
        }
        let _ = write!(self.text, "{:indent$}", "");
    }

    /// The first key of a mapping in a list stands behind the list's dash (`is_behind`).
    fn mapping(&mut self, map: &Map<String, Value>, indent: usize, is_behind: bool) {
        for (at, (key, value)) in sorted(map).into_iter().enumerate() {
            if at > 0 || !is_behind {
                self.line(indent);
            }
            self.text.push_str(&scalar::key(key, false));
            self.text.push(':');
            match value {
                Value::Object(map) if !map.is_empty() => self.mapping(map, indent + INDENT, false),
                Value::Array(items) if !items.is_empty() => self.sequence(items, indent, false),
                other => {
                    self.text.push(' ');
                    self.scalar(other, indent + INDENT);
                }
            }
        }
    }

    fn sequence(&mut self, items: &[Value], indent: usize, is_behind: bool) {
        for (at, item) in items.iter().enumerate() {
            if at > 0 || !is_behind {
                self.line(indent);
            }
            self.text.push_str("- ");
            match item {
                Value::Object(map) if !map.is_empty() => self.mapping(map, indent + INDENT, true),
                Value::Array(items) if !items.is_empty() => {
                    self.sequence(items, indent + INDENT, true)
                }
                other => self.scalar(other, indent + INDENT),
            }
        }
    }

    fn scalar(&mut self, value: &Value, indent: usize) {
        match value {
            Value::String(text) => {
                let column = self.column();
                self.text.push_str(&scalar::value(text, column, indent));
            }
            other => self.text.push_str(&plain(other)),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Each expected text is what PyYAML 6.0 wrote for the same value.
    #[test]
    fn values_are_written_as_pyyaml_writes_them() {
        for (value, text) in [
            (json!({}), "{}\n"),
            (json!([]), "[]\n"),
            (
                json!({"b": 1, "a": {"z": [], "x": {}}}),
                "a:\n  x: {}\n  z: []\nb: 1\n",
            ),
            (
                json!({"a": [1, [2, 3], {"c": null, "b": true}]}),
                "a:\n- 1\n- - 2\n  - 3\n- b: true\n  c: null\n",
            ),
            (json!([[["x"]]]), "- - - x\n"),
            (
                json!({"a": "yes", "b": "12", "c": "1.5", "d": "", "e": "~"}),
                "a: 'yes'\nb: '12'\nc: '1.5'\nd: ''\ne: '~'\n",
            ),
            (
                json!({"a": "it's", "b": "'q'", "c": "a: b", "d": "a:b", "e": "#x", "f": "x #y"}),
                "a: it's\nb: '''q'''\nc: 'a: b'\nd: a:b\ne: '#x'\nf: 'x #y'\n",
            ),
            (
                json!({"a": "tab\there", "b": "\u{7}", "c": "größe", "d": " x", "e": "x "}),
                "a: \"tab\\there\"\nb: \"\\a\"\nc: größe\nd: ' x'\ne: 'x '\n",
            ),
            (
                json!({"a": "one\ntwo\n", "b": "one \ntwo"}),
                "a: 'one\n\n  two\n\n  '\nb: \"one \\ntwo\"\n",
            ),
            (
                json!({"a": 0.5, "b": 1e16, "c": -3, "d": 1.0}),
                "a: 0.5\nb: 1.0e+16\nc: -3\nd: 1.0\n",
            ),
            (
                json!({"a": "2026-11-20", "b": "2026-11-20T10:00:00+00:00", "c": "0x1F", "d": "1:30", "e": "0/4000100", "f": "-", "g": "- x", "h": "?", "i": "!x", "j": "%m [%p] "}),
                "a: '2026-11-20'\nb: '2026-11-20T10:00:00+00:00'\nc: '0x1F'\nd: '1:30'\ne: 0/4000100\nf: '-'\ng: '- x'\nh: '?'\ni: '!x'\nj: '%m [%p] '\n",
            ),
        ] {
            assert_eq!(block(&value), text, "{value}");
        }
    }

    #[test]
    fn a_long_text_is_broken_at_blanks_and_means_the_same() {
        let long = "word ".repeat(60).trim().to_owned();
        let text = block(&json!({ "restore_command": long }));
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(text.lines().nth(1).unwrap().starts_with("  word"), "{text}");
        let back: Value = serde_saphyr::from_str(&text).unwrap();
        assert_eq!(back, json!({ "restore_command": long }));
    }

    #[test]
    fn one_line_is_for_tags() {
        let tags = json!({"nofailover": true, "dc": "yes", "list": ["a", "b,c"], "none": {}});
        assert_eq!(
            flow(&tags),
            "{dc: 'yes', list: [a, 'b,c'], nofailover: true, none: {}}"
        );
    }
}
