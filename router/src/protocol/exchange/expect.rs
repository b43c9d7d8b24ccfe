//! What a server can be asked, and what that does.

/// What something that is executed does to the transaction block it runs in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Block {
    /// It is a BEGIN and nothing else.
    Begins,
    /// It gives the whole transaction up, does nothing else, and begins no other one.
    RollsBack,
    /// It ends no transaction that was open before it.
    Stays,
    /// It ends one, or nobody knows what it does.
    MayEnd,
}

/// What something that is executed does, as far as its text was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Act {
    /// To the transaction block.
    pub block: Block,
    /// It may drop every prepared statement of the session, or reset every setting.
    pub drops: bool,
}

impl Act {
    /// Whether a transaction may be open behind it that was not before.
    pub(super) fn may_open(self) -> bool {
        matches!(self.block, Block::Begins | Block::MayEnd)
    }

    /// Of a text that was not seen, or not whole.
    pub const UNKNOWN: Act = Act {
        block: Block::MayEnd,
        drops: true,
    };

    /// Of what changes nothing that would be lost with a transaction, nor ends one.
    pub const NOTHING: Act = Act {
        block: Block::Stays,
        drops: false,
    };

    /// What is certain when it may be this one or the other one.
    pub fn or(self, other: Act) -> Act {
        let is_same = self.block == other.block;
        Act {
            block: if is_same { self.block } else { Block::MayEnd },
            drops: self.drops || other.drops,
        }
    }
}

/// One message whose answer is to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// Parse of a statement by its number; 0 where nobody remembers it. Hidden: the router sent it of itself. One
    /// that is not hidden and has a number has given it a name of the client's, as the two owed ones give and take.
    Parse {
        /// Its number.
        statement: u32,
        /// The client is not told.
        is_hidden: bool,
    },
    /// Bind.
    Bind,
    /// Describe.
    Describe {
        /// Of a statement, of which the parameters are told first; else of a portal.
        is_statement: bool,
        /// What that does.
        block: Block,
    },
    /// Close, of a statement by its number or 0. Hidden as above.
    Close {
        /// Its number.
        statement: u32,
        /// The client is not told.
        is_hidden: bool,
    },
    /// Execute, and what is executed.
    Execute(Act),
    /// Execute of what takes a name of the client's away.
    ExecuteDeallocate,
    /// Sync.
    Sync,
    /// A simple query, and what it does.
    Query(Act),
    /// A function call.
    Function,
    /// The end of copied data, or its failure. Answered by nothing; a Sync before it is swallowed by COPY.
    CopyEnd,
    /// A Close of the router's own, behind whose answer none to a Sync of a COPY that has failed can come.
    Probe,
    /// A Parse that the server never sees: the client is told ParseComplete in its place.
    OwedParse,
    /// A Close that the server never sees.
    OwedClose,
    /// A query in the place of a DEALLOCATE that the server never sees: of what answers it the client is told an error.
    Deallocate,
    /// That was answered: the client is told that the statement is gone.
    OwedDeallocate,
}

impl Expect {
    /// Whether it changes what a name of the client's means.
    pub(super) fn renames(&self) -> bool {
        match self {
            Expect::OwedParse
            | Expect::OwedClose
            | Expect::Deallocate
            | Expect::OwedDeallocate
            | Expect::ExecuteDeallocate => true,
            Expect::Parse {
                statement,
                is_hidden,
            } => *statement > 0 && !is_hidden,
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

    /// Whether COPY goes on when it is sent before the end of the data, or the server never sees it.
    pub(super) fn may_be_inside_copy(&self) -> bool {
        matches!(
            self,
            Expect::Sync
                | Expect::CopyEnd
                | Expect::OwedParse
                | Expect::OwedClose
                | Expect::OwedDeallocate
        )
    }

    /// Whether it is the description of a statement, whose parameters were not told yet.
    pub(super) fn has_parameters(&self) -> bool {
        matches!(
            self,
            Expect::Describe {
                is_statement: true,
                ..
            }
        )
    }

    /// What is left of a description once its parameters are told.
    pub(super) fn without_parameters(self) -> Expect {
        match self {
            Expect::Describe { block, .. } => Expect::Describe {
                is_statement: false,
                block,
            },
            other => other,
        }
    }

    /// Whether it is answered by a ReadyForQuery.
    pub(super) fn ends_a_batch(&self) -> bool {
        match self {
            Expect::Sync | Expect::Query(_) | Expect::Function | Expect::Deallocate => true,
            Expect::Parse { .. }
            | Expect::Bind
            | Expect::Describe { .. }
            | Expect::Close { .. }
            | Expect::Execute(_)
            | Expect::ExecuteDeallocate
            | Expect::CopyEnd
            | Expect::Probe
            | Expect::OwedParse
            | Expect::OwedClose
            | Expect::OwedDeallocate => false,
        }
    }

    pub(super) fn drops(&self) -> bool {
        match self {
            Expect::Execute(act) | Expect::Query(act) => act.drops,
            Expect::ExecuteDeallocate
            | Expect::Parse { .. }
            | Expect::Bind
            | Expect::Describe { .. }
            | Expect::Close { .. }
            | Expect::Sync
            | Expect::Function
            | Expect::CopyEnd
            | Expect::Probe
            | Expect::OwedParse
            | Expect::OwedClose
            | Expect::Deallocate
            | Expect::OwedDeallocate => false,
        }
    }
}
