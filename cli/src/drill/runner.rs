//! The runner: takes the turns of the schedule. Any number may run; each turn is taken by one of them.
//!
//! The one rule: a turn is taken before it is carried out, in one transaction guarded by what was read. Whoever dies
//! between leaves a turn that nobody else takes, and the drill that it had begun ends with its lease.

use std::time::Duration;

use anyhow::Context;
use clap::Args;
use proto::WallTime;
use proto::document::encode;
use proto::drill::LiveFault;
use proto::drill_plan::{DrillPlan, Turn};
use rand::SeedableRng;
use rand::seq::IndexedRandom;
use store::{Guard, Operation, Store, StoreError, Txn, TxnOutcome, clock};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::schedule::{all, next_turn};
use super::{Limits, One, run as one};
use crate::target::Target;
use crate::{output, read};

/// So often the schedule is looked at; turns are a minute apart at least.
const LOOK_EVERY: Duration = Duration::from_secs(1);

#[derive(Debug, Args)]
pub struct RunnerArgs {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    limits: Limits,
}

/// Takes turns until `stop`.
pub async fn run(args: RunnerArgs, stop: CancellationToken) -> anyhow::Result<()> {
    let store = read::connect(&args.target.store).await?;
    let host = nix::unistd::gethostname().unwrap_or_default();
    let own =
        format!("{}:{}:{:08x}", host.to_string_lossy(), std::process::id(), rand::random::<u32>());
    tracing::info!(runner = own, cluster = %args.target.cluster, "runs the schedule of drills");
    loop {
        match due(&store, &args.target, &own).await {
            Ok(Some(plan)) => {
                // Its record says what came of it, also where it was refused.
                match one::run(args.drill(&plan), stop.clone()).await {
                    Ok(record) => tracing::info!(
                        record = output::json(&record).unwrap_or_default(),
                        "a drill has ended"
                    ),
                    Err(error) => {
                        tracing::error!(error = format!("{error:#}"), "a drill could not be run")
                    }
                }
            }
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(error = format!("{error:#}"), "the schedule cannot be read")
            }
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = sleep(LOOK_EVERY) => {}
        }
    }
}

impl RunnerArgs {
    fn drill(&self, plan: &DrillPlan) -> One {
        let seed: u64 = rand::random();
        let drawn = LiveFault::ALL.choose(&mut rand::rngs::StdRng::seed_from_u64(seed)).copied();
        One {
            fault: plan.fault.or(drawn).unwrap_or(LiveFault::StandbyKeeper),
            target: self.target.clone(),
            member: None,
            seed,
            limits: self.limits.clone(),
        }
    }
}

/// Takes the first turn that is due, if there is one, and returns its plan.
async fn due(store: &dyn Store, target: &Target, own: &str) -> anyhow::Result<Option<DrillPlan>> {
    let now = clock::wall();
    for (plan, revision) in all(store, target).await? {
        let due = match next_turn(&plan) {
            Ok(due) => due,
            Err(error) => {
                tracing::error!(plan = %plan.id, error = format!("{error:#}"), "a scheduled drill");
                continue;
            }
        };
        if due > now {
            continue;
        }
        let taken = take(store, target, (plan, revision), Turn { due, runner: own.into() }).await?;
        match taken {
            Some(plan) if is_missed(&plan, due, now) => {
                tracing::warn!(plan = %plan.id, %due, "a scheduled drill was missed: no runner ran");
            }
            Some(plan) => return Ok(Some(plan)),
            None => {}
        }
    }
    Ok(None)
}

fn is_missed(plan: &DrillPlan, due: WallTime, now: WallTime) -> bool {
    now > due.plus(plan.window)
}

/// Takes a turn; `None` where another one was faster.
async fn take(
    store: &dyn Store,
    target: &Target,
    (plan, revision): (DrillPlan, i64),
    turn: Turn,
) -> anyhow::Result<Option<DrillPlan>> {
    let key = target.keys().drill_plan(&plan.id);
    let plan = DrillPlan { last: Some(turn.clone()), ..plan };
    let when = vec![Guard::ModRevision(key.clone(), revision)];
    let put = Operation::Put { key, value: encode(&plan).into_bytes(), lease: None };
    match store.commit(Txn { when, then: vec![put] }).await {
        Ok(TxnOutcome::Committed { .. }) => Ok(Some(plan)),
        Ok(TxnOutcome::Conflict) => Ok(None),
        // It may have been written: then it stands there under our own name.
        Err(StoreError::Unknown(_)) => {
            let now = all(store, target).await?;
            let ours =
                |(p, _): &(DrillPlan, i64)| p.id == plan.id && p.last.as_ref() == Some(&turn);
            Ok(now.iter().any(ours).then_some(plan))
        }
        Err(error) => Err(error).context("take a turn of the schedule"),
    }
}
