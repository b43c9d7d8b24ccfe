//! Rules broken on purpose: each must be found by the property that it protects.

/// A rule that a model breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    /// The fence never fires, and the agent does not stop PostgreSQL either.
    NoFence,
    /// The deadline counts from the answer of a renewal instead of its sending.
    DeadlineFromAnswer,
    /// Nothing is left unused of a lease.
    NoMargin,
    /// Nobody replaces a fence that died, nor does the agent stop PostgreSQL.
    FenceLeftDead,
    /// A standby enters the `sync` record before commits wait for it.
    RecordBeforeNames,
    /// Commits wait for a standby no more while it still stands in the `sync` record.
    NamesBeforeRecord,
    /// One vote less than the record demands is enough.
    VoteShort,
    /// The `sync` record is not looked at in the race.
    OutsideSync,
    /// A router believes a view, and an epoch, older than one it has seen.
    EpochForgotten,
    /// A router takes whoever holds the key for a primary.
    RecordUnread,
}

impl Rule {
    /// Its word, for people.
    pub fn word(self) -> &'static str {
        match self {
            Rule::NoFence => "no-fence",
            Rule::DeadlineFromAnswer => "deadline-from-answer",
            Rule::NoMargin => "no-margin",
            Rule::FenceLeftDead => "fence-left-dead",
            Rule::RecordBeforeNames => "record-before-names",
            Rule::NamesBeforeRecord => "names-before-record",
            Rule::VoteShort => "vote-short",
            Rule::OutsideSync => "outside-sync",
            Rule::EpochForgotten => "epoch-forgotten",
            Rule::RecordUnread => "record-unread",
        }
    }
}
