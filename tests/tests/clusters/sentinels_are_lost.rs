//! The sentinels die, freeze and come back, alone and together with the primary. Nobody's data depends on them: while
//! there is none nothing happens, and a leader that comes back late changes nothing.

#![allow(clippy::unwrap_used, reason = "a test may panic, also in its helpers")]

use std::time::Duration;

use chaos::evidence::Watchers;
use chaos::lab::Sentinel;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use store::clock;
use system_tests::scene;

const BOUND: Duration = Duration::from_secs(120);

#[tokio::test]
async fn a_leader_that_thaws_after_another_has_failed_over_changes_nothing() {
    let mut scene = scene(|_| {}).await;
    let lab = &mut scene.lab;
    lab.wait_redundant(BOUND).await.unwrap();
    let watchers = Watchers::start(lab, 4).await.unwrap();
    watchers.load.acknowledged_count(500, BOUND).await.unwrap();
    let steady_from = clock::now();
    // Frozen at several moments of its work on a death: before it has read, while it writes, after it has written.
    for after in [0_u64, 3, 6, 10, 15, 25].map(Duration::from_millis) {
        let (before, primary) = lab.cluster().await.unwrap().service().unwrap();
        let frozen = lab.leading_sentinel().await.unwrap().expect("a sentinel leads");
        lab.kill_postgres(&primary).unwrap();
        tokio::time::sleep(after).await;
        lab.freeze_process(frozen.pid).await.unwrap();
        let (served, _) = lab.wait_served_after(before, BOUND).await.unwrap();
        let next = lab.led_by_another(std::slice::from_ref(&frozen), BOUND).await.unwrap();
        let settled = lab.wait_redundant(BOUND).await.unwrap();
        thaw(&frozen);
        // It was let go while another one led: whatever it still sends is refused, and it stands as a candidate.
        let log = lab.layout().log(&frozen.name);
        knows_that_it_is_deposed(&log, clock::now() + BOUND).await;
        let now = lab.cluster().await.unwrap();
        assert_eq!(now.service().unwrap().0, served, "frozen after {after:?}");
        let (number, state) = (settled.state.unwrap().number, now.state.unwrap());
        assert_eq!(state.number, number, "the thawed leader wrote {state:?}");
        let leads = lab.leading_sentinel().await.unwrap();
        assert_eq!(leads.as_ref(), Some(&next), "it does not lead again by itself");
    }
    let struck = clock::now();
    let (evidence, _) = watchers.finish(lab, (steady_from, struck)).await.unwrap();
    let verdict = chaos::verdict::judge(&evidence);
    assert!(verdict.lost.is_empty() && verdict.dual.is_empty(), "{verdict:?}");
}

fn thaw(sentinel: &Sentinel) {
    kill(Pid::from_raw(sentinel.pid), Signal::SIGCONT).unwrap();
}

/// Waits until the last word about leading in its log is that it does not.
async fn knows_that_it_is_deposed(log: &std::path::Path, deadline: proto::Moment) {
    loop {
        let text = std::fs::read_to_string(log).unwrap();
        let leading = text.rfind(" leading ");
        if text.rfind("leadership lost") > leading {
            return;
        }
        assert!(clock::now() < deadline, "it still takes itself for the leader:\n{text}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn without_any_sentinel_nothing_happens_and_the_first_one_that_is_back_fails_over() {
    let mut scene = scene(|_| {}).await;
    let lab = &mut scene.lab;
    lab.wait_redundant(BOUND).await.unwrap();
    let watchers = Watchers::start(lab, 4).await.unwrap();
    watchers.load.acknowledged_count(500, BOUND).await.unwrap();
    let steady_from = clock::now();
    for sentinel in lab.sentinels() {
        lab.kill_sentinel(&sentinel).await.unwrap();
    }
    assert_eq!(lab.sentinels(), []);
    let before = lab.cluster().await.unwrap();
    // Longer than every lease: nobody's right depends on a sentinel.
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(lab.cluster().await.unwrap().state, before.state);
    let now = clock::now();
    assert_eq!(watchers.load.told().unknown, 0, "no session was cut");
    assert!(watchers.load.told().longest_gap(steady_from, now) < Duration::from_millis(750));
    // A primary that dies now stays down: who would know that another may take over?
    let (service, primary) = before.service().unwrap();
    let struck = lab.kill_postgres(&primary).unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    let after = lab.cluster().await.unwrap();
    assert_eq!(after.state, before.state, "nobody decides");
    assert_eq!(lab.start_sentinels().unwrap().len(), 3);
    lab.wait_served_after(service, BOUND).await.unwrap();
    watchers.load.acknowledged_after(clock::now(), BOUND).await.unwrap();
    lab.wait_redundant(BOUND).await.unwrap();
    let (evidence, _) = watchers.finish(lab, (steady_from, struck.at)).await.unwrap();
    let verdict = chaos::verdict::judge(&evidence);
    assert!(verdict.lost.is_empty() && verdict.dual.is_empty(), "{verdict:?}");
}
