//! The effective configuration as lines for the log, without what must not be seen.

use super::document::{Node, Value};
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
                let path = match path {
                    "" => entry.key.clone(),
                    path => format!("{path}.{}", entry.key),
                };
                collect(&path, &entry.node, lines);
            }
        }
        Value::List(items) => {
            for (at, item) in items.iter().enumerate() {
                collect(&format!("{path}[{at}]"), item, lines);
            }
        }
        Value::Scalar(scalar) => {
            let shown = if is_secret(path) {
                MASK.to_owned()
            } else {
                without_credentials(&scalar.text)
            };
            lines.push(format!("{path} = {shown}"));
        }
    }
}

/// Masks a password inside a connection string or a URL.
fn without_credentials(text: &str) -> String {
    if let Some((before, after)) = text.split_once("password=") {
        let rest = after.find(' ').map_or("", |at| &after[at..]);
        return format!("{before}password={MASK}{rest}");
    }
    if let Some((scheme, rest)) = text.split_once("://")
        && let Some((credentials, host)) = rest.split_once('@')
        && let Some((user, _)) = credentials.split_once(':')
    {
        return format!("{scheme}://{user}:{MASK}@{host}");
    }
    text.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_masked_wherever_they_stand() {
        for (text, shown) in [
            ("host=a password=b user=c", "host=a password=*** user=c"),
            ("http://u:p@h:1", "http://u:***@h:1"),
            ("plain", "plain"),
        ] {
            assert_eq!(without_credentials(text), shown);
        }
    }
}
