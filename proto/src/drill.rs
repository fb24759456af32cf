//! Drills on a live cluster: what is broken on purpose, on whose request, and what came of it.
//!
//! The one rule: a fault on a live cluster is a request under its runner's lease. The keeper beside the target carries
//! it out and undoes it, also when nobody asks for that any more.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::time::duration;
use crate::topology::Role;
use crate::{Document, Epoch, MemberName, RequestId, WallTime};

/// What may be broken on a live cluster. Named as the lab's faults are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LiveFault {
    /// The primary's postmaster is killed.
    Crash,
    /// A session's process of the primary is killed, and PostgreSQL restarts all others.
    Backend,
    /// A standby's postmaster is killed.
    StandbyCrash,
    /// A standby's PostgreSQL stands still for a while.
    StandbyFreeze,
    /// A standby's walreceiver is killed.
    Walreceiver,
    /// The primary's keeper is killed.
    Keeper,
    /// A standby's keeper is killed.
    StandbyKeeper,
    /// A planned change of primary.
    Switchover,
}

impl LiveFault {
    /// All of them, from the mildest on.
    pub const ALL: [Self; 8] = [
        Self::StandbyKeeper,
        Self::Walreceiver,
        Self::Keeper,
        Self::StandbyCrash,
        Self::StandbyFreeze,
        Self::Switchover,
        Self::Crash,
        Self::Backend,
    ];

    /// Returns its name in commands and records.
    pub fn name(self) -> &'static str {
        match self {
            Self::Crash => "crash",
            Self::Backend => "backend",
            Self::StandbyCrash => "standby-crash",
            Self::StandbyFreeze => "standby-freeze",
            Self::Walreceiver => "walreceiver",
            Self::Keeper => "keeper",
            Self::StandbyKeeper => "standby-keeper",
            Self::Switchover => "switchover",
        }
    }

    /// Returns the role of the member that it hits.
    pub fn role(self) -> Role {
        match self {
            Self::Crash | Self::Backend | Self::Keeper | Self::Switchover => Role::Primary,
            Self::StandbyCrash | Self::StandbyFreeze | Self::Walreceiver | Self::StandbyKeeper => {
                Role::Standby
            }
        }
    }

    /// Returns what is done.
    pub fn what(self) -> &'static str {
        match self {
            Self::Crash => "kill -9 the postmaster of the primary",
            Self::Backend => "kill -9 the process of one session of the primary",
            Self::StandbyCrash => "kill -9 the postmaster of a standby",
            Self::StandbyFreeze => "kill -STOP PostgreSQL of a standby, for 10 s",
            Self::Walreceiver => "kill -9 the walreceiver of a standby",
            Self::Keeper => "kill -9 the keeper of the primary",
            Self::StandbyKeeper => "kill -9 the keeper of a standby",
            Self::Switchover => "a switchover to the best standby",
        }
    }

    /// Returns what clients notice.
    pub fn clients(self) -> &'static str {
        match self {
            Self::Crash | Self::Backend => {
                "sessions of the primary are cut, writes are away below a second"
            }
            Self::StandbyCrash | Self::StandbyFreeze => {
                "read sessions of the standby are cut or stand still"
            }
            Self::Walreceiver => "reads on the standby are a moment older",
            Self::Keeper | Self::StandbyKeeper => "nothing",
            Self::Switchover => "behind PgBouncer a pause, else sessions of the primary are cut",
        }
    }

    /// Returns how long it stays before it is undone; zero where nothing has to be undone.
    pub fn stays(self) -> Duration {
        match self {
            Self::StandbyFreeze => Duration::from_secs(10),
            Self::Crash
            | Self::Backend
            | Self::StandbyCrash
            | Self::Walreceiver
            | Self::Keeper
            | Self::StandbyKeeper
            | Self::Switchover => Duration::ZERO,
        }
    }
}

impl fmt::Display for LiveFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for LiveFault {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|fault| fault.name() == text).ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            format!("no drill {text:?}: use {names}")
        })
    }
}

/// What is asked of a keeper, stored under `drill/now` with its runner's lease: there is one at a time, and none without a
/// runner that holds the lock (`DrillLock`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Drill {
    pub id: RequestId,
    pub fault: LiveFault,
    pub target: MemberName,
    /// Who runs it, for people: `user@host`.
    pub by: String,
    /// The epoch that it was meant for: in another one the keeper refuses.
    pub epoch: Epoch,
    /// After this long the keeper undoes it in any case.
    #[serde(with = "duration")]
    pub bound: Duration,
}

impl Document for Drill {
    const KIND: &'static str = "drill";
}

/// The last word of a member's keeper on a drill, stored under `drill/answers/<member>`.
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

/// What a keeper did.
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
    pub fault: LiveFault,
    pub target: Option<MemberName>,
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
    fn every_fault_is_found_by_its_name_and_stored_under_it() {
        for fault in LiveFault::ALL {
            assert_eq!(fault.name().parse(), Ok(fault));
            assert_eq!(serde_json::to_string(&fault).unwrap(), format!("\"{fault}\""));
        }
        assert!("fire".parse::<LiveFault>().unwrap_err().contains("standby-freeze"));
    }

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let record = DrillRecord {
            id: RequestId::from_random(7),
            fault: LiveFault::Crash,
            target: Some("a".parse().unwrap()),
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
