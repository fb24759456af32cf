//! A member without data is copied from a standby that commits do not wait for, and that standby becomes the primary
//! while it is copied.

#![allow(clippy::unwrap_used, reason = "a test may panic, also in its helpers")]

use std::time::Duration;

use chaos::evidence::Watchers;
use chaos::lab::{Cluster, Lab};
use proto::MemberName;
use proto::report::{Rejoin, RejoinBy, RejoinOutcome};
use store::clock;
use system_tests::scene;

const BOUND: Duration = Duration::from_secs(180);

fn name(text: &str) -> MemberName {
    text.parse().unwrap()
}

fn rejoin_of(cluster: &Cluster, member: &MemberName) -> Option<Rejoin> {
    cluster.reports.get(member)?.rejoin.clone()
}

/// Loses the data directory of `member`, and starts it again without one.
async fn loses_its_data(lab: &mut Lab, member: &MemberName, aside: &str) {
    lab.kill_member(member).unwrap();
    lab.member_gone(member).await.unwrap();
    let data = lab.layout().data(member);
    std::fs::rename(&data, data.with_extension(aside)).unwrap();
    lab.start_member(member).unwrap();
}

/// Waits until `member` copies, and returns why and from whom.
async fn is_copying(lab: &Lab, member: &MemberName) -> String {
    lab.await_cluster("the copy is under way", BOUND, |cluster| {
        let rejoin = rejoin_of(cluster, member)?;
        let copies = matches!(&rejoin.outcome, RejoinOutcome::Running { progress: Some(text) }
            if text.contains(" % of "));
        copies.then_some(rejoin.reason)
    })
    .await
    .unwrap()
}

#[tokio::test]
#[ignore = "takes two minutes: make test-long"]
async fn a_standby_that_is_promoted_while_it_is_copied_ends_the_copy_and_the_next_one_is_whole() {
    let mut scene = scene(|config| {
        config.members = 4;
        config.spec.founder = Some(name("a"));
        // So slow that a switchover fits in.
        config.spec.rejoin.copy_rate_mb = 1;
    })
    .await;
    let lab = &mut scene.lab;
    lab.wait_redundant(BOUND).await.unwrap();
    let (epoch, primary) = lab.cluster().await.unwrap().service().unwrap();
    assert_eq!(primary, name("a"));
    let watchers = Watchers::start(lab, 4).await.unwrap();
    let steady_from = clock::now();
    watchers.load.acknowledged_count(500, BOUND).await.unwrap();

    let (b, d) = (name("b"), name("d"));
    let until = clock::now();
    loses_its_data(lab, &d, "lost-first").await;
    let reason = is_copying(lab, &d).await;
    assert!(reason.ends_with("copied from standby b"), "{reason}");
    let (_, asked) = lab.ask_for_switchover(Some(&b)).await.unwrap();
    let answered = lab.answer(&asked, BOUND).await.unwrap();
    let (_, primary) = lab.wait_served_after(epoch, BOUND).await.unwrap();
    assert_eq!(primary, b, "{answered:?}");
    let cluster = lab.wait_redundant(BOUND).await.unwrap();
    let rejoin = rejoin_of(&cluster, &d).unwrap();
    assert!(matches!(rejoin.outcome, RejoinOutcome::Done { .. }), "{rejoin:?}");
    assert_eq!((rejoin.by, rejoin.epoch), (RejoinBy::Copy, cluster.epoch()), "{rejoin:?}");
    // That one has failed, so it was the primary's turn.
    assert!(!rejoin.reason.contains("copied from standby"), "{rejoin:?}");
    let log = lab.log_of("keeper-d");
    assert!(log.contains("the standby was promoted during online backup"), "{log}");

    loses_its_data(lab, &d, "lost-again").await;
    let reason = is_copying(lab, &d).await;
    assert!(reason.contains("copied from standby"), "{reason}");
    let cluster = lab.wait_redundant(BOUND).await.unwrap();
    let rejoin = rejoin_of(&cluster, &d).unwrap();
    assert!(matches!(rejoin.outcome, RejoinOutcome::Done { .. }), "{rejoin:?}");
    assert!(rejoin.reason.contains("copied from standby"), "{rejoin:?}");
    eprintln!("copied from a standby: {rejoin:?}");
    watchers.load.acknowledged_after(clock::now(), BOUND).await.unwrap();
    let (evidence, _) = watchers.finish(lab, (steady_from, until)).await.unwrap();
    let verdict = chaos::verdict::judge(&evidence);
    assert!(verdict.is_good(), "{verdict:?}");
}
