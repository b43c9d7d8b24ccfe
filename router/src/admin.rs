//! The console: PgBouncer's commands on database `pgbouncer` (or `trunkline`) of every pooled listener, and on a port of
//! its own. Its sessions have no pool and no server; what they show is gathered from the cores when it is asked for.

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};
use tracing::info;
use trunkline_shared::service::clock;

use crate::admin::commands::{Command, SETTINGS, Show};
use crate::admin::desk::{Desk, Order};
use crate::admin::gather::{Left, Silent, Which, gather, left};
use crate::admin::line::{Ends, Interrupted, Line};
use crate::admin::refusal::Failed;
use crate::admin::show::{HELP, Port, Snapshot, VERSION};
use crate::admin::standing::{fellows, seats};
use crate::config::admin::{Role, is_console};
use crate::cores;
use crate::error::SessionError;
use crate::listener::Listening;
use crate::pool::gate::Gate;
use crate::pool::registry::{Kill, Registry};
use crate::pool::view::look_everywhere;
use crate::protocol::messages::{self, AUTHENTICATION_OK, Severity};
use crate::protocol::splice::text;
use crate::protocol::sqlstate;
use crate::roster::{self, Listed, Newcomer, Place};
use crate::stream::Stream;

pub mod commands;
pub mod consoles;
pub mod desk;
pub mod gather;
mod line;
mod refusal;
pub mod show;
mod standing;
pub mod table;

/// How soon a command that waits looks again whether what it waits for is so. Each time it waits twice as long.
const FIRST_LOOK: Duration = Duration::from_millis(20);
/// But not longer than this.
const LAST_LOOK: Duration = Duration::from_millis(160);
/// How long `RELOAD` waits for its answer: longer than a hand-over to another process, which goes before it.
const RELOAD_TIME: Duration = Duration::from_secs(30);

/// An operator who has logged in.
pub struct Visit {
    /// Where.
    pub listening: Arc<Listening>,
    /// What pooled listeners share.
    pub registry: Arc<Registry>,
    /// The connection.
    pub stream: Stream,
    /// What was read behind the log-in.
    pub bytes: Vec<u8>,
    /// Where it comes from.
    pub peer: std::net::SocketAddr,
    /// Who.
    pub user: String,
    /// The console, as it was called.
    pub database: String,
    /// What it said it is.
    pub application: Option<String>,
    /// What the operator may.
    pub role: Role,
}

/// What a command comes to.
enum Done {
    /// Its tag, behind what was written.
    Tag(String),
    /// Nothing: the session ends before it is done.
    Not(Interrupted),
}

struct Console {
    registry: Arc<Registry>,
    listening: Arc<Listening>,
    line: Line,
    role: Role,
    user: String,
    card: Listed,
    /// An error was told: everything up to the next Sync is skipped.
    is_skipping: bool,
}

/// Serves an operator until one of both has enough.
///
/// # Errors
/// The session ends before its time; the client has been told.
pub async fn serve(visit: Visit) -> Result<(), SessionError> {
    let mut console = match Console::enter(visit) {
        Ok(console) => console,
        Err(mut stream) => {
            let error = SessionError::TooMuch(
                "too many sessions of the console (32 at once, 28 of them of stats_users), and none that is idle may give way",
            );
            crate::session::relay::say(&mut stream, &error).await;
            return Err(error);
        }
    };
    let outcome = console.run().await;
    if let Err(error) = &outcome {
        crate::session::relay::say(&mut console.line.stream, error).await;
    }
    outcome
}

impl Console {
    /// Takes a seat; the stream comes back where there is none.
    fn enter(visit: Visit) -> Result<Self, Stream> {
        let position = Place {
            scope: "".into(),
            database: visit.database.into(),
            user: visit.user.as_str().into(),
            listener: visit.listening.address.as_str().into(),
        };
        let card = Listed::new(Newcomer {
            place: Arc::new(position),
            mode: None,
            replication: None,
            peer: visit.peer,
            local: visit.stream.socket().local_addr().ok(),
            tls: visit.stream.tls_name(),
            now: clock::now(),
        });
        let mut settings = crate::protocol::settings::Settings::default();
        settings.set(
            "application_name",
            visit.application.as_deref().unwrap_or(""),
        );
        card.tell(roster::Told {
            settings: Arc::new(settings),
            ..roster::Told::default()
        });
        let desk = &visit.registry.desk;
        let Some(seat) = desk.consoles.sit_down(card.id, visit.role, clock::now()) else {
            return Err(visit.stream);
        };
        let ends = Ends {
            mailbox: card.mailbox.clone(),
            seat,
            over: desk.over.clone(),
        };
        Ok(Self {
            registry: visit.registry,
            listening: visit.listening,
            line: Line {
                stream: visit.stream,
                bytes: visit.bytes,
                ends,
            },
            role: visit.role,
            user: visit.user,
            card,
            is_skipping: false,
        })
    }

    fn desk(&self) -> &Desk {
        &self.registry.desk
    }

    async fn run(&mut self) -> Result<(), SessionError> {
        let greeting = self.greeting()?;
        self.line.send(&greeting).await?;
        loop {
            let Some((kind, body)) = self.line.message().await? else {
                return Ok(());
            };
            let mut out = Vec::new();
            match kind {
                b'X' => return Ok(()),
                b'S' => {
                    self.is_skipping = false;
                    messages::ready(&mut out, b'I');
                }
                _ if self.is_skipping => {}
                b'Q' => {
                    let sql = text(&body).map_or(&body[..], |(sql, _)| sql);
                    let sql = String::from_utf8_lossy(sql).into_owned();
                    if self.query(&sql, &mut out).await?.is_none() {
                        return Ok(());
                    }
                }
                b'P' | b'B' | b'D' | b'E' | b'C' | b'H' => {
                    let why = "extended query protocol not supported by admin console";
                    self.is_skipping = true;
                    refuse(&mut out, why);
                }
                b'F' => {
                    refuse(
                        &mut out,
                        "function calls are not supported by admin console",
                    );
                    messages::ready(&mut out, b'I');
                }
                kind => {
                    return Err(SessionError::BadMessage {
                        kind: char::from(kind),
                        length: u32::try_from(body.len() + 4).unwrap_or(u32::MAX),
                    });
                }
            }
            self.line.send(&out).await?;
        }
    }

    fn greeting(&self) -> Result<Vec<u8>, SessionError> {
        let mut out = AUTHENTICATION_OK.to_vec();
        messages::parameter_status(&mut out, "server_version", "1.26.1/bouncer");
        messages::parameter_status(&mut out, "pgbouncer.version", VERSION);
        for (name, value) in SETTINGS {
            messages::parameter_status(&mut out, name, value);
        }
        let is_admin = if self.role == Role::Admin {
            "on"
        } else {
            "off"
        };
        messages::parameter_status(&mut out, "is_superuser", is_admin);
        let key = self.registry.new_key();
        let (process, secret) = key.map_err(|_| SessionError::TooMuch("no random numbers"))?;
        messages::backend_key(&mut out, process, &secret);
        messages::ready(&mut out, b'I');
        Ok(out)
    }

    /// Carries one command out and writes what it comes to; `None`: the client is gone.
    async fn query(&mut self, sql: &str, out: &mut Vec<u8>) -> Result<Option<()>, SessionError> {
        self.card.asks(clock::now());
        match self.command(sql, out).await {
            Ok(Done::Tag(tag)) => messages::command_complete(out, &tag),
            Ok(Done::Not(Interrupted::Gone)) => return Ok(None),
            Ok(Done::Not(Interrupted::Ordered(error))) => return Err(error),
            Err(failed) => refuse(out, &failed.to_string()),
        }
        messages::ready(out, b'I');
        Ok(Some(()))
    }

    async fn command(&mut self, sql: &str, out: &mut Vec<u8>) -> Result<Done, Failed> {
        let command = Command::parse(sql)?;
        if self.role != Role::Admin && !command.only_looks() {
            return Err(Failed::OnlyLooks);
        }
        if !command.only_looks() {
            info!(user = %self.user, peer = %self.card.peer, ?command, "an operator's command");
        }
        Ok(Done::Tag(match command {
            Command::Show(Show::Help) => {
                messages::notice(out, "Console usage", Some(HELP));
                "SHOW".to_owned()
            }
            Command::Show(what) => {
                show::table(what, &self.snapshot().await?).write(out);
                "SHOW".to_owned()
            }
            Command::SetIgnored => {
                messages::notice(out, "SET ignored", None);
                "SET".to_owned()
            }
            Command::Set { key, value } => {
                let now = self.registry.in_force.current();
                let mut pool = now.pooling.pool.clone();
                pool.set(&key, &value)?;
                if !self.registry.in_force.exchange(&now, now.with_pool(pool)) {
                    return Err(Failed::Overtaken);
                }
                format!("SET {key}={value}")
            }
            Command::Pause(database) => return self.pause(database).await,
            Command::Resume(database) => self.resume(database)?,
            Command::Disable(database) => {
                let database = self.database("disable", database)?;
                self.registry.gates.of(&database).disable(true);
                "DISABLE".to_owned()
            }
            Command::Enable(database) => {
                let database = self.database("disable", database)?;
                self.registry.gates.of(&database).disable(false);
                "ENABLE".to_owned()
            }
            Command::Reconnect(database) => {
                let now = clock::now();
                for gate in self.gates("reconnect", database.as_deref())? {
                    gate.renew(now);
                }
                look_everywhere();
                "RECONNECT".to_owned()
            }
            Command::Kill(database) => self.kill(database).await?,
            Command::KillClient(id) => self.kill_client(id).await?,
            Command::WaitClose(database) => {
                let database = match database {
                    Some(database) => Some(self.database("wait for", database)?.into()),
                    None => None,
                };
                return self.wait("WAIT_CLOSE", Left::Old, database).await;
            }
            Command::Reload => return self.reload().await,
            Command::Shutdown(wait) => {
                self.order(Order::Stop(wait))?;
                "SHUTDOWN".to_owned()
            }
        }))
    }

    async fn pause(&self, database: Option<String>) -> Result<Done, Failed> {
        match &database {
            None if self.registry.gates.is_all_paused() => return Err(Failed::Paused),
            None => self.registry.gates.pause_all(true),
            Some(database) => {
                let database = self.database("pause", database.clone())?;
                self.registry.gates.of(&database).pause(true);
            }
        }
        look_everywhere();
        let database = database.map(Into::into);
        self.wait("PAUSE", Left::All, database).await
    }

    fn resume(&self, database: Option<String>) -> Result<String, Failed> {
        match database {
            None => {
                let each = self.registry.gates.all();
                let is_paused = self.registry.gates.is_all_paused()
                    || each.iter().any(|(_, gate)| gate.is_paused());
                if !is_paused {
                    return Err(Failed::NotPaused);
                }
                self.registry.gates.pause_all(false);
            }
            Some(database) => {
                let database = self.database("resume", database)?;
                let gate = self.registry.gates.of(&database);
                if !gate.is_paused() {
                    return Err(Failed::DatabaseNotPaused(database));
                }
                gate.pause(false);
            }
        }
        look_everywhere();
        Ok("RESUME".to_owned())
    }

    /// Ends the clients of a database, or of all, with their servers; those who come later wait until `RESUME`.
    async fn kill(&self, database: Option<String>) -> Result<String, Failed> {
        match &database {
            None => self.registry.gates.pause_all(true),
            Some(database) => {
                let database = self.database("kill", database.clone())?;
                self.registry.gates.of(&database).pause(true);
            }
        }
        let mut killing = Vec::new();
        for core in cores::peers().iter().flat_map(|peers| peers.all.iter()) {
            let database = database.clone();
            killing.push(core.spawn(async move {
                roster::kill(Kill::Database, |card| {
                    let own = &*card.place.database;
                    let is_meant = database.as_ref().is_none_or(|name| **name == *own);
                    card.mode.is_some() && is_meant
                })
            }));
        }
        for core in killing {
            // One that ends takes its clients with it.
            let _ = core.await;
        }
        look_everywhere();
        Ok("KILL".to_owned())
    }

    async fn kill_client(&self, id: u32) -> Result<String, Failed> {
        let mut killed = 0;
        for core in cores::peers().iter().flat_map(|peers| peers.all.iter()) {
            let killing =
                core.spawn(async move { roster::kill(Kill::Client, |card| card.id == id) });
            killed += killing.await.unwrap_or(0);
        }
        match killed {
            0 => Err(Failed::NoClient),
            _ => Ok("KILL_CLIENT".to_owned()),
        }
    }

    async fn reload(&self) -> Result<Done, Failed> {
        let (told, hear) = oneshot::channel();
        self.order(Order::Reload(told))?;
        let answer = match self.line.meanwhile(timeout(RELOAD_TIME, hear)).await {
            Ok(answer) => answer,
            Err(interrupted) => return Ok(Done::Not(interrupted)),
        };
        match answer {
            Ok(Ok(true)) => Ok(Done::Tag("RELOAD".to_owned())),
            Ok(Ok(false)) => Err(Failed::NotReloaded),
            Ok(Err(_)) => Err(Failed::NoConductor),
            Err(_) => Err(Failed::Unanswered(RELOAD_TIME)),
        }
    }

    fn order(&self, order: Order) -> Result<(), Failed> {
        let orders = self.desk().orders.get().ok_or(Failed::NoConductor)?;
        orders.try_send(order).map_err(|_| Failed::NoConductor)
    }

    /// Waits until nothing is left, or the client is gone or the session is to end. What was ordered holds in any case.
    async fn wait(&self, tag: &str, of: Left, database: Which) -> Result<Done, Failed> {
        let cores = all_cores();
        let waiting = async {
            let mut pause = FIRST_LOOK;
            while left(of, &cores, database.clone()).await? > 0 {
                sleep(pause).await;
                pause = LAST_LOOK.min(pause * 2);
            }
            Ok(Done::Tag(tag.to_owned()))
        };
        match self.line.meanwhile(waiting).await {
            Ok(done) => done,
            Err(interrupted) => Ok(Done::Not(interrupted)),
        }
    }

    /// A database that an operator may mean.
    fn database(&self, verb: &'static str, name: String) -> Result<String, Failed> {
        if is_console(&name) {
            return Err(Failed::IsConsole(verb, name));
        }
        match self.registry.config().has_database(&name) {
            true => Ok(name),
            false => Err(Failed::NoDatabase(name)),
        }
    }

    /// The gates of one database, or of all that are known.
    fn gates(&self, verb: &'static str, database: Option<&str>) -> Result<Vec<Arc<Gate>>, Failed> {
        let Some(database) = database else {
            let all = self.registry.gates.all().into_iter();
            return Ok(all.map(|(_, gate)| gate).collect());
        };
        let name = self.database(verb, database.to_owned())?;
        Ok(vec![self.registry.gates.of(&name)])
    }

    async fn snapshot(&self) -> Result<Snapshot, Silent> {
        let own = [self.listening.clone()];
        let listenings = self.desk().listenings.get().map_or(&own[..], |all| all);
        let ports = listenings.iter().map(|listening| Port {
            address: listening.address.clone(),
            mode: listening.mode,
            is_console: listening.is_console,
            max_client_conn: listening.max_client_conn(),
        });
        Ok(Snapshot {
            views: gather(&all_cores()).await?,
            now: clock::now(),
            wall: clock::wall_clock(),
            config: self.registry.config(),
            gates: self.registry.gates.all(),
            is_all_paused: self.registry.gates.is_all_paused(),
            ports: ports.collect(),
            newcomers: self.listening.limits.newcomers(),
            sample: self.desk().sample(),
            topology: seats(&self.listening.clusters.all()),
            routers: fellows(self.listening.others.get()),
        })
    }
}

/// Those that carry sessions, and this one.
fn all_cores() -> Arc<[Handle]> {
    cores::peers().map_or_else(|| Arc::from([]), |peers| peers.all)
}

fn refuse(out: &mut Vec<u8>, why: &str) {
    messages::error(
        out,
        Severity::Error,
        sqlstate::PROTOCOL_VIOLATION,
        why,
        None,
    );
}
