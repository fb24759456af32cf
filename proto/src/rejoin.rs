//! What is told of a member's return beyond that it came back: its steps, what was copied, what was given up for it.
//!
//! Rule: this is for people. No decision reads it.

use serde::{Deserialize, Serialize};

use crate::history::PhaseRecord;
use crate::{ClusterState, Lsn, Timeline};

/// What is told of one return.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RejoinDetails {
    /// `ask`, `mark`, `prepare`, `copy`, `sync`, `catch-up`; the last one has no end while it is under way.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<PhaseRecord>,
    /// How many bytes the source sent, where they were counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub copied_bytes: Option<u64>,
    /// Why a rewind copied all WAL of its source.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub without_gateway: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub discarded: Option<Discarded>,
}

/// The WAL that a member gave up, because its primary never had it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Discarded {
    /// The timeline that the member left at `from`.
    pub timeline: Timeline,
    pub from: Lsn,
    /// Where its own log ended.
    pub to: Lsn,
    /// How far it was read; less than `to` where that would have taken too long.
    pub read_to: Lsn,
    pub records: u64,
    pub commits: u64,
    pub rollbacks: u64,
    /// Where the record of the first commit among them ends.
    pub first_commit: Option<Lsn>,
    /// The most changed ones first, and at most `RELATIONS_TOLD`.
    pub relations: Vec<RelationChanges>,
    /// How many more there were.
    pub more_relations: u64,
    /// The directory in which the WAL itself is kept, as far as the setting allows.
    pub kept: Option<String>,
}

/// How many relations are told by name: more than a person would look at, and a report stays small.
pub const RELATIONS_TOLD: usize = 10;

/// How often WAL touched one relation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RelationChanges {
    pub database: u32,
    pub tablespace: u32,
    /// The number of its file, as `pg_filenode_relation` takes it.
    pub filenode: u32,
    pub records: u64,
}

impl RejoinDetails {
    /// Returns whether there is nothing to tell.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl Discarded {
    /// Returns how much WAL it was, in bytes.
    pub fn bytes(&self) -> u64 {
        self.to.0.saturating_sub(self.from.0)
    }

    /// Says whether any of it can have been acknowledged, by the positions on record: an acknowledged commit ends at or
    /// before the position with which each later primary was chosen. Only an accepted loss makes an exception.
    pub fn verdict(&self, state: &ClusterState) -> String {
        let Some(shared) = state.shared_until(self.timeline) else {
            return format!(
                "whether any of it was acknowledged is not known: timeline {} is not on record",
                self.timeline
            );
        };
        let mut later = state.epochs.iter().filter(|record| record.timeline > self.timeline);
        if let Some(lossy) = later.find(|record| record.with_loss) {
            return format!(
                "some of it may have been acknowledged: epoch {} began with an accepted loss",
                lossy.epoch
            );
        }
        let first = match self.first_commit {
            Some(first) if first <= shared => {
                return format!(
                    "some of it may have been acknowledged: a commit ends at {first}, and the primary was chosen with {shared}"
                );
            }
            Some(first) => format!("the first commit ends at {first}"),
            None if self.read_to < self.to && self.read_to < shared => {
                return "whether any of it was acknowledged is not known: it could not be read"
                    .into();
            }
            None if self.read_to < self.to => format!("no commit ends before {}", self.read_to),
            None => "there is no commit in it".to_owned(),
        };
        format!(
            "none of it was acknowledged: {first}, and every acknowledged commit ends at or before {shared}, \
             with which the primary was chosen"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Epoch;
    use crate::state::EpochRecord;

    fn state(with_loss: bool) -> ClusterState {
        let text = include_str!("../tests/golden/state.v1.json");
        let mut state: ClusterState = crate::document::decode(text.as_bytes()).unwrap();
        let record = |number: u32, parent, start_lsn| EpochRecord {
            epoch: Epoch(u64::from(number)),
            timeline: Timeline(number),
            primary: "a".parse().unwrap(),
            parent,
            start_lsn,
            with_loss: with_loss && number == 2,
        };
        state.timeline = Timeline(2);
        state.chosen = None;
        state.epochs = vec![record(1, None, None), record(2, Some(Timeline(1)), Some(Lsn(0x300)))];
        state
    }

    fn discarded(first_commit: Option<u64>, read_to: u64) -> Discarded {
        Discarded {
            timeline: Timeline(1),
            from: Lsn(0x2f8),
            to: Lsn(0x900),
            read_to: Lsn(read_to),
            records: 3,
            commits: 1,
            rollbacks: 0,
            first_commit: first_commit.map(Lsn),
            relations: Vec::new(),
            more_relations: 0,
            kept: None,
        }
    }

    #[test]
    fn only_what_ends_past_the_choice_of_every_later_primary_was_certainly_not_acknowledged() {
        let says = |found: Discarded, with_loss| found.verdict(&state(with_loss));
        let clean = says(discarded(Some(0x340), 0x900), false);
        assert!(clean.starts_with("none of it was acknowledged: the first commit ends at 0/340"));
        assert!(clean.contains("at or before 0/300"), "{clean}");
        assert!(says(discarded(None, 0x900), false).contains("no commit in it"));
        assert!(says(discarded(None, 0x400), false).contains("no commit ends before 0/400"));
        for doubtful in [
            says(discarded(Some(0x300), 0x900), false),
            says(discarded(Some(0x340), 0x900), true),
            says(discarded(None, 0x2f8), false),
            says(Discarded { timeline: Timeline(9), ..discarded(None, 0x900) }, false),
        ] {
            assert!(!doubtful.starts_with("none"), "{doubtful}");
        }
    }
}
