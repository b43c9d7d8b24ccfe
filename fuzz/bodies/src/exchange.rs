//! What a pooled server owes its client, beside a server that keeps to the protocol, and one that does not.

use std::collections::VecDeque;

use trunkline_router::protocol::exchange::{
    Act, Block, Exchange, Expect, Fate, Heard, Status, Verdict,
};

use crate::draw::Draw;

/// Messages of a script at the most.
const LONGEST: usize = 200;
const STATUSES: [Status; 3] = [Status::Idle, Status::Transaction, Status::Failed];

/// What the client is told in the place of DEALLOCATE, as one letter.
fn letters(bytes: &[u8]) -> impl Iterator<Item = u8> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let (kind, tail) = rest.split_first()?;
        let (length, _) = tail.split_first_chunk::<4>()?;
        rest = &tail[usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX)..];
        Some(*kind)
    })
}

fn drawn(draw: &mut Draw<'_>) -> Expect {
    let act = Act {
        block: draw.choice(&[Block::Begins, Block::Stays, Block::RollsBack, Block::MayEnd]),
        drops: draw.flag(),
    };
    let statement = u32::from(draw.byte() % 4);
    let is_hidden = draw.flag();
    draw.choice(&[
        Expect::Parse {
            statement,
            is_hidden,
        },
        Expect::Bind,
        Expect::Describe {
            is_statement: is_hidden,
            block: Block::Stays,
        },
        Expect::Close {
            statement,
            is_hidden,
        },
        Expect::Execute(act),
        Expect::ExecuteDeallocate,
        Expect::Sync,
        Expect::Sync,
        Expect::Query(act),
        Expect::Function,
        Expect::OwedParse,
        Expect::OwedClose,
        Expect::Deallocate,
    ])
}

/// Whether it gives or takes a name of the client's.
fn renames(expect: Expect) -> bool {
    match expect {
        Expect::OwedParse
        | Expect::OwedClose
        | Expect::Deallocate
        | Expect::OwedDeallocate
        | Expect::ExecuteDeallocate => true,
        Expect::Parse {
            statement,
            is_hidden,
        } => statement > 0 && !is_hidden,
        Expect::Close { .. }
        | Expect::Bind
        | Expect::Describe { .. }
        | Expect::Execute(_)
        | Expect::Sync
        | Expect::Query(_)
        | Expect::Function
        | Expect::CopyEnd
        | Expect::Probe => false,
    }
}

fn ends_a_batch(expect: Expect) -> bool {
    matches!(
        expect,
        Expect::Sync | Expect::Query(_) | Expect::Function | Expect::Deallocate
    )
}

/// One message and how the server takes it.
#[derive(Clone, Copy)]
struct Asked {
    expect: Expect,
    fails: bool,
    status: Status,
    /// Rows of an answer that has such.
    rows: usize,
}

impl Asked {
    /// The kinds of the messages that answer it, ReadyForQuery included.
    fn answer(self) -> Vec<u8> {
        let done = |kinds: &[u8]| match self.fails {
            true => b"E".to_vec(),
            false => kinds.to_vec(),
        };
        let with_rows = |before: &[u8]| [before, &vec![b'D'; self.rows][..], &b"C"[..]].concat();
        match self.expect {
            Expect::Parse { .. } => done(b"1"),
            Expect::Bind => done(b"2"),
            Expect::Describe {
                is_statement: true, ..
            } => done([b"tT", b"tn"][self.rows % 2]),
            Expect::Describe {
                is_statement: false,
                ..
            } => done([b"n", b"T"][self.rows % 2]),
            Expect::Close { .. } => b"3".to_vec(),
            Expect::Execute(_) => match self.rows % 4 {
                0 => done(b"I"),
                1 => done(b"Ds"),
                _ => done(&with_rows(b"")),
            },
            Expect::ExecuteDeallocate => done(b"C"),
            Expect::Sync => match self.fails {
                true => b"EZ".to_vec(),
                false => b"Z".to_vec(),
            },
            Expect::Query(_) => match (self.rows % 3, self.fails) {
                (0, false) => b"IZ".to_vec(),
                // Rows may have come before it failed.
                (1, true) => b"TDCTDEZ".to_vec(),
                (_, true) => b"EZ".to_vec(),
                (_, false) => [&with_rows(b"T")[..], b"CZ"].concat(),
            },
            Expect::Function => [&done(b"V")[..], b"Z"].concat(),
            Expect::Deallocate => [&done(b"TDC")[..], b"Z"].concat(),
            Expect::Probe => b"3".to_vec(),
            Expect::CopyEnd | Expect::OwedParse | Expect::OwedClose | Expect::OwedDeallocate => {
                Vec::new()
            }
        }
    }

    /// What of that the client is to hear.
    fn heard(self) -> Vec<u8> {
        let is_hidden = match self.expect {
            Expect::Parse { is_hidden, .. } | Expect::Close { is_hidden, .. } => is_hidden,
            _ => false,
        };
        match self.expect {
            Expect::OwedParse => b"1".to_vec(),
            Expect::OwedClose => b"3".to_vec(),
            Expect::Deallocate if !self.fails => b"CZ".to_vec(),
            _ if is_hidden && (!self.fails || matches!(self.expect, Expect::Close { .. })) => {
                Vec::new()
            }
            _ => self.answer(),
        }
    }

    /// Whether the server ignores what follows it, up to a Sync.
    fn starts_skipping(self) -> bool {
        self.fails && !ends_a_batch(self.expect) && self.answer() == b"E"
    }
}

/// A whole conversation: what the client hears is what PostgreSQL says to what the client itself has asked.
#[derive(Default)]
struct Talk {
    exchange: Exchange,
    /// On the way to the server.
    to_server: VecDeque<Asked>,
    server_skips: bool,
    script: Vec<Asked>,
    heard: Vec<u8>,
    renames: usize,
    renamed: usize,
    status: Option<Status>,
}

impl Talk {
    fn ask(&mut self, asked: Asked) {
        self.script.push(asked);
        let is_owed = matches!(asked.expect, Expect::OwedParse | Expect::OwedClose);
        let is_ignored = self.exchange.is_skipping() && asked.expect != Expect::Sync;
        // As the router does: nothing is answered in the place of a server that ignores it.
        if is_owed && is_ignored {
            return;
        }
        if !is_ignored {
            self.renames += usize::from(renames(asked.expect));
        }
        self.exchange.sent(asked.expect);
        if !is_owed {
            self.to_server.push_back(asked);
        }
    }

    /// Has the server answer the oldest message that it was sent.
    fn answer(&mut self, says_something_else: bool) {
        let Some(asked) = self.to_server.pop_front() else {
            return;
        };
        if self.server_skips && asked.expect != Expect::Sync {
            return;
        }
        self.server_skips = asked.starts_skipping();
        if says_something_else {
            let verdict = self.exchange.answered(b'N', |_| {});
            assert_eq!(verdict, Verdict::Pass);
        }
        for kind in asked.answer() {
            self.settle();
            let verdict = match kind {
                b'Z' => {
                    self.status = Some(asked.status);
                    self.exchange.ready(asked.status)
                }
                _ => {
                    let renamed = &mut self.renamed;
                    self.exchange.answered(kind, |heard| match heard {
                        Heard::Renamed => *renamed += 1,
                        Heard::NotRenamed(count) => *renamed += count,
                        Heard::NotPrepared(statement) | Heard::NotClosed(statement) => {
                            assert!(statement > 0);
                        }
                    })
                }
            };
            assert_ne!(verdict, Verdict::Lost, "{kind} is an answer");
            if verdict == Verdict::Pass {
                self.heard.push(kind);
            }
            self.settle();
        }
    }

    fn settle(&mut self) {
        if self.exchange.owes() {
            let mut out = Vec::new();
            self.renamed += self.exchange.settle(&mut out);
            self.heard.extend(letters(&out));
            assert!(!self.exchange.owes());
        }
    }

    /// What the client hears of a server of its own.
    fn expected(&self) -> Vec<u8> {
        let (mut heard, mut skips) = (Vec::new(), false);
        for asked in &self.script {
            if skips && asked.expect != Expect::Sync {
                continue;
            }
            heard.extend(asked.heard());
            skips = asked.starts_skipping();
        }
        heard
    }
}

/// Beside a server that keeps to the protocol.
pub(crate) fn kept_to(draw: &mut Draw<'_>) {
    let mut talk = Talk::default();
    while !draw.is_over() && talk.script.len() < LONGEST {
        match draw.below(2) {
            0 => talk.ask(Asked {
                expect: drawn(draw),
                fails: draw.below(4) == 0,
                status: draw.choice(&STATUSES),
                rows: draw.below(5),
            }),
            _ => {
                let says_something_else = draw.below(8) == 0;
                talk.answer(says_something_else);
            }
        }
        sane(&talk.exchange);
    }
    while !talk.to_server.is_empty() {
        talk.answer(false);
    }
    talk.settle();
    let (heard, expected) = (
        String::from_utf8_lossy(&talk.heard).into_owned(),
        String::from_utf8_lossy(&talk.expected()).into_owned(),
    );
    assert_eq!(heard, expected);
    assert_eq!(
        talk.renamed, talk.renames,
        "every change of a name has an end"
    );
    if talk
        .script
        .last()
        .is_some_and(|last| ends_a_batch(last.expect))
        && !talk.server_skips
    {
        assert!(talk.exchange.is_quiet());
        assert_eq!(talk.exchange.unanswered(), (0, false));
        assert_eq!(Some(talk.exchange.status()), talk.status);
        // The next client on this server waits for nothing of this one's.
        let exchange = &mut talk.exchange;
        assert!(!exchange.are_statements_uncertain() && !exchange.is_unnamed_uncertain());
        exchange.hold();
        assert!(!exchange.is_held());
    }
}

/// What holds whatever was said.
fn sane(exchange: &Exchange) {
    let (unanswered, is_open) = exchange.unanswered();
    if exchange.is_quiet() {
        assert_eq!((unanswered, is_open), (0, false));
        assert!(!exchange.owes() && !exchange.is_owed_an_answer());
    }
    assert_eq!(
        exchange.is_idle(),
        exchange.is_quiet() && exchange.status() == Status::Idle
    );
    // Nothing to lose is only what nothing was asked of, or what the router has asked of itself.
    if exchange.is_idle() || exchange.is_in_doubt() && exchange.status() == Status::Idle {
        assert_eq!(exchange.fate(), Fate::Nothing);
    }
    if exchange.fate() == Fate::Nothing {
        assert_eq!((unanswered, is_open), (0, false));
        assert_eq!(exchange.status(), Status::Idle);
    }
    if exchange.is_quiet() || exchange.is_in_doubt() {
        assert!(!exchange.is_skipping());
    }
    // Who is told that it is rolled back is told so to the end of what it has sent.
    if exchange.fate() == Fate::GivenUp {
        let mut out = Vec::new();
        exchange.give_up(&mut out);
        let told: Vec<u8> = letters(&out).collect();
        let ends = told.iter().filter(|kind| **kind == b'Z').count();
        assert_eq!(ends, usize::from(!is_open));
        assert!(told.iter().all(|kind| b"123tnCZ".contains(kind)));
    }
}

/// Beside one that says anything, copies data, and ends nothing that it began.
pub(crate) fn not_kept_to(draw: &mut Draw<'_>) {
    let mut exchange = Exchange::default();
    for _ in 0..LONGEST {
        if draw.is_over() {
            return;
        }
        let verdict = match draw.below(6) {
            0 => {
                exchange.sent(drawn(draw));
                Verdict::Pass
            }
            1 => {
                exchange.sent(Expect::CopyEnd);
                Verdict::Pass
            }
            2 => exchange.ready(draw.choice(&STATUSES)),
            3 => {
                exchange.settle(&mut Vec::new());
                exchange.hold();
                Verdict::Pass
            }
            4 => exchange.answered(draw.choice(b"12CDEGHIKNSTVWZcdnst3A"), |_| {}),
            _ => exchange.answered(draw.byte(), |_| {}),
        };
        if verdict == Verdict::Lost {
            return;
        }
        sane(&exchange);
        exchange.may_drop();
        if exchange.is_in_doubt() {
            exchange.sent(Expect::Probe);
            assert!(!exchange.is_in_doubt());
            sane(&exchange);
        }
        exchange.is_unnamed_of_a_later_batch();
        let _ = exchange.are_statements_uncertain() | exchange.is_unnamed_uncertain();
    }
}
