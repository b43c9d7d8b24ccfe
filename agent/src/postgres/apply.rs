//! Writes the settings for what runs, or is to run, and tells what of them waits for a restart.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use trunkline_shared::cluster::member::ParameterChange;

use super::config::PostgresConfig;
use super::control_data::ControlState;
use super::controlled::controlled;
use super::files::{self, ServerRole, UpstreamChange};
use super::settings::{self, BASE_CONF, read_setting};
use super::status::ServerStatus;
use super::{Postgres, PostgresError};

impl Postgres {
    /// Writes the files anew for the role the directory is in, and reloads the server if it runs. In
    /// maintenance (`is_paused`) the server restarts itself after a crash, until this is called again. What
    /// needs a restart shows in [`Self::pending_restart`].
    pub async fn apply_settings(&self, is_paused: bool) -> Result<(), PostgresError> {
        let config = self.config();
        let role = if files::is_replica(&config.data_dir) {
            ServerRole::Replica(UpstreamChange::Keep)
        } else {
            ServerRole::Primary
        };
        self.is_paused.store(is_paused, Ordering::Relaxed);
        self.write_settings(role).await?;
        if self.adopt().is_some() {
            self.reload()?;
        }
        Ok(())
    }

    /// Writes every file for `role` and returns the parameters on which members agree.
    pub(super) async fn write_settings(
        &self,
        role: ServerRole,
    ) -> Result<BTreeMap<&'static str, String>, PostgresError> {
        let (mut role, mut is_unproved) = (role, false);
        let floor = match role {
            ServerRole::Primary | ServerRole::Recovering => None,
            ServerRole::Replica(_) => {
                let data = self.control_data().await?;
                is_unproved = self.mark_unproved(&self.config(), &data)?;
                // What a primary that ended cleanly may have kept is whom it followed before it led.
                let is_kept = role == ServerRole::Replica(UpstreamChange::Keep);
                if is_unproved || is_kept && data.state == ControlState::ShutDown {
                    role = ServerRole::Replica(UpstreamChange::Nowhere);
                }
                Some(data.shared_memory)
            }
        };
        let program = self.program("postgres");
        let config = files::as_known_here(&self.config());
        let mut config = self.answers.look(program, &config).await;
        if is_unproved {
            let nothing = ("restore_command".to_owned(), String::new());
            config.recovery.extend([nothing]);
        }
        let config = Arc::new(config);
        let controlled = controlled(&config, floor);
        let (for_files, is_paused) = (controlled.clone(), self.is_paused.load(Ordering::Relaxed));
        // Files are synced; a slow disk must not hold up the tasks of this runtime.
        let writing = move || files::write_all(&config, &for_files, &role, is_paused);
        match tokio::task::spawn_blocking(writing).await {
            Ok(result) => result.map(|()| controlled),
            Err(_) => Err(PostgresError::Timeout {
                what: "writing the settings, which was cut off by the end of the agent",
                after: Duration::ZERO,
            }),
        }
    }

    /// What would change with a restart. The server itself cannot tell of the parameters on its command line, for a
    /// file never wins over that. A replica's larger value, kept until it has replayed the primary's smaller one,
    /// is among them.
    pub fn pending_restart(&self, status: &ServerStatus) -> BTreeMap<Arc<str>, ParameterChange> {
        let raw = files::as_known_here(&self.config());
        let config = self.answers.kept(self.program("postgres"), &raw);
        let config = config.as_ref().unwrap_or(&raw);
        let wanted = controlled(config, None);
        let of_the_cluster = status.controlled.iter().filter_map(|(name, in_use)| {
            let wanted = wanted.get(name.as_str())?;
            (wanted != in_use).then(|| (name.as_str(), in_use.as_str(), wanted.clone()))
        });
        let of_the_files = status.pending_restart.iter().map(|waiting| {
            let new = in_the_files(config, &waiting.name);
            (
                waiting.name.as_str(),
                waiting.in_use.as_str(),
                new.unwrap_or_else(|| waiting.default.clone()),
            )
        });
        of_the_files
            .chain(of_the_cluster)
            .map(|(name, old, new)| {
                let change = ParameterChange {
                    old: Arc::from(old),
                    new: Arc::from(new.as_str()),
                };
                (Arc::from(name), change)
            })
            .collect()
    }
}

/// The value that the next start would read: of the files, in the order in which the server reads them, the last one
/// that has it.
fn in_the_files(config: &PostgresConfig, name: &str) -> Option<String> {
    let folder = config.config_dir();
    let base = folder.join(BASE_CONF);
    let base = config.custom_conf.clone().unwrap_or(base);
    let files = [
        config.data_dir.join("postgresql.auto.conf"),
        folder.join(settings::SYNC_CONF),
        folder.join(settings::SLOTS_CONF),
        folder.join("postgresql.conf"),
        base,
    ];
    files.iter().find_map(|path| {
        let text = std::fs::read_to_string(path).ok()?;
        read_setting(&text, name)
    })
}
