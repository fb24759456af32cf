//! What the keepers have answered themselves: positions that move with every commit.

use std::collections::BTreeMap;
use std::time::Duration;

use proto::{MemberName, Moment};

/// The last answer of each keeper; old ones are for the reader to leave aside.
pub type Answers = BTreeMap<MemberName, Answer>;

/// What a keeper has answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// When it was asked: nothing here is newer.
    pub asked: Moment,
    /// Of a standby, where it is known.
    pub lag: Option<Lag>,
    /// This standby has replayed every commit that was acknowledged before, see `MemberStatus::fresh`.
    pub fresh: bool,
    /// On this primary commits wait until they are replayed.
    pub remote_apply: bool,
}

/// How far a standby is behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lag {
    pub bytes: u64,
    pub time: Duration,
}
