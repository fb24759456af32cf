//! The commit canary beside a drill: what it proves becomes part of the drill's record.

use std::time::Duration;

use chaos::canary::{Canary, judge};
use proto::drill::{DrillRecord, Verdict};

/// How long the primary may take to tell which canaries it holds.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// A canary, where there is a way for it.
pub struct Watch(Option<Canary>);

impl Watch {
    /// Watches nothing.
    pub fn none() -> Self {
        Self(None)
    }

    /// Begins to write by `dsn`, if there is one.
    pub async fn start(dsn: Option<&str>) -> anyhow::Result<Self> {
        Ok(Self(match dsn {
            Some(dsn) => Some(Canary::start(dsn).await?),
            None => None,
        }))
    }

    /// Returns why what has been seen so far is no good, if so: canaries that were lost.
    pub fn losses(&self) -> Option<String> {
        let verdict = judge(&self.0.as_ref()?.evidence());
        (!verdict.lost.is_empty())
            .then(|| format!("acknowledged canaries are lost: {:?}", verdict.lost))
    }

    /// Ends it. Returns how many canaries were acknowledged, how many of them are lost, and why that is no good, if so.
    pub async fn proof(self) -> Option<(u64, u64, Option<String>)> {
        let verdict = match self.0?.finish(ANSWER_WITHIN).await {
            Ok(evidence) => judge(&evidence),
            Err(error) => return Some((0, 0, Some(format!("the canary: {error:#}")))),
        };
        let problem = (!verdict.is_good()).then(|| complaint(&verdict));
        Some((verdict.acknowledged as u64, verdict.lost.len() as u64, problem))
    }

    /// Ends it, and puts what it shows into `record`.
    pub async fn judge(self, record: &mut DrillRecord, gap_within: Duration) {
        let Some(canary) = self.0 else { return };
        let verdict = match canary.finish(ANSWER_WITHIN).await {
            Ok(evidence) => judge(&evidence),
            Err(error) => return fail(record, format!("the canary: {error:#}")),
        };
        let gap = verdict.write_gap_ms;
        record.figures.write_gap_ms = gap.map(|ms| ms.ceil() as u64);
        record.figures.canaries_acknowledged = u64::try_from(verdict.acknowledged).ok();
        record.figures.canaries_lost = u64::try_from(verdict.lost.len()).ok();
        if !verdict.is_good() {
            fail(record, complaint(&verdict));
        }
        if gap.is_some_and(|ms| ms > gap_within.as_secs_f64() * 1e3) {
            fail(record, format!("no canary was acknowledged for longer than {gap_within:?}"));
        }
    }
}

fn complaint(verdict: &chaos::canary::Verdict) -> String {
    let (lost, phantom, thin) = (&verdict.lost, &verdict.phantom, verdict.thin.join(", "));
    format!("the canary: lost {lost:?}, never sent {phantom:?}; {thin}")
}

fn fail(record: &mut DrillRecord, why: String) {
    record.verdict = Verdict::Failed;
    record.reasons.push(why);
}
