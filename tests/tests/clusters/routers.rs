//! The processes that lead clients are frozen, killed and started again while the primary is replaced.

#![allow(clippy::unwrap_used, reason = "a test may panic, also in its helpers")]

use std::time::Duration;

use chaos::evidence::Watchers;
use chaos::lab::{Lab, Port};
use nix::sys::signal::Signal;
use proto::MemberName;
use store::clock;
use system_tests::scene;
use tokio_postgres::NoTls;

const BOUND: Duration = Duration::from_secs(60);

/// Returns the port of the PostgreSQL that a new session for writes reaches, if it reaches one.
async fn write_lands_at(lab: &Lab) -> Option<i32> {
    let (client, connection) =
        lab.application_by(&Port::Write).unwrap().connect(NoTls).await.ok()?;
    tokio::spawn(connection);
    let row = client.query_one("SELECT inet_server_port()", &[]).await.ok()?;
    Some(row.get(0))
}

async fn fail_over(lab: &mut Lab) -> (MemberName, MemberName) {
    let (before, primary) = lab.cluster().await.unwrap().service().unwrap();
    let struck = lab.kill_postgres(&primary).unwrap();
    lab.wait_served_after(before, BOUND).await.unwrap();
    eprintln!("{primary} was replaced after {:?}", clock::now().since(struck.at));
    (primary, lab.primary().await.unwrap())
}

#[tokio::test]
async fn no_write_is_taken_by_a_replaced_primary_while_proxies_are_frozen_restarted_and_killed() {
    // The standbys have the same rights, and nobody restarts a primary in its place: each fault is a failover.
    let mut scene = scene(|_| {}).await;
    let lab = &mut scene.lab;
    lab.wait_redundant(BOUND).await.unwrap();
    let watchers = Watchers::start(lab, 4).await.unwrap();
    let steady_from = clock::now();
    watchers.load.acknowledged_count(300, BOUND).await.unwrap();
    let begun = clock::now();

    // Frozen during the failover: HAProxy's own checks lead to the next primary.
    lab.signal_proxy_config(Signal::SIGSTOP).unwrap();
    let (old, new) = fail_over(lab).await;
    let failed_over = clock::now();
    watchers.load.acknowledged_after(failed_over, BOUND).await.unwrap();
    eprintln!("by the checks alone writes were back {:?} later", clock::now().since(failed_over));
    // HAProxy forgets what it knew, and its files are of the epoch before.
    lab.restart_haproxy().await.unwrap();
    let restarted = clock::now();
    let refused = watchers.load.told().refused;
    let (old_at, new_at) = (at(lab, &old), at(lab, &new));
    let mut landed = 0;
    while landed < 50 {
        assert!(
            clock::now() < restarted + BOUND,
            "writes do not come back after HAProxy's restart"
        );
        let reached = write_lands_at(lab).await;
        assert_ne!(reached, Some(old_at), "a session for writes reached the replaced {old}");
        landed += usize::from(reached == Some(new_at));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(watchers.load.told().refused, refused, "no write reached a standby");
    // It goes on, with news that are no more: for a second it says again what it last knew.
    lab.signal_proxy_config(Signal::SIGCONT).unwrap();
    let until = clock::now() + Duration::from_secs(2);
    while clock::now() < until {
        assert_ne!(write_lands_at(lab).await, Some(old_at), "old news led to the replaced {old}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    watchers.load.acknowledged_after(clock::now(), BOUND).await.unwrap();
    lab.wait_redundant(BOUND).await.unwrap();

    // Killed, and nobody starts it again.
    lab.signal_proxy_config(Signal::SIGKILL).unwrap();
    fail_over(lab).await;
    let failed_over = clock::now();
    watchers.load.acknowledged_after(failed_over, BOUND).await.unwrap();
    eprintln!("without proxy-config writes were back {:?} later", clock::now().since(failed_over));
    lab.wait_redundant(BOUND).await.unwrap();
    let (evidence, _) = watchers.finish(lab, (steady_from, begun)).await.unwrap();
    let verdict = chaos::verdict::judge(&evidence);
    assert!(verdict.lost.is_empty() && verdict.dual.is_empty(), "{verdict:?}");
}

fn at(lab: &Lab, member: &MemberName) -> i32 {
    i32::from(lab.address(member).unwrap().postgres)
}
