//! `GET /trunkline/dcs`: what this member knows of the DCS and of the cluster's keys, for `trunkline accept-dcs`.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

use trunkline_shared::cluster::store::Authority;
use trunkline_shared::dcs::Entry;
use trunkline_shared::dcs::keys::Keys;
use trunkline_shared::dcs::watch::View;

use super::Published;

/// The answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    /// The member.
    pub name: String,
    /// The identity of the store, in hexadecimal digits.
    pub cluster_id: String,
    /// The newest revision that was believed.
    pub revision: i64,
    /// The raft term of the newest answer that was believed.
    pub term: u64,
    /// The highest generation that is known.
    pub generation: u64,
    /// Why the store is not believed.
    pub went_back: Option<String>,
    /// Others said so: what it believed last is of a store that they know to be an old one.
    #[serde(default)]
    pub is_told: bool,
    /// When what decides who may lead was written, as it is known here.
    #[serde(default)]
    pub written: Authority,
    /// The system identifier of the data there, if there is any.
    #[serde(default)]
    pub system: Option<String>,
    /// The timeline of that data; 0 if it is not known.
    #[serde(default)]
    pub timeline: u32,
    /// Whether PostgreSQL there runs as a primary.
    pub is_primary: bool,
    /// Who led when the store was believed last.
    pub leader: Option<String>,
    /// The members that are known, or were, with the URLs of their agents.
    pub members: BTreeMap<String, String>,
    /// The keys that make the cluster what it is, as they were believed last.
    pub keys: BTreeMap<String, String>,
}

/// What is known now.
pub(super) fn known(keys: &Keys, published: &Published, view: &View) -> Value {
    let topology = &view.topology;
    let former = published.former.iter().map(|(n, url)| (n, url.clone()));
    let listed = topology.failsafe.iter().map(|(n, url)| (n, url.clone()));
    let members = topology.members.values();
    let members = members.map(|member| (&member.name, member.api_url.clone()));
    let members = former.chain(listed).chain(members);
    let known = Known {
        name: published.name.to_string(),
        cluster_id: format!("{:x}", view.belief.seen.cluster_id),
        revision: view.belief.seen.revision,
        term: view.belief.seen.term,
        generation: view.belief.generation,
        went_back: view.went_back.as_deref().map(str::to_owned),
        is_told: view.belief.is_told,
        written: Authority::of(topology),
        system: published.system_id.map(|system| system.to_string()),
        timeline: published.data_timeline.map_or(0, |timeline| timeline.0),
        is_primary: published.position.is_some(),
        leader: topology.leader.as_ref().map(|l| l.member.to_string()),
        members: members
            .filter(|(_, url)| !url.is_empty())
            .map(|(name, url)| (name.to_string(), url.to_string()))
            .collect(),
        keys: view
            .lasting_keys(keys)
            .into_iter()
            .map(|entry| {
                let value = String::from_utf8_lossy(&entry.value).into_owned();
                (entry.key, value)
            })
            .collect(),
    };
    serde_json::to_value(known).unwrap_or_default()
}

impl Known {
    /// The keys as entries.
    pub fn entries(&self) -> Vec<Entry> {
        let entries = self.keys.iter().map(|(key, value)| Entry {
            key: key.clone(),
            value: value.clone().into_bytes(),
            mod_revision: 0,
            lease: 0,
        });
        entries.collect()
    }
}
