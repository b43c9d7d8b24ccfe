//! Which clusters there are under a namespace, by their keys. Pure.

use std::collections::{BTreeMap, BTreeSet};

use trunkline_shared::cluster::ClusterName;
use trunkline_shared::cluster::topology::FactKey;
use trunkline_shared::dcs::keys::Keys;

/// The keys of every cluster, as far as they say that there is one.
#[derive(Clone, Debug)]
pub struct Names {
    namespace: String,
    keys: BTreeMap<ClusterName, BTreeSet<String>>,
}

impl Names {
    /// Those of a namespace.
    pub fn new(namespace: &str, keys: impl IntoIterator<Item = String>) -> Self {
        let mut names = Self {
            namespace: namespace.to_owned(),
            keys: BTreeMap::new(),
        };
        for key in keys {
            names.change(key, true);
        }
        names
    }

    /// A key is there, or is gone. Whether a cluster came or went by it.
    pub fn change(&mut self, key: String, is_there: bool) -> bool {
        let Some(cluster) = self.cluster_of(&key) else {
            return false;
        };
        if is_there {
            let keys = self.keys.entry(cluster).or_default();
            return keys.insert(key) && keys.len() == 1;
        }
        let Some(keys) = self.keys.get_mut(&cluster) else {
            return false;
        };
        keys.remove(&key);
        let is_over = keys.is_empty();
        if is_over {
            self.keys.remove(&cluster);
        }
        is_over
    }

    /// The clusters.
    pub fn all(&self) -> impl Iterator<Item = ClusterName> + '_ {
        self.keys.keys().cloned()
    }

    /// The cluster that is there because of this key. Its generation outlives a cluster, and routers register
    /// themselves where they look.
    fn cluster_of(&self, key: &str) -> Option<ClusterName> {
        let cluster = Keys::cluster_of(&self.namespace, key)?;
        match Keys::new(&self.namespace, &cluster).parse(key)? {
            FactKey::Generation | FactKey::Router(_) => None,
            FactKey::Initialize
            | FactKey::Settings
            | FactKey::Leader
            | FactKey::Member(_)
            | FactKey::Status
            | FactKey::Failover
            | FactKey::Sync
            | FactKey::History
            | FactKey::Failsafe
            | FactKey::Succeeds
            | FactKey::Timeline
            | FactKey::Disarmed(_)
            | FactKey::Switchover
            | FactKey::Changes => Some(cluster),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_is_there_as_long_as_one_of_its_keys_is() {
        let keys = ["/service/a/config", "/service/b/leader", "/service/c"];
        let mut names = Names::new("service", keys.map(str::to_owned));
        let all = |names: &Names| names.all().map(|n| n.to_string()).collect::<Vec<_>>();
        assert_eq!(all(&names), ["a", "b"]);
        assert!(!names.change("/service/b/members/n1".to_owned(), true));
        assert!(!names.change("/service/b/leader".to_owned(), false));
        assert!(names.change("/service/b/members/n1".to_owned(), false));
        assert!(!names.change("/service/b/members/n1".to_owned(), false));
        assert_eq!(all(&names), ["a"]);
        assert!(names.change("/service/c/initialize".to_owned(), true));
        assert!(!names.change("/service/c/initialize".to_owned(), true));
        assert_eq!(all(&names), ["a", "c"]);
    }

    #[test]
    fn what_outlives_a_cluster_or_comes_from_routers_makes_none() {
        let keys = [
            "/service/a/trunkline/generation",
            "/service/b/routers/r1/7",
            "/service/c/nonsense",
            "/services/d/leader",
        ];
        let names = Names::new("/service/", keys.map(str::to_owned));
        assert_eq!(names.all().count(), 0);
    }
}
