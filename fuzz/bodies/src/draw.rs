//! Decisions that an input makes.

/// Draws decisions from the front of an input; behind its end everything drawn is zero or empty.
#[derive(Debug)]
pub(crate) struct Draw<'a> {
    rest: &'a [u8],
}

impl<'a> Draw<'a> {
    pub(crate) fn new(input: &'a [u8]) -> Self {
        Self { rest: input }
    }

    pub(crate) fn is_over(&self) -> bool {
        self.rest.is_empty()
    }

    pub(crate) fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.rest.split_first() else {
            return 0;
        };
        self.rest = rest;
        *first
    }

    pub(crate) fn flag(&mut self) -> bool {
        self.byte() & 1 == 1
    }

    /// A number below `bound`, which is not zero.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        match bound {
            0..=256 => usize::from(self.byte()) % bound,
            _ => (usize::from(self.byte()) << 8 | usize::from(self.byte())) % bound,
        }
    }

    pub(crate) fn choice<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    /// So many bytes, or as many as there are.
    pub(crate) fn bytes(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.rest.split_at(count.min(self.rest.len()));
        self.rest = rest;
        taken
    }

    /// Up to 255 bytes.
    pub(crate) fn short(&mut self) -> &'a [u8] {
        let count = usize::from(self.byte());
        self.bytes(count)
    }

    /// All that is left.
    pub(crate) fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }

    /// Bytes cut into pieces, none of them empty.
    pub(crate) fn pieces<'b>(&mut self, bytes: &'b [u8]) -> Vec<&'b [u8]> {
        let mut pieces = Vec::new();
        let mut rest = bytes;
        while !rest.is_empty() {
            // Behind the end of the input one byte at a time.
            let at = 1 + usize::from(self.byte());
            let (piece, tail) = rest.split_at(at.min(rest.len()));
            pieces.push(piece);
            rest = tail;
        }
        pieces
    }

    /// These bytes with up to three changes, which may leave them as they were.
    pub(crate) fn changed(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut changed = bytes.to_vec();
        for _ in 0..self.below(4) {
            let at = self.below(changed.len() + 1);
            match self.below(5) {
                0 => {
                    if let Some(byte) = changed.get_mut(at) {
                        *byte = self.byte();
                    }
                }
                1 => drop(changed.splice(at..at, self.short().iter().copied())),
                2 => {
                    let end = at + self.below(changed.len() - at + 1);
                    drop(changed.drain(at..end));
                }
                3 => changed.truncate(at),
                _ => changed = self.short().to_vec(),
            }
        }
        changed
    }
}
