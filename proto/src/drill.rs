//! Drills on a live cluster: what is broken on purpose, on whose request, and what came of it.
//!
//! The one rule: a fault on a live cluster is a request under its runner's lease. The keeper beside the target (or the
//! sentinel, or the proxy-config) carries it out and undoes it, also when nobody asks for that any more.

mod coverage;
mod fault;
mod target;
mod undertaking;

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::time::duration;
use crate::{Document, Epoch, RequestId, WallTime};

pub use coverage::{DrillCoverage, GAPS_KEPT, GapOfDrill, Survived};
pub use fault::{Hits, LiveFault};
pub use target::DrillTarget;
pub use undertaking::Undertaking;

/// What is asked of a target, stored under `drill/now` with its runner's lease: there is one at a time, and none without a
/// runner that holds the lock (`DrillLock`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Drill {
    pub id: RequestId,
    pub fault: LiveFault,
    pub target: DrillTarget,
    /// Who runs it, for people: `user@host`.
    pub by: String,
    /// The epoch that it was meant for: in another one a keeper refuses.
    pub epoch: Epoch,
    /// After this long it is undone in any case.
    #[serde(with = "duration")]
    pub bound: Duration,
}

impl Document for Drill {
    const KIND: &'static str = "drill";
}

/// The last word of a target on a drill, stored under `drill/answers/<target>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Drilled {
    pub id: RequestId,
    pub at: WallTime,
    pub what: Carried,
}

impl Document for Drilled {
    const KIND: &'static str = "drill's answer";
}

/// What a target did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "did")]
pub enum Carried {
    Refused { reason: String },
    Struck,
    Undone { why: String },
}

/// What came of a drill, stored under `drills/`. Written first when it begins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DrillRecord {
    pub id: RequestId,
    /// A fault, or the reboots of all members.
    pub fault: Undertaking,
    pub target: Option<DrillTarget>,
    pub by: String,
    pub seed: u64,
    pub begun: WallTime,
    pub ended: Option<WallTime>,
    pub verdict: Verdict,
    /// Why it was refused, aborted or failed, one fact a line.
    pub reasons: Vec<String>,
    pub figures: Figures,
}

impl Document for DrillRecord {
    const KIND: &'static str = "drill's record";
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// A runner has taken the turn of a schedule, and nothing is broken yet.
    Taken,
    /// Its turn was missed, or its runner died or failed before; nothing was broken.
    NotBegun,
    Running,
    Passed,
    Failed,
    /// A guard rail said no; nothing was broken.
    Refused,
    /// A person, or a guard rail, ended it.
    Aborted,
    /// Its runner died. The keeper undid it.
    Abandoned,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Taken => "taken",
            Self::NotBegun => "NOT BEGUN",
            Self::Running => "running",
            Self::Passed => "passed",
            Self::Failed => "FAILED",
            Self::Refused => "refused",
            Self::Aborted => "aborted",
            Self::Abandoned => "ABANDONED",
        })
    }
}

/// What was measured, in milliseconds; absent where it was not.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Figures {
    /// The longest time between two acknowledged canaries.
    pub write_gap_ms: Option<u64>,
    /// From the fault until the cluster was fully redundant again.
    pub redundant_after_ms: Option<u64>,
    /// From the loss of a primary that was replaced until it could not have acknowledged any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fence_ms: Option<u64>,
    pub epoch_before: Option<Epoch>,
    pub epoch_after: Option<Epoch>,
    pub canaries_acknowledged: Option<u64>,
    /// Acknowledged canaries that the primary did not hold at the end.
    pub canaries_lost: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let record = DrillRecord {
            id: RequestId::from_random(7),
            fault: LiveFault::Crash.into(),
            target: Some(DrillTarget::Member("a".parse().unwrap())),
            by: "ann@north".into(),
            seed: 7,
            begun: WallTime(0),
            ended: None,
            verdict: Verdict::Running,
            reasons: Vec::new(),
            figures: Figures::default(),
        };
        let text = crate::document::encode(&record);
        assert_eq!(crate::document::decode::<DrillRecord>(text.as_bytes()), Ok(record));
    }
}
