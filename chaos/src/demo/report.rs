//! What a run of the demo comes to: one document for programs, the same as text for people.

use std::fmt::Write as _;

use proto::history::{HistoryKind, HistoryRecord};
use proto::{MemberName, WallTime};
use serde::Serialize;

use super::follow::rejoin_word;
use crate::fault::Fault;
use crate::lab::{Cluster, Service};
use crate::verdict::Verdict;

/// How many lost or doubled writes are named one by one.
const NAMED: usize = 10;

/// How writes came back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RecoveredBy {
    /// The same PostgreSQL was started again.
    Restart,
    /// Another member was promoted.
    Failover,
    /// Nothing had to be done.
    None,
}

/// The outcome of one run.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    pub fault: Fault,
    pub victim: MemberName,
    pub recovered_by: RecoveredBy,
    pub epoch_before: u64,
    pub epoch_after: u64,
    pub primary_before: MemberName,
    pub primary_after: MemberName,
    /// The longest time without any acknowledgement from the fault until redundancy was back.
    pub write_gap_ms: f64,
    pub acknowledged: usize,
    /// Commits of which nobody was told what became: neither lost nor kept.
    pub unknown: u64,
    /// Those of the unknown ones that had no answer within a second. The others had their session cut.
    pub overdue: u64,
    pub commits_per_second: f64,
    /// Acknowledged writes that a member does not hold.
    pub lost: usize,
    /// Acknowledgements by an older primary after those of a newer one.
    pub dual: usize,
    pub beacons: usize,
    pub redundant_after_ms: f64,
    pub old_primary_rejoined_by: Option<&'static str>,
    pub old_primary_rejoin_reason: Option<String>,
    pub phases: Vec<Phase>,
    /// Why the run shows too little to say that nothing was lost.
    pub inconclusive: Vec<String>,
    /// The first of the lost and doubled writes, in words.
    pub violations: Vec<String>,
    pub good: bool,
}

/// One phase of the recovery, in milliseconds since the fault.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Phase {
    pub name: String,
    pub start_ms: i64,
    pub end_ms: Option<i64>,
}

/// What is known of the recovery itself.
#[derive(Debug, Clone)]
pub struct Recovery {
    pub fault: Fault,
    pub victim: MemberName,
    /// The wall clock at the fault, which the records are compared with.
    pub struck: WallTime,
    pub before: (Service, MemberName),
    pub after: (Service, MemberName),
}

impl Recovery {
    /// Returns how writes came back, by the records that were written since `before`.
    pub fn recovered_by(&self) -> RecoveredBy {
        match () {
            () if self.after.0.epoch > self.before.0.epoch => RecoveredBy::Failover,
            () if self.after.0 > self.before.0 => RecoveredBy::Restart,
            () => RecoveredBy::None,
        }
    }

    /// Returns the records of this recovery.
    pub fn records<'c>(&self, cluster: &'c Cluster) -> Vec<&'c HistoryRecord> {
        let before = self.before.0;
        let is_later = |r: &&HistoryRecord| {
            r.kind != HistoryKind::Founding && (r.epoch, r.restart) > (before.epoch, before.restart)
        };
        cluster.history.iter().filter(is_later).collect()
    }

    /// Returns the phases of these records, in milliseconds since the fault.
    pub fn phases(&self, cluster: &Cluster) -> Vec<Phase> {
        let since = |time: WallTime| time.ms_since(self.struck);
        let records = self.records(cluster).into_iter();
        let phases = records.flat_map(|record| &record.phases).map(|phase| Phase {
            name: phase.name.clone(),
            start_ms: since(phase.start),
            end_ms: phase.end.map(since),
        });
        phases.collect()
    }

    /// Returns how the last primary that was replaced came back, and why that way.
    pub fn rejoined(&self, cluster: &Cluster) -> Option<(&'static str, String)> {
        let records = self.records(cluster);
        let last = records.iter().rev().find(|r| r.kind == HistoryKind::Failover)?;
        let old = last.from.as_ref()?;
        if let Some(record) = last.rejoined.iter().rev().find(|r| r.member == *old) {
            return Some((rejoin_word(record.by), record.reason.clone()));
        }
        let rejoin = cluster.reports.get(old)?.rejoin.as_ref()?;
        (rejoin.epoch >= last.epoch).then(|| (rejoin_word(rejoin.by), rejoin.reason.clone()))
    }
}

/// Returns the first violations in words.
pub fn violations(verdict: &Verdict) -> Vec<String> {
    let lost = verdict.lost.iter().map(ToString::to_string);
    let dual = verdict.dual.iter().map(ToString::to_string);
    lost.take(NAMED).chain(dual.take(NAMED)).collect()
}

impl Report {
    /// The report for people: the phases, then the verdict.
    pub fn text(&self) -> String {
        let mut text = String::new();
        if !self.phases.is_empty() {
            let _ = writeln!(text, "\nphases, by the record in etcd (ms since the fault)");
        }
        for phase in &self.phases {
            let end = phase.end_ms.map_or("open".to_owned(), |end| end.to_string());
            let took =
                phase.end_ms.map_or(String::new(), |end| format!("{} ms", end - phase.start_ms));
            let _ = writeln!(
                text,
                "  {:<12} {:>7} .. {:>7}   {took:>9}",
                phase.name, phase.start_ms, end
            );
        }
        let _ =
            writeln!(text, "\nverdict: {}", if self.good { "nothing was lost" } else { "FAILED" });
        for (name, value) in self.facts() {
            let _ = writeln!(text, "  {name:<24} {value}");
        }
        for problem in self.violations.iter().chain(&self.inconclusive) {
            let _ = writeln!(text, "  ! {problem}");
        }
        text
    }

    fn facts(&self) -> Vec<(&'static str, String)> {
        let epochs = format!(
            "{} ({}) -> {} ({})",
            self.epoch_before, self.primary_before, self.epoch_after, self.primary_after
        );
        let recovered = match self.recovered_by {
            RecoveredBy::Restart => "a restart in place",
            RecoveredBy::Failover => match self.fault {
                Fault::Switchover | Fault::Stop => "a switchover",
                _ => "a failover",
            },
            RecoveredBy::None => "nothing: writes went on",
        };
        let mut facts = vec![
            ("fault", self.fault.describe(&self.victim)),
            ("recovered by", recovered.to_owned()),
            ("epoch (primary)", epochs),
            ("longest write gap", format!("{:.0} ms", self.write_gap_ms)),
            ("redundant again after", format!("{:.0} ms", self.redundant_after_ms)),
        ];
        if let Some(by) = self.old_primary_rejoined_by {
            let reason = self.old_primary_rejoin_reason.as_deref().unwrap_or("no reason recorded");
            facts.push(("old primary came back by", format!("{by} ({reason})")));
        }
        facts.push((
            "acknowledged commits",
            format!(
                "{} ({:.0} a second before the fault)",
                self.acknowledged, self.commits_per_second
            ),
        ));
        facts.push(("unknown to the client", self.unknown.to_string()));
        facts.push(("acknowledged and lost", self.lost.to_string()));
        facts.push((
            "two primaries at once",
            format!("{} ({} beacons, asked of each member every 50 ms)", self.dual, self.beacons),
        ));
        facts
    }
}

#[cfg(test)]
mod tests {
    use proto::Epoch;
    use proto::history::PhaseRecord;

    use super::*;

    fn record(kind: HistoryKind, epoch: u64, restart: u64, start: i64) -> HistoryRecord {
        let phase = PhaseRecord {
            name: "seal".into(),
            start: WallTime(start),
            end: Some(WallTime(start + 12)),
        };
        HistoryRecord {
            kind,
            epoch: Epoch(epoch),
            restart,
            from: Some("a".parse().unwrap()),
            to: Some("b".parse().unwrap()),
            cause: String::new(),
            evidence: Vec::new(),
            chosen: None,
            rejected: Vec::new(),
            phases: vec![phase],
            rejoined: Vec::new(),
            notes: Vec::new(),
            redundant: None,
        }
    }

    fn recovery(after: (u64, u64)) -> Recovery {
        let service = |epoch, restart| Service { epoch: Epoch(epoch), restart };
        Recovery {
            fault: Fault::Crash,
            victim: "a".parse().unwrap(),
            struck: WallTime(1000),
            before: (service(2, 0), "a".parse().unwrap()),
            after: (service(after.0, after.1), "b".parse().unwrap()),
        }
    }

    #[test]
    fn only_what_happened_after_the_fault_counts_and_times_are_relative_to_it() {
        let records = vec![
            record(HistoryKind::Founding, 1, 0, 0),
            record(HistoryKind::Failover, 2, 0, 500),
            record(HistoryKind::Restart, 2, 1, 1004),
            record(HistoryKind::Failover, 3, 0, 1200),
        ];
        let cluster = Cluster { history: records, ..Cluster::default() };
        let phases = recovery((3, 0)).phases(&cluster);
        let times: Vec<_> = phases.iter().map(|p| (p.start_ms, p.end_ms)).collect();
        assert_eq!(times, [(4, Some(16)), (200, Some(212))]);
    }

    #[test]
    fn a_higher_epoch_is_a_failover_and_a_higher_restart_in_the_same_one_a_restart() {
        assert_eq!(recovery((3, 0)).recovered_by(), RecoveredBy::Failover);
        assert_eq!(recovery((2, 1)).recovered_by(), RecoveredBy::Restart);
        assert_eq!(recovery((2, 0)).recovered_by(), RecoveredBy::None);
    }
}
