//! One record per change of primary or restart in place: what happened, when, why, and who was passed over.

use serde::{Deserialize, Serialize};

use crate::explanation::Rejection;
use crate::rejoin::RejoinDetails;
use crate::report::RejoinBy;
use crate::{Document, Epoch, MemberName, WalPosition, WallTime};

/// How writes came back, stored under `history/<epoch>` or, for restarts, `history/<epoch>.<restart>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HistoryRecord {
    pub kind: HistoryKind,
    /// The epoch that this change led to (for a restart the epoch that it kept).
    pub epoch: Epoch,
    /// The restart order's number, 0 for anything else.
    pub restart: u64,
    pub from: Option<MemberName>,
    pub to: Option<MemberName>,
    /// Why it was begun, in one sentence.
    pub cause: String,
    /// What was seen that led to it, one fact a line.
    pub evidence: Vec<String>,
    pub chosen: Option<WalPosition>,
    pub rejected: Vec<Rejection>,
    pub phases: Vec<PhaseRecord>,
    pub rejoined: Vec<RejoinRecord>,
    /// What else happened in this time that a person should know: voters given up, pauses, members that left.
    #[serde(default)]
    pub notes: Vec<Note>,
    /// When the cluster was fully redundant again: every member of it streams and votes as its spec allows.
    pub redundant: Option<WallTime>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HistoryKind {
    Founding,
    Failover,
    Switchover,
    Restart,
}

/// One phase: `notice`, `seal`, `choose`, `promote`, `redundancy`; for a switchover `checkpoint`,
/// `hold` where proxies hold clients, `stop` in place of `notice`; for a restart `notice`, `restart`, `redundancy`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PhaseRecord {
    pub name: String,
    pub start: WallTime,
    pub end: Option<WallTime>,
}

/// Something that happened while an epoch lasted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Note {
    pub at: WallTime,
    pub text: String,
}

/// How one member came back after the change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RejoinRecord {
    pub member: MemberName,
    pub by: RejoinBy,
    pub reason: String,
    pub start: WallTime,
    pub end: WallTime,
    #[serde(default, skip_serializing_if = "RejoinDetails::is_empty")]
    pub details: RejoinDetails,
    /// Of what was given up for it: whether any can have been acknowledged, by the positions on record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acknowledged: Option<String>,
}

impl Document for HistoryRecord {
    const KIND: &'static str = "history record";
}

impl HistoryRecord {
    /// Ends the open phase at `now` and begins `name`, if any.
    pub fn advance(&mut self, name: Option<&str>, now: WallTime) {
        if let Some(open) = self.phases.last_mut().filter(|p| p.end.is_none()) {
            open.end = Some(now);
        }
        if let Some(name) = name {
            self.phases.push(PhaseRecord { name: name.to_owned(), start: now, end: None });
        }
    }
}
