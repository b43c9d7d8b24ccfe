//! The program itself: its file, its ports, its signals. No DCS answers here, but for a hand-over: who takes
//! over must be able to route.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

#[path = "support/etcd.rs"]
mod etcd;

use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};
use std::time::Duration;

use etcd::Etcd;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use trunkline_shared::service::clock;

/// No step takes longer than this.
const DEADLINE: Duration = Duration::from_secs(30);

struct Setting {
    folder: TempDir,
    port: SocketAddr,
    /// Of a second listener, where a test has one.
    pooled: SocketAddr,
    http: SocketAddr,
}

impl Setting {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
            port: vacant(),
            pooled: vacant(),
            http: vacant(),
        }
    }

    fn file(&self, more: &str) -> PathBuf {
        self.file_with("router.yml", vacant(), more)
    }

    fn file_with(&self, name: &str, etcd: SocketAddr, more: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        let text = format!(
            "etcd3: {{hosts: \"{etcd}\"}}\nhttp: {{listen: \"{}\"}}\nlisteners:\n  \
             - {{listen: \"{}\", scope: demo, target: primary}}\n{more}",
            self.http, self.port
        );
        std::fs::write(&path, text).unwrap();
        path
    }

    fn start(&self, file: &Path, more: &[&str]) -> Running {
        let path = self.folder.path().join("log");
        let log = File::options()
            .create(true)
            .append(true)
            .open(path)
            .unwrap();
        let child = self.command(file, more).stderr(log).spawn();
        Running(child.unwrap())
    }

    /// Whether any of the processes has said this.
    fn has_said(&self, text: &str) -> bool {
        let log = std::fs::read_to_string(self.folder.path().join("log"));
        log.unwrap_or_default().contains(text)
    }

    /// Starts a process that takes over, and waits until it waits for the ports.
    fn successor(&self, file: &Path) -> Running {
        let new = self.start(file, &["--upgrade"]);
        let folder = self.folder.path().join(format!("router-{}", self.http));
        let pid = format!("{}\n", new.0.id());
        until(|| {
            let coming = std::fs::read_to_string(folder.join("upgrade.pid"));
            coming.is_ok_and(|text| text == pid) && folder.join("upgrade.sock").exists()
        });
        new
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

/// Looks until it is so: a process announces nothing.
fn until(mut is_so: impl FnMut() -> bool) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    runtime.block_on(async {
        let began = clock::now();
        let mut looks = tokio::time::interval(Duration::from_millis(5));
        while !is_so() {
            assert!(clock::now().since(began) < DEADLINE, "not in time");
            looks.tick().await;
        }
    });
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
    let etcd = Etcd::start();
    let setting = Setting::new();
    let file = setting.file_with("router.yml", etcd.address, "");
    let mut old = setting.start(&file, &[]);
    until(|| setting.shows("/ready", "200 OK"));
    // A session of the old process, which goes on there.
    let mut session = TcpStream::connect(setting.port).unwrap();
    session.write_all(&[0, 0]).unwrap();
    until(|| setting.shows("/topology", "\"clients\": 1"));
    let new = setting.successor(&file);
    old.signal(Signal::QUIT);
    until(|| {
        TcpStream::connect(setting.port).unwrap();
        setting.pid() == Some(new.0.id())
    });
    // HTTP is the new process's alone, while the old one drains.
    until(|| setting.has_said("draining"));
    // What connected above, and left at once, may not be over yet.
    until(|| setting.shows("/topology", "\"clients\": 0"));
    for _ in 0..20 {
        assert!(setting.shows("/ready", "200 OK"));
        assert!(setting.shows("/topology", "\"clients\": 0"));
    }
    assert!(!old.is_over(), "its session is open");
    drop(session);
    until(|| old.is_over());
    TcpStream::connect(setting.port).unwrap();
    assert_eq!(setting.pid(), Some(new.0.id()));
}

#[test]
fn a_successor_that_cannot_start_leaves_the_old_one_in_place() {
    let etcd = Etcd::start();
    let setting = Setting::new();
    let file = setting.file_with("router.yml", etcd.address, "");
    let mut old = setting.start(&file, &[]);
    until(|| setting.shows("/ready", "200 OK"));
    // It can be read, and asks for a port that another program has.
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap();
    let more = format!("  - {{listen: \"{port}\", scope: demo, target: replicas}}\n");
    let wrong = setting.file_with("wrong.yml", etcd.address, &more);
    let mut new = setting.successor(&wrong);
    old.signal(Signal::QUIT);
    until(|| new.is_over());
    until(|| setting.has_said("this router goes on serving"));
    assert!(setting.has_said(&format!(
        "process {} took the ports over and ended",
        new.0.id()
    )));
    for _ in 0..20 {
        TcpStream::connect(setting.port).unwrap();
        assert!(setting.shows("/ready", "200 OK"));
    }
    assert!(!old.is_over());
    assert_eq!(setting.pid(), Some(old.0.id()));
    // The next attempt, with a file that is right, goes through.
    let new = setting.successor(&file);
    old.signal(Signal::QUIT);
    until(|| old.is_over());
    assert_eq!(setting.pid(), Some(new.0.id()));
    assert!(setting.shows("/ready", "200 OK"));
}

#[test]
fn a_successor_that_is_killed_leaves_the_old_one_in_place() {
    let etcd = Etcd::start();
    let setting = Setting::new();
    let file = setting.file_with("router.yml", etcd.address, "");
    let mut old = setting.start(&file, &[]);
    until(|| setting.shows("/ready", "200 OK"));
    // It never becomes ready: no DCS answers it.
    let mut new = setting.successor(&setting.file_with("deaf.yml", vacant(), ""));
    let socket = format!("router-{}/upgrade.sock", setting.http);
    old.signal(Signal::QUIT);
    until(|| !setting.folder.path().join(&socket).exists());
    for _ in 0..20 {
        assert!(
            setting.shows("/ready", "200 OK"),
            "the new one does not answer yet"
        );
    }
    new.signal(Signal::KILL);
    until(|| setting.has_said("this router goes on serving"));
    assert!(new.is_over() && !old.is_over());
    TcpStream::connect(setting.port).unwrap();
    assert!(setting.shows("/ready", "200 OK"));
}

#[test]
fn a_successor_that_cannot_route_gives_up_by_itself() {
    let etcd = Etcd::start();
    let setting = Setting::new();
    let mut old = setting.start(&setting.file_with("router.yml", etcd.address, ""), &[]);
    until(|| setting.shows("/ready", "200 OK"));
    let mut new = setting.successor(&setting.file_with("deaf.yml", vacant(), ""));
    old.signal(Signal::QUIT);
    until(|| new.is_over());
    until(|| setting.has_said("this router goes on serving"));
    assert!(setting.has_said("not taking over from the running router"));
    assert!(!old.is_over() && setting.shows("/ready", "200 OK"));
}

#[test]
fn a_successor_whose_predecessor_dies_serves_as_it_is() {
    let etcd = Etcd::start();
    let setting = Setting::new();
    let old = setting.start(&setting.file_with("router.yml", etcd.address, ""), &[]);
    until(|| setting.shows("/ready", "200 OK"));
    let new = setting.successor(&setting.file_with("deaf.yml", vacant(), ""));
    let socket = format!("router-{}/upgrade.sock", setting.http);
    old.signal(Signal::QUIT);
    until(|| !setting.folder.path().join(&socket).exists());
    old.signal(Signal::KILL);
    until(|| setting.pid() == Some(new.0.id()));
    until(|| setting.shows("/ready", "503 Service Unavailable"));
    TcpStream::connect(setting.port).unwrap();
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

#[test]
fn a_reload_takes_up_the_clusters_that_the_databases_name() {
    let etcd = Etcd::start();
    let setting = Setting::new();
    let users = setting.folder.path().join("users");
    std::fs::write(&users, "").unwrap();
    let file = |databases: &str| {
        let more = format!(
            "  - {{listen: \"{}\", target: primary, mode: transaction}}\n\
             auth: {{file: {}}}\ndatabases: {{{databases}}}\n",
            setting.pooled,
            users.display()
        );
        setting.file_with("router.yml", etcd.address, &more)
    };
    let own = file("shard_*: {scope: shard-*}, app: {scope: old}");
    let running = setting.start(&own, &[]);
    until(|| setting.shows("/ready", "200 OK"));
    assert!(setting.shows("/topology", "\"scope\": \"old\""));
    assert!(setting.shows("/topology", "\"state\": \"known\""));
    file("app: {scope: new}");
    running.signal(Signal::HUP);
    until(|| setting.shows("/topology", "\"scope\": \"new\""));
    until(|| !setting.shows("/topology", "\"scope\": \"old\""));
    assert!(setting.shows("/topology", "\"scope\": \"demo\""));
    assert!(setting.shows("/topology", "\"namespace\": null"));
    assert!(setting.shows("/ready", "200 OK"));
    assert!(!setting.has_said("only by a restart"));
}

/// A session of the console, on its own port.
struct Console(TcpStream);

impl Console {
    fn connect(port: SocketAddr) -> Self {
        let mut stream = TcpStream::connect(port).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let body = "user\0boss\0database\0pgbouncer\0\0";
        let length = u32::try_from(body.len() + 8).unwrap().to_be_bytes();
        let packet = [&length[..], &[0, 3, 0, 0], body.as_bytes()].concat();
        stream.write_all(&packet).unwrap();
        let mut own = Self(stream);
        own.answer();
        own
    }

    /// What a command comes to: its tag, or the words of an error.
    fn order(&mut self, sql: &str) -> String {
        let length = u32::try_from(sql.len() + 5).unwrap().to_be_bytes();
        let packet = [b"Q", &length[..], sql.as_bytes(), b"\0"].concat();
        self.0.write_all(&packet).unwrap();
        self.answer()
    }

    fn answer(&mut self) -> String {
        let mut said = String::new();
        loop {
            let mut header = [0; 5];
            self.0.read_exact(&mut header).unwrap();
            let length = u32::from_be_bytes(header[1..].try_into().unwrap());
            let mut body = vec![0; usize::try_from(length).unwrap() - 4];
            self.0.read_exact(&mut body).unwrap();
            match header[0] {
                b'C' => said = String::from_utf8_lossy(&body[..body.len() - 1]).into_owned(),
                b'E' => {
                    let words = body.split(|b| *b == 0).find(|f| f.first() == Some(&b'M'));
                    said = String::from_utf8_lossy(&words.unwrap()[1..]).into_owned();
                }
                b'Z' => return said,
                _ => {}
            }
        }
    }
}

impl Setting {
    /// A file with a pooled listener, and the console at this port.
    fn pooled_file(&self, console: SocketAddr, pool: &str) -> PathBuf {
        let users = self.folder.path().join("users");
        std::fs::write(&users, "\"boss\" \"hunter2\"\n").unwrap();
        let pooled = vacant();
        self.file(&format!(
            "  - {{listen: \"{pooled}\", scope: demo, target: primary, mode: transaction}}\n\
             auth: {{type: trust, file: {}}}\nadmin: {{listen: \"{console}\", admin_users: boss}}\npool: {pool}\n",
            users.display()
        ))
    }
}

#[test]
fn the_console_has_a_port_of_its_own_reloads_the_file_and_shuts_the_router_down() {
    let (setting, port) = (Setting::new(), vacant());
    let file = setting.pooled_file(port, "{query_timeout: 7s}");
    let mut running = setting.start(&file, &[]);
    until(|| setting.pid().is_some());
    let mut console = Console::connect(port);
    assert_eq!(console.order("show config"), "SHOW");
    assert_eq!(console.order("reload"), "RELOAD");
    std::fs::write(&file, "listeners: nowhere\n").unwrap();
    let refused = console.order("reload");
    assert!(refused.starts_with("RELOAD failed"), "{refused}");
    // A reload by signal is not missed, and metrics of pools are told.
    running.signal(Signal::HUP);
    until(|| {
        setting.shows(
            "/metrics",
            "# TYPE trunkline_router_pool_wait_seconds histogram",
        )
    });
    // A session that says nothing does not hold up an immediate end.
    let mut silent = TcpStream::connect(setting.port).unwrap();
    silent.write_all(&[0, 0]).unwrap();
    until(|| setting.shows("/topology", "\"clients\": 1"));
    let mut other = Console::connect(port);
    assert_eq!(other.order("shutdown"), "SHUTDOWN");
    until(|| running.is_over());
}

#[test]
fn a_shutdown_that_waits_for_servers_ends_when_there_is_none() {
    let (setting, port) = (Setting::new(), vacant());
    let mut running = setting.start(&setting.pooled_file(port, "{}"), &[]);
    until(|| setting.pid().is_some());
    let mut console = Console::connect(port);
    assert_eq!(console.order("shutdown wait_for_servers"), "SHUTDOWN");
    until(|| running.is_over());
    assert!(!setting.has_said("hunter2"));
}
