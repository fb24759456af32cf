//! All that runs of a cluster ends, at once or in order, or half of a cluster of two, and comes back without a person.

#![allow(clippy::unwrap_used, reason = "a test may panic, also in its helpers")]

use std::time::Duration;

use chaos::evidence::Watchers;
use chaos::lab::{Cluster, Lab, Service};
use chaos::verdict::{Evidence, LEAST_ACKNOWLEDGED, judge};
use proto::MemberName;
use proto::history::HistoryKind;
use proto::report::RejoinBy;
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

/// Waits until nothing of a member that was asked to stop runs any more.
async fn ends(lab: &Lab, member: &MemberName) {
    let deadline = clock::now() + BOUND;
    while !lab.processes_of(member).is_empty() {
        assert!(
            clock::now() < deadline,
            "{member} was asked to stop: {:?}",
            lab.processes_of(member)
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Everybody streams again in the epoch of `before`, which nobody was promoted after and nobody rewound or copied into.
async fn went_on(lab: &Lab, before: &Service, what: &str) {
    lab.wait_redundant(BOUND).await.unwrap();
    let cluster = lab.cluster().await.unwrap();
    assert_eq!(cluster.epoch(), before.epoch, "{what}");
    let by = |report: &proto::MemberReport| report.rejoin.as_ref().map(|rejoin| rejoin.by);
    let rejoined = cluster.reports.values().filter_map(by);
    assert!(rejoined.into_iter().all(|by| by == RejoinBy::Follow), "{what}");
    let history = lab.history().await.unwrap();
    assert!(history.iter().all(|r| r.kind != HistoryKind::Failover), "{what}: {history:?}");
}

#[tokio::test]
async fn an_ordered_stop_of_everything_costs_no_failover_and_no_rewind_at_the_next_start() {
    let mut scene = scene(|_| {}).await;
    let lab = &mut scene.lab;
    lab.wait_redundant(BOUND).await.unwrap();
    let watchers = Watchers::start(lab, 4).await.unwrap();
    let steady_from = clock::now();
    watchers.load.acknowledged_count(200, BOUND).await.unwrap();
    let stopped_at = clock::now();
    let (before, primary) = lab.cluster().await.unwrap().service().unwrap();
    let mut order: Vec<MemberName> = lab.members().into_iter().filter(|m| *m != primary).collect();
    order.push(primary);
    // Together, the primary first; started in the other order.
    for member in order.iter().rev() {
        lab.stop_member(member).unwrap();
    }
    for member in &order {
        ends(lab, member).await;
    }
    for member in &order {
        lab.start_member(member).unwrap();
    }
    went_on(lab, &before, "stopped together").await;
    watchers.load.acknowledged_after(clock::now(), BOUND).await.unwrap();
    // One after the other, so that the primary goes on writing what nobody receives; it is started last again.
    for member in &order {
        lab.stop_member(member).unwrap();
        ends(lab, member).await;
    }
    for member in &order {
        lab.start_member(member).unwrap();
    }
    let back_at = clock::now();
    went_on(lab, &before, "stopped one by one").await;
    watchers.load.acknowledged_after(back_at, BOUND).await.unwrap();
    watchers.load.acknowledged_count(LEAST_ACKNOWLEDGED, BOUND).await.unwrap();
    let (evidence, _) = watchers.finish(lab, (steady_from, stopped_at)).await.unwrap();
    kept_the_promise(&evidence);
}
