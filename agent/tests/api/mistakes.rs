//! Requests with mistakes in them, and the answer to each: one script, recorded.
//!
//! Commands:
//! * `send METHOD PATH [BODY] [HEADER=VALUE...]`: one request as bytes; `length=none` leaves its length out, and any
//!   other `length` stands in place of the true one.
//! * `bytes TEXT`: these bytes and nothing else.

use std::error::Error;
use std::io::{Read, Write};
use std::net::TcpStream as Connection;

use goldenscript::Argument;

use super::*;

struct Runner {
    fixture: Fixture,
    runtime: tokio::runtime::Runtime,
}

impl Runner {
    fn exchange(&self, bytes: &[u8]) -> Result<String, Box<dyn Error>> {
        let mut connection = Connection::connect(self.fixture.address)?;
        connection.set_read_timeout(Some(PATIENCE))?;
        // Who is refused early hears of it while the rest is being sent.
        let _ = connection.write_all(bytes);
        let mut answer = Vec::new();
        connection.read_to_end(&mut answer)?;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        let status = head.split(' ').nth(1).unwrap_or("nothing");
        let is_text = head.contains("content-type: text/plain");
        Ok(match is_text {
            true => format!("{status} {body}\n"),
            false => format!("{status}\n"),
        })
    }
}

impl goldenscript::Runner for Runner {
    type Command = goldenscript::Command;

    fn run(
        &mut self,
        command: &goldenscript::Command,
        _context: &goldenscript::Context,
    ) -> Result<String, Box<dyn Error>> {
        let (mut words, mut headers) = (Vec::new(), Vec::new());
        for argument in &command.args {
            match argument {
                Argument::Positional(word) => words.push(word.as_str()),
                Argument::KeyValue(name, value) => headers.push((name.as_str(), value.clone())),
                other => return Err(format!("unexpected argument {other}").into()),
            }
        }
        let mut words = words.into_iter();
        let mut word = || words.next();
        if command.name == "bytes" {
            let text = word().unwrap_or_default();
            return self.exchange(text.as_bytes());
        }
        let (method, path) = (word().ok_or("a method")?, word().ok_or("a path")?);
        let body = word().unwrap_or_default();
        let mut head = format!("{method} {path} HTTP/1.1\r\nhost: n1\r\nconnection: close\r\n");
        let mut length = Some(body.len().to_string());
        let mut authorization = Some(basic_authorization("admin", "secret"));
        for (name, value) in headers {
            match name {
                "length" => length = Some(value).filter(|value| value != "none"),
                "authorization" => authorization = Some(value).filter(|value| value != "none"),
                name => head.push_str(&format!("{name}: {value}\r\n")),
            }
        }
        for (name, value) in [("content-length", length), ("authorization", authorization)] {
            if let Some(value) = value {
                head.push_str(&format!("{name}: {value}\r\n"));
            }
        }
        self.exchange(format!("{head}\r\n{body}").as_bytes())
    }

    fn start_script(&mut self) -> Result<(), Box<dyn Error>> {
        let _inside = self.runtime.enter();
        self.fixture.publish(as_primary);
        let settings = self.fixture.put(&FactKey::Settings, r#"{"ttl":30}"#);
        self.runtime.block_on(settings);
        Ok(())
    }
}

#[test]
fn a_mistake_in_a_request_is_answered_with_what_is_allowed() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let fixture = runtime.block_on(Fixture::new());
    let mut runner = Runner { fixture, runtime };
    let script = "tests/rest/a_mistake_in_a_request_is_answered_with_what_is_allowed";
    goldenscript::run(&mut runner, script).unwrap();
}
