//! Whom a race asks: everybody who may be a primary, registered or not (`ha.md` 5.2).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use trunkline_shared::cluster::{MemberName, Moment, Topology};

use super::memory::{Former, Memory};

/// How long a member that is registered no more is still asked. Its fence has long ended whatever it was
/// primary under; whoever is silent holds every race up for as long as an answer may take.
const ASKED_FOR: Duration = Duration::from_secs(600);

/// So many former members are remembered at the most; those seen longest ago go first.
const MOST_FORMER: usize = 32;

/// Whom `me` asks, and where: the registered members, those of the failsafe list, and those that were
/// registered lately. The last are lost with the agent, and the list is not.
pub fn whom(
    topology: &Topology,
    memory: &Memory,
    me: &MemberName,
) -> BTreeMap<MemberName, Arc<str>> {
    let former = memory.former.iter().map(|(n, f)| (n, &f.api_url));
    let members = topology.members.values().map(|m| (&m.name, &m.api_url));
    let mut whom: BTreeMap<MemberName, Arc<str>> = BTreeMap::new();
    // What a member says of itself now goes before what was written down.
    for (name, url) in former.chain(topology.failsafe.iter()).chain(members) {
        if name != me && !url.is_empty() {
            whom.insert(name.clone(), url.clone());
        }
    }
    whom
}

/// Remembers who is registered at `now`, and of which kind the leader is.
pub(super) fn note(memory: &mut Memory, topology: &Topology, now: Moment) {
    for member in topology.members.values() {
        let former = Former {
            api_url: member.api_url.clone(),
            seen_at: now,
        };
        memory.former.insert(member.name.clone(), former);
    }
    if let Some(leader) = topology.leader_member() {
        memory.foreign_led = (!leader.is_trunkline()).then(|| (leader.name.clone(), now));
    }
    memory
        .former
        .retain(|_, former| now.since(former.seen_at) < ASKED_FOR);
    while memory.former.len() > MOST_FORMER {
        let oldest = memory.former.iter().min_by_key(|(_, f)| f.seen_at);
        let Some(name) = oldest.map(|(name, _)| name.clone()) else {
            return;
        };
        memory.former.remove(&name);
    }
}

#[cfg(test)]
mod tests {
    use trunkline_shared::cluster::topology::{Change, Fact, FactKey};

    use super::*;

    fn member(name: &str) -> Change {
        let text = format!(
            r#"{{"conn_url":"postgres://{name}:5432/postgres","api_url":"http://{name}:8008/patroni",
                "state":"running","role":"replica"}}"#
        );
        let key = FactKey::Member(MemberName::new(name));
        let fact = trunkline_shared::dcs::records::parse(&key, text.as_bytes());
        Change {
            key,
            fact: Some(fact),
            revision: 1,
            lease: 1,
        }
    }

    fn names(topology: &Topology, memory: &Memory) -> Vec<String> {
        let me = MemberName::new("a");
        let whom = whom(topology, memory, &me);
        whom.keys().map(ToString::to_string).collect()
    }

    #[test]
    fn the_leader_whose_record_ended_is_asked_and_so_is_the_failsafe_list() {
        let (mut topology, mut memory) = (Topology::default(), Memory::default());
        for name in ["a", "b", "c"] {
            topology.apply(&member(name));
        }
        note(&mut memory, &topology, Moment(1));
        topology.members.clear();
        assert_eq!(names(&topology, &memory), ["b", "c"]);
        let list = BTreeMap::from([(MemberName::new("d"), Arc::from("http://d:8008/patroni"))]);
        topology.apply(&Change {
            key: FactKey::Failsafe,
            fact: Some(Fact::Failsafe(Arc::new(list))),
            revision: 2,
            lease: 0,
        });
        assert_eq!(names(&topology, &memory), ["b", "c", "d"]);
        note(&mut memory, &topology, Moment(1) + ASKED_FOR);
        assert_eq!(names(&topology, &memory), ["d"], "not asked for ever");
    }
}
