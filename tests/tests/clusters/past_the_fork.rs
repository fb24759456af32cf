//! A standby that is no voter receives what no voter has, and then the primary is lost. Whoever holds more than the new
//! primary must not follow it at once: it would show as streaming and acknowledge what it does not hold.

#![allow(clippy::unwrap_used, reason = "a test may panic, also in its helpers")]

use std::collections::BTreeSet;
use std::time::Duration;

use chaos::evidence::Watchers;
use chaos::lab::network::cut::{Cut, Others};
use chaos::lab::network::{Placement, Site};
use chaos::lab::{Cluster, Lab};
use proto::MemberName;
use proto::report::{RejoinBy, Stream};
use proto::spec::Permission;
use store::clock;
use system_tests::scene;

const BOUND: Duration = Duration::from_secs(120);

fn name(text: &str) -> MemberName {
    text.parse().unwrap()
}

/// Waits until a and b serve and vote, and c receives.
async fn redundant(lab: &Lab) -> Cluster {
    let voters = BTreeSet::from([name("a"), name("b")]);
    lab.wait_redundant_among(&voters, BOUND).await.unwrap();
    lab.await_cluster("c receives", BOUND, |cluster| {
        let c = cluster.reports.get(&name("c")).filter(|c| c.complete)?;
        let receives = matches!(c.stream, Stream::Live { epoch, .. } if epoch == cluster.epoch());
        receives.then(|| cluster.clone())
    })
    .await
    .unwrap()
}

#[tokio::test]
async fn a_standby_past_the_fork_does_not_follow_as_it_is() {
    let mut scene = scene(|config| {
        config.placement = Placement::Namespaces;
        config.spec.founder = Some(name("a"));
        let c = config.spec.members.entry(name("c")).or_default();
        c.vote = Permission::Never;
        c.promote = Permission::Never;
    })
    .await;
    let lab = &mut scene.lab;
    redundant(lab).await;
    let watchers = Watchers::start(lab, 4).await.unwrap();
    let steady_from = clock::now();
    watchers.load.acknowledged_count(1_000, BOUND).await.unwrap();
    let (before, primary) = lab.cluster().await.unwrap().service().unwrap();
    assert_eq!(primary, name("a"));
    // Commits wait for b from now on, and c receives them all the same.
    let cut = Cut::between(&name("b"), Others::One(Site::Member(name("a"))));
    let struck = lab.partition(&cut).await.unwrap();
    let (b, c) =
        (lab.superuser(&name("b")).await.unwrap(), lab.superuser(&name("c")).await.unwrap());
    let received = "SELECT pg_last_wal_receive_lsn()::text";
    let deadline = clock::now() + BOUND;
    loop {
        let of_b: String = b.client().query_one(received, &[]).await.unwrap().get(0);
        let of_c: String = c.client().query_one(received, &[]).await.unwrap().get(0);
        if of_c.parse::<proto::Lsn>().unwrap() > of_b.parse().unwrap() {
            break;
        }
        assert!(clock::now() < deadline, "c holds no more than b: {of_c}, {of_b}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    lab.kill_member(&name("a")).unwrap();
    lab.member_gone(&name("a")).await.unwrap();
    lab.heal().await.unwrap();
    let (_, primary) = lab.wait_served_after(before, BOUND).await.unwrap();
    assert_eq!(primary, name("b"));
    lab.start_member(&name("a")).unwrap();
    let cluster = redundant(lab).await;
    watchers.load.acknowledged_after(clock::now(), BOUND).await.unwrap();
    let rejoin = cluster.reports[&name("c")].rejoin.as_ref().unwrap();
    // Copied if its pages may hold it, and else without that WAL; either way nothing past the fork is left.
    assert!(rejoin.reason.contains("past the fork"), "{rejoin:?}");
    assert_ne!(rejoin.by, RejoinBy::Rewind, "it was killed as a standby: {rejoin:?}");
    let (evidence, _) = watchers.finish(lab, (steady_from, struck.at)).await.unwrap();
    let verdict = chaos::verdict::judge(&evidence);
    assert!(verdict.is_good(), "{verdict:?}");
}
