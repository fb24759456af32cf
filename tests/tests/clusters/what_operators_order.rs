//! Durability that gives way, pauses, members that leave and come back, accepted loss: on a real cluster, by the commands
//! that an operator types.

#![allow(clippy::unwrap_used, reason = "a test may panic, also in its helpers")]

use std::time::Duration;

use chaos::evidence::Watchers;
use chaos::lab::Lab;
use chaos::verdict::{Evidence, judge, judge_with_loss};
use proto::MemberName;
use proto::spec::Durability;
use store::clock;
use system_tests::attempt::command;
use system_tests::scene;

const BOUND: Duration = Duration::from_secs(120);

async fn succeeds(lab: &Lab, words: &[&str]) {
    let done = command(lab, words).await;
    assert_eq!(done.status, Some(0), "{words:?}: {done:?}");
}

async fn refused(lab: &Lab, words: &[&str], because: &[&str]) {
    command(lab, words).await.says(1, because);
}

fn name(text: &str) -> MemberName {
    text.parse().unwrap()
}

#[tokio::test]
async fn with_durability_available_one_of_two_goes_on_alone_and_a_pause_lets_nothing_start() {
    let mut scene = scene(|config| {
        config.members = 2;
        config.spec.founder = "a".parse().ok();
        config.spec.durability = Durability::Available;
    })
    .await;
    let lab = &mut scene.lab;
    lab.wait_redundant(BOUND).await.unwrap();
    let (a, b) = (name("a"), name("b"));
    let watchers = Watchers::start(lab, 4).await.unwrap();
    watchers.load.acknowledged_count(500, BOUND).await.unwrap();
    let begun = clock::now();

    let struck = lab.kill_member(&b).unwrap();
    lab.await_cluster("a goes on alone", BOUND, |c| {
        let alone = c.state.as_ref()?.cfgs.iter().all(|cfg| cfg.k == 0);
        alone.then_some(())
    })
    .await
    .unwrap();
    let at = watchers.load.acknowledged_after(clock::now(), BOUND).await.unwrap();
    eprintln!("commits go on {:?} after the only voter was lost", at.since(struck.at));
    lab.member_gone(&b).await.unwrap();
    lab.start_member(&b).unwrap();
    lab.wait_redundant(BOUND).await.unwrap();

    refused(lab, &["resume"], &["not paused"]).await;
    succeeds(lab, &["pause", "--reason", "new disks", "--for", "10m"]).await;
    refused(
        lab,
        &["failover", "--accept-data-loss", "--confirm", "demo"],
        &["nothing has to be lost"],
    )
    .await;
    let before = lab.cluster().await.unwrap().service().unwrap().0;
    lab.kill_postgres(&a).unwrap();
    lab.await_cluster("the leader says that it does nothing", BOUND, |c| {
        let verdict = &c.explanation.as_ref()?.verdict;
        verdict.contains("NOTHING IS DONE").then_some(())
    })
    .await
    .unwrap();
    assert!(lab.postmaster(&a).is_err(), "what does not run stays down");
    succeeds(lab, &["resume"]).await;
    lab.wait_served_after(before, BOUND).await.unwrap();
    lab.wait_redundant(BOUND).await.unwrap();
    watchers.load.acknowledged_after(clock::now(), BOUND).await.unwrap();
    let (evidence, _) = watchers.finish(lab, (begun, clock::now())).await.unwrap();
    let verdict = judge(&evidence);
    assert!(verdict.lost.is_empty() && verdict.dual.is_empty(), "{verdict:?}");
}

#[tokio::test]
async fn members_come_and_go_under_load_and_loss_is_accepted_only_where_it_has_to_be() {
    let mut scene = scene(|config| config.spec.founder = "a".parse().ok()).await;
    let lab = &mut scene.lab;
    lab.wait_redundant(BOUND).await.unwrap();
    let watchers = Watchers::start(lab, 4).await.unwrap();
    watchers.load.acknowledged_count(500, BOUND).await.unwrap();
    let begun = clock::now();
    refused(lab, &["remove", "a"], &["is the primary", "switchover"]).await;
    refused(lab, &["remove", "z"], &["there is no member z"]).await;
    succeeds(lab, &["remove", "c"]).await;
    let c = name("c");
    lab.await_cluster("c is no member", BOUND, |cluster| {
        let state = cluster.state.as_ref()?;
        (!state.members.contains_key(&c)).then_some(())
    })
    .await
    .unwrap();
    let deadline = clock::now() + BOUND;
    while lab.postmaster(&c).is_ok() {
        assert!(clock::now() < deadline, "a removed member's PostgreSQL still runs");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    refused(lab, &["remove", "b"], &["--below-count"]).await;
    assert!(lab.layout().data(&c).join("PG_VERSION").exists(), "its data stays");
    succeeds(lab, &["readmit", "c"]).await;
    lab.add_member(name("d")).unwrap();
    lab.wait_redundant(BOUND).await.unwrap();
    // All that was told by now is on every member, d included, and is not to be lost later either.
    let held_from = clock::now();
    let acknowledged = watchers.load.told().acknowledged;
    let holdings = lab.holdings(BOUND).await.unwrap().into_iter().collect();
    let verdict = judge(&Evidence { acknowledged, holdings, ..Evidence::default() });
    assert!(verdict.lost.is_empty(), "{verdict:?}");

    // Only d is left of a, b, c, d with one that must acknowledge.
    let (before, _) = lab.cluster().await.unwrap().service().unwrap();
    for member in ["a", "b", "c"] {
        lab.kill_member(&name(member)).unwrap();
    }
    // The leader may have asked for seals before it knew that b and c are lost, too.
    let waits = ["waits for more of its members", "no base yet, waits for a, b, c"];
    lab.await_cluster("no base", BOUND, |cluster| {
        let verdict = &cluster.explanation.as_ref()?.verdict;
        waits.iter().any(|wait| verdict.contains(wait)).then_some(())
    })
    .await
    .unwrap();
    let wrong = command(lab, &["failover", "--accept-data-loss", "--confirm", "other"]).await;
    wrong.says(64, &["not the name of the cluster", "nothing was changed"]);
    refused(lab, &["failover", "--accept-data-loss"], &["give --confirm demo"]).await;
    let accepted_at = clock::now();
    let done = command(lab, &["failover", "--accept-data-loss", "--confirm", "demo"]).await;
    assert_eq!(done.status, Some(0), "{done:?}");
    assert!(
        done.stderr.contains("WILL BE LOST") && done.stderr.contains("a: was seen"),
        "{done:?}"
    );
    let (_, primary) = lab.wait_served_after(before, BOUND).await.unwrap();
    assert_eq!(primary, name("d"));
    for member in ["a", "b", "c"] {
        lab.member_gone(&name(member)).await.unwrap();
        lab.start_member(&name(member)).unwrap();
    }
    lab.wait_redundant(BOUND).await.unwrap();
    succeeds(lab, &["failover", "--acknowledge-loss"]).await;
    refused(lab, &["failover", "--acknowledge-loss"], &["no loss waits"]).await;
    watchers.load.acknowledged_after(clock::now(), BOUND).await.unwrap();
    let (evidence, _) = watchers.finish(lab, (begun, held_from)).await.unwrap();
    let verdict = judge_with_loss(&evidence, held_from, accepted_at);
    assert!(verdict.lost.is_empty() && verdict.dual.is_empty(), "{verdict:?}");
}
