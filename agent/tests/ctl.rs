//! The operator's command with the in-memory DCS behind it and agents that answer as a script says. Every script of
//! `tests/ctl` shows what an operator sees; to record one, write its commands, run with `UPDATE_GOLDENFILES=1`,
//! and review what it wrote.
//!
//! `tests/patronictl/outputs` is what patronictl 4.1.5 printed of an etcd with the keys of `tests/patronictl/keys`.

#![expect(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt::Write as _;
use std::path::Path;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::http::StatusCode;
use clap::Parser;
use goldenscript::{Argument, Command, Context, Runner};
use test_each_file::test_each_path;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

use trunkline_agent::config::Environment;
use trunkline_agent::ctl::arguments::Arguments;
use trunkline_agent::ctl::{self, terminal::Terminal};
use trunkline_shared::dcs::memory::MemoryDcs;
use trunkline_shared::dcs::{Dcs, Operation, Txn, WatchEvent};

/// The largest body that a scripted agent reads.
const LARGEST: usize = 1 << 20;

/// The status of an agent that takes a request and never answers.
const SILENCE: u16 = 0;

test_each_path! { in "./agent/tests/ctl" => run }

fn run(path: &Path) {
    goldenscript::run(&mut Script::new(), path).expect("script");
}

/// What an agent does when it is asked.
#[derive(Clone)]
struct Reply {
    status: u16,
    text: String,
    /// Keys that change before it answers.
    puts: Vec<(String, String)>,
}

/// By method and path, each with whether it was given: the last one stays.
type Replies = BTreeMap<String, Vec<(Reply, bool)>>;

/// An agent that answers as it was told.
#[derive(Clone)]
struct Agent {
    name: String,
    dcs: MemoryDcs,
    replies: Arc<Mutex<Replies>>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Agent {
    async fn answer(State(agent): State<Agent>, request: Request) -> (StatusCode, String) {
        let (head, body) = request.into_parts();
        let body: Bytes = to_bytes(body, LARGEST).await.unwrap();
        let what = format!("{} {}", head.method, head.uri);
        if head.method != "GET" {
            let body = String::from_utf8_lossy(&body);
            let line = format!("{} got {what} {body}", agent.name);
            agent.asked.lock().unwrap().push(line.trim_end().to_owned());
        }
        let reply = {
            let mut replies = agent.replies.lock().unwrap();
            let Some(queue) = replies.get_mut(&what) else {
                return (StatusCode::NOT_FOUND, "no such path".to_owned());
            };
            let new = queue.iter().position(|(_, is_used)| !is_used);
            let at = new.unwrap_or(queue.len() - 1);
            let (reply, is_used) = &mut queue[at];
            *is_used = true;
            reply.clone()
        };
        for (key, value) in &reply.puts {
            put(&agent.dcs, key, value).await;
        }
        if reply.status == SILENCE {
            return std::future::pending().await;
        }
        (StatusCode::from_u16(reply.status).unwrap(), reply.text)
    }
}

async fn put(dcs: &MemoryDcs, key: &str, value: &str) {
    let key = key.to_owned();
    let operation = match value {
        "gone" => Operation::Delete(key),
        value => Operation::Put {
            key,
            value: value.as_bytes().to_vec(),
            lease: 0,
        },
    };
    let txn = Txn {
        then: vec![operation],
        ..Txn::default()
    };
    dcs.commit(&txn).await.unwrap();
}

struct Script {
    runtime: Runtime,
    dcs: MemoryDcs,
    env: Environment,
    agents: BTreeMap<String, (Agent, String)>,
    asked: Arc<Mutex<Vec<String>>>,
    answers: Vec<String>,
    folder: tempfile::TempDir,
}

impl Script {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread();
        let variable = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        Self {
            runtime: { runtime }.worker_threads(1).enable_all().build().unwrap(),
            dcs: MemoryDcs::new(),
            env: [
                variable("TRUNKLINE_ETCD3_HOSTS", "127.0.0.1:2379"),
                variable("PATH", "/nowhere"),
            ]
            .into(),
            agents: BTreeMap::new(),
            asked: Arc::default(),
            answers: Vec::new(),
            folder: tempfile::tempdir().unwrap(),
        }
    }

    /// The keys beside patronictl's outputs.
    fn load(&mut self) {
        for line in include_str!("patronictl/keys").lines() {
            let (key, value) = line.split_once(' ').unwrap();
            self.runtime.block_on(put(&self.dcs, key, value));
        }
    }

    fn agent(&mut self, name: &str) -> &Agent {
        let Self {
            runtime,
            dcs,
            agents,
            asked,
            ..
        } = self;
        let (agent, _) = agents.entry(name.to_owned()).or_insert_with(|| {
            let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
            let url = format!("http://{}", listener.local_addr().unwrap());
            let agent = Agent {
                name: name.to_owned(),
                dcs: dcs.clone(),
                replies: Arc::default(),
                asked: asked.clone(),
            };
            let router = Router::new()
                .fallback(Agent::answer)
                .with_state(agent.clone());
            runtime.spawn(async move { axum::serve(listener, router).await });
            (agent, url)
        });
        agent
    }

    /// Text with the URLs and the folder that a run has in place of their names.
    fn filled(&self, text: &str) -> String {
        let folder = self.folder.path().to_str().unwrap();
        let mut text = text.replace("{folder}", folder);
        for (name, (_, url)) in &self.agents {
            text = text.replace(&format!("{{{name}}}"), &format!("{url}/patroni"));
        }
        text
    }

    /// What the operator saw, without what differs from run to run.
    fn masked(&self, text: &str) -> String {
        let folder = self.folder.path().to_str().unwrap();
        let mut text = text.replace(folder, "{folder}");
        for (name, (_, url)) in &self.agents {
            text = text.replace(&format!("{url}/patroni"), &format!("{{{name}}}"));
        }
        without_times(&text)
    }

    /// Changes `puts` as soon as `key` is written.
    fn once(&self, key: &str, puts: &[(&str, &str)]) {
        let puts = puts.iter();
        let puts: Vec<(String, String)> = puts
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect();
        let (dcs, key) = (self.dcs.clone(), key.to_owned());
        let read = self.runtime.block_on(dcs.read(&key)).unwrap();
        let from = read.header.revision + 1;
        self.runtime.spawn(async move {
            let mut written = dcs.watch(&key, from).await.unwrap();
            let is_written = |event| match event {
                WatchEvent::Changes { changes, .. } => !changes.is_empty(),
                WatchEvent::Progress { .. } => false,
            };
            while !is_written(written.next().await.unwrap()) {}
            for (key, value) in &puts {
                put(&dcs, key, value).await;
            }
        });
    }

    fn operate(&mut self, line: &str) -> String {
        let words = split(&self.filled(line));
        let arguments = match Arguments::try_parse_from(&words) {
            Ok(arguments) => arguments,
            Err(error) => return format!("{error}exit {}\n", error.exit_code()),
        };
        let answers: Vec<String> = std::mem::take(&mut self.answers);
        let answers: Vec<&str> = answers.iter().map(String::as_str).collect();
        let terminal = Terminal::scripted(&answers);
        let dcs = self.dcs.clone();
        let done = self
            .runtime
            .block_on(ctl::run(arguments, &self.env, &terminal, move |_| {
                Ok(Arc::new(dcs))
            }));
        let mut text = terminal.said();
        let code = match done {
            Ok(()) => 0,
            Err(error) => {
                let _ = writeln!(text, "Error: {error}");
                error.exit_code()
            }
        };
        for line in self.asked.lock().unwrap().drain(..) {
            let _ = writeln!(text, "  {line}");
        }
        let _ = writeln!(text, "exit {code}");
        self.masked(&text)
    }
}

impl Runner for Script {
    type Command = Command;

    fn run(&mut self, command: &Command, _: &Context) -> Result<String, Box<dyn Error>> {
        if command.name.starts_with("trunkline") {
            return Ok(self.operate(&command.name));
        }
        let words = command.args.iter().map(|argument| match argument {
            Argument::Positional(word) => word.as_str(),
            other => panic!("{other} is no word: quote it"),
        });
        let words: Vec<&str> = words.collect();
        match (command.name.as_str(), words.as_slice()) {
            ("load", []) => self.load(),
            ("key", [key, value]) => {
                let value = self.filled(value);
                let key = format!("/service/{key}");
                self.runtime.block_on(put(&self.dcs, &key, &value));
            }
            ("env", [name, value]) => drop(self.env.insert((*name).into(), (*value).into())),
            ("answer", words) => self.answers.extend(words.iter().map(|w| (*w).to_owned())),
            ("file", [name, text]) => {
                let text = text.replace("\\n", "\n");
                std::fs::write(self.folder.path().join(name), text)?;
            }
            ("show", [key]) => {
                let key = format!("/service/{key}");
                let found = self.runtime.block_on(self.dcs.read(&key)).unwrap().entries;
                let found = found.into_iter().find(|entry| entry.key == key);
                let value = found.map(|entry| String::from_utf8(entry.value).unwrap());
                return Ok(format!("{}\n", value.as_deref().unwrap_or("(none)")));
            }
            // agent NAME METHOD PATH STATUS TEXT [KEY VALUE]...: what it answers, and what changes by that; with
            // status 0 it does not answer.
            ("agent", [name]) => drop(self.agent(name)),
            ("agent", [name, method, path, status, text, puts @ ..]) => {
                let puts = puts.chunks(2);
                let puts = puts.map(|pair| (format!("/service/{}", pair[0]), self.filled(pair[1])));
                let reply = Reply {
                    status: status.parse()?,
                    text: (*text).to_owned(),
                    puts: puts.collect(),
                };
                let what = format!("{method} {path}");
                let mut replies = self.agent(name).replies.lock().unwrap();
                replies.entry(what).or_default().push((reply, false));
            }
            (name, words) => panic!("{name} {words:?} is no command of these scripts"),
        }
        Ok(String::new())
    }
}

/// The words of a line, as a shell takes them apart.
fn split(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    for c in line.chars() {
        match (c, quote) {
            (c, Some(q)) if c == q => quote = None,
            ('\'' | '"', None) => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (' ', None) => words.extend(word.take()),
            (c, _) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

/// `_` in place of how long something took, and of the time in an hour that a question has as its example.
fn without_times(text: &str) -> String {
    let words = text.split_inclusive([' ', '\n']).collect::<Vec<_>>();
    let is_time = |word: &str, decimals: std::ops::RangeInclusive<usize>| {
        let word = word
            .trim()
            .trim_start_matches('(')
            .trim_end_matches([',', ')']);
        let part = word.split_once('.').map_or("", |(_, part)| part);
        decimals.contains(&part.len()) && word.parse::<f64>().is_ok()
    };
    let mut masked = String::new();
    for (at, word) in words.iter().enumerate() {
        let next = words.get(at + 1).map_or("", |next| next.trim());
        let is_example = at > 0 && words[at - 1].ends_with("(e.g. ") && word.starts_with("20");
        let is_before_unit = next.trim_end_matches([',', ')', ';', ':']) == "s";
        let is_masked = (is_before_unit && is_time(word, 1..=9)) || is_time(word, 3..=3);
        if is_example || is_masked {
            let rest = word.trim_start_matches(|c: char| c.is_ascii_digit() || "(.-T:".contains(c));
            masked.push('_');
            masked.push_str(rest);
        } else {
            masked.push_str(word);
        }
    }
    masked
}

#[test]
fn a_failover_is_asked_for_in_the_dcs_where_the_leaders_agent_does_not_answer() {
    const FAILOVER: &str = "/service/small/failover";
    let mut script = Script::new();
    script.load();
    let silent = Reply {
        status: SILENCE,
        text: String::new(),
        puts: Vec::new(),
    };
    let replies = script.agent("a").replies.clone();
    let path = "POST /failover".to_owned();
    replies.lock().unwrap().insert(path, vec![(silent, false)]);
    let a = r#"{"conn_url":"postgres://a:5432/postgres","api_url":"{a}","state":"running","role":"primary",
        "version":"0.1.0","xlog_location":50331648,"timeline":1,"trunkline":{}}"#;
    for (key, value) in [
        ("config", r#"{"ttl":30,"loop_wait":1,"retry_timeout":10}"#),
        ("members/a", a),
    ] {
        let (key, value) = (format!("/service/small/{key}"), script.filled(value));
        script.runtime.block_on(put(&script.dcs, &key, &value));
    }
    let b = r#"{"conn_url":"postgres://b:5432/postgres","api_url":"","state":"running","role":"primary",
        "version":"0.1.0","xlog_location":50331648,"timeline":2,"trunkline":{}}"#;
    let led_by_b = [
        ("/service/small/leader", "b"),
        (FAILOVER, "gone"),
        ("/service/small/members/b", b),
    ];
    script.once(FAILOVER, &led_by_b);
    let said = script.operate("trunkline failover small --candidate b --force");
    let told = "the agent of a did not answer within 2 s: the failover was asked for in the DCS";
    assert!(said.contains(told), "{said}");
    assert_eq!(said.matches("got POST /failover").count(), 1, "{said}");
    assert!(said.ends_with("exit 0\n"), "{said}");
}

#[test]
fn what_patronictl_prints_trunkline_prints() {
    let outputs = include_str!("patronictl/outputs");
    let mut script = Script::new();
    script.load();
    let mut count = 0;
    for output in outputs.split("$ ").filter(|output| !output.is_empty()) {
        let (line, expected) = output.split_once('\n').unwrap();
        let ours = script.operate(&format!("trunkline {line}"));
        let (ours, code) = ours.rsplit_once("exit ").unwrap();
        assert_eq!(code.trim(), "0", "patronictl {line}\n{ours}");
        assert_eq!(
            ours.trim_end(),
            expected.trim_end(),
            "patronictl {line}\n{ours}"
        );
        count += 1;
    }
    assert!(count > 30, "{count} outputs were compared");
}
