//! One drill: a fault is struck under load, undone, and the cluster has to be whole again without a person.

use std::time::Duration;

use anyhow::{Context, ensure};
use proto::{MemberName, Moment};
use store::clock;

use crate::fault::{Fault, Injury};
use crate::lab::{Lab, Service};
use crate::load::Load;

/// Any return takes seconds, a fresh copy included; this is for a machine under load. Who is not back by then is stuck.
const BOUND: Duration = Duration::from_secs(90);

/// Between two drills: checkpoints and copies of the one before should not be measured.
const SETTLE: Duration = Duration::from_millis(700);

/// A drill that came to its end.
#[derive(Debug, Clone)]
pub struct Drill {
    pub fault: Fault,
    pub victim: MemberName,
    pub struck: Moment,
    /// When the later service was agreed, where one was expected.
    pub served: Option<Moment>,
    /// When what was broken had been given back.
    pub mended: Moment,
    pub redundant: Moment,
    /// The longest time without an acknowledgement from the fault until redundancy was back.
    pub gap: Duration,
    /// What was not as it must be. Empty is good.
    pub problems: Vec<String>,
}

/// What a drill that did not come to its end got stuck at.
#[derive(Debug)]
pub enum Stuck {
    /// The fault did not bite, or could not be undone, or writes did not come back.
    Failed(anyhow::Error),
    /// Everything was given back, and the cluster did not become redundant.
    Unredundant(anyhow::Error),
}

/// Plays one drill. `load` is what the gap is measured by.
pub async fn play(lab: &mut Lab, load: &Load, fault: Fault) -> Result<Drill, Stuck> {
    fault.prepare(lab).await.context("prepare it").map_err(Stuck::Failed)?;
    tokio::time::sleep(SETTLE).await;
    let begun = begin(lab, fault).await.map_err(Stuck::Failed)?;
    let Begun { before, victim, injury } = begun;
    let struck = injury.struck.at;
    let mut problems = Vec::new();
    let served = replaced(lab, load, fault, &before).await.map_err(Stuck::Failed)?;
    tokio::time::sleep(fault.entry().stays).await;
    fault.mend(lab, &victim, injury).await.context("undo it").map_err(Stuck::Failed)?;
    let mended = clock::now();
    let whole = lab.wait_redundant(BOUND).await.map_err(Stuck::Unredundant)?;
    let redundant = clock::now();
    load.acknowledged_after(redundant, BOUND).await.map_err(Stuck::Failed)?;
    let gap = load.told().longest_gap(struck, clock::now());
    if gap > fault.bound() {
        let bound = fault.bound();
        problems.push(format!("writes were away for {gap:.1?}, at most {bound:?} are allowed"));
    }
    let after = whole.service();
    if fault.hits().keeps_the_service() && after.as_ref() != Some(&before) {
        problems.push(format!("{before:?} was to serve on, and then it was {after:?}"));
    }
    Ok(Drill { fault, victim, struck, served, mended, redundant, gap, problems })
}

struct Begun {
    before: (Service, MemberName),
    victim: MemberName,
    injury: Injury,
}

async fn begin(lab: &mut Lab, fault: Fault) -> anyhow::Result<Begun> {
    let cluster = lab.cluster().await?;
    let before = cluster.service().context("no primary takes writes")?;
    let victim = fault.victim(&cluster, &before.1)?;
    let injury = fault.strike(lab, &victim).await.context("strike it")?;
    Ok(Begun { before, victim, injury })
}

/// Waits for the next service where one is expected, and for commits in any case.
async fn replaced(
    lab: &Lab,
    load: &Load,
    fault: Fault,
    before: &(Service, MemberName),
) -> anyhow::Result<Option<Moment>> {
    let mut served = None;
    if fault.hits().changes_the_service() {
        let (mut service, mut primary) = lab.wait_served_after(before.0, BOUND).await?;
        if fault.strikes_again() {
            load.acknowledged_after(clock::now(), BOUND).await?;
            lab.kill_postgres(&primary)?;
            (service, primary) = lab.wait_served_after(service, BOUND).await?;
        }
        served = Some(clock::now());
        ensure!(service > before.0, "{primary} serves {service:?}");
    }
    load.acknowledged_after(clock::now(), BOUND).await?;
    Ok(served)
}
