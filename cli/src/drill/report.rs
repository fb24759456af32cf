//! What came of drills: each record, and what was never tried.

use std::fmt;

use proto::ClusterName;
use proto::drill::{DrillRecord, LiveFault, Verdict};
use serde::Serialize;
use store::Store;

use super::seen::Seen;
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
    /// What has never been survived here.
    never_passed: Vec<LiveFault>,
}

/// Reads it.
pub async fn gather(store: &dyn Store, target: &Target) -> anyhow::Result<Report> {
    let seen = Seen::look(store, target).await?;
    let passed = |fault: &LiveFault| {
        seen.records.iter().any(|r| r.fault == *fault && r.verdict == Verdict::Passed)
    };
    let never_passed = LiveFault::ALL.into_iter().filter(|fault| !passed(fault)).collect();
    Ok(Report { cluster: target.cluster.clone(), drills: seen.records, never_passed })
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new(&["begun", "drill", "on", "verdict", "redundant", "why"]);
        for record in &self.drills {
            let redundant = record.figures.redundant_after_ms;
            table.row([
                record.begun.to_string(),
                record.fault.to_string(),
                record.target.as_ref().map_or("-".into(), ToString::to_string),
                record.verdict.to_string(),
                redundant.map_or("-".into(), |ms| milliseconds(signed(ms))),
                record.reasons.join("; "),
            ]);
        }
        write!(f, "cluster {}\n{table}", self.cluster)?;
        let never: Vec<&str> = self.never_passed.iter().map(|fault| fault.name()).collect();
        match never.is_empty() {
            true => Ok(()),
            false => write!(f, "never survived yet: {}", never.join(", ")),
        }
    }
}
