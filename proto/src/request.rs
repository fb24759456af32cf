//! Requests: what an operator, or a keeper that stops, asks of the leader. One at a time of each kind, stored under
//! `requests/<kind>` with a lease of its validity, and deleted in the very transaction that answers it.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::time::duration;
use crate::{Document, MemberName, WallTime};

/// Identifies one request. Made once, by whoever asks.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RequestId(pub String);

impl RequestId {
    /// Makes an id from random bits that the caller drew.
    pub fn from_random(bits: u64) -> Self {
        Self(format!("{bits:016x}"))
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One request. A leader that does not answer it while its lease lives never does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    pub id: RequestId,
    /// Who asks, for people: `user@host`, or `keeper of a`.
    pub by: String,
    pub asked: WallTime,
    /// How long after `asked` it may still be begun, and how long what it begins may take until it is past recall.
    #[serde(with = "duration")]
    pub valid_for: Duration,
    pub wanted: Wanted,
}

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind", deny_unknown_fields)]
pub enum Wanted {
    /// Another primary, without loss.
    Switchover(Terms),
    /// Nothing is promoted by suspicion, restarted or rejoined for this long.
    Pause {
        reason: String,
        #[serde(with = "duration")]
        lasting: Duration,
    },
    /// The end of a pause.
    Resume,
    /// `member` leaves the cluster for good; `below_count`: also where fewer voters are left than must acknowledge.
    Remove { member: MemberName, below_count: bool },
    /// A removed member may come back.
    Readmit { member: MemberName },
    /// A primary without a base: exactly these members, whose WAL may be needed, are given up.
    AcceptLoss { give_up: BTreeSet<MemberName> },
    /// Accepted losses were taken note of.
    AcknowledgeLoss,
}

/// What a switchover is to be like. The default: to the best standby, and called off where clients cannot be held.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Terms {
    /// The next primary; the best standby where nobody is named.
    pub to: Option<MemberName>,
    /// The zone that is evacuated: the next primary is in another one, and the present one in this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub away_from: Option<String>,
    /// How long proxies may make their clients wait before the primary is stopped.
    #[serde(with = "duration", default = "usual_hold", skip_serializing_if = "is_usual_hold")]
    pub hold: Duration,
    #[serde(default, skip_serializing_if = "Unheld::is_usual")]
    pub unheld: Unheld,
}

/// Clients wait from the first moment of a hold on while transactions that run already end, so this is about as long as
/// most of them accept for a statement. A transaction that runs longer wants another time for the switchover.
pub const HOLD_AT_MOST: Duration = Duration::from_secs(5);

/// What is done where some proxy does not hold its clients in time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unheld {
    /// The switchover is called off, nothing has changed.
    #[default]
    CallOff,
    /// It goes on, and the transactions that still run are cut.
    Cut,
}

impl Unheld {
    pub(crate) fn is_usual(&self) -> bool {
        *self == Self::default()
    }
}

impl Default for Terms {
    fn default() -> Self {
        Self { to: None, away_from: None, hold: HOLD_AT_MOST, unheld: Unheld::default() }
    }
}

impl Terms {
    /// Says in a few words to whom, as in "a switchover to ...".
    pub fn whom(&self) -> String {
        match (&self.to, &self.away_from) {
            (Some(to), _) => to.to_string(),
            (None, Some(zone)) => format!("the best standby outside zone {zone}"),
            (None, None) => "the best standby".into(),
        }
    }

    /// Returns the usual terms with `to` as the next primary.
    pub fn to(to: Option<MemberName>) -> Self {
        Self { to, ..Self::default() }
    }
}

pub(crate) fn usual_hold() -> Duration {
    HOLD_AT_MOST
}

pub(crate) fn is_usual_hold(hold: &Duration) -> bool {
    *hold == HOLD_AT_MOST
}

/// The kinds of requests; each has one key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RequestKind {
    Switchover,
    Pause,
    Resume,
    Remove,
    Readmit,
    AcceptLoss,
    AcknowledgeLoss,
}

impl Wanted {
    /// Returns the kind, which names the key.
    pub fn kind(&self) -> RequestKind {
        match self {
            Self::Switchover(_) => RequestKind::Switchover,
            Self::Pause { .. } => RequestKind::Pause,
            Self::Resume => RequestKind::Resume,
            Self::Remove { .. } => RequestKind::Remove,
            Self::Readmit { .. } => RequestKind::Readmit,
            Self::AcceptLoss { .. } => RequestKind::AcceptLoss,
            Self::AcknowledgeLoss => RequestKind::AcknowledgeLoss,
        }
    }
}

impl fmt::Display for RequestKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Switchover => "switchover",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Remove => "remove",
            Self::Readmit => "readmit",
            Self::AcceptLoss => "accept-loss",
            Self::AcknowledgeLoss => "acknowledge-loss",
        })
    }
}

/// A request that was answered, and what came of it: the state remembers the last ones, so that whoever asked can
/// tell, and so that a later leader never answers one twice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answered {
    pub id: RequestId,
    pub kind: RequestKind,
    pub by: String,
    pub asked: WallTime,
    /// When the outcome last changed.
    pub at: WallTime,
    pub outcome: RequestOutcome,
}

/// What came of a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "state", deny_unknown_fields)]
pub enum RequestOutcome {
    /// It was begun, `what` says as what.
    Started { what: String },
    /// It cannot be; nothing was changed. `reason` says what to do.
    Refused { reason: String },
    /// It came to its end.
    Done { what: String },
    /// It was begun and came to nothing; the cluster is as it was before, or as `reason` says.
    Nothing { reason: String },
}

impl RequestOutcome {
    /// Returns what it says, for people.
    pub fn text(&self) -> &str {
        match self {
            Self::Started { what } | Self::Done { what } => what,
            Self::Refused { reason } | Self::Nothing { reason } => reason,
        }
    }

    /// Returns whether nothing more will come of the request.
    pub fn is_final(&self) -> bool {
        match self {
            Self::Started { .. } => false,
            Self::Refused { .. } | Self::Done { .. } | Self::Nothing { .. } => true,
        }
    }
}

impl Document for Request {
    const KIND: &'static str = "request";
}
