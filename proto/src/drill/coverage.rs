//! What is kept of all drills of one kind when their records are forgotten, stored under `drill/coverage/<fault>`.

use serde::{Deserialize, Serialize};

use super::{DrillRecord, Undertaking, Verdict};
use crate::{Document, RequestId, WallTime};

/// One small document for each kind of fault: what was survived when, and how long writes were away.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DrillCoverage {
    pub fault: Undertaking,
    /// How many have passed, and how many have failed.
    pub passed: u64,
    pub failed: u64,
    /// The last one that has passed.
    pub survived: Option<Survived>,
    /// The newest write gaps, oldest first, of passed and failed ones; those of drills without a canary are not known.
    pub gaps: Vec<GapOfDrill>,
}

/// A drill that has passed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Survived {
    pub begun: WallTime,
    pub id: RequestId,
}

/// How long writes were away in one drill.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GapOfDrill {
    pub begun: WallTime,
    pub ms: u64,
}

/// So many gaps are kept of a fault: at one drill a week, half a year.
pub const GAPS_KEPT: usize = 26;

impl Document for DrillCoverage {
    const KIND: &'static str = "coverage of a drill";
}

impl DrillCoverage {
    /// Nothing was tried yet.
    pub fn none(fault: Undertaking) -> Self {
        Self { fault, passed: 0, failed: 0, survived: None, gaps: Vec::new() }
    }

    /// Adds a drill that has passed or failed. Others say nothing of what the cluster survives.
    pub fn add(&mut self, record: &DrillRecord) {
        match record.verdict {
            Verdict::Passed => {
                self.passed += 1;
                self.survived = Some(Survived { begun: record.begun, id: record.id.clone() });
            }
            Verdict::Failed => self.failed += 1,
            Verdict::Taken
            | Verdict::NotBegun
            | Verdict::Running
            | Verdict::Refused
            | Verdict::Aborted
            | Verdict::Abandoned => return,
        }
        self.gaps
            .extend(record.figures.write_gap_ms.map(|ms| GapOfDrill { begun: record.begun, ms }));
        self.gaps.drain(..self.gaps.len().saturating_sub(GAPS_KEPT));
    }

    /// Returns how the write gap has changed: the median of the newer half, and that of the older one where there are two
    /// halves, in milliseconds.
    pub fn trend(&self) -> Option<(u64, Option<u64>)> {
        let gaps: Vec<u64> = self.gaps.iter().map(|gap| gap.ms).collect();
        let (older, newer) = gaps.split_at(gaps.len() / 2);
        Some((median(newer)?, median(older)))
    }
}

/// The lower one of the two in the middle of an even number.
fn median(gaps: &[u64]) -> Option<u64> {
    let mut gaps = gaps.to_vec();
    gaps.sort_unstable();
    gaps.get(gaps.len().checked_sub(1)? / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::super::{Figures, LiveFault};
    use super::*;

    fn record(number: u64, verdict: Verdict, write_gap_ms: Option<u64>) -> DrillRecord {
        DrillRecord {
            id: RequestId::from_random(number),
            fault: LiveFault::Crash.into(),
            target: None,
            by: "ann@north".into(),
            seed: number,
            begun: WallTime(number.cast_signed()),
            ended: None,
            verdict,
            reasons: Vec::new(),
            figures: Figures { write_gap_ms, ..Figures::default() },
        }
    }

    #[test]
    fn a_pass_is_remembered_and_what_was_refused_says_nothing() {
        let mut coverage = DrillCoverage::none(LiveFault::Crash.into());
        coverage.add(&record(1, Verdict::Passed, Some(700)));
        coverage.add(&record(2, Verdict::Failed, Some(9000)));
        coverage.add(&record(3, Verdict::Refused, None));
        coverage.add(&record(4, Verdict::Aborted, Some(1)));
        assert_eq!((coverage.passed, coverage.failed, coverage.gaps.len()), (1, 1, 2));
        assert_eq!(coverage.survived.as_ref().unwrap().begun, WallTime(1));
        let text = crate::document::encode(&coverage);
        assert_eq!(crate::document::decode(text.as_bytes()), Ok(coverage));
    }

    #[test]
    fn the_trend_sets_the_newer_half_against_the_older_one() {
        let mut coverage = DrillCoverage::none(LiveFault::Crash.into());
        assert_eq!(coverage.trend(), None);
        coverage.add(&record(1, Verdict::Passed, Some(700)));
        assert_eq!(coverage.trend(), Some((700, None)));
        for (number, gap) in [(2, 720), (3, 400), (4, 420), (5, 5000)] {
            coverage.add(&record(number, Verdict::Passed, Some(gap)));
        }
        assert_eq!(coverage.trend(), Some((420, Some(700))), "one that was long moves it little");
        for number in 6..100 {
            coverage.add(&record(number, Verdict::Passed, Some(number)));
        }
        assert_eq!(coverage.gaps.len(), GAPS_KEPT);
        assert_eq!(coverage.passed, 99);
    }
}
