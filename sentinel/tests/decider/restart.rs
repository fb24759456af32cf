//! Restart in place.

use proto::report::Server;
use proto::{Epoch, Phase};
use sentinel::plan::WaitingOn;

use crate::scene::{Scene, name};

/// a died while b, its only voter, was away.
fn restarting() -> Scene {
    let mut scene = Scene::serving("a", &["b"]);
    scene.vanishes("b");
    scene.settle();
    scene.dies("a");
    scene.settle();
    scene
}

#[test]
fn a_primary_whose_others_form_no_base_is_started_again() {
    let mut scene = restarting();
    let state = scene.state().clone();
    assert_eq!((state.phase, state.epoch, state.sealing), (Phase::Restarting, Epoch(1), None));
    assert_eq!(state.restart.unwrap().number, 2, "the founding was the first");
    assert!(!state.open_at_once, "what it recovers was perhaps never acknowledged");
    scene.pass(std::time::Duration::from_secs(1));
    assert_eq!(scene.waits(), WaitingOn::Restart { primary: name("a"), number: 2 });
    scene.opens("a");
    scene.settle();
    assert_eq!(scene.state().phase, Phase::Open);
}

#[test]
fn an_opening_of_another_order_does_not_open() {
    let mut scene = restarting();
    scene.opens("a");
    scene.report("a").opened.as_mut().unwrap().restart = 1;
    scene.settle();
    assert_eq!(scene.state().phase, Phase::Restarting);
}

#[test]
fn the_same_death_is_ordered_once_and_another_one_after_a_pause() {
    let mut scene = restarting();
    scene.leader_changes();
    scene.settle();
    assert_eq!(scene.state().restart.as_ref().unwrap().number, 2);
    scene.pass(std::time::Duration::from_secs(1));
    scene.dies("a");
    assert_eq!(scene.waits(), WaitingOn::NextRestart { primary: name("a"), number: 2 });
    scene.pass(scene.spec.promote_patience);
    scene.settle();
    assert_eq!(scene.state().restart.as_ref().unwrap().number, 3);
}

#[test]
fn a_second_death_fails_over_as_soon_as_the_others_form_a_base() {
    let mut scene = restarting();
    scene.returns("b");
    scene.streams("b");
    scene.silent("b");
    scene.settle();
    assert_eq!(scene.sealing(), None, "the restart goes on: b may come too late");
    scene.pass(std::time::Duration::from_secs(1));
    scene.dies("a");
    scene.settle();
    assert_eq!(scene.sealing(), Some(Epoch(2)));
    assert_eq!(scene.state().phase, Phase::Restarting);
}

#[test]
fn a_restart_that_takes_too_long_is_overtaken_and_never_begun_anew() {
    let mut scene = restarting();
    scene.report("a").server = Server::Starting;
    scene.pass(std::time::Duration::from_secs(600));
    assert_eq!(scene.waits(), WaitingOn::Restart { primary: name("a"), number: 2 });
    scene.returns("b");
    scene.streams("b");
    scene.silent("b");
    scene.settle();
    assert_eq!(scene.sealing(), Some(Epoch(2)));
}

/// All were stopped and come back: b and c have heard nobody since.
fn started_again() -> Scene {
    let mut scene = Scene::serving("a", &["b", "c"]);
    scene.vanishes("a");
    for standby in ["b", "c"] {
        scene.silent(standby);
        scene.report(standby).never_received = true;
    }
    scene
}

#[test]
fn after_a_stop_of_everything_the_primary_is_waited_for_and_goes_on_in_its_epoch() {
    let mut scene = started_again();
    assert!(matches!(scene.waits(), WaitingOn::IsolationGrace { .. }), "{:?}", scene.waits());
    scene.pass(std::time::Duration::from_secs(5));
    scene.founds("b");
    scene.streams("b");
    scene.silent("b");
    scene.returns("a");
    scene.founds("a");
    scene.dies("a");
    scene.settle();
    let state = scene.state();
    assert_eq!((&state.phase, state.epoch, state.sealing), (&Phase::Restarting, Epoch(1), None));
    // It dies again: whoever is there takes over.
    scene.pass(std::time::Duration::from_secs(1));
    scene.dies("a");
    scene.settle();
    assert_eq!(scene.sealing(), Some(Epoch(2)));
}

#[test]
fn after_a_stop_of_everything_a_primary_that_does_not_come_back_is_replaced_after_the_grace() {
    let mut scene = started_again();
    scene.settle();
    scene.pass(scene.spec.isolation_grace);
    scene.settle();
    assert_eq!(scene.sealing(), Some(Epoch(2)));
}

#[test]
fn one_standby_that_has_heard_the_primary_is_enough_for_a_failover() {
    let mut scene = started_again();
    scene.report("b").never_received = false;
    scene.report("c").never_received = false;
    scene.settle();
    assert_eq!(scene.sealing(), Some(Epoch(2)), "both hear it no more");
    let mut scene = Scene::serving("a", &["b", "c"]);
    scene.report("c").never_received = true;
    scene.dies("a");
    scene.settle();
    assert_eq!(scene.sealing(), Some(Epoch(2)), "it died under b's eyes");
}

#[test]
fn while_everybody_stops_nobody_is_promoted_and_nothing_ordered() {
    let mut scene = Scene::serving("a", &["b", "c"]);
    for member in ["a", "b", "c"] {
        scene.report(member).leaving = true;
    }
    let before = scene.state().clone();
    scene.dies("a");
    scene.settle();
    scene.vanishes("a");
    scene.silent("b");
    scene.silent("c");
    scene.settle();
    assert_eq!(*scene.state(), before);
}

#[test]
fn nothing_is_restarted_while_sealing() {
    let mut scene = Scene::serving("a", &["b", "c"]);
    scene.dies("a");
    scene.settle();
    let order = scene.state().restart.clone();
    scene.vanishes("b");
    scene.vanishes("c");
    scene.pass(std::time::Duration::from_secs(600));
    scene.settle();
    assert_eq!((scene.sealing(), scene.state().restart.clone()), (Some(Epoch(2)), order));
    // The seal is completed by the old primary, as a new epoch on a new timeline.
    scene.seals("a", "0/5000000");
    scene.settle();
    assert_eq!((scene.primary(), scene.state().epoch), (name("a"), Epoch(2)));
}
