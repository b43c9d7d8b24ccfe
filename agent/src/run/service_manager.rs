//! Words to systemd, where it started the agent: `Type=notify` and `notify-reload`. Without a socket of its they go
//! nowhere.

use sd_notify::NotifyState;

/// The agent is at work: after its start, and after a reload.
pub(super) fn ready() {
    tell(&[NotifyState::Ready]);
}

/// A reload, or the execution of another program in this process, begins; [`ready`] ends it. systemd tells this
/// word from an earlier one by the time in it.
pub(super) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => tracing::debug!(%error, "the service manager is not told of a reload"),
    }
}

/// The agent was told to end.
pub(super) fn stopping() {
    tell(&[NotifyState::Stopping]);
}

fn tell(words: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(words) {
        tracing::debug!(%error, "the service manager was not told");
    }
}
