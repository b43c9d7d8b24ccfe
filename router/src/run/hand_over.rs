//! The hand-over to a new process: who takes the ports, and until when the old one stays in its place.
//!
//! The new process writes its pid, takes copies of the ports, learns the topology, and only then accepts and
//! announces itself. The old process goes on as if nothing had happened until it reads that announcement; if
//! the new one ends before, or takes too long, the old one simply stays.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pingora::server::ListenFds;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::time::{interval, sleep};

/// How long the new process may take to learn the topology; after that it gives up, and the old one stays.
pub(super) const READY_WITHIN: Duration = Duration::from_secs(10);
/// How long the old process waits for the new one: longer than that one tries, so that both come to the
/// same end.
const WAIT_FOR_SUCCESSOR: Duration = Duration::from_secs(15);
/// How often each of the two processes looks for the other.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Why no other process serves in this one's place. This one goes on.
#[derive(Debug, thiserror::Error)]
pub(super) enum HandOverError {
    /// Nobody waited for the ports.
    #[error(
        "no process took the ports over at {socket} ({why}); start trunkline-router --upgrade first"
    )]
    Nobody {
        /// Where they were offered.
        socket: String,
        /// The system's reason.
        why: String,
    },
    /// Who took them cannot be told.
    #[error("the process that took the ports over is not known: {} cannot be read ({why}); end it and start trunkline-router --upgrade again", .file.display())]
    Unknown {
        /// Where its pid should stand.
        file: PathBuf,
        /// Why not.
        why: io::Error,
    },
    /// It ended too early.
    #[error(
        "process {pid} took the ports over and ended before it was ready; its own log says why; mend that, start trunkline-router --upgrade again and send SIGQUIT once more"
    )]
    Ended {
        /// The new process.
        pid: i32,
    },
    /// It lives and does not announce itself.
    #[error("process {pid} took the ports over and was not ready after {} s; end it, look into its log, start trunkline-router --upgrade again and send SIGQUIT once more", WAIT_FOR_SUCCESSOR.as_secs())]
    NotReady {
        /// The new process.
        pid: i32,
    },
    /// A defect.
    #[error("the hand-over failed: {0}; this is a defect")]
    Defect(String),
}

/// The files of the runtime folder by which two processes know each other.
pub(super) struct Meeting {
    /// Names the process that serves.
    serving: PathBuf,
    /// Names the one that is about to take over.
    coming: PathBuf,
    /// Where the ports change hands.
    pub(super) socket: String,
}

impl Meeting {
    /// In this folder.
    pub(super) fn new(folder: &Path) -> Self {
        Self {
            serving: folder.join("router.pid"),
            coming: folder.join("upgrade.pid"),
            socket: folder.join("upgrade.sock").to_string_lossy().into_owned(),
        }
    }

    /// Says who is about to take over, before the ports are asked for. Returns the process that serves now,
    /// if there is one.
    pub(super) fn come(&self) -> io::Result<Option<OwnedFd>> {
        fs::write(&self.coming, format!("{}\n", std::process::id()))?;
        Ok(pid_in(&self.serving)
            .ok()
            .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok()))
    }

    /// Says who serves now.
    pub(super) fn announce(&self) -> io::Result<()> {
        fs::write(&self.serving, format!("{}\n", std::process::id()))
    }

    /// Takes the announcement back, unless another process has made its own by now.
    pub(super) fn leave(&self) {
        if pid_in(&self.serving).is_ok_and(|pid| pid == rustix::process::getpid()) {
            let _ = fs::remove_file(&self.serving);
        }
    }

    /// Gives copies of the ports to the process started with `--upgrade`, and waits until it serves.
    ///
    /// # Errors
    /// It does not, so that the caller must go on.
    pub(super) async fn hand_over(&self, fds: &ListenFds) -> Result<i32, HandOverError> {
        let (fds, socket) = (fds.clone(), self.socket.clone());
        let sent = tokio::task::spawn_blocking(move || fds.lock().send_to_sock(socket.as_str()));
        sent.await
            .map_err(|defect| HandOverError::Defect(defect.to_string()))?
            .map_err(|why| HandOverError::Nobody {
                socket: self.socket.clone(),
                why: why.to_string(),
            })?;
        let successor = pid_in(&self.coming).map_err(|why| HandOverError::Unknown {
            file: self.coming.clone(),
            why,
        })?;
        let pid = successor.as_raw_nonzero().get();
        // A process that is gone already has no descriptor to be had.
        let lives = pidfd_open(successor, PidfdFlags::empty());
        tokio::select! {
            () = self.announced(successor) => Ok(pid),
            () = ended(lives.ok()) => Err(HandOverError::Ended { pid }),
            () = sleep(WAIT_FOR_SUCCESSOR) => Err(HandOverError::NotReady { pid }),
        }
    }

    async fn announced(&self, successor: Pid) {
        let mut look = interval(LOOK_EVERY);
        while pid_in(&self.serving).ok() != Some(successor) {
            look.tick().await;
        }
    }
}

/// Waits for the end of a process; without a descriptor it is over already.
pub(super) async fn ended(process: Option<OwnedFd>) {
    let Some(process) = process else { return };
    let mut look = interval(LOOK_EVERY);
    loop {
        look.tick().await;
        // Readable is the end; what cannot be watched any more is taken for it, too.
        let mut watched = [PollFd::new(&process, PollFlags::IN)];
        if !matches!(poll(&mut watched, Some(&Timespec::default())), Ok(0)) {
            return;
        }
    }
}

fn pid_in(file: &Path) -> io::Result<Pid> {
    let text = fs::read_to_string(file)?;
    let pid = text.trim().parse().ok().and_then(Pid::from_raw);
    pid.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "it holds no pid"))
}
