//! Whether a cluster's keys are believed as the store shows them now. Nothing is believed that knows less than was
//! seen, until `trunkline/generation` grew (`ha.md` 8). Pure: the followed view and the simulation drive the same
//! code.

use std::sync::Arc;

use super::Header;
use crate::cluster::store::{Authority, Told};
use crate::cluster::topology::Initialize;
use crate::cluster::{SystemId, Topology};

/// What is known of the store that holds a cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Belief {
    /// The newest answer that was believed; zeros before the first.
    pub seen: Header,
    /// The highest generation that is known.
    pub generation: u64,
    /// The cluster's identity, once it was recorded.
    pub system: Option<SystemId>,
    /// Why the store is not believed any more.
    pub doubt: Option<Arc<str>>,
    /// Others said so, who know more than was ever seen here: only a grown generation ends the doubt.
    pub is_told: bool,
    /// The identity of the store that they know.
    pub told_of: Option<u64>,
}

/// What a listing is worth.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is the store that was known.
    Believed,
    /// It is another one, or the same without its memory, and says so.
    Accepted,
    /// It knows less than was seen, or is another one.
    WentBack(Arc<str>),
}

impl Belief {
    /// Judges what the store shows; `known` is the cluster as it was believed last.
    pub fn weigh(&self, header: Header, shown: &Topology, known: &Topology) -> Verdict {
        if self.seen == Header::default() {
            return Verdict::Believed;
        }
        if shown.generation > self.generation {
            // Another cluster's operator raises his number as well.
            if let Some(why) = self.is_of_another(header, shown) {
                return Verdict::WentBack(self.doubt.clone().unwrap_or(why));
            }
            // In the store that was known it may grow as well: who re-created lost keys says so to all.
            return match self.differs(header, shown) {
                Some(_) => Verdict::Accepted,
                None if self.doubt.is_some() => Verdict::Accepted,
                None => Verdict::Believed,
            };
        }
        let differs = self.differs(header, shown);
        let Some(why) = differs.or_else(|| is_written_before(shown, known)) else {
            // Its revision may have caught up since it was doubted. What decides who leads tells.
            return match &self.doubt {
                Some(_) if !self.is_told && is_as_known(shown, known) => Verdict::Accepted,
                Some(why) => Verdict::WentBack(why.clone()),
                None => Verdict::Believed,
            };
        };
        Verdict::WentBack(self.doubt.clone().unwrap_or(why))
    }

    /// Whether it is the store of a cluster that never was in the one that was known, whatever its generation is.
    fn is_of_another(&self, header: Header, shown: &Topology) -> Option<Arc<str>> {
        let known = self.seen.cluster_id;
        let follows = |of: u64| header.cluster_id == of || shown.succeeds.contains(&of);
        if !follows(known) && !self.told_of.is_some_and(follows) {
            let text = format!(
                "cluster {:x} answers, and does not name {known:x} among those that it took the place of",
                header.cluster_id
            );
            return Some(text.into());
        }
        match (shown.initialize, self.system) {
            (Initialize::Done(id), Some(system)) if id != system => {
                Some(format!("initialize names system {id}, but {system} is the cluster's").into())
            }
            (Initialize::Done(_) | Initialize::Running | Initialize::Absent, _) => None,
        }
    }

    fn differs(&self, header: Header, shown: &Topology) -> Option<Arc<str>> {
        let seen = self.seen;
        if header.cluster_id != seen.cluster_id
            || header.revision < seen.revision
            || header.term < seen.term
        {
            let text = format!(
                "cluster {:x} at revision {} and term {} answers, but {:x} at {} and {} was seen",
                header.cluster_id,
                header.revision,
                header.term,
                seen.cluster_id,
                seen.revision,
                seen.term
            );
            return Some(text.into());
        }
        if shown.generation < self.generation {
            let (shown, known) = (shown.generation, self.generation);
            return Some(format!("it is of generation {shown}, but {known} is known").into());
        }
        let system = self.system?;
        match shown.initialize {
            Initialize::Done(id) if id == system => None,
            Initialize::Done(id) => {
                Some(format!("initialize names system {id}, but {system} is the cluster's").into())
            }
            Initialize::Absent | Initialize::Running => {
                Some(format!("initialize is gone; the cluster is that of system {system}").into())
            }
        }
    }

    /// The store answered, and is believed.
    pub fn take(&mut self, header: Header, shown: &Topology) {
        self.seen = Header {
            cluster_id: header.cluster_id,
            revision: self.seen.revision.max(header.revision),
            term: self.seen.term.max(header.term),
        };
        self.generation = self.generation.max(shown.generation);
        if let Initialize::Done(id) = shown.initialize {
            self.system = Some(id);
        }
    }

    /// Others know more: only a store of a higher generation is believed again. It may be the successor of theirs, and
    /// not name the one that was met here: none of them believed that.
    pub fn hear(&mut self, told: Told) {
        self.is_told = true;
        self.generation = self.generation.max(told.generation);
        self.told_of = told.cluster_id.or(self.told_of);
    }

    /// The store is the true one from now on. One that shows no cluster was accepted so: what was the cluster's
    /// identity before was removed, and the next one is made under its name.
    pub fn accept(&mut self, header: Header, shown: &Topology) {
        self.seen = Header::default();
        self.system = None;
        self.doubt = None;
        self.is_told = false;
        self.told_of = None;
        self.take(header, shown);
    }
}

fn is_written_before(shown: &Topology, known: &Topology) -> Option<Arc<str>> {
    let (key, shown, known) = Authority::of(shown).older_than(&Authority::of(known))?;
    let text = format!("{key} was written at revision {shown}, but a write at {known} was seen");
    Some(text.into())
}

/// Whether nothing that decides who may lead was written before what is known of it.
fn is_as_known(shown: &Topology, known: &Topology) -> bool {
    let keys = Authority::of(shown).beside(&Authority::of(known));
    keys.into_iter().all(|(_, shown, known)| shown >= known)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::sync_state::SyncState;
    use crate::cluster::topology::{Change, ClaimedTimeline, Fact, FactKey};
    use crate::cluster::{MemberName, Timeline};

    fn header(cluster_id: u64, revision: i64, term: u64) -> Header {
        Header {
            cluster_id,
            revision,
            term,
        }
    }

    fn cluster(generation: u64) -> Topology {
        Topology {
            initialize: Initialize::Done(SystemId(7)),
            generation,
            ..Topology::default()
        }
    }

    fn begun() -> Belief {
        let mut belief = Belief::default();
        assert_eq!(
            belief.weigh(header(1, 100, 3), &cluster(0), &Topology::default()),
            Verdict::Believed
        );
        belief.take(header(1, 100, 3), &cluster(0));
        belief
    }

    #[test]
    fn another_identity_and_less_of_anything_is_not_believed_until_the_generation_grew() {
        let belief = begun();
        let mut other = cluster(0);
        other.initialize = Initialize::Done(SystemId(8));
        let known = cluster(0);
        for (header, shown) in [
            (header(2, 200, 9), &cluster(0)),
            (header(1, 99, 3), &cluster(0)),
            (header(1, 200, 2), &cluster(0)),
            (header(1, 200, 3), &Topology::default()),
            (header(1, 200, 3), &other),
        ] {
            let verdict = belief.weigh(header, shown, &known);
            assert!(matches!(verdict, Verdict::WentBack(_)), "{header:?}");
            if shown == &other {
                continue;
            }
            let mut grown = shown.clone();
            grown.generation = 1;
            grown.succeeds = [9, 1].into();
            assert_eq!(belief.weigh(header, &grown, &known), Verdict::Accepted);
        }
        assert_eq!(
            belief.weigh(header(1, 200, 3), &cluster(1), &known),
            Verdict::Believed
        );
    }

    #[test]
    fn another_clusters_store_is_not_believed_however_often_its_operator_accepted_one() {
        let mut belief = begun();
        let mut other = cluster(5);
        other.initialize = Initialize::Done(SystemId(8));
        other.succeeds = [1].into();
        let mut site = cluster(5);
        site.succeeds = [6].into();
        for is_doubted in [false, true] {
            belief.doubt = is_doubted.then(|| "gone".into());
            for (header, shown) in [
                (header(1, 200, 3), &other),
                (header(2, 200, 3), &other),
                // The standby cluster of another site has the same system, and a store of its own.
                (header(2, 200, 3), &site),
                (header(2, 200, 3), &cluster(5)),
            ] {
                let verdict = belief.weigh(header, shown, &cluster(0));
                assert!(matches!(verdict, Verdict::WentBack(_)), "{header:?}");
            }
        }
        // Without its memory the same store has the same identity, and needs no word for it.
        let verdict = belief.weigh(header(1, 5, 1), &cluster(5), &cluster(0));
        assert_eq!(verdict, Verdict::Accepted);
    }

    #[test]
    fn whoever_met_only_the_false_store_believes_the_successor_of_the_one_that_others_know() {
        let mut belief = begun();
        belief.doubt = Some("b knows another".into());
        belief.hear(Told {
            generation: 0,
            cluster_id: Some(5),
        });
        let weigh = |header, shown: &Topology| belief.weigh(header, shown, &cluster(0));
        let false_one = weigh(header(1, 900, 3), &cluster(0));
        assert!(matches!(false_one, Verdict::WentBack(_)));
        let mut third = cluster(1);
        let strange = weigh(header(9, 4, 1), &third);
        assert!(matches!(strange, Verdict::WentBack(_)), "it names nobody");
        for store in [5, 1] {
            third.succeeds = [store].into();
            assert_eq!(weigh(header(9, 4, 1), &third), Verdict::Accepted);
        }
        third.succeeds = Default::default();
        assert_eq!(weigh(header(5, 4, 1), &third), Verdict::Accepted);
    }

    #[test]
    fn a_doubted_copy_whose_revision_has_caught_up_is_believed_only_if_it_shows_no_older_authority()
    {
        let mut belief = begun();
        belief.doubt = Some("it went back".into());
        let claim = |revision| {
            let mut topology = cluster(0);
            topology.apply(&Change {
                key: FactKey::Timeline,
                fact: Some(Fact::Timeline(ClaimedTimeline {
                    timeline: Timeline(2),
                    parent: Timeline(1),
                })),
                revision,
                lease: 0,
            });
            topology
        };
        let later = header(1, 900, 3);
        let old = belief.weigh(later, &claim(40), &claim(80));
        assert!(matches!(old, Verdict::WentBack(_)));
        assert_eq!(
            belief.weigh(later, &claim(80), &claim(80)),
            Verdict::Accepted
        );
        belief.accept(later, &claim(80));
        assert_eq!((belief.doubt, belief.seen), (None, later));
    }

    #[test]
    fn an_accepted_store_without_a_cluster_takes_the_identity_along() {
        let mut belief = begun();
        let removed = Topology {
            generation: 1,
            ..Topology::default()
        };
        let after = header(1, 120, 3);
        let verdict = belief.weigh(after, &removed, &cluster(0));
        assert_eq!(verdict, Verdict::Accepted);
        belief.accept(after, &removed);
        assert_eq!(
            belief.weigh(after, &removed, &removed),
            Verdict::Believed,
            "it is not doubted again"
        );
        let mut anew = cluster(1);
        anew.initialize = Initialize::Done(SystemId(9));
        let later = header(1, 130, 3);
        assert_eq!(belief.weigh(later, &anew, &removed), Verdict::Believed);
        belief.take(later, &anew);
        assert_eq!(belief.system, Some(SystemId(9)));
    }

    #[test]
    fn a_key_written_before_what_was_seen_of_it_is_of_an_old_copy_however_far_its_revision_has_come()
     {
        let belief = begun();
        let synced = |revision| {
            let mut topology = cluster(0);
            topology.sync = Some(SyncState {
                leader: None,
                standbys: Vec::new(),
                quorum: 0,
                revision,
            });
            topology
        };
        let later = header(1, 900, 3);
        let weigh = |shown: &Topology| belief.weigh(later, shown, &synced(80));
        assert!(matches!(weigh(&synced(40)), Verdict::WentBack(_)));
        for shown in [synced(80), synced(300), cluster(0)] {
            assert_eq!(weigh(&shown), Verdict::Believed);
        }
    }

    #[test]
    fn a_generation_never_falls_and_an_identity_stays() {
        let mut belief = begun();
        belief.take(header(1, 120, 3), &cluster(4));
        let mut led = cluster(3);
        led.leader = Some(crate::cluster::Leader {
            member: MemberName::new("a"),
            epoch: Default::default(),
            lease: 1,
        });
        let verdict = belief.weigh(header(1, 130, 3), &led, &cluster(4));
        assert!(matches!(verdict, Verdict::WentBack(_)));
        assert_eq!(belief.system, Some(SystemId(7)));
    }
}
