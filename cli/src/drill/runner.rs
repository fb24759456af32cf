//! The runner: takes the turns of the schedule. Any number may run; each turn is taken by one of them.
//!
//! The one rule: a turn is taken before it is carried out, in one transaction guarded by what was read. Whoever dies
//! between leaves a turn that nobody else takes, and the drill that it had begun ends with its lease.

use std::time::Duration;

use clap::Args;
use proto::drill::{DrillRecord, LiveFault, Undertaking, Verdict};
use proto::drill_plan::Turn;
use rand::SeedableRng;
use rand::seq::IndexedRandom;
use store::etcd::EtcdStore;
use store::{Store, clock};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::reboot::{self, Reboots};
use super::schedule::all;
use super::seen::Seen;
use super::standing::Standing;
use super::turn::{Due, Taken, due, take};
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
    #[command(flatten)]
    reboots: Reboots,
}

/// Takes turns until `stop`.
pub async fn run(args: RunnerArgs, stop: CancellationToken) -> anyhow::Result<()> {
    let store = read::connect(&args.target.store).await?;
    let host = nix::unistd::gethostname().unwrap_or_default();
    let own =
        format!("{}:{}:{:08x}", host.to_string_lossy(), std::process::id(), rand::random::<u32>());
    tracing::info!(runner = own, cluster = %args.target.cluster, "runs the schedule of drills");
    let standing = Standing { store: &store, target: &args.target, own: &own };
    tokio::join!(turns(&store, &args, &own, &stop), standing.run(&args.limits.way, &stop));
    Ok(())
}

/// Takes the turns of the schedule until `stop`.
async fn turns(store: &EtcdStore, args: &RunnerArgs, own: &str, stop: &CancellationToken) {
    loop {
        match take_what_is_due(store, args, own).await {
            Ok(Some(turn)) => {
                // Its record says what came of it, also where it was refused.
                match args.carry_out(store, turn, stop).await {
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
            () = stop.cancelled() => return,
            () = sleep(LOOK_EVERY) => {}
        }
    }
}

impl RunnerArgs {
    async fn carry_out(
        &self,
        store: &EtcdStore,
        turn: Taken,
        stop: &CancellationToken,
    ) -> anyhow::Result<DrillRecord> {
        match turn.record.fault {
            Undertaking::Fault(fault) => {
                let one = One {
                    fault,
                    target: self.target.clone(),
                    on: None,
                    seed: turn.record.seed,
                    limits: self.limits.clone(),
                };
                one::run_turn(store, one, turn, stop.clone()).await
            }
            Undertaking::RebootAll => {
                let (target, way) = (&self.target, &self.limits.way);
                reboot::run_turn(store, (target, way, &self.reboots), turn, stop.clone()).await
            }
        }
    }
}

/// Takes the first turn that is due, if there is one. Those that were missed get a record.
async fn take_what_is_due(
    store: &dyn Store,
    args: &RunnerArgs,
    own: &str,
) -> anyhow::Result<Option<Taken>> {
    let (now, mut there, target) = (clock::wall(), None, &args.target);
    for (plan, revision) in all(store, target).await? {
        let due = due(&plan, now).unwrap_or_else(|error| {
            tracing::error!(plan = %plan.id, error = format!("{error:#}"), "a scheduled drill");
            Due::Nothing
        });
        // Who has no hook leaves reboots to others, until they are missed.
        let is_able = plan.fault != Some(Undertaking::RebootAll) || args.reboots.hook.is_some();
        if due == Due::Nothing || (!is_able && matches!(due, Due::Turn(_))) {
            continue;
        }
        let seed: u64 = rand::random();
        let fault = match plan.fault {
            Some(fault) => fault,
            None => {
                let seen = match there.take() {
                    Some(seen) => seen,
                    None => Seen::look(store, target).await?,
                };
                let able = there.insert(seen).that_hit_somebody();
                let drawn = able.choose(&mut rand::rngs::StdRng::seed_from_u64(seed)).copied();
                drawn.unwrap_or(LiveFault::StandbyKeeper).into()
            }
        };
        let mut record = DrillRecord { verdict: Verdict::Taken, ..one::record(fault, seed) };
        let due = match due {
            Due::Nothing => continue,
            Due::Turn(due) => due,
            Due::Missed(turns, last) => {
                record.verdict = Verdict::NotBegun;
                record.ended = Some(now);
                let why = format!("{turns} turns of {} were missed, the last at {last}", plan.id);
                let able = if is_able { "" } else { " with a --hook" };
                record.reasons.push(format!("{why}: no runner{able} ran within {:?}", plan.window));
                last
            }
        };
        let (runner, was_missed) = (own.to_owned(), record.verdict == Verdict::NotBegun);
        let taken = take(store, target, (&plan, revision), Turn { due, runner }, record).await?;
        match taken {
            Some(turn) if was_missed => {
                tracing::warn!(plan = %plan.id, why = ?turn.record.reasons, "turns were missed")
            }
            Some(turn) => return Ok(Some(turn)),
            None => {}
        }
    }
    Ok(None)
}
