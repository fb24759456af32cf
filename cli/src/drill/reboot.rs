//! `drill reboot-all`: each member is rebooted by a hook command, one at a time and never two, the primary last.
//!
//! The one rule: it stops at the first surprise, and leaves the cluster as it then is. Nothing is rebooted that the
//! cluster could not spare a moment before.

use std::fmt;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use proto::document::encode;
use proto::drill::{DrillRecord, Figures, Undertaking, Verdict};
use proto::drill_lock::{DrillLock, DrillWork};
use proto::{ClusterName, Epoch, MemberName};
use serde::Serialize;
use store::etcd::EtcdStore;
use store::{Operation, Store, Txn, clock};
use tokio_util::sync::CancellationToken;

use super::canary::{Shown, Watch};
use super::lock::{self, Lock, kept};
use super::run::{record, write};
use super::seen::Seen;
use super::turn::Taken;
use super::way::WayArgs;
use super::within;
use crate::args::OutputArgs;
use crate::failure::Failure;
use crate::target::Target;
use crate::{output, read, runtime};

/// How long the lock outlives this process, and etcd may be away: hosts of etcd are rebooted, too. Whole seconds.
const LEASE: Duration = Duration::from_secs(60);

mod round;
use round::{Round, all, order, stands_in_the_way};

#[derive(Debug, Args)]
pub struct RebootArgs {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    reboots: Reboots,
    #[command(flatten)]
    way: WayArgs,
    /// Only these, as when a run before was stopped: divided by commas
    #[arg(long, value_name = "MEMBERS", value_delimiter = ',')]
    only: Vec<MemberName>,
    /// Say in which order, and whether it could begin now; reboot nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    output: OutputArgs,
}

/// How one member is rebooted.
#[derive(Debug, Clone, Args)]
pub struct Reboots {
    /// Command that reboots one member and returns when its host is up again; run by `sh -c` with PGDEPUTY_MEMBER and
    /// PGDEPUTY_ADDRESS (of its PostgreSQL) in the environment
    #[arg(long, value_name = "COMMAND")]
    pub hook: Option<String>,
    /// How long one member may take, from the hook's beginning until the cluster is fully redundant again
    #[arg(long, value_name = "DURATION", default_value = "15m", value_parser = within)]
    member_within: Duration,
}

/// What was done. Field names are scripted against: they stay.
#[derive(Debug, Serialize)]
struct Rebooted {
    cluster: ClusterName,
    order: Vec<MemberName>,
    done: Vec<Done>,
    /// Those that were not rebooted, by `--dry-run` or because of the surprise.
    left: Vec<MemberName>,
    surprise: Option<String>,
    canaries_acknowledged: Option<u64>,
    canaries_lost: Option<u64>,
}

#[derive(Debug, Serialize)]
struct Done {
    member: MemberName,
    /// From the hook's beginning until the cluster was fully redundant again.
    ms: u64,
}

/// Runs the command.
pub fn run(args: RebootArgs) -> Result<u8, Failure> {
    if args.reboots.hook.is_none() {
        return Err(Failure::usage("--hook is missing: say how one member is rebooted"));
    }
    let rebooted = runtime::run(|stop| by_hand(&args, stop))?;
    let code = u8::from(rebooted.surprise.is_some());
    output::show(&rebooted, args.output).map(|()| code)
}

async fn by_hand(args: &RebootArgs, stop: CancellationToken) -> anyhow::Result<Rebooted> {
    let store = read::connect(&args.target.store).await?;
    let plan = Plan::of(&store, (&args.target, &args.way, &args.reboots), &args.only).await?;
    match args.dry_run {
        true => Ok(plan.rebooted),
        false => plan.carry_out(record(Undertaking::RebootAll, 0), stop).await.map(|done| done.0),
    }
}

/// Carries out a turn that was taken, and returns its record. Until it has ended, its lease says that it is under way.
///
/// # Errors
/// etcd does not answer. Whoever was rebooted then comes back, and no other one is begun.
pub async fn run_turn(
    store: &EtcdStore,
    how: (&Target, &WayArgs, &Reboots),
    turn: Taken,
    stop: CancellationToken,
) -> anyhow::Result<DrillRecord> {
    let Taken { record, lease } = turn;
    let done = async {
        match Plan::of(store, how, &[]).await {
            Ok(plan) => plan.carry_out(record, stop).await.map(|done| done.1),
            Err(error) => {
                let reasons = vec![format!("{error:#}")];
                let record = DrillRecord { verdict: Verdict::NotBegun, reasons, ..record };
                write(store, how.0, record).await
            }
        }
    };
    let done = kept(store, (lease, lock::LEASE), done).await;
    store.revoke(lease).await.context("end the turn")?;
    done
}

/// What is to be done, and whether it may begin.
struct Plan<'a> {
    store: &'a EtcdStore,
    how: (&'a Target, &'a WayArgs, &'a Reboots),
    epoch: Epoch,
    /// Nothing yet; a surprise is what stands in the way.
    rebooted: Rebooted,
}

impl<'a> Plan<'a> {
    async fn of(
        store: &'a EtcdStore,
        how: (&'a Target, &'a WayArgs, &'a Reboots),
        only: &[MemberName],
    ) -> anyhow::Result<Self> {
        let seen = Seen::ask(store, how.0).await?;
        let order = order(&seen, only)?;
        let rebooted = Rebooted {
            cluster: how.0.cluster.clone(),
            left: order.clone(),
            order,
            done: Vec::new(),
            surprise: stands_in_the_way(&seen, None),
            canaries_acknowledged: None,
            canaries_lost: None,
        };
        Ok(Self { store, how, epoch: seen.state.epoch, rebooted })
    }

    /// Reboots all, and writes what came of it into `record`.
    async fn carry_out(
        mut self,
        mut record: DrillRecord,
        stop: CancellationToken,
    ) -> anyhow::Result<(Rebooted, DrillRecord)> {
        let (store, target) = (self.store, self.how.0);
        let canary = match Watch::start(self.how.1).await {
            Ok(canary) => canary,
            Err(problem) => {
                let problem = format!("the canary cannot write: {problem:#}");
                self.rebooted.surprise.get_or_insert(problem);
                Watch::none()
            }
        };
        if let Some(problem) = &self.rebooted.surprise {
            record.verdict = Verdict::Refused;
            record.reasons.push(problem.clone());
            let record = write(store, target, record).await?;
            return Ok((self.rebooted, record));
        }
        record.verdict = Verdict::Running;
        let lock = self.begin(&record).await?;
        let round = Round { store, how: self.how, lock: &lock, epoch: self.epoch, canary: &canary };
        let begun = clock::now();
        kept(store, (lock.lease(), LEASE), all(round, &mut self.rebooted, stop)).await;
        let shown = canary.end().await;
        let rebooted = self.rebooted.with(shown.as_ref());
        record.verdict = Verdict::Passed;
        if let Some(surprise) = &rebooted.surprise {
            record.verdict = Verdict::Failed;
            record.reasons.push(surprise.clone());
        }
        record.figures = Figures {
            write_gap_ms: shown.and_then(|shown| shown.write_gap_ms).map(|ms| ms.ceil() as u64),
            redundant_after_ms: u64::try_from(clock::now().since(begun).as_millis()).ok(),
            epoch_before: Some(self.epoch),
            canaries_acknowledged: rebooted.canaries_acknowledged,
            canaries_lost: rebooted.canaries_lost,
            ..Figures::default()
        };
        // Nobody else begins before the verdict is there.
        let written = kept(store, (lock.lease(), LEASE), write(store, target, record)).await;
        lock.release().await.context("give up the lock")?;
        Ok((rebooted, written?))
    }

    /// Takes the lock, and writes that it has begun.
    async fn begin(&self, record: &DrillRecord) -> anyhow::Result<Lock<'a>> {
        let keys = self.how.0.keys();
        let work = DrillWork::Reboots { member: None };
        let held = DrillLock { id: record.id.clone(), by: record.by.clone(), work };
        let value = encode(record).into_bytes();
        let key = keys.drill_record(record.begun, &record.id);
        let then = vec![Operation::Put { key, value, lease: None }];
        let (lease, _) = self.store.grant(LEASE).await.context("ask for a lease")?;
        let txn = Txn { when: Vec::new(), then };
        let lock = Lock::take(self.store, keys.drill_lock(), (held, lease, LEASE), txn);
        lock.await.map_err(|(_, error)| error)
    }
}

impl Rebooted {
    fn with(mut self, shown: Option<&Shown>) -> Self {
        if let Some(shown) = shown {
            self.canaries_acknowledged = shown.acknowledged;
            self.canaries_lost = shown.lost;
            self.surprise = self.surprise.or(shown.problem.clone());
        }
        self
    }
}

impl fmt::Display for Rebooted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names =
            |all: &[MemberName]| all.iter().map(MemberName::as_str).collect::<Vec<_>>().join(", ");
        write!(f, "cluster {}: order {}", self.cluster, names(&self.order))?;
        for done in &self.done {
            write!(f, "\n{} rebooted, fully redundant again after {} ms", done.member, done.ms)?;
        }
        if let (Some(told), Some(lost)) = (self.canaries_acknowledged, self.canaries_lost) {
            write!(f, "\ncanaries acknowledged: {told}, lost: {lost}")?;
        }
        let Some(surprise) = &self.surprise else { return Ok(()) };
        write!(f, "\nSTOPPED: {surprise}")?;
        match self.left.is_empty() {
            true => Ok(()),
            false => write!(
                f,
                "\nnot rebooted: {0} (go on with --only {0})",
                self.left.iter().map(MemberName::as_str).collect::<Vec<_>>().join(",")
            ),
        }
    }
}
