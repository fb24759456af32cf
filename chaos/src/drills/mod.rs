//! Drills: a whole cluster in networks of its own, with three etcd members, proxies and a load that notes everything, is broken in
//! one way after the other. Status 0 only if nothing was lost, read and gone, doubled or stuck.
//!
//! The one rule: a fault that did not bite, and a run that shows too little, are failures.

mod clients;
mod drill;
mod finals;
mod outcome;
mod pages;
mod plan;
mod report;
mod roles;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use proto::Moment;
use store::clock;
use tokio_util::sync::CancellationToken;

use crate::checker::{Counts, Operation, Record, check};
use crate::evidence::Watchers;
use crate::fault::{ALL, Fault};
use crate::lab::network::Placement;
use crate::lab::{FIRST_POOLED_ID, Lab, LabConfig, demo_spec};
use crate::load::{Load, Told};
use crate::verdict::judge;
use crate::{FORM_BOUND, until_stopped};
use clients::{Clients, MONEY, TABLES};
use drill::{Drill, Stuck, play};
use outcome::{Outcome, Shown};
use roles::{Roles, Seen};

/// The load's rate is measured over this long before the first fault.
const STEADY: Duration = Duration::from_secs(2);

/// Writers through HAProxy, by whom the gaps are measured, and through PgBouncer.
const WRITERS: usize = 4;
const POOLED_WRITERS: usize = 1;

/// Far below what one drill alone brings.
const LEAST: Counts = Counts {
    inserts: 1_000,
    reads: 50,
    streams: 50,
    lists: 50,
    transfers: 50,
    totals: 20,
    members: 3,
};

/// What is drilled.
#[derive(Debug, Clone)]
pub struct Config {
    /// These in this order, where there are any; else what the seed says, else the usual ones.
    pub only: Vec<Fault>,
    pub seed: Option<u64>,
    /// How many faults a seed makes.
    pub faults: usize,
    /// Where the HTML report is written.
    pub report: Option<PathBuf>,
    /// Where the logs go if something was wrong.
    pub evidence: Option<PathBuf>,
    /// Print one JSON document to stdout and nothing else.
    pub json: bool,
    /// Where PostgreSQL's programs are, if not in the usual places.
    pub postgres_bin: Option<PathBuf>,
    /// Whom the keepers become.
    pub postgres_user: String,
}

impl Config {
    /// Checks what the types leave open.
    pub fn check(&self) -> anyhow::Result<()> {
        ensure!((1..=10_000).contains(&self.faults), "--faults is {}: use 1 to 10000", self.faults);
        ensure!(
            nix::unistd::geteuid().is_root(),
            "drills need networks and disks of the members' own, which only root can make: run them as root"
        );
        Ok(())
    }

    fn plan(&self) -> Vec<Fault> {
        match self.seed {
            _ if !self.only.is_empty() => self.only.clone(),
            Some(seed) => plan::random(seed, self.faults),
            None => plan::USUAL.to_vec(),
        }
    }
}

/// Runs the drills; returns the process's exit status. When `stop` is cancelled everything is ended and removed.
pub async fn run(config: Config, stop: CancellationToken) -> anyhow::Result<u8> {
    config.check()?;
    let pgdeputy = std::env::current_exe().context("find the pgdeputy program")?;
    until_stopped(stop, drill_all(&config, pgdeputy)).await
}

async fn drill_all(config: &Config, pgdeputy: PathBuf) -> anyhow::Result<u8> {
    let mut lab = Lab::start(lab_config(config, pgdeputy)).await?;
    let all = play_all(config, &mut lab).await;
    let good = all.as_ref().is_ok_and(|ran| ran.outcome.good);
    if let Some(directory) = config.evidence.as_ref().filter(|_| !good) {
        keep_evidence(&lab, directory)?;
        eprintln!("logs: {}", directory.display());
    }
    let ran = all.inspect_err(|_| eprintln!("{}", lab.log_tails()))?;
    if let Some(file) = &config.report {
        let page = report::page(&ran);
        std::fs::write(file, page).with_context(|| format!("write {}", file.display()))?;
        eprintln!("report: {}", file.display());
    }
    if config.json {
        println!("{}", serde_json::to_string_pretty(&ran.outcome).context("write JSON")?);
    } else {
        println!("{}", ran.outcome.text());
    }
    lab.stop().await?;
    Ok(u8::from(!ran.outcome.good))
}

/// Everything that any fault of the catalogue breaks.
fn lab_config(config: &Config, pgdeputy: PathBuf) -> LabConfig {
    let mut spec = demo_spec();
    // The shortest that a spec allows, and below the default of 10 s: nothing but waiting depends on them.
    spec.unresponsive_after = Duration::from_secs(3);
    spec.isolation_grace = Duration::from_secs(5);
    let mut lab = LabConfig {
        etcd_members: 3,
        pgbouncers: 1,
        spec,
        placement: Placement::Namespaces,
        postgres_bin: config.postgres_bin.clone(),
        postgres_user: config.postgres_user.clone(),
        narrate: Arc::new(|line| eprintln!("{line}")),
        ..LabConfig::new(pgdeputy)
    };
    for entry in &ALL {
        entry.fault.equip(&mut lab);
    }
    lab
}

/// All that a run has brought.
struct Ran {
    outcome: Outcome,
    drills: Vec<Drill>,
    from: Moment,
    until: Moment,
    told: Told,
    operations: Vec<Operation>,
    seen: Vec<Seen>,
}

async fn play_all(config: &Config, lab: &mut Lab) -> anyhow::Result<Ran> {
    lab.wait_redundant(FORM_BOUND).await.context("form the cluster")?;
    let watchers = Watchers::start(lab, WRITERS).await?;
    lab.prepare_more(TABLES).await?;
    let pooled = Load::start(lab.pooled_load_config(POOLED_WRITERS)?)?;
    let log = lab.layout().log("operations");
    let target = lab.load_config(1).target;
    let clients = Clients::start(&target, &log, FIRST_POOLED_ID)?;
    for load in [&watchers.load, &pooled] {
        load.acknowledged_count(1, FORM_BOUND).await?;
    }
    let roles = Roles::watch(lab);
    let from = clock::now();
    tokio::time::sleep(STEADY).await;
    let steady = (from, clock::now());
    let (drills, stuck) = play_each(&config.plan(), lab, &watchers.load).await;
    let (operations, mut told) = (clients.stop().await, pooled.stop().await);
    let until = clock::now();
    let seen = roles.all();
    let ending = match &stuck {
        None => finals::of_all(lab, watchers, steady).await?,
        Some(_) => finals::of_who_is_there(lab, watchers, steady).await,
    };
    let finals::Ending { mut evidence, told: by_haproxy, members, findings } = ending;
    evidence.acknowledged.extend(told.acknowledged.iter().copied());
    told.join(by_haproxy.clone());
    let record = Record { inserts: told, operations, members, money: MONEY };
    let outcome = Outcome::of(Shown {
        seed: config.seed.filter(|_| config.only.is_empty()),
        from,
        until,
        drills: &drills,
        stuck,
        verdict: judge(&evidence),
        findings: check(&record, LEAST).into_iter().chain(findings).collect(),
        acknowledged: evidence.acknowledged.len(),
        operations: record.operations.len(),
    });
    let operations = record.operations;
    Ok(Ran { outcome, drills, from, until, told: by_haproxy, operations, seen })
}

/// Plays one after the other; the first one that gets stuck is the last.
async fn play_each(
    plan: &[Fault],
    lab: &mut Lab,
    load: &Load,
) -> (Vec<Drill>, Option<(Fault, Stuck)>) {
    let mut drills = Vec::new();
    for (number, fault) in (1..).zip(plan) {
        let drill = match play(lab, load, *fault).await {
            Ok(drill) => drill,
            Err(stuck) => {
                eprintln!("{number} of {}: {fault}: stuck: {stuck:?}", plan.len());
                return (drills, Some((*fault, stuck)));
            }
        };
        eprintln!(
            "{number} of {}: {}: writes away for {:.0} ms, redundant {:.1} s after {}",
            plan.len(),
            fault.describe(&drill.victim),
            drill.gap.as_secs_f64() * 1e3,
            drill.redundant.since(drill.mended).as_secs_f64(),
            fault.remedy(&drill.victim).unwrap_or_else(|| "that".into()),
        );
        for problem in &drill.problems {
            eprintln!("  WRONG: {problem}");
        }
        drills.push(drill);
    }
    (drills, None)
}

/// Copies all logs for whoever looks for the cause.
fn keep_evidence(lab: &Lab, directory: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
    for (name, file) in lab.log_files() {
        let to = directory.join(name);
        // A log may be of a process that just ends; what cannot be read is left out.
        let _ = std::fs::copy(&file, &to);
    }
    Ok(())
}
