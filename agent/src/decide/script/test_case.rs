//! A recorded observation as a script of `tests/decide`, with the decision it leads to. Pure.

use super::words::split_words;
use super::{Scene, ScriptError};
use crate::decide::{Decision, decide};

/// What a script shows of a decision.
pub fn outcome(decision: &Decision) -> String {
    let asks = match decision.memory.wants_peers {
        true => "\n  asks peers",
        false => "",
    };
    format!("{decision}{asks}\n")
}

/// The whole text of a script: the lines of the observation, the question, and the decision.
///
/// # Errors
/// If its lines are not of this version's form.
pub fn test_case(lines: &str) -> Result<String, ScriptError> {
    let mut scene = Scene::default();
    let mut text = String::new();
    for line in lines.lines() {
        scene.take_text(line)?;
        text.push_str(&in_quotes(line));
        text.push('\n');
    }
    let decision = decide(&scene.seen, &scene.memory);
    Ok(format!("{text}decide\n---\n{}", outcome(&decision)))
}

/// A line whose words are quoted where a script needs it: more characters are plain here than there.
fn in_quotes(line: &str) -> String {
    let words = split_words(line)
        .into_iter()
        .map(|word| match word.split_once('=') {
            Some((key, "")) => format!("{}=", quoted(key)),
            Some((key, value)) => format!("{}={}", quoted(key), quoted(value)),
            None => quoted(&word),
        });
    words.collect::<Vec<_>>().join(" ")
}

fn quoted(word: &str) -> String {
    let is_start = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let is_plain = word.starts_with(is_start)
        && word
            .chars()
            .all(|c| is_start(c) || matches!(c, '-' | '.' | '/' | '@'));
    match is_plain {
        true => word.to_owned(),
        false => format!("\"{}\"", word.replace('\\', "\\\\").replace('"', "\\\"")),
    }
}
