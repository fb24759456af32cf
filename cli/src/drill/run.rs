//! Runs one drill: guard rails, the request under a lease, its undoing, and the verdict.
//!
//! The one rule: the lease is the runner. When this process is gone its lease ends within seconds, and the keeper beside
//! the target undoes what it did.

use std::time::Duration;

use anyhow::{Context, anyhow, bail, ensure};
use proto::document::encode;
use proto::drill::{
    Carried, Drill, DrillRecord, DrillTarget, Figures, LiveFault, Undertaking, Verdict,
};
use proto::drill_lock::{DrillLock, DrillWork};
use proto::{Moment, RequestId};
use rand::SeedableRng;
use rand::seq::IndexedRandom;
use store::etcd::EtcdStore;
use store::{Guard, LeaseId, Operation, Store, Txn, clock};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::canary::Watch;
use super::coverage;
use super::crew::Crew;
use super::fence::fenced;
use super::guard::objections;
use super::lock::{Begun, LEASE, Lock, keep, kept};
use super::orders::switch_over;
use super::seen::{Seen, until_calm};
use super::turn::Taken;
use super::{Objectives, One};
use crate::target::Target;
use crate::{ask, read};

/// How long a keeper may take to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// So often the cluster is looked at.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// Records that are kept.
const KEPT: usize = 60;

/// Records that are forgotten at once: etcd takes 128 operations in a transaction.
const MOST_FORGOTTEN: usize = 100;

/// Runs one drill, and returns its record, which is in etcd too.
///
/// # Errors
/// etcd does not answer, or another drill began at the same time. Nothing stays broken.
pub async fn run(args: One, stop: CancellationToken) -> anyhow::Result<DrillRecord> {
    let store = read::connect(&args.target.store).await?;
    let record = record(args.fault.into(), args.seed);
    let (lease, _) = store.grant(LEASE).await.context("ask for a lease")?;
    let ended = through(&store, &args, record, lease, stop).await;
    // Last: whoever finds no runner takes a drill without a verdict for abandoned.
    store.revoke(lease).await.context("end the drill")?;
    ended.map_err(|(_, error)| error)
}

/// Runs the drill of a turn that was taken, and returns its record.
///
/// # Errors
/// As `run`. Where nothing was begun the record says why.
pub async fn run_turn(
    store: &EtcdStore,
    args: One,
    turn: Taken,
    stop: CancellationToken,
) -> anyhow::Result<DrillRecord> {
    let Taken { record, lease } = turn;
    let untouched = record.clone();
    let ended = match through(store, &args, record, lease, stop).await {
        Ok(record) => Ok(record),
        Err((Begun::No, error)) => {
            let reasons = vec![format!("{error:#}")];
            let record = DrillRecord { verdict: Verdict::NotBegun, reasons, ..untouched };
            write(store, &args.target, record).await
        }
        Err((Begun::Perhaps, error)) => Err(error),
    };
    store.revoke(lease).await.context("end the drill")?;
    ended
}

/// Returns the record of a drill that has not begun.
pub fn record(fault: Undertaking, seed: u64) -> DrillRecord {
    DrillRecord {
        id: RequestId::from_random(rand::random()),
        fault,
        target: None,
        by: ask::who(),
        seed,
        begun: clock::wall(),
        ended: None,
        verdict: Verdict::Running,
        reasons: Vec::new(),
        figures: Figures::default(),
    }
}

/// Prepares, begins and judges a drill under `lease`, and writes its record.
async fn through(
    store: &EtcdStore,
    args: &One,
    mut record: DrillRecord,
    lease: LeaseId,
    stop: CancellationToken,
) -> Result<DrillRecord, (Begun, anyhow::Error)> {
    let prepared = tokio::select! {
        prepared = prepare(store, args, &mut record) => prepared,
        () = keep(store, lease, LEASE) => Err(anyhow!("its lease has ended before it began")),
        () = stop.cancelled() => Err(anyhow!("its runner was asked to stop before it began")),
    };
    let (seen, canary) = prepared.map_err(|error| (Begun::No, error))?;
    let after = |error| (Begun::Perhaps, error);
    if !record.reasons.is_empty() {
        record.verdict = Verdict::Refused;
        return write(store, &args.target, record).await.map_err(after);
    }
    record.verdict = Verdict::Running;
    let objectives = args.limits.objectives(&seen.spec);
    let running = Running::begin(store, args, &seen, (&record, lease)).await?;
    let judged = tokio::select! {
        judged = running.through(&mut record) => judged,
        () = stop.cancelled() => {
            record.verdict = Verdict::Aborted;
            record.reasons.push("its runner was asked to stop".into());
            Ok(())
        }
    };
    if let Err(error) = judged {
        record.verdict = Verdict::Failed;
        record.reasons.push(format!("{error:#}"));
    }
    let written = async {
        canary.judge(&mut record, objectives.write_gap).await;
        write(store, &args.target, record).await
    };
    // Nobody else begins before the verdict is there.
    kept(store, (lease, LEASE), written).await.map_err(after)
}

/// Looks whether it may begin, chooses whom to hit, and begins to write canaries. What is in the way becomes the record's
/// reasons.
async fn prepare(
    store: &EtcdStore,
    args: &One,
    record: &mut DrillRecord,
) -> anyhow::Result<(Seen, Watch)> {
    let seen = Seen::ask(store, &args.target).await?;
    record.reasons = objections(&seen, args.fault, &args.limits);
    match chosen(args, &seen) {
        Ok(target) => record.target = Some(target),
        Err(problem) => record.reasons.push(problem),
    }
    let canary = match Watch::start(&args.limits.way).await {
        Ok(canary) => canary,
        Err(problem) => {
            record.reasons.push(format!("the canary cannot write: {problem:#}"));
            Watch::none()
        }
    };
    Ok((seen, canary))
}

fn chosen(args: &One, seen: &Seen) -> Result<DrillTarget, String> {
    let able = seen.targets(args.fault);
    match &args.on {
        Some(name) => {
            let named = able.into_iter().find(|target| target.name() == name);
            named.ok_or_else(|| format!("{name} is none of those whom {} hits", args.fault))
        }
        None => {
            let drawn = able.choose(&mut rand::rngs::StdRng::seed_from_u64(args.seed));
            drawn.cloned().ok_or_else(|| "there is nobody to hit".to_owned())
        }
    }
}

/// Writes the record of a drill that has ended, and forgets the oldest ones.
pub async fn write(
    store: &dyn Store,
    target: &Target,
    mut record: DrillRecord,
) -> anyhow::Result<DrillRecord> {
    record.ended = Some(clock::wall());
    let keys = target.keys();
    let past = store.read(&keys.all_drill_records()).await.context("read past drills")?;
    let excess = past.entries.len().saturating_sub(KEPT - 1).min(MOST_FORGOTTEN);
    let oldest = past.entries.into_keys().take(excess);
    let mut then: Vec<Operation> = oldest.map(|key| Operation::Delete { key }).collect();
    then.push(put(keys.drill_record(record.begun, &record.id), &record, None));
    then.extend(coverage::counted(store, target, &record).await?);
    store.commit(Txn { when: Vec::new(), then }).await.context("write the drill's record")?;
    Ok(record)
}

fn put<D: proto::Document>(key: String, document: &D, lease: Option<LeaseId>) -> Operation {
    Operation::Put { key, value: encode(document).into_bytes(), lease }
}

/// A drill that has begun.
struct Running<'a> {
    store: &'a EtcdStore,
    args: &'a One,
    drill: Drill,
    /// Who was there before the drill.
    crew: Crew,
    objectives: Objectives,
    lock: Lock<'a>,
    begun: Moment,
}

impl<'a> Running<'a> {
    /// Puts the request and the record of its beginning, in one transaction: there is one drill at a time.
    async fn begin(
        store: &'a EtcdStore,
        args: &'a One,
        seen: &Seen,
        (record, lease): (&DrillRecord, LeaseId),
    ) -> Result<Self, (Begun, anyhow::Error)> {
        let keys = args.target.keys();
        let objectives = args.limits.objectives(&seen.spec);
        let nobody = || (Begun::No, anyhow!("nobody was chosen"));
        let drill = Drill {
            id: record.id.clone(),
            fault: args.fault,
            target: record.target.clone().ok_or_else(nobody)?,
            by: record.by.clone(),
            epoch: seen.state.epoch,
            bound: match args.fault {
                // Undone by somebody else, whom its proxy-config waits for.
                LiveFault::Haproxy | LiveFault::Pgbouncer => objectives.redundant,
                _ => args.fault.stays() + LEASE,
            },
        };
        let work = DrillWork::Drill { fault: args.fault };
        let held = DrillLock { id: drill.id.clone(), by: drill.by.clone(), work };
        let txn = Txn {
            when: vec![Guard::Absent(keys.drill())],
            then: vec![
                put(keys.drill(), &drill, Some(lease)),
                put(keys.drill_record(record.begun, &record.id), record, None),
            ],
        };
        let lock = Lock::take(store, keys.drill_lock(), (held, lease, LEASE), txn).await?;
        tracing::warn!(drill = %drill.id, fault = %drill.fault, target = %drill.target, "the drill begins");
        let crew = seen.crew.clone();
        Ok(Self { store, args, drill, crew, objectives, lock, begun: clock::now() })
    }

    /// From the blow to full redundancy, renewing the lease meanwhile.
    async fn through(&self, record: &mut DrillRecord) -> anyhow::Result<()> {
        record.figures.epoch_before = Some(self.drill.epoch);
        tokio::select! {
            judged = self.steps(record) => judged,
            () = self.lock.keep() => bail!("its lease has ended: the keeper has undone it"),
        }
    }

    async fn steps(&self, record: &mut DrillRecord) -> anyhow::Result<()> {
        let struck = match self.drill.fault {
            LiveFault::Switchover => {
                switch_over(self.store, &self.args.target).await?;
                None
            }
            _ => self.answer().await?,
        };
        if let Some(reason) = struck {
            record.verdict = Verdict::Refused;
            record.reasons.push(reason);
            return Ok(());
        }
        let stays = clock::now() + self.drill.fault.stays();
        while clock::now() < stays {
            let seen = self.look().await?;
            if seen.drill.as_ref().is_none_or(|drill| drill.id != self.drill.id) {
                record.verdict = Verdict::Aborted;
                record.reasons.push("somebody ended it (pgdeputy drill abort)".into());
                return Ok(());
            }
            sleep(LOOK_AGAIN.min(stays.since(clock::now()))).await;
        }
        self.end().await?;
        let seen = self.wait_redundant().await?;
        let after = clock::now().since(self.begun).as_millis();
        record.figures.redundant_after_ms = Some(u64::try_from(after).unwrap_or(u64::MAX));
        record.figures.epoch_after = Some(seen.state.epoch);
        record.verdict = Verdict::Passed;
        if let Some(fence) = fenced(&seen, &self.drill) {
            record.figures.fence_ms = Some(u64::try_from(fence.as_millis()).unwrap_or(u64::MAX));
            let within = self.objectives.fence;
            ensure!(
                fence <= within,
                "the old primary could have acknowledged for {fence:?} after its loss, longer than {within:?}"
            );
        }
        Ok(())
    }

    async fn look(&self) -> anyhow::Result<Seen> {
        Seen::look_patiently(self.store, &self.args.target).await
    }

    /// Waits until the keeper has struck; returns why it did not.
    async fn answer(&self) -> anyhow::Result<Option<String>> {
        let deadline = clock::now() + ANSWER_WITHIN;
        loop {
            let seen = self.look().await?;
            let said = seen.answers.get(&self.drill.target).filter(|s| s.id == self.drill.id);
            match said.map(|said| &said.what) {
                Some(Carried::Refused { reason }) => return Ok(Some(reason.clone())),
                Some(Carried::Struck | Carried::Undone { .. }) => return Ok(None),
                None if clock::now() >= deadline => {
                    bail!("{} did not carry it out within {ANSWER_WITHIN:?}", self.drill.target)
                }
                None => sleep(Duration::from_millis(50)).await,
            }
        }
    }

    /// Ends the request; the record is still under way.
    async fn end(&self) -> anyhow::Result<()> {
        let key = self.args.target.keys().drill();
        let when = vec![Guard::Lease(key.clone(), self.lock.lease())];
        let then = vec![Operation::Delete { key }];
        self.store.commit(Txn { when, then }).await.context("end the drill")?;
        Ok(())
    }

    async fn wait_redundant(&self) -> anyhow::Result<Seen> {
        let within = self.objectives.redundant;
        let times = (LOOK_AGAIN, clock::now() + within);
        let what = format!("not fully redundant within {within:?}");
        let wrong = |seen: &Seen| {
            let said = seen.answers.get(&self.drill.target).filter(|s| s.id == self.drill.id);
            let about = (self.drill.fault, &self.drill.target);
            seen.lacks().or_else(|| seen.crew.lacks(&self.crew, about, said, seen.state.epoch))
        };
        until_calm(async || self.look().await, wrong, times, &what).await
    }
}
