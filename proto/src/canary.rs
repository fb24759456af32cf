//! What the standing canary of a cluster has seen, stored under `canary`, and who writes it.

use serde::{Deserialize, Serialize};

use crate::{Document, Timeline, WallTime};

/// Who writes the standing canary now, stored under `drill/canary` with that one's lease: nobody else does meanwhile.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CanaryHolder {
    /// The runner: `host:pid` and what tells it from a later one.
    pub runner: String,
    pub since: WallTime,
}

impl Document for CanaryHolder {
    const KIND: &'static str = "holder of the canary";
}

/// What all holders together have seen. Counts go on from one holder to the next; the time between two is nobody's gap.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CanaryRecord {
    /// Since when is counted.
    pub since: WallTime,
    /// When this was written.
    pub told: WallTime,
    /// Who wrote it.
    pub runner: String,
    pub acknowledged: u64,
    /// Sent, and of unknown fate: that proves nothing.
    pub unknown: u64,
    /// Acknowledged, and missing on a primary that was asked for it afterwards.
    pub lost: u64,
    /// Acknowledged, and no primary was asked for it afterwards by its writer.
    pub unproven: u64,
    /// The last canary that was acknowledged.
    pub last: Option<WallTime>,
    /// The last times without an acknowledgement of at least `GAP_TOLD_MS`, oldest first.
    pub gaps: Vec<CanaryGap>,
    /// What was lost, by the words of the proof, oldest first.
    pub losses: Vec<String>,
}

/// A time without an acknowledged canary.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CanaryGap {
    /// The last acknowledgement before it, by the writer's clock.
    pub from: WallTime,
    pub ms: u64,
    /// The timelines in which the canaries before and after it were written.
    pub before: Timeline,
    pub after: Timeline,
}

/// Shorter ones are not told: a canary is written each second.
pub const GAP_TOLD_MS: u64 = 2000;

/// So many gaps are kept, and so many losses.
pub const CANARY_NEWS_KEPT: usize = 50;

impl CanaryRecord {
    /// Nothing was seen yet.
    pub fn begun(runner: String, now: WallTime) -> Self {
        Self {
            since: now,
            told: now,
            runner,
            acknowledged: 0,
            unknown: 0,
            lost: 0,
            unproven: 0,
            last: None,
            gaps: Vec::new(),
            losses: Vec::new(),
        }
    }

    /// Adds gaps and losses that were seen later, and forgets the oldest ones.
    pub fn add_news(&mut self, gaps: Vec<CanaryGap>, losses: Vec<String>) {
        self.gaps.extend(gaps);
        self.losses.extend(losses);
        self.gaps.drain(..self.gaps.len().saturating_sub(CANARY_NEWS_KEPT));
        self.losses.drain(..self.losses.len().saturating_sub(CANARY_NEWS_KEPT));
    }
}

impl Document for CanaryRecord {
    const KIND: &'static str = "record of the canary";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_gaps_are_kept_and_the_record_is_read_as_it_was_written() {
        let gap = |number: u64| CanaryGap {
            from: WallTime(number.cast_signed()),
            ms: 2000 + number,
            before: Timeline(1),
            after: Timeline(2),
        };
        let mut record = CanaryRecord::begun("north:1:0000abcd".into(), WallTime(7));
        let count = CANARY_NEWS_KEPT as u64 + 3;
        record.add_news((0..count).map(gap).collect(), vec!["canary 4".into()]);
        assert_eq!((record.gaps.len(), record.gaps[0].clone()), (CANARY_NEWS_KEPT, gap(3)));
        let text = crate::document::encode(&record);
        assert_eq!(crate::document::decode::<CanaryRecord>(text.as_bytes()), Ok(record));
    }
}
