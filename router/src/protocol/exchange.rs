//! What a pooled server was asked and has not answered yet, message by message: when it stands between two
//! transactions, which of its answers the client never asked for, and which answers the router owes.

use std::collections::VecDeque;

pub use expect::{Act, Block, Expect};

use crate::protocol::messages::{CLOSE_COMPLETE, DEALLOCATED, PARSE_COMPLETE};

mod batches;
mod copy;
mod expect;
mod given_up;

/// The most answers that may be outstanding. A client that sends more is not read until some have come.
pub const MAX_OUTSTANDING: usize = 65_536;

/// The status of a ReadyForQuery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// `I`: between transactions.
    Idle,
    /// `T`: in a transaction.
    Transaction,
    /// `E`: in a transaction that failed.
    Failed,
}

impl Status {
    /// From its letter.
    pub fn from_letter(letter: u8) -> Option<Self> {
        match letter {
            b'I' => Some(Status::Idle),
            b'T' => Some(Status::Transaction),
            b'E' => Some(Status::Failed),
            _ => None,
        }
    }
}

/// What to do with a message of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Pass it on.
    Pass,
    /// The client did not ask for it.
    Hide,
    /// It answers nothing that was asked: this stream cannot be trusted any more.
    Lost,
}

impl Verdict {
    fn of(is_hidden: bool) -> Self {
        match is_hidden {
            true => Verdict::Hide,
            false => Verdict::Pass,
        }
    }
}

/// What becomes of statements that the server was asked to prepare or close.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// The oldest change of a name that was not certain is.
    Renamed,
    /// So many of the oldest changes of names do not happen: what changed them is skipped.
    NotRenamed(usize),
    /// This one is not prepared after all.
    NotPrepared(u32),
    /// This one is prepared still.
    NotClosed(u32),
}

/// What has become of the requests of a server that is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Nothing was outstanding, no transaction open.
    Nothing,
    /// All of it was inside a transaction whose end was not asked for: it did not happen.
    Undone,
    /// The same of one that was to be given up, which it is; nothing was asked after that.
    GivenUp,
    /// It may have happened, or not.
    Unknown,
}

impl Fate {
    /// Whether who loses its session with the server hears that the outcome is unknown: where the end of a transaction, or a
    /// statement of its own, is not answered.
    pub fn has_outstanding(self) -> bool {
        match self {
            Fate::Nothing | Fate::Undone => false,
            Fate::GivenUp | Fate::Unknown => true,
        }
    }
}

/// Where what was asked stands in a transaction block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// In none; nothing was executed since the last ReadyForQuery.
    Outside,
    /// In the one that a BEGIN of the same batch opens. If that fails, the rest of the batch is skipped.
    Begun,
    /// In one, if the BEGIN of an earlier batch has not failed. If it has, what follows is on its own.
    Supposed,
    /// In one, as ReadyForQuery has said.
    Inside,
    /// Behind one that was given up, or that never was; nothing else was executed.
    GivenUp,
    /// Something may have been committed.
    Unknown,
}

impl Place {
    fn after(self, block: Block) -> Place {
        match (self, block) {
            (Place::Outside | Place::GivenUp, Block::Begins) => Place::Begun,
            (Place::Begun | Place::Inside, Block::Begins | Block::Stays) => self,
            (Place::Unknown, Block::RollsBack) => Place::Unknown,
            // In one that an unanswered BEGIN was to open nothing else has run, whether that has failed or not.
            (
                Place::Outside | Place::Begun | Place::Supposed | Place::Inside | Place::GivenUp,
                Block::RollsBack,
            ) => Place::GivenUp,
            (
                Place::Outside | Place::Begun | Place::Inside | Place::GivenUp,
                Block::Stays | Block::MayEnd,
            )
            | (Place::Supposed | Place::Unknown, Block::Begins | Block::Stays | Block::MayEnd) => {
                Place::Unknown
            }
        }
    }

    /// Where what comes behind this request stands.
    fn behind(self, asked: &Expect) -> Place {
        match asked {
            Expect::Execute(act) => self.after(act.block),
            Expect::ExecuteDeallocate => self.after(Block::Stays),
            Expect::Query(act) => self.after(act.block).next_batch(),
            Expect::Function | Expect::Deallocate => self.after(Block::Stays).next_batch(),
            Expect::Sync => self.next_batch(),
            Expect::Parse { .. }
            | Expect::Bind
            | Expect::Describe { .. }
            | Expect::Close { .. }
            | Expect::CopyEnd
            | Expect::Probe
            | Expect::OwedParse
            | Expect::OwedClose
            | Expect::OwedDeallocate => self,
        }
    }

    fn next_batch(self) -> Place {
        match self {
            Place::Begun => Place::Supposed,
            Place::Outside | Place::Supposed | Place::Inside | Place::GivenUp | Place::Unknown => {
                self
            }
        }
    }
}

/// The conversation with one server.
#[derive(Debug)]
pub struct Exchange {
    queue: VecDeque<Expect>,
    status: Status,
    /// Nothing was sent since the last ReadyForQuery that is not answered by it.
    is_ready: bool,
    /// The server ignores everything until a Sync that was not sent yet.
    is_skipping: bool,
    /// What was executed and answered since the last ReadyForQuery has led here.
    place: Place,
    /// Something that may drop prepared statements was sent, and is outstanding unless it was looked at.
    has_dropping: bool,
    /// Batches sent whole, and those of them that are answered.
    sent: u64,
    done: u64,
    /// The batch that last changed what statements there are, and the one that last prepared the unnamed one.
    statements_in: Option<u64>,
    unnamed_in: Option<u64>,
    /// The batch that may have opened a transaction last, and the one that a Sync has ended last.
    opened_in: Option<u64>,
    synced_in: Option<u64>,
    /// Nothing more is looked at before so many batches are answered.
    held_until: u64,
    /// The server reads copied data, of which the end was not sent.
    is_copying: bool,
    /// Syncs that COPY ignores, unless it has failed before it came to them.
    swallowed: usize,
    /// A COPY has failed, and nobody knows whether before or behind a Sync: the server is not used by others before that is known.
    is_doubtful: bool,
    /// Copied data has begun since the last command was over.
    has_copied: bool,
    /// The end of copied data was sent behind a Sync that is not answered: perhaps COPY ignores that.
    has_sync_in_copy: bool,
    /// Something was sent behind a Sync of a failed COPY that the server ignores, unless it answers that Sync.
    is_astray: bool,
    /// Something of the answer to the request that is answered now has come.
    has_begun: bool,
    /// The client was told that the outcome of the request that is answered now is unknown.
    is_disowned: bool,
}

impl Default for Exchange {
    /// A server that has just said that it is ready.
    fn default() -> Self {
        Self {
            queue: VecDeque::new(),
            status: Status::Idle,
            is_ready: true,
            is_skipping: false,
            place: Place::Outside,
            has_dropping: false,
            sent: 0,
            done: 0,
            statements_in: None,
            unnamed_in: None,
            opened_in: None,
            synced_in: None,
            held_until: 0,
            is_copying: false,
            swallowed: 0,
            is_doubtful: false,
            has_copied: false,
            has_sync_in_copy: false,
            is_astray: false,
            has_begun: false,
            is_disowned: false,
        }
    }
}

impl Exchange {
    /// Notes a message that goes to the server, or that is answered in its place.
    pub fn sent(&mut self, expect: Expect) {
        self.has_sync_in_copy &= !self.queue.is_empty();
        // COPY fails by any other message, and what follows is not its own.
        self.is_copying &= expect.may_be_inside_copy();
        match expect {
            Expect::Sync if self.is_copying => {
                self.swallowed += 1;
                return;
            }
            // What follows it is not ignored any more.
            Expect::Sync => (self.is_skipping, self.synced_in) = (false, Some(self.sent)),
            _ if self.is_skipping => {
                self.is_astray |= self.swallowed > 0 && expect != Expect::CopyEnd;
                return;
            }
            Expect::CopyEnd if self.queue.is_empty() => return,
            Expect::CopyEnd => {
                self.is_copying = false;
                self.has_sync_in_copy |= self.is_uncertain(self.synced_in);
            }
            Expect::Parse { statement: 0, .. } => self.unnamed_in = Some(self.sent),
            Expect::Parse { .. }
            | Expect::Close { .. }
            | Expect::OwedParse
            | Expect::OwedClose
            | Expect::Deallocate
            | Expect::ExecuteDeallocate => self.statements_in = Some(self.sent),
            Expect::Execute(act) | Expect::Query(act) if act.may_open() => {
                self.opened_in = Some(self.sent);
            }
            Expect::Bind
            | Expect::Describe { .. }
            | Expect::Execute(_)
            | Expect::Query(_)
            | Expect::Function
            | Expect::Probe
            | Expect::OwedDeallocate => {}
        }
        self.sent += u64::from(expect.ends_a_batch());
        self.is_ready &= expect == Expect::Probe;
        self.has_dropping |= expect.drops();
        self.queue.push_back(expect);
    }

    /// Whether an earlier batch that is not answered has changed what statements there are: if it fails, it has not.
    pub fn are_statements_uncertain(&self) -> bool {
        self.is_uncertain(self.statements_in)
    }

    /// The same of the unnamed one.
    pub fn is_unnamed_uncertain(&self) -> bool {
        self.is_uncertain(self.unnamed_in)
    }

    fn is_uncertain(&self, batch: Option<u64>) -> bool {
        batch.is_some_and(|batch| self.done <= batch && batch < self.sent)
    }

    /// Whether the unnamed statement was prepared by a batch behind the one that is answered now.
    pub fn is_unnamed_of_a_later_batch(&self) -> bool {
        self.unnamed_in.is_some_and(|batch| batch > self.done)
    }

    /// Nothing more is to be looked at until what was sent whole is answered.
    pub fn hold(&mut self) {
        self.held_until = self.sent;
    }

    /// Whether that is so.
    pub fn is_held(&self) -> bool {
        // A COPY among that waits for its data.
        self.done < self.held_until && !self.is_copying
    }

    /// Whether the server reads copied data, of which the end was not sent.
    pub fn is_copying(&self) -> bool {
        self.is_copying
    }

    /// Whether an answer of the server is to come.
    pub fn is_owed_an_answer(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Whether the end of the batch that is answered now was not sent yet.
    pub fn is_batch_open(&self) -> bool {
        !self.queue.is_empty() && !self.queue.iter().any(Expect::ends_a_batch)
    }

    /// The client is told in the server's place that nobody knows what comes of the request that is answered now, and
    /// hears nothing more of it but its ReadyForQuery. Whether it was not told so before.
    pub fn disown(&mut self) -> bool {
        !std::mem::replace(&mut self.is_disowned, true)
    }

    /// Writes the answers that are owed before the next one of the server. Returns how many changes of names are
    /// certain by it.
    pub fn settle(&mut self, out: &mut Vec<u8>) -> usize {
        let mut renamed = 0;
        while let Some(head) = self.queue.front() {
            let owed = match head {
                Expect::OwedParse => PARSE_COMPLETE,
                Expect::OwedClose => CLOSE_COMPLETE,
                Expect::OwedDeallocate => DEALLOCATED,
                Expect::CopyEnd => &[],
                Expect::Parse { .. }
                | Expect::Bind
                | Expect::Describe { .. }
                | Expect::Close { .. }
                | Expect::Execute(_)
                | Expect::ExecuteDeallocate
                | Expect::Sync
                | Expect::Query(_)
                | Expect::Function
                | Expect::Probe
                | Expect::Deallocate => break,
            };
            if !self.is_disowned {
                out.extend_from_slice(owed);
            }
            renamed += usize::from(head.renames());
            self.queue.pop_front();
        }
        renamed
    }

    /// Whether an answer is owed that comes before any of the server.
    pub fn owes(&self) -> bool {
        matches!(
            self.queue.front(),
            Some(Expect::OwedParse | Expect::OwedClose | Expect::OwedDeallocate | Expect::CopyEnd)
        )
    }

    /// Notes a message of the server, but for ReadyForQuery. `hear` hears what it means for statements; of those that
    /// are skipped the last first.
    pub fn answered(&mut self, kind: u8, hear: impl FnMut(Heard)) -> Verdict {
        match (self.is_disowned, kind, self.judge(kind, hear)) {
            // It waits for data of a client that has heard of an error.
            (true, b'G' | b'W', _) => Verdict::Lost,
            (true, b'N' | b'A' | b'S', verdict) | (false, _, verdict) => verdict,
            (true, _, Verdict::Pass | Verdict::Hide) => Verdict::Hide,
            (true, _, Verdict::Lost) => Verdict::Lost,
        }
    }

    fn judge(&mut self, kind: u8, mut hear: impl FnMut(Heard)) -> Verdict {
        let head = self.queue.front().copied();
        self.has_begun |= !matches!(kind, b'N' | b'A' | b'S');
        match (kind, head) {
            (b'1', Some(parse @ Expect::Parse { is_hidden, .. })) => {
                self.queue.pop_front();
                if parse.renames() {
                    hear(Heard::Renamed);
                }
                Verdict::of(is_hidden)
            }
            (b'3', Some(Expect::Close { is_hidden, .. })) => {
                self.queue.pop_front();
                Verdict::of(is_hidden)
            }
            (b'2', Some(Expect::Bind)) | (b'T' | b'n', Some(Expect::Describe { .. })) => {
                self.queue.pop_front();
                Verdict::Pass
            }
            (b't', Some(described)) if described.has_parameters() => {
                self.in_place_of_first(described.without_parameters());
                Verdict::Pass
            }
            (b'C' | b'I' | b's', Some(Expect::Execute(act))) => {
                self.end_copy(true);
                self.queue.pop_front();
                self.place = self.place.after(act.block);
                Verdict::Pass
            }
            (b'C', Some(Expect::ExecuteDeallocate)) => {
                self.queue.pop_front();
                self.place = self.place.after(Block::Stays);
                hear(Heard::Renamed);
                Verdict::Pass
            }
            (b'C', Some(Expect::Query(_))) => {
                self.forget_copy_end();
                self.end_copy(true);
                Verdict::Pass
            }
            (b'D' | b'H' | b'd' | b'c', Some(Expect::Execute(_) | Expect::Query(_)))
            | (b'T' | b'I', Some(Expect::Query(_)))
            | (b'V', Some(Expect::Function)) => Verdict::Pass,
            // `W` is data in both directions, of a replication connection.
            (b'G' | b'W', Some(Expect::Execute(_) | Expect::Query(_))) => {
                self.swallow();
                Verdict::Pass
            }
            (b'3', Some(Expect::Probe)) => self.end_doubt(),
            (b'T' | b'D', Some(Expect::Deallocate)) => Verdict::Hide,
            (b'C', Some(Expect::Deallocate)) => {
                self.in_place_of_first(Expect::Query(Act::NOTHING));
                self.queue.push_front(Expect::OwedDeallocate);
                Verdict::Hide
            }
            (b'E', Some(Expect::Deallocate)) => {
                self.in_place_of_first(Expect::Query(Act::NOTHING));
                hear(Heard::NotRenamed(1));
                Verdict::Pass
            }
            (b'E', Some(asked)) if asked != Expect::Probe => {
                self.end_copy(false);
                if !matches!(asked, Expect::Query(_) | Expect::Function | Expect::Sync) {
                    self.skip(&mut hear);
                }
                Verdict::Pass
            }
            // Something that was not counted has failed.
            (b'E', _) if self.is_doubtful => Verdict::Lost,
            // What a server says unasked; an error unasked is its last word.
            (b'N' | b'A' | b'S' | b'E', _) => Verdict::Pass,
            _ => Verdict::Lost,
        }
    }

    fn in_place_of_first(&mut self, expect: Expect) {
        if let Some(first) = self.queue.front_mut() {
            *first = expect;
        }
    }

    /// Notes a ReadyForQuery.
    pub fn ready(&mut self, status: Status) -> Verdict {
        if self.is_doubtful && self.is_astray {
            // Perhaps of the Sync inside a COPY that failed, and what came behind that is executed.
            return Verdict::Lost;
        }
        let is_answered = match self.queue.front() {
            Some(Expect::Sync) => true,
            // Neither is answered by nothing else.
            Some(Expect::Query(_) | Expect::Function) => self.has_begun || !self.is_doubtful,
            _ => false,
        };
        match is_answered {
            true => {
                self.queue.pop_front();
                self.done += 1;
            }
            // COPY had failed before it came to that Sync.
            false if self.is_doubtful && self.swallowed > 0 => {
                self.swallowed -= 1;
                self.is_skipping = false;
            }
            false => return Verdict::Lost,
        }
        self.is_doubtful &= self.swallowed > 0;
        self.has_begun = false;
        self.is_disowned = false;
        self.status = status;
        self.place = match status {
            Status::Idle => Place::Outside,
            Status::Transaction | Status::Failed => Place::Inside,
        };
        while self.queue.front() == Some(&Expect::CopyEnd) {
            self.queue.pop_front();
        }
        if self.queue.is_empty() {
            self.is_ready = true;
        }
        Verdict::Pass
    }

    /// A command is over, COPY perhaps.
    fn end_copy(&mut self, has_ended_well: bool) {
        self.is_copying = false;
        if has_ended_well {
            self.swallowed = 0;
        }
        self.is_doubtful |= self.swallowed > 0;
    }

    /// An error in the extended protocol: the server ignores everything until the next Sync.
    fn skip(&mut self, hear: &mut impl FnMut(Heard)) {
        let sync = self.queue.iter().position(|asked| *asked == Expect::Sync);
        let until = sync.unwrap_or(self.queue.len());
        let renames = self.queue.range(..until).filter(|asked| asked.renames());
        hear(Heard::NotRenamed(renames.count()));
        // Requests among them get no ReadyForQuery: nothing is held for them.
        let batches = self
            .queue
            .range(..until)
            .filter(|asked| asked.ends_a_batch());
        self.done += batches.count() as u64;
        let mut ignored = self.queue.range(1.min(until)..until);
        self.is_astray |= self.swallowed > 0 && ignored.any(|asked| *asked != Expect::CopyEnd);
        // From the last to the first, for one statement may be closed and prepared anew.
        for asked in self.queue.drain(..until).rev() {
            match asked {
                Expect::Parse { statement, .. } if statement > 0 => {
                    hear(Heard::NotPrepared(statement));
                }
                Expect::Close { statement, .. } if statement > 0 => {
                    hear(Heard::NotClosed(statement));
                }
                Expect::Parse { .. }
                | Expect::Close { .. }
                | Expect::Bind
                | Expect::Describe { .. }
                | Expect::Execute(_)
                | Expect::ExecuteDeallocate
                | Expect::Sync
                | Expect::Query(_)
                | Expect::Function
                | Expect::CopyEnd
                | Expect::Probe
                | Expect::OwedParse
                | Expect::OwedClose
                | Expect::Deallocate
                | Expect::OwedDeallocate => {}
            }
        }
        self.is_skipping = sync.is_none();
    }

    /// Whether something is under way that may drop every prepared statement: what is to be sent next depends
    /// on what becomes of it.
    pub fn may_drop(&mut self) -> bool {
        self.has_dropping = self.has_dropping && self.queue.iter().any(Expect::drops);
        // It may be a COPY that waits for the client.
        self.has_dropping && !self.is_copying
    }

    /// Whether the server stands between two transactions with nothing outstanding.
    pub fn is_idle(&self) -> bool {
        self.is_quiet() && self.status == Status::Idle
    }

    /// Whether the server ignores everything until a Sync that was not sent yet.
    pub fn is_skipping(&self) -> bool {
        self.is_skipping
    }

    /// Whether nothing is outstanding, in a transaction or not.
    pub fn is_quiet(&self) -> bool {
        self.is_ready && self.queue.is_empty() && !self.is_doubtful
    }

    /// The status of the last ReadyForQuery.
    pub fn status(&self) -> Status {
        self.status
    }

    /// Whether so much is outstanding that the client is not read any further.
    pub fn is_full(&self) -> bool {
        self.queue.len() >= MAX_OUTSTANDING
    }
}

#[cfg(test)]
mod tests;
