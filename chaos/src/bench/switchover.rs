//! Changes the primary again and again under pgbench through PgBouncer, as planned: no transaction may fail, and what is
//! measured is the longest that one took.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use proto::history::{HistoryKind, HistoryRecord};
use proto::request::RequestOutcome;
use proto::{Epoch, WallTime};
use store::clock;
use tokio_util::sync::CancellationToken;

use super::{BOUND, SETTLE, STEADY, lab_of, on_lab};
use crate::lab::{Lab, LabConfig};
use crate::pgbench::{self, Benched, Pgbench, Transaction};
use crate::until_stopped;

/// Small enough that filling it takes a second, large enough that simple updates of 16 clients seldom meet.
const SCALE: usize = 5;

/// What is measured.
#[derive(Debug, Clone)]
pub struct Config {
    pub switchovers: usize,
    pub clients: usize,
    /// Where PostgreSQL's programs are, if not in the usual places.
    pub postgres_bin: Option<PathBuf>,
    /// Whom keepers and PgBouncer become when the bench is started as root.
    pub postgres_user: String,
}

/// What came of it.
#[derive(Debug, Clone)]
pub struct Report {
    pub switchovers: usize,
    /// pgbench's own count, and clients that gave up.
    pub failed: u64,
    /// Transactions a second before the first switchover.
    pub tps_before: f64,
    /// From the end of a pause to the next request: the least, and the least in the first second of it.
    pub tps_between: f64,
    pub tps_after: f64,
    /// The longest transaction of each switchover.
    pub pauses: Vec<Duration>,
    /// How long each phase took, by its name.
    pub phases: BTreeMap<String, Vec<i64>>,
}

/// Runs the bench; returns the process's exit status. When `stop` is cancelled everything is ended and removed.
pub async fn run(config: Config, stop: CancellationToken) -> anyhow::Result<u8> {
    ensure!((1..=1000).contains(&config.switchovers), "--switchovers: use 1 to 1000");
    ensure!((1..=200).contains(&config.clients), "--clients: use 1 to 200");
    let lab =
        LabConfig { pgbouncers: 1, ..lab_of(config.postgres_bin.as_ref(), &config.postgres_user)? };
    let measured = async {
        let measure = async |lab: &mut Lab| measure(lab, config.switchovers, config.clients).await;
        let report = on_lab(lab, measure).await?;
        println!("{}", report.text());
        Ok(u8::from(report.failed > 0))
    };
    until_stopped(stop, measured).await
}

/// One switchover: when it was asked for, and from when on writes were served by the next primary.
struct Change {
    asked: WallTime,
    served: WallTime,
    epoch: Epoch,
}

/// Measures on a lab that has a PgBouncer.
pub async fn measure(lab: &mut Lab, switchovers: usize, clients: usize) -> anyhow::Result<Report> {
    lab.wait_redundant(BOUND).await.context("form the cluster")?;
    lab.prepare_database().await?;
    pgbench::initialise(lab, SCALE).await?;
    lab.wait_redundant(BOUND).await?;
    let pgbench = Pgbench::start(lab, (Ipv4Addr::LOCALHOST, lab.pgbouncer_port(0)?), clients)?;
    let from = clock::wall();
    tokio::time::sleep(SETTLE + STEADY).await;
    let mut changes = Vec::new();
    for number in 1..=switchovers {
        if let Some(how) = pgbench.ended(lab) {
            bail!("pgbench ended by itself, with {how}: {}", lab.log_of("pgbench"));
        }
        let change = change(lab).await.with_context(|| format!("switchover {number}"))?;
        let took = change.served.ms_since(change.asked);
        eprintln!(
            "switchover {number} of {switchovers}: served again {took} ms after it was asked for"
        );
        changes.push(change);
        lab.wait_redundant(BOUND).await?;
        tokio::time::sleep(SETTLE).await;
    }
    let until = clock::wall();
    let benched = pgbench.finish(lab).await?;
    report(lab, &changes, &benched, (from, until)).await
}

async fn change(lab: &Lab) -> anyhow::Result<Change> {
    let (before, _) = lab.cluster().await?.service().context("no primary takes writes")?;
    let (struck, asked) = lab.ask_for_switchover(None).await?;
    let answered = lab.answer(&asked, BOUND).await?;
    ensure!(matches!(answered.outcome, RequestOutcome::Done { .. }), "{:?}", answered.outcome);
    let (after, _) = lab.wait_served_after(before, BOUND).await?;
    Ok(Change { asked: struck.wall, served: clock::wall(), epoch: after.epoch })
}

async fn report(
    lab: &Lab,
    changes: &[Change],
    benched: &Benched,
    (from, until): (WallTime, WallTime),
) -> anyhow::Result<Report> {
    let later = |at: WallTime| WallTime(at.0 + i64::try_from(SETTLE.as_millis()).unwrap_or(0));
    let first = changes.first().map_or(until, |c| c.asked);
    let history = lab.history().await?;
    let mut report = Report {
        switchovers: changes.len(),
        failed: benched.failed + benched.aborted,
        tps_before: benched.per_second((later(from), first)),
        tps_between: f64::INFINITY,
        tps_after: f64::INFINITY,
        pauses: Vec::new(),
        phases: BTreeMap::new(),
    };
    for (index, change) in changes.iter().enumerate() {
        let next = changes.get(index + 1).map_or(until, |c| c.asked);
        // The longest one begins before the stop, or waits in PgBouncer, and ends after it.
        let longest = benched
            .longest((change.asked, next))
            .with_context(|| format!("no transaction ended in epoch {}", change.epoch))?;
        report.pauses.push(longest.took);
        let back = longest.end.max(change.served);
        report.tps_between = report.tps_between.min(benched.per_second((back, next)));
        let at_once = (back, later(back).min(next));
        report.tps_after = report.tps_after.min(benched.per_second(at_once));
        let of_it = |r: &&HistoryRecord| {
            r.kind == HistoryKind::Switchover && r.epoch == change.epoch && r.restart == 0
        };
        let record = history.iter().find(of_it).context("the switchover is not on record")?;
        for phase in &record.phases {
            let Some(end) = phase.end else { continue };
            let took = end.ms_since(phase.start);
            report.phases.entry(phase.name.clone()).or_default().push(took);
        }
        eprintln!("switchover {}: {}", index + 1, course(change, record, &longest));
    }
    Ok(report)
}

/// Says when what happened, in ms after the request: where the longest transaction lies among the phases tells its cause.
fn course(change: &Change, record: &HistoryRecord, longest: &Transaction) -> String {
    let after = |at: WallTime| at.ms_since(change.asked);
    let ended = record.phases.iter().filter_map(|p| Some((p, p.end?)));
    let phases = ended.map(|(p, end)| format!("{} {}..{}", p.name, after(p.start), after(end)));
    let (begin, end) = (after(longest.begin()), after(longest.end));
    format!("{}; longest transaction {begin}..{end}", phases.collect::<Vec<_>>().join(", "))
}

impl Report {
    /// The report for people, with the line for programs at its end.
    pub fn text(&self) -> String {
        let mut text =
            format!("\n{:<14} {:>8} {:>6} {:>6}\n", "phase in ms", "median", "min", "max");
        // In the order in which they happen; a phase that this list does not know comes last.
        let order = ["checkpoint", "hold", "stop", "seal", "choose", "promote", "redundancy"];
        let place = |name: &str| order.iter().position(|o| *o == name).unwrap_or(order.len());
        let mut phases: Vec<_> = self.phases.iter().collect();
        phases.sort_by_key(|(name, _)| place(name));
        for (name, times) in phases {
            let mut times = times.clone();
            times.sort_unstable();
            let (least, most) = (times.first().unwrap_or(&0), times.last().unwrap_or(&0));
            let _ = writeln!(
                text,
                "{name:<14} {:>8} {least:>6} {most:>6}",
                median(&times).unwrap_or(0)
            );
        }
        let mut pauses: Vec<f64> = self.pauses.iter().map(|p| p.as_secs_f64() * 1e3).collect();
        pauses.sort_by(f64::total_cmp);
        let _ = write!(
            text,
            "the pause of a switchover is its longest transaction; from one to the next request {:.0} transactions a \
             second at least, {:.0} in its first second\n\
             switchover: n={} failed_transactions={} tps_before={:.0} pause_ms_median={:.0} pause_ms_max={:.0}",
            self.tps_between,
            self.tps_after,
            self.switchovers,
            self.failed,
            self.tps_before,
            median(&pauses).unwrap_or(f64::NAN),
            pauses.last().copied().unwrap_or(f64::NAN),
        );
        text
    }
}

/// Returns the lower median of what is sorted.
fn median<T: Copy>(sorted: &[T]) -> Option<T> {
    sorted.get(sorted.len().checked_sub(1)? / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_is_for_programs_and_the_phases_stand_in_their_order() {
        let report = Report {
            switchovers: 3,
            failed: 0,
            tps_before: 1234.4,
            tps_between: 900.0,
            tps_after: 800.0,
            pauses: [170, 150, 210].map(Duration::from_millis).into(),
            phases: [("stop", 50), ("hold", 20), ("checkpoint", 120)]
                .map(|(name, ms)| (name.to_owned(), vec![ms]))
                .into(),
        };
        let text = report.text();
        assert!(text.ends_with(
            "switchover: n=3 failed_transactions=0 tps_before=1234 pause_ms_median=170 pause_ms_max=210"
        ));
        let at = |name: &str| text.find(name).unwrap();
        assert!(at("checkpoint") < at("\nhold") && at("\nhold") < at("\nstop"), "{text}");
    }
}
