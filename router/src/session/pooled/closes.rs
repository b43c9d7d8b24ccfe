//! What only closes named statements, of a client that has no server: the names are kept here, and PostgreSQL finds nothing
//! wrong with one that is not known either. Drivers close a statement whenever its owner drops it and hear no error then: where
//! clients are held, or wait for a server, the next request would find the session closed without a reason.

use std::task::Context;

use super::{Pooled, Turn, write_on};
use crate::protocol::messages::{self, CLOSE_COMPLETE};
use crate::protocol::splice::head;
use crate::session::carry_over::look::PinReason;

impl Pooled {
    /// Answers what stands at the beginning of `bytes` and only closes statements; returns its length.
    pub(super) fn close_here(
        &mut self,
        bytes: &[u8],
        out: &mut Vec<u8>,
        cx: &mut Context<'_>,
    ) -> Result<usize, Turn> {
        let is_shared = !self.pinned.is_some_and(PinReason::is_from_the_start);
        if self.door.limit == 0 || !is_shared || self.left > 0 {
            return Ok(0);
        }
        let end = only_closes(bytes);
        if end == 0 {
            return Ok(0);
        }
        out.clear();
        for message in messages_of(&bytes[..end]) {
            if let Asked::Close(name) = message {
                self.statements.get_mut().name(name, None);
                out.extend_from_slice(CLOSE_COMPLETE);
            } else {
                messages::ready(out, b'I');
            }
        }
        let told = write_on(&mut self.client, &mut self.to_client, out, cx);
        told.map_err(|_| Turn::ClientLeft)?;
        Ok(end)
    }
}

/// A message of such a batch.
enum Asked<'a> {
    /// Close of a statement of this name.
    Close(&'a [u8]),
    Sync,
}

/// The messages at the beginning that may stand in such a batch, as far as they are there as a whole.
fn messages_of(bytes: &[u8]) -> impl Iterator<Item = Asked<'_>> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let (kind, total) = head(rest).ok()??;
        let (message, behind) = rest.split_at_checked(total)?;
        rest = behind;
        match (kind, &message[5..]) {
            (b'C', [b'S', name @ .., 0]) if !name.is_empty() => Some(Asked::Close(name)),
            (b'S', []) => Some(Asked::Sync),
            _ => None,
        }
    })
}

/// The length of the batches at the beginning that only close named statements.
fn only_closes(bytes: &[u8]) -> usize {
    let (mut end, mut at, mut closes) = (0, 0, 0);
    for message in messages_of(bytes) {
        match message {
            Asked::Close(name) => {
                at += name.len() + 7;
                closes += 1;
            }
            // Alone it asks whether a server is there.
            Asked::Sync if closes == 0 => break,
            Asked::Sync => {
                at += 5;
                (end, closes) = (at, 0);
            }
        }
    }
    end
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(kind: u8, name: &str) -> Vec<u8> {
        let length = name.len() as u32 + 6;
        let head = [&b"C"[..], &length.to_be_bytes(), &[kind]].concat();
        [&head, name.as_bytes(), b"\0"].concat()
    }

    #[test]
    fn only_whole_batches_that_close_named_statements_count() {
        let (named, sync) = (close(b'S', "s1"), b"S\0\0\0\x04".to_vec());
        let length = |parts: &[&[u8]]| only_closes(&parts.concat());
        let one = named.len() + 5;
        assert_eq!(length(&[&named, &sync]), one);
        assert_eq!(
            length(&[&named, &named, &sync, &named, &sync]),
            3 * named.len() + 10
        );
        assert_eq!(length(&[&named, &sync, b"P\0\0\0\x08"]), one);
        assert_eq!(length(&[&named, &sync, &named]), one);
        assert_eq!(length(&[&named, &sync, &sync]), one);
        for other in [
            &[&sync[..]][..],
            &[&named],
            &[&named, &sync[..4]],
            &[&close(b'S', ""), &sync],
            &[&close(b'P', "p"), &sync],
            &[&named, b"H\0\0\0\x04", &sync],
            &[b"C\0\0\0\x03", &sync],
            &[],
        ] {
            assert_eq!(length(other), 0);
        }
    }
}
