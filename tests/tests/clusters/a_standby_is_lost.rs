//! A standby of a cluster under load is killed, with its keeper. Commits go on by the other one.

use chaos::demo::RecoveredBy;
use chaos::fault::Fault;
use system_tests::scene;

#[tokio::test]
async fn one_of_two_standbys_holds_up_no_commit_and_is_a_voter_again_later() {
    let mut scene = scene(|_| {}).await;
    let report = scene.survives(Fault::Standby).await;
    assert_eq!(report.recovered_by, RecoveredBy::None);
    assert_eq!(
        (report.epoch_after, report.primary_after),
        (report.epoch_before, report.primary_before)
    );
    // No time-out was waited for: the lease is 4 s, and a stream's silence takes more than a second.
    assert!(report.write_gap_ms < 750.0, "{} ms", report.write_gap_ms);
}
