//! The same again and again, for what happens once in twenty. Run by `make test-long`.

use chaos::demo::RecoveredBy;
use chaos::fault::Fault;
use system_tests::scene;

/// One cluster, twenty losses of whoever is primary: roles rotate, and each old primary comes back.
#[tokio::test]
#[ignore = "takes some four minutes"]
async fn a_member_killed_twenty_times_never_needs_a_copy_without_a_reason() {
    let mut scene = scene(|_| {}).await;
    for run in 1..=20 {
        let report = scene.survives(Fault::Member).await;
        assert_eq!(report.recovered_by, RecoveredBy::Failover, "run {run}");
        let by = report.old_primary_rejoined_by.expect("the record says how it came back");
        let reason = report.old_primary_rejoin_reason.unwrap_or_default();
        if by == "copy" {
            assert!(!reason.is_empty(), "run {run}: a copy without a reason");
            let reports = scene.lab.cluster().await.expect("etcd answers").reports;
            let rejoin = reports[&report.victim].rejoin.as_ref();
            let kept = rejoin
                .and_then(|r| r.kept.clone())
                .expect("the old directory was kept, and is named");
            assert!(std::path::Path::new(&kept).is_dir(), "run {run}: {kept} is gone");
        }
        eprintln!("run {run}: {by}, {reason}, gap {} ms", report.write_gap_ms);
    }
}
