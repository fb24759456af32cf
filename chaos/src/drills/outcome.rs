//! What a run of drills comes to: one document, a table for people, and one last line for scripts.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use proto::{MemberName, Moment};
use serde::Serialize;

use super::drill::{Drill, Stuck};
use super::plan::classes;
use crate::checker::{Finding, Kind};
use crate::fault::{Class, Fault};
use crate::verdict::Verdict;

/// So many findings of a kind are printed; all are in the document.
const PRINTED: usize = 20;

/// The document.
#[derive(Debug, Clone, Serialize)]
pub struct Outcome {
    /// By which the order of the faults can be had again.
    pub seed: Option<u64>,
    pub faults: usize,
    pub classes: usize,
    /// Acknowledged writes that a member does not hold.
    pub lost: usize,
    /// Acknowledgements by two primaries.
    pub dual: usize,
    /// What was read and is not there.
    pub vanished: usize,
    /// Drills after which the cluster was not whole again by itself.
    pub unredundant: usize,
    /// Reads of less than had been acknowledged: allowed for a short time after a failover unless reads are strict.
    pub stale: usize,
    pub write_gap_ms: Spread,
    pub redundant_after_ms: Spread,
    pub acknowledged: usize,
    /// Operations of the other clients.
    pub operations: usize,
    pub seconds: f64,
    pub by_fault: Vec<Row>,
    pub drills: Vec<Line>,
    /// All that is wrong, in words.
    pub findings: Vec<String>,
    pub good: bool,
}

/// Of sorted times in milliseconds, by the nearest rank.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Spread {
    pub p50: f64,
    pub p99: f64,
    pub max: f64,
}

/// All drills of one fault.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    pub fault: Fault,
    pub class: Class,
    pub runs: usize,
    pub write_gap_ms: Spread,
    pub bound_ms: u64,
    pub redundant_after_ms: Spread,
}

/// One drill, in milliseconds since the run began.
#[derive(Debug, Clone, Serialize)]
pub struct Line {
    pub fault: Fault,
    pub victim: MemberName,
    pub struck_ms: f64,
    /// When the next service was agreed, where one was expected.
    pub served_ms: Option<f64>,
    pub mended_ms: f64,
    pub redundant_ms: f64,
    pub write_gap_ms: f64,
    pub problems: Vec<String>,
}

/// What the run has shown, before it is put into words.
pub struct Shown<'a> {
    pub seed: Option<u64>,
    pub from: Moment,
    pub until: Moment,
    pub drills: &'a [Drill],
    pub stuck: Option<(Fault, Stuck)>,
    pub verdict: Verdict,
    pub findings: Vec<Finding>,
    pub acknowledged: usize,
    pub operations: usize,
}

impl Outcome {
    /// Puts it together.
    pub fn of(shown: Shown<'_>) -> Self {
        let Shown { drills, verdict, findings, from, .. } = shown;
        let count = |kind: Kind| findings.iter().filter(|found| found.kind == kind).count();
        let (lost, vanished, stale) =
            (count(Kind::Lost), count(Kind::Vanished), count(Kind::Stale));
        let mut words: Vec<String> = verdict.lost.iter().map(ToString::to_string).collect();
        words.extend(verdict.dual.iter().map(ToString::to_string));
        words.extend(verdict.inconclusive.iter().cloned());
        words.extend(
            findings.iter().filter(|found| found.kind != Kind::Stale).map(ToString::to_string),
        );
        for drill in drills {
            words
                .extend(drill.problems.iter().map(|problem| format!("{}: {problem}", drill.fault)));
        }
        let unredundant = usize::from(matches!(shown.stuck, Some((_, Stuck::Unredundant(_)))));
        if let Some((fault, Stuck::Failed(error) | Stuck::Unredundant(error))) = &shown.stuck {
            words.push(format!("{fault} did not come to its end: {error:#}"));
        }
        Self {
            seed: shown.seed,
            faults: drills.len(),
            classes: classes(drills.iter().map(|drill| drill.fault)).len(),
            lost: verdict.lost.len() + lost,
            dual: verdict.dual.len(),
            vanished,
            unredundant,
            stale,
            write_gap_ms: Spread::of(drills.iter().map(|drill| drill.gap)),
            redundant_after_ms: Spread::of(drills.iter().map(Drill::redundant_after)),
            acknowledged: shown.acknowledged,
            operations: shown.operations,
            seconds: shown.until.since(from).as_secs_f64(),
            by_fault: rows(drills),
            drills: drills.iter().map(|drill| line(drill, from)).collect(),
            good: words.is_empty(),
            findings: words,
        }
    }

    /// The table for people, and the last line for scripts.
    pub fn text(&self) -> String {
        let mut text = format!(
            "\n{:<20} {:>5} {:>8} {:>8} {:>8} {:>8}   {:>16}\n{:<20} {:>5} {:>8} {:>8} {:>8} {:>8}   {:>16}\n",
            "",
            "",
            "write gap",
            "in ms",
            "",
            "",
            "redundant",
            "fault",
            "runs",
            "p50",
            "p99",
            "max",
            "allowed",
            "after, ms at most"
        );
        for row in &self.by_fault {
            let (gap, after) = (row.write_gap_ms, row.redundant_after_ms.max);
            let _ = writeln!(
                text,
                "{:<20} {:>5} {:>8.0} {:>8.0} {:>8.0} {:>8}   {after:>16.0}",
                row.fault.name(),
                row.runs,
                gap.p50,
                gap.p99,
                gap.max,
                row.bound_ms
            );
        }
        let _ = writeln!(
            text,
            "{} commits acknowledged and {} other operations in {:.0} s; {} reads were stale",
            self.acknowledged, self.operations, self.seconds, self.stale
        );
        if let Some(seed) = self.seed {
            let _ = writeln!(text, "the order of the faults: --seed {seed}");
        }
        for finding in self.findings.iter().take(PRINTED) {
            let _ = writeln!(text, "WRONG: {finding}");
        }
        if self.findings.len() > PRINTED {
            let _ = writeln!(text, "WRONG: {} more", self.findings.len() - PRINTED);
        }
        text.push_str(&self.last_line());
        text
    }

    /// The line for scripts.
    pub fn last_line(&self) -> String {
        let Spread { p50, p99, max } = self.write_gap_ms;
        format!(
            "drills: faults={} classes={} lost={} dual={} vanished={} unredundant={} write_gap_ms_p50={p50:.0} \
             p99={p99:.0} max={max:.0}",
            self.faults, self.classes, self.lost, self.dual, self.vanished, self.unredundant
        )
    }
}

impl Drill {
    fn redundant_after(&self) -> Duration {
        self.redundant.since(self.mended)
    }
}

impl Spread {
    /// Returns the spread of these times, zeros where there are none.
    pub fn of(times: impl IntoIterator<Item = Duration>) -> Self {
        let mut sorted: Vec<Duration> = times.into_iter().collect();
        sorted.sort();
        let at = |percent: usize| {
            let rank = (sorted.len() * percent).div_ceil(100);
            sorted.get(rank.saturating_sub(1)).map_or(0.0, |time| time.as_secs_f64() * 1e3)
        };
        Self { p50: at(50), p99: at(99), max: at(100) }
    }
}

fn rows(drills: &[Drill]) -> Vec<Row> {
    let mut by_fault: BTreeMap<Fault, Vec<&Drill>> = BTreeMap::new();
    for drill in drills {
        by_fault.entry(drill.fault).or_default().push(drill);
    }
    let row = |(fault, drills): (Fault, Vec<&Drill>)| Row {
        fault,
        class: fault.entry().class,
        runs: drills.len(),
        write_gap_ms: Spread::of(drills.iter().map(|drill| drill.gap)),
        bound_ms: u64::try_from(fault.bound().as_millis()).unwrap_or(u64::MAX),
        redundant_after_ms: Spread::of(drills.iter().map(|drill| drill.redundant_after())),
    };
    by_fault.into_iter().map(row).collect()
}

fn line(drill: &Drill, from: Moment) -> Line {
    let ms = |at: Moment| at.since(from).as_secs_f64() * 1e3;
    Line {
        fault: drill.fault,
        victim: drill.victim.clone(),
        struck_ms: ms(drill.struck),
        served_ms: drill.served.map(ms),
        mended_ms: ms(drill.mended),
        redundant_ms: ms(drill.redundant),
        write_gap_ms: drill.gap.as_secs_f64() * 1e3,
        problems: drill.problems.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drill(fault: Fault, gap: u64, problems: &[&str]) -> Drill {
        let at = |ms| Moment::since_boot(Duration::from_millis(ms));
        Drill {
            fault,
            victim: "a".parse().unwrap(),
            struck: at(5_000),
            served: None,
            mended: at(7_000),
            redundant: at(8_500),
            gap: Duration::from_millis(gap),
            problems: problems.iter().map(ToString::to_string).collect(),
        }
    }

    fn outcome(drills: &[Drill], stuck: Option<(Fault, Stuck)>, findings: Vec<Finding>) -> Outcome {
        let from = Moment::since_boot(Duration::from_secs(1));
        let (seed, verdict) = (Some(7), Verdict::default());
        let until = from + Duration::from_secs(60);
        let (acknowledged, operations) = (5_000, 900);
        Outcome::of(Shown {
            seed,
            from,
            until,
            drills,
            stuck,
            verdict,
            findings,
            acknowledged,
            operations,
        })
    }

    #[test]
    fn the_last_line_is_for_scripts() {
        let drills = [drill(Fault::Crash, 120, &[]), drill(Fault::Etcd, 10, &[])];
        let text = outcome(&drills, None, Vec::new()).text();
        assert!(text.ends_with(
            "\ndrills: faults=2 classes=2 lost=0 dual=0 vanished=0 unredundant=0 write_gap_ms_p50=10 p99=120 max=120"
        ));
        assert!(text.contains("--seed 7"), "{text}");
    }

    #[test]
    fn whatever_is_wrong_makes_a_run_bad_but_for_a_stale_read() {
        let good = [drill(Fault::Crash, 120, &[])];
        let stale = || vec![Finding::new(Kind::Stale, "x")];
        assert!(outcome(&good, None, stale()).good);
        assert_eq!(outcome(&good, None, stale()).stale, 1);
        assert!(!outcome(&[drill(Fault::Crash, 120, &["too long"])], None, Vec::new()).good);
        assert!(!outcome(&good, None, vec![Finding::new(Kind::Inconclusive, "x")]).good);
        let stuck =
            |how: fn(anyhow::Error) -> Stuck| Some((Fault::Etcd, how(anyhow::anyhow!("x"))));
        let failed = outcome(&good, stuck(Stuck::Failed), Vec::new());
        assert!(!failed.good && failed.unredundant == 0);
        let unredundant = outcome(&good, stuck(Stuck::Unredundant), Vec::new());
        assert!(!unredundant.good && unredundant.last_line().contains("unredundant=1"));
    }

    #[test]
    fn percentiles_are_by_the_nearest_rank() {
        let spread = Spread::of((1..=100).map(Duration::from_millis));
        assert_eq!(spread, Spread { p50: 50.0, p99: 99.0, max: 100.0 });
        assert_eq!(Spread::of([Duration::from_millis(4)]), Spread { p50: 4.0, p99: 4.0, max: 4.0 });
        assert_eq!(Spread::of([]), Spread::default());
    }
}
