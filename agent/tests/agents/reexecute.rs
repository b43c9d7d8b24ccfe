//! SIGUSR2: the program on disk takes over in the same process, and what would not start does not.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::body::Bytes;
use axum::http::Method;
use serde_json::Value;
use trunkline_agent::postgres::ProcessId;
use trunkline_shared::service::http::HttpClient;

use super::servers::Servers;
use super::*;

/// Until a restart that is scheduled, in microseconds.
const AN_HOUR_US: i64 = 3_600_000_000;
/// The same where it is to be seen.
const SOON_US: i64 = 5_000_000;

/// What the API of member 1 answers.
async fn ask(agents: &Agents<'_>, path: &str) -> Option<(u16, Value)> {
    let url = format!("http://{}:8008{path}", agents.config(1).connect_host);
    let client = HttpClient::default();
    let asked = client.request(Method::GET, &url, Bytes::new(), PATIENCE);
    let answer = asked.await.ok()?;
    Some((answer.status, serde_json::from_slice(&answer.body).ok()?))
}

async fn epoch(agents: &Agents<'_>) -> String {
    let (_, status) = ask(agents, "/patroni").await.unwrap();
    status["trunkline"]["epoch"].as_str().unwrap().to_owned()
}

/// Puts `content` in the place of the program, as an upgrade does: the old file lives on without a name.
fn replace(program: &Path, content: &[u8], mode: u32) {
    let new = program.with_extension("new");
    fs::write(&new, content).unwrap();
    fs::set_permissions(&new, fs::Permissions::from_mode(mode)).unwrap();
    fs::rename(&new, program).unwrap();
}

/// The file that the process runs; a replaced one is shown as deleted.
fn runs(pid: i32) -> String {
    let link = fs::read_link(format!("/proc/{pid}/exe")).unwrap();
    link.display().to_string()
}

/// Every word that was sent to the service manager so far.
fn told(socket: &UnixDatagram) -> Vec<String> {
    let mut words = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(read) = socket.recv(&mut buffer) {
        words.push(String::from_utf8_lossy(&buffer[..read]).into_owned());
    }
    words
}

/// What must be the same to the end.
#[derive(Debug, PartialEq)]
struct Standing {
    pid: i32,
    postmaster: Option<ProcessId>,
    epoch: String,
}

async fn standing(agents: &Agents<'_>, door: &Postgres) -> Standing {
    Standing {
        pid: agents.pid(1),
        postmaster: door.adopt(),
        epoch: epoch(agents).await,
    }
}

/// Member 1 leads, and runs a program that can be replaced: that, its content, and the way to PostgreSQL.
async fn a_primary(servers: &Servers, agents: &mut Agents<'_>) -> (PathBuf, Vec<u8>, Postgres) {
    let program = servers.folder().join("trunkline-agent");
    let content = fs::read(servers.agent()).unwrap();
    replace(&program, &content, 0o755);
    agents.program = Some(program.clone());
    agents.start(1, 10);
    let door = Postgres::new(agents.config(1)).unwrap();
    leads(agents, &door, 1).await;
    is_primary(agents).await;
    (program, content, door)
}

async fn is_primary(agents: &Agents<'_>) {
    wait_for(
        "a primary",
        || agents.told(),
        async || {
            let (status, _) = ask(agents, "/primary").await?;
            (status == 200).then_some(())
        },
    )
    .await;
}

#[test]
fn the_program_on_disk_takes_over_and_nothing_else_notices() {
    on_every_major(
        "reexecute::the_program_on_disk_takes_over_and_nothing_else_notices",
        async |servers| {
            let mut agents = Agents::new(servers);
            let socket = servers.folder().join("notify");
            let manager = UnixDatagram::bind(&socket).unwrap();
            manager.set_nonblocking(true).unwrap();
            agents.notify = Some(socket);
            let (program, content, door) = a_primary(servers, &mut agents).await;
            assert_eq!(told(&manager), ["READY=1\n"]);
            let before = standing(&agents, &door).await;
            let fence = agents.fence(1).unwrap();

            // Somebody asks all the time, each time over a connection of its own.
            let is_over = Arc::new(AtomicBool::new(false));
            let url = format!("http://{}:8008/primary", agents.config(1).connect_host);
            let asking = tokio::spawn(asked_all_the_time(url, is_over.clone()));

            replace(&program, &content, 0o755);
            takes_over(&agents, &program).await;
            assert_eq!(standing(&agents, &door).await, before);
            assert_eq!(agents.fence(1), Some(fence), "the same fence");
            let words = told(&manager).concat();
            assert!(words.starts_with("RELOADING=1\nMONOTONIC_USEC="), "{words}");
            assert!(words.ends_with("READY=1\n"), "{words}");

            a_fence_of_before_is_replaced_and_reaped(&agents, fence).await;
            what_does_not_start_does_not_take_over(&agents, &program, &content).await;
            is_over.store(true, Ordering::SeqCst);
            let (asked, longest) = asking.await.unwrap();
            println!("measured: {asked} times 200, the longest answer took {longest:?}");
            let after = standing(&agents, &door).await;
            assert_eq!(after, before, "{}", agents.told());

            // A reload is told of, and so is the end.
            let _ = told(&manager);
            signal(before.pid, Signal::HUP);
            let ready = async || {
                let mut words = told(&manager).into_iter();
                words.any(|word| word == "READY=1\n").then_some(())
            };
            wait_for("a reload", || agents.told(), ready).await;
            signal(before.pid, Signal::TERM);
            let ended = wait_for("the end", String::new, async || agents.ended(1));
            assert!(ended.await.success());
            assert_eq!(told(&manager), ["STOPPING=1\n"]);
        },
    );
}

#[test]
fn a_scheduled_restart_is_handed_to_the_program_that_takes_over() {
    on_every_major(
        "reexecute::a_scheduled_restart_is_handed_to_the_program_that_takes_over",
        async |servers| {
            let mut agents = Agents::new(servers);
            let (program, content, door) = a_primary(servers, &mut agents).await;
            let before = standing(&agents, &door).await;

            let at = clock::WallTime(clock::wall_clock().0 + AN_HOUR_US).rfc3339();
            let url = format!("http://{}:8008/restart", agents.config(1).connect_host);
            let client = HttpClient::default();
            let ask_for = async |method: Method, at: &str| {
                let body = format!(r#"{{"schedule": "{at}", "role": "primary"}}"#);
                let asked = client.request(method, &url, Bytes::from(body), PATIENCE);
                asked.await.unwrap().status
            };
            assert_eq!(ask_for(Method::POST, &at).await, 202);
            replace(&program, &content, 0o755);
            takes_over(&agents, &program).await;
            let (_, status) = ask(&agents, "/patroni").await.unwrap();
            assert_eq!(status["scheduled_restart"]["schedule"], at.as_str());
            let started = &status["scheduled_restart"]["postmaster_start_time"];
            assert_eq!(*started, status["postmaster_start_time"], "{status}");
            assert_eq!(ask_for(Method::POST, &at).await, 409, "one is scheduled");
            assert_eq!(ask_for(Method::DELETE, &at).await, 200);
            let (_, status) = ask(&agents, "/patroni").await.unwrap();
            assert!(status.get("scheduled_restart").is_none(), "{status}");
            let after = standing(&agents, &door).await;
            assert_eq!(after, before);

            // The program that has taken over carries it out. One that fell due before it had is none of its own.
            let started = loop {
                let at = clock::WallTime(clock::wall_clock().0 + SOON_US).rfc3339();
                assert_eq!(ask_for(Method::POST, &at).await, 202);
                replace(&program, &content, 0o755);
                takes_over(&agents, &program).await;
                let (_, status) = ask(&agents, "/patroni").await.unwrap();
                if status["scheduled_restart"]["schedule"] == at.as_str() {
                    break status["scheduled_restart"]["postmaster_start_time"].clone();
                }
            };
            wait_for(
                "the restart that was handed on",
                || agents.told(),
                async || {
                    let (_, status) = ask(&agents, "/patroni").await?;
                    let now = &status["postmaster_start_time"];
                    let is_over = status.get("scheduled_restart").is_none();
                    (is_over && now.is_string() && *now != started).then_some(())
                },
            )
            .await;
        },
    );
}

/// The program that stands in the place of the running one.
async fn takes_over(agents: &Agents<'_>, program: &Path) {
    let pid = agents.pid(1);
    assert!(runs(pid).ends_with("(deleted)"), "{}", runs(pid));
    let before = agents.said(1).matches("started").count();
    signal(pid, Signal::USR2);
    wait_for(
        "the program on disk",
        || agents.told(),
        async || {
            let runs_it = runs(pid) == program.display().to_string();
            (runs_it && agents.said(1).matches("started").count() > before).then_some(())
        },
    )
    .await;
    is_primary(agents).await;
}

/// It is nobody's known child now; its end is taken all the same, and another one watches.
async fn a_fence_of_before_is_replaced_and_reaped(agents: &Agents<'_>, fence: i32) {
    signal(fence, Signal::KILL);
    wait_for(
        "another fence",
        || agents.told(),
        async || agents.fence(1).filter(|pid| *pid != fence),
    )
    .await;
    wait_for(
        "no zombie",
        || agents.told(),
        async || (!Path::new(&format!("/proc/{fence}")).exists()).then_some(()),
    )
    .await;
}

/// Asks until it is over; panics at anything but 200. How often, and the longest time an answer took.
async fn asked_all_the_time(url: String, is_over: Arc<AtomicBool>) -> (u64, Duration) {
    let client = HttpClient::default();
    let (mut times, mut longest) = (0, Duration::ZERO);
    while !is_over.load(Ordering::SeqCst) {
        let began = clock::now();
        let answer = client
            .request(Method::GET, &url, Bytes::new(), PATIENCE)
            .await
            .unwrap();
        let body = String::from_utf8_lossy(&answer.body).into_owned();
        assert_eq!(answer.status, 200, "{body}");
        longest = longest.max(clock::now().since(began));
        times += 1;
    }
    (times, longest)
}

async fn what_does_not_start_does_not_take_over(
    agents: &Agents<'_>,
    program: &Path,
    content: &[u8],
) {
    let pid = agents.pid(1);
    let refused = async |why: &str| {
        let before = agents.said(1).matches("does not take over").count();
        signal(pid, Signal::USR2);
        let said = wait_for(
            why,
            || agents.told(),
            async || {
                let said = agents.said(1);
                (said.matches("does not take over").count() > before).then_some(said)
            },
        );
        let said = said.await;
        let last = said
            .lines()
            .rfind(|line| line.contains("does not take over"))
            .unwrap();
        assert!(last.contains(why), "{why}: {last}");
    };
    let good = agents.path(1);
    let config = fs::read_to_string(&good).unwrap();
    for (what, mode, why) in [
        (&b"#!/bin/sh\nexit 3\n"[..], 0o755, "exit status: 3"),
        (
            &b"#!/bin/sh\necho something else\n"[..],
            0o755,
            "is not this agent",
        ),
        (&b"nonsense"[..], 0o755, "Exec format error"),
        (content, 0o644, "Permission denied"),
    ] {
        replace(program, what, mode);
        refused(why).await;
    }
    fs::remove_file(program).unwrap();
    refused("No such file").await;
    replace(program, content, 0o755);
    fs::write(&good, config.replace("name: member-1", "name: member-7")).unwrap();
    refused("another member").await;
    fs::write(&good, "scope: [").unwrap();
    refused("not valid YAML").await;
    fs::write(&good, config).unwrap();
}
