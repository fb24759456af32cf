//! Measures how long writes are away after each fault, again and again on one running cluster.
//!
//! The one rule: a number counts only if the recovery was of the kind that its row is about, and the whole
//! bench only if nothing was lost on the way.

mod table;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use proto::spec::Permission;
use proto::{MemberName, Moment};
use store::clock;
use tokio_util::sync::CancellationToken;

use crate::evidence::Watchers;
use crate::fault::Fault;
use crate::lab::{Lab, LabConfig, Service, demo_spec};
use crate::verdict::judge;
use table::Row;

/// Forming the cluster, and coming back from any fault of the bench, with room for a machine under load.
const BOUND: Duration = Duration::from_secs(120);

/// Between two runs: checkpoints and copies of the one before should not be measured.
const SETTLE: Duration = Duration::from_secs(1);

/// The rate of the load is measured over this long before the first fault.
const STEADY: Duration = Duration::from_secs(2);

const WRITERS: usize = 4;

/// The exit status of a run that was interrupted, as shells count it.
const INTERRUPTED: u8 = 130;

/// What is measured.
#[derive(Debug, Clone)]
pub struct Config {
    /// How often each fault is tried.
    pub runs: usize,
    /// Where PostgreSQL's programs are, if not in the usual places.
    pub postgres_bin: Option<PathBuf>,
    /// Whom the keepers become when the bench is started as root.
    pub postgres_user: String,
}

impl Default for Config {
    fn default() -> Self {
        Self { runs: 5, postgres_bin: None, postgres_user: "postgres".into() }
    }
}

/// What a row of the table is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Case {
    Crash,
    RestartInPlace,
    Member,
    Standby,
}

const CASES: [Case; 4] = [Case::Crash, Case::RestartInPlace, Case::Member, Case::Standby];

/// Runs the bench; returns the process's exit status. When `stop` is cancelled everything is ended and removed.
pub async fn run(config: Config, stop: CancellationToken) -> anyhow::Result<u8> {
    ensure!((1..=1000).contains(&config.runs), "--runs is {}: use 1 to 1000", config.runs);
    let pgdeputy = std::env::current_exe().context("find the pgdeputy program")?;
    tokio::select! {
        () = stop.cancelled() => Ok(INTERRUPTED),
        done = measure_all(&config, pgdeputy) => done,
    }
}

async fn measure_all(config: &Config, pgdeputy: PathBuf) -> anyhow::Result<u8> {
    let mut lab = Lab::start(LabConfig {
        postgres_bin: config.postgres_bin.clone(),
        postgres_user: config.postgres_user.clone(),
        narrate: Arc::new(|line| eprintln!("{line}")),
        ..LabConfig::new(pgdeputy)
    })
    .await?;
    let status =
        measure_on(config, &mut lab).await.inspect_err(|_| eprintln!("{}", lab.log_tails()))?;
    lab.stop().await.map(|()| status)
}

async fn measure_on(config: &Config, lab: &mut Lab) -> anyhow::Result<u8> {
    lab.wait_redundant(BOUND).await.context("form the cluster")?;
    let watchers = Watchers::start(lab, WRITERS).await?;
    watchers.load.acknowledged_count(1, BOUND).await?;
    let steady_from = clock::now();
    tokio::time::sleep(STEADY).await;
    let steady = (steady_from, clock::now());
    let mut rows = Vec::new();
    for case in CASES {
        let mut row = Row::new(case.name(), case.expectation(), case.patroni_seconds());
        case.before(lab).await?;
        for number in 1..=config.runs {
            let gap = one_run(case, lab, &watchers).await;
            let gap = gap.with_context(|| format!("{}, run {number}", case.name()))?;
            eprintln!(
                "{}: run {number} of {}: {:.0} ms",
                case.name(),
                config.runs,
                gap.as_secs_f64() * 1e3
            );
            row.gaps.push(gap);
        }
        case.after(lab).await?;
        rows.push(row);
    }
    let (evidence, told) = watchers.finish(lab, steady).await?;
    let verdict = judge(&evidence);
    println!("{}", table::text(&rows));
    println!(
        "{} commits acknowledged, {} lost, {} dual",
        told.acknowledged.len(),
        verdict.lost.len(),
        verdict.dual.len()
    );
    for row in &rows {
        println!("{}", row.line());
    }
    ensure!(verdict.is_good(), "the bench does not count: {verdict:?}");
    Ok(0)
}

/// Returns the longest time without an acknowledgement from the fault until redundancy was back.
async fn one_run(case: Case, lab: &mut Lab, watchers: &Watchers) -> anyhow::Result<Duration> {
    tokio::time::sleep(SETTLE).await;
    let cluster = lab.cluster().await?;
    let (before, primary) = cluster.service().context("no primary takes writes")?;
    let victim = match case {
        Case::Standby => cluster.reports.keys().find(|name| **name != primary).cloned(),
        Case::Crash | Case::RestartInPlace | Case::Member => Some(primary.clone()),
    };
    let victim = victim.context("there is no standby")?;
    let struck = case.fault().strike(lab, &victim)?;
    let served = served_after(case, lab, (before, &primary)).await?;
    watchers.load.acknowledged_after(served, BOUND).await?;
    if case.fault().takes_the_member() {
        lab.member_gone(&victim).await?;
        lab.start_member(&victim)?;
    }
    lab.wait_redundant(BOUND).await?;
    Ok(watchers.load.told().longest_gap(struck.at, clock::now()))
}

/// Waits until writes are served, in the way that the row is about; returns a moment at which they were.
async fn served_after(
    case: Case,
    lab: &Lab,
    (before, primary): (Service, &MemberName),
) -> anyhow::Result<Moment> {
    if case == Case::Standby {
        // Long enough for every time-out after which a dead standby could hold up commits.
        tokio::time::sleep(demo_spec().lease_ttl + Duration::from_secs(1)).await;
        return Ok(clock::now());
    }
    let (after, by) = lab.wait_served_after(before, BOUND).await?;
    let moved = by != *primary;
    if moved == (case == Case::RestartInPlace) {
        bail!(
            "the recovery was not of this row's kind: {before:?} by {primary}, then {after:?} by {by}"
        );
    }
    Ok(clock::now())
}

impl Case {
    fn name(self) -> &'static str {
        match self {
            Case::Crash => "crash, failed over",
            Case::RestartInPlace => "crash, restarted in place",
            Case::Member => "member lost",
            Case::Standby => "one of two standbys killed",
        }
    }

    fn expectation(self) -> &'static str {
        match self {
            Case::Crash => "below 250 ms",
            Case::RestartInPlace => "below 250 ms and redo",
            Case::Member => "below 4500 ms",
            Case::Standby => "none",
        }
    }

    /// Medians with default and with the smallest allowed timings, in seconds.
    fn patroni_seconds(self) -> Option<(f64, f64)> {
        match self {
            Case::Crash => Some((5.5, 4.2)),
            Case::RestartInPlace => None,
            Case::Member => Some((29.9, 20.3)),
            Case::Standby => Some((6.4, 0.7)),
        }
    }

    fn fault(self) -> Fault {
        match self {
            Case::Crash | Case::RestartInPlace => Fault::Crash,
            Case::Member => Fault::Member,
            Case::Standby => Fault::Standby,
        }
    }

    /// A restart in place is what is left when nobody else may be promoted.
    async fn before(self, lab: &Lab) -> anyhow::Result<()> {
        if self != Case::RestartInPlace {
            return Ok(());
        }
        let primary = lab.primary().await?;
        let mut spec = demo_spec();
        for member in lab.members().into_iter().filter(|m| *m != primary) {
            spec.members.entry(member).or_default().promote = Permission::Never;
        }
        lab.put_spec(&spec).await
    }

    async fn after(self, lab: &Lab) -> anyhow::Result<()> {
        if self == Case::RestartInPlace { lab.put_spec(&demo_spec()).await } else { Ok(()) }
    }
}
