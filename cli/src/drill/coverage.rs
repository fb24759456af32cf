//! Which faults were survived when, and how the write gap changes, also of drills whose records are forgotten.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::Context;
use proto::WallTime;
use proto::document::{decode, encode};
use proto::drill::{DrillCoverage, DrillRecord, Undertaking, Verdict};
use serde::Serialize;
use store::{Operation, Snapshot, Store};

use crate::table::{Table, milliseconds};
use crate::target::Target;

/// Returns what is to be written, beside its record, of a drill that has passed or failed. Whoever asks holds the lock of
/// drills, so nobody else counts at the same time; of others, which need not hold it, nothing is counted.
pub async fn counted(
    store: &dyn Store,
    target: &Target,
    record: &DrillRecord,
) -> anyhow::Result<Option<Operation>> {
    if !matches!(record.verdict, Verdict::Passed | Verdict::Failed) {
        return Ok(None);
    }
    let key = target.keys().drill_coverage(record.fault);
    let snapshot = store.read(&key).await.context("read what was survived")?;
    let known = snapshot.entries.get(&key).and_then(|entry| decode(&entry.value).ok());
    let mut coverage: DrillCoverage = known.unwrap_or_else(|| DrillCoverage::none(record.fault));
    coverage.add(record);
    Ok(Some(Operation::Put { key, value: encode(&coverage).into_bytes(), lease: None }))
}

/// Returns what is known of each fault. What was written by programs that did not count is counted by its records.
pub fn known(
    snapshot: &Snapshot,
    prefix: &str,
    records: &[DrillRecord],
) -> BTreeMap<Undertaking, DrillCoverage> {
    let counted = snapshot.entries.iter().filter(|(key, _)| key.starts_with(prefix));
    let counted = counted.filter_map(|(_, entry)| decode::<DrillCoverage>(&entry.value).ok());
    let mut all: BTreeMap<Undertaking, DrillCoverage> =
        counted.map(|coverage| (coverage.fault, coverage)).collect();
    let mut by_records = BTreeMap::new();
    for record in records.iter().filter(|record| !all.contains_key(&record.fault)) {
        let none = || DrillCoverage::none(record.fault);
        by_records.entry(record.fault).or_insert_with(none).add(record);
    }
    all.append(&mut by_records);
    all
}

/// What a report says of one fault. Field names are scripted against: they stay.
#[derive(Debug, Serialize)]
pub struct Covered {
    fault: Undertaking,
    survived: Option<WallTime>,
    passed: u64,
    failed: u64,
    /// The median of the newer half of what is kept, of the older half, and the longest.
    write_gap_ms: Option<u64>,
    write_gap_before_ms: Option<u64>,
    write_gap_longest_ms: Option<u64>,
    /// The gaps themselves, oldest first.
    write_gaps_ms: Vec<u64>,
}

impl Covered {
    /// Returns all faults, from the mildest on.
    pub fn all(known: &BTreeMap<Undertaking, DrillCoverage>) -> Vec<Self> {
        let of = |fault| {
            let none = DrillCoverage::none(fault);
            let coverage = known.get(&fault).unwrap_or(&none);
            let trend = coverage.trend();
            Self {
                fault,
                survived: coverage.survived.as_ref().map(|survived| survived.begun),
                passed: coverage.passed,
                failed: coverage.failed,
                write_gap_ms: trend.map(|(newer, _)| newer),
                write_gap_before_ms: trend.and_then(|(_, older)| older),
                write_gap_longest_ms: coverage.gaps.iter().map(|gap| gap.ms).max(),
                write_gaps_ms: coverage.gaps.iter().map(|gap| gap.ms).collect(),
            }
        };
        Undertaking::all().map(of).collect()
    }

    /// Returns whether it has never been survived here.
    pub fn is_untried(&self) -> bool {
        self.survived.is_none()
    }

    /// Returns its fault.
    pub fn fault(&self) -> Undertaking {
        self.fault
    }
}

/// A table for people, without those that were never tried.
pub struct Shown<'a>(pub &'a [Covered]);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let heads =
            ["drill", "survived last", "passed", "failed", "write gap", "before", "longest"];
        let mut table = Table::new(&heads);
        let time = |ms: Option<u64>| {
            ms.map_or("-".into(), |ms| milliseconds(i64::try_from(ms).unwrap_or(i64::MAX)))
        };
        for one in self.0.iter().filter(|one| one.passed + one.failed > 0) {
            table.row([
                one.fault.to_string(),
                one.survived.map_or("never".into(), |at| at.to_string()),
                one.passed.to_string(),
                one.failed.to_string(),
                time(one.write_gap_ms),
                time(one.write_gap_before_ms),
                time(one.write_gap_longest_ms),
            ]);
        }
        write!(f, "{table}")
    }
}

#[cfg(test)]
mod tests {
    use proto::drill::LiveFault;
    use store::{MemoryStore, Txn};

    use super::super::run::record;
    use super::*;
    use crate::target::StoreArgs;

    #[tokio::test]
    async fn what_was_survived_is_known_when_its_record_is_forgotten_and_older_records_count() {
        let store = MemoryStore::new();
        let target = Target {
            cluster: "main".parse().unwrap(),
            store: StoreArgs::plain("http://127.0.0.1:1"),
        };
        let drilled = |fault: LiveFault, gap| {
            let mut record = DrillRecord { verdict: Verdict::Passed, ..record(fault.into(), 1) };
            record.figures.write_gap_ms = Some(gap);
            record
        };
        for gap in [900, 500] {
            let crash = drilled(LiveFault::Crash, gap);
            let put = counted(&store, &target, &crash).await.unwrap();
            let then = put.into_iter().collect();
            store.commit(Txn { when: Vec::new(), then }).await.unwrap();
        }
        let snapshot = store.read(target.keys().prefix()).await.unwrap();
        let older = [drilled(LiveFault::Keeper, 12), drilled(LiveFault::Crash, 1)];
        let all = Covered::all(&known(&snapshot, &target.keys().all_drill_coverage(), &older));
        let of = |fault: LiveFault| all.iter().find(|one| one.fault == fault.into()).unwrap();
        let crash = of(LiveFault::Crash);
        assert_eq!((crash.passed, &crash.write_gaps_ms[..]), (2, &[900, 500][..]), "counted once");
        assert_eq!((crash.write_gap_ms, crash.write_gap_before_ms), (Some(500), Some(900)));
        assert_eq!(of(LiveFault::Keeper).passed, 1, "of before there was anything to count by");
        assert!(of(LiveFault::Backend).is_untried() && !crash.is_untried());
        let shown = Shown(&all).to_string();
        assert!(shown.contains("crash") && !shown.contains("backend"), "{shown}");
    }
}
