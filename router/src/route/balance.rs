//! Least connections.

/// How busy a lane is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Load {
    /// Sessions open now.
    pub open: usize,
    /// Sessions since the lane began: breaks ties, so that short sessions spread too.
    pub since_start: u64,
}

/// A place and its load.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<T> {
    /// Its load.
    pub load: Load,
    /// The place.
    pub place: T,
}

/// The place with the fewest open sessions, among equals the one with the fewest since its start, among
/// those the first.
pub fn least_connected<T>(candidates: impl Iterator<Item = Candidate<T>>) -> Option<T> {
    candidates.min_by_key(|c| c.load).map(|c| c.place)
}
