//! The run itself: start, load, break, watch, judge.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use proto::{MemberName, Moment};
use store::clock;
use tokio::task::JoinSet;

use super::Config;
use super::follow;
use super::report::{RecoveredBy, Recovery, Report, violations};
use super::timeline::Timeline;
use crate::FORM_BOUND;
use crate::evidence::Watchers;
use crate::fault::{Hits, Injury};
use crate::lab::{Cluster, Lab, LabConfig, Lifetime, Service, Struck, await_cluster, demo_spec};
use crate::load::Told;
use crate::verdict::{Evidence, LEAST_ACKNOWLEDGED, judge};

/// Enough that the gap around a fault does not hang on one slow client.
const WRITERS: usize = 4;

/// Far above any lease: a run that takes longer is judged as failed.
const WRITES_BOUND: Duration = Duration::from_secs(90);

/// A rejoin may have to copy everything.
const REDUNDANT_BOUND: Duration = Duration::from_secs(120);

/// The load's rate is measured over this long before the fault.
const STEADY: Duration = Duration::from_secs(2);

/// How long the load goes on when all is well again, so that the end of the run is covered too.
const AFTERWARDS: Duration = Duration::from_millis(500);

/// Plays one run; returns the exit status.
pub async fn run(config: &Config, pgdeputy: PathBuf) -> anyhow::Result<u8> {
    let timeline = Timeline::start(config.json);
    let mut lab = start(config, pgdeputy, &timeline).await?;
    let watching = watch(&lab, &timeline);
    let played = play(config, &mut lab, &timeline).await;
    let report = played.inspect_err(|_| eprintln!("{}", lab.log_tails()))?;
    // What follows is the end of the run and nothing to watch.
    drop(watching);
    if config.json {
        println!("{}", serde_json::to_string_pretty(&report).context("write the report")?);
    } else {
        timeline.print(&report.text());
    }
    if config.keep {
        keep(lab, &timeline)?;
    } else {
        lab.stop().await?;
    }
    Ok(u8::from(!report.good))
}

async fn start(config: &Config, pgdeputy: PathBuf, timeline: &Timeline) -> anyhow::Result<Lab> {
    let mut spec = demo_spec();
    spec.lease_ttl = config.lease_ttl;
    let narrator = timeline.clone();
    let mut lab = LabConfig {
        members: config.members,
        etcd_members: config.etcd_members,
        spec,
        postgres_bin: config.postgres_bin.clone(),
        postgres_user: config.postgres_user.clone(),
        lifetime: if config.keep { Lifetime::MayBeKept } else { Lifetime::Tied },
        narrate: Arc::new(move |line| narrator.say(line)),
        ..LabConfig::new(pgdeputy)
    };
    config.fault.equip(&mut lab);
    Lab::start(lab).await
}

/// Waits until the cluster is redundant, breaks it under load as `config` says, and judges what came of it.
pub async fn play(config: &Config, lab: &mut Lab, timeline: &Timeline) -> anyhow::Result<Report> {
    lab.wait_redundant(FORM_BOUND).await.context("form the cluster")?;
    timeline.say("the cluster is redundant: every member streams and votes");
    config.fault.prepare(lab).await?;
    let watchers = Watchers::start(lab, WRITERS).await?;
    watchers.load.acknowledged_count(1, WRITES_BOUND).await?;
    timeline.say(&format!(
        "load: {WRITERS} writers through the write port, an observer at each member"
    ));
    let steady_from = clock::now();
    tokio::time::sleep(STEADY).await;
    let before = lab.cluster().await?;
    let served = before.service().context("no primary takes writes before the fault")?;
    let victim = config.fault.victim(&before, &served.1)?;
    let rate = watchers.load.told().per_second(steady_from, clock::now());
    let fault = config.fault.describe(&victim);
    timeline.say(&format!("fault: {fault} ({rate:.0} commits a second)"));
    let injury = config.fault.strike(lab, &victim).await?;
    let Struck { at, wall } = injury.struck;
    timeline.fault_at(at);
    let served_again =
        recover(config, lab, (&watchers, timeline), (injury, &served, &victim)).await?;
    let redundant = lab.wait_redundant(REDUNDANT_BOUND).await?;
    let redundant_at = clock::now();
    timeline.say("redundant again: every member streams and votes");
    tokio::time::sleep(AFTERWARDS).await;
    watchers.load.acknowledged_count(LEAST_ACKNOWLEDGED, WRITES_BOUND).await?;
    let (evidence, told) = watchers.finish(lab, (steady_from, at)).await?;
    let after = redundant.service().context("no primary takes writes after the recovery")?;
    ensure!(after.0 >= served_again, "service {served_again:?} became {:?} again", after.0);
    let fault = config.fault;
    let recovery = Recovery { fault, victim, struck: wall, before: served, after };
    Ok(report(&recovery, &lab.cluster().await?, (&evidence, &told), (at, redundant_at)))
}

/// Waits until writes are back, and gives the cluster back what was taken from it.
async fn recover(
    config: &Config,
    lab: &mut Lab,
    (watchers, timeline): (&Watchers, &Timeline),
    (injury, before, victim): (Injury, &(Service, MemberName), &MemberName),
) -> anyhow::Result<Service> {
    let struck = injury.struck.at;
    let changes = config.fault.hits().changes_the_service();
    let remedy = config.fault.remedy(victim);
    // Of two members the one that is left commits nothing until the other one is back.
    let of_a_member = matches!(config.fault.hits(), Hits::Primary | Hits::Standby);
    let mut injury = Some(injury);
    if let (2, true, Some(remedy)) = (lab.members().len(), of_a_member, &remedy) {
        timeline.say("writes wait for the second member");
        give_back(config, lab, (timeline, remedy), (injury.take(), victim)).await?;
    }
    let mut served = before.0;
    if changes {
        served = writes_back(lab, (watchers, timeline), (struck, served)).await?;
    }
    if config.fault.strikes_again() {
        let again = lab.cluster().await?.service();
        let (service, primary) = again.context("no primary to crash again")?;
        timeline.say(&format!("fault again: {}", config.fault.describe(&primary)));
        let struck = lab.kill_postgres(&primary)?.at;
        served = writes_back(lab, (watchers, timeline), (struck, service)).await?;
    }
    watchers.load.acknowledged_after(struck, WRITES_BOUND).await?;
    if let Some(remedy) = &remedy {
        give_back(config, lab, (timeline, remedy), (injury, victim)).await?;
    }
    Ok(served)
}

/// Mends what was broken and is so still, after the time for which it is to stay so.
async fn give_back(
    config: &Config,
    lab: &mut Lab,
    (timeline, remedy): (&Timeline, &str),
    (injury, victim): (Option<Injury>, &MemberName),
) -> anyhow::Result<()> {
    let Some(injury) = injury else { return Ok(()) };
    tokio::time::sleep(config.down_for).await;
    timeline.say(remedy);
    config.fault.mend(lab, victim, injury).await
}

/// Waits until a later service than `before` was agreed and a commit that was sent after that is acknowledged.
async fn writes_back(
    lab: &Lab,
    (watchers, timeline): (&Watchers, &Timeline),
    (struck, before): (Moment, Service),
) -> anyhow::Result<Service> {
    let (service, _) = lab.wait_served_after(before, WRITES_BOUND).await?;
    let noticed = watchers.load.acknowledged_after(clock::now(), WRITES_BOUND).await?;
    // The agreement is seen here some milliseconds after the clients could write again.
    let silence = watchers.load.told().longest_silence(struck, noticed);
    timeline.say_at(silence.map_or(noticed, |(_, first)| first), "writes are back");
    Ok(service)
}

/// Prints every change of the cluster for as long as the returned set lives.
fn watch(lab: &Lab, timeline: &Timeline) -> JoinSet<()> {
    let (store, keys, timeline) = (Arc::clone(lab.store()), lab.keys().clone(), timeline.clone());
    let mut task = JoinSet::new();
    task.spawn(async move {
        let mut last = Cluster::default();
        let follow = await_cluster(store.as_ref(), &keys, Duration::MAX, |cluster| {
            for line in follow::changes(&last, cluster) {
                timeline.say(&line);
            }
            last = cluster.clone();
            None::<()>
        });
        // The run itself meets the same trouble and tells it.
        let _ = follow.await;
    });
    task
}

fn report(
    recovery: &Recovery,
    cluster: &Cluster,
    (evidence, told): (&Evidence, &Told),
    (struck, redundant_at): (Moment, Moment),
) -> Report {
    let verdict = judge(evidence);
    let rejoined = recovery.rejoined(cluster);
    let recovered_by = recovery.recovered_by();
    let mut inconclusive = verdict.inconclusive.clone();
    if recovery.fault.strikes_again() && recovered_by != RecoveredBy::Failover {
        inconclusive.push("a second crash must end in a failover and did not".into());
    }
    if recovery.fault.hits().keeps_the_service() && recovered_by != RecoveredBy::None {
        inconclusive.push("the primary was to serve on, and did not".into());
    }
    Report {
        fault: recovery.fault,
        victim: recovery.victim.clone(),
        recovered_by,
        epoch_before: recovery.before.0.epoch.0,
        epoch_after: recovery.after.0.epoch.0,
        primary_before: recovery.before.1.clone(),
        primary_after: recovery.after.1.clone(),
        write_gap_ms: tenths(told.longest_gap(struck, redundant_at)),
        acknowledged: told.acknowledged.len(),
        unknown: told.unknown,
        overdue: told.overdue,
        commits_per_second: evidence.per_second.round(),
        lost: verdict.lost.len(),
        dual: verdict.dual.len(),
        beacons: evidence.beacons.len(),
        redundant_after_ms: tenths(redundant_at.since(struck)),
        old_primary_rejoined_by: rejoined.as_ref().map(|(by, _)| *by),
        old_primary_rejoin_reason: rejoined.map(|(_, reason)| reason),
        phases: recovery.phases(cluster),
        good: verdict.is_good() && inconclusive.is_empty(),
        inconclusive,
        violations: violations(&verdict),
    }
}

/// Milliseconds with one decimal.
fn tenths(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e4).round() / 10.0
}

fn keep(lab: Lab, timeline: &Timeline) -> anyhow::Result<()> {
    let program = std::env::current_exe().context("find the pgdeputy program")?;
    let usage = lab.usage(&program);
    let directory = lab.keep()?;
    timeline.print(&format!("{usage}  logs: {}/log", directory.display()));
    let (program, directory) = (program.display(), directory.display());
    timeline.print(&format!("stop it with\n  {program} demo --stop {directory}"));
    Ok(())
}
