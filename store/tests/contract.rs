//! The contract of `Store`: every case runs against the in-memory twin, a real etcd, and one that asks for TLS, client
//! certificates and a user.
#![allow(clippy::unwrap_used, reason = "a test may panic, also in its helpers")]

mod common;
#[path = "contract/election.rs"]
mod election;

use std::time::Duration;

use common::{
    World, all_told, assert_conflict, closing, committed, delete, next_batch, next_events, put,
    put_under, txn,
};
use election::*;
use store::{Guard, LeaseId, StoreError, WatchEvent};

/// Makes three tests of each case.
macro_rules! contract {
    ($($case:ident)*) => {
        mod memory {
            $(#[tokio::test] async fn $case() { super::$case(super::World::memory().await).await; })*
        }
        mod etcd {
            $(#[tokio::test] async fn $case() { super::$case(super::World::etcd().await).await; })*
        }
        mod secured {
            $(#[tokio::test] async fn $case() { super::$case(super::World::secured().await).await; })*
        }
    };
}

contract! {
    a_read_sees_the_own_write_with_its_revisions
    a_read_holds_its_prefix_and_nothing_else
    an_absent_guard_holds_until_the_key_exists
    a_mod_revision_guard_holds_until_the_key_changes
    a_create_revision_guard_survives_changes_but_not_a_new_key_of_the_same_name
    a_lease_guard_holds_while_that_lease_holds_the_key
    guards_on_a_missing_key_compare_with_zero
    one_failed_guard_among_many_is_a_conflict
    a_losing_transaction_changes_nothing
    the_changes_of_a_transaction_share_one_revision
    a_transaction_that_changes_nothing_takes_no_revision
    requests_that_make_no_sense_are_refused
    a_short_lease_is_granted_for_longer
    a_put_under_a_dead_lease_is_lease_expired_and_changes_nothing
    a_lost_race_with_a_dead_lease_is_a_conflict
    a_lease_that_expires_takes_all_its_keys_in_one_revision
    a_lease_kept_alive_outlives_its_time
    renewing_a_lease_that_is_gone_is_lease_expired
    revoking_deletes_the_keys_at_once_and_twice_is_no_error
    a_key_put_again_without_its_lease_outlives_it
    a_watch_delivers_a_transaction_as_one_batch
    a_watch_from_a_past_revision_replays_without_a_gap
    a_watch_from_zero_starts_now
    a_watch_from_a_later_revision_leaves_out_what_comes_before
    a_watch_sees_its_prefix_and_nothing_else
    a_watch_of_compacted_history_closes
    a_deletion_at_the_compacted_revision_is_forgotten
    when_the_leader_stops_renewing_another_leads_and_the_old_guard_conflicts
    a_leader_that_resigns_is_followed_long_before_its_lease_ends
    a_dropped_leadership_lapses
    a_candidate_that_left_its_key_behind_leads_again_long_before_it_lapses
    a_leader_whose_key_is_deleted_or_overwritten_has_lost
    a_leader_that_rewrites_its_key_under_its_lease_leads_on
    a_leader_whose_lease_is_revoked_has_lost
    every_candidate_leads_in_its_turn_and_never_two_at_once
}

async fn a_read_sees_the_own_write_with_its_revisions(world: World) {
    let created = world.put("a/x", "1").await;
    let changed = world.put("a/x", "2").await;
    let snapshot = world.store.read("a/").await.unwrap();
    let entry = &snapshot.entries["a/x"];
    assert_eq!(entry.value, b"2");
    assert_eq!((entry.create_revision, entry.mod_revision), (created, changed));
    assert_eq!((created, changed, snapshot.revision), (2, 3, 3));
    assert_eq!(entry.lease, None);
    assert!(u64::from_str_radix(&snapshot.cluster_id, 16).unwrap() > 0);
}

async fn a_read_holds_its_prefix_and_nothing_else(world: World) {
    for key in ["a", "a/1", "a/2", "a0", "b/1"] {
        world.put(key, "").await;
    }
    let keys = |snapshot: store::Snapshot| snapshot.entries.into_keys().collect::<Vec<_>>();
    assert_eq!(keys(world.store.read("a/").await.unwrap()), ["a/1", "a/2"]);
    assert_eq!(keys(world.store.read("").await.unwrap()).len(), 5);
    let nothing = world.store.read("c/").await.unwrap();
    assert_eq!(nothing.revision, world.revision().await);
    assert!(nothing.entries.is_empty());
}

async fn an_absent_guard_holds_until_the_key_exists(world: World) {
    let take = || txn([Guard::Absent("k".into())], [put("k", "mine")]);
    committed(world.store.commit(take()).await);
    assert_conflict(world.store.commit(take()).await);
    committed(world.store.commit(txn([], [delete("k")])).await);
    committed(world.store.commit(take()).await);
}

async fn a_mod_revision_guard_holds_until_the_key_changes(world: World) {
    let seen = world.put("k", "1").await;
    let swap = |value| txn([Guard::ModRevision("k".into(), seen)], [put("k", value)]);
    committed(world.store.commit(swap("2")).await);
    assert_conflict(world.store.commit(swap("3")).await);
    assert_eq!(world.store.read("k").await.unwrap().entries["k"].value, b"2");
}

async fn a_create_revision_guard_survives_changes_but_not_a_new_key_of_the_same_name(world: World) {
    let created = world.put("leader", "a").await;
    let guarded = || txn([Guard::CreateRevision("leader".into(), created)], [put("state", "")]);
    world.put("leader", "still a").await;
    committed(world.store.commit(guarded()).await);
    committed(world.store.commit(txn([], [delete("leader")])).await);
    assert_conflict(world.store.commit(guarded()).await);
    world.put("leader", "a").await;
    assert_conflict(world.store.commit(guarded()).await);
}

async fn a_lease_guard_holds_while_that_lease_holds_the_key(world: World) {
    let (ours, other) = (world.lease().await, world.lease().await);
    committed(world.store.commit(txn([], [put_under(ours, "k", "")])).await);
    let guarded = |lease| txn([Guard::Lease("k".into(), lease)], [put("seen", "")]);
    committed(world.store.commit(guarded(ours)).await);
    assert_conflict(world.store.commit(guarded(other)).await);
    committed(world.store.commit(txn([], [put_under(other, "k", "")])).await);
    assert_conflict(world.store.commit(guarded(ours)).await);
    committed(world.store.commit(guarded(other)).await);
}

async fn guards_on_a_missing_key_compare_with_zero(world: World) {
    let key = || "nowhere".to_owned();
    for guard in [
        Guard::ModRevision(key(), 0),
        Guard::CreateRevision(key(), 0),
        Guard::Lease(key(), LeaseId(0)),
    ] {
        committed(world.store.commit(txn([guard], [])).await);
    }
    for guard in [
        Guard::ModRevision(key(), 1),
        Guard::CreateRevision(key(), 1),
        Guard::Lease(key(), LeaseId(1)),
    ] {
        assert_conflict(world.store.commit(txn([guard], [])).await);
    }
}

async fn one_failed_guard_among_many_is_a_conflict(world: World) {
    let seen = world.put("k", "").await;
    let good = || [Guard::ModRevision("k".into(), seen), Guard::Absent("other".into())];
    let bad = Guard::Absent("k".into());
    assert_conflict(world.store.commit(txn(good().into_iter().chain([bad]), [delete("k")])).await);
    committed(world.store.commit(txn(good(), [delete("k")])).await);
}

async fn a_losing_transaction_changes_nothing(world: World) {
    world.put("k", "1").await;
    let before = world.store.read("").await.unwrap();
    let losing =
        txn([Guard::Absent("k".into())], [put("k", "2"), put("history/1", ""), delete("k2")]);
    assert_conflict(world.store.commit(losing).await);
    assert_eq!(world.store.read("").await.unwrap(), before);
}

async fn the_changes_of_a_transaction_share_one_revision(world: World) {
    world.put("old", "").await;
    let before = world.revision().await;
    let revision =
        committed(world.store.commit(txn([], [put("a", "1"), delete("old"), put("b", "2")])).await);
    let after = world.store.read("").await.unwrap();
    assert_eq!((revision, after.revision), (before + 1, before + 1));
    assert_eq!(after.entries["a"].mod_revision, revision);
    assert_eq!(after.entries["b"].create_revision, revision);
    assert!(!after.entries.contains_key("old"));
}

async fn a_transaction_that_changes_nothing_takes_no_revision(world: World) {
    let before = world.put("k", "").await;
    assert_eq!(committed(world.store.commit(txn([], [delete("nowhere")])).await), before);
    let looking = txn([Guard::ModRevision("k".into(), before)], []);
    assert_eq!(committed(world.store.commit(looking).await), before);
    assert_eq!(world.revision().await, before);
}

async fn requests_that_make_no_sense_are_refused(world: World) {
    let many = |count: usize| (0..count).map(|n| put(&format!("k{n}"), ""));
    let refused = [
        txn([], [put("k", "1"), put("k", "2")]),
        txn([], [put("k", "1"), delete("k")]),
        txn([], [put("", "1")]),
        txn([Guard::Absent(String::new())], [put("k", "1")]),
        txn([], many(129)),
    ];
    for request in refused {
        let outcome = world.store.commit(request).await;
        assert!(matches!(outcome, Err(StoreError::Refused(_))), "{outcome:?}");
    }
    assert_eq!(world.revision().await, 1);
    committed(world.store.commit(txn([], many(128))).await);
    committed(world.store.commit(txn([], [delete("k1"), delete("k1")])).await);
}

async fn a_short_lease_is_granted_for_longer(world: World) {
    let asked = [(100, 2), (1000, 2), (2000, 2), (2001, 3), (4000, 4)];
    for (milliseconds, granted_seconds) in asked {
        let (_, granted) = world.store.grant(Duration::from_millis(milliseconds)).await.unwrap();
        assert_eq!(granted, Duration::from_secs(granted_seconds), "{milliseconds} ms");
    }
}

async fn a_put_under_a_dead_lease_is_lease_expired_and_changes_nothing(world: World) {
    let dead = world.lease().await;
    world.store.revoke(dead).await.unwrap();
    let before = world.store.read("").await.unwrap();
    let outcome = world.store.commit(txn([], [put("a", ""), put_under(dead, "b", "")])).await;
    assert!(matches!(outcome, Err(StoreError::LeaseExpired)), "{outcome:?}");
    assert_eq!(world.store.read("").await.unwrap(), before);
}

async fn a_lost_race_with_a_dead_lease_is_a_conflict(world: World) {
    world.put("k", "theirs").await;
    let dead = world.lease().await;
    world.store.revoke(dead).await.unwrap();
    let take = txn([Guard::Absent("k".into())], [put_under(dead, "k", "mine")]);
    assert_conflict(world.store.commit(take).await);
}

async fn a_lease_that_expires_takes_all_its_keys_in_one_revision(world: World) {
    let (lease, granted) = world.store.grant(Duration::from_secs(2)).await.unwrap();
    let keys = [put_under(lease, "m/b", ""), put("m/stays", ""), put_under(lease, "m/a", "")];
    let written = committed(world.store.commit(txn([], keys)).await);
    let mut watch = world.store.watch("m/", written + 1).await.unwrap();
    world.pass(granted).await;
    let expired = written + 1;
    let told = [format!("delete m/a @{expired}"), format!("delete m/b @{expired}")];
    assert_eq!(all_told(&next_batch(&mut watch).await), told);
    let after = world.store.read("m/").await.unwrap();
    assert_eq!(after.entries.into_keys().collect::<Vec<_>>(), ["m/stays"]);
    assert_eq!(after.revision, expired);
    let renewed = world.store.keep_alive(lease).await;
    assert!(matches!(renewed, Err(StoreError::LeaseExpired)), "{renewed:?}");
}

async fn a_lease_kept_alive_outlives_its_time(world: World) {
    let (kept, granted) = world.store.grant(Duration::from_secs(2)).await.unwrap();
    let left_alone = world.lease().await;
    let keys = [put_under(kept, "kept", ""), put_under(left_alone, "left", "")];
    let written = committed(world.store.commit(txn([], keys)).await);
    let mut watch = world.store.watch("", written + 1).await.unwrap();
    // Twice the lease's time and more, in steps well below it.
    for _ in 0..10 {
        world.store.keep_alive(kept).await.unwrap();
        world.pass(granted / 4).await;
    }
    world.store.keep_alive(kept).await.unwrap();
    assert_eq!(all_told(&next_batch(&mut watch).await), [format!("delete left @{}", written + 1)]);
    let entry = world.store.read("kept").await.unwrap().entries["kept"].clone();
    assert_eq!((entry.lease, entry.mod_revision), (Some(kept), written));
}

async fn renewing_a_lease_that_is_gone_is_lease_expired(world: World) {
    let lease = world.lease().await;
    world.store.keep_alive(lease).await.unwrap();
    world.store.revoke(lease).await.unwrap();
    for gone in [lease, LeaseId(4711)] {
        let renewed = world.store.keep_alive(gone).await;
        assert!(matches!(renewed, Err(StoreError::LeaseExpired)), "{renewed:?}");
    }
}

async fn revoking_deletes_the_keys_at_once_and_twice_is_no_error(world: World) {
    let lease = world.lease().await;
    let written = committed(world.store.commit(txn([], [put_under(lease, "k", "")])).await);
    world.store.revoke(lease).await.unwrap();
    let after = world.store.read("").await.unwrap();
    assert!(after.entries.is_empty());
    assert_eq!(after.revision, written + 1);
    world.store.revoke(lease).await.unwrap();
    world.store.revoke(LeaseId(4711)).await.unwrap();
    assert_eq!(world.revision().await, written + 1);
}

async fn a_key_put_again_without_its_lease_outlives_it(world: World) {
    let lease = world.lease().await;
    committed(world.store.commit(txn([], [put_under(lease, "k", "1")])).await);
    let again = world.put("k", "2").await;
    world.store.revoke(lease).await.unwrap();
    let after = world.store.read("k").await.unwrap();
    assert_eq!(after.entries["k"].lease, None);
    assert_eq!(after.revision, again);
}

async fn a_watch_delivers_a_transaction_as_one_batch(world: World) {
    world.put("old", "").await;
    let lease = world.lease().await;
    let mut watch = world.store.watch("", world.revision().await + 1).await.unwrap();
    let changes = [put_under(lease, "a", "1"), delete("old"), put("b", "2"), delete("nowhere")];
    let revision = committed(world.store.commit(txn([], changes)).await);
    let batch = next_batch(&mut watch).await;
    let told = [
        format!("put a=1 @{revision}"),
        format!("delete old @{revision}"),
        format!("put b=2 @{revision}"),
    ];
    assert_eq!(all_told(&batch), told);
    let WatchEvent::Put { entry, .. } = &batch[0] else { panic!("{batch:?}") };
    assert_eq!(*entry, world.store.read("a").await.unwrap().entries["a"]);
}

async fn a_watch_from_a_past_revision_replays_without_a_gap(world: World) {
    let first = world.put("k", "1").await;
    for value in 2..=50 {
        world.put("k", &value.to_string()).await;
    }
    let mut watch = world.store.watch("k", first).await.unwrap();
    for value in 51..=100 {
        world.put("k", &value.to_string()).await;
    }
    let told: Vec<String> =
        (1..=100).map(|value| format!("put k={value} @{}", first + value - 1)).collect();
    assert_eq!(all_told(&next_events(&mut watch, 100).await), told);
}

async fn a_watch_from_zero_starts_now(world: World) {
    world.put("k", "before").await;
    let mut watch = world.store.watch("k", 0).await.unwrap();
    let revision = world.put("k", "after").await;
    assert_eq!(all_told(&next_batch(&mut watch).await), [format!("put k=after @{revision}")]);
}

async fn a_watch_from_a_later_revision_leaves_out_what_comes_before(world: World) {
    let now = world.put("k", "1").await;
    let mut watch = world.store.watch("k", now + 2).await.unwrap();
    world.put("k", "2").await;
    world.put("k", "3").await;
    assert_eq!(all_told(&next_batch(&mut watch).await), [format!("put k=3 @{}", now + 2)]);
}

async fn a_watch_sees_its_prefix_and_nothing_else(world: World) {
    let mut watch = world.store.watch("a/", 1).await.unwrap();
    let ops = [put("a", ""), put("a/1", ""), put("a0", ""), put("b/1", "")];
    let first = committed(world.store.commit(txn([], ops)).await);
    world.put("b/1", "again").await;
    let last = world.put("a/2", "").await;
    let told = [format!("put a/1= @{first}"), format!("put a/2= @{last}")];
    assert_eq!(all_told(&next_events(&mut watch, 2).await), told);
}

async fn a_watch_of_compacted_history_closes(world: World) {
    for value in ["1", "2", "3", "4"] {
        world.put("k", value).await;
    }
    let now = world.revision().await;
    let mut kept = world.store.watch("k", now + 1).await.unwrap();
    world.compact(now).await;
    let mut gone = world.store.watch("k", now - 1).await.unwrap();
    closing(&mut gone).await;
    let mut oldest = world.store.watch("k", now).await.unwrap();
    assert_eq!(all_told(&next_batch(&mut oldest).await), [format!("put k=4 @{now}")]);
    let next = world.put("k", "5").await;
    assert_eq!(all_told(&next_batch(&mut kept).await), [format!("put k=5 @{next}")]);
}

async fn a_deletion_at_the_compacted_revision_is_forgotten(world: World) {
    world.put("k", "1").await;
    let deleted = committed(world.store.commit(txn([], [delete("k")])).await);
    world.compact(deleted).await;
    let mut watch = world.store.watch("k", deleted).await.unwrap();
    let next = world.put("k", "2").await;
    assert_eq!(all_told(&next_batch(&mut watch).await), [format!("put k=2 @{next}")]);
}
