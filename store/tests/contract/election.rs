//! The contract's cases on elections: leading is exclusive by its guard, and losing is told early.

use std::sync::Arc;
use std::time::Duration;

use store::{Election, Guard, Leadership, Store, clock};

use crate::common::lossy::LossyStore;
use crate::common::{
    PATIENCE, World, assert_conflict, committed, delete, put, put_under, txn, within,
};

const KEY: &str = "c/leader";
const TTL: Duration = Duration::from_secs(2);

fn candidate(store: &Arc<dyn Store>, name: &str) -> Election {
    Election::new(Arc::clone(store), KEY.to_owned(), name.into(), TTL)
}

async fn leading(election: &Election) -> Leadership {
    within("leadership", election.campaign()).await
}

async fn lost(leadership: &Leadership) {
    within("the leadership to be lost", leadership.lost.cancelled()).await;
}

async fn holder(world: &World) -> Option<String> {
    let snapshot = world.store.read(KEY).await.unwrap();
    Some(String::from_utf8(snapshot.entries.get(KEY)?.value.clone()).unwrap())
}

async fn write_as(world: &World, guard: &Guard, value: &str) -> store::TxnOutcome {
    world.store.commit(txn([guard.clone()], [put("c/state", value)])).await.unwrap()
}

pub async fn when_the_leader_stops_renewing_another_leads_and_the_old_guard_conflicts(
    world: World,
) {
    let _clock = world.run_clock();
    let lossy = Arc::new(LossyStore::over(Arc::clone(&world.store)));
    let to_fail: Arc<dyn Store> = lossy.clone();
    let first = leading(&candidate(&to_fail, "first")).await;
    let second = candidate(&world.store, "second");
    let second = tokio::spawn(async move { second.campaign().await });

    // Longer than the lease: without renewals in the background the second would lead by now.
    tokio::time::sleep(TTL * 3 / 2).await;
    assert!(!second.is_finished() && !first.lost.is_cancelled());
    assert!(first.expires() > clock::now());
    assert_eq!(holder(&world).await.as_deref(), Some("first"));
    let outcome = write_as(&world, &first.guard, "by the first").await;
    assert!(matches!(outcome, store::TxnOutcome::Committed { .. }));

    lossy.lose_everything();
    let second = within("the second to lead", second).await.unwrap();
    assert!(first.lost.is_cancelled(), "the old leader learns of its end before a new one leads");
    assert!(first.expires() <= clock::now());
    assert_eq!(holder(&world).await.as_deref(), Some("second"));
    assert_eq!(write_as(&world, &first.guard, "too late").await, store::TxnOutcome::Conflict);
    let overwrite = txn([first.guard.clone()], [put_under(second.lease, KEY, "first")]);
    assert_conflict(world.store.commit(overwrite).await);
    let outcome = write_as(&world, &second.guard, "by the second").await;
    assert!(matches!(outcome, store::TxnOutcome::Committed { .. }));
}

pub async fn a_leader_that_resigns_is_followed_long_before_its_lease_ends(world: World) {
    let first = leading(&candidate(&world.store, "first")).await;
    let guard = first.guard.clone();
    let told = first.lost.clone();
    let second = candidate(&world.store, "second");
    let second = tokio::spawn(async move { second.campaign().await });
    let end_of_lease = first.expires();
    first.resign().await;
    let second = within("the second to lead", second).await.unwrap();
    assert!(clock::now() < end_of_lease);
    assert!(told.is_cancelled());
    assert_eq!(write_as(&world, &guard, "too late").await, store::TxnOutcome::Conflict);
    assert_eq!(holder(&world).await.as_deref(), Some("second"));
    second.resign().await;
    assert_eq!(holder(&world).await, None);
}

pub async fn a_dropped_leadership_lapses(world: World) {
    let _clock = world.run_clock();
    let first = leading(&candidate(&world.store, "first")).await;
    let told = first.lost.clone();
    drop(first);
    assert!(told.is_cancelled());
    leading(&candidate(&world.store, "second")).await;
    assert_eq!(holder(&world).await.as_deref(), Some("second"));
}

pub async fn a_candidate_that_left_its_key_behind_leads_again_long_before_it_lapses(world: World) {
    let election = candidate(&world.store, "first");
    let first = leading(&election).await;
    let (guard, end_of_lease) = (first.guard.clone(), first.expires());
    // As when the store is away: nobody frees the key.
    drop(first);
    assert_eq!(holder(&world).await.as_deref(), Some("first"));
    let again = leading(&election).await;
    assert!(clock::now() < end_of_lease);
    assert_eq!(write_as(&world, &guard, "too late").await, store::TxnOutcome::Conflict);
    again.resign().await;
}

pub async fn a_leader_whose_key_is_deleted_or_overwritten_has_lost(world: World) {
    for intrusion in [delete(KEY), put(KEY, "an operator")] {
        let leader = leading(&candidate(&world.store, "a")).await;
        let started = clock::now();
        committed(world.store.commit(txn([], [intrusion])).await);
        lost(&leader).await;
        assert!(clock::now().since(started) < TTL, "told by the key, not by the lease");
        committed(world.store.commit(txn([], [delete(KEY)])).await);
        world.store.revoke(leader.lease).await.unwrap();
    }
}

pub async fn a_leader_that_rewrites_its_key_under_its_lease_leads_on(world: World) {
    let _clock = world.run_clock();
    let leader = leading(&candidate(&world.store, "a")).await;
    let rewrite = txn([leader.guard.clone()], [put_under(leader.lease, KEY, "a, again")]);
    committed(world.store.commit(rewrite).await);
    tokio::time::sleep(TTL / 2).await;
    assert!(!leader.lost.is_cancelled());
    let outcome = write_as(&world, &leader.guard, "still here").await;
    assert!(matches!(outcome, store::TxnOutcome::Committed { .. }));
}

pub async fn a_leader_whose_lease_is_revoked_has_lost(world: World) {
    let leader = leading(&candidate(&world.store, "a")).await;
    world.store.revoke(leader.lease).await.unwrap();
    lost(&leader).await;
    assert_eq!(write_as(&world, &leader.guard, "too late").await, store::TxnOutcome::Conflict);
}

pub async fn every_candidate_leads_in_its_turn_and_never_two_at_once(world: World) {
    let mut candidates = tokio::task::JoinSet::new();
    for name in ["a", "b", "c", "d", "e"] {
        let election = candidate(&world.store, name);
        let store = Arc::clone(&world.store);
        candidates.spawn(async move {
            let leader = election.campaign().await;
            let alone =
                txn([leader.guard.clone(), Guard::Absent("c/busy".into())], [put("c/busy", name)]);
            committed(store.commit(alone).await);
            let done = [delete("c/busy"), put(&format!("c/done/{name}"), "")];
            committed(store.commit(txn([leader.guard.clone()], done)).await);
            leader.resign().await;
        });
    }
    tokio::time::timeout(PATIENCE, candidates.join_all()).await.expect("all candidates lead");
    assert_eq!(world.store.read("c/done/").await.unwrap().entries.len(), 5);
}
