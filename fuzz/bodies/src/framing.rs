//! Messages in pieces: what is known of a stream depends on its bytes alone, not on how they came.

use trunkline_router::protocol::frame::{Conversation, Frames};
use trunkline_router::protocol::records::Records;
use trunkline_router::protocol::splice::{Splice, head, text};
use trunkline_router::protocol::veil::{Cover, Veil};

use crate::draw::Draw;
use crate::exchange;

/// Looks at both directions of a session.
pub fn run(data: &[u8]) {
    let mut draw = Draw::new(data);
    match draw.below(6) {
        0 => conversation(&mut draw),
        1 => headers(&mut draw),
        2 => under_tls(&mut draw),
        3 => spliced(&mut draw),
        4 => exchange::kept_to(&mut draw),
        _ => exchange::not_kept_to(&mut draw),
    }
}

/// Some bytes of one direction: true is to the server.
fn stretches<'a>(draw: &mut Draw<'a>) -> Vec<(bool, &'a [u8])> {
    let mut stretches = Vec::new();
    while !draw.is_over() && stretches.len() < 32 {
        stretches.push((draw.flag(), draw.short()));
    }
    stretches
}

fn conversation(draw: &mut Draw<'_>) {
    let cuts = draw.short();
    let stretches = stretches(draw);
    let mut cuts = Draw::new(cuts);
    let (mut whole, mut pieces) = (Conversation::default(), Conversation::default());
    for (is_to_server, bytes) in stretches {
        match is_to_server {
            true => whole.sent_to_server(bytes),
            false => whole.taken_by_client(bytes),
        }
        for piece in cuts.pieces(bytes) {
            match is_to_server {
                true => pieces.sent_to_server(piece),
                false => pieces.taken_by_client(piece),
            }
        }
        assert_eq!(whole, pieces);
        assert!(!(whole.is_lost() && whole.is_at_boundary()));
        // A header that has come by half has an end, too.
        let is_inside = !whole.is_lost() && !whole.is_at_boundary();
        assert_eq!(is_inside, whole.bytes_to_boundary() > 0);
    }
}

/// The cursor, and the messages as they stand there.
fn headers(draw: &mut Draw<'_>) {
    let mut cuts = Draw::new(draw.short());
    let bytes = draw.rest();
    let (mut frames, mut ended) = (Frames::default(), Vec::new());
    for piece in cuts.pieces(bytes) {
        frames.advance(piece, |kind| ended.push(kind));
    }
    let (mut at, mut seen) = (0, Vec::new());
    let is_lost = loop {
        match head(&bytes[at..]) {
            Ok(Some((kind, length))) if length <= bytes.len() - at => {
                seen.push(kind);
                at += length;
                // The text at its beginning is a part of it.
                if let Some((text, rest)) = text(&bytes[at - length + 5..at]) {
                    assert_eq!(text.len() + 1 + rest.len() + 5, length);
                }
            }
            Ok(_) => break false,
            // The cursor, which passes everything on, takes what is merely too long for PostgreSQL.
            Err(bad) if bad.length >= 4 => return,
            Err(_) => break true,
        }
    };
    assert_eq!((ended, frames.is_lost()), (seen, is_lost));
    assert_eq!(frames.is_at_boundary(), !is_lost && at == bytes.len());
}

fn under_tls(draw: &mut Draw<'_>) {
    let cover = draw.choice(&[Cover::Tls, Cover::Gss]);
    let mut cuts = Draw::new(draw.short());
    let (mut whole, mut pieces) = (Veil::new(cover), Veil::new(cover));
    let (mut records, mut in_pieces) = (Records::default(), Records::default());
    for (is_to_server, bytes) in stretches(draw) {
        match is_to_server {
            true => whole.sent_to_server(bytes),
            false => whole.taken_by_client(bytes),
        }
        records.see(bytes);
        for piece in cuts.pieces(bytes) {
            match is_to_server {
                true => pieces.sent_to_server(piece),
                false => pieces.taken_by_client(piece),
            }
            in_pieces.see(piece);
        }
        assert_eq!(whole.may_be_greeted(), pieces.may_be_greeted());
        assert_eq!(records.is_whole(), in_pieces.is_whole());
    }
    assert_eq!(format!("{whole:?}"), format!("{pieces:?}"));
    assert_eq!(format!("{records:?}"), format!("{in_pieces:?}"));
}

/// Bytes of which some are replaced, and the same by hand.
fn spliced(draw: &mut Draw<'_>) {
    let input = draw.short();
    let mut out = b"what was left there".to_vec();
    let mut splice = Splice::new(input, &mut out);
    let (mut expected, mut from) = (Vec::new(), 0);
    for _ in 0..draw.below(16) {
        let at = from + draw.below(input.len() - from + 1);
        let resume = at + draw.below(input.len() - at + 1);
        let with = draw.short();
        splice.replace(at, resume).extend_from_slice(with);
        expected.extend_from_slice(&input[from..at]);
        expected.extend_from_slice(with);
        from = resume;
        assert_eq!(splice.written(), expected.len());
    }
    let end = draw.below(input.len() + 1);
    expected.extend_from_slice(&input[from..end.max(from)]);
    assert_eq!(splice.finish(end), expected);
}
