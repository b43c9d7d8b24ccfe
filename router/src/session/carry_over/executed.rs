//! What an Execute executes: what the texts behind a client's statements and portals do. Pure.

use std::collections::BTreeMap;

use crate::protocol::exchange::Act;

/// So many names are remembered; what has another one does what nobody knows.
const MAX_NAMES: usize = 1000;
/// Longer names are not remembered, bytes.
const MAX_NAME: usize = 64;

/// What is behind a client's statements and portals.
#[derive(Debug)]
pub struct Executed {
    unnamed_statement: Act,
    unnamed_portal: Act,
    /// The statements of the client that the unnamed statement and the unnamed portal take away.
    takes_away: [Option<Box<[u8]>>; 2],
    /// Portals and statements by kind and name. What was behind a name once may be so still: a server that
    /// skips to a Sync, or refuses, keeps the old one.
    named: BTreeMap<Box<[u8]>, Act>,
}

impl Default for Executed {
    fn default() -> Self {
        Self {
            unnamed_statement: Act::UNKNOWN,
            unnamed_portal: Act::UNKNOWN,
            takes_away: [None, None],
            named: BTreeMap::new(),
        }
    }
}

impl Executed {
    /// A statement is prepared.
    pub fn parsed(&mut self, name: &[u8], act: Act) {
        match name {
            b"" => {
                self.unnamed_statement = act;
                self.takes_away[0] = None;
            }
            name => self.note(b'S', name, act),
        }
    }

    /// The unnamed statement, just prepared, takes this one away.
    pub fn takes_away(&mut self, name: &[u8]) {
        self.takes_away[0] = Some(name.into());
    }

    /// What the unnamed portal takes away, which it does once.
    pub fn taken_away(&mut self) -> Option<Box<[u8]>> {
        self.takes_away[1].take()
    }

    /// What a statement does.
    pub fn statement(&self, name: &[u8]) -> Act {
        match name {
            b"" => self.unnamed_statement,
            name => self.find(b'S', name),
        }
    }

    /// A statement is bound to a portal; it does this.
    pub fn bound(&mut self, portal: &[u8], statement: &[u8], act: Act) {
        match portal {
            b"" => {
                self.unnamed_portal = act;
                let is_unnamed = statement.is_empty();
                self.takes_away[1] = self.takes_away[0].clone().filter(|_| is_unnamed);
            }
            name => self.note(b'P', name, act),
        }
    }

    /// What a portal does.
    pub fn portal(&self, name: &[u8]) -> Act {
        match name {
            b"" => self.unnamed_portal,
            name => self.find(b'P', name),
        }
    }

    /// A simple query, or an error: what has no name may be gone, or be what it was before.
    pub fn doubt_unnamed(&mut self) {
        self.unnamed_statement = Act::UNKNOWN;
        self.unnamed_portal = Act::UNKNOWN;
        self.takes_away = [None, None];
    }

    fn note(&mut self, kind: u8, name: &[u8], act: Act) {
        let key = key(kind, name);
        let is_room = name.len() <= MAX_NAME && self.named.len() < MAX_NAMES;
        if let Some(known) = self.named.get_mut(&key) {
            *known = known.or(act);
        } else if is_room {
            self.named.insert(key, act);
        }
    }

    fn find(&self, kind: u8, name: &[u8]) -> Act {
        let known = self.named.get(&key(kind, name));
        known.copied().unwrap_or(Act::UNKNOWN)
    }
}

fn key(kind: u8, name: &[u8]) -> Box<[u8]> {
    [&[kind][..], name].concat().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::exchange::Block;

    const STAYS: Act = Act {
        block: Block::Stays,
        drops: false,
    };

    #[test]
    fn only_what_is_known_for_certain_stays_in_its_transaction() {
        let mut own = Executed::default();
        assert_eq!(own.portal(b""), Act::UNKNOWN);
        own.parsed(b"", STAYS);
        own.bound(b"", b"", own.statement(b""));
        own.parsed(b"s", STAYS);
        own.bound(b"p", b"s", own.statement(b"s"));
        assert_eq!((own.portal(b""), own.portal(b"p")), (STAYS, STAYS));
        // A statement is no portal, and a name that was never given is nothing known.
        assert_eq!(own.portal(b"s"), Act::UNKNOWN);
        assert_eq!(own.statement(b"t"), Act::UNKNOWN);
        // A name that has ended a transaction may do so for ever.
        own.parsed(b"s", Act::UNKNOWN);
        own.parsed(b"s", STAYS);
        assert_eq!(own.statement(b"s"), Act::UNKNOWN);
        own.doubt_unnamed();
        assert_eq!(own.portal(b""), Act::UNKNOWN);
        assert_eq!(own.statement(b""), Act::UNKNOWN);
    }

    #[test]
    fn what_takes_a_statement_away_does_so_once_and_by_the_portal_it_is_bound_to() {
        let mut own = Executed::default();
        own.parsed(b"", STAYS);
        own.takes_away(b"s");
        assert_eq!(own.taken_away(), None);
        own.bound(b"", b"", STAYS);
        assert_eq!(own.taken_away().as_deref(), Some(&b"s"[..]));
        assert_eq!(own.taken_away(), None);
        own.bound(b"", b"other", STAYS);
        assert_eq!(own.taken_away(), None);
        own.bound(b"", b"", STAYS);
        own.parsed(b"", STAYS);
        assert_eq!(own.taken_away().as_deref(), Some(&b"s"[..]));
        own.bound(b"", b"", STAYS);
        assert_eq!(own.taken_away(), None);
    }

    #[test]
    fn more_names_than_are_remembered_are_unknown() {
        let mut own = Executed::default();
        own.parsed(&[b'x'; MAX_NAME + 1], STAYS);
        assert_eq!(own.statement(&[b'x'; MAX_NAME + 1]), Act::UNKNOWN);
        for number in 0..=MAX_NAMES {
            own.parsed(number.to_string().as_bytes(), STAYS);
        }
        assert_eq!(own.statement(b"1"), STAYS);
        let last = MAX_NAMES.to_string();
        assert_eq!(own.statement(last.as_bytes()), Act::UNKNOWN);
    }
}
