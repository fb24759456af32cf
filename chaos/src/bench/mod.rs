//! Measures how long writes are away after each fault, again and again on one running cluster; what needs a network of its
//! own on a second one.
//!
//! The one rule: a number counts only if the recovery was of the kind that its row is about, and the whole
//! bench only if nothing was lost on the way.

mod cases;
pub mod switchover;
mod table;
pub mod two_members;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use proto::{MemberName, Moment};
use store::clock;
use tokio_util::sync::CancellationToken;

use crate::evidence::Watchers;
use crate::fault::Fault;
use crate::lab::network::Placement;
use crate::lab::{Lab, LabConfig, Service, demo_spec};
use crate::load::{Load, Told};
use crate::until_stopped;
use crate::verdict::{Verdict, judge};
use cases::{Case, Expected};
use table::Row;

pub use cases::chosen;

/// Forming the cluster, and coming back from any fault of the bench, with room for a machine under load.
const BOUND: Duration = Duration::from_secs(120);

/// Between two runs: checkpoints and copies of the one before should not be measured.
const SETTLE: Duration = Duration::from_secs(1);

/// The rate of the load is measured over this long before the first fault.
const STEADY: Duration = Duration::from_secs(2);

const WRITERS: usize = 4;

/// What is measured.
#[derive(Debug, Clone)]
pub struct Config {
    /// How often each fault is tried.
    pub runs: usize,
    /// The rows that are measured, by their names; all where it is empty.
    pub only: Vec<String>,
    /// Where PostgreSQL's programs are, if not in the usual places.
    pub postgres_bin: Option<PathBuf>,
    /// Whom the keepers become when the bench is started as root.
    pub postgres_user: String,
}

impl Default for Config {
    fn default() -> Self {
        Self { runs: 5, only: Vec::new(), postgres_bin: None, postgres_user: "postgres".into() }
    }
}

/// Runs the bench; returns the process's exit status. When `stop` is cancelled everything is ended and removed.
pub async fn run(config: Config, stop: CancellationToken) -> anyhow::Result<u8> {
    ensure!((1..=1000).contains(&config.runs), "--runs is {}: use 1 to 1000", config.runs);
    let cases = chosen(&config.only).map_err(anyhow::Error::msg)?;
    until_stopped(stop, measure_all(&config, &cases)).await
}

/// Returns a lab that this program runs, and that tells on standard error what it does.
fn lab_of(postgres_bin: Option<&PathBuf>, postgres_user: &str) -> anyhow::Result<LabConfig> {
    let pgdeputy = std::env::current_exe().context("find the pgdeputy program")?;
    Ok(LabConfig {
        postgres_bin: postgres_bin.cloned(),
        postgres_user: postgres_user.to_owned(),
        narrate: Arc::new(|line| eprintln!("{line}")),
        ..LabConfig::new(pgdeputy)
    })
}

/// Starts a lab, measures on it and stops it. Where measuring fails the ends of its logs are shown.
async fn on_lab<T>(
    config: LabConfig,
    measure: impl AsyncFnOnce(&mut Lab) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let mut lab = Lab::start(config).await?;
    let measured = measure(&mut lab).await.inspect_err(|_| eprintln!("{}", lab.log_tails()))?;
    lab.stop().await?;
    Ok(measured)
}

/// What one cluster has given.
#[derive(Default)]
struct Measured {
    rows: Vec<Row>,
    acknowledged: usize,
    lost: usize,
    dual: usize,
    /// Verdicts that are not good.
    refused: Vec<Verdict>,
}

async fn measure_all(config: &Config, cases: &[Case]) -> anyhow::Result<u8> {
    let (apart, together): (Vec<Case>, Vec<Case>) =
        cases.iter().copied().partition(|case| case.fault.is_some_and(Fault::needs_network));
    let mut all = Measured::default();
    for (cases, needs_network) in [(together, false), (apart, true)] {
        if cases.is_empty() {
            continue;
        }
        if needs_network && !nix::unistd::geteuid().is_root() {
            eprintln!("not measured, because only root can make network namespaces: {cases:?}");
            continue;
        }
        let lab = LabConfig {
            placement: if needs_network { Placement::Namespaces } else { Placement::Loopback },
            keepers_restart: true,
            pgbouncers: 1,
            ..lab_of(config.postgres_bin.as_ref(), &config.postgres_user)?
        };
        on_lab(lab, async |lab| measure_on(config.runs, &cases, lab, &mut all).await).await?;
    }
    println!("{}", table::text(&all.rows));
    let Measured { acknowledged, lost, dual, .. } = all;
    println!("{acknowledged} commits acknowledged, {lost} lost, {dual} dual");
    for row in &all.rows {
        println!("{}", row.line());
    }
    for line in table::route_lines(&all.rows) {
        println!("{line}");
    }
    ensure!(all.refused.is_empty(), "the bench does not count: {:?}", all.refused);
    Ok(0)
}

async fn measure_on(
    runs: usize,
    cases: &[Case],
    lab: &mut Lab,
    all: &mut Measured,
) -> anyhow::Result<()> {
    lab.wait_redundant(BOUND).await.context("form the cluster")?;
    let watchers = Watchers::start(lab, WRITERS).await?;
    let pooled = Load::start(lab.pooled_load_config(WRITERS)?)?;
    watchers.load.acknowledged_count(1, BOUND).await?;
    pooled.acknowledged_count(1, BOUND).await?;
    let steady_from = clock::now();
    tokio::time::sleep(STEADY).await;
    let steady = (steady_from, clock::now());
    for case in cases {
        let mut row = Row::new(case);
        case.before(lab).await?;
        for number in 1..=runs {
            let run = one_run(case, lab, (&watchers.load, &pooled)).await;
            let run = run.with_context(|| format!("{}, run {number}", case.name))?;
            let [haproxy, pgbouncer] = run.gaps.map(|gap| gap.as_secs_f64() * 1e3);
            eprintln!(
                "{}: run {number} of {runs}: {haproxy:.0} ms by HAProxy, {pgbouncer:.0} ms by PgBouncer, ended {:.0} ms \
                 after the fault",
                case.name,
                run.ended.as_secs_f64() * 1e3
            );
            row.add(run);
        }
        case.after(lab).await?;
        all.rows.push(row);
    }
    let by_pgbouncer = pooled.stop().await;
    let (mut evidence, mut told) = watchers.finish(lab, steady).await?;
    for all in [&mut evidence.acknowledged, &mut told.acknowledged] {
        all.extend(by_pgbouncer.acknowledged.iter().copied());
    }
    let verdict = judge(&evidence);
    all.acknowledged += told.acknowledged.len();
    all.lost += verdict.lost.len();
    all.dual += verdict.dual.len();
    if !verdict.is_good() {
        all.refused.push(verdict);
    }
    Ok(())
}

/// What one run has given, through HAProxy and through PgBouncer.
struct Run {
    /// The longest times without an acknowledgement from the fault until redundancy was back.
    gaps: [Duration; 2],
    /// From the fault until the one through HAProxy ended.
    ended: Duration,
    /// From the state that names a primary that serves to the first acknowledgement after it, where there was one.
    routed: Option<[Duration; 2]>,
}

async fn one_run(
    case: &Case,
    lab: &mut Lab,
    (haproxy, pgbouncer): (&Load, &Load),
) -> anyhow::Result<Run> {
    tokio::time::sleep(SETTLE).await;
    let cluster = lab.cluster().await?;
    let (before, primary) = cluster.service().context("no primary takes writes")?;
    let Some(fault) = case.fault else {
        let at = clock::now();
        tokio::time::sleep(case.stays).await;
        return Ok(gaps_since(at, [haproxy.told(), pgbouncer.told()]));
    };
    let victim = fault.victim(&cluster, &primary)?;
    let injury = fault.strike(lab, &victim).await?;
    let struck = injury.struck;
    let mut served = None;
    if fault.hits().changes_the_service() {
        let (after, by) = lab.wait_served_after(before, BOUND).await?;
        served = Some(clock::now());
        for load in [haproxy, pgbouncer] {
            load.acknowledged_after(clock::now(), BOUND).await?;
        }
        check_kind(case, (before, &primary), (after, &by))?;
    }
    tokio::time::sleep(case.stays).await;
    fault.mend(lab, &victim, injury).await?;
    if fault == Fault::Keeper {
        // Had nobody renewed its right, the fencer would stop PostgreSQL within lease_ttl.
        tokio::time::sleep(demo_spec().lease_ttl).await;
    }
    lab.wait_redundant(BOUND).await?;
    if case.expected == Expected::Nothing {
        let (after, by) = lab.cluster().await?.service().context("no primary takes writes")?;
        check_kind(case, (before, &primary), (after, &by))?;
    }
    for load in [haproxy, pgbouncer] {
        load.acknowledged_after(clock::now(), BOUND).await?;
    }
    let told = [haproxy.told(), pgbouncer.told()];
    let first = |told: &Told, at: Moment| told.first_after(at).map(|ack| ack.since(at));
    let routed = served.and_then(|at| Some([first(&told[0], at)?, first(&told[1], at)?]));
    Ok(Run { routed, ..gaps_since(struck.at, told) })
}

fn gaps_since(at: Moment, told: [Told; 2]) -> Run {
    let now = clock::now();
    let ended = told[0].longest_silence(at, now).map_or(now, |(_, next)| next).since(at);
    Run { gaps: told.map(|told| told.longest_gap(at, now)), ended, routed: None }
}

/// Refuses a run that the cluster answered in another way than the row is about.
fn check_kind(
    case: &Case,
    before: (Service, &MemberName),
    after: (Service, &MemberName),
) -> anyhow::Result<()> {
    let happened = match (before.0 == after.0, before.1 == after.1) {
        (true, _) => Expected::Nothing,
        (false, true) => Expected::RestartInPlace,
        (false, false) => Expected::Failover,
    };
    ensure!(
        happened == case.expected,
        "this row is about {:?}: {before:?}, then {after:?}",
        case.expected
    );
    Ok(())
}
