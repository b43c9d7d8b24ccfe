//! `synchronized_standby_slots` (17 and later), in a file of its own that the settings include last.

use std::path::PathBuf;
use std::sync::PoisonError;
use std::time::Duration;

use super::config::PostgresConfig;
use super::files::{remove_file, sync_directory, write_file};
use super::settings::{HEADER, SLOTS_CONF, is_known_to, quote, read_setting};
use super::{Postgres, PostgresError};

/// The parameter.
const NAME: &str = "synchronized_standby_slots";

fn path(config: &PostgresConfig) -> PathBuf {
    config.config_dir().join(SLOTS_CONF)
}

/// Who is promoted begins anew: nobody waits for the standbys of another leader.
pub(super) fn forget(config: &PostgresConfig) -> Result<(), PostgresError> {
    remove_file(&path(config))
}

impl Postgres {
    /// Sets the parameter to these names and reloads. It comes into force a moment later.
    pub async fn set_synchronized_slots(&self, names: String) -> Result<(), PostgresError> {
        let (config, turn) = (self.config(), self.sync_conf.clone());
        let writing = move || {
            // One that hung on a slow disk must not overtake a later one.
            let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
            let text = format!("{HEADER}{NAME} = {}\n", quote(&names));
            write_file(&path(&config), &text)?;
            sync_directory(config.config_dir())
        };
        match tokio::task::spawn_blocking(writing).await {
            Ok(written) => written?,
            Err(_) => {
                return Err(PostgresError::Timeout {
                    what: "writing synchronized_standby_slots, which was cut off by the end of the agent",
                    after: Duration::ZERO,
                });
            }
        }
        if self.adopt().is_some() {
            self.reload()?;
        }
        Ok(())
    }

    /// Whether the parameter is the agent's to set: this version knows it, and the user has not.
    pub fn may_synchronize_slots(&self, major: u32) -> bool {
        is_known_to(NAME, major) && !self.config().parameters.contains_key(NAME)
    }

    /// What [`Self::set_synchronized_slots`] set last, if anything.
    pub fn synchronized_slots(&self) -> Option<Vec<String>> {
        let text = std::fs::read_to_string(path(&self.config())).ok()?;
        let value = read_setting(&text, NAME)?;
        let names = value.split(',').filter(|name| !name.is_empty());
        Some(names.map(str::to_owned).collect())
    }
}
