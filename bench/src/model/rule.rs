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
    /// What others answer is not listened to in the race.
    PeersUnheard,
    /// Nobody is too far behind to lead.
    LagUnread,
    /// Whoever takes the key does not compare the last claimed timeline.
    ClaimUncompared,
    /// PostgreSQL begins to accept writes under a fence that sleeps.
    PromotesUnarmed,
    /// Nobody runs for a key that is gone.
    NobodyRuns,
    /// The model does not know an action that the rules decide.
    StepForgotten,
    /// Who hears nothing of a move of the key takes it for one that has failed, and leads on.
    SilenceIsNo,
    /// A candidate confirms what it does not have.
    ConfirmsEarly,
    /// Routers are not waited for.
    RouterUnasked,
    /// Nothing that a change leaves in the store is removed.
    TracesLeft,
    /// The leader key stays although its lease has ended.
    KeyOutlivesLease,
    /// What commits are to wait for is never set.
    NamesNeverSet,
    /// A router that knows a writer keeps it.
    WriterKept,
    /// A lane that was cut is used for the next leader.
    CutLaneKept,
    /// A router sees the store once and never again.
    StoreUnseen,
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
            Rule::PeersUnheard => "peers-unheard",
            Rule::LagUnread => "lag-unread",
            Rule::ClaimUncompared => "claim-uncompared",
            Rule::PromotesUnarmed => "promotes-unarmed",
            Rule::NobodyRuns => "nobody-runs",
            Rule::StepForgotten => "step-forgotten",
            Rule::SilenceIsNo => "silence-is-no",
            Rule::ConfirmsEarly => "confirms-early",
            Rule::RouterUnasked => "router-unasked",
            Rule::TracesLeft => "traces-left",
            Rule::KeyOutlivesLease => "key-outlives-lease",
            Rule::NamesNeverSet => "names-never-set",
            Rule::WriterKept => "writer-kept",
            Rule::CutLaneKept => "cut-lane-kept",
            Rule::StoreUnseen => "store-unseen",
            Rule::EpochForgotten => "epoch-forgotten",
            Rule::RecordUnread => "record-unread",
        }
    }
}

/// A rule, and the property that must be found broken without it.
type Protects = (Rule, &'static str);

const ONE_PRIMARY: &str = "at most one writable primary";
const KNOWN: &str = "every action is known to the model";
const SYNC_LOST: &str = "no acknowledged synchronous write is lost";
const WAITED_FOR: &str = "commits wait for whoever streams, and it may lead";
const FENCED: &str = "a member past the end of its lease is fenced";
const LEADS: &str = "somebody leads in the end";
const ARMED: &str = "whoever may write has an armed fence";
const RACE_LOST: &str = "nothing acknowledged is lost, or no more than the limit";

pub(super) const SYNC: &[Protects] = &[
    (Rule::RecordBeforeNames, SYNC_LOST),
    (Rule::NamesBeforeRecord, SYNC_LOST),
    (Rule::OutsideSync, SYNC_LOST),
    (Rule::StepForgotten, KNOWN),
    (Rule::NamesNeverSet, WAITED_FOR),
];

pub(super) const QUORUM: &[Protects] = &[
    (Rule::RecordBeforeNames, SYNC_LOST),
    (Rule::VoteShort, SYNC_LOST),
    (Rule::OutsideSync, SYNC_LOST),
    (Rule::StepForgotten, KNOWN),
    (Rule::NamesNeverSet, WAITED_FOR),
];

pub(super) const FENCE: &[Protects] = &[
    (Rule::NoFence, FENCED),
    (Rule::DeadlineFromAnswer, FENCED),
    (Rule::NoMargin, FENCED),
    (Rule::NoMargin, ONE_PRIMARY),
    (Rule::FenceLeftDead, FENCED),
    (Rule::KeyOutlivesLease, LEADS),
];

pub(super) const ROUTING: &[Protects] = &[
    (Rule::EpochForgotten, "the writer's epoch never goes back"),
    (
        Rule::WriterKept,
        "writes go to the newest leader that was seen",
    ),
    (
        Rule::RecordUnread,
        "nobody is made the writer whom no record confirmed",
    ),
    (Rule::CutLaneKept, "a lane that was cut does not come back"),
    (Rule::StoreUnseen, "writes go to whoever leads"),
];

pub(super) const RACE: &[Protects] = &[
    (Rule::NoFence, ONE_PRIMARY),
    (Rule::NoMargin, ONE_PRIMARY),
    (Rule::PromotesUnarmed, ARMED),
    (
        Rule::PeersUnheard,
        "nobody runs who is behind one that answered",
    ),
    (Rule::LagUnread, RACE_LOST),
    (Rule::ClaimUncompared, RACE_LOST),
    (Rule::StepForgotten, KNOWN),
    (Rule::NobodyRuns, LEADS),
];

pub(super) const RACE_SYNC: &[Protects] = &[
    (Rule::NoMargin, ONE_PRIMARY),
    (Rule::PromotesUnarmed, ARMED),
    (Rule::OutsideSync, RACE_LOST),
    (Rule::StepForgotten, KNOWN),
    (Rule::NobodyRuns, LEADS),
];

pub(super) const HAND_OVER: &[Protects] = &[
    (Rule::SilenceIsNo, ONE_PRIMARY),
    (Rule::PromotesUnarmed, ARMED),
    (Rule::ConfirmsEarly, "a planned change loses nothing"),
    (
        Rule::RouterUnasked,
        "nobody stops for a successor before clients are held",
    ),
    (Rule::StepForgotten, KNOWN),
    (
        Rule::TracesLeft,
        "somebody leads, and no client is held, in the end",
    ),
];
