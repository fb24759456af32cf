//! Members that may not be promoted are not, whatever they hold; who acknowledges commits is chosen by priority; a cluster
//! grows and shrinks under load.

#![allow(clippy::unwrap_used, reason = "a test may panic, also in its helpers")]

use std::collections::BTreeSet;
use std::time::Duration;

use chaos::evidence::Watchers;
use chaos::lab::network::cut::{Cut, Others};
use chaos::lab::network::{Placement, Site};
use chaos::lab::{Cluster, Lab, demo_spec};
use chaos::verdict::judge;
use proto::MemberName;
use proto::spec::{Permission, SynchronousMode};
use store::clock;
use system_tests::attempt::command;
use system_tests::scene;

const BOUND: Duration = Duration::from_secs(120);

fn name(text: &str) -> MemberName {
    text.parse().unwrap()
}

fn names(all: &[&str]) -> BTreeSet<MemberName> {
    all.iter().map(|text| name(text)).collect()
}

/// Waits until these alone vote.
async fn voted_by(lab: &Lab, voters: &[&str]) {
    let wanted = names(voters);
    lab.await_cluster(&format!("{voters:?} vote"), BOUND, |cluster| {
        let [cfg] = cluster.state.as_ref()?.cfgs.as_slice() else { return None };
        (cfg.voters == wanted).then_some(())
    })
    .await
    .unwrap();
}

#[tokio::test]
#[ignore = "takes half a minute: part of make test-long"]
async fn who_may_not_be_promoted_is_not_when_it_alone_holds_all_and_the_old_primary_comes_back() {
    let mut scene = scene(|config| {
        config.placement = Placement::Namespaces;
        config.spec.founder = Some(name("a"));
        config.spec.members.entry(name("c")).or_default().promote = Permission::Never;
    })
    .await;
    let lab = &mut scene.lab;
    lab.wait_redundant(BOUND).await.unwrap();
    let watchers = Watchers::start(lab, 4).await.unwrap();
    let steady_from = clock::now();
    watchers.load.acknowledged_count(500, BOUND).await.unwrap();
    let (before, primary) = lab.cluster().await.unwrap().service().unwrap();
    assert_eq!(primary, name("a"));

    // From here on c alone acknowledges, and then it alone is left with what was acknowledged.
    let cut = Cut::between(&name("b"), Others::One(Site::Member(name("a"))));
    let struck = lab.partition(&cut).await.unwrap();
    let told = watchers.load.count();
    watchers.load.acknowledged_count(told + 300, BOUND).await.unwrap();
    lab.kill_member(&name("a")).unwrap();
    lab.member_gone(&name("a")).await.unwrap();
    lab.heal().await.unwrap();
    let says_so = |cluster: &Cluster| {
        let verdict = &cluster.explanation.as_ref()?.verdict;
        verdict.contains("only c hold the most WAL and may not be promoted").then_some(())
    };
    lab.await_cluster("the leader says who stands in the way", BOUND, says_so).await.unwrap();
    let refused = command(lab, &["failover", "--accept-data-loss", "--confirm", "demo"]).await;
    refused.says(1, &["nothing has to be lost"]);
    // Nobody grows tired of waiting: longer than any lease and any patience of the spec.
    tokio::time::sleep(Duration::from_secs(6)).await;
    let cluster = lab.cluster().await.unwrap();
    assert_eq!((cluster.service(), says_so(&cluster)), (None, Some(())), "{:?}", cluster.state);

    lab.start_member(&name("a")).unwrap();
    let (_, primary) = lab.wait_served_after(before, BOUND).await.unwrap();
    assert_eq!(primary, name("a"));
    watchers.load.acknowledged_after(clock::now(), BOUND).await.unwrap();
    lab.wait_redundant(BOUND).await.unwrap();
    let records = lab.history().await.unwrap();
    assert!(records.iter().all(|record| record.to != Some(name("c"))), "{records:?}");
    let (evidence, _) = watchers.finish(lab, (steady_from, struck.at)).await.unwrap();
    assert!(evidence.beacons.iter().all(|beacon| beacon.member != name("c")));
    let verdict = judge(&evidence);
    assert!(verdict.lost.is_empty() && verdict.dual.is_empty(), "{verdict:?}");
}

#[tokio::test]
#[ignore = "takes half a minute: part of make test-long"]
async fn priority_chooses_who_acknowledges_and_a_cluster_grows_to_six_and_loses_one_under_load() {
    let mut spec = demo_spec();
    spec.founder = Some(name("a"));
    spec.synchronous.mode = SynchronousMode::Priority;
    spec.members.entry(name("c")).or_default().priority = 9;
    let mut scene = scene(|config| config.spec = spec.clone()).await;
    let lab = &mut scene.lab;
    voted_by(lab, &["c"]).await;
    let watchers = Watchers::start(lab, 4).await.unwrap();
    let steady_from = clock::now();
    watchers.load.acknowledged_count(300, BOUND).await.unwrap();

    // The best one is lost: the next best acknowledges, until it is back.
    let struck = lab.kill_member(&name("c")).unwrap().at;
    voted_by(lab, &["b"]).await;
    watchers.load.acknowledged_after(clock::now(), BOUND).await.unwrap();
    let gap = watchers.load.told().longest_gap(struck, clock::now());
    eprintln!("priority, the voter killed: longest write gap {gap:?}");
    lab.member_gone(&name("c")).await.unwrap();
    lab.start_member(&name("c")).unwrap();
    voted_by(lab, &["c"]).await;

    let before = lab.cluster().await.unwrap().service().unwrap();
    let grown_from = clock::now();
    spec.synchronous.mode = SynchronousMode::Quorum;
    spec.synchronous.count = 2;
    lab.put_spec(&spec).await.unwrap();
    for member in ["d", "e", "f"] {
        lab.add_member(name(member)).unwrap();
    }
    lab.wait_redundant(BOUND).await.unwrap();
    voted_by(lab, &["b", "c", "d", "e", "f"]).await;
    let removed = command(lab, &["remove", "e"]).await;
    assert_eq!(removed.status, Some(0), "{removed:?}");
    lab.wait_redundant_among(&names(&["a", "b", "c", "d", "f"]), BOUND).await.unwrap();
    voted_by(lab, &["b", "c", "d", "f"]).await;
    watchers.load.acknowledged_after(clock::now(), BOUND).await.unwrap();
    let told = watchers.load.told();
    let gap = told.longest_gap(grown_from, clock::now());
    eprintln!("three members join and one is removed: longest write gap {gap:?}");
    assert_eq!(lab.cluster().await.unwrap().service().unwrap(), before, "no role changed");
    lab.retire(&name("e")).await.unwrap();
    let (evidence, _) = watchers.finish(lab, (steady_from, struck)).await.unwrap();
    let verdict = judge(&evidence);
    assert!(verdict.lost.is_empty() && verdict.dual.is_empty(), "{verdict:?}");
}
