//! How many clients of pooled listeners there are: in all, in each database, of each user. Counted when a client has
//! logged in.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, PoisonError};

use crate::config::pooling::PoolConfig;
use crate::listener::limits::{Counted, Full};

/// Cluster, and database as clients call it.
type Database = (Box<str>, Box<str>);

/// The counts, for all cores.
#[derive(Debug, Default)]
pub struct Clients {
    all: Arc<AtomicUsize>,
    databases: Mutex<BTreeMap<Database, Arc<AtomicUsize>>>,
    users: Mutex<BTreeMap<Box<str>, Arc<AtomicUsize>>>,
}

/// A client's place among the others. They count it until this is dropped.
pub type Places = [Counted; 3];

impl Clients {
    /// Counts one more client of this cluster, database and user.
    ///
    /// # Errors
    /// One of the limits is reached. Nothing is counted then.
    pub fn admit(
        &self,
        (cluster, database, user): (&str, &str, &str),
        limits: &PoolConfig,
    ) -> Result<Places, Full> {
        let of_database = count(&self.databases, (cluster.into(), database.into()));
        let of_user = count(&self.users, user.into());
        let full = |whose, limit, key| move || Full { whose, limit, key };
        let (all, databases) = (limits.max_client_conn, limits.max_db_client_connections);
        let users = limits.max_user_client_connections;
        let router = full("the router".to_owned(), all, "pool.max_client_conn");
        let key = "max_db_client_connections";
        let database = full(format!("database \"{database}\""), databases, key);
        let key = "max_user_client_connections";
        let user = full(format!("user \"{user}\""), users, key);
        Ok([
            Counted::within(&self.all, all).ok_or_else(router)?,
            Counted::within(&of_database, databases).ok_or_else(database)?,
            Counted::within(&of_user, users).ok_or_else(user)?,
        ])
    }
}

fn count<K: Ord>(counts: &Mutex<BTreeMap<K, Arc<AtomicUsize>>>, key: K) -> Arc<AtomicUsize> {
    let mut counts = counts.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(count) = counts.get(&key) {
        return count.clone();
    }
    // Those of which there is no client any more.
    counts.retain(|_, count| Arc::strong_count(count) > 1);
    counts.entry(key).or_default().clone()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_limit_is_named_and_a_client_that_leaves_makes_room() {
        let clients = Clients::default();
        let limits = PoolConfig {
            max_client_conn: 4,
            max_db_client_connections: 2,
            max_user_client_connections: 1,
            ..PoolConfig::default()
        };
        let admit = |place| clients.admit(place, &limits).map_err(|full| full.key);
        let one = admit(("c", "app", "a")).unwrap();
        assert_eq!(
            admit(("c", "web", "a")).unwrap_err(),
            "max_user_client_connections"
        );
        let _two = admit(("c", "app", "b")).unwrap();
        assert_eq!(
            admit(("c", "app", "c")).unwrap_err(),
            "max_db_client_connections"
        );
        // The same name in another cluster is another database.
        let _three = admit(("d", "app", "c")).unwrap();
        let _four = admit(("c", "web", "d")).unwrap();
        assert_eq!(
            admit(("c", "web", "e")).unwrap_err(),
            "pool.max_client_conn"
        );
        drop(one);
        assert!(admit(("c", "app", "a")).is_ok());
        assert_eq!(clients.users.lock().unwrap().len(), 5);
    }
}
