//! Random histories, told to etcd and to its twin: every answer, revision and event must be the same.
#![allow(clippy::unwrap_used, reason = "a test may panic, also in its helpers")]

mod common;

use common::etcd::Etcd;
use common::{all_told, next_events};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::time::Duration;
use store::{
    EtcdStore, Guard, LeaseId, MemoryStore, Operation, Snapshot, Store, StoreError, Txn, TxnOutcome,
};

const STEPS: usize = 400;

/// Names leases by the order of their grants, because etcd draws their numbers at random.
struct Side<S> {
    store: S,
    leases: Vec<LeaseId>,
}

impl<S: Store> Side<S> {
    fn lease(&self, nth: Option<usize>) -> Option<LeaseId> {
        nth.map(|nth| self.leases[nth])
    }

    async fn answer(&mut self, step: &Step) -> String {
        match step {
            Step::Grant => {
                // Long enough that none expires: the two clocks differ.
                let (id, granted) = self.store.grant(Duration::from_secs(600)).await.unwrap();
                self.leases.push(id);
                format!("{granted:?}")
            }
            Step::Revoke(nth) => said(self.store.revoke(self.leases[*nth]).await),
            Step::KeepAlive(nth) => said(self.store.keep_alive(self.leases[*nth]).await),
            Step::Commit(draft) => {
                let txn = draft.for_side(self);
                match self.store.commit(txn).await {
                    Ok(TxnOutcome::Committed { revision }) => format!("committed @{revision}"),
                    Ok(TxnOutcome::Conflict) => "conflict".to_owned(),
                    Err(error) => said(Err(error)),
                }
            }
        }
    }

    async fn everything(&self) -> Vec<String> {
        let Snapshot { revision, entries, .. } = self.store.read("").await.unwrap();
        let lines = entries.into_iter().map(|(key, entry)| {
            let lease = entry.lease.map(|id| self.leases.iter().position(|other| *other == id));
            format!(
                "{key} {:?} {} {} {lease:?}",
                entry.value, entry.create_revision, entry.mod_revision
            )
        });
        std::iter::once(format!("@{revision}")).chain(lines).collect()
    }
}

fn said(answer: Result<(), StoreError>) -> String {
    match answer {
        Ok(()) => "done".to_owned(),
        Err(StoreError::LeaseExpired) => "lease expired".to_owned(),
        Err(StoreError::Refused(_)) => "refused".to_owned(),
        Err(error) => panic!("{error}"),
    }
}

#[derive(Debug)]
enum Step {
    Grant,
    Revoke(usize),
    KeepAlive(usize),
    Commit(Draft),
}

/// A transaction before its leases have numbers.
#[derive(Debug)]
struct Draft {
    txn: Txn,
    /// For each operation, whether a put goes under the nth lease.
    leases: Vec<Option<usize>>,
    lease_guard: Option<(String, usize)>,
}

impl Draft {
    fn for_side<S: Store>(&self, side: &Side<S>) -> Txn {
        let mut txn = self.txn.clone();
        for (operation, nth) in txn.then.iter_mut().zip(&self.leases) {
            if let Operation::Put { lease, .. } = operation {
                *lease = side.lease(*nth);
            }
        }
        let guard = self.lease_guard.as_ref();
        txn.when.extend(guard.map(|(key, nth)| Guard::Lease(key.clone(), side.leases[*nth])));
        txn
    }
}

fn random_step(random: &mut StdRng, leases: usize, revision: i64) -> Step {
    match random.random_range(0..30) {
        0 | 1 => Step::Grant,
        2 if leases > 0 => Step::Revoke(random.random_range(0..leases)),
        3 if leases > 0 => Step::KeepAlive(random.random_range(0..leases)),
        _ => Step::Commit(random_draft(random, leases, revision)),
    }
}

fn random_draft(random: &mut StdRng, leases: usize, revision: i64) -> Draft {
    let key = |random: &mut StdRng| format!("k{}", random.random_range(0..6));
    let mut draft = Draft { txn: Txn::default(), leases: Vec::new(), lease_guard: None };
    for _ in 0..random.random_range(0..2) {
        let (key, near) = (key(random), revision - random.random_range(0..6));
        draft.txn.when.push(match random.random_range(0..3) {
            0 => Guard::Absent(key),
            1 => Guard::ModRevision(key, near.max(0)),
            _ => Guard::CreateRevision(key, near.max(0)),
        });
    }
    if leases > 0 && random.random_bool(0.1) {
        draft.lease_guard = Some((key(random), random.random_range(0..leases)));
    }
    for _ in 0..random.random_range(0..4) {
        let key = key(random);
        let value = vec![random.random()];
        // Mostly a lease of late, which is likely to be alive.
        let oldest = leases.saturating_sub(4);
        let under =
            (leases > 0 && random.random_bool(0.4)).then(|| random.random_range(oldest..leases));
        draft.leases.push(under);
        draft.txn.then.push(match random.random_range(0..3) {
            0 => Operation::Delete { key },
            _ => Operation::Put { key, value, lease: None },
        });
    }
    draft
}

async fn same_history(seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    let process = Etcd::start().await;
    let real = EtcdStore::connect(&[process.url()]).await.unwrap();
    let mut etcd = Side { store: real, leases: Vec::new() };
    let mut twin = Side { store: MemoryStore::new(), leases: Vec::new() };
    for number in 0..STEPS {
        let revision = twin.store.read("").await.unwrap().revision;
        let step = random_step(&mut random, twin.leases.len(), revision);
        let (told, expected) = (etcd.answer(&step).await, twin.answer(&step).await);
        assert_eq!(told, expected, "seed {seed}, step {number}: {step:?}");
        assert_eq!(etcd.everything().await, twin.everything().await, "seed {seed}, after {step:?}");
    }
    let events = twin.store.with_core(|core| core.events_since("", 1)).unwrap().concat();
    assert!(events.len() > STEPS / 3, "only {} events", events.len());
    let mut watch = etcd.store.watch("", 1).await.unwrap();
    let told = next_events(&mut watch, events.len()).await;
    assert_eq!(all_told(&told), all_told(&events), "seed {seed}");
}

#[tokio::test]
async fn random_histories_are_the_same_in_etcd_and_its_twin() {
    for seed in [1, 2, 3] {
        same_history(seed).await;
    }
}
