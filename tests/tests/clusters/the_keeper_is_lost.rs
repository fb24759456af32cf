//! The primary's keeper dies or freezes while its PostgreSQL is well. A keeper that comes back at once is not noticed by
//! clients; one that does not is answered for by the fencer.

#![allow(clippy::unwrap_used, reason = "a test may panic, also in its helpers")]

use std::time::Duration;

use chaos::evidence::Watchers;
use chaos::lab::cleanup::Found;
use nix::sys::signal::Signal;
use system_tests::attempt::Intruder;
use system_tests::{Scene, pgdeputy, scene};

const BOUND: Duration = Duration::from_secs(120);

/// A redundant cluster and its primary.
async fn redundant() -> (Scene, proto::MemberName) {
    let scene = scene(|_| {}).await;
    scene.lab.wait_redundant(BOUND).await.unwrap();
    let (_, primary) = scene.lab.cluster().await.unwrap().service().unwrap();
    (scene, primary)
}

#[tokio::test]
async fn a_keeper_that_is_killed_and_started_again_takes_over_the_running_postgres() {
    let (mut scene, primary) = redundant().await;
    let lab = &mut scene.lab;
    let watchers = Watchers::start(lab, 4).await.unwrap();
    let postmaster = lab.postmaster(&primary).unwrap();
    let before = lab.cluster().await.unwrap().service().unwrap();
    watchers.load.acknowledged_count(200, BOUND).await.unwrap();
    let struck = lab.signal_keeper(&primary, Signal::SIGKILL).unwrap();
    lab.start_member(&primary).unwrap();
    // A lease_ttl later the right must have been renewed by the new keeper, or the fencer would have fenced.
    watchers.load.acknowledged_after(struck.at + Duration::from_secs(5), BOUND).await.unwrap();
    lab.wait_redundant(BOUND).await.unwrap();
    assert_eq!(lab.postmaster(&primary).unwrap(), postmaster, "PostgreSQL was left alone");
    assert_eq!(lab.cluster().await.unwrap().service().unwrap(), before, "no role changed");
    assert_eq!(watchers.load.told().unknown, 0, "no session was cut");
}

/// Waits for a keeper of `member` with another pid.
async fn another_keeper(lab: &chaos::lab::Lab, member: &proto::MemberName, than: i32) {
    let deadline = store::clock::now() + BOUND;
    while lab.keeper_process(member).is_none_or(|pid| pid == than) {
        assert!(store::clock::now() < deadline, "no keeper is started again");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_killed_keeper_is_started_again_by_its_fencer_and_no_client_notices() {
    let mut scene = scene(|config| config.keepers_restart = true).await;
    let lab = &mut scene.lab;
    lab.wait_redundant(BOUND).await.unwrap();
    let (_, primary) = lab.cluster().await.unwrap().service().unwrap();
    let watchers = Watchers::start(lab, 4).await.unwrap();
    let postmaster = lab.postmaster(&primary).unwrap();
    let before = lab.cluster().await.unwrap().service().unwrap();
    watchers.load.acknowledged_count(200, BOUND).await.unwrap();
    for round in 0..2 {
        let keeper = lab.keeper_process(&primary).unwrap();
        let struck = store::clock::now();
        match round {
            0 => drop(lab.signal_keeper(&primary, Signal::SIGKILL).unwrap()),
            _ => {
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(keeper), Signal::SIGKILL).unwrap()
            }
        }
        another_keeper(lab, &primary, keeper).await;
        eprintln!("started again {:?} after its death", store::clock::now().since(struck));
        watchers.load.acknowledged_after(struck + Duration::from_secs(5), BOUND).await.unwrap();
        lab.wait_redundant(BOUND).await.unwrap();
    }
    assert_eq!(lab.postmaster(&primary).unwrap(), postmaster, "PostgreSQL was left alone");
    assert_eq!(lab.cluster().await.unwrap().service().unwrap(), before, "no role changed");
    assert_eq!(watchers.load.told().unknown, 0, "no session was cut");
    // The keeper is a child of the fencer now, as PostgreSQL is: the one's end must not be taken for the other's.
    lab.kill_postgres(&primary).unwrap();
    lab.wait_served_after(before.0, BOUND).await.unwrap();
    lab.wait_redundant(BOUND).await.unwrap();
    // A member that is killed as a whole stays dead.
    lab.kill_member(&primary).unwrap();
    lab.member_gone(&primary).await.unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(lab.processes_of(&primary), [], "nothing rises again");
}

#[tokio::test]
async fn a_primary_whose_keeper_is_frozen_is_fenced_within_lease_ttl_and_replaced() {
    let (mut scene, primary) = redundant().await;
    let lab = &mut scene.lab;
    let watchers = Watchers::start(lab, 4).await.unwrap();
    watchers.load.acknowledged_count(1_000, BOUND).await.unwrap();
    let steady_from = store::clock::now();
    let (before, _) = lab.cluster().await.unwrap().service().unwrap();
    let struck = lab.signal_keeper(&primary, Signal::SIGSTOP).unwrap();
    let runs = |lab: &chaos::lab::Lab| lab.processes_of(&primary).iter().any(Found::is_postgres);
    // lease_ttl is 4 s; what is above it is for a busy machine.
    let deadline = struck.at + Duration::from_secs(6);
    while runs(lab) {
        assert!(store::clock::now() < deadline, "PostgreSQL of {primary} still runs");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    eprintln!("fenced {:?} after the freeze", store::clock::now().since(struck.at));
    lab.wait_served_after(before, BOUND).await.unwrap();
    watchers.load.acknowledged_after(store::clock::now(), BOUND).await.unwrap();
    lab.signal_keeper(&primary, Signal::SIGCONT).unwrap();
    lab.wait_redundant(BOUND).await.unwrap();
    let (evidence, told) = watchers.finish(lab, (steady_from, struck.at)).await.unwrap();
    let verdict = chaos::verdict::judge(&evidence);
    assert!(verdict.lost.is_empty() && verdict.dual.is_empty(), "{verdict:?}");
    let gap = told.longest_gap(struck.at, store::clock::now());
    eprintln!("longest write gap {gap:?}");
    assert!(gap < Duration::from_secs(8), "{gap:?}");
}

#[tokio::test]
async fn an_upgraded_program_takes_over_from_the_running_keepers_and_no_client_notices() {
    let (mut scene, primary) = redundant().await;
    let lab = &mut scene.lab;
    let watchers = Watchers::start(lab, 4).await.unwrap();
    let before = lab.cluster().await.unwrap().service().unwrap();
    let servers: Vec<_> = lab.members().iter().map(|m| lab.postmaster(m).unwrap()).collect();
    watchers.load.acknowledged_count(200, BOUND).await.unwrap();
    // Two keepers that were started by mistake do not end each other.
    let data = lab.layout().data(&primary).display().to_string();
    let second = Intruder::new(lab, primary.as_str()).with("--data-dir", data).is_refused().await;
    second.says(1, &["another keeper (pid ", "has", "stop it"]);
    let upgraded = lab.layout().root.join("pgdeputy-upgraded");
    std::fs::copy(pgdeputy(), &upgraded).unwrap();
    for member in lab.members() {
        let old = lab.keeper_process(&member).unwrap();
        let begun = store::clock::now();
        lab.upgrade_member(&member, &upgraded).unwrap();
        while keeper_is_old(lab, &member, old) {
            assert!(store::clock::now().since(begun) < BOUND, "the old keeper of {member} stays");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        eprintln!(
            "{member}: the old keeper left {:?} after the new one was started",
            store::clock::now().since(begun)
        );
        watchers.load.acknowledged_after(begun + Duration::from_secs(5), BOUND).await.unwrap();
        lab.wait_redundant(BOUND).await.unwrap();
    }
    let after: Vec<_> = lab.members().iter().map(|m| lab.postmaster(m).unwrap()).collect();
    assert_eq!(after, servers, "no PostgreSQL was touched");
    assert_eq!(lab.cluster().await.unwrap().service().unwrap(), before, "no role changed");
    assert_eq!(watchers.load.told().unknown, 0, "no session was cut");
}

/// Both run for a moment: the new one prepares beside the old one.
fn keeper_is_old(lab: &chaos::lab::Lab, member: &proto::MemberName, old: i32) -> bool {
    lab.processes_of(member).iter().any(|process| process.pid == old)
}

#[tokio::test]
#[ignore = "takes 40 s: part of make test-long"]
async fn a_keeper_that_hardly_gets_any_cpu_keeps_its_primary_or_loses_it_in_time() {
    let (mut scene, primary) = redundant().await;
    let lab = &mut scene.lab;
    let watchers = Watchers::start(lab, 4).await.unwrap();
    watchers.load.acknowledged_count(500, BOUND).await.unwrap();
    let begun = store::clock::now();
    // From a tenth of a CPU down to a fortieth, in slices that are far apart.
    for (off, on) in [(450, 50), (950, 50), (1950, 50)] {
        let until = store::clock::now() + Duration::from_secs(8);
        while store::clock::now() < until {
            lab.signal_keeper(&primary, Signal::SIGSTOP).unwrap();
            tokio::time::sleep(Duration::from_millis(off)).await;
            lab.signal_keeper(&primary, Signal::SIGCONT).unwrap();
            tokio::time::sleep(Duration::from_millis(on)).await;
        }
    }
    let starved_until = store::clock::now();
    lab.wait_redundant(BOUND).await.unwrap();
    let (evidence, told) =
        watchers.finish(lab, (begun - Duration::from_secs(1), begun)).await.unwrap();
    let verdict = chaos::verdict::judge(&evidence);
    assert!(verdict.lost.is_empty() && verdict.dual.is_empty(), "{verdict:?}");
    let gap = told.longest_gap(begun, starved_until);
    eprintln!("longest write gap {gap:?}");
    assert!(gap < Duration::from_secs(10), "{gap:?}");
}
