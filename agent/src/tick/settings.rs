//! Brings PostgreSQL's settings and the lease's length in line with the cluster's settings.

use std::sync::Arc;
use std::time::Duration;

use trunkline_shared::cluster::{ClusterSettings, Moment};

use crate::act::Actor;
use crate::api::LocalOutcome;
use crate::config::AgentConfig;
use crate::decide::Observation;
use crate::decide::observation::{Local, LocalRequest};
use crate::run::instance;

/// Longest time that the loop is held up by this.
const LIMIT: Duration = Duration::from_secs(1);

/// Reads the agent's file again; the error is for people.
pub type ReadConfig = Box<dyn Fn() -> Result<AgentConfig, String> + Send>;

/// What was applied last, and what there is to apply.
pub struct SettingsKeeper {
    config: AgentConfig,
    run_dir: std::path::PathBuf,
    read: ReadConfig,
    applied: Option<(Arc<ClusterSettings>, bool)>,
    /// After a failure the next attempt waits until then.
    again_at: Moment,
}

impl SettingsKeeper {
    /// Nothing applied yet.
    pub fn new(config: AgentConfig, run_dir: std::path::PathBuf, read: ReadConfig) -> Self {
        Self {
            config,
            run_dir,
            read,
            applied: None,
            again_at: Moment::default(),
        }
    }

    /// Reads the file again; it is applied by the next turn.
    pub fn reload(&mut self) -> LocalOutcome {
        match (self.read)() {
            Ok(config) => {
                self.config = config;
                self.applied = None;
                LocalOutcome::Done("reload scheduled".to_owned())
            }
            Err(why) => {
                tracing::error!(why, "the configuration is not reloaded");
                LocalOutcome::Failed(why)
            }
        }
    }

    /// Applies what changed. Never while a long job works on the instance.
    pub async fn bring_in_line(&mut self, seen: &Observation, actor: &Actor) {
        let Some(settings) = seen.topology().and_then(|t| t.settings.clone()) else {
            return;
        };
        let has_data = match &seen.local {
            Local::Empty | Local::Unknown(_) => false,
            Local::Stopped(_)
            | Local::Starting { .. }
            | Local::Running(_)
            | Local::Unresponsive { .. }
            | Local::Orphaned { .. } => true,
        };
        let is_applied =
            |applied: &(Arc<ClusterSettings>, bool)| applied.0 == settings && applied.1 == has_data;
        if seen.job.running.is_some() || self.applied.as_ref().is_some_and(is_applied) {
            return;
        }
        if seen.now.until(self.again_at) > Duration::ZERO {
            return;
        }
        let is_running = matches!(&seen.local, Local::Running(_));
        let applied = tokio::time::timeout(LIMIT, self.apply(&settings, is_running, actor)).await;
        let failed = match applied {
            Ok(Ok(())) => None,
            Ok(Err(why)) => Some(why),
            Err(_) => Some(format!("not done within {LIMIT:?}")),
        };
        if let Some(why) = failed {
            tracing::warn!(why, "the cluster's settings could not be applied; retrying");
            self.again_at = seen.now + settings.loop_wait;
            return;
        }
        if seen.request != Some(LocalRequest::Restart) {
            tracing::info!("the cluster's settings are applied");
        }
        self.applied = Some((settings, has_data));
    }

    async fn apply(
        &self,
        settings: &ClusterSettings,
        is_running: bool,
        actor: &Actor,
    ) -> Result<(), String> {
        let config = instance::postgres_config(&self.config, settings, &self.run_dir);
        actor.postgres.reconfigure(config).await;
        let granted = actor.lease.set_ttl(settings.ttl).await;
        granted.map_err(|error| error.to_string())?;
        if is_running {
            let applied = actor.postgres.apply_settings(settings.is_paused).await;
            applied.map_err(|error| error.to_string())?;
        }
        Ok(())
    }
}
