//! Taking a turn of the schedule.
//!
//! The one rule: the turn, the record of it and the right to begin it are one transaction, guarded by the plan's revision.
//! So there is one record of each turn, whoever dies when.

use anyhow::Context;
use proto::document::encode;
use proto::drill::{DrillRecord, Verdict};
use proto::drill_plan::{DrillPlan, Turn};
use proto::{Document, WallTime};
use store::{Guard, LeaseId, Operation, Store, StoreError, Txn, TxnOutcome};

use super::lock::LEASE;
use super::schedule::{all, next_turn};
use crate::target::Target;

/// So many missed turns are passed over in one look: a minute's crontab of a week without a runner.
const MOST_MISSED: usize = 10_080;

/// A turn that was taken, and under which lease it may begin.
#[derive(Debug)]
pub struct Taken {
    pub record: DrillRecord,
    pub lease: LeaseId,
}

/// What of a plan is due.
#[derive(Debug, PartialEq, Eq)]
pub enum Due {
    Nothing,
    /// This turn may begin.
    Turn(WallTime),
    /// So many turns are too late to begin, this one is the last of them.
    Missed(usize, WallTime),
}

/// Returns what of `plan` is due at `now`.
///
/// # Errors
/// Its crontab cannot be read.
pub fn due(plan: &DrillPlan, now: WallTime) -> anyhow::Result<Due> {
    let mut plan = plan.clone();
    let mut missed = None;
    for count in 1..=MOST_MISSED {
        let next = next_turn(&plan)?;
        if now <= next.plus(plan.window) {
            let is_due = next <= now;
            return Ok(missed.unwrap_or(if is_due { Due::Turn(next) } else { Due::Nothing }));
        }
        missed = Some(Due::Missed(count, next));
        plan.last = Some(Turn { due: next, runner: String::new() });
    }
    Ok(missed.unwrap_or(Due::Nothing))
}

/// Takes a turn, and writes `record` of it; `None` where another one was faster.
///
/// # Errors
/// The store does not answer. The turn may have been taken all the same: its record then says that it was not begun.
pub async fn take(
    store: &dyn Store,
    target: &Target,
    (plan, revision): (&DrillPlan, i64),
    turn: Turn,
    record: DrillRecord,
) -> anyhow::Result<Option<Taken>> {
    let (lease, _) = store.grant(LEASE).await.context("ask for a lease")?;
    let keys = target.keys();
    let key = keys.drill_plan(&plan.id);
    let plan = DrillPlan { last: Some(turn.clone()), ..plan.clone() };
    let when = vec![Guard::ModRevision(key.clone(), revision)];
    let mut then = vec![
        put(key, &plan, None),
        put(keys.drill_record(record.begun, &record.id), &record, None),
    ];
    if record.verdict == Verdict::Taken {
        then.push(put(keys.drill_turn(&record.id), &turn, Some(lease)));
    }
    let taken = match store.commit(Txn { when, then }).await {
        Ok(outcome) => Ok(matches!(outcome, TxnOutcome::Committed { .. })),
        // It may have been written: then it stands there under our own name.
        Err(StoreError::Unknown(_)) => all(store, target)
            .await
            .map(|now| now.iter().any(|(p, _)| p.id == plan.id && p.last.as_ref() == Some(&turn))),
        Err(error) => Err(error).context("take a turn of the schedule"),
    };
    // What was missed does not begin.
    if record.verdict != Verdict::Taken || !matches!(taken, Ok(true)) {
        store.revoke(lease).await.context("give up the lease of a turn")?;
    }
    Ok(taken?.then_some(Taken { record, lease }))
}

fn put<D: Document>(key: String, document: &D, lease: Option<LeaseId>) -> Operation {
    Operation::Put { key, value: encode(document).into_bytes(), lease }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proto::RequestId;
    use proto::drill::LiveFault;
    use store::MemoryStore;

    use super::super::run::record;
    use super::*;
    use crate::target::StoreArgs;

    fn at(text: &str) -> WallTime {
        WallTime(text.parse::<jiff::Timestamp>().unwrap().as_millisecond())
    }

    fn plan() -> DrillPlan {
        DrillPlan {
            id: RequestId::from_random(1),
            cron: "0 * * * * UTC".into(),
            fault: None,
            window: Duration::from_secs(600),
            by: "ann@north".into(),
            added: at("2026-10-14T00:30:00Z"),
            last: None,
        }
    }

    #[test]
    fn a_turn_is_due_within_its_window_and_missed_ones_are_passed_over_at_once() {
        let due = |now| due(&plan(), at(now)).unwrap();
        assert_eq!(due("2026-10-14T00:59:59Z"), Due::Nothing);
        assert_eq!(due("2026-10-14T01:00:00Z"), Due::Turn(at("2026-10-14T01:00:00Z")));
        assert_eq!(due("2026-10-14T01:10:00Z"), Due::Turn(at("2026-10-14T01:00:00Z")));
        assert_eq!(due("2026-10-14T01:10:01Z"), Due::Missed(1, at("2026-10-14T01:00:00Z")));
        assert_eq!(due("2026-10-15T01:05:00Z"), Due::Missed(24, at("2026-10-15T00:00:00Z")));
    }

    #[tokio::test]
    async fn of_two_that_take_a_turn_one_has_it_and_there_is_one_record() {
        let store = MemoryStore::new();
        let target = Target {
            cluster: "main".parse().unwrap(),
            store: StoreArgs::plain("http://127.0.0.1:1"),
        };
        let key = target.keys().drill_plan(&plan().id);
        let then = vec![put(key, &plan(), None)];
        store.commit(Txn { when: Vec::new(), then }).await.unwrap();
        let (_, revision) = all(&store, &target).await.unwrap().remove(0);
        let take = async |runner: &str| {
            let turn = Turn { due: at("2026-10-14T01:00:00Z"), runner: runner.into() };
            let record =
                DrillRecord { verdict: Verdict::Taken, ..record(LiveFault::Crash.into(), 1) };
            take(&store, &target, (&plan(), revision), turn, record).await.unwrap()
        };
        let first = take("north:1").await.expect("it was the first");
        assert!(take("south:2").await.is_none(), "it was too late");
        let records = store.read(&target.keys().all_drill_records()).await.unwrap();
        assert_eq!(records.entries.len(), 1, "{records:?}");
        let turn = target.keys().drill_turn(&first.record.id);
        let lease = store.read(&turn).await.unwrap().entries[&turn].lease;
        assert_eq!(lease, Some(first.lease), "gone with whoever has it");
    }
}
