//! Brings PostgreSQL's settings and the lease's length in line with the cluster's settings.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use trunkline_shared::cluster::topology::Initialize;
use trunkline_shared::cluster::{ClusterSettings, Moment};

use crate::act::Actor;
use crate::api::LocalOutcome;
use crate::config::reload::{Part, take_up};
use crate::config::{AgentConfig, Warning, WatchdogConfig, dynamic, layers};
use crate::decide::Observation;
use crate::decide::callbacks::{Callback, CallbackRole};
use crate::decide::observation::{Local, LocalRequest, Me, RunningRole};
use crate::run::{self, instance};

/// Longest time that the loop is held up by this.
const LIMIT: Duration = Duration::from_secs(1);

/// Reads the agent's file again, with what may not be as it was meant; the error is for people.
pub type ReadConfig = Arc<dyn Fn() -> Result<(AgentConfig, Vec<Warning>), String> + Send + Sync>;

/// Takes up what of a file that was read again concerns neither PostgreSQL nor the lease. What could not be taken up is
/// as it was, and is returned with the reason for people.
pub type TakeUp = Box<dyn Fn(&AgentConfig) -> Vec<(Part, String)> + Send>;

/// What was applied last, and what there is to apply.
pub struct SettingsKeeper {
    /// As the file has it.
    config: AgentConfig,
    /// The same over what the cluster's configuration says to every member.
    in_force: AgentConfig,
    run_dir: std::path::PathBuf,
    read: ReadConfig,
    elsewhere: TakeUp,
    /// What is in force has changed since anybody was last told of it.
    is_changed: bool,
    /// The cluster's configuration as it was written when its unread keys were named last.
    named: Option<Arc<str>>,
    /// Over which settings of the cluster the file was laid last.
    laid_over: Option<Arc<ClusterSettings>>,
    /// The length that the lease was told last.
    lease_ttl: Option<Duration>,
    applied: Option<Applied>,
    /// After a failure the next attempt waits until then.
    again_at: Moment,
    /// Who asked for the file to be read again, until it is known what became of it.
    asked: Option<Asked>,
}

/// What decides the settings in force.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Applied {
    settings: Arc<ClusterSettings>,
    has_data: bool,
    may_restart_itself: bool,
}

/// What the configuration in force says of this member.
#[derive(Debug)]
pub struct Changed {
    /// To decisions and actions.
    pub me: Arc<Me>,
    /// The watchdog.
    pub watchdog: WatchdogConfig,
    /// Where clients behind a proxy reach PostgreSQL.
    pub proxy_address: Option<Arc<str>>,
}

/// A reload in progress.
struct Asked {
    answer: oneshot::Sender<LocalOutcome>,
    /// What was taken up and what was not, for people.
    text: String,
    is_all: bool,
}

impl SettingsKeeper {
    /// Nothing applied yet.
    pub fn new(
        config: AgentConfig,
        run_dir: std::path::PathBuf,
        read: ReadConfig,
        elsewhere: TakeUp,
    ) -> Self {
        Self {
            in_force: config.clone(),
            config,
            run_dir,
            read,
            elsewhere,
            named: None,
            laid_over: None,
            lease_ttl: None,
            applied: None,
            // The first turn tells everybody.
            is_changed: true,
            again_at: Moment::default(),
            asked: None,
        }
    }

    /// This member as the configuration in force describes it, if that has changed since the last call.
    pub fn changed(&mut self) -> Option<Changed> {
        let is_changed = std::mem::take(&mut self.is_changed);
        is_changed.then(|| Changed {
            me: Arc::new(run::me(&self.in_force)),
            watchdog: self.in_force.watchdog.clone(),
            proxy_address: self
                .in_force
                .postgresql
                .proxy_address
                .as_ref()
                .map(|address| Arc::from(address.to_string().as_str())),
        })
    }

    /// Names the keys of the cluster's configuration that nobody reads, and the values that are not usable, once for
    /// each text of it.
    pub fn name_unread(&mut self, text: Option<&Arc<str>>) {
        let Some(text) = text.filter(|text| self.named.as_ref() != Some(*text)) else {
            return;
        };
        for warning in dynamic::unread(text) {
            tracing::warn!("{warning}");
        }
        for error in dynamic::unusable(text) {
            tracing::warn!("dynamic configuration: {error}; what Patroni takes in its place holds");
        }
        self.named = Some(text.clone());
    }

    /// After the file was read again. There may be no cluster yet, and its file counts all the same.
    fn lay_over_again(&mut self) {
        match self.laid_over.clone() {
            Some(settings) => self.lay_over(&settings),
            None => {
                self.in_force = self.config.clone();
                self.is_changed = true;
            }
        }
    }

    /// Lays the file anew over what the cluster's configuration says to every member.
    fn lay_over(&mut self, settings: &ClusterSettings) {
        let (in_force, mistakes) = self.config.over(settings);
        for mistake in mistakes {
            tracing::warn!("the cluster's configuration for members is not used: {mistake}");
        }
        for (name, why) in layers::not_taken(&settings.parameters) {
            tracing::warn!("dynamic configuration: postgresql.parameters.{name}: {why}");
        }
        self.in_force = in_force;
        self.is_changed = true;
    }

    /// Reads the file again. The next turn applies what can be taken up, and answers.
    pub fn reload(&mut self, answer: oneshot::Sender<LocalOutcome>) {
        match (self.read)() {
            Ok((read, warnings)) => {
                warnings
                    .iter()
                    .for_each(|warning| tracing::warn!("{warning}"));
                let mut told = take_up(&self.config, read);
                for (part, why) in (self.elsewhere)(&told.config) {
                    told.keep(part, &self.config, why);
                }
                let (text, is_all) = (told.to_string(), told.is_all());
                if is_all {
                    tracing::info!("the configuration was read again: {text}");
                } else {
                    tracing::warn!("the configuration was read again: {text}");
                }
                self.config = told.config;
                self.applied = None;
                self.lay_over_again();
                self.again_at = Moment::default();
                self.asked = Some(Asked {
                    answer,
                    text,
                    is_all,
                });
            }
            Err(why) => {
                tracing::error!(why, "the configuration is not reloaded");
                // After a signal nobody listens.
                let _ = answer.send(LocalOutcome::Failed(why));
            }
        }
    }

    /// Applies what changed. Never while a long job works on the instance.
    pub async fn bring_in_line(&mut self, seen: &Observation, actor: &Actor) {
        let applied = self.apply_changes(seen, actor).await;
        let Some(Asked {
            answer,
            text,
            is_all,
        }) = self.asked.take()
        else {
            return;
        };
        let outcome = match applied {
            Ok(()) if is_all => LocalOutcome::Done(format!("reloaded; {text}")),
            Ok(()) => LocalOutcome::Failed(format!("reloaded in part; {text}")),
            Err(why) => LocalOutcome::Failed(format!(
                "not applied yet, the agent goes on trying: {why}; {text}"
            )),
        };
        // After a signal nobody listens; the log has it.
        let _ = answer.send(outcome);
    }

    /// The error says for people why the settings in force are not yet those wanted.
    async fn apply_changes(&mut self, seen: &Observation, actor: &Actor) -> Result<(), String> {
        let Some(settings) = seen.topology().and_then(|t| t.settings.clone()) else {
            return Err("the cluster's settings are not known".to_owned());
        };
        let has_data = match &seen.local {
            Local::Empty | Local::Unknown(_) => false,
            Local::Stopped(_)
            | Local::Starting { .. }
            | Local::Running(_)
            | Local::Unresponsive { .. }
            | Local::Orphaned { .. } => true,
        };
        let wanted = Applied {
            may_restart_itself: may_restart_itself(seen, &settings),
            settings,
            has_data,
        };
        let is_applied = self.applied.as_ref() == Some(&wanted);
        let ttl = lease_to_be(seen, self.lease_ttl, wanted.settings.ttl);
        if is_applied && ttl.is_none() {
            return Ok(());
        }
        if let Some(job) = &seen.job.running {
            return Err(format!("{} is in progress", job.kind.name()));
        }
        if seen.now.until(self.again_at) > Duration::ZERO {
            return Err("the last attempt failed; see the agent's log".to_owned());
        }
        if self.laid_over.as_ref() != Some(&wanted.settings) {
            self.lay_over(&wanted.settings);
            self.laid_over = Some(wanted.settings.clone());
        }
        let applying = async {
            if let Some(ttl) = ttl {
                // Whether it has it is not known until it is answered.
                self.lease_ttl = None;
                let granted = actor.lease.set_ttl(ttl).await;
                granted.map_err(|error| error.to_string())?;
                self.lease_ttl = Some(ttl);
            }
            match is_applied {
                true => Ok(()),
                false => self.apply(&wanted, role(seen), actor).await,
            }
        };
        let failed = match tokio::time::timeout(LIMIT, applying).await {
            Ok(Ok(())) => None,
            Ok(Err(why)) => Some(why),
            Err(_) => Some(format!("not done within {LIMIT:?}")),
        };
        if let Some(why) = failed {
            tracing::warn!(
                why = why.as_str(),
                "the cluster's settings could not be applied; retrying"
            );
            self.again_at = seen.now + wanted.settings.loop_wait;
            return Err(why);
        }
        if !is_applied && !matches!(seen.request, Some(LocalRequest::Restart(_))) {
            tracing::info!("the cluster's settings are applied");
        }
        self.applied = Some(wanted);
        Ok(())
    }

    async fn apply(
        &self,
        wanted: &Applied,
        role: Option<CallbackRole>,
        actor: &Actor,
    ) -> Result<(), String> {
        let settings = wanted.settings.as_ref();
        let config = instance::postgres_config(&self.in_force, settings, &self.run_dir);
        actor.postgres.reconfigure(config).await;
        if let Some(role) = role {
            let applied = actor
                .postgres
                .apply_settings(wanted.may_restart_itself)
                .await;
            applied.map_err(|error| error.to_string())?;
            if self.applied.is_some() || self.asked.is_some() {
                actor.callbacks.call(Callback::Reload.word(), role.word());
            }
        }
        Ok(())
    }
}

/// Another length of the lease than it `has`, if it is to have one. While the cluster is being made it keeps its own: the
/// claim to that is on it, and does not move with the leader key.
fn lease_to_be(seen: &Observation, has: Option<Duration>, ttl: Duration) -> Option<Duration> {
    let initialize = seen.topology().map(|topology| topology.initialize);
    let is_being_made = initialize == Some(Initialize::Running);
    (!is_being_made && has != Some(ttl)).then_some(ttl)
}

/// As what the instance runs, if it does.
fn role(seen: &Observation) -> Option<CallbackRole> {
    let Local::Running(running) = &seen.local else {
        return None;
    };
    Some(match running.role {
        RunningRole::Primary { .. } => CallbackRole::Primary,
        RunningRole::Replica { .. } => CallbackRole::Replica,
    })
}

/// Paused, PostgreSQL mends its own crashes: a primary only once everybody can see that its fence sleeps.
fn may_restart_itself(seen: &Observation, settings: &ClusterSettings) -> bool {
    let topology = seen.topology();
    let is_announced = topology.is_some_and(|t| t.disarmed.contains(&seen.me.name));
    let is_let_go = is_announced && !seen.fence.is_armed();
    settings.is_paused && (is_let_go || !seen.local.may_accept_writes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide::script::Scene;

    #[test]
    fn a_paused_primary_mends_itself_only_after_its_fence_was_announced_to_sleep() {
        let mut scene = Scene::default();
        let mut may = |lines: &[&str]| {
            lines.iter().for_each(|line| scene.take_text(line).unwrap());
            may_restart_itself(&scene.seen, &scene.seen.settings())
        };
        assert!(!may(&[
            "local running primary position=0/5",
            "fence live armed"
        ]));
        assert!(!may(&["settings paused"]));
        assert!(!may(&["disarmed a"]));
        assert!(may(&["fence live"]));
        assert!(!may(&["disarmed none"]));
        assert!(may(&["local running replica received=0/5"]));
        assert!(!may(&["settings"]));
    }

    #[test]
    fn the_lease_keeps_its_length_while_the_cluster_is_being_made() {
        let seconds = Duration::from_secs;
        let to_be = |initialize: &str, has| {
            let mut scene = Scene::default();
            scene.take_text(initialize).unwrap();
            lease_to_be(&scene.seen, has, seconds(20))
        };
        assert_eq!(to_be("initialize running", Some(seconds(30))), None);
        assert_eq!(to_be("initialize running", None), None);
        for made in ["initialize 7", "initialize absent"] {
            assert_eq!(to_be(made, Some(seconds(30))), Some(seconds(20)));
            assert_eq!(to_be(made, None), Some(seconds(20)), "an unanswered order");
            assert_eq!(to_be(made, Some(seconds(20))), None);
        }
    }
}
