//! The effective configuration as lines for the log, without what must not be seen.

use super::document::{Entry, Node, Value};
use super::section::is_secret;

/// What stands in place of a secret.
const MASK: &str = "***";

/// One `key = value` in a line, in the order of the document.
pub fn lines(document: &Node) -> Vec<String> {
    let mut lines = Vec::new();
    collect("", document, &mut lines);
    lines
}

fn collect(path: &str, node: &Node, lines: &mut Vec<String>) {
    match &node.value {
        Value::Map(entries) => {
            for entry in entries {
                collect(&below(path, &entry.key), &entry.node, lines);
            }
        }
        Value::List(items) => {
            for (at, item) in items.iter().enumerate() {
                collect(&format!("{path}[{at}]"), item, lines);
            }
        }
        Value::Scalar(scalar) => lines.push(format!("{path} = {}", shown(path, &scalar.text))),
    }
}

/// The document as JSON.
pub fn json(document: &Node) -> serde_json::Value {
    fn masked(path: &str, node: &Node) -> serde_json::Value {
        match &node.value {
            Value::Map(entries) => {
                let shown = |entry: &Entry| {
                    let value = masked(&below(path, &entry.key), &entry.node);
                    (entry.key.clone(), value)
                };
                let map: serde_json::Map<_, _> = entries.iter().map(shown).collect();
                map.into()
            }
            Value::List(items) => items.iter().map(|item| masked(path, item)).collect(),
            Value::Scalar(scalar) => match shown(path, &scalar.text) {
                text if text == scalar.text => node.to_json(),
                text => text.into(),
            },
        }
    }
    masked("", document)
}

pub fn below(path: &str, key: &str) -> String {
    match path {
        "" => key.to_owned(),
        path => format!("{path}.{key}"),
    }
}

/// A value as it may be seen.
pub fn shown(path: &str, text: &str) -> String {
    // Elements of a list have the name of the list.
    let name = path.split('[').next().unwrap_or(path);
    if is_secret(name) {
        return MASK.to_owned();
    }
    without_credentials(text)
}

/// What stands before a secret in a connection string, a URL or a line of `pg_hba.conf`.
const BEFORE_SECRETS: [&str; 4] = [
    "password=",
    "ldapbindpasswd=",
    "radiussecrets=",
    "passphrase=",
];

/// Masks passwords inside a connection string, a URL or a line of `pg_hba.conf`.
fn without_credentials(text: &str) -> String {
    let mut text = text.to_owned();
    for before in BEFORE_SECRETS {
        let mut from = 0;
        while let Some(at) = text[from..].find(before) {
            let start = from + at + before.len();
            let end = end_of_word(&text, start);
            text.replace_range(start..end, MASK);
            from = start + MASK.len();
        }
    }
    if let Some((scheme, rest)) = text.split_once("://")
        && let Some((credentials, host)) = rest.split_once('@')
        && let Some((user, _)) = credentials.split_once(':')
    {
        return format!("{scheme}://{user}:{MASK}@{host}");
    }
    text
}

/// Where the word that begins at `start` ends; quotes hold blanks together.
fn end_of_word(text: &str, start: usize) -> usize {
    let rest = &text[start..];
    let quote = rest.chars().next().filter(|c| matches!(c, '\'' | '"'));
    let end = match quote {
        Some(quote) => rest[1..].find(quote).map(|at| at + 2),
        None => rest.find([' ', '&', '\t']),
    };
    start + end.unwrap_or(rest.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_masked_wherever_they_stand() {
        for (text, shown) in [
            ("host=a password=b user=c", "host=a password=*** user=c"),
            (
                "host=a password='b c' user=d password=e",
                "host=a password=*** user=d password=***",
            ),
            (
                "host all all 0/0 ldap ldapserver=x ldapbindpasswd=\"a b\" ldaptls=1",
                "host all all 0/0 ldap ldapserver=x ldapbindpasswd=*** ldaptls=1",
            ),
            ("http://u:p@h:1", "http://u:***@h:1"),
            ("plain", "plain"),
        ] {
            assert_eq!(without_credentials(text), shown);
        }
    }
}
