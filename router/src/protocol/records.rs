//! Where TLS records begin and end in bytes that come in pieces: only their headers are read. Pure.

/// Kind, version (two bytes), length (two bytes).
pub const RECORD_HEADER: usize = 5;

/// A place among the records of one direction.
#[derive(Clone, Copy, Debug, Default)]
pub struct Records {
    header: [u8; RECORD_HEADER],
    /// Bytes of the next header that have come.
    have: usize,
    /// Bytes of the current record that have not come.
    left: usize,
}

impl Records {
    /// Goes on to the end of the next header and returns its record's kind; `None` if the bytes end before.
    pub fn next(&mut self, rest: &mut &[u8]) -> Option<u8> {
        while let [first, more @ ..] = *rest {
            if self.left > 0 {
                let step = rest.len().min(self.left);
                self.left -= step;
                *rest = &rest[step..];
                continue;
            }
            self.header[self.have] = *first;
            self.have += 1;
            *rest = more;
            if self.have == RECORD_HEADER {
                let [kind, _, _, high, low] = self.header;
                self.left = usize::from(u16::from_be_bytes([high, low]));
                self.have = 0;
                return Some(kind);
            }
        }
        None
    }

    /// Passes over bytes.
    pub fn see(&mut self, mut bytes: &[u8]) {
        while self.next(&mut bytes).is_some() {}
    }

    /// Whether the bytes so far end with a record.
    pub fn is_whole(&self) -> bool {
        self.have == 0 && self.left == 0
    }
}
