//! Keeps count of the standing canary from run to run. Pure.

use chaos::canary::{Acknowledged, Evidence, Proof, judge};
use proto::WallTime;
use proto::canary::{CanaryGap, CanaryRecord, GAP_TOLD_MS};

/// What was seen in all runs that have ended.
pub struct Book {
    record: CanaryRecord,
    /// The last canary of the run before, of this holder: the next one's first comes after it.
    last: Option<Acknowledged>,
}

impl Book {
    /// Goes on with what holders before have seen.
    pub fn of(record: CanaryRecord, runner: &str) -> Self {
        Self { record: CanaryRecord { runner: runner.to_owned(), ..record }, last: None }
    }

    /// Returns what was seen in all runs that have ended.
    pub fn record(&self) -> &CanaryRecord {
        &self.record
    }

    /// Returns the same with a run that goes on. What of it is not proven yet may still be.
    pub fn with(&self, evidence: &Evidence, now: WallTime) -> CanaryRecord {
        let verdict = judge(evidence);
        let mut record = self.record.clone();
        record.told = now;
        record.acknowledged += verdict.acknowledged as u64;
        record.unknown += verdict.unknown;
        record.lost += verdict.lost.len() as u64;
        record.last = evidence.acknowledged.last().map(|ack| ack.wall).or(record.last);
        let losses = verdict.proofs.iter().filter(|proof| !proof.missing.is_empty());
        record
            .add_news(gaps(self.last.as_ref(), &evidence.acknowledged), losses.map(say).collect());
        record
    }

    /// Adds a run that has ended.
    pub fn close(&mut self, evidence: &Evidence, now: WallTime) {
        self.record = self.with(evidence, now);
        self.record.unproven += judge(evidence).unproven as u64;
        self.last = evidence.acknowledged.last().copied().or(self.last);
    }
}

fn gaps(before: Option<&Acknowledged>, run: &[Acknowledged]) -> Vec<CanaryGap> {
    let all: Vec<&Acknowledged> = before.into_iter().chain(run).collect();
    let gap = |pair: &[&Acknowledged]| {
        let ms = u64::try_from(pair[1].answered.since(pair[0].answered).as_millis()).ok()?;
        let (before, after) = (pair[0].origin.timeline, pair[1].origin.timeline);
        (ms >= GAP_TOLD_MS).then_some(CanaryGap { from: pair[0].wall, ms, before, after })
    };
    all.windows(2).filter_map(gap).collect()
}

fn say(proof: &Proof) -> String {
    let (timeline, missing) = (proof.origin.timeline, &proof.missing);
    format!("{}: timeline {timeline} at {} lacks canaries {missing:?}", proof.wall, proof.lsn)
}
