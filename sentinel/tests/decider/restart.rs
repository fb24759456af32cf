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
