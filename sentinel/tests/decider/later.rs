//! Switchovers for a later time and away from a zone, and what a preview says of them.

use std::collections::BTreeMap;
use std::time::Duration;

use proto::WallTime;
use proto::request::{RequestId, RequestOutcome, Terms};
use proto::schedule::Scheduled;
use sentinel::decide::preview::preview;
use sentinel::invariant::{self, Rule};
use sentinel::plan::Verdict;

use crate::scene::{Scene, name};

const WINDOW: Duration = Duration::from_secs(60);

/// Somebody puts a switchover to `to` down for `ahead` from now.
fn schedules(scene: &mut Scene, id: u64, ahead: Duration, to: &str) -> RequestId {
    let scheduled = Scheduled {
        id: RequestId::from_random(id),
        by: "ann@north".into(),
        asked: scene.wall(),
        at: scene.wall().plus(ahead),
        window: WINDOW,
        within: Duration::from_secs(30),
        terms: Terms::to(Some(name(to))),
    };
    let id = scheduled.id.clone();
    scene.seen.scheduled.insert(id.clone(), scheduled);
    id
}

fn outcome(scene: &Scene, id: &RequestId) -> Option<RequestOutcome> {
    scene.state().request(id).map(|r| r.outcome.clone())
}

#[test]
fn it_begins_at_its_time_and_once_whoever_leads() {
    let mut scene = Scene::serving("a", &["b", "c"]);
    let id = schedules(&mut scene, 1, Duration::from_secs(3600), "b");
    let plan = scene.settle();
    assert_eq!(plan.wake_at, Some(scene.now() + Duration::from_secs(3600)));
    scene.pass(Duration::from_secs(3599));
    scene.settle();
    assert_eq!(outcome(&scene, &id), None);
    scene.leader_changes();
    scene.pass(Duration::from_secs(1));
    scene.settle();
    assert!(matches!(outcome(&scene, &id), Some(RequestOutcome::Started { .. })));
    let begun = scene.state().switchover().expect("it has begun");
    assert_eq!((&begun.request, &begun.target), (&id, &name("b")));
    // Its end is told, and what is still seen of it begins nothing.
    scene.silent("b");
    scene.settle();
    scene.streams("b");
    scene.settle();
    assert!(matches!(outcome(&scene, &id), Some(RequestOutcome::Nothing { .. })));
    assert!(scene.state().switchover().is_none());
}

#[test]
fn what_is_in_the_way_may_go_away_within_the_window() {
    let mut scene = Scene::serving("a", &["b", "c"]);
    let id = schedules(&mut scene, 1, Duration::from_secs(10), "b");
    scene.silent("b");
    scene.pass(Duration::from_secs(30));
    scene.settle();
    assert_eq!(outcome(&scene, &id), None);
    scene.streams("b");
    scene.settle();
    assert!(matches!(outcome(&scene, &id), Some(RequestOutcome::Started { .. })));
}

#[test]
fn a_time_that_has_passed_is_reported_as_missed_and_nothing_is_done_late() {
    for (blocked, reason) in [(false, "no sentinel led then"), (true, "does not stream")] {
        let mut scene = Scene::serving("a", &["b", "c"]);
        let id = schedules(&mut scene, 1, Duration::from_secs(10), "b");
        if blocked {
            scene.silent("b");
        }
        scene.outage(Duration::from_secs(10) + WINDOW);
        scene.leader_changes();
        scene.settle();
        let Some(RequestOutcome::Refused { reason: said }) = outcome(&scene, &id) else {
            panic!("it was not told")
        };
        assert!(said.starts_with("missed") && said.contains(reason), "{said}");
        assert!(scene.state().switchover().is_none());
        let notes = &scene.history[&(proto::Epoch(1), 0)].notes;
        assert!(notes.iter().any(|n| n.text.contains("missed")), "{notes:?}");
        scene.streams("b");
        scene.settle();
        assert!(scene.state().switchover().is_none(), "it is not begun later");
    }
}

#[test]
fn the_invariants_refuse_a_beginning_at_another_time() {
    let mut scene = Scene::serving("a", &["b", "c"]);
    let id = schedules(&mut scene, 1, Duration::from_secs(1), "b");
    scene.pass(Duration::from_secs(1));
    let Verdict::Change { next, .. } = scene.decide().verdict else { panic!("it does not begin") };
    let refused = |scene: &Scene| {
        let found = invariant::check(scene.state.as_ref(), &next, &scene.seen);
        found.iter().any(|v| v.rule == Rule::Requests)
    };
    assert!(!refused(&scene));
    let at = scene.seen.scheduled[&id].at;
    for shift in [1, -60_000] {
        scene.seen.scheduled.get_mut(&id).unwrap().at = WallTime(at.0 + shift);
        assert!(refused(&scene), "{shift} ms");
    }
    scene.seen.scheduled.clear();
    assert!(refused(&scene), "nobody has asked for it");
}

fn zones(scene: &mut Scene, zones: &[(&str, &str)]) {
    for (member, zone) in zones {
        scene.report(member).zone = Some((*zone).into());
    }
}

fn evacuates(scene: &mut Scene, zone: &str) -> RequestOutcome {
    let id = scene.asks_for_switchover(1, None);
    for request in scene.seen.requests.values_mut() {
        let terms = Terms { away_from: Some(zone.into()), ..Terms::default() };
        request.wanted = proto::request::Wanted::Switchover(terms);
    }
    scene.settle();
    scene.outcome(&id)
}

#[test]
fn a_zone_is_left_for_the_best_member_outside_of_it() {
    let mut scene = Scene::serving("a", &["b", "c", "d"]);
    zones(&mut scene, &[("a", "north"), ("b", "north"), ("c", "south"), ("d", "west")]);
    assert!(matches!(evacuates(&mut scene, "north"), RequestOutcome::Started { .. }));
    assert_eq!(scene.state().switchover().unwrap().target, name("c"));
    // The one that has least left to replay, of those outside.
    scene.is_ready_to_hand_over(&[("b", 0), ("c", 9 << 20), ("d", 0)]);
    scene.settle();
    assert_eq!(scene.state().switchover().unwrap().target, name("d"));
}

#[test]
fn a_zone_that_cannot_or_need_not_be_left_is_refused_with_the_reason() {
    for (given, zone, reason) in [
        (vec![("a", "north"), ("b", "north"), ("c", "north")], "north", "outside zone north"),
        (vec![("a", "north"), ("b", "north")], "north", "c does not say in which zone"),
        (vec![("a", "south"), ("b", "north")], "north", "nothing has to leave"),
        (vec![("b", "south")], "north", "a is in no zone"),
    ] {
        let mut scene = Scene::serving("a", &["b", "c"]);
        zones(&mut scene, &given);
        let RequestOutcome::Refused { reason: said } = evacuates(&mut scene, zone) else {
            panic!("{given:?}")
        };
        assert!(said.contains(reason), "{said}");
    }
}

#[test]
fn a_preview_says_what_the_leader_would_answer_and_why_of_each_member() {
    let mut scene = Scene::serving("a", &["b", "c"]);
    scene.silent("c");
    scene.report("b").problems.insert("the disk is nearly full".into());
    scene.settle();
    let say = |scene: &Scene, to: Option<&str>, left: &[(&str, u64)]| {
        let left: BTreeMap<_, _> = left.iter().map(|(m, bytes)| (name(m), *bytes)).collect();
        let terms = Terms::to(to.map(name));
        let at = (scene.now(), scene.wall());
        preview((&scene.spec, scene.state()), &scene.seen, &terms, &left, at)
    };
    let any = say(&scene, None, &[("b", 5)]);
    assert_eq!(any.target, Ok(name("b")));
    assert_eq!((&any.members[&name("b")].cannot, any.members[&name("b")].left), (&None, Some(5)));
    assert!(any.members[&name("b")].problems.first().unwrap().contains("disk"));
    assert!(any.members[&name("c")].cannot.as_ref().unwrap().contains("does not stream"));
    let away = say(&scene, Some("c"), &[]).target.unwrap_err();
    let id = scene.asks_for_switchover(1, Some("c"));
    let before = scene.state().clone();
    scene.settle();
    let RequestOutcome::Refused { reason } = scene.outcome(&id) else { panic!("it was begun") };
    assert_eq!(away, reason, "the same words");
    assert_eq!(before.switchover(), None);
    let far = say(&scene, Some("b"), &[("b", 1 << 30)]).target.unwrap_err();
    assert!(far.contains("1024 MB left"), "{far}");
}
