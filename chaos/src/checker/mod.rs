//! Judges a log of operations: what clients were told and read, against what the members hold at the end. Pure functions,
//! linear in the length of the log but for the logarithm of a sorted map.
//!
//! The one rule: an outcome that nobody was told is unknown, may be there or not, and proves nothing by itself.

mod bank;
mod cycles;
mod lists;
pub mod log;
#[cfg(test)]
mod planted;
mod set;
mod streams;
mod thin;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use proto::MemberName;
use serde::Serialize;

use crate::load::Told;
pub use log::{Operation, Outcome, Recorder, Step, What};
pub use thin::Counts;

/// What one member holds at the end, besides the rows that `verdict` judges.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Final {
    pub ids: BTreeSet<i64>,
    /// The numbers of each stream.
    pub streams: BTreeMap<i64, Vec<i64>>,
    /// Each list by its key.
    pub lists: BTreeMap<i64, Vec<i64>>,
    /// The money in all accounts.
    pub total: i64,
}

/// Everything that the checkers look at.
#[derive(Debug, Clone, Default)]
pub struct Record {
    /// The inserts of fresh ids.
    pub inserts: Told,
    /// The others, in the order in which they ended.
    pub operations: Vec<Operation>,
    pub members: BTreeMap<MemberName, Final>,
    /// The money that there was at the beginning.
    pub money: i64,
}

/// What is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A client was told of it, and it is not there.
    Lost,
    /// It is there, and nobody wrote it, or whoever did was refused.
    Phantom,
    /// A client has read it, and it is not there.
    Vanished,
    /// A client read less than had been acknowledged before it asked.
    Stale,
    /// A stream of one client has a hole.
    Hole,
    /// Members hold different things.
    Diverged,
    /// Two reads of one list are not each the beginning of the other.
    Forked,
    /// A transaction does not see what it has written itself.
    Internal,
    /// A read of what was refused.
    G1a,
    /// A read of a transaction's half.
    G1b,
    /// Writes depend on each other in a circle.
    G0,
    /// Writes and reads of them do.
    G1c,
    /// They do with one read of what was overwritten.
    GSingle,
    /// They do with several.
    G2,
    /// The money is not what it was.
    Bank,
    /// The log shows too little.
    Inconclusive,
}

/// One thing that is wrong, in words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub kind: Kind,
    pub text: String,
}

impl Finding {
    pub(crate) fn new(kind: Kind, text: impl Into<String>) -> Self {
        Self { kind, text: text.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.kind, self.text)
    }
}

/// Judges the record. `least` is how much it must show at least.
pub fn check(record: &Record, least: Counts) -> Vec<Finding> {
    let mut found = thin::check(record, least);
    found.extend(diverged(record));
    found.extend(set::check(record));
    let Some(held) = record.members.values().next() else { return found };
    found.extend(streams::check(&record.operations, held));
    found.extend(lists::check(&record.operations, &held.lists));
    found.extend(bank::check(record));
    found
}

/// All members hold the same, down to every row.
fn diverged(record: &Record) -> Vec<Finding> {
    let mut members = record.members.iter();
    let Some((first, held)) = members.next() else { return Vec::new() };
    let mut found = Vec::new();
    for (member, other) in members {
        let differs = [
            ("ids", held.ids != other.ids),
            ("streams", held.streams != other.streams),
            ("lists", held.lists != other.lists),
            ("accounts", held.total != other.total),
        ];
        for (what, _) in differs.into_iter().filter(|(_, differs)| *differs) {
            let text = format!("{first} and {member} hold different {what}");
            found.push(Finding::new(Kind::Diverged, text));
        }
    }
    found
}
