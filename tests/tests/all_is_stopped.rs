//! All that runs of a cluster ends at once, or half of a cluster of two, and comes back without a person.

#![allow(clippy::unwrap_used, reason = "a test may panic, also in its helpers")]

use std::time::Duration;

use chaos::evidence::Watchers;
use chaos::lab::{Cluster, Lab};
use chaos::verdict::{Evidence, LEAST_ACKNOWLEDGED, judge};
use store::clock;
use system_tests::scene;

/// Far above what any step takes, for a machine under load.
const BOUND: Duration = Duration::from_secs(120);

fn kept_the_promise(evidence: &Evidence) {
    let verdict = judge(evidence);
    assert!(verdict.lost.is_empty() && verdict.dual.is_empty(), "{verdict:?}");
}

/// Kills every process but the proxies in one go, and starts them in the order that is worst: members first, who find
/// no etcd, then etcd, then the sentinels.
async fn power_cut(lab: &mut Lab) {
    let members = lab.members();
    for member in &members {
        lab.kill_member(member).unwrap();
    }
    lab.kill_etcd().unwrap();
    for sentinel in lab.sentinels() {
        lab.kill_sentinel(&sentinel).await.unwrap();
    }
    for member in &members {
        lab.member_gone(member).await.unwrap();
        assert!(lab.processes_of(member).is_empty(), "all of {member} is down");
    }
    for member in &members {
        lab.start_member(member).unwrap();
    }
    lab.start_etcd().await.unwrap();
    lab.start_sentinels().unwrap();
}

#[tokio::test]
async fn everything_is_killed_at_once_and_comes_back_by_itself() {
    let mut scene = scene(|_| {}).await;
    let lab = &mut scene.lab;
    lab.wait_redundant(BOUND).await.unwrap();
    let watchers = Watchers::start(lab, 4).await.unwrap();
    let steady_from = clock::now();
    watchers.load.acknowledged_count(200, BOUND).await.unwrap();
    let cut_at = clock::now();
    power_cut(lab).await;
    let back_at = clock::now();
    watchers.load.acknowledged_after(back_at, BOUND).await.unwrap();
    eprintln!("writes {:?} after the last start", clock::now().since(back_at));
    lab.wait_redundant(BOUND).await.unwrap();
    watchers.load.acknowledged_count(LEAST_ACKNOWLEDGED, BOUND).await.unwrap();
    let (evidence, _) = watchers.finish(lab, (steady_from, cut_at)).await.unwrap();
    kept_the_promise(&evidence);
}

/// Two members, strict: the other one is promoted, and its commits wait for the host that is away.
async fn of_two_members_one_is_away_for(time: Duration) {
    let mut scene = scene(|config| config.members = 2).await;
    let lab = &mut scene.lab;
    lab.wait_redundant(BOUND).await.unwrap();
    let watchers = Watchers::start(lab, 4).await.unwrap();
    let steady_from = clock::now();
    watchers.load.acknowledged_count(200, BOUND).await.unwrap();
    let (before, primary) = lab.cluster().await.unwrap().service().unwrap();
    let struck = lab.kill_member(&primary).unwrap();
    lab.member_gone(&primary).await.unwrap();
    let promoted = |cluster: &Cluster| (cluster.epoch() > before.epoch).then_some(());
    lab.await_cluster("the other member is promoted", BOUND, promoted).await.unwrap();
    tokio::time::sleep(time).await;
    lab.start_member(&primary).unwrap();
    let back_at = clock::now();
    watchers.load.acknowledged_after(back_at, Duration::from_secs(30)).await.unwrap();
    eprintln!("writes {:?} after the host's return", clock::now().since(back_at));
    lab.wait_redundant(BOUND).await.unwrap();
    watchers.load.acknowledged_count(LEAST_ACKNOWLEDGED, BOUND).await.unwrap();
    let (evidence, _) = watchers.finish(lab, (steady_from, struck.at)).await.unwrap();
    kept_the_promise(&evidence);
}

#[tokio::test]
async fn of_two_members_writes_come_back_with_the_host_that_was_away() {
    of_two_members_one_is_away_for(Duration::ZERO).await;
}

/// By then every lease and every patience has ended.
#[tokio::test]
#[ignore = "takes a minute: make test-long"]
async fn of_two_members_writes_come_back_with_the_host_that_was_away_for_30_s() {
    of_two_members_one_is_away_for(Duration::from_secs(30)).await;
}
