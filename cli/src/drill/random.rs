//! Drills one after the other, drawn from a seed.

use std::fmt;
use std::time::Duration;

use proto::drill::{DrillRecord, Verdict};
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use serde::Serialize;
use store::clock;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::guard::objections;
use super::seen::Seen;
use super::{One, report, run as one};
use crate::read;

/// So often it is looked whether the next one may begin.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What came of them. Field names are scripted against: they stay.
#[derive(Debug, Serialize)]
pub struct Many {
    seed: u64,
    drills: Vec<DrillRecord>,
    /// Why the next one could not begin in time, if so.
    waited_for: Vec<String>,
}

impl Many {
    /// Returns whether one has passed, and all others, but for those that their targets do not want.
    pub fn is_good(&self) -> bool {
        let passed = |d: &&DrillRecord| d.verdict == Verdict::Passed;
        let refused = self.drills.iter().filter(|d| d.verdict == Verdict::Refused).count();
        let passed = self.drills.iter().filter(passed).count();
        passed > 0 && passed + refused == self.drills.len()
    }
}

/// Runs drills like `first`, with faults and seeds of their own, until `lasting` is over or one does not pass.
pub async fn run(first: One, lasting: Duration, stop: CancellationToken) -> anyhow::Result<Many> {
    let store = read::connect(&first.target.store).await?;
    let mut draw = rand::rngs::StdRng::seed_from_u64(first.seed);
    let mut many = Many { seed: first.seed, drills: Vec::new(), waited_for: Vec::new() };
    let (until, mut refused) = (clock::now() + lasting, Vec::new());
    loop {
        let mut able = Seen::look_patiently(&store, &first.target).await?.that_hit_somebody();
        able.retain(|fault| !refused.contains(fault));
        let fault = able.choose(&mut draw).copied().unwrap_or(first.fault);
        let next = One { fault, seed: draw.next_u64(), ..first.clone() };
        // What stands in the way is waited for, and no record is made of it each second.
        loop {
            let seen = Seen::ask(&store, &next.target).await?;
            many.waited_for = objections(&seen, fault, &next.limits);
            if clock::now() >= until || stop.is_cancelled() {
                return Ok(many);
            }
            if many.waited_for.is_empty() {
                break;
            }
            tokio::select! {
                () = stop.cancelled() => return Ok(many),
                () = sleep(LOOK_EVERY) => {}
            }
        }
        let record = one::run(next, stop.clone()).await?;
        eprintln!("pgdeputy: drill {} on {:?}: {}", record.fault, record.target, record.verdict);
        let verdict = record.verdict;
        many.drills.push(record);
        match verdict {
            Verdict::Passed => {}
            // Its target does not want it: the guard rails were looked at a moment ago.
            Verdict::Refused => refused.push(fault),
            _ => return Ok(many),
        }
    }
}

impl fmt::Display for Many {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} drills, drawn from seed {}", self.drills.len(), self.seed)?;
        for record in &self.drills {
            write!(f, "\n{}", report::One(record.clone()))?;
        }
        for reason in &self.waited_for {
            write!(f, "\nthe next one waited: {reason}")?;
        }
        Ok(())
    }
}
