//! The only place where a key path is spelled: Patroni's layout below `/<namespace>/<scope>/`.

use std::sync::Arc;

use crate::cluster::topology::FactKey;
use crate::cluster::{ClusterName, MemberName};

/// The keys of one cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keys {
    prefix: String,
}

impl Keys {
    /// Keys below `/<namespace>/<scope>/`; slashes around the namespace are as in Patroni: one leads, one
    /// separates, however it was written.
    pub fn new(namespace: &str, cluster: &ClusterName) -> Self {
        let namespace = namespace.trim_matches('/');
        Self {
            prefix: format!("/{namespace}/{cluster}/").replace("//", "/"),
        }
    }

    /// What the keys of every cluster of the namespace begin with, with a slash at its end.
    pub fn namespace(namespace: &str) -> String {
        format!("/{}/", namespace.trim_matches('/')).replace("//", "/")
    }

    /// The cluster whose key this is, if it is one of the namespace.
    pub fn cluster_of(namespace: &str, path: &str) -> Option<ClusterName> {
        let rest = path.strip_prefix(&Self::namespace(namespace))?;
        let cluster = ClusterName::new(rest.split_once('/')?.0);
        Self::new(namespace, &cluster).parse(path).map(|_| cluster)
    }

    /// What every key of the cluster begins with, with a slash at its end.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The whole key.
    pub fn path(&self, key: &FactKey) -> String {
        let prefix = &self.prefix;
        match key {
            FactKey::Initialize => format!("{prefix}initialize"),
            FactKey::Settings => format!("{prefix}config"),
            FactKey::Leader => format!("{prefix}leader"),
            FactKey::Member(name) => format!("{prefix}members/{name}"),
            FactKey::Status => format!("{prefix}status"),
            FactKey::Failover => format!("{prefix}failover"),
            FactKey::Sync => format!("{prefix}sync"),
            FactKey::History => format!("{prefix}history"),
            FactKey::Failsafe => format!("{prefix}failsafe"),
            FactKey::Generation => format!("{prefix}trunkline/generation"),
            FactKey::Succeeds => format!("{prefix}trunkline/succeeds"),
            FactKey::Timeline => format!("{prefix}trunkline/timeline"),
            FactKey::Disarmed(name) => format!("{prefix}trunkline/disarmed/{name}"),
            FactKey::Switchover => format!("{prefix}trunkline/switchover"),
            FactKey::Changes => format!("{prefix}trunkline/history"),
            FactKey::Router(name) => format!("{prefix}routers/{name}"),
        }
    }

    /// Which key of this cluster `path` is; `None` for keys that are nobody's business.
    pub fn parse(&self, path: &str) -> Option<FactKey> {
        let rest = path.strip_prefix(self.prefix.as_str())?;
        Some(match rest {
            "initialize" => FactKey::Initialize,
            "config" => FactKey::Settings,
            "leader" => FactKey::Leader,
            "status" => FactKey::Status,
            "failover" => FactKey::Failover,
            "sync" => FactKey::Sync,
            "history" => FactKey::History,
            "failsafe" => FactKey::Failsafe,
            "trunkline/generation" => FactKey::Generation,
            "trunkline/succeeds" => FactKey::Succeeds,
            "trunkline/timeline" => FactKey::Timeline,
            "trunkline/switchover" => FactKey::Switchover,
            "trunkline/history" => FactKey::Changes,
            other => {
                if let Some(name) = other.strip_prefix("members/") {
                    FactKey::Member(MemberName::new(name))
                } else if let Some(name) = other.strip_prefix("trunkline/disarmed/") {
                    FactKey::Disarmed(MemberName::new(name))
                } else {
                    FactKey::Router(Arc::from(other.strip_prefix("routers/")?))
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_belongs_to_one_cluster_of_its_namespace() {
        let of = |namespace, path| Keys::cluster_of(namespace, path).map(|name| name.to_string());
        assert_eq!(
            of("/service/", "/service/demo/leader").as_deref(),
            Some("demo")
        );
        assert_eq!(of("", "/demo/members/n1").as_deref(), Some("demo"));
        assert_eq!(of("service", "/services/demo/leader"), None);
        assert_eq!(of("service", "/service/demo/nonsense"), None);
        assert_eq!(of("service", "/service/demo"), None);
    }

    #[test]
    fn every_path_parses_back() {
        let keys = Keys::new("/service/", &ClusterName::new("demo"));
        let a = MemberName::new("a");
        for key in [
            FactKey::Initialize,
            FactKey::Settings,
            FactKey::Leader,
            FactKey::Member(a.clone()),
            FactKey::Status,
            FactKey::Failover,
            FactKey::Sync,
            FactKey::History,
            FactKey::Failsafe,
            FactKey::Generation,
            FactKey::Succeeds,
            FactKey::Timeline,
            FactKey::Disarmed(a),
            FactKey::Switchover,
            FactKey::Changes,
            FactKey::Router("r1/42".into()),
        ] {
            assert_eq!(keys.parse(&keys.path(&key)), Some(key));
        }
        assert_eq!(keys.path(&FactKey::Leader), "/service/demo/leader");
        assert_eq!(keys.parse("/service/demo/optime/leader"), None);
        assert_eq!(keys.parse("/service/demo2/leader"), None);
        assert_eq!(Keys::new("db", &ClusterName::new("x")).prefix(), "/db/x/");
    }
}
