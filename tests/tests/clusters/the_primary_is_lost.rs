//! The primary of a cluster under load is lost in ways that the drills do not have: nothing that a client was told is lost,
//! never do two primaries acknowledge, and redundancy comes back without a person.

use std::time::Duration;

use chaos::demo::RecoveredBy;
use chaos::fault::Fault;
use proto::spec::Permission;
use system_tests::scene;

#[tokio::test]
async fn a_member_that_is_lost_after_a_failover_is_replaced_as_fast_as_one_of_the_first_epoch() {
    let mut scene = scene(|_| {}).await;
    assert_eq!(scene.survives(Fault::Crash).await.recovered_by, RecoveredBy::Failover);
    // At once, and without a load of its own: a dropped table would have made the standbys note in their control
    // files what timeline they are in.
    let lab = &mut scene.lab;
    let (before, primary) = lab.cluster().await.unwrap().service().unwrap();
    let struck = lab.kill_member(&primary).unwrap();
    lab.wait_served_after(before, Duration::from_secs(60)).await.unwrap();
    let away = store::clock::now().since(struck.at);
    // Below lease_ttl and isolation_grace together: the voters' word was enough.
    assert!(away < Duration::from_secs(7), "{away:?}");
}

#[tokio::test]
async fn a_killed_postgres_is_started_again_where_nobody_else_may_be_promoted() {
    let mut scene = scene(|config| {
        config.spec.founder = "a".parse().ok();
        for standby in ["b", "c"] {
            let name = standby.parse().expect("a letter is a name");
            config.spec.members.entry(name).or_default().promote = Permission::Never;
        }
    })
    .await;
    let report = scene.survives(Fault::Crash).await;
    assert_eq!(report.recovered_by, RecoveredBy::Restart);
    assert_eq!(
        (report.epoch_after, report.primary_after),
        (report.epoch_before, report.primary_before)
    );
}
