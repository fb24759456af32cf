//! Judges what became of acknowledged canaries. A pure function.
//!
//! The one rule: what was not answered is unknown and proves nothing, and an acknowledged canary counts as kept only
//! if a primary was asked for it afterwards.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use proto::{Lsn, Moment, Timeline, WallTime};
use serde::Serialize;

/// Which start of which primary answered. Every promotion has a timeline of its own; a restart in place has not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Origin {
    pub timeline: Timeline,
    /// When that PostgreSQL was started by its own clock, in microseconds since 1970.
    pub started_us: i64,
}

/// A canary whose commit was acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Acknowledged {
    pub id: i64,
    /// Before the commit was sent.
    pub sent: Moment,
    /// When its answer was read.
    pub answered: Moment,
    /// The same for people.
    pub wall: WallTime,
    /// Who answered.
    pub origin: Origin,
}

/// What a primary held when it was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadBack {
    /// Before the question was sent.
    pub asked: Moment,
    pub wall: WallTime,
    pub origin: Origin,
    /// How far that primary had written.
    pub lsn: Lsn,
    pub ids: BTreeSet<i64>,
    /// The highest id that was sent before the question: it may have trimmed those `keep` below it.
    pub highest_sent: i64,
}

/// Everything that a verdict rests on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Evidence {
    /// In the order of their answers.
    pub acknowledged: Vec<Acknowledged>,
    /// Sent, and of unknown fate.
    pub unknown: u64,
    pub read_back: Vec<ReadBack>,
    /// So many ids the table keeps of one run.
    pub keep: i64,
}

/// What one primary was asked for, and had.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Proof {
    pub wall: WallTime,
    pub origin: Origin,
    pub lsn: Lsn,
    /// Acknowledged before, in this timeline or an earlier one, and not trimmed.
    pub expected: usize,
    pub first: Option<i64>,
    pub last: Option<i64>,
    /// Those of them that this primary does not have.
    pub missing: Vec<i64>,
}

/// What the evidence shows.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Verdict {
    /// One for each time that a primary was asked.
    pub proofs: Vec<Proof>,
    pub acknowledged: usize,
    pub unknown: u64,
    /// Acknowledged, and missing on a primary that was asked afterwards.
    pub lost: Vec<i64>,
    /// Held, and never sent.
    pub phantom: Vec<i64>,
    /// The longest time between two acknowledgements, in milliseconds; none with fewer than two.
    pub write_gap_ms: Option<f64>,
    /// Acknowledged canaries that no primary was asked for afterwards.
    pub unproven: usize,
    /// Why the evidence is too thin to say that nothing was lost.
    pub thin: Vec<String>,
}

impl Verdict {
    /// Returns whether it is proven that no acknowledged canary was lost.
    pub fn is_good(&self) -> bool {
        self.lost.is_empty() && self.phantom.is_empty() && self.thin.is_empty()
    }
}

/// Judges the evidence.
pub fn judge(evidence: &Evidence) -> Verdict {
    let proofs: Vec<Proof> =
        evidence.read_back.iter().map(|read| proof(evidence, read).0).collect();
    let lost: BTreeSet<i64> =
        proofs.iter().flat_map(|proof| proof.missing.iter().copied()).collect();
    let phantom: BTreeSet<i64> = evidence
        .read_back
        .iter()
        .flat_map(|read| {
            read.ids.iter().copied().filter(|id| !(1..=read.highest_sent).contains(id))
        })
        .collect();
    let unproven = unproven(evidence);
    Verdict {
        proofs,
        acknowledged: evidence.acknowledged.len(),
        unknown: evidence.unknown,
        lost: lost.into_iter().collect(),
        phantom: phantom.into_iter().collect(),
        write_gap_ms: write_gap(&evidence.acknowledged).map(|gap| gap.as_secs_f64() * 1e3),
        unproven,
        thin: thin(evidence, unproven),
    }
}

/// Returns what a primary was to have, and what of it was missing; and the ids that were asked for.
fn proof(evidence: &Evidence, read: &ReadBack) -> (Proof, BTreeSet<i64>) {
    // A primary that was replaced need not have what its successor acknowledged; the successor must have all of its.
    let expected: BTreeSet<i64> = evidence
        .acknowledged
        .iter()
        .filter(|ack| ack.answered <= read.asked && ack.origin.timeline <= read.origin.timeline)
        .map(|ack| ack.id)
        .filter(|id| *id > read.highest_sent - evidence.keep)
        .collect();
    let proof = Proof {
        wall: read.wall,
        origin: read.origin,
        lsn: read.lsn,
        expected: expected.len(),
        first: expected.first().copied(),
        last: expected.last().copied(),
        missing: expected.difference(&read.ids).copied().collect(),
    };
    (proof, expected)
}

/// Returns how many acknowledged canaries no primary was asked for afterwards.
fn unproven(evidence: &Evidence) -> usize {
    let asked: BTreeSet<i64> =
        evidence.read_back.iter().flat_map(|read| proof(evidence, read).1).collect();
    evidence.acknowledged.iter().filter(|ack| !asked.contains(&ack.id)).count()
}

fn thin(evidence: &Evidence, never: usize) -> Vec<String> {
    let mut thin = Vec::new();
    if evidence.acknowledged.is_empty() {
        thin.push("no canary was acknowledged".to_owned());
    }
    if never > 0 {
        thin.push(format!("no primary was asked for {never} acknowledged canaries afterwards"));
    }
    // An earlier primary's answer says nothing about what its successor holds.
    let newest = evidence.acknowledged.iter().map(|ack| ack.origin.timeline).max();
    let newest_asked = evidence.read_back.iter().map(|read| read.origin.timeline).max();
    if newest > newest_asked && newest_asked.is_some() {
        thin.push("the last primary was not asked".to_owned());
    }
    thin
}

fn write_gap(acknowledged: &[Acknowledged]) -> Option<Duration> {
    acknowledged.windows(2).map(|pair| pair[1].answered.since(pair[0].answered)).max()
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for proof in &self.proofs {
            let id = |id: Option<i64>| id.map_or("none".to_owned(), |id| id.to_string());
            writeln!(
                f,
                "timeline {} at {}: {} acknowledged canaries, {} to {}, missing {:?}",
                proof.origin.timeline.0,
                proof.lsn,
                proof.expected,
                id(proof.first),
                id(proof.last),
                proof.missing
            )?;
        }
        for reason in &self.thin {
            writeln!(f, "not proven: {reason}")?;
        }
        write!(
            f,
            "canary: acknowledged={} unknown={} lost={} phantom={} write_gap_ms={}",
            self.acknowledged,
            self.unknown,
            self.lost.len(),
            self.phantom.len(),
            self.write_gap_ms.map_or("none".to_owned(), |ms| format!("{ms:.0}"))
        )
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
