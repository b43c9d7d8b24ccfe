//! What of `pool` is shown by `SHOW CONFIG`, and what `SET` changes while the process lives: for new log-ins and new
//! pools, as a reload does, and until the next one.

use std::time::Duration;

use trunkline_shared::cluster::quantity;

use super::pooling::PoolConfig;

/// One setting.
enum Setting<'a> {
    /// A number.
    Number(&'a mut usize),
    /// A number of which 0 is no limit.
    Limit(&'a mut usize),
    /// A time.
    Time(&'a mut Duration),
    /// A text.
    Text(&'a mut String),
    /// Names.
    Names(&'a mut Vec<String>),
}

/// Why something is not set.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotSet {
    /// Only a restart, or nothing, changes it.
    #[error(
        "{0} cannot be changed here; SHOW CONFIG tells what can, and the file is read again by RELOAD"
    )]
    Fixed(String),
    /// The value is none.
    #[error("{key} cannot be '{value}'")]
    Unusable {
        /// The key.
        key: String,
        /// The value.
        value: String,
    },
}

/// A setting with its key.
type Named<'a> = (&'static str, Setting<'a>);

fn number<'a>(key: &'static str, own: &'a mut usize) -> Named<'a> {
    (key, Setting::Number(own))
}

fn limit<'a>(key: &'static str, own: &'a mut usize) -> Named<'a> {
    (key, Setting::Limit(own))
}

fn time<'a>(key: &'static str, own: &'a mut Duration) -> Named<'a> {
    (key, Setting::Time(own))
}

impl PoolConfig {
    fn settings(&mut self) -> [Named<'_>; 20] {
        [
            time("client_idle_timeout", &mut self.client_idle_timeout),
            time("client_login_timeout", &mut self.client_login_timeout),
            number("default_pool_size", &mut self.default_pool_size),
            time(
                "idle_transaction_timeout",
                &mut self.idle_transaction_timeout,
            ),
            (
                "ignore_startup_parameters",
                Setting::Names(&mut self.ignore_startup_parameters),
            ),
            limit(
                "max_db_client_connections",
                &mut self.max_db_client_connections,
            ),
            limit("max_db_connections", &mut self.max_db_connections),
            number("max_prepared_statements", &mut self.max_prepared_statements),
            limit(
                "max_user_client_connections",
                &mut self.max_user_client_connections,
            ),
            limit("max_user_connections", &mut self.max_user_connections),
            number("min_pool_size", &mut self.min_pool_size),
            time("query_timeout", &mut self.query_timeout),
            time("query_wait_timeout", &mut self.query_wait_timeout),
            number("reserve_pool_size", &mut self.reserve_pool_size),
            time("reserve_pool_timeout", &mut self.reserve_pool_timeout),
            time("server_connect_timeout", &mut self.server_connect_timeout),
            time("server_idle_timeout", &mut self.server_idle_timeout),
            time("server_login_retry", &mut self.server_login_retry),
            time("server_lifetime", &mut self.server_lifetime),
            (
                "server_reset_query",
                Setting::Text(&mut self.server_reset_query),
            ),
        ]
    }

    /// Every setting with its value, as PgBouncer writes it: times in seconds, 0 for no limit.
    pub fn shown(&self) -> Vec<(&'static str, String)> {
        let mut own = self.clone();
        let each = own.settings().into_iter();
        each.map(|(key, setting)| {
            let value = match setting {
                Setting::Number(number) => number.to_string(),
                Setting::Limit(&mut usize::MAX) => "0".to_owned(),
                Setting::Limit(limit) => limit.to_string(),
                Setting::Time(time) => time.as_secs_f64().to_string(),
                Setting::Text(text) => text.clone(),
                Setting::Names(names) => names.join(", "),
            };
            (key, value)
        })
        .collect()
    }

    /// Whether `SET` changes it.
    pub fn can_set(key: &str) -> bool {
        let mut own = Self::default();
        own.settings().iter().any(|(known, _)| *known == key)
    }

    /// Changes one.
    ///
    /// # Errors
    /// It cannot be changed, or not to this.
    pub fn set(&mut self, key: &str, value: &str) -> Result<(), NotSet> {
        let settings = self.settings().into_iter();
        let mut settings = settings.filter(|(known, _)| *known == key);
        let Some((_, setting)) = settings.next() else {
            return Err(NotSet::Fixed(key.to_owned()));
        };
        let unusable = || NotSet::Unusable {
            key: key.to_owned(),
            value: value.to_owned(),
        };
        match setting {
            Setting::Number(number) => {
                let least = usize::from(key == "default_pool_size");
                let new: usize = value.parse().map_err(|_| unusable())?;
                *number = new.max(least);
            }
            Setting::Limit(limit) => {
                let new = value.parse().map_err(|_| unusable())?;
                *limit = if new == 0 { usize::MAX } else { new };
            }
            Setting::Time(time) => *time = quantity::duration(value).ok_or_else(unusable)?,
            Setting::Text(text) => *text = value.to_owned(),
            Setting::Names(names) => {
                let each = value
                    .split(',')
                    .map(|name| name.trim().to_ascii_lowercase());
                *names = each.filter(|name| !name.is_empty()).collect();
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_is_changed_and_shown_as_pgbouncer_writes_it() {
        let mut own = PoolConfig::default();
        own.set("query_timeout", "2500ms").unwrap();
        own.set("default_pool_size", "0").unwrap();
        own.set("max_db_connections", "7").unwrap();
        own.set("max_user_connections", "0").unwrap();
        let shown: std::collections::BTreeMap<_, _> = own.shown().into_iter().collect();
        assert_eq!(shown["query_timeout"], "2.5");
        assert_eq!(shown["default_pool_size"], "1");
        assert_eq!(shown["max_db_connections"], "7");
        assert_eq!(shown["max_user_connections"], "0");
        assert_eq!(shown["server_lifetime"], "3600");
    }

    #[test]
    fn what_cannot_be_changed_says_so() {
        let mut own = PoolConfig::default();
        assert!(matches!(own.set("listen_port", "1"), Err(NotSet::Fixed(_))));
        let wrong = own.set("query_timeout", "soon").unwrap_err();
        assert_eq!(wrong.to_string(), "query_timeout cannot be 'soon'");
        assert!(!PoolConfig::can_set("admin_users") && PoolConfig::can_set("query_timeout"));
    }
}
