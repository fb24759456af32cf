//! The hold: proxies make their clients wait before the primary is stopped, or the switchover comes to nothing.

use std::time::Duration;

use proto::proxy::Clients;
use proto::request::{RequestId, RequestOutcome, Unheld, Wanted};
use proto::state::SwitchoverStep;
use proto::{Epoch, Phase};
use sentinel::invariant::{self, Rule};
use sentinel::plan::WaitingOn;

use crate::scene::{Scene, name, names};

fn holds(scene: &Scene) -> bool {
    scene.state().switchover().is_some_and(|s| matches!(s.step, SwitchoverStep::Hold { .. }))
}

fn stops(scene: &Scene) -> bool {
    scene.state().handing_over().is_some()
}

/// A switchover of a to b that waits for the proxies p1 and p2; p3 cuts its clients.
fn holding() -> (Scene, RequestId) {
    holding_on(|_| {})
}

fn holding_on(terms: impl FnOnce(&mut proto::request::Terms)) -> (Scene, RequestId) {
    let mut scene = Scene::serving("a", &["b", "c"]);
    scene.proxy("p1", Clients::Held, None);
    scene.proxy("p2", Clients::Held, None);
    scene.proxy("p3", Clients::Cut, None);
    let id = scene.asks_for_switchover(1, Some("b"));
    for request in scene.seen.requests.values_mut() {
        if let Wanted::Switchover(wanted) = &mut request.wanted {
            terms(wanted);
            break;
        }
    }
    scene.settle();
    assert!(!holds(&scene), "clients are not held for the checkpoint");
    scene.is_ready_to_hand_over(&[("b", 0), ("c", 0)]);
    scene.settle();
    assert!(holds(&scene));
    (scene, id)
}

fn called_off(scene: &Scene, id: &RequestId) -> String {
    assert_eq!(scene.state().phase, Phase::Open);
    assert_eq!(scene.state().epoch, Epoch(1));
    let RequestOutcome::Nothing { reason } = scene.outcome(id) else { panic!("it went on") };
    let notes = &scene.history[&(Epoch(1), 0)].notes;
    assert!(notes.iter().any(|n| n.text.contains(&reason)), "the history tells: {notes:?}");
    reason
}

#[test]
fn the_primary_is_stopped_once_every_proxy_that_can_holds_its_clients() {
    let (mut scene, id) = holding();
    assert_eq!(scene.state().writable_primary(), Some(&name("a")), "running transactions end");
    scene.proxy("p1", Clients::Held, Some(&id));
    let WaitingOn::Held { proxies, .. } = scene.waits() else { panic!("it does not wait") };
    assert_eq!(proxies, ["p2"]);
    scene.proxy("p2", Clients::Held, Some(&RequestId::from_random(7)));
    assert!(matches!(scene.waits(), WaitingOn::Held { .. }), "it holds for another one");
    scene.proxy("p2", Clients::Held, Some(&id));
    scene.settle();
    assert!(stops(&scene));
    let record = &scene.history[&(Epoch(2), 0)];
    let phases: Vec<&str> = record.phases.iter().map(|p| p.name.as_str()).collect();
    assert_eq!(phases, ["checkpoint", "hold", "stop"]);
}

#[test]
fn a_proxy_that_does_not_hold_in_time_ends_the_switchover_with_nothing_done() {
    let (mut scene, id) = holding();
    scene.proxy("p1", Clients::Held, Some(&id));
    scene.settle();
    scene.pass(Duration::from_secs(4));
    scene.settle();
    assert!(holds(&scene));
    scene.pass(Duration::from_secs(1));
    scene.settle();
    let reason = called_off(&scene, &id);
    assert!(reason.contains("p2") && reason.contains("within 5 s"), "{reason}");
    scene.proxy("p2", Clients::Held, Some(&id));
    scene.settle();
    assert_eq!(scene.state().phase, Phase::Open, "a late word begins nothing anew");
}

#[test]
fn a_keeper_that_stops_goes_on_without_the_proxies_that_do_not_hold() {
    let (mut scene, _) = holding_on(|terms| {
        terms.unheld = Unheld::Cut;
        terms.hold = Duration::from_secs(2);
    });
    scene.pass(Duration::from_secs(1));
    scene.settle();
    assert!(holds(&scene));
    scene.pass(Duration::from_secs(1));
    scene.settle();
    assert!(stops(&scene));
}

#[test]
fn a_hold_ends_with_the_time_of_the_whole_switchover() {
    let mut scene = Scene::serving("a", &["b", "c"]);
    scene.proxy("p1", Clients::Held, None);
    let id = scene.asks_for_switchover(1, Some("b"));
    scene.settle();
    scene.pass(Duration::from_secs(28));
    scene.is_ready_to_hand_over(&[("b", 0)]);
    scene.settle();
    let step = scene.state().switchover().map(|s| s.step.clone());
    let Some(SwitchoverStep::Hold { within, .. }) = step else { panic!("{step:?}") };
    assert_eq!(within, Duration::from_secs(2));
    scene.pass(Duration::from_secs(2));
    scene.settle();
    called_off(&scene, &id);
}

#[test]
fn proxies_that_are_gone_are_not_waited_for() {
    let (mut scene, id) = holding();
    scene.proxy("p1", Clients::Held, Some(&id));
    scene.settle();
    scene.seen.proxies.remove("p2");
    scene.settle();
    assert!(stops(&scene));
    let (mut scene, _) = holding();
    scene.seen.proxies.clear();
    scene.settle();
    assert!(stops(&scene));
}

#[test]
fn a_later_leader_goes_on_with_the_hold() {
    let (mut scene, id) = holding();
    scene.leader_changes();
    scene.proxy("p1", Clients::Held, Some(&id));
    assert!(matches!(scene.waits(), WaitingOn::Held { .. }));
    scene.leader_changes();
    scene.pass(Duration::from_secs(6));
    scene.settle();
    called_off(&scene, &id);
}

#[test]
fn a_target_or_a_primary_that_is_lost_in_the_hold_ends_it() {
    let (mut scene, id) = holding();
    scene.silent("b");
    scene.settle();
    called_off(&scene, &id);
    let (mut scene, id) = holding();
    scene.dies("a");
    scene.settle();
    assert_eq!(scene.sealing(), Some(Epoch(2)));
    assert!(matches!(scene.outcome(&id), RequestOutcome::Nothing { .. }));
    let (mut scene, id) = holding();
    scene.report("a").handover = None;
    scene.settle();
    assert!(called_off(&scene, &id).contains("begun anew"));
}

#[test]
fn the_invariants_refuse_a_stop_while_a_live_proxy_does_not_hold() {
    let (mut scene, id) = holding();
    let broken = |scene: &Scene, change: &dyn Fn(&mut proto::state::Switchover)| {
        let mut next = scene.state().clone();
        next.number = next.number.next();
        let Phase::Switchover(switchover) = &mut next.phase else { panic!("none is under way") };
        switchover.step = SwitchoverStep::Stop;
        change(switchover);
        let found = invariant::check(scene.state.as_ref(), &next, &scene.seen);
        found.iter().any(|v| v.rule == Rule::Switchover)
    };
    assert!(broken(&scene, &|_| {}));
    assert!(!broken(&scene, &|s| s.unheld = Unheld::Cut), "that was asked for");
    assert!(broken(&scene, &|s| s.step = SwitchoverStep::Checkpoint), "it goes back");
    scene.proxy("p1", Clients::Held, Some(&id));
    scene.proxy("p2", Clients::Held, Some(&id));
    assert!(!broken(&scene, &|_| {}));
}

#[test]
fn what_follows_the_hold_is_as_without_one() {
    let (mut scene, id) = holding();
    for proxy in ["p1", "p2"] {
        scene.proxy(proxy, Clients::Held, Some(&id));
    }
    scene.settle();
    scene.hands_over("0/5000148");
    scene.settle();
    scene.seals("b", "0/5000148");
    scene.seals("c", "0/5000148");
    scene.settle();
    assert_eq!((scene.primary(), scene.voters()), (name("b"), names(&["a", "c"])));
    scene.opens("b");
    scene.settle();
    assert!(matches!(scene.outcome(&id), RequestOutcome::Done { .. }));
}
