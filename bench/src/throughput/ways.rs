//! The ways to the server: direct, the null relay, the router's and its rivals'.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::stack::encryption::{self, Certificate};
use crate::stack::proc::ProcessId;
use crate::stack::process::{Launch, Process, args, find};
use crate::stack::router::{MAX_CLIENTS, POOL_SIZE, userlist};
use crate::stack::{APP, APP_PASSWORD, Stack};

/// Threads of HAProxy, of Odyssey and of the null relay: as many as the router's on the two cores of the reference
/// machine. PgBouncer has one.
const THREADS: usize = 2;
/// HAProxy needs two descriptors for each, and ends where the user may not have so many.
const HAPROXY_CLIENTS: usize = 5000;
/// How long a way may take to carry its first session.
const LIMIT: Duration = Duration::from_secs(30);
/// The first port of the rivals; each has the next one.
const FIRST_PORT: u16 = 5440;
/// The router's pooled listener.
pub const POOLED_PORT: u16 = 5434;

/// One way to the server.
#[derive(Debug)]
pub struct Way {
    pub name: String,
    pub host: String,
    pub port: u16,
    /// The process in the middle.
    pub process: Option<ProcessId>,
    /// It must be able to do everything.
    pub is_ours: bool,
    /// It is ended with the way.
    _held: Option<Process>,
}

impl Way {
    /// CPU time of the process in the middle so far, microseconds.
    pub fn cpu_us(&self) -> u64 {
        self.process.and_then(ProcessId::cpu_us).unwrap_or(0)
    }
}

/// Starts every way there is. `rivals` is a folder of programs that come before those of this system; `tls` is what all
/// show where they are to encrypt both sides.
pub async fn start(
    stack: &Stack,
    leader: usize,
    rivals: Option<&Path>,
    tls: Option<&Certificate>,
) -> Result<Vec<Way>> {
    let server = stack.members[leader].address.clone();
    let router = &stack.router;
    let of_router = |name: &str, port| -> Result<Way> {
        Ok(Way {
            name: name.to_owned(),
            host: router.address.clone(),
            port,
            process: Some(router.id()?),
            is_ours: true,
            _held: None,
        })
    };
    let mut ways = vec![
        Way {
            name: "direct".to_owned(),
            host: server.clone(),
            port: 5432,
            process: None,
            is_ours: true,
            _held: None,
        },
        of_router("router tcp", router.write_port)?,
        of_router("router transaction", POOLED_PORT)?,
    ];
    let mut setup = Setup {
        stack,
        server,
        port: FIRST_PORT,
        tls,
    };
    for way in &ways {
        let open = encryption::until_open(stack, &way.host, way.port, tls.is_some()).await;
        open.with_context(|| format!("no session through {}", way.name))?;
    }
    ways.push(setup.relay().await?);
    ways.push(setup.haproxy(program(rivals, "haproxy")?).await?);
    for pgbouncer in both(rivals, "pgbouncer")? {
        ways.push(setup.pgbouncer(pgbouncer).await?);
    }
    if let Some(odyssey) = rivals.map(|folder| folder.join("odyssey")) {
        ways.push(setup.odyssey(odyssey).await?);
    }
    Ok(ways)
}

/// From the folder of rivals, else of this system.
pub fn program(rivals: Option<&Path>, name: &str) -> Result<PathBuf> {
    let newer = rivals.map(|folder| folder.join(name));
    let found = newer.or_else(|| find(name));
    found.with_context(|| format!("{name} is missing: apt-get install {name}"))
}

/// From the folder of rivals, and of this system.
fn both(rivals: Option<&Path>, name: &str) -> Result<Vec<PathBuf>> {
    let mut found: Vec<_> = rivals.map(|folder| folder.join(name)).into_iter().collect();
    found.extend(find(name));
    if found.is_empty() {
        bail!("{name} is missing: apt-get install {name}");
    }
    Ok(found)
}

struct Setup<'a> {
    stack: &'a Stack,
    server: String,
    port: u16,
    tls: Option<&'a Certificate>,
}

impl Setup<'_> {
    async fn relay(&mut self) -> Result<Way> {
        let program = std::env::current_exe()?;
        let (listen, to) = (
            format!("{}:{}", self.stack.router.address, self.port),
            format!("{}:5432", self.server),
        );
        let words = args(["relay", &listen, &to, "--threads", &THREADS.to_string()]);
        self.start("null relay", program, words, false).await
    }

    async fn haproxy(&mut self, program: PathBuf) -> Result<Way> {
        let version = version(&program, "-v").await?;
        let (address, port, server) = (&self.stack.router.address, self.port, &self.server);
        let text = format!(
            "global\n  maxconn {HAPROXY_CLIENTS}\n  nbthread {THREADS}\ndefaults\n  mode tcp\n  timeout client 30m\n  \
             timeout connect 1s\n  timeout server 30m\nlisten pg\n  bind {address}:{port}\n  server n1 {server}:5432\n"
        );
        let file = self.stack.write("haproxy.cfg", &text)?;
        let words = args(["-db", "-f", &file.to_string_lossy()]);
        self.start(&format!("HAProxy {version}"), program, words, true)
            .await
    }

    async fn pgbouncer(&mut self, program: PathBuf) -> Result<Way> {
        let version = version(&program, "--version").await?;
        let users = self.stack.write("userlist.txt", &userlist())?;
        let statements = match version.starts_with("1.1") {
            true => "",
            false => "max_prepared_statements = 200\n",
        };
        let tls = match self.tls {
            Some(Certificate { cert, key }) => format!(
                "client_tls_sslmode = require\nclient_tls_cert_file = {}\nclient_tls_key_file = {}\n\
                 server_tls_sslmode = require\n",
                cert.display(),
                key.display()
            ),
            None => String::new(),
        };
        let text = format!(
            "[databases]\n* = host={server} port=5432\n[pgbouncer]\nlisten_addr = {address}\nlisten_port = {port}\n\
             unix_socket_dir =\nauth_type = scram-sha-256\nauth_file = {users}\npool_mode = transaction\n\
             max_client_conn = {MAX_CLIENTS}\ndefault_pool_size = {POOL_SIZE}\n{statements}{tls}\
             ignore_startup_parameters = extra_float_digits\nlog_connections = 0\nlog_disconnections = 0\n",
            server = self.server,
            address = self.stack.router.address,
            port = self.port,
            users = users.display(),
        );
        let file = self
            .stack
            .write(&format!("pgbouncer-{version}.ini"), &text)?;
        let words = args([&file.to_string_lossy().into_owned()]);
        self.start(&format!("PgBouncer {version}"), program, words, true)
            .await
    }

    async fn odyssey(&mut self, program: PathBuf) -> Result<Way> {
        let (of_client, of_server) = match self.tls {
            Some(Certificate { cert, key }) => (
                format!(
                    "tls \"require\" tls_cert_file \"{}\" tls_key_file \"{}\"",
                    cert.display(),
                    key.display()
                ),
                // Without an authority it believes no server, though it is not to verify any.
                format!("tls \"require\" tls_ca_file \"{}\"", cert.display()),
            ),
            None => (String::new(), String::new()),
        };
        let text = format!(
            "daemonize no\nworkers {THREADS}\nlog_to_stdout yes\nlog_format \"%p %t %l [%i %s] (%c) %m\\n\"\n\
             log_query no\nlog_session no\nlog_stats no\nclient_max {MAX_CLIENTS}\n\
             listen {{ host \"{address}\" port {port} {of_client} }}\n\
             storage \"pg\" {{ type \"remote\" host \"{server}\" port 5432 {of_server} }}\n\
             database default {{\n  user default {{\n    authentication \"scram-sha-256\"\n    \
             password \"{APP_PASSWORD}\"\n    storage \"pg\"\n    storage_user \"{APP}\"\n    \
             storage_password \"{APP_PASSWORD}\"\n    pool \"transaction\"\n    pool_size {POOL_SIZE}\n    \
             pool_reserve_prepared_statement yes\n    client_fwd_error yes\n  }}\n}}\n",
            address = self.stack.router.address,
            port = self.port,
            server = self.server,
        );
        let file = self.stack.write("odyssey.conf", &text)?;
        let words = args([&file.to_string_lossy().into_owned()]);
        self.start("Odyssey", program, words, true).await
    }

    /// Starts it, and waits until it carries a session. The stack's user may run what the system has, not what stands
    /// in a folder of the builder's.
    async fn start(
        &mut self,
        name: &str,
        program: PathBuf,
        words: Vec<std::ffi::OsString>,
        as_user: bool,
    ) -> Result<Way> {
        let launch = self.stack.tool(&program, &[]);
        let launch = Launch {
            args: words,
            user: launch.user.clone().filter(|_| as_user),
            ..launch
        };
        let mut process = launch.start(name)?;
        let (address, port) = (self.stack.router.address.clone(), self.port);
        self.port += 1;
        let open = encryption::until_open(self.stack, &address, port, self.tls.is_some()).await;
        open.with_context(|| format!("no session through {name}:\n{}", process.tail()))?;
        process.must_live()?;
        Ok(Way {
            name: name.to_owned(),
            host: address,
            port,
            process: Some(process.id()),
            is_ours: false,
            _held: Some(process),
        })
    }
}

/// Major and minor version, from what a program prints of itself.
pub async fn version(program: &Path, option: &str) -> Result<String> {
    let launch = Launch {
        program: program.to_owned(),
        args: args([option]),
        ..Launch::default()
    };
    let said = launch.finish(LIMIT).await?;
    let word = said
        .split_whitespace()
        .find(|word| word.starts_with(|c: char| c.is_ascii_digit()));
    let word = word.with_context(|| format!("{} names no version: {said}", program.display()))?;
    let parts: Vec<_> = word.split(['.', '-']).take(2).collect();
    Ok(parts.join("."))
}
