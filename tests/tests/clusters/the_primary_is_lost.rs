//! The primary of a cluster under load is lost in ways that the drills do not have: nothing that a client was told is lost,
//! never do two primaries acknowledge, and redundancy comes back without a person.

#![allow(clippy::unwrap_used, reason = "a test may panic, also in its helpers")]

use std::time::Duration;

use chaos::demo::RecoveredBy;
use chaos::fault::Fault;
use chaos::lab::Lab;
use proto::spec::Permission;
use proto::{Lsn, MemberName};
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
    holds_wal_back_from_the_fork_on(lab, &primary).await;
}

/// A slot that is made after a promotion begins where the first checkpoint of the new timeline did, which is past the fork.
async fn holds_wal_back_from_the_fork_on(lab: &Lab, lost: &MemberName) {
    let cluster = lab.cluster().await.unwrap();
    let (_, primary) = cluster.service().unwrap();
    let fork = cluster.reports[&primary].opened.unwrap().start_lsn;
    let session = lab.superuser(&primary).await.unwrap();
    let slot = "SELECT active, restart_lsn::text FROM pg_replication_slots WHERE slot_name = $1";
    let name = format!("pgdeputy_{lost}");
    let row = session.client().query_one(slot, &[&name]).await.unwrap();
    let (active, restart): (bool, Option<String>) = (row.get(0), row.get(1));
    assert!(!active, "{lost} is down");
    let restart: Lsn = restart.expect("it holds WAL back").parse().unwrap();
    assert!(restart <= fork, "{name} holds back from {restart} on, the fork is at {fork}");
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
