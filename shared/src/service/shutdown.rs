//! Signals to values: what the operator or the service manager asks for.

use tokio::signal::unix::{Signal, SignalKind, signal};

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// SIGTERM or SIGINT: end cleanly. A second one: end now.
    Stop,
    /// SIGHUP: read the configuration again.
    Reload,
    /// SIGUSR2: re-execute the binary on disk.
    Reexecute,
    /// SIGQUIT: hand over to a new process.
    HandOver,
}

/// The signals of this process. Made once: a signal is taken from then on and no longer ends the process.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
    user_2: Signal,
    quit: Signal,
}

impl Signals {
    /// Takes the signals over.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
            user_2: signal(SignalKind::user_defined2())?,
            quit: signal(SignalKind::quit())?,
        })
    }

    /// The next request. Cancel-safe.
    pub async fn next(&mut self) -> Request {
        tokio::select! {
            _ = self.terminate.recv() => Request::Stop,
            _ = self.interrupt.recv() => Request::Stop,
            _ = self.hang_up.recv() => Request::Reload,
            _ = self.user_2.recv() => Request::Reexecute,
            _ = self.quit.recv() => Request::HandOver,
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::process::{Signal as Sent, getpid, kill_process};

    use super::*;

    #[tokio::test]
    async fn each_signal_is_a_request() {
        let mut signals = Signals::new().unwrap();
        for (sent, expected) in [
            (Sent::HUP, Request::Reload),
            (Sent::TERM, Request::Stop),
            (Sent::INT, Request::Stop),
            (Sent::USR2, Request::Reexecute),
            (Sent::QUIT, Request::HandOver),
        ] {
            kill_process(getpid(), sent).unwrap();
            assert_eq!(signals.next().await, expected);
        }
    }
}
