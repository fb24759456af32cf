//! Two members under pgbench, of which the primary is lost again and again: with `strict` writes wait until it is back, so
//! that its return is part of the outage.
//!
//! The one rule: every run counts, however the member came back, and one that is away for more than a minute, or an
//! acknowledged write that is missing, fails the bench.

mod outcome;
mod retained;

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, ensure};
use proto::history::HistoryKind;
use proto::report::RejoinBy;
use proto::{Epoch, MemberName, WallTime};
use store::clock;
use tokio_util::sync::CancellationToken;

use super::{BOUND, WRITERS, lab_of, on_lab};
use crate::evidence::Watchers;
use crate::fault::Fault;
use crate::lab::{Cluster, Lab, LabConfig, Struck, demo_spec};
use crate::pgbench::{self, Pgbench};
use crate::until_stopped;
use crate::verdict::judge;
use outcome::{Distribution, Run};

/// What is lost, one after the other. Whoever loses its whole member starts it again at once, as a service manager does.
const FAULTS: [Fault; 2] = [Fault::Crash, Fault::Member];

/// 75 MB of tables, of which simple updates change pages all over.
const SCALE: usize = 5;

/// pgbench is at its rate, and pages have changed since the checkpoint of the change before.
const BUSY: Duration = Duration::from_secs(3);

/// Between two looks at whether writes are back; pgbench is started again at each if it gave up.
const LOOK: Duration = Duration::from_millis(200);

/// The promise of issue and documents.
const LONGEST: Duration = Duration::from_secs(60);

/// What is measured.
#[derive(Debug, Clone)]
pub struct Config {
    /// How often each of the two is lost.
    pub runs: usize,
    /// How much WAL both members hold on to, in megabytes.
    pub retained_mb: u32,
    /// pgbench's clients.
    pub clients: usize,
    /// Where PostgreSQL's programs are, if not in the usual places.
    pub postgres_bin: Option<PathBuf>,
    /// Whom the keepers become when the bench is started as root.
    pub postgres_user: String,
}

impl Config {
    /// Checks what the types leave open.
    pub fn check(&self) -> anyhow::Result<()> {
        ensure!((1..=1000).contains(&self.runs), "--runs is {}: use 1 to 1000", self.runs);
        ensure!((1..=200).contains(&self.clients), "--clients is {}: use 1 to 200", self.clients);
        let most = retained::MOST_MB;
        ensure!(self.retained_mb <= most, "--retained-mb is above {most}: use less");
        Ok(())
    }
}

/// Runs the bench; returns the process's exit status. When `stop` is cancelled everything is ended and removed.
pub async fn run(config: Config, stop: CancellationToken) -> anyhow::Result<u8> {
    config.check()?;
    let mut spec = demo_spec();
    retained::keep(&mut spec, config.retained_mb);
    let lab = LabConfig {
        members: 2,
        spec,
        ..lab_of(config.postgres_bin.as_ref(), &config.postgres_user)?
    };
    let measured = async {
        let distributions = on_lab(lab, async |lab| measure(lab, &config).await).await?;
        for distribution in &distributions {
            println!("{}", distribution.line());
        }
        let longest = distributions.iter().map(Distribution::longest).max().unwrap_or_default();
        ensure!(longest <= LONGEST, "writes were away for {longest:?}, longer than {LONGEST:?}");
        Ok(0)
    };
    until_stopped(stop, measured).await
}

/// Measures on a lab of two members. Fails if an acknowledged write is missing on either.
pub async fn measure(lab: &mut Lab, config: &Config) -> anyhow::Result<Vec<Distribution>> {
    lab.wait_redundant(BOUND).await.context("form the cluster")?;
    lab.prepare_database().await?;
    pgbench::initialise(lab, SCALE).await?;
    retained::write(lab, config.retained_mb).await?;
    lab.wait_redundant(BOUND).await?;
    let watchers = Watchers::start(lab, WRITERS).await?;
    watchers.load.acknowledged_count(1, BOUND).await?;
    let steady_from = clock::now();
    tokio::time::sleep(BUSY).await;
    let steady = (steady_from, clock::now());
    let mut distributions = Vec::new();
    for fault in FAULTS {
        let mut distribution = Distribution::new(fault);
        for number in 1..=config.runs {
            let run = one_run(fault, lab, &watchers, config.clients).await;
            let run = run.with_context(|| format!("{fault}, run {number}"))?;
            eprintln!("two-members: fault={fault} run={number} {}", run.line());
            distribution.add(run);
        }
        distributions.push(distribution);
    }
    let (evidence, told) = watchers.finish(lab, steady).await?;
    let verdict = judge(&evidence);
    println!(
        "{} commits acknowledged, {} lost, {} dual",
        told.acknowledged.len(),
        verdict.lost.len(),
        verdict.dual.len()
    );
    ensure!(verdict.is_good(), "the bench does not count: {verdict:?}");
    Ok(distributions)
}

async fn one_run(
    fault: Fault,
    lab: &mut Lab,
    watchers: &Watchers,
    clients: usize,
) -> anyhow::Result<Run> {
    let target = (Ipv4Addr::LOCALHOST, lab.write_port());
    let busy = Pgbench::start(lab, target, clients)?;
    tokio::time::sleep(BUSY).await;
    if let Some(how) = busy.ended(lab) {
        anyhow::bail!(
            "pgbench ended before anything was lost, with {how}: {}",
            lab.log_of("pgbench")
        );
    }
    let cluster = lab.cluster().await?;
    let (before, primary) = cluster.service().context("no primary takes writes")?;
    let injury = fault.strike(lab, &primary).await?;
    let struck = injury.struck;
    fault.mend(lab, &primary, injury).await?;
    let (after, _) = lab.wait_served_after(before, BOUND).await?;
    let again = busy_until_back(lab, watchers, (target, clients)).await?;
    let cluster = lab.wait_redundant(BOUND).await?;
    watchers.load.acknowledged_after(clock::now(), BOUND).await?;
    let write_gap = watchers.load.told().longest_gap(struck.at, clock::now());
    tokio::time::sleep(BUSY).await;
    let pgbench_gap = pgbench_gap(lab, (busy, again), struck).await?;
    let retained_mb = retained::megabytes(lab).await?;
    let back = way_back(&cluster, &primary, (before.epoch, after.epoch));
    Ok(Run { write_gap, pgbench_gap, back, retained_mb })
}

/// Starts pgbench again each time it has given up, until a commit is acknowledged. Returns the last one.
async fn busy_until_back(
    lab: &mut Lab,
    watchers: &Watchers,
    (target, clients): ((Ipv4Addr, u16), usize),
) -> anyhow::Result<Pgbench> {
    let served = clock::now();
    let mut pgbench = Pgbench::start(lab, target, clients)?;
    while watchers.load.acknowledged_after(served, LOOK).await.is_err() {
        ensure!(clock::now() < served + BOUND, "no commit was acknowledged within {BOUND:?}");
        if pgbench.ended(lab).is_some() {
            pgbench = Pgbench::start(lab, target, clients)?;
        }
    }
    if pgbench.ended(lab).is_some() {
        pgbench = Pgbench::start(lab, target, clients)?;
    }
    Ok(pgbench)
}

/// Returns the longest time without a transaction of pgbench that ends after the loss. Those of a pgbench in between that gave
/// up are not counted, so it is rather too long than too short.
async fn pgbench_gap(
    lab: &Lab,
    (busy, again): (Pgbench, Pgbench),
    struck: Struck,
) -> anyhow::Result<Duration> {
    let (busy, again) = (busy.finish(lab).await?, again.finish(lab).await?);
    ensure!(!again.transactions.is_empty(), "pgbench committed nothing after the loss");
    let mut ends: Vec<WallTime> =
        busy.transactions.iter().chain(&again.transactions).map(|t| t.end).collect();
    ends.sort_unstable();
    let pairs = ends.windows(2).filter(|pair| pair[1] > struck.wall);
    let longest = pairs.map(|pair| pair[1].ms_since(pair[0])).max();
    let longest = longest.context("pgbench committed nothing before the loss")?;
    Ok(Duration::from_millis(u64::try_from(longest).unwrap_or(0)))
}

/// Returns how the member that was lost came back, by the record of the change; none if it was started again as primary.
fn way_back(
    cluster: &Cluster,
    lost: &MemberName,
    (before, after): (Epoch, Epoch),
) -> Option<RejoinBy> {
    if before == after {
        return None;
    }
    let record =
        cluster.history.iter().find(|r| r.kind == HistoryKind::Failover && r.epoch == after);
    let of_it = record.and_then(|r| r.rejoined.iter().rev().find(|r| r.member == *lost));
    // The record is written after the member streams; its report has it at once.
    let told = || Some(cluster.reports.get(lost)?.rejoin.as_ref()?.by);
    of_it.map(|r| r.by).or_else(told)
}
