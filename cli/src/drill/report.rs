//! What came of drills: each record, and what was never tried.

use std::fmt;

use proto::ClusterName;
use proto::canary::CanaryRecord;
use proto::drill::{DrillRecord, Undertaking};
use serde::Serialize;
use store::Store;

use super::coverage::{Covered, Shown};
use super::seen::Seen;
use super::standing;
use crate::table::{Table, milliseconds};
use crate::target::Target;

/// One record, for people and programs.
#[derive(Debug, Serialize)]
pub struct One(pub DrillRecord);

impl fmt::Display for One {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let record = &self.0;
        let target = record.target.as_ref().map_or("-".into(), ToString::to_string);
        write!(f, "drill {}: {} on {target}: {}", record.id, record.fault, record.verdict)?;
        for reason in &record.reasons {
            write!(f, "\n  {reason}")?;
        }
        if let (Some(told), Some(lost)) =
            (record.figures.canaries_acknowledged, record.figures.canaries_lost)
        {
            let gap = record
                .figures
                .write_gap_ms
                .map_or("not known".into(), |ms| milliseconds(signed(ms)));
            write!(
                f,
                "\ncanaries acknowledged: {told}, lost: {lost}, longest time without one: {gap}"
            )?;
        }
        if let Some(fence) = record.figures.fence_ms {
            write!(
                f,
                "\nthe old primary could not acknowledge any more after {}",
                milliseconds(signed(fence))
            )?;
        }
        if let Some(after) = record.figures.redundant_after_ms {
            write!(f, "\nfully redundant again after {}", milliseconds(signed(after)))?;
        }
        Ok(())
    }
}

fn signed(ms: u64) -> i64 {
    i64::try_from(ms).unwrap_or(i64::MAX)
}

/// All that is known of past drills. Field names are scripted against: they stay.
#[derive(Debug, Serialize)]
pub struct Report {
    cluster: ClusterName,
    drills: Vec<DrillRecord>,
    /// Each kind of drill, also of those whose records are forgotten.
    coverage: Vec<Covered>,
    /// What the canary has seen that is written always, and who writes it now.
    canary: Option<CanaryRecord>,
    canary_runner: Option<String>,
    /// What has never been survived here.
    never_passed: Vec<Undertaking>,
}

/// Reads it.
pub async fn gather(store: &dyn Store, target: &Target) -> anyhow::Result<Report> {
    let seen = Seen::look(store, target).await?;
    let coverage = Covered::all(&seen.coverage);
    let untried = coverage.iter().filter(|one| one.is_untried());
    Ok(Report {
        cluster: target.cluster.clone(),
        never_passed: untried.map(Covered::fault).collect(),
        coverage,
        drills: seen.records,
        canary: seen.canary,
        canary_runner: seen.canary_holder.map(|holder| holder.runner),
    })
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table =
            Table::new(&["begun", "drill", "on", "verdict", "fence", "redundant", "why"]);
        for record in &self.drills {
            let time = |ms: Option<u64>| ms.map_or("-".into(), |ms| milliseconds(signed(ms)));
            table.row([
                record.begun.to_string(),
                record.fault.to_string(),
                record.target.as_ref().map_or("-".into(), ToString::to_string),
                record.verdict.to_string(),
                time(record.figures.fence_ms),
                time(record.figures.redundant_after_ms),
                record.reasons.join("; "),
            ]);
        }
        write!(f, "cluster {}\n{table}", self.cluster)?;
        if self.coverage.iter().any(|one| !one.is_untried()) {
            write!(f, "{}", Shown(&self.coverage))?;
        }
        if let Some(canary) = &self.canary {
            writeln!(f, "{}", standing::Told(canary, self.canary_runner.as_deref()))?;
        }
        let never: Vec<String> = self.never_passed.iter().map(ToString::to_string).collect();
        match never.is_empty() {
            true => Ok(()),
            false => write!(f, "never survived yet: {}", never.join(", ")),
        }
    }
}
