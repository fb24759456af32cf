//! Why the leader did what it did, or what it waits for: the decider's own returned reason, stored under
//! `explanation` with the leader's lease whenever it changes. The cli prints it and computes nothing anew.

use serde::{Deserialize, Serialize};

use crate::{Document, Epoch, MemberName, StateNumber};

/// The leader's last decision in words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Explanation {
    pub leader: String,
    /// The state that the decision was made on.
    pub state: StateNumber,
    pub epoch: Epoch,
    /// What is done or waited for, in one sentence without times, so that it changes only when the reason does.
    pub verdict: String,
    /// Why this primary: how it was chosen.
    pub primary: String,
    /// Members that could be chosen without loss if the primary vanished now; empty with a reason.
    pub promotable: Vec<MemberName>,
    pub promotable_reason: String,
    /// Why each other member could not.
    pub rejected: Vec<Rejection>,
    /// Alarms that a person should look at.
    pub warnings: Vec<String>,
}

/// A member that was passed over, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rejection {
    pub member: MemberName,
    pub reason: String,
}

impl Document for Explanation {
    const KIND: &'static str = "explanation";
}
