//! Runs one drill: guard rails, the request under a lease, its undoing, and the verdict.
//!
//! The one rule: the lease is the runner. When this process is gone its lease ends within seconds, and the keeper beside
//! the target undoes what it did.

use std::time::Duration;

use anyhow::{Context, bail};
use proto::document::encode;
use proto::drill::{Carried, Drill, DrillRecord, Figures, LiveFault, Verdict};
use proto::drill_lock::{DrillLock, DrillWork};
use proto::{MemberName, Moment, RequestId};
use rand::SeedableRng;
use rand::seq::IndexedRandom;
use store::etcd::EtcdStore;
use store::{Guard, LeaseId, Operation, Store, Txn, clock};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::One;
use super::canary::Watch;
use super::guard::objections;
use super::lock::Lock;
use super::orders::switch_over;
use super::seen::{Seen, until_calm};
use crate::target::Target;
use crate::{ask, read};

/// How long a drill outlives its runner. Whole seconds, as etcd grants them.
const LEASE: Duration = Duration::from_secs(5);

/// How long a keeper may take to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// So often the cluster is looked at.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// Records that are kept.
const KEPT: usize = 60;

/// Runs one drill, and returns its record, which is in etcd too.
pub async fn run(args: One, stop: CancellationToken) -> anyhow::Result<DrillRecord> {
    let store = read::connect(&args.target.store).await?;
    let seen = Seen::ask(&store, &args.target).await?;
    let mut record = DrillRecord {
        id: RequestId::from_random(rand::random()),
        fault: args.fault,
        target: None,
        by: ask::who(),
        seed: args.seed,
        begun: clock::wall(),
        ended: None,
        verdict: Verdict::Running,
        reasons: Vec::new(),
        figures: Figures::default(),
    };
    record.reasons = objections(&seen, args.fault, &args.limits);
    record.target = match chosen(&args, &seen) {
        Ok(member) => Some(member),
        Err(problem) => {
            record.reasons.push(problem);
            None
        }
    };
    let canary = match Watch::start(args.limits.dsn.as_deref()).await {
        Ok(canary) => canary,
        Err(problem) => {
            record.reasons.push(format!("the canary cannot write: {problem:#}"));
            Watch::none()
        }
    };
    if !record.reasons.is_empty() {
        record.verdict = Verdict::Refused;
        return finish(&store, &args.target, record, None).await;
    }
    let running = Running::begin(&store, &args, &seen, &record).await?;
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
    canary.judge(&mut record, args.limits.write_gap_within).await;
    finish(&store, &args.target, record, Some(running.lock)).await
}

fn chosen(args: &One, seen: &Seen) -> Result<MemberName, String> {
    let able = seen.with_role(args.fault.role());
    match &args.member {
        Some(member) if able.contains(member) => Ok(member.clone()),
        Some(member) => Err(format!("{member} has not the role that {} hits", args.fault)),
        None => {
            let drawn = able.choose(&mut rand::rngs::StdRng::seed_from_u64(args.seed));
            drawn.cloned().ok_or_else(|| "there is nobody to hit".to_owned())
        }
    }
}

/// Writes the record, forgets the oldest ones, and ends the request.
async fn finish(
    store: &EtcdStore,
    target: &Target,
    mut record: DrillRecord,
    lock: Option<Lock<'_>>,
) -> anyhow::Result<DrillRecord> {
    record.ended = Some(clock::wall());
    let keys = target.keys();
    let past = store.read(&keys.all_drill_records()).await.context("read past drills")?;
    let excess = past.entries.len().saturating_sub(KEPT - 1);
    let oldest = past.entries.into_keys().take(excess);
    let mut then: Vec<Operation> = oldest.map(|key| Operation::Delete { key }).collect();
    then.push(put(keys.drill_record(record.begun, &record.id), &record, None));
    store.commit(Txn { when: Vec::new(), then }).await.context("write the drill's record")?;
    // Last: whoever finds no runner takes a drill without a verdict for abandoned.
    if let Some(lock) = lock {
        lock.release().await.context("end the drill")?;
    }
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
    lock: Lock<'a>,
    begun: Moment,
}

impl<'a> Running<'a> {
    /// Puts the request and the record of its beginning, in one transaction: there is one drill at a time.
    async fn begin(
        store: &'a EtcdStore,
        args: &'a One,
        seen: &Seen,
        record: &DrillRecord,
    ) -> anyhow::Result<Self> {
        let keys = args.target.keys();
        let drill = Drill {
            id: record.id.clone(),
            fault: args.fault,
            target: record.target.clone().context("nobody was chosen")?,
            by: record.by.clone(),
            epoch: seen.state.epoch,
            bound: args.fault.stays() + LEASE,
        };
        let work = DrillWork::Drill { fault: args.fault };
        let held = DrillLock { id: drill.id.clone(), by: drill.by.clone(), work };
        let lock = Lock::take(store, keys.drill_lock(), (held, LEASE), |lease| Txn {
            when: vec![Guard::Absent(keys.drill())],
            then: vec![
                put(keys.drill(), &drill, Some(lease)),
                put(keys.drill_record(record.begun, &record.id), record, None),
            ],
        })
        .await?;
        tracing::warn!(drill = %drill.id, fault = %drill.fault, target = %drill.target, "the drill begins");
        Ok(Self { store, args, drill, lock, begun: clock::now() })
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
                None if clock::now() >= deadline => bail!(
                    "the keeper of {} did not carry it out within {ANSWER_WITHIN:?}",
                    self.drill.target
                ),
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
        let within = self.args.limits.redundant_within;
        let times = (LOOK_AGAIN, clock::now() + within);
        let what = format!("not fully redundant within {within:?}");
        until_calm(async || self.look().await, Seen::lacks, times, &what).await
    }
}
