//! Bytes on their way through, of which most stay as they are: nothing is copied before the first change.

/// What goes on of an input.
#[derive(Debug)]
pub struct Splice<'a> {
    input: &'a [u8],
    out: &'a mut Vec<u8>,
    /// From here on the input was not looked at for the output.
    from: usize,
    is_changed: bool,
}

impl<'a> Splice<'a> {
    /// Begins with an input, and a buffer that is used only if something changes.
    pub fn new(input: &'a [u8], out: &'a mut Vec<u8>) -> Self {
        out.clear();
        Self {
            input,
            out,
            from: 0,
            is_changed: false,
        }
    }

    /// Everything before `at` goes on as it is; then what is written into the buffer; then the input from
    /// `resume` on.
    pub fn replace(&mut self, at: usize, resume: usize) -> &mut Vec<u8> {
        self.out.extend_from_slice(&self.input[self.from..at]);
        self.from = resume;
        self.is_changed = true;
        self.out
    }

    /// How much of the output stands in the buffer, bytes.
    pub fn written(&self) -> usize {
        self.out.len()
    }

    /// The output for the input up to `end`.
    pub fn finish(self, end: usize) -> &'a [u8] {
        if !self.is_changed {
            return &self.input[..end];
        }
        // A message that is left out may be longer than the input.
        let end = end.max(self.from);
        self.out
            .extend_from_slice(&self.input[self.from.min(end)..end]);
        self.out
    }
}

/// The kind and the whole length, kind included, of the message that begins here; `None` if its header has
/// not come.
///
/// # Errors
/// A length that no message has.
pub fn head(bytes: &[u8]) -> Result<Option<(u8, usize)>, BadLength> {
    let Some((header, _)) = bytes.split_at_checked(5) else {
        return Ok(None);
    };
    let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]);
    if !(4..=MAX_MESSAGE).contains(&length) {
        return Err(BadLength {
            kind: header[0],
            length,
        });
    }
    Ok(Some((header[0], 1 + length as usize)))
}

/// The longest message, bytes: PostgreSQL's `PQ_LARGE_MESSAGE_LIMIT`.
const MAX_MESSAGE: u32 = 0x3FFF_FFFF;

/// A length that no message has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadLength {
    /// The kind of the message.
    pub kind: u8,
    /// Its length, without the kind.
    pub length: u32,
}

/// The text up to the next zero byte, and what follows that; `None` if there is none.
pub fn text(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = memchr::memchr(0, bytes)?;
    Some((&bytes[..end], &bytes[end + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_changed_is_not_copied() {
        let mut out = Vec::new();
        let input = b"abcdef";
        let splice = Splice::new(input, &mut out);
        assert_eq!(splice.finish(4).as_ptr(), input.as_ptr());
        let mut splice = Splice::new(input, &mut out);
        splice.replace(1, 3).extend_from_slice(b"X");
        splice.replace(3, 3).extend_from_slice(b"Y");
        assert_eq!(splice.finish(5), b"aXYde");
        let mut splice = Splice::new(input, &mut out);
        splice.replace(0, 2);
        splice.replace(5, 6);
        assert_eq!(splice.finish(6), b"cde");
    }

    #[test]
    fn a_header_says_kind_and_length() {
        assert_eq!(head(b"Q\0\0\0"), Ok(None));
        assert_eq!(head(b"Q\0\0\0\x04"), Ok(Some((b'Q', 5))));
        assert!(head(b"Q\0\0\0\x03").is_err() && head(b"Q\x40\0\0\0").is_err());
        assert_eq!(text(b"a\0b"), Some((&b"a"[..], &b"b"[..])));
        assert_eq!(text(b"ab"), None);
    }
}
