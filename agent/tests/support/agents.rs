//! Whole agents for a test: one etcd and members below the folder of [`Servers`], and their end.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use trunkline_agent::postgres::PostgresConfig;
use trunkline_agent::postgres::scan::ProcessId;

use super::servers::Servers;

/// What a program that has ended said.
#[derive(Debug)]
pub struct Asked {
    /// Its exit code.
    pub code: Option<i32>,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

/// One etcd and the agents of some members.
pub struct Agents<'a> {
    servers: &'a Servers,
    etcd: Child,
    agents: Vec<(u8, Child)>,
    /// The program of every agent; the one beside the test unless set.
    pub program: Option<PathBuf>,
    /// More of `restapi`, in YAML's flow style, beginning with a comma.
    pub restapi: String,
    /// Where a service manager listens.
    pub notify: Option<PathBuf>,
}

#[expect(
    clippy::disallowed_methods,
    reason = "the one place of these tests that starts programs"
)]
fn command(program: &Path) -> std::process::Command {
    let mut command = std::process::Command::new(program);
    // The tests' own: programs take it for a setting that they do not know.
    command.env_remove("TRUNKLINE_POSTGRESQL");
    command
}

fn log(path: &Path) -> Stdio {
    let file = File::options().create(true).append(true).open(path);
    file.unwrap().into()
}

impl<'a> Agents<'a> {
    /// Starts the etcd.
    pub fn new(servers: &'a Servers) -> Self {
        let host = servers.config(9).connect_host;
        let url = |port: u16| format!("http://{host}:{port}");
        let etcd = command(Path::new("/usr/bin/etcd"))
            .arg("--data-dir")
            .arg(servers.folder().join("etcd"))
            .args(["--name", "e"])
            .args(["--listen-client-urls", &url(2379)])
            .args(["--advertise-client-urls", &url(2379)])
            .args(["--listen-peer-urls", &url(2380)])
            .args(["--initial-advertise-peer-urls", &url(2380)])
            .args(["--initial-cluster", &format!("e={}", url(2380))])
            .arg("--unsafe-no-fsync")
            .stdin(Stdio::null())
            .stdout(log(&servers.folder().join("etcd.log")))
            .stderr(log(&servers.folder().join("etcd.log")))
            .spawn()
            .expect("etcd at /usr/bin/etcd (apt-get install etcd-server)");
        Self {
            servers,
            etcd,
            agents: Vec::new(),
            program: None,
            restapi: String::new(),
            notify: None,
        }
    }

    /// Where etcd listens.
    pub fn etcd(&self) -> String {
        format!("{}:2379", self.servers.config(9).connect_host)
    }

    /// The configuration of PostgreSQL of member `index`, as its door needs it.
    pub fn config(&self, index: u8) -> PostgresConfig {
        PostgresConfig {
            run_dir: self.run_dir(index),
            ..self.servers.config(index)
        }
    }

    /// The run directory of member `index`.
    pub fn run_dir(&self, index: u8) -> PathBuf {
        self.servers.folder().join(format!("run-{index}"))
    }

    /// What the agent of member `index` has said.
    pub fn said(&self, index: u8) -> String {
        let mut said = fs::read_to_string(self.agent_log(index)).unwrap_or_default();
        // A line that is just being written may be seen up to the end of a page.
        said.truncate(said.rfind('\n').map_or(0, |end| end + 1));
        said
    }

    /// What the first two have said, for a test that waited in vain.
    pub fn told(&self) -> String {
        format!("{}\n{}", self.said(1), self.said(2))
    }

    fn agent_log(&self, index: u8) -> PathBuf {
        self.servers.folder().join(format!("agent-{index}.log"))
    }

    /// Starts the agent of member `index`, or starts it again.
    pub fn start(&mut self, index: u8, ttl: u8) {
        self.start_as(index, &format!("member-{index}"), ttl);
    }

    /// The same under another name.
    pub fn start_as(&mut self, index: u8, name: &str, ttl: u8) {
        self.launch(index, ("test", name), ttl, "");
    }

    /// The same in a cluster of its own, with more lines of `bootstrap.dcs`.
    pub fn start_in(&mut self, scope: &str, index: u8, ttl: u8, dcs: &str) {
        self.launch(index, (scope, &format!("member-{index}")), ttl, dcs);
    }

    fn launch(&mut self, index: u8, (scope, name): (&str, &str), ttl: u8, dcs: &str) {
        let config = self.servers.config(index);
        let (host, bin_dir) = (&config.connect_host, config.bin_dir.as_ref().unwrap());
        let text = format!(
            r#"scope: {scope}
name: {name}
restapi: {{listen: "{host}:8008", connect_address: "{host}:8008"{restapi}}}
etcd3: {{hosts: "{etcd}"}}
bootstrap:
  dcs:
    ttl: {ttl}
    loop_wait: 2
    retry_timeout: 5
{dcs}    postgresql:
      use_pg_rewind: true
      use_slots: true
      parameters: {{wal_level: logical}}
      pg_hba:
      - local all all trust
      - host replication all 127.0.0.0/8 scram-sha-256
      - host all all 127.0.0.0/8 scram-sha-256
  initdb: [{{encoding: UTF8}}, data-checksums]
postgresql:
  listen: "{host}:5432"
  connect_address: "{host}:5432"
  data_dir: {data_dir}
  bin_dir: {bin_dir}
  pgpass: {base}/pgpass
  authentication:
    superuser: {{username: postgres, password: super}}
    replication: {{username: replicator, password: replicated}}
    rewind: {{username: rewind_user, password: rewound}}
  parameters: {{unix_socket_directories: "{base}", shared_buffers: 16MB}}
trunkline: {{run_dir: {run_dir}}}
"#,
            restapi = self.restapi,
            etcd = self.etcd(),
            data_dir = config.data_dir.display(),
            bin_dir = bin_dir.display(),
            base = config.socket_dirs[0].display(),
            run_dir = self.run_dir(index).display(),
        );
        self.run(index, &text, &[]);
    }

    /// Starts the agent of member `index` on this file, in this environment.
    pub fn run(&mut self, index: u8, text: &str, environment: &[(&str, &str)]) {
        let file = self.write(index, text);
        let program = self.program.clone();
        let mut agent = command(&program.unwrap_or_else(|| self.servers.agent()));
        if let Some(socket) = &self.notify {
            agent.env("NOTIFY_SOCKET", socket);
        }
        let agent = agent
            .arg(&file)
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(log(&self.agent_log(index)))
            .stderr(log(&self.agent_log(index)))
            .spawn()
            .unwrap();
        self.agents.push((index, agent));
    }

    /// Writes the file of member `index`, for an agent that is to start or to read it again.
    pub fn write(&self, index: u8, text: &str) -> PathBuf {
        let file = self.path(index);
        fs::write(&file, text).unwrap();
        file
    }

    /// The file of member `index` as it stands.
    pub fn file(&self, index: u8) -> String {
        fs::read_to_string(self.path(index)).unwrap()
    }

    /// Sends a signal to the agent of member `index`.
    pub fn signal(&self, index: u8, which: Signal) {
        let agent = self.agents.iter().find(|(of, _)| *of == index);
        signal(i32::try_from(agent.unwrap().1.id()).unwrap(), which);
    }

    /// Runs the agent's program to its end: whether it succeeded, and what it said on both channels.
    pub fn ask(servers: &Servers, words: &[&str], environment: &[(&str, &str)]) -> Asked {
        let output = command(&servers.agent())
            .args(words)
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Asked {
            code: output.status.code(),
            out: said(&output.stdout),
            err: said(&output.stderr),
        }
    }

    /// Runs the operator's command with the file of member `index` and returns what it said, if it succeeded.
    pub fn operate(&self, index: u8, words: &[&str]) -> Result<String, String> {
        let file = self.servers.folder().join(format!("agent-{index}.yml"));
        // As the agent's program: beside this one when it was copied.
        let beside = self.servers.agent().with_file_name("trunkline");
        let output = command(&beside)
            .arg("-c")
            .arg(file)
            .args(words)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() {
            Ok(said(&output.stdout))
        } else {
            Err(said(&output.stderr) + &said(&output.stdout))
        }
    }

    /// The configuration file of member `index`.
    pub fn path(&self, index: u8) -> PathBuf {
        self.servers.folder().join(format!("agent-{index}.yml"))
    }

    /// The process of the agent of member `index`.
    pub fn pid(&self, index: u8) -> i32 {
        let agent = self.agents.iter().find(|(of, _)| *of == index);
        i32::try_from(agent.unwrap().1.id()).unwrap()
    }

    /// SIGKILL for the agent of member `index`; PostgreSQL and the fence live on.
    pub fn kill(&mut self, index: u8) {
        let at = self.agents.iter().position(|(of, _)| *of == index);
        let (_, mut agent) = self.agents.remove(at.unwrap());
        agent.kill().unwrap();
        agent.wait().unwrap();
    }

    /// How the agent of member `index` ended, if it has.
    pub fn ended(&mut self, index: u8) -> Option<ExitStatus> {
        let agent = self.agents.iter_mut().find(|(of, _)| *of == index);
        agent.and_then(|(_, agent)| agent.try_wait().unwrap())
    }

    /// Freezes etcd, or lets it go on.
    pub fn freeze_etcd(&self, is_frozen: bool) {
        let signal_of = if is_frozen {
            Signal::STOP
        } else {
            Signal::CONT
        };
        signal(i32::try_from(self.etcd.id()).unwrap(), signal_of);
    }

    /// The fence of member `index`.
    pub fn fence(&self, index: u8) -> Option<i32> {
        let run_dir = self.run_dir(index);
        processes()
            .filter(|pid| words_of(*pid).starts_with("trunkline-fence"))
            .find(|pid| fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == run_dir))
            .filter(|pid| ProcessId::of(*pid).is_some())
    }
}

impl Drop for Agents<'_> {
    fn drop(&mut self) {
        for (_, agent) in &mut self.agents {
            let _ = agent.kill();
            let _ = agent.wait();
        }
        for fence in (1..=9_u8).filter_map(|index| self.fence(index)) {
            let _ = kill_process(Pid::from_raw(fence).unwrap(), Signal::KILL);
        }
        let _ = self.etcd.kill();
        let _ = self.etcd.wait();
    }
}

pub fn signal(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
}

/// Every process there is.
pub fn processes() -> impl Iterator<Item = i32> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// The command line of a process.
pub fn words_of(pid: i32) -> String {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).replace('\0', " ")
}
