//! Cancels between the processes of one hand-over. From it on the ports and the HTTP endpoint are the new process's, while
//! sessions of the old one go on: a key that the new one does not know goes to the old one by a socket in the runtime
//! folder, which nobody else may enter. What comes that way is offered to nobody else.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::{Pid, test_kill_process};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tracing::warn;

use crate::fleet::cancels::{Asker, CancelKey, Carrier, Found, OFFER_TIME, look_here};
use crate::listener::limits::MAX_CANCELS;

/// The most processes of one runtime folder that a key is offered to: one serves, the others drain.
const MAX_PROCESSES: usize = 8;
/// Pause after the system had no descriptor left for a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// The answer of a process that had the key.
const TAKEN: u8 = b'Y';
/// The answer of one that had not.
const UNKNOWN: u8 = b'N';

/// This process's place in the runtime folder.
#[derive(Clone, Debug)]
pub struct Beside {
    folder: PathBuf,
    own: String,
}

/// The process in a socket's name, and whether it is one.
fn process_of(name: &str) -> Option<&str> {
    let instance = name.strip_prefix("cancel-")?.strip_suffix(".sock")?;
    instance.split('-').next()
}

fn is_alive(process: &str) -> bool {
    let pid = process.parse().ok().and_then(Pid::from_raw);
    pid.is_some_and(|pid| test_kill_process(pid) != Err(rustix::io::Errno::SRCH))
}

impl Beside {
    /// The place of this instance.
    pub fn new(folder: &Path, instance: &str) -> Self {
        Self {
            folder: folder.to_owned(),
            own: format!("cancel-{instance}.sock"),
        }
    }

    /// Takes keys from the other processes until it is dropped. Without its socket the router goes on.
    pub async fn serve(&self, carrier: Carrier) {
        self.sweep();
        let path = self.folder.join(&self.own);
        let listener = match UnixListener::bind(&path) {
            Ok(listener) => listener,
            Err(error) => {
                let path = path.display();
                warn!(%path, "cancels will not find sessions that outlive a hand-over: the socket cannot be made: {error}");
                return;
            }
        };
        let _removed = Removed(path);
        let mut asked = JoinSet::new();
        loop {
            tokio::select! {
                accepted = listener.accept(), if asked.len() < MAX_CANCELS => match accepted {
                    Ok((stream, _)) => {
                        asked.spawn(answer(stream, carrier.clone()));
                    }
                    Err(_) => sleep(ACCEPT_PAUSE).await,
                },
                Some(_) = asked.join_next() => {}
            }
        }
    }

    /// Removes what processes left that are gone.
    fn sweep(&self) {
        for name in self.names() {
            if process_of(&name).is_some_and(|process| !is_alive(process)) {
                // It was a socket of ours, and nobody listens there: whether it goes does not matter.
                let _ = std::fs::remove_file(self.folder.join(name));
            }
        }
    }

    fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(&self.folder).into_iter().flatten();
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let others = names.filter(|name| process_of(name).is_some() && *name != self.own);
        others.take(MAX_PROCESSES).collect()
    }

    /// Whether one of the other processes had the key.
    pub async fn offer(&self, key: &CancelKey) -> bool {
        let mut asking = JoinSet::new();
        for name in self.names() {
            let (path, packet) = (self.folder.join(name), key.packet());
            asking.spawn(async move {
                let asked = timeout(OFFER_TIME, ask(&path, &packet)).await;
                asked.is_ok_and(|answer| answer.is_ok_and(|answer| answer == TAKEN))
            });
        }
        while let Some(taken) = asking.join_next().await {
            if taken.is_ok_and(|is_taken| is_taken) {
                return true;
            }
        }
        false
    }
}

/// Removes the socket's name when it is dropped.
struct Removed(PathBuf);

impl Drop for Removed {
    fn drop(&mut self) {
        // The next process sweeps what is left.
        let _ = std::fs::remove_file(&self.0);
    }
}

async fn ask(path: &Path, packet: &[u8]) -> io::Result<u8> {
    let mut stream = UnixStream::connect(path).await?;
    stream.write_all(packet).await?;
    stream.read_u8().await
}

async fn answer(mut stream: UnixStream, carrier: Carrier) {
    let Ok(Ok(key)) = timeout(OFFER_TIME, CancelKey::read(&mut stream)).await else {
        return;
    };
    let Carrier { registry, limits } = &carrier;
    let answer = match look_here(registry, limits, &key, Asker::Beside).await {
        Found::Here => TAKEN,
        Found::Nowhere | Found::TooMany => UNKNOWN,
    };
    // Whoever asked may have stopped waiting.
    let _ = stream.write_all(&[answer]).await;
}
