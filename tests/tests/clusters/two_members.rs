//! Of two members the standby is the only voter. It freezes, and then the primary is lost: what `strict` holds back comes
//! with the thaw, and what `available` gives up is said.

#![allow(clippy::unwrap_used, reason = "a test may panic, also in its helpers")]

use std::time::Duration;

use chaos::evidence::Watchers;
use chaos::lab::{Lab, Part, demo_spec};
use chaos::verdict::judge;
use proto::MemberName;
use proto::spec::Durability;
use store::clock;
use system_tests::scene;

const BOUND: Duration = Duration::from_secs(120);

/// What is above the promised gap is for a busy machine.
const SLACK: Duration = Duration::from_secs(3);

/// Waits until the leader says this to the operator.
async fn told(lab: &Lab, words: &str) {
    lab.await_cluster(&format!("the leader says {words:?}"), BOUND, |cluster| {
        cluster.explanation.as_ref()?.verdict.contains(words).then_some(())
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn a_frozen_only_voter_holds_commits_back_and_with_available_for_a_lease_at_most() {
    let name = |text: &str| -> MemberName { text.parse().unwrap() };
    let (a, b) = (name("a"), name("b"));
    let mut scene = scene(|config| {
        config.members = 2;
        config.spec.founder = Some(a.clone());
    })
    .await;
    let lab = &mut scene.lab;
    lab.wait_redundant(BOUND).await.unwrap();
    let watchers = Watchers::start(lab, 4).await.unwrap();
    let steady_from = clock::now();
    watchers.load.acknowledged_count(500, BOUND).await.unwrap();
    let before = lab.cluster().await.unwrap().service().unwrap();
    assert_eq!(before.1, a);

    // Strict: whoever writes waits, is told of nothing that only one member holds, and the operator learns why.
    let frozen = lab.freeze(&b, Part::Member).await.unwrap().at;
    told(lab, "that must acknowledge commits stream").await;
    let last = watchers.load.told().acknowledged.last().unwrap().acked;
    assert!(last < frozen + Duration::from_secs(1), "a commit was told with one member left");
    let thawed = lab.thaw(&b).unwrap().at;
    let back = watchers.load.acknowledged_after(thawed, Duration::from_secs(30)).await.unwrap();
    eprintln!("strict: writes {:?} after the thaw", back.since(thawed));
    lab.wait_redundant(BOUND).await.unwrap();
    assert_eq!(lab.cluster().await.unwrap().service().unwrap(), before, "no role changed");

    // Available: a lease later the primary goes on alone, and says so.
    let mut spec = demo_spec();
    spec.founder = Some(a.clone());
    spec.durability = Durability::Available;
    lab.put_spec(&spec).await.unwrap();
    let frozen = lab.freeze(&b, Part::Member).await.unwrap().at;
    told(lab, "REDUCED DURABILITY").await;
    watchers.load.acknowledged_after(clock::now(), BOUND).await.unwrap();
    let gap = watchers.load.told().longest_gap(frozen, clock::now());
    eprintln!("available, the only voter frozen: longest write gap {gap:?}");
    assert!(gap < spec.lease_ttl + Duration::from_millis(500) + SLACK, "{gap:?}");
    lab.thaw(&b).unwrap();
    lab.wait_redundant(BOUND).await.unwrap();

    // The other one takes over and waits for nobody.
    let (before, _) = lab.cluster().await.unwrap().service().unwrap();
    let lost = lab.kill_member(&a).unwrap().at;
    let (_, next) = lab.wait_served_after(before, BOUND).await.unwrap();
    assert_eq!(next, b);
    watchers.load.acknowledged_after(clock::now(), BOUND).await.unwrap();
    let gap = watchers.load.told().longest_gap(lost, clock::now());
    eprintln!("available, the primary lost: longest write gap {gap:?}, its host still away");
    lab.member_gone(&a).await.unwrap();
    lab.start_member(&a).unwrap();
    lab.wait_redundant(BOUND).await.unwrap();
    let (evidence, _) = watchers.finish(lab, (steady_from, frozen)).await.unwrap();
    let verdict = judge(&evidence);
    assert!(verdict.lost.is_empty() && verdict.dual.is_empty(), "{verdict:?}");
}
