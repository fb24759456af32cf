//! What operators have ordered and the state remembers until it is done, taken back or acknowledged.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::request::RequestId;
use crate::state::Floor;
use crate::time::duration;
use crate::{Epoch, Incarnation, MemberName, WalPosition, WallTime};

/// The shortest pause: a shorter one would end before whoever asked for it has begun.
pub const SHORTEST_PAUSE: Duration = Duration::from_secs(5);
/// The longest pause: a cluster that is forgotten while paused has nobody who replaces its primary.
pub const LONGEST_PAUSE: Duration = Duration::from_secs(7 * 24 * 3600);

/// The orders that stand.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Orders {
    /// Nothing is promoted by suspicion, restarted or rejoined while this stands.
    pub pause: Option<Pause>,
    /// Members on their way out of the cluster.
    pub leaving: BTreeMap<MemberName, Leaving>,
    /// Members that were taken out: they come back only when they are readmitted.
    pub removed: BTreeMap<MemberName, Removed>,
    /// Losses that were accepted and not acknowledged yet, oldest first. Only the last one can be under way.
    pub losses: Vec<AcceptedLoss>,
}

impl Orders {
    /// Returns the accepted loss with which the seal of `sealing` is to end.
    pub fn loss_for(&self, sealing: Epoch) -> Option<&AcceptedLoss> {
        self.losses.last().filter(|loss| loss.sealing == sealing && loss.promoted.is_none())
    }
}

/// A time in which people work on the cluster by hand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pause {
    pub id: RequestId,
    pub by: String,
    pub reason: String,
    pub since: WallTime,
    /// When it ends by the leader's wall clock, which is what people agreed on.
    pub until: WallTime,
    #[serde(with = "duration")]
    pub lasting: Duration,
}

/// A member that is to be taken out once no Cfg needs it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Leaving {
    pub request: RequestId,
    pub by: String,
    /// It may go although fewer voters than `synchronous.count` are left.
    pub below_count: bool,
}

/// A member that was taken out, with what has to hold of it should it come back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Removed {
    pub incarnation: Incarnation,
    pub floor: Option<Floor>,
    pub by: String,
    pub at: WallTime,
}

/// An operator's leave to go on without members that may hold acknowledged commits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AcceptedLoss {
    pub request: RequestId,
    pub by: String,
    pub at: WallTime,
    /// The seal for which this counts, and for no other.
    pub sealing: Epoch,
    /// The members whose WAL is given up, each by name.
    pub given_up: BTreeSet<MemberName>,
    /// Known once somebody was promoted without a base.
    #[serde(default)]
    pub promoted: Option<PromotedWithLoss>,
}

/// Who was promoted without a base, and what may be lost by it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PromotedWithLoss {
    pub member: MemberName,
    /// Acknowledged commits beyond this position may be lost.
    pub position: WalPosition,
    pub at: WallTime,
}
