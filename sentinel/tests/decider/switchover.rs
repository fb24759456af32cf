//! A planned switchover: what is refused, the order of the steps, and that nothing is lost, rewound or repeated (I12).

use std::time::Duration;

use proto::report::{Handover, Readiness};
use proto::request::RequestOutcome;
use proto::state::SwitchoverStep;
use proto::{Assignment, Epoch, Phase};
use sentinel::invariant::{self, Rule};
use sentinel::plan::{Verdict, WaitingOn};

use crate::scene::{Scene, millis, name, names};

fn step(scene: &Scene) -> Option<SwitchoverStep> {
    scene.state().switchover().map(|s| s.step.clone())
}

/// A switchover of a to b whose primary was told to stop.
fn stopping() -> (Scene, proto::RequestId) {
    let mut scene = Scene::serving("a", &["b", "c"]);
    let id = scene.asks_for_switchover(1, Some("b"));
    scene.settle();
    scene.is_ready_to_hand_over(&[("b", 0), ("c", 0)]);
    scene.settle();
    assert_eq!(step(&scene), Some(SwitchoverStep::Stop));
    (scene, id)
}

#[test]
fn a_switchover_goes_from_checkpoint_to_stop_to_seal_to_the_target() {
    let mut scene = Scene::serving("a", &["b", "c"]);
    let id = scene.asks_for_switchover(1, Some("b"));
    assert!(matches!(scene.waits(), WaitingOn::Checkpoint { .. }));
    assert!(matches!(scene.outcome(&id), RequestOutcome::Started { .. }));
    assert_eq!(scene.state().writable_primary(), Some(&name("a")), "clients write on meanwhile");
    scene.is_ready_to_hand_over(&[("b", 0), ("c", 0)]);
    assert!(matches!(scene.waits(), WaitingOn::HandOver { .. }));
    assert_eq!(scene.state().writable_primary(), None);
    assert_eq!(scene.sealing(), None, "the target still has to receive the shutdown checkpoint");
    scene.hands_over("0/5000148");
    scene.settle();
    assert_eq!(scene.sealing(), Some(Epoch(2)));
    for member in ["b", "c"] {
        scene.seals(member, "0/5000148");
    }
    scene.settle();
    assert_eq!(scene.primary(), name("b"));
    assert_eq!(scene.voters(), names(&["a", "c"]), "the old primary was stopped cleanly");
    assert!(scene.state().open_at_once);
    scene.opens("b");
    scene.settle();
    assert!(
        matches!(scene.outcome(&id), RequestOutcome::Done { what } if what.contains("b is the primary"))
    );
    let record = &scene.history[&(Epoch(2), 0)];
    let phases: Vec<&str> = record.phases.iter().map(|p| p.name.as_str()).collect();
    assert_eq!(phases[..5], ["checkpoint", "stop", "seal", "choose", "promote"]);
}

#[test]
fn an_impossible_target_is_refused_with_a_reason_and_nothing_changes() {
    for (target, change, reason) in [
        ("x", (|_| {}) as fn(&mut Scene), "the members are a, b, c"),
        ("a", |_| {}, "the primary already"),
        ("b", |s| s.vanishes("b"), "no live report"),
        ("b", |s| s.silent("b"), "does not stream"),
        ("b", |s| s.report("b").complete = false, "incomplete"),
        ("b", |s| s.report("b").leaving = true, "asked to stop"),
        (
            "b",
            |s| {
                s.spec.members.entry(name("b")).or_default().promote =
                    proto::spec::Permission::Never;
            },
            "promote = never",
        ),
    ] {
        let mut scene = Scene::serving("a", &["b", "c"]);
        change(&mut scene);
        scene.settle();
        let before = scene.state().clone();
        let id = scene.asks_for_switchover(1, Some(target));
        scene.settle();
        let RequestOutcome::Refused { reason: said } = scene.outcome(&id) else {
            panic!("{target}")
        };
        assert!(said.contains(reason), "{target}: {said}");
        let mut after = scene.state().clone();
        assert_eq!(after.requests.len(), 1);
        (after.requests, after.number) = (before.requests.clone(), before.number);
        assert_eq!(after, before, "{target}");
    }
}

#[test]
fn a_request_is_answered_once() {
    let mut scene = Scene::serving("a", &["b", "c"]);
    let id = scene.asks_for_switchover(1, Some("x"));
    scene.settle();
    scene.asks_for_switchover(1, Some("b"));
    scene.settle();
    assert!(matches!(scene.outcome(&id), RequestOutcome::Refused { .. }));
    assert_eq!(step(&scene), None, "whatever stands under an id that was answered is left alone");
}

#[test]
fn a_second_switchover_is_refused_while_one_is_under_way() {
    let mut scene = Scene::serving("a", &["b", "c"]);
    scene.asks_for_switchover(1, Some("b"));
    scene.settle();
    let second = scene.asks_for_switchover(2, Some("c"));
    scene.settle();
    assert!(
        matches!(scene.outcome(&second), RequestOutcome::Refused { reason } if reason.contains("under way"))
    );
    assert_eq!(step(&scene), Some(SwitchoverStep::Checkpoint));
}

#[test]
fn without_a_target_the_one_with_least_to_replay_is_taken_then_priority_then_name() {
    for (left, priority, chosen) in [
        ([("b", 0), ("c", 0)], 0, "b"),
        ([("b", 5 << 20), ("c", 9)], 0, "c"),
        ([("b", 100), ("c", 9)], 0, "b"),
        ([("b", 0), ("c", 9)], 7, "c"),
    ] {
        let mut scene = Scene::serving("a", &["b", "c"]);
        scene.spec.members.entry(name("c")).or_default().priority = priority;
        scene.asks_for_switchover(1, None);
        scene.settle();
        scene.is_ready_to_hand_over(&left);
        scene.settle();
        assert_eq!(scene.state().switchover().unwrap().target, name(chosen), "{left:?}");
    }
}

#[test]
fn a_target_that_is_lost_before_the_stop_ends_it_with_nothing_done() {
    let mut scene = Scene::serving("a", &["b", "c"]);
    let id = scene.asks_for_switchover(1, Some("b"));
    scene.settle();
    scene.silent("b");
    scene.settle();
    assert_eq!(scene.state().phase, Phase::Open);
    assert!(matches!(scene.outcome(&id), RequestOutcome::Nothing { .. }));
    assert_eq!(scene.state().epoch, Epoch(1));
}

#[test]
fn a_primary_that_is_never_ready_goes_on_serving() {
    let mut scene = Scene::serving("a", &["b", "c"]);
    let id = scene.asks_for_switchover(1, Some("b"));
    scene.settle();
    scene.pass(Duration::from_secs(29));
    scene.settle();
    assert_eq!(step(&scene), Some(SwitchoverStep::Checkpoint));
    scene.pass(Duration::from_secs(2));
    scene.settle();
    assert!(matches!(scene.outcome(&id), RequestOutcome::Nothing { .. }));
    let late = Handover { request: id, readiness: Readiness::Ready { left: [].into() } };
    scene.report("a").handover = Some(late);
    scene.settle();
    assert_eq!(scene.state().phase, Phase::Open, "a late word begins nothing anew");
}

#[test]
fn a_primary_that_dies_before_the_stop_is_failed_over() {
    let mut scene = Scene::serving("a", &["b", "c"]);
    let id = scene.asks_for_switchover(1, Some("b"));
    scene.settle();
    scene.dies("a");
    scene.settle();
    assert_eq!(scene.sealing(), Some(Epoch(2)));
    assert!(
        matches!(scene.outcome(&id), RequestOutcome::Nothing { reason } if reason.contains("died"))
    );
    scene.seals("b", "0/5000000");
    scene.seals("c", "0/5000148");
    scene.settle();
    assert_eq!(scene.primary(), name("c"), "a failover takes who holds the most");
}

#[test]
fn the_end_of_postgres_in_a_switchover_is_no_death() {
    let (mut scene, _) = stopping();
    scene.dies("a");
    for standby in ["b", "c"] {
        scene.silent(standby);
        scene.report(standby).silence = Some(Epoch(1));
    }
    assert!(matches!(scene.waits(), WaitingOn::HandOver { .. }));
    assert_eq!(scene.sealing(), None);
}

#[test]
fn a_target_that_did_not_get_the_end_is_not_promoted() {
    let (mut scene, id) = stopping();
    scene.hands_over("0/5000148");
    scene.settle();
    scene.seals("b", "0/5000000");
    scene.seals("c", "0/5000000");
    scene.settle();
    assert_eq!(
        (scene.primary(), scene.state().epoch),
        (name("a"), Epoch(2)),
        "I12: nothing is lost"
    );
    scene.opens("a");
    scene.settle();
    assert!(
        matches!(scene.outcome(&id), RequestOutcome::Nothing { reason } if reason.contains("primary again"))
    );
}

#[test]
fn a_target_that_dies_after_the_stop_is_replaced_by_another_who_holds_the_end() {
    let (mut scene, _) = stopping();
    scene.hands_over("0/5000148");
    scene.vanishes("b");
    scene.settle();
    scene.seals("c", "0/5000148");
    scene.pass(millis(600));
    scene.settle();
    assert_eq!(scene.primary(), name("c"));
}

#[test]
fn the_target_is_waited_for_though_the_old_primary_alone_is_a_base() {
    let (mut scene, _) = stopping();
    scene.hands_over("0/5000148");
    scene.settle();
    scene.pass(millis(100));
    assert!(matches!(scene.waits(), WaitingOn::SealPatience { .. }));
    scene.seals("b", "0/5000148");
    scene.pass(millis(20));
    scene.settle();
    assert_eq!(scene.primary(), name("b"));
    assert_eq!(
        scene.voters(),
        names(&["a", "c"]),
        "commits need not wait for the old primary's start"
    );
}

#[test]
fn when_the_old_primary_is_gone_for_good_the_others_go_on_without_it() {
    let (mut scene, _) = stopping();
    scene.hands_over("0/5000148");
    scene.settle();
    scene.vanishes("a");
    scene.seals("b", "0/5000000");
    scene.seals("c", "0/5000000");
    scene.settle();
    assert_eq!(scene.primary(), name("b"), "a base without it holds all that was acknowledged");
}

#[test]
fn a_primary_whose_keeper_dies_in_the_stop_is_replaced_when_its_right_has_lapsed() {
    let (mut scene, _) = stopping();
    scene.vanishes("a");
    scene.silent("b");
    scene.silent("c");
    scene.settle();
    assert_eq!(scene.sealing(), Some(Epoch(2)));
    scene.seals("b", "0/5000148");
    scene.seals("c", "0/5000148");
    scene.settle();
    assert_eq!(scene.primary(), name("b"));
}

#[test]
fn a_primary_that_does_not_stop_is_sealed_after_a_while_and_never_goes_on() {
    let (mut scene, _) = stopping();
    scene.pass(Duration::from_secs(14));
    assert!(matches!(scene.waits(), WaitingOn::HandOver { .. }));
    scene.pass(Duration::from_secs(2));
    scene.settle();
    assert_eq!(scene.sealing(), Some(Epoch(2)));
    assert!(scene.is_asked_to_seal("a"));
}

#[test]
fn a_later_leader_goes_on_from_every_step() {
    let mut scene = Scene::serving("a", &["b", "c"]);
    scene.asks_for_switchover(1, Some("b"));
    scene.settle();
    scene.leader_changes();
    scene.is_ready_to_hand_over(&[("b", 0)]);
    scene.settle();
    scene.leader_changes();
    assert!(matches!(scene.waits(), WaitingOn::HandOver { .. }));
    scene.hands_over("0/5000148");
    scene.settle();
    scene.leader_changes();
    scene.seals("b", "0/5000148");
    scene.seals("c", "0/5000148");
    scene.settle();
    assert_eq!(scene.primary(), name("b"));
}

#[test]
fn with_two_members_the_old_primary_votes_for_the_new_one() {
    let mut scene = Scene::serving("a", &["b"]);
    scene.asks_for_switchover(1, None);
    scene.settle();
    scene.is_ready_to_hand_over(&[("b", 0)]);
    scene.settle();
    scene.hands_over("0/5000148");
    scene.settle();
    scene.seals("b", "0/5000148");
    scene.settle();
    assert_eq!((scene.primary(), scene.voters()), (name("b"), names(&["a"])));
}

#[test]
fn the_primary_is_asked_to_hand_over_and_waits_for_voters_and_target_only() {
    let (scene, _) = stopping();
    match proto::assignment::assignment(scene.state(), &name("a")) {
        Assignment::HandOver(handover) => {
            assert_eq!(handover.sealing, Epoch(2));
            assert_eq!(handover.waits_for, ["b.e1", "c.e1", "b.e1"]);
        }
        other => panic!("{other:?}"),
    }
    let standby = proto::assignment::assignment(scene.state(), &name("b"));
    assert!(matches!(standby, Assignment::Follow(_)), "it receives the end of the WAL");
}

#[test]
fn a_switchover_that_goes_back_or_skips_is_refused_by_the_invariants() {
    let (scene, _) = stopping();
    let rules = |change: &dyn Fn(&mut proto::ClusterState)| {
        let mut next = scene.state().clone();
        next.number = next.number.next();
        change(&mut next);
        let broken = invariant::check(scene.state.as_ref(), &next, &scene.seen);
        broken.into_iter().map(|v| v.rule).collect::<Vec<_>>()
    };
    assert!(rules(&|s| s.phase = Phase::Open).contains(&Rule::Switchover));
    let position =
        proto::WalPosition { epoch: Epoch(1), lsn: proto::Lsn(1), timeline: proto::Timeline(1) };
    let early = |s: &mut proto::ClusterState| {
        if let Phase::Switchover(switchover) = &mut s.phase {
            switchover.step = SwitchoverStep::Sealed { position };
        }
        s.sealing = Some(Epoch(2));
    };
    assert!(rules(&early).contains(&Rule::Switchover), "nobody has sealed");
    assert!(rules(&|s| s.requests.clear()).contains(&Rule::Requests));
}

#[test]
fn the_invariants_refuse_a_next_primary_that_lacks_what_the_stopped_one_held() {
    let (mut scene, _) = stopping();
    scene.hands_over("0/5000148");
    scene.settle();
    scene.seals("b", "0/5000000");
    scene.seals("c", "0/5000000");
    // The decider is asked while the old primary's report is away, and its plan is judged when it is back.
    let back = scene.report("a").clone();
    scene.seen.members.remove(&name("a"));
    let plan = scene.decide();
    let Verdict::Change { next, .. } = plan.verdict else { panic!("{:?}", plan.verdict) };
    assert_eq!(next.primary, Some(name("b")));
    scene.seen.members.insert(name("a"), back);
    let broken = invariant::check(scene.state.as_ref(), &next, &scene.seen);
    assert!(broken.iter().any(|v| v.rule == Rule::Switchover), "{broken:?}");
}
