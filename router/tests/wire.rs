//! Runs every script of `tests/wire`: what the router makes of the bytes that pass it.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

use std::error::Error;
use std::path::Path;

use goldenscript::{Argument, Command, Context, Runner};
use test_each_file::test_each_path;
use trunkline_router::error::SessionError;
use trunkline_router::lanes::Ending;
use trunkline_router::protocol::frame::Conversation;
use trunkline_router::protocol::startup;
use trunkline_router::topology::transition::CutCause;

test_each_path! { in "./router/tests/wire" => run }

fn run(path: &Path) {
    goldenscript::run(&mut Script::default(), path).expect("script");
}

#[derive(Default)]
struct Script {
    talk: Conversation,
}

impl Runner for Script {
    type Command = Command;

    fn run(&mut self, command: &Command, _: &Context) -> Result<String, Box<dyn Error>> {
        let words: Vec<&str> = command
            .args
            .iter()
            .filter_map(|arg| match arg {
                Argument::Positional(word) => Some(word.as_str()),
                _ => None,
            })
            .collect();
        match command.name.as_str() {
            // Whole messages, by their kinds.
            "client" => words
                .iter()
                .for_each(|kind| self.talk.sent_to_server(&message(kind))),
            "server" => words
                .iter()
                .for_each(|kind| self.talk.taken_by_client(&message(kind))),
            // All but the last bytes of one.
            "client_begins" => self.talk.sent_to_server(begun(&message(words[0]))),
            "server_begins" => self.talk.taken_by_client(begun(&message(words[0]))),
            "server_bytes" => self.talk.taken_by_client(&bytes(&words)),
            "cut" => return Ok(self.cut()),
            "first" => {
                return Ok(match startup::parse(&bytes(&words)) {
                    Ok(progress) => format!("{progress:?}"),
                    Err(error) => told(&error.into()),
                });
            }
            other => return Err(format!("no such command: {other}").into()),
        }
        Ok(String::new())
    }
}

impl Script {
    fn cut(&self) -> String {
        if !self.talk.is_at_boundary() {
            let left = self.talk.bytes_to_boundary();
            let is_hopeless = left == 0;
            return match is_hopeless {
                true => "close".to_owned(),
                false => format!("close, unless the next {left} bytes come in time"),
            };
        }
        told(&SessionError::Ended {
            ending: Ending::Lane(CutCause::LeaderChanged),
            has_outstanding: self.talk.has_outstanding(),
        })
    }
}

fn told(error: &SessionError) -> String {
    format!(
        "FATAL {} {error}",
        error.sqlstate().unwrap_or("nobody to tell")
    )
}

/// A message of this kind, with a body of ten bytes.
fn message(kind: &str) -> Vec<u8> {
    let mut bytes = kind.as_bytes()[..1].to_vec();
    bytes.extend_from_slice(&14u32.to_be_bytes());
    bytes.extend_from_slice(&[b'.'; 10]);
    bytes
}

fn begun(message: &[u8]) -> &[u8] {
    &message[..message.len() - 3]
}

/// Numbers in hexadecimal, or text after a quote.
fn bytes(words: &[&str]) -> Vec<u8> {
    words
        .iter()
        .flat_map(|word| match word.strip_prefix('=') {
            Some(text) => text.as_bytes().to_vec(),
            None => vec![u8::from_str_radix(word, 16).unwrap()],
        })
        .collect()
}
