//! The primary is lost with a tail that nobody acknowledged, and the other standby before it has followed the new one.
//! Who is left to vote is past the fork, and by the record its own WAL is still needed: it must not wait for a Cfg that
//! waits for it.

#![allow(clippy::unwrap_used, reason = "a test may panic, also in its helpers")]

use std::time::Duration;

use chaos::evidence::Watchers;
use chaos::lab::network::cut::{Cut, Others};
use chaos::lab::network::{Placement, Site};
use proto::report::RejoinBy;
use store::clock;
use system_tests::scene;

const BOUND: Duration = Duration::from_secs(120);

#[tokio::test]
async fn a_member_whose_wal_is_needed_still_becomes_the_voter_that_its_primary_waits_for() {
    let mut scene = scene(|config| config.placement = Placement::Namespaces).await;
    let lab = &mut scene.lab;
    lab.wait_redundant(BOUND).await.unwrap();
    let watchers = Watchers::start(lab, 4).await.unwrap();
    let steady_from = clock::now();
    watchers.load.acknowledged_count(300, BOUND).await.unwrap();
    let (before, former) = lab.cluster().await.unwrap().service().unwrap();
    let mut standbys = lab.members().into_iter().filter(|m| *m != former);
    let (one, other) = (standbys.next().unwrap(), standbys.next().unwrap());
    // All of them reach etcd and none another: the primary is replaced, and the other standby cannot follow.
    let struck = lab.partition(&Cut::between(&former, Others::Members)).await.unwrap();
    let apart = Cut::between(&one, Others::One(Site::Member(other.clone())));
    lab.partition(&apart).await.unwrap();
    let (_, primary) = lab.wait_served_after(before, BOUND).await.unwrap();
    assert_ne!(primary, former);
    let third = if primary == one { other } else { one };
    lab.kill_member(&third).unwrap();
    lab.member_gone(&third).await.unwrap();
    let state = lab.cluster().await.unwrap().state.unwrap();
    let alone = [primary.clone()].into();
    assert!(!state.cfgs.iter().all(|c| c.is_sealed_by(&alone)), "{:?}", state.cfgs);
    lab.heal().await.unwrap();
    let healed = clock::now();
    watchers.load.acknowledged_after(healed, BOUND).await.unwrap();
    eprintln!("writes {:?} after the heal, by two of three", clock::now().since(healed));
    let rejoin = lab.cluster().await.unwrap().reports[&former].rejoin.clone().unwrap();
    assert_eq!(rejoin.by, RejoinBy::Copy, "{rejoin:?}");
    assert!(rejoin.kept.is_some_and(|kept| std::path::Path::new(&kept).join("global").exists()));
    lab.start_member(&third).unwrap();
    lab.wait_redundant(BOUND).await.unwrap();
    let (evidence, _) = watchers.finish(lab, (steady_from, struck.at)).await.unwrap();
    let verdict = chaos::verdict::judge(&evidence);
    assert!(verdict.lost.is_empty() && verdict.dual.is_empty(), "{verdict:?}");
}
