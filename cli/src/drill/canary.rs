//! The commit canary beside a drill: what it proves becomes part of the drill's record.

use std::time::Duration;

use chaos::canary::{Canary, judge};
use proto::drill::{DrillRecord, Verdict};

use super::way::WayArgs;

/// How long the primary may take to tell which canaries it holds.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// A canary, where there is a way for it.
pub struct Watch(Option<Canary>);

impl Watch {
    /// Watches nothing.
    pub fn none() -> Self {
        Self(None)
    }

    /// Begins to write by the way that is given, if one is.
    pub async fn start(args: &WayArgs) -> anyhow::Result<Self> {
        Ok(Self(match args.way()? {
            Some(way) => Some(Canary::start(way).await?),
            None => None,
        }))
    }

    /// Returns why what has been seen so far is no good, if so: canaries that were lost.
    pub fn losses(&self) -> Option<String> {
        let verdict = judge(&self.0.as_ref()?.evidence());
        (!verdict.lost.is_empty())
            .then(|| format!("acknowledged canaries are lost: {:?}", verdict.lost))
    }

    /// Ends it, and returns what it shows, if there was one.
    pub async fn end(self) -> Option<Shown> {
        let verdict = match self.0?.finish(ANSWER_WITHIN).await {
            Ok(evidence) => judge(&evidence),
            Err(error) => {
                let problem = Some(format!("the canary: {error:#}"));
                return Some(Shown { problem, ..Shown::default() });
            }
        };
        Some(Shown {
            acknowledged: u64::try_from(verdict.acknowledged).ok(),
            lost: u64::try_from(verdict.lost.len()).ok(),
            write_gap_ms: verdict.write_gap_ms,
            problem: (!verdict.is_good()).then(|| complaint(&verdict)),
        })
    }

    /// Ends it, and puts what it shows into `record`.
    pub async fn judge(self, record: &mut DrillRecord, gap_within: Duration) {
        let Some(shown) = self.end().await else { return };
        record.figures.write_gap_ms = shown.write_gap_ms.map(|ms| ms.ceil() as u64);
        record.figures.canaries_acknowledged = shown.acknowledged;
        record.figures.canaries_lost = shown.lost;
        let too_long = shown.write_gap_ms.is_some_and(|ms| ms > gap_within.as_secs_f64() * 1e3);
        let too_long =
            too_long.then(|| format!("no canary was acknowledged for longer than {gap_within:?}"));
        for why in shown.problem.into_iter().chain(too_long) {
            record.verdict = Verdict::Failed;
            record.reasons.push(why);
        }
    }
}

/// What a canary shows at its end; figures are absent where it could not be ended.
#[derive(Debug, Default)]
pub struct Shown {
    pub acknowledged: Option<u64>,
    /// Acknowledged canaries that the primary did not hold.
    pub lost: Option<u64>,
    pub write_gap_ms: Option<f64>,
    /// Why that is no good, if so.
    pub problem: Option<String>,
}

fn complaint(verdict: &chaos::canary::Verdict) -> String {
    let (lost, phantom, thin) = (&verdict.lost, &verdict.phantom, verdict.thin.join(", "));
    format!("the canary: lost {lost:?}, never sent {phantom:?}; {thin}")
}
