//! Brings PostgreSQL's settings and the lease's length in line with the cluster's settings.

use std::sync::Arc;

use trunkline_shared::cluster::ClusterSettings;

use crate::act::Actor;
use crate::api::LocalOutcome;
use crate::config::AgentConfig;
use crate::decide::Observation;
use crate::decide::observation::{Local, LocalRequest};
use crate::run::instance;

/// Reads the agent's file again; the error is for people.
pub type ReadConfig = Box<dyn Fn() -> Result<AgentConfig, String> + Send>;

/// What was applied last, and what there is to apply.
pub struct SettingsKeeper {
    config: AgentConfig,
    run_dir: std::path::PathBuf,
    read: ReadConfig,
    applied: Option<(Arc<ClusterSettings>, bool)>,
}

impl SettingsKeeper {
    /// Nothing applied yet.
    pub fn new(config: AgentConfig, run_dir: std::path::PathBuf, read: ReadConfig) -> Self {
        Self {
            config,
            run_dir,
            read,
            applied: None,
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
        let config = instance::postgres_config(&self.config, &settings, &self.run_dir);
        actor.postgres.reconfigure(config).await;
        if let Err(error) = actor.lease.set_ttl(settings.ttl).await {
            tracing::warn!(%error, "the lease's new length is not in force yet");
            return;
        }
        if let Local::Running(_) = &seen.local
            && let Err(error) = actor.postgres.apply_settings(settings.is_paused).await
        {
            tracing::warn!(%error, "PostgreSQL's settings could not be brought in line; retrying");
            return;
        }
        if seen.request != Some(LocalRequest::Restart) {
            tracing::info!("the cluster's settings are applied");
        }
        self.applied = Some((settings, has_data));
    }
}
