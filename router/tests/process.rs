//! The program itself: its file, its ports, its signals. No DCS answers here; that is all it needs.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use trunkline_shared::service::clock;

/// No step takes longer than this.
const DEADLINE: Duration = Duration::from_secs(30);

struct Setting {
    folder: TempDir,
    port: SocketAddr,
    http: SocketAddr,
}

impl Setting {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
            port: vacant(),
            http: vacant(),
        }
    }

    fn file(&self, more: &str) -> PathBuf {
        let path = self.folder.path().join("router.yml");
        let nobody = vacant();
        let text = format!(
            "etcd3: {{hosts: \"{nobody}\"}}\nhttp: {{listen: \"{}\"}}\nlisteners:\n  \
             - {{listen: \"{}\", scope: demo, target: primary}}\n{more}",
            self.http, self.port
        );
        std::fs::write(&path, text).unwrap();
        path
    }

    fn start(&self, file: &Path, more: &[&str]) -> Running {
        let child = self.command(file, more).stderr(Stdio::null()).spawn();
        Running(child.unwrap())
    }

    fn output(&self, file: &Path, more: &[&str]) -> Output {
        self.command(file, more).output().unwrap()
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "this file starts the program under test"
    )]
    fn command(&self, file: &Path, more: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_trunkline-router"));
        command
            .arg(file)
            .args(more)
            .env("RUNTIME_DIRECTORY", self.folder.path());
        command
    }

    /// The process that last announced itself.
    fn pid(&self) -> Option<u32> {
        let file = format!("router-{}/router.pid", self.http);
        let text = std::fs::read_to_string(self.folder.path().join(file)).ok()?;
        text.trim().parse().ok()
    }

    fn get(&self, path: &str) -> Option<String> {
        let mut stream = TcpStream::connect(self.http).ok()?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: r\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        Some(answer)
    }

    fn shows(&self, path: &str, text: &str) -> bool {
        self.get(path).is_some_and(|answer| answer.contains(text))
    }
}

/// A process, ended with the test.
struct Running(Child);

impl Running {
    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.0.id()).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    fn is_over(&mut self) -> bool {
        self.0.try_wait().unwrap().is_some()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn vacant() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
}

#[expect(
    clippy::disallowed_methods,
    reason = "polls a process, which announces nothing"
)]
fn until(mut is_so: impl FnMut() -> bool) {
    let began = clock::now();
    while !is_so() {
        assert!(clock::now().since(began) < DEADLINE, "not in time");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_wrong_file_ends_with_2_and_says_where() {
    let setting = Setting::new();
    let file = setting.file("switchover: {hold_timeout: soon}\n");
    let output = setting.output(&file, &[]);
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        said.contains("line 5: switchover.hold_timeout is \"soon\""),
        "{said}"
    );
    let output = setting.output(&setting.file(""), &["--validate"]);
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn a_port_that_is_taken_ends_the_program_with_one_clear_line() {
    let setting = Setting::new();
    let _taken = TcpListener::bind(setting.port).unwrap();
    let output = setting.output(&setting.file(""), &[]);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    let last = said.lines().last().unwrap();
    let beginning = format!("trunkline-router: cannot listen on {}", setting.port);
    assert!(last.starts_with(&beginning), "{said}");
}

#[test]
fn without_a_dcs_it_listens_and_is_not_ready() {
    let setting = Setting::new();
    let mut running = setting.start(&setting.file(""), &[]);
    until(|| setting.pid().is_some());
    TcpStream::connect(setting.port).unwrap();
    until(|| setting.shows("/ready", "503 Service Unavailable"));
    running.signal(Signal::HUP);
    running.signal(Signal::TERM);
    until(|| running.is_over());
    assert_eq!(setting.pid(), None, "the pid file is taken away");
}

#[test]
fn a_drain_ends_with_the_last_session() {
    let setting = Setting::new();
    let mut running = setting.start(&setting.file(""), &[]);
    until(|| setting.pid().is_some());
    let mut session = TcpStream::connect(setting.port).unwrap();
    session.write_all(&[0, 0]).unwrap();
    until(|| setting.shows("/topology", "\"clients\": 1"));
    running.signal(Signal::TERM);
    until(|| TcpStream::connect(setting.port).is_err());
    assert!(!running.is_over(), "a session is open");
    drop(session);
    until(|| running.is_over());
}

#[test]
fn a_hand_over_refuses_no_connection() {
    let setting = Setting::new();
    let file = setting.file("");
    let mut old = setting.start(&file, &[]);
    until(|| setting.pid().is_some());
    let new = setting.start(&file, &["--upgrade"]);
    let socket = setting
        .folder
        .path()
        .join(format!("router-{}/upgrade.sock", setting.http));
    until(|| socket.exists());
    old.signal(Signal::QUIT);
    until(|| {
        TcpStream::connect(setting.port).unwrap();
        old.is_over()
    });
    TcpStream::connect(setting.port).unwrap();
    assert_eq!(setting.pid(), Some(new.0.id()));
}

#[test]
fn a_hand_over_to_nobody_changes_nothing() {
    let setting = Setting::new();
    let mut running = setting.start(&setting.file(""), &[]);
    until(|| setting.pid().is_some());
    running.signal(Signal::QUIT);
    // The hand-over gives up after some seconds; only then is the next signal heard.
    running.signal(Signal::TERM);
    until(|| running.is_over());
}
