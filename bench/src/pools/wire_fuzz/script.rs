//! What a client sends in one session, drawn by a number: valid and invalid, whole and cut off.

use fastrand::Rng;

use crate::pools::wire::{close, describe, execute, flush, message, parse, query, sync, terminate};

/// Rounds of a session at the most.
const ROUNDS: usize = 5;
/// Requests of a round at the most.
const REQUESTS: usize = 4;
/// Messages of a batch before its Sync at the most.
const BATCH: usize = 5;
/// Closes in a row that no drawn round has ([`end_of_round`]).
const CLOSES: usize = 4;

/// A message, and what a reader of the story is told of it.
#[derive(Clone, Debug)]
pub struct Sent {
    /// As it goes over the wire.
    pub bytes: Vec<u8>,
    /// In words.
    pub story: String,
}

/// What is sent without waiting for answers, in pieces of these lengths.
#[derive(Clone, Debug, Default)]
pub struct Round {
    /// The messages.
    pub sent: Vec<Sent>,
    /// How long the pieces are, bytes; the rest is one.
    pub pieces: Vec<usize>,
}

impl Round {
    /// Its bytes.
    pub fn bytes(&self) -> Vec<u8> {
        self.sent
            .iter()
            .flat_map(|sent| sent.bytes.clone())
            .collect()
    }

    fn push(&mut self, story: impl Into<String>, bytes: Vec<u8>) {
        let story = story.into();
        self.sent.push(Sent { bytes, story });
    }
}

/// How the session ends, once everything before is answered.
#[derive(Clone, Debug)]
pub enum End {
    /// Terminate.
    Said,
    /// The socket is closed.
    Closed,
    /// So many bytes of one more round are sent, and the socket is closed.
    Torn(Vec<u8>),
    /// Something is sent that no client may say.
    Breach(Sent),
}

/// One session.
#[derive(Clone, Debug)]
pub struct Script {
    /// It opens no transaction block and leaves nothing behind: the script of any mode.
    pub is_plain: bool,
    /// Settings of its start-up packet.
    pub settings: Vec<(&'static str, &'static str)>,
    /// What it asks.
    pub rounds: Vec<Round>,
    /// How it ends.
    pub end: End,
}

/// After this every session is in the same state, and the answer ends in a way that nothing else does: copying is given
/// up, what was skipped is synchronised, and so many statements that do not exist are closed.
pub fn end_of_round() -> Vec<u8> {
    let mut bytes = message(b'f', b"the end of the round\0");
    bytes.extend(sync());
    for _ in 0..CLOSES {
        bytes.extend(close("end_of_round"));
    }
    bytes.extend(sync());
    bytes
}

/// Whether the answer of a round is over: the kinds of what was answered, without what is said unasked.
pub fn is_over(kinds: &[u8]) -> bool {
    let end = [&[b'3'; CLOSES][..], b"Z"].concat();
    kinds.ends_with(&end)
}

/// Texts that any mode takes.
const PLAIN: [&str; 16] = [
    "SELECT 1",
    "SELECT 'a', NULL, 2.5",
    "SELECT n, t FROM wire ORDER BY n, t",
    "INSERT INTO wire VALUES (1, 'one')",
    "INSERT INTO wire VALUES (2, repeat('x', 9000))",
    "UPDATE wire SET n = n + 1 WHERE n < 100",
    "DELETE FROM wire WHERE n = 3",
    "INSERT INTO wire VALUES (7, 'seven') RETURNING n, t",
    "SELECT generate_series(1, 40)",
    "SELECT repeat('long', 20000)",
    "",
    "SELEC 1",
    "SELECT nothing FROM wire",
    "SELECT 1/0",
    "SELECT 1; SELECT 2; INSERT INTO wire VALUES (8, 'eight')",
    "INSERT INTO wire VALUES (9, 'nine'); SELECT 1/0",
];

/// Texts that open and end blocks, and leave something on a server.
const STATEFUL: [&str; 31] = [
    "BEGIN",
    "BEGIN",
    "BEGIN",
    "COMMIT",
    "COMMIT",
    "ROLLBACK",
    "SAVEPOINT a",
    "ROLLBACK TO a",
    "BEGIN; INSERT INTO wire VALUES (4, 'four'); COMMIT",
    "SET TimeZone = 'Asia/Tokyo'",
    "SET LOCAL TimeZone = 'Europe/Paris'",
    "SHOW TimeZone",
    "SET statement_timeout = '77s'",
    "SHOW statement_timeout",
    "SET application_name = 'drawn'",
    "SHOW application_name",
    "SET work_mem = '5MB'",
    "SHOW work_mem",
    "DECLARE c CURSOR FOR SELECT n FROM wire ORDER BY n",
    "FETCH 2 FROM c",
    "DECLARE h CURSOR WITH HOLD FOR SELECT generate_series(1, 9)",
    "FETCH 3 FROM h",
    "PREPARE own AS SELECT 42",
    "EXECUTE own",
    "DEALLOCATE s1",
    "DEALLOCATE ALL",
    "CREATE TEMP TABLE left_behind (n int)",
    "INSERT INTO left_behind VALUES (1)",
    "LISTEN wire",
    "NOTIFY wire, 'heard'",
    "DO $$ BEGIN RAISE NOTICE 'said'; RAISE WARNING 'warned'; END $$",
];

/// Texts with one parameter.
const ASKING: [&str; 6] = [
    "SELECT $1::int + 1",
    "SELECT 10 / $1::int",
    "INSERT INTO wire VALUES ($1::int, 'bound')",
    "INSERT INTO wire VALUES ($1::int, 'returned') RETURNING n",
    "SELECT n FROM wire WHERE n >= $1::int ORDER BY n, t",
    "SELECT generate_series(1, $1::int)",
];

const STATEMENTS: [&str; 3] = ["s1", "s2", "trunkline_1"];
const PORTALS: [&str; 2] = ["", "p1"];
const PARAMETERS: [&str; 5] = ["0", "1", "5", "x", ""];

struct Drawing<'r> {
    rng: &'r mut Rng,
    is_plain: bool,
    /// What RESET ALL comes to is not told in one way.
    may_reset: bool,
}

/// Draws a session.
pub fn draw(rng: &mut Rng) -> Script {
    let is_plain = rng.bool();
    let settings: Vec<_> = [
        ("TimeZone", "Asia/Kathmandu"),
        ("application_name", "wire"),
        ("extra_float_digits", "2"),
        ("options", "-c statement_timeout=99s"),
    ]
    .into_iter()
    .filter(|_| rng.u8(..4) == 0)
    .collect();
    let mut drawing = Drawing {
        may_reset: settings.is_empty(),
        rng,
        is_plain,
    };
    let rounds = (0..drawing.rng.usize(1..=ROUNDS)).map(|_| drawing.round());
    let rounds = rounds.collect();
    let end = drawing.end();
    Script {
        is_plain,
        settings,
        rounds,
        end,
    }
}

impl Drawing<'_> {
    fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.rng.usize(..of.len())]
    }

    fn sql(&mut self) -> &'static str {
        match self.rng.u8(..10) {
            _ if self.is_plain => self.one(&PLAIN),
            0 if self.may_reset => self.one(&["RESET ALL", "DISCARD ALL"]),
            0..6 => self.one(&STATEFUL),
            _ => self.one(&PLAIN),
        }
    }

    fn round(&mut self) -> Round {
        let mut round = Round::default();
        for _ in 0..self.rng.usize(1..=REQUESTS) {
            match self.rng.u8(..12) {
                0..4 => {
                    let sql = self.sql();
                    round.push(format!("Query {}", short(sql)), query(sql));
                }
                4..10 => self.batch(&mut round),
                10 => self.copy(&mut round),
                _ => self.call(&mut round),
            }
        }
        let length = round.bytes().len();
        if length > 0 && self.rng.bool() {
            for _ in 0..self.rng.usize(1..6) {
                round.pieces.push(self.rng.usize(1..=length.min(64)));
            }
        }
        round
    }

    /// Messages of the extended protocol and, nearly always, a Sync.
    fn batch(&mut self, round: &mut Round) {
        let mut has_unnamed = false;
        let closes = |round: &Round| {
            round
                .sent
                .iter()
                .filter(|sent| sent.bytes[0] == b'C')
                .count()
        };
        for _ in 0..self.rng.usize(1..=BATCH) {
            let name = match self.rng.u8(..3) {
                0 => "",
                _ => self.one(&STATEMENTS),
            };
            let portal = self.one(&PORTALS);
            match self.rng.u8(..12) {
                0..4 => {
                    let sql = match self.rng.u8(..3) {
                        0 => self.sql(),
                        _ => self.one(&ASKING),
                    };
                    // What takes a name away under another name is not seen by the router.
                    let is_hidden = !name.is_empty() && sql.starts_with("DEALLOCATE");
                    if !is_hidden {
                        has_unnamed |= name.is_empty();
                        round.push(format!("Parse {name:?} {}", short(sql)), parse(name, sql));
                    }
                }
                4..7 if has_unnamed || !name.is_empty() => {
                    self.bind(round, portal, name);
                    self.execute(round, portal);
                }
                7 if has_unnamed || !name.is_empty() => {
                    round.push(format!("Describe statement {name:?}"), describe(b'S', name));
                }
                8 => round.push(
                    format!("Describe portal {portal:?}"),
                    describe(b'P', portal),
                ),
                9 if closes(round) + 1 < CLOSES && !name.is_empty() => {
                    round.push(format!("Close statement {name:?}"), close(name));
                }
                10 => round.push("Flush", flush()),
                11 => self.execute(round, portal),
                _ => {}
            }
        }
        if self.rng.u8(..10) > 0 {
            round.push("Sync", sync());
        }
    }

    fn bind(&mut self, round: &mut Round, portal: &str, name: &str) {
        let parameter = match self.rng.u8(..8) {
            0 => None,
            _ => Some(self.one(&PARAMETERS)),
        };
        let story = format!("Bind {portal:?} {name:?} {parameter:?}");
        round.push(story, crate::pools::wire::bind(portal, name, parameter));
    }

    fn execute(&mut self, round: &mut Round, portal: &str) {
        let rows = self.one(&[0, 0, 0, 2]);
        round.push(format!("Execute {portal:?} {rows}"), execute(portal, rows));
    }

    /// Data for a table, ended or given up; and data out of it.
    fn copy(&mut self, round: &mut Round) {
        if self.rng.u8(..3) == 0 {
            let sql = "COPY (SELECT n, t FROM wire ORDER BY n, t) TO STDOUT";
            round.push("Query COPY TO STDOUT", query(sql));
            return;
        }
        let table = self.one(&["wire", "wire", "wire", "refused"]);
        let sql = format!("COPY {table} FROM STDIN");
        let is_extended = self.rng.bool();
        let mut is_synced = false;
        if is_extended {
            round.push(format!("Parse \"\" {sql}"), parse("", &sql));
            round.push("Bind \"\" \"\"", crate::pools::wire::bind_nothing());
            self.execute(round, "");
            is_synced = self.rng.bool();
            if is_synced {
                // As libpq sends it.
                round.push("Sync ahead of the data", sync());
            }
        } else {
            round.push(format!("Query {sql}"), query(&sql));
        }
        let lines = self.rng.usize(..4);
        for _ in 0..lines {
            let line = self.one(&[
                "11\televen\n",
                "12\ttwelve\n13\t",
                "thir",
                "teen\n",
                "wrong\n",
            ]);
            round.push(format!("CopyData {line:?}"), message(b'd', line.as_bytes()));
        }
        match self.rng.u8(..9) {
            0 => round.push("CopyFail", message(b'f', b"given up\0")),
            1 => round.push("Sync inside COPY", sync()),
            2 => round.push("Flush inside COPY", flush()),
            // As who takes it for a statement like others: what is asked next breaks the protocol.
            3 if !is_synced || lines == 0 => return,
            _ => {}
        }
        round.push("CopyDone", message(b'c', b""));
        if is_extended {
            // Without it nobody can tell what of the rest PostgreSQL ignores: the router says 08007.
            round.push("Sync", sync());
        }
    }

    /// A function by its number: int4pl, none, and one whose arguments end too early.
    fn call(&mut self, round: &mut Round) {
        let number: u32 = self.one(&[177, 177, 1]);
        let mut body = number.to_be_bytes().to_vec();
        // Formats as they are by default, which is text; two arguments; the result as text.
        body.extend_from_slice(&[0, 0, 0, 2, 0, 0, 0, 1, b'3', 0, 0, 0, 1, b'4', 0, 0]);
        round.push(format!("FunctionCall {number}"), message(b'F', &body));
    }

    fn end(&mut self) -> End {
        match self.rng.u8(..8) {
            0..3 => End::Said,
            3 => End::Closed,
            4..7 => {
                let mut bytes = self.round().bytes();
                bytes.extend(terminate());
                bytes.truncate(self.rng.usize(..=bytes.len()));
                End::Torn(bytes)
            }
            _ => {
                let (story, bytes) = self.one(&[
                    ("a message of no known kind", &b"y\0\0\0\x04"[..]),
                    ("a length of three", &b"Q\0\0\0\x03"[..]),
                    ("a length of two gigabytes", &b"Q\x7f\xff\xff\xff"[..]),
                    ("a Sync that is longer than it may be", &b"S\0\x10\0\0"[..]),
                    ("a message of the server", &b"Z\0\0\0\x05I"[..]),
                ]);
                End::Breach(Sent {
                    bytes: bytes.to_vec(),
                    story: story.to_owned(),
                })
            }
        }
    }
}

/// A text as the story has it.
fn short(sql: &str) -> String {
    format!("{:?}", sql.get(..60).unwrap_or(sql))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_draws_the_same_session_again() {
        let drawn = |seed| format!("{:?}", draw(&mut Rng::with_seed(seed)));
        assert_eq!(drawn(7), drawn(7));
        assert_ne!(drawn(7), drawn(8));
    }

    #[test]
    fn no_drawn_answer_looks_like_the_end_of_a_round() {
        for seed in 0..2000 {
            for round in draw(&mut Rng::with_seed(seed)).rounds {
                // Each is answered by one message, and fewer of them than end a round.
                let kinds = round.sent.iter().map(|sent| sent.bytes[0]);
                let closes = kinds.filter(|kind| *kind == b'C').count();
                assert!(closes < CLOSES, "seed {seed}: {closes} closes");
            }
        }
    }
}
