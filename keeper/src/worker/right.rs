//! Taking the right to run as primary: the key `primary`, in a transaction that rests on the state as read.

use std::time::Duration;

use anyhow::{Context, bail};
use proto::document::{decode, encode};
use proto::{ClusterState, Epoch, PrimaryKey};
use store::{Guard, Operation, Txn, TxnOutcome};
use tokio::time::sleep;

use super::Worker;

/// A conflict means that the state moved on: it is read again at once, and a few times are plenty.
const ATTEMPTS: u32 = 5;

/// Takes `primary` for `epoch`. Fails if the state does not name this member for it, or is sealing.
pub async fn take(worker: &Worker, epoch: Epoch, restart: u64) -> anyhow::Result<()> {
    for _ in 0..ATTEMPTS {
        let Some(lease) = *worker.lease.borrow() else {
            bail!("this keeper has no lease, so it cannot take the right to run as primary");
        };
        let snapshot = worker.store.read(worker.keys.prefix()).await.context("read the state")?;
        let entry = snapshot.entries.get(&worker.keys.state()).context("there is no state")?;
        let state: ClusterState = decode(&entry.value)?;
        check(worker, &state, epoch, restart)?;
        let key = worker.keys.primary();
        let held = match snapshot.entries.get(&key) {
            None => Guard::Absent(key.clone()),
            Some(held) => {
                let holder: PrimaryKey = decode(&held.value)?;
                if holder.epoch >= epoch && holder.member != worker.place.member {
                    bail!("{} holds the right of epoch {}", holder.member, holder.epoch);
                }
                Guard::ModRevision(key.clone(), held.mod_revision)
            }
        };
        let incarnation = worker.files().incarnation;
        let value = PrimaryKey { member: worker.place.member.clone(), epoch, incarnation };
        let txn = Txn {
            when: vec![Guard::ModRevision(worker.keys.state(), entry.mod_revision), held],
            then: vec![Operation::Put {
                key,
                value: encode(&value).into_bytes(),
                lease: Some(lease.id),
            }],
        };
        match worker.store.commit(txn).await {
            Ok(TxnOutcome::Committed { .. }) => {
                worker.update(|local| local.right = Some((epoch, lease.id)));
                return Ok(());
            }
            // Read again: the state may have moved on for a harmless reason, or the outcome is unknown.
            Ok(TxnOutcome::Conflict) => {}
            Err(error) => {
                tracing::warn!(%error, "take the right to run as primary");
                sleep(Duration::from_millis(50)).await;
            }
        }
    }
    bail!("the right to run as primary could not be taken, the state kept changing")
}

fn check(worker: &Worker, state: &ClusterState, epoch: Epoch, restart: u64) -> anyhow::Result<()> {
    let ordered = state.restart.as_ref().filter(|r| r.epoch == epoch).map_or(0, |r| r.number);
    if state.epoch != epoch || state.primary.as_ref() != Some(&worker.place.member) {
        bail!("the state names {:?} as primary of epoch {}", state.primary, state.epoch);
    }
    if let Some(sealing) = state.sealing {
        bail!("epoch {sealing} is being sealed");
    }
    if ordered != restart {
        bail!("restart {ordered} was ordered, not {restart}");
    }
    Ok(())
}
