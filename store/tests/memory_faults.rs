//! The twin's injected faults, and elections under them.
#![allow(clippy::unwrap_used, reason = "a test may panic, also in its helpers")]

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::{closing, committed, delete, next_batch, put, put_under, txn, within};
use store::memory::CommitFault;
use store::{Election, Guard, Leadership, MemoryCore, MemoryStore, Store, StoreError, TxnOutcome};

const KEY: &str = "c/leader";

fn candidate(store: &MemoryStore, name: &str) -> Election {
    Election::new(Arc::new(store.clone()), KEY.into(), name.into(), Duration::from_secs(2))
}

async fn leading(election: Election) -> Leadership {
    within("leadership", election.campaign()).await
}

async fn writes(store: &MemoryStore, leader: &Leadership) -> TxnOutcome {
    store.commit(txn([leader.guard.clone()], [put("c/state", "")])).await.unwrap()
}

#[tokio::test]
async fn each_commit_fault_hits_once_and_applies_what_it_says() {
    let store = MemoryStore::new();
    for (fault, applied, unknown) in [
        (CommitFault::NotSent, false, false),
        (CommitFault::RequestLost, false, true),
        (CommitFault::AnswerLost, true, true),
    ] {
        store.fail_next_commit(fault);
        let before = store.read("").await.unwrap().revision;
        let error = store.commit(txn([], [put("k", "")])).await.unwrap_err();
        assert_eq!(matches!(error, StoreError::Unknown(_)), unknown, "{fault:?}: {error}");
        let after = store.read("").await.unwrap().revision;
        assert_eq!(after, before + i64::from(applied), "{fault:?}");
        committed(store.commit(txn([], [put("k", "")])).await);
    }
}

#[tokio::test]
async fn unavailable_reads_fail_until_they_are_available_again() {
    let store = MemoryStore::new();
    store.make_reads_unavailable();
    assert!(matches!(store.read("").await, Err(StoreError::Unavailable(_))));
    store.make_reads_available();
    store.read("").await.unwrap();
}

#[tokio::test]
async fn cancelled_watches_close_and_new_ones_run() {
    let store = MemoryStore::new();
    let mut old = store.watch("", 0).await.unwrap();
    store.cancel_watches();
    closing(&mut old).await;
    let mut new = store.watch("", 0).await.unwrap();
    committed(store.commit(txn([], [put("k", "")])).await);
    assert_eq!(next_batch(&mut new).await.len(), 1);
}

#[tokio::test]
async fn a_watch_whose_reader_is_too_slow_closes_instead_of_leaving_a_gap() {
    let store = MemoryStore::new();
    let mut watch = store.watch("", 0).await.unwrap();
    for _ in 0..5000 {
        committed(store.commit(txn([], [put("k", "")])).await);
    }
    let mut expected = 2;
    while let Some(batch) = within("the next batch or the end", watch.events.recv()).await {
        let store::WatchEvent::Put { entry, .. } = &batch[0] else { panic!("{batch:?}") };
        assert_eq!(entry.mod_revision, expected);
        expected += 1;
    }
    assert!(expected > 100, "{expected}");
}

#[tokio::test]
async fn a_candidate_whose_winning_answer_is_lost_reads_again_and_leads() {
    let store = MemoryStore::new();
    store.fail_next_commit(CommitFault::AnswerLost);
    let leader = leading(candidate(&store, "a")).await;
    assert!(matches!(writes(&store, &leader).await, TxnOutcome::Committed { .. }));
    let entry = store.read(KEY).await.unwrap().entries[KEY].clone();
    assert_eq!(leader.guard, Guard::CreateRevision(KEY.into(), entry.create_revision));
    assert_eq!(entry.lease, Some(leader.lease));
    assert_eq!(entry.create_revision, 2, "it gave away what it had won");
}

#[tokio::test]
async fn a_candidate_whose_request_is_lost_tries_again_and_leads() {
    for fault in [CommitFault::NotSent, CommitFault::RequestLost] {
        let store = MemoryStore::new();
        store.fail_next_commit(fault);
        let leader = leading(candidate(&store, "a")).await;
        assert!(matches!(writes(&store, &leader).await, TxnOutcome::Committed { .. }));
    }
}

#[tokio::test]
async fn a_candidate_waits_while_the_store_cannot_be_read() {
    let store = MemoryStore::new();
    store.make_reads_unavailable();
    let mut campaign = tokio::spawn(leading(candidate(&store, "a")));
    let early = tokio::time::timeout(Duration::from_millis(250), &mut campaign).await;
    assert!(early.is_err(), "it led without reading");
    store.make_reads_available();
    within("leadership", campaign).await.unwrap();
}

#[tokio::test]
async fn cancelled_watches_delay_nobody_for_long() {
    let store = MemoryStore::new();
    let first = leading(candidate(&store, "first")).await;
    let second = tokio::spawn(leading(candidate(&store, "second")));
    for _ in 0..3 {
        store.cancel_watches();
        tokio::task::yield_now().await;
    }
    committed(store.commit(txn([], [delete(KEY)])).await);
    within("the first to learn that its key is gone", first.lost.cancelled()).await;
    let second = within("the second to lead", second).await.unwrap();
    assert!(matches!(writes(&store, &second).await, TxnOutcome::Committed { .. }));
    assert_eq!(writes(&store, &first).await, TxnOutcome::Conflict);
}

#[test]
fn the_core_works_without_tokio_and_a_clone_is_a_backup() {
    let mut core = MemoryCore::new();
    let (lease, granted) = core.grant(Duration::from_secs(4));
    let (later, _) = core.grant(Duration::from_secs(5));
    core.commit(txn([], [put_under(lease, "a", ""), put_under(later, "b", "")])).unwrap();
    let mut restored = core.clone();

    assert_eq!(core.next_expiry(), Some(core.now() + granted));
    core.advance(Duration::from_secs(60));
    let told = core.events_since("", 3).unwrap();
    assert_eq!(told.len(), 2, "each lease ends in a revision of its own: {told:?}");
    assert_eq!(told[0][0].key(), "a");
    assert!(core.read("").entries.is_empty() && core.next_expiry().is_none());

    assert_eq!(restored.read("").entries.len(), 2);
    restored.keep_alive(lease).unwrap();
}
