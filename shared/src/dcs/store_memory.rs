//! What a process has seen of the store that it speaks to, shared by all its clients. An answer that knows less is
//! not believed; once the whole store is found to be so, nothing more is asked of it or written to it until it is
//! accepted anew (`ha.md` 8): its revisions grow with everybody's writes, and one that lost its memory would soon
//! look like the one that was known.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{DcsError, Header};

/// Clones share it.
#[derive(Clone, Debug, Default)]
pub struct StoreMemory(Arc<Mutex<Seen>>);

#[derive(Debug, Default)]
struct Seen {
    header: Header,
    doubt: Option<Arc<str>>,
    acceptances: u64,
}

/// What was known when a request was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Before {
    header: Header,
    acceptances: u64,
}

impl StoreMemory {
    /// What an earlier process of this machine has seen.
    pub fn remembering(header: Header, doubt: Option<Arc<str>>) -> Self {
        Self(Arc::new(Mutex::new(Seen {
            header,
            doubt,
            acceptances: 0,
        })))
    }

    /// The newest answer that was believed.
    pub fn header(&self) -> Header {
        self.lock().header
    }

    /// How often a store was accepted anew: what was begun before such a moment is of another store.
    pub fn acceptances(&self) -> u64 {
        self.lock().acceptances
    }

    /// The store is not the one that was known.
    pub fn doubt(&self, why: &str) {
        let mut seen = self.lock();
        if seen.doubt.is_none() {
            tracing::error!(
                why,
                "the DCS lost its memory or is another one: nothing of it is believed"
            );
            seen.doubt = Some(why.into());
        }
    }

    /// The same, found by a request that began then: of a store that was accepted since it says nothing.
    pub(super) fn doubt_as_of(&self, first: Before, why: &str) {
        if self.acceptances() == first.acceptances {
            self.doubt(why);
        }
    }

    /// This store is the true one from now on.
    pub fn accept(&self, header: &Header) {
        let mut seen = self.lock();
        if seen.doubt.is_some() {
            tracing::warn!(
                before = ?seen.header, now = ?header,
                "this DCS is taken for the true one from now on"
            );
        }
        if seen.doubt.take().is_some() {
            seen.acceptances += 1;
            seen.header = *header;
        } else if seen.header.cluster_id != header.cluster_id {
            seen.header = *header;
        } else {
            seen.header.revision = seen.header.revision.max(header.revision);
            seen.header.term = seen.header.term.max(header.term);
        }
    }

    /// Called before a request is sent.
    pub(super) fn ask(&self) -> Result<Before, DcsError> {
        let seen = self.lock();
        match &seen.doubt {
            Some(why) => Err(DcsError::WentBack(why.to_string())),
            None => Ok(Before {
                header: seen.header,
                acceptances: seen.acceptances,
            }),
        }
    }

    /// The same for another copy of a request: it must not reach another store than the first.
    pub(super) fn ask_again(&self, first: Before) -> Result<Before, DcsError> {
        let now = self.ask()?;
        match now.acceptances == first.acceptances {
            true => Ok(now),
            false => Err(DcsError::Unreachable {
                tried: "the store before".to_owned(),
                why: "another one was accepted meanwhile".to_owned(),
            }),
        }
    }

    /// Checks a linearizable answer against what was seen when the request was sent, and remembers it.
    pub(super) fn believe(&self, before: Before, header: Header) -> Result<(), String> {
        self.same_cluster(header)?;
        let known = before.header;
        if header.revision < known.revision || header.term < known.term {
            return Err(format!(
                "it answers with revision {} and term {}, but revision {} and term {} were seen",
                header.revision, header.term, known.revision, known.term
            ));
        }
        let mut seen = self.lock();
        seen.header.revision = seen.header.revision.max(header.revision);
        seen.header.term = seen.header.term.max(header.term);
        Ok(())
    }

    /// Learns the store's identity from its first answer; any other identity later is another store's.
    pub(super) fn same_cluster(&self, header: Header) -> Result<(), String> {
        let mut seen = self.lock();
        if seen.header.cluster_id == 0 {
            seen.header.cluster_id = header.cluster_id;
        }
        if header.cluster_id != 0 && header.cluster_id != seen.header.cluster_id {
            return Err(format!(
                "it belongs to cluster {:x}, but {:x} was seen",
                header.cluster_id, seen.header.cluster_id
            ));
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(cluster_id: u64, revision: i64, term: u64) -> Header {
        Header {
            cluster_id,
            revision,
            term,
        }
    }

    #[test]
    fn nothing_is_asked_of_a_doubted_store_however_far_its_revision_has_come() {
        let memory = StoreMemory::default();
        let before = memory.ask().unwrap();
        memory.believe(before, header(7, 100, 3)).unwrap();
        for other in [header(7, 99, 3), header(7, 100, 2), header(8, 100, 3)] {
            assert!(memory.believe(memory.ask().unwrap(), other).is_err());
        }
        memory.doubt("revision 1 after 100");
        assert!(matches!(memory.ask(), Err(DcsError::WentBack(_))));
        memory.accept(&header(7, 500, 9));
        assert_eq!(memory.header(), header(7, 500, 9));
        assert!(memory.ask_again(before).is_err(), "sent to another store");
        memory.doubt_as_of(before, "what was asked before says so");
        assert!(memory.ask().is_ok());
        assert!(memory.ask_again(memory.ask().unwrap()).is_ok());
    }
}
