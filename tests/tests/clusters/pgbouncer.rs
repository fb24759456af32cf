//! Clients of PgBouncer: not one error by a planned change of primary, and a moment without writes by an unplanned one.

use std::time::Duration;

use chaos::bench::switchover::measure;
use chaos::canary::{self, Canary};
use chaos::evidence::Watchers;
use chaos::load::Load;
use chaos::session::Session;
use chaos::verdict::judge;
use nix::sys::signal::Signal;
use proto::MemberName;
use store::clock;
use system_tests::{Scene, scene};

/// Far above what any step takes, for a machine under load.
const BOUND: Duration = Duration::from_secs(60);

/// How much later than HAProxy's clients those of PgBouncer may write again: no retry of a login was waited for, which
/// is 15 s by PgBouncer's default. The bench measures it; half a second is the aim.
const LATER: Duration = Duration::from_secs(3);

async fn pooled() -> Scene {
    scene(|config| config.pgbouncers = 1).await
}

#[tokio::test]
async fn no_transaction_fails_in_planned_changes_of_primary() {
    let mut scene = pooled().await;
    scene.lab.wait_redundant(BOUND).await.unwrap();
    scene.lab.prepare_database().await.unwrap();
    let canary = Canary::start_at(scene.lab.pooled_application(0).unwrap()).await.unwrap();
    let report = measure(&mut scene.lab, 3, 16).await.unwrap_or_else(|error| {
        panic!("{error:#}\n{}", scene.lab.log_tails());
    });
    eprintln!("{}", report.text());
    assert_eq!((report.switchovers, report.failed), (3, 0));
    assert_eq!(report.phases.get("hold").map(Vec::len), Some(3), "{:?}", report.phases);
    every_canary_is_kept(canary, 3).await;
}

/// Ends a canary that saw so many changes of primary, and demands the proof that nothing of it was lost.
async fn every_canary_is_kept(canary: Canary, changes: u32) {
    let verdict = canary::judge(&canary.finish(BOUND).await.expect("it runs until now"));
    eprintln!("{verdict}");
    assert!(verdict.is_good(), "{verdict}");
    let newest = verdict.proofs.iter().map(|proof| proof.origin.timeline.0).max();
    assert!(newest > Some(changes), "each promotion begins a timeline: {verdict}");
}

/// Asks by PgBouncer which member answers.
async fn answers(scene: &Scene, target: &tokio_postgres::Config) -> Option<MemberName> {
    let session = Session::open(target, Duration::from_secs(1)).await.ok()?;
    let port = "SELECT current_setting('port')::int";
    let rows =
        tokio::time::timeout(Duration::from_secs(1), session.client().query_typed(port, &[]));
    let port: i32 = rows.await.ok()?.ok()?.first()?.get(0);
    let is_it =
        |m: &MemberName| scene.lab.address(m).is_ok_and(|at| i32::from(at.postgres) == port);
    scene.lab.members().into_iter().find(is_it)
}

#[tokio::test]
async fn an_unplanned_change_is_over_for_clients_of_pgbouncer_as_soon_as_for_those_of_haproxy() {
    let mut scene = pooled().await;
    scene.lab.wait_redundant(BOUND).await.unwrap();
    let watchers = Watchers::start(&scene.lab, 4).await.unwrap();
    let pooled = Load::start(scene.lab.pooled_load_config(4).unwrap()).unwrap();
    let steady_from = clock::now();
    watchers.load.acknowledged_count(200, BOUND).await.unwrap();
    pooled.acknowledged_count(200, BOUND).await.unwrap();
    let steady = (steady_from, clock::now());
    let canary = Canary::start_at(scene.lab.pooled_application(0).unwrap()).await.unwrap();

    // A user that PgBouncer's file does not have is looked up at the primary, whichever that is.
    scene.lab.allow_lookups("tenant").await.unwrap();
    let mut tenant = scene.lab.pooled_application(0).unwrap();
    tenant.user("tenant");
    let (before, victim) = scene.lab.cluster().await.unwrap().service().unwrap();
    assert_eq!(answers(&scene, &tenant).await.as_ref(), Some(&victim), "{}", scene.lab.log_tails());
    let struck = scene.lab.kill_member(&victim).unwrap();
    let (after, primary) = scene.lab.wait_served_after(before, BOUND).await.unwrap();
    watchers.load.acknowledged_after(clock::now(), BOUND).await.unwrap();
    pooled.acknowledged_after(clock::now(), BOUND).await.unwrap();
    let gap = |told: chaos::load::Told| told.longest_gap(struck.at, clock::now());
    let (haproxy, pgbouncer) = (gap(watchers.load.told()), gap(pooled.told()));
    eprintln!("without writes: {haproxy:?} by HAProxy, {pgbouncer:?} by PgBouncer");
    assert!(pgbouncer < haproxy + LATER, "{pgbouncer:?} by PgBouncer, {haproxy:?} by HAProxy");
    assert_eq!(answers(&scene, &tenant).await.as_ref(), Some(&primary), "a lookup follows too");

    // proxy-config stands still while the primary changes once more, and goes on with old news.
    scene.lab.member_gone(&victim).await.unwrap();
    scene.lab.start_member(&victim).unwrap();
    scene.lab.wait_redundant(BOUND).await.unwrap();
    scene.lab.signal_other("proxy-config", Signal::SIGSTOP).unwrap();
    let struck = scene.lab.kill_postgres(&primary).unwrap();
    let (last, next) = scene.lab.wait_served_after(after, BOUND).await.unwrap();
    assert_ne!(next, primary, "it was to fail over");
    // PgBouncer comes back in the middle, with the file that is there.
    scene.lab.signal_other("pgbouncer1", Signal::SIGKILL).unwrap();
    scene.lab.start_pgbouncer(0).unwrap();
    scene.lab.signal_other("proxy-config", Signal::SIGCONT).unwrap();
    let target = scene.lab.pooled_application(0).unwrap();
    while answers(&scene, &target).await.as_ref() != Some(&next) {
        assert!(
            clock::now() < struck.at + BOUND,
            "PgBouncer does not follow: {}",
            scene.lab.log_tails()
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // From here on nobody is led back, and what was acknowledged by either way is there.
    watchers.load.acknowledged_after(clock::now(), BOUND).await.unwrap();
    pooled.acknowledged_after(clock::now(), BOUND).await.unwrap();
    scene.lab.wait_redundant(BOUND).await.unwrap();
    let until = clock::now() + Duration::from_secs(1);
    while clock::now() < until {
        assert_eq!(answers(&scene, &target).await, Some(next.clone()));
    }
    assert_eq!(scene.lab.cluster().await.unwrap().service().map(|s| s.0), Some(last));
    every_canary_is_kept(canary, 2).await;
    let told = pooled.stop().await;
    let (mut evidence, _) = watchers.finish(&scene.lab, steady).await.unwrap();
    evidence.acknowledged.extend(told.acknowledged);
    let verdict = judge(&evidence);
    assert!(verdict.lost.is_empty() && verdict.dual.is_empty(), "{verdict:?}");
}
