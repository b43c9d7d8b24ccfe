//! Bytes that a peer would not take yet.

/// What was read for a peer and is not written yet. Empty, it owns no memory.
#[derive(Debug, Default)]
pub struct HeldBack {
    bytes: Vec<u8>,
    taken: usize,
}

impl HeldBack {
    /// Holds these bytes.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self { bytes, taken: 0 }
    }

    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// What is to be written.
    pub fn rest(&self) -> &[u8] {
        &self.bytes[self.taken..]
    }

    /// Adds bytes at the end.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Notes that so many bytes were written.
    pub fn take(&mut self, count: usize) {
        self.taken += count;
        if self.taken == self.bytes.len() {
            // Not cleared but given back: an idle connection owns no buffer.
            *self = HeldBack::default();
        }
    }
}
