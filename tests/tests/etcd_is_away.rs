//! etcd is taken away from a cluster under load. A primary whose voters stream goes on; one that has neither etcd nor
//! voters stops in time.

use std::time::Duration;

use chaos::demo::{Config, RecoveredBy};
use chaos::fault::Fault;
use chaos::lab::cleanup::Found;
use system_tests::scene;

#[tokio::test]
async fn with_etcd_gone_for_a_minute_no_transaction_fails_and_no_role_changes() {
    let mut scene = scene(|_| {}).await;
    let away =
        Config { fault: Fault::Etcd, down_for: Duration::from_secs(60), ..Config::default() };
    let report = scene.survives_as(away).await;
    assert_eq!(report.recovered_by, RecoveredBy::None);
    assert_eq!(
        (report.epoch_after, &report.primary_after),
        (report.epoch_before, &report.primary_before)
    );
    assert_eq!(report.unknown, 0, "no session is cut and no commit fails");
    assert!(report.write_gap_ms < 1_000.0, "{} ms", report.write_gap_ms);
}

#[tokio::test]
async fn a_primary_without_etcd_and_without_voters_stops_within_lease_ttl() {
    let mut scene = scene(|_| {}).await;
    let lab = &mut scene.lab;
    lab.wait_redundant(Duration::from_secs(120)).await.unwrap();
    let (_, primary) = lab.cluster().await.unwrap().service().unwrap();
    let standbys = ["a", "b", "c"].map(|name| name.parse().unwrap());
    lab.kill_etcd().unwrap();
    // The signs of its voters let it serve on for longer than any lease.
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert!(
        lab.processes_of(&primary).iter().any(Found::is_postgres),
        "it serves by its voters' signs"
    );
    let mut cut = store::clock::now();
    for standby in standbys.iter().filter(|name| **name != primary) {
        cut = lab.kill_member(standby).unwrap().at;
        lab.member_gone(standby).await.unwrap();
    }
    // lease_ttl is 4 s; what is above it is for a busy machine.
    let deadline = cut + Duration::from_secs(6);
    while lab.processes_of(&primary).iter().any(Found::is_postgres) {
        assert!(store::clock::now() < deadline, "PostgreSQL of {primary} still runs");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    eprintln!("stopped {:?} after the last voter was killed", store::clock::now().since(cut));
    lab.start_etcd().await.unwrap();
    for standby in standbys.iter().filter(|name| **name != primary) {
        lab.start_member(standby).unwrap();
    }
    lab.wait_redundant(Duration::from_secs(120)).await.unwrap();
}
