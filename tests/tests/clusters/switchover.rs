//! Planned changes of primary under load: nothing is lost, nothing is rewound, and clients hardly notice.

use std::time::Duration;

use chaos::evidence::Watchers;
use chaos::fault::Fault;
use chaos::lab::CLUSTER;
use chaos::verdict::{LEAST_ACKNOWLEDGED, judge};
use nix::sys::signal::Signal;
use proto::MemberName;
use proto::history::HistoryKind;
use proto::report::RejoinBy;
use proto::request::RequestOutcome;
use store::clock;
use system_tests::{Scene, pgdeputy, scene};
use tokio::time::timeout;

/// Far above what any step takes, for a machine under load.
const BOUND: Duration = Duration::from_secs(60);

/// Demands that the last change was a switchover after which nobody was rewound or copied.
async fn was_a_clean_switchover(scene: &Scene, old: &MemberName) {
    let history = scene.lab.history().await.expect("the history is read");
    let last = history.last().expect("a change is on record");
    assert_eq!(last.kind, HistoryKind::Switchover, "{last:?}");
    assert_eq!(last.from.as_ref(), Some(old));
    for rejoined in &last.rejoined {
        assert_eq!(rejoined.by, RejoinBy::Follow, "{rejoined:?}");
    }
}

#[tokio::test]
async fn a_switchover_under_load_loses_nothing_and_the_old_primary_follows() {
    let mut scene = scene(|_| {}).await;
    // Back and forth: the old primary of one is the target of a later one. A keeper that is told to stop hands over as well.
    for fault in [Fault::Switchover, Fault::Switchover, Fault::Stop] {
        let report = scene.survives(fault).await;
        assert_eq!(report.epoch_after, report.epoch_before + 1);
        assert_ne!(report.primary_after, report.primary_before);
        assert_ne!(report.old_primary_rejoined_by, Some("rewind"));
        assert_ne!(report.old_primary_rejoined_by, Some("copy"));
        // The aim is 0.5 s and the bench measures it; this only shows that no time-out was waited for.
        assert!(report.write_gap_ms < 3_000.0, "{} ms", report.write_gap_ms);
        was_a_clean_switchover(&scene, &report.primary_before).await;
    }
}

#[tokio::test]
async fn a_switchover_to_a_member_that_cannot_is_refused_and_changes_nothing() {
    let mut scene = scene(|_| {}).await;
    scene.lab.wait_redundant(BOUND).await.unwrap();
    let (before, primary) = scene.lab.cluster().await.unwrap().service().unwrap();
    let standby = scene.lab.members().into_iter().find(|m| *m != primary).unwrap();
    scene.lab.kill_member(&standby).unwrap();
    let stranger: MemberName = "stranger".parse().unwrap();
    // A report lives as long as its lease: the silence of the stream is seen first.
    for (to, reason) in [(&stranger, "there is no member"), (&primary, "the primary already")] {
        let (_, asked) = scene.lab.ask_for_switchover(Some(to)).await.unwrap();
        let answered = scene.lab.answer(&asked, BOUND).await.unwrap();
        let RequestOutcome::Refused { reason: said } = answered.outcome else { panic!("{to}") };
        assert!(said.contains(reason), "{said}");
    }
    // Whenever it is asked: refused, or ended with nothing done where the target is found out to be away only then.
    let (_, asked) = scene.lab.ask_for_switchover(Some(&standby)).await.unwrap();
    let answered = scene.lab.answer(&asked, BOUND).await.unwrap();
    assert!(
        matches!(answered.outcome, RequestOutcome::Refused { .. } | RequestOutcome::Nothing { .. }),
        "{answered:?}"
    );
    assert_eq!(scene.lab.cluster().await.unwrap().service(), Some((before, primary)));
}

#[tokio::test]
async fn the_command_waits_for_the_end_and_says_what_happened() {
    let scene = scene(|_| {}).await;
    scene.lab.wait_redundant(BOUND).await.unwrap();
    let (_, primary) = scene.lab.cluster().await.unwrap().service().unwrap();
    let target = scene.lab.members().into_iter().find(|m| *m != primary).unwrap();
    // What a rewind would lack is told long before: here a right of the role by which it reads.
    let session = scene.lab.superuser(&primary).await.unwrap();
    let revoke = "REVOKE EXECUTE ON FUNCTION pg_stat_file(text, boolean) FROM pgdeputy_rewind";
    session.client().batch_execute(revoke).await.unwrap();
    let run = async |to: &str| {
        let mut command = tokio::process::Command::new(pgdeputy());
        command.args(["switchover", "--cluster", CLUSTER, "--to", to, "--json"]);
        command.args(["--etcd", &scene.lab.etcd_urls().join(",")]);
        timeout(BOUND, command.output()).await.expect("it ends").unwrap()
    };
    let refused = run("stranger").await;
    let said = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(1));
    assert!(said.contains("nothing was changed: there is no member stranger"), "{said}");
    let done = run(target.as_str()).await;
    let said: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap_or_else(|e| {
        panic!("{e}: {}", String::from_utf8_lossy(&done.stderr));
    });
    eprintln!("{said:#}");
    assert_eq!(
        (&said["from"], &said["to"], &said["epoch"]),
        (&primary.as_str().into(), &target.as_str().into(), &2.into())
    );
    assert!(said["writes_away_ms"].as_i64().unwrap() > 0);
    let lacking = "may not call pg_stat_file(text, boolean)";
    let told = |cluster: &chaos::lab::Cluster| {
        let mut reports = cluster.reports.values();
        reports.all(|r| r.problems.iter().any(|p| p.contains(lacking))).then_some(())
    };
    scene.lab.await_cluster("each member tells what it lacks", BOUND, told).await.unwrap();
}

#[tokio::test]
async fn a_target_that_dies_in_the_middle_costs_no_commit() {
    let mut scene = scene(|_| {}).await;
    scene.lab.wait_redundant(BOUND).await.unwrap();
    let (before, primary) = scene.lab.cluster().await.unwrap().service().unwrap();
    let target = scene.lab.members().into_iter().find(|m| *m != primary).unwrap();
    let watchers = Watchers::start(&scene.lab, 4).await.unwrap();
    let steady_from = clock::now();
    watchers.load.acknowledged_count(1_000, BOUND).await.unwrap();
    let (struck, _) = scene.lab.ask_for_switchover(Some(&target)).await.unwrap();
    // From the order to stop on there is no way back to the old epoch.
    loop {
        let state = scene.lab.cluster().await.unwrap().state.unwrap();
        if state.handing_over().is_some() || state.epoch > before.epoch {
            break;
        }
        assert!(clock::now() < struck.at + BOUND, "it does not begin: {state:?}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    scene.lab.kill_member(&target).unwrap();
    scene.lab.wait_served_after(before, BOUND).await.unwrap();
    watchers.load.acknowledged_after(clock::now(), BOUND).await.unwrap();
    scene.lab.member_gone(&target).await.unwrap();
    scene.lab.start_member(&target).unwrap();
    scene.lab.wait_redundant(BOUND).await.unwrap();
    watchers.load.acknowledged_count(LEAST_ACKNOWLEDGED, BOUND).await.unwrap();
    let (evidence, _) = watchers.finish(&scene.lab, (steady_from, struck.at)).await.unwrap();
    let verdict = judge(&evidence);
    assert!(verdict.is_good(), "{verdict:?}");
}

#[tokio::test]
async fn a_keeper_that_is_told_to_leave_postgres_is_not_noticed() {
    let mut scene = scene(|_| {}).await;
    scene.lab.wait_redundant(BOUND).await.unwrap();
    let (before, primary) = scene.lab.cluster().await.unwrap().service().unwrap();
    let postmaster = scene.lab.postmaster(&primary).unwrap();
    let watchers = Watchers::start(&scene.lab, 4).await.unwrap();
    watchers.load.acknowledged_count(200, BOUND).await.unwrap();
    let old = scene.lab.keeper_process(&primary).unwrap();
    let struck = scene.lab.signal_keeper(&primary, Signal::SIGUSR2).unwrap();
    while scene.lab.processes_of(&primary).iter().any(|process| process.pid == old) {
        assert!(clock::now() < struck.at + BOUND, "the keeper stays");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    scene.lab.keeper_back(&primary).await.unwrap();
    // Had nobody renewed its right, the fencer would stop PostgreSQL within lease_ttl.
    watchers.load.acknowledged_after(struck.at + Duration::from_secs(5), BOUND).await.unwrap();
    assert_eq!(scene.lab.cluster().await.unwrap().service(), Some((before, primary.clone())));
    assert_eq!(scene.lab.postmaster(&primary).unwrap(), postmaster);
    assert_eq!(watchers.load.told().unknown, 0, "no session was cut");
}
