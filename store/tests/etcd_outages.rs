//! What `EtcdStore` does when endpoints are dead, hang, freeze, restart or are full.
#![allow(clippy::unwrap_used, reason = "a test may panic, also in its helpers")]

mod common;

use std::future::Future;
use std::time::Duration;

use common::etcd::{Etcd, nobody};
use common::wire::Wire;
use common::{closing, committed, next_batch, put, put_under, told, txn, within};
use proto::Moment;
use store::{EtcdStore, LeaseId, Store, StoreError, clock};

/// The deadline of a call is 2 s; the rest is for a busy machine.
const CALL_BOUND: Duration = Duration::from_secs(4);

/// etcd is silent for 3 s at most; the rest is for a busy machine.
const WATCH_BOUND: Duration = Duration::from_secs(8);

fn elapsed(since: Moment) -> Duration {
    clock::now().since(since)
}

fn dead_url() -> String {
    format!("http://{}", nobody())
}

async fn connect(urls: &[String]) -> EtcdStore {
    EtcdStore::connect(urls).await.expect("connect")
}

/// Tries until it works; a store that does not come back by itself ends the test.
async fn until_ok<T, F: Future<Output = Result<T, StoreError>>>(
    what: &str,
    call: impl Fn() -> F,
) -> T {
    within(what, async {
        loop {
            match call().await {
                Ok(value) => return value,
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    })
    .await
}

#[tokio::test]
async fn connecting_to_nobody_fails_within_5_s_and_names_every_endpoint_and_the_remedy() {
    let hanging = Wire::to(nobody()).await;
    hanging.hang();
    let urls = [dead_url(), hanging.url()];
    let started = clock::now();
    let Err(StoreError::Unavailable(why)) = EtcdStore::connect(&urls).await else {
        panic!("connected to nobody");
    };
    assert!(elapsed(started) < Duration::from_secs(5), "{:?}", elapsed(started));
    for part in [urls[0].as_str(), urls[1].as_str(), "refused", "check that etcd runs", "--etcd"] {
        assert!(why.contains(part), "{part} is not in: {why}");
    }
}

#[tokio::test]
async fn what_is_not_an_endpoint_is_refused_at_once() {
    for urls in [vec![], vec!["127.0.0.1:2379"], vec!["https://a:1"], vec!["http://a b"]] {
        let urls: Vec<String> = urls.into_iter().map(str::to_owned).collect();
        let outcome = EtcdStore::connect(&urls).await.err();
        assert!(matches!(outcome, Some(StoreError::Refused(_))), "{urls:?}: {outcome:?}");
    }
}

#[tokio::test]
async fn dead_endpoints_in_the_list_harm_nothing() {
    let etcd = Etcd::start().await;
    let hanging = Wire::to(etcd.address()).await;
    hanging.hang();
    let store = connect(&[dead_url(), hanging.url(), etcd.url(), dead_url()]).await;
    let (lease, _) = store.grant(Duration::from_secs(60)).await.unwrap();
    let mut watch = store.watch("k", 0).await.unwrap();
    for _ in 0..20 {
        committed(store.commit(txn([], [put_under(lease, "k", "")])).await);
        assert_eq!(next_batch(&mut watch).await.len(), 1);
        store.keep_alive(lease).await.unwrap();
        assert_eq!(store.read("k").await.unwrap().entries.len(), 1);
    }
}

#[tokio::test]
async fn when_the_endpoint_in_use_refuses_every_call_goes_to_another_without_an_error() {
    let etcd = Etcd::start().await;
    let wires = [Wire::to(etcd.address()).await, Wire::to(etcd.address()).await];
    wires[1].cut();
    let store = connect(&[wires[0].url(), wires[1].url()]).await;
    let (lease, _) = store.grant(Duration::from_secs(60)).await.unwrap();
    store.keep_alive(lease).await.unwrap();
    let mut watch = store.watch("", 0).await.unwrap();
    for (cut, mended) in [(0, 1), (1, 0), (0, 1)] {
        wires[mended].mend();
        wires[cut].cut();
        within("the watch to close", async { while watch.events.recv().await.is_some() {} }).await;
        store.read("").await.unwrap();
        store.keep_alive(lease).await.unwrap();
        committed(store.commit(txn([], [put("k", "")])).await);
        watch = store.watch("", 0).await.unwrap();
    }
}

#[tokio::test]
async fn a_commit_into_a_hanging_endpoint_is_unknown_and_the_next_one_takes_another() {
    let etcd = Etcd::start().await;
    let wires = [Wire::to(etcd.address()).await, Wire::to(etcd.address()).await];
    wires[1].cut();
    let store = connect(&[wires[0].url(), wires[1].url()]).await;
    committed(store.commit(txn([], [put("k", "1")])).await);
    wires[1].mend();
    wires[0].hang();
    let started = clock::now();
    let outcome = store.commit(txn([], [put("k", "2")])).await;
    assert!(matches!(outcome, Err(StoreError::Unknown(_))), "{outcome:?}");
    assert!(elapsed(started) < CALL_BOUND);
    let seen = store.read("k").await.unwrap().entries["k"].value.clone();
    assert_eq!(seen, b"1", "the wire let it through");
    committed(store.commit(txn([], [put("k", "3")])).await);
}

#[tokio::test]
async fn a_commit_whose_answer_is_lost_is_unknown_and_was_sent_once() {
    let etcd = Etcd::start().await;
    let wire = Wire::to(etcd.address()).await;
    let observer = connect(&[etcd.url()]).await;
    let store = connect(&[wire.url(), wire.url()]).await;
    let before = observer.read("").await.unwrap().revision;
    let mut watch = observer.watch("k", 0).await.unwrap();
    wire.lose_answers();
    let commit = tokio::spawn(async move {
        let outcome = store.commit(txn([], [put("k", "")])).await;
        (outcome, store)
    });
    next_batch(&mut watch).await;
    wire.cut();
    let (outcome, _store) = within("the commit to end", commit).await.unwrap();
    assert!(matches!(outcome, Err(StoreError::Unknown(_))), "{outcome:?}");
    assert_eq!(observer.read("").await.unwrap().revision, before + 1);
}

#[tokio::test]
async fn a_read_from_a_hanging_endpoint_is_answered_by_another_in_its_time() {
    let etcd = Etcd::start().await;
    let wires = [Wire::to(etcd.address()).await, Wire::to(etcd.address()).await];
    wires[1].cut();
    let store = connect(&[wires[0].url(), wires[1].url()]).await;
    let (lease, _) = store.grant(Duration::from_secs(60)).await.unwrap();
    store.keep_alive(lease).await.unwrap();
    wires[1].mend();
    wires[0].hang();
    store.keep_alive(lease).await.unwrap();
    store.read("").await.unwrap();
}

#[tokio::test]
async fn a_frozen_etcd_closes_the_watch_and_lets_every_call_end_in_time() {
    let etcd = Etcd::start().await;
    let store = connect(&[etcd.url()]).await;
    let lease = store.grant(Duration::from_secs(60)).await.unwrap().0;
    store.keep_alive(lease).await.unwrap();
    let mut watch = store.watch("", 0).await.unwrap();
    etcd.freeze().await;
    let started = clock::now();
    let closed = tokio::spawn(async move {
        closing(&mut watch).await;
        clock::now()
    });
    let (read, commit, renewal) = tokio::join!(
        store.read(""),
        store.commit(txn([], [put("k", "")])),
        store.keep_alive(lease)
    );
    assert!(elapsed(started) < CALL_BOUND, "{:?}", elapsed(started));
    assert!(matches!(read, Err(StoreError::Unavailable(_))), "{read:?}");
    assert!(matches!(commit, Err(StoreError::Unknown(_))), "{commit:?}");
    assert!(matches!(renewal, Err(StoreError::Unknown(_))), "{renewal:?}");
    let closed = closed.await.unwrap().since(started);
    assert!(closed < WATCH_BOUND, "{closed:?}");
    etcd.thaw();
    until_ok("a read after the thaw", || store.read("")).await;
    until_ok("a renewal after the thaw", || store.keep_alive(lease)).await;
}

#[tokio::test]
async fn a_late_answer_to_one_renewal_is_not_taken_for_the_next_ones() {
    let etcd = Etcd::start().await;
    let store = connect(&[etcd.url()]).await;
    let other = connect(&[etcd.url()]).await;
    let lease = store.grant(Duration::from_secs(60)).await.unwrap().0;
    store.keep_alive(lease).await.unwrap();
    etcd.freeze().await;
    let renewal = store.keep_alive(lease).await;
    assert!(matches!(renewal, Err(StoreError::Unknown(_))), "{renewal:?}");
    etcd.thaw();
    until_ok("the revocation", || other.revoke(lease)).await;
    // The request sent before the revocation may have been answered with success by now.
    let renewal = store.keep_alive(lease).await;
    assert!(matches!(renewal, Err(StoreError::LeaseExpired)), "{renewal:?}");
}

#[tokio::test]
async fn a_hanging_wire_closes_the_watch_though_nobody_closes_the_connection() {
    let etcd = Etcd::start().await;
    let wire = Wire::to(etcd.address()).await;
    let store = connect(&[wire.url()]).await;
    let mut watch = store.watch("", 0).await.unwrap();
    wire.hang();
    let started = clock::now();
    closing(&mut watch).await;
    assert!(elapsed(started) < WATCH_BOUND, "{:?}", elapsed(started));
}

#[tokio::test]
async fn a_watch_ends_as_soon_as_another_call_has_left_the_endpoint_that_hangs() {
    let etcd = Etcd::start().await;
    let wires = [Wire::to(etcd.address()).await, Wire::to(etcd.address()).await];
    wires[1].cut();
    let store = connect(&[wires[0].url(), wires[1].url()]).await;
    let mut watch = store.watch("", 0).await.unwrap();
    wires[1].mend();
    wires[0].hang();
    store.read("").await.unwrap();
    // By itself it would end only 3 s after its last answer.
    let left = clock::now();
    closing(&mut watch).await;
    assert!(elapsed(left) < Duration::from_secs(1), "{:?}", elapsed(left));
}

#[tokio::test]
async fn a_killed_etcd_closes_the_watch_at_once_and_the_store_comes_back_by_itself() {
    let mut etcd = Etcd::start().await;
    let store = connect(&[etcd.url()]).await;
    let (lease, _) = store.grant(Duration::from_secs(60)).await.unwrap();
    let written = committed(store.commit(txn([], [put_under(lease, "k", "kept")])).await);
    store.keep_alive(lease).await.unwrap();
    let mut watch = store.watch("", 0).await.unwrap();
    let cluster = store.read("").await.unwrap().cluster_id;
    etcd.restart().await;
    closing(&mut watch).await;
    let snapshot = until_ok("a read after the restart", || store.read("")).await;
    assert_eq!((snapshot.cluster_id, snapshot.revision), (cluster, written));
    assert_eq!(snapshot.entries["k"].value, b"kept");
    store.keep_alive(lease).await.unwrap();
    let mut watch = store.watch("k", written).await.unwrap();
    assert_eq!(told(&next_batch(&mut watch).await[0]), format!("put k=kept @{written}"));
}

#[tokio::test]
async fn when_three_members_lose_their_leader_everything_comes_back_by_itself() {
    let mut etcds = Etcd::start_members(3, &[]).await;
    let urls: Vec<String> = etcds.iter().map(Etcd::url).collect();
    let store = connect(&urls).await;
    let (lease, _) = store.grant(Duration::from_secs(60)).await.unwrap();
    store.keep_alive(lease).await.unwrap();
    let before = committed(store.commit(txn([], [put_under(lease, "k", "1")])).await);
    let leader = leader_of(&etcds).await;
    etcds.remove(leader);

    until_ok("a read", || store.read("")).await;
    until_ok("a renewal", || store.keep_alive(lease)).await;
    until_ok("a commit", || store.commit(txn([], [put_under(lease, "k", "2")]))).await;
    let mut watch = until_ok("a watch", || store.watch("k", before)).await;
    assert_eq!(told(&next_batch(&mut watch).await[0]), format!("put k=1 @{before}"));
}

async fn leader_of(etcds: &[Etcd]) -> usize {
    for (nth, etcd) in etcds.iter().enumerate() {
        let mut client = etcd_client::Client::connect([etcd.url()], None).await.unwrap();
        let status = client.status().await.unwrap();
        if status.leader() == status.header().unwrap().member_id() {
            return nth;
        }
    }
    panic!("no leader");
}

#[tokio::test]
async fn with_etcd_gone_calls_fail_as_unavailable_and_fast() {
    let etcd = Etcd::start().await;
    let store = connect(&[etcd.url()]).await;
    store.read("").await.unwrap();
    drop(etcd);
    // The first call may find the connection breaking; from then on nothing can be sent.
    let _ = store.read("").await;
    let started = clock::now();
    let commit = store.commit(txn([], [put("k", "")])).await;
    assert!(matches!(commit, Err(StoreError::Unavailable(_))), "{commit:?}");
    let grant = store.grant(Duration::from_secs(2)).await;
    assert!(matches!(grant, Err(StoreError::Unavailable(_))), "{grant:?}");
    let renewal = store.keep_alive(LeaseId(1)).await;
    assert!(matches!(renewal, Err(StoreError::Unavailable(_))), "{renewal:?}");
    let watch = store.watch("", 0).await.err();
    assert!(matches!(watch, Some(StoreError::Unavailable(_))), "{watch:?}");
    assert!(elapsed(started) < CALL_BOUND, "{:?}", elapsed(started));
}

#[tokio::test]
async fn an_etcd_without_space_refuses_and_says_what_to_do() {
    let etcd = Etcd::start_with(&["--quota-backend-bytes", "1000000"]).await;
    let store = connect(&[etcd.url()]).await;
    let big = "x".repeat(1_200_000);
    let outcome = store.commit(txn([], [put("k", &big)])).await;
    let Err(StoreError::Refused(why)) = outcome else { panic!("{outcome:?}") };
    assert!(why.contains("defragment"), "{why}");
    assert!(store.read("").await.unwrap().entries.is_empty());
}

#[tokio::test]
async fn a_snapshot_of_many_megabytes_is_read_and_watched() {
    let etcd = Etcd::start().await;
    let store = connect(&[etcd.url()]).await;
    let big = "x".repeat(1_000_000);
    for number in 0..8 {
        committed(store.commit(txn([], [put(&format!("k{number}"), &big)])).await);
    }
    assert_eq!(store.read("").await.unwrap().entries.len(), 8);
    let mut watch = store.watch("", 1).await.unwrap();
    assert_eq!(common::next_events(&mut watch, 8).await.len(), 8);
}

#[tokio::test]
async fn a_quiet_watch_and_a_quiet_lease_stay_open() {
    let etcd = Etcd::start().await;
    let store = connect(&[etcd.url()]).await;
    let (lease, _) = store.grant(Duration::from_secs(60)).await.unwrap();
    store.keep_alive(lease).await.unwrap();
    let mut watch = store.watch("", 0).await.unwrap();
    // Well beyond the longest silence that is allowed: the answers to our questions keep it open.
    let early = tokio::time::timeout(Duration::from_secs(6), watch.events.recv()).await;
    assert!(early.is_err(), "{early:?}");
    store.keep_alive(lease).await.unwrap();
    committed(store.commit(txn([], [put("k", "")])).await);
    assert_eq!(next_batch(&mut watch).await.len(), 1);
}
