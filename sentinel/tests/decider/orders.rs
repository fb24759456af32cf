//! What operators order: pauses, members that leave, accepted loss; and durability that gives way.

use std::time::Duration;

use proto::report::Server;
use proto::request::{Request, RequestId, RequestOutcome, Terms, Wanted};
use proto::spec::{Durability, MemberSpec, Permission, SynchronousMode};
use proto::{ClusterSpec, Epoch, Phase};
use sentinel::invariant::{Rule, check};
use sentinel::plan::{Verdict, WaitingOn};

use crate::scene::{Scene, millis, name, names};

fn asks(scene: &mut Scene, bits: u64, wanted: Wanted) -> RequestOutcome {
    let request = Request {
        id: RequestId::from_random(bits),
        by: "ann@north".into(),
        asked: scene.wall(),
        valid_for: Duration::from_secs(30),
        wanted,
    };
    let (id, kind) = (request.id.clone(), request.wanted.kind());
    scene.seen.requests.insert(kind, request);
    scene.settle();
    scene.seen.requests.remove(&kind);
    scene.state().request(&id).expect("it was answered").outcome.clone()
}

fn refusal(scene: &mut Scene, bits: u64, wanted: Wanted) -> String {
    let before = scene.state().orders.clone();
    let outcome = asks(scene, bits, wanted);
    assert_eq!(scene.state().orders, before, "a refused request changes nothing");
    match outcome {
        RequestOutcome::Refused { reason } => reason,
        other => panic!("not refused but {other:?}"),
    }
}

fn available() -> ClusterSpec {
    ClusterSpec { durability: Durability::Available, ..ClusterSpec::default() }
}

fn cfgs(scene: &Scene) -> Vec<String> {
    scene.state().cfgs.iter().map(ToString::to_string).collect()
}

#[test]
fn with_no_voter_left_and_durability_available_the_primary_goes_on_alone_and_nobody_replaces_it() {
    let mut scene = Scene::serving_with(available(), "a", &["b"]);
    scene.vanishes("b");
    scene.settle();
    assert_eq!(scene.voters(), names(&["b"]), "its lease may only have lapsed in a stall");
    scene.pass(millis(400));
    scene.settle();
    assert_eq!(cfgs(&scene), ["#2 {a; b; 1}", "#3 {a; ; 0}"]);
    scene.confirms("0/5000000");
    let plan = scene.settle();
    assert_eq!(cfgs(&scene), ["#3 {a; ; 0}"]);
    assert!(plan.explanation.warnings.iter().any(|w| w.contains("alone")));
    // b is back, and a dies before b has joined: nobody is promoted over it.
    scene.returns("b");
    scene.dies("a");
    assert!(!matches!(scene.waits(), WaitingOn::Seals { .. }));
    assert_eq!((scene.sealing(), scene.state().phase.clone()), (None, Phase::Restarting));
    assert!(scene.state().open_at_once);
}

#[test]
fn with_durability_available_voters_that_hear_nothing_stay_voters_until_the_primary_has_shown_that_it_lives()
 {
    for standbys in [&["b"][..], &["b", "c"]] {
        // Lost with its host: its right is held until its lease ends, and nobody streams any more.
        let mut scene = Scene::serving_with(available(), "a", standbys);
        for standby in standbys {
            scene.silent(standby);
        }
        scene.pass(scene.spec.lease_ttl - millis(1));
        scene.settle();
        assert_eq!(cfgs(&scene).len(), 1, "nothing says that a lives");
        scene.vanishes("a");
        scene.settle();
        assert_eq!(scene.sealing(), Some(Epoch(2)), "and so it can be replaced");

        // It lives, and is heard by nobody but etcd.
        let mut scene = Scene::serving_with(available(), "a", standbys);
        for standby in standbys {
            scene.silent(standby);
        }
        scene.pass(scene.spec.lease_ttl);
        scene.settle();
        assert_eq!(cfgs(&scene).last().unwrap(), "#3 {a; ; 0}");
    }
}

#[test]
fn a_voter_that_is_back_votes_again_and_only_its_proof_ends_the_time_without() {
    let mut scene = Scene::serving_with(available(), "a", &["b"]);
    scene.dies("b");
    scene.settle();
    assert_eq!(cfgs(&scene).last().unwrap(), "#3 {a; ; 0}", "a death is known at once");
    scene.confirms("0/5000000");
    scene.settle();
    scene.streams("b");
    scene.settle();
    assert_eq!(cfgs(&scene), ["#3 {a; ; 0}", "#4 {a; b; 1}"]);
    scene.pass(Duration::from_secs(60));
    scene.settle();
    assert_eq!(scene.state().cfgs.len(), 2, "not proven");
    scene.confirms("0/6000000");
    scene.settle();
    assert_eq!(cfgs(&scene), ["#4 {a; b; 1}"]);
}

#[test]
fn a_spec_that_becomes_available_or_strict_is_followed_while_it_lives() {
    let mut scene = Scene::serving("a", &["b"]);
    scene.vanishes("b");
    scene.pass(Duration::from_secs(60));
    scene.settle();
    assert_eq!(cfgs(&scene), ["#2 {a; b; 1}"], "strict: commits wait");
    scene.spec.durability = Durability::Available;
    scene.settle();
    assert_eq!(cfgs(&scene).last().unwrap(), "#3 {a; ; 0}");
    scene.spec.durability = Durability::Strict;
    scene.pass(Duration::from_secs(60));
    scene.settle();
    assert_eq!(scene.state().cfgs.len(), 2, "nothing that was recorded is taken back");
    scene.returns("b");
    scene.streams("b");
    scene.settle();
    assert_eq!(cfgs(&scene).last().unwrap(), "#4 {a; b; 1}");
}

#[test]
fn two_of_three_needed_become_one_and_two_again_under_fresh_names() {
    let mut spec = available();
    spec.synchronous.count = 2;
    let mut scene = Scene::serving_with(spec, "a", &["b", "c"]);
    scene.dies("c");
    scene.settle();
    // A commit that c alone had confirmed meanwhile would be one of #3.
    assert_eq!(cfgs(&scene)[1..], ["#3 {a; b,c; 1}", "#4 {a; b; 1}"]);
    scene.confirms("0/5000000");
    assert!(matches!(scene.waits(), WaitingOn::Reduced { k: 1, wanted: 2, .. }));
    scene.dies("b");
    scene.settle();
    scene.confirms("0/6000000");
    scene.settle();
    assert_eq!(cfgs(&scene), ["#5 {a; ; 0}"]);
    scene.streams("b");
    scene.streams("c");
    scene.settle();
    let newest = scene.state().newest_cfg().unwrap();
    assert_eq!((newest.k, newest.round), (2, 1), "a walsender of k = 1 must not count");
}

#[test]
fn a_checker_refuses_to_give_up_voters_where_durability_is_strict() {
    let mut scene = Scene::serving_with(available(), "a", &["b"]);
    scene.dies("b");
    let plan = scene.decide();
    let Verdict::Change { next, .. } = plan.verdict else { panic!("no change") };
    assert_eq!(check(scene.state.as_ref(), &next, &scene.seen), []);
    scene.seen.durability = Durability::Strict;
    let broken = check(scene.state.as_ref(), &next, &scene.seen);
    assert_eq!(broken.iter().map(|v| v.rule).collect::<Vec<_>>(), [Rule::Cfgs]);
}

#[test]
fn in_priority_mode_the_best_vote_and_the_next_best_takes_a_lost_ones_place_at_once() {
    let mut spec = ClusterSpec::default();
    spec.synchronous.mode = SynchronousMode::Priority;
    spec.members.insert(name("d"), MemberSpec { priority: 9, ..MemberSpec::default() });
    let mut scene = Scene::serving_with(spec, "a", &["b", "c", "d"]);
    scene.pass(Duration::from_secs(2));
    scene.settle();
    assert_eq!(scene.voters(), names(&["d"]));
    scene.confirms("0/4000000");
    assert_eq!(scene.waits(), WaitingOn::Nothing { primary: name("a") });
    scene.report("a").zone = Some("east".into());
    scene.report("b").zone = Some("east".into());
    scene.dies("d");
    scene.settle();
    assert_eq!(scene.voters(), names(&["c"]), "b is in the primary's zone");
    scene.spec.synchronous.count = 2;
    scene.pass(Duration::from_secs(2));
    scene.settle();
    assert_eq!(scene.voters(), names(&["b", "c"]));
}

fn pause(seconds: u64) -> Wanted {
    Wanted::Pause { reason: "new disks".into(), lasting: Duration::from_secs(seconds) }
}

#[test]
fn while_paused_nothing_is_sealed_or_restarted_and_afterwards_it_is() {
    for alone in [false, true] {
        let mut scene = Scene::serving("a", &["b", "c"]);
        if alone {
            scene.vanishes("b");
            scene.vanishes("c");
        }
        asks(&mut scene, 1, pause(600));
        scene.dies("a");
        scene.pass(Duration::from_secs(500));
        let waits = scene.waits();
        assert!(matches!(waits, WaitingOn::Resume { .. }), "{waits}");
        scene.pass(Duration::from_secs(101));
        scene.settle();
        assert_eq!(scene.state().orders.pause, None, "it ends by itself");
        assert!(scene.sealing().is_some() != alone);
        assert_eq!(scene.state().phase == Phase::Restarting, alone);
    }
}

#[test]
fn a_pause_needs_a_reason_and_a_sane_length_and_is_ended_by_hand() {
    let mut scene = Scene::serving("a", &["b"]);
    let lasting = Duration::from_secs(60);
    let empty = Wanted::Pause { reason: " ".into(), lasting };
    assert!(refusal(&mut scene, 1, empty).contains("needs a reason"));
    assert!(refusal(&mut scene, 2, pause(0)).contains("from 5 s to 7 days"));
    assert!(refusal(&mut scene, 3, pause(700_000)).contains("from 5 s to 7 days"));
    assert!(refusal(&mut scene, 4, Wanted::Resume).contains("not paused"));
    asks(&mut scene, 5, pause(600));
    let plan = scene.settle();
    assert!(plan.explanation.warnings.iter().any(|w| w.contains("PAUSED") && w.contains("disks")));
    assert!(refusal(&mut scene, 6, Wanted::Switchover(Terms::default())).contains("paused"));
    asks(&mut scene, 7, Wanted::Resume);
    assert_eq!(scene.state().orders.pause, None);
}

#[test]
fn voters_change_while_paused_and_a_seal_that_has_begun_is_completed() {
    let mut scene = Scene::serving("a", &["b", "c"]);
    asks(&mut scene, 1, pause(600));
    scene.dies("c");
    scene.settle();
    assert_eq!(scene.voters(), names(&["b"]));
    asks(&mut scene, 2, Wanted::Resume);
    scene.confirms("0/4000000");
    scene.settle();
    scene.dies("a");
    scene.settle();
    assert_eq!(scene.sealing(), Some(Epoch(2)));
    asks(&mut scene, 3, pause(600));
    scene.seals("b", "0/5000000");
    scene.pass(Duration::from_secs(1));
    scene.settle();
    assert_eq!((scene.primary(), scene.sealing()), (name("b"), None));
}

#[test]
fn the_checker_forbids_a_seal_and_a_restart_while_paused() {
    let mut scene = Scene::serving("a", &["b", "c"]);
    scene.dies("a");
    let Verdict::Change { next: seal, .. } = scene.decide().verdict else { panic!("no seal") };
    asks_before_death(&mut scene);
    let mut next = *seal;
    next.number = scene.state().number.next();
    next.orders = scene.state().orders.clone();
    let broken = check(scene.state.as_ref(), &next, &scene.seen);
    assert_eq!(broken.iter().map(|v| v.rule).collect::<Vec<_>>(), [Rule::Paused]);
}

fn asks_before_death(scene: &mut Scene) {
    let report = scene.seen.members[&name("a")].clone();
    scene.opens("a");
    asks(scene, 1, pause(600));
    scene.seen.members.insert(name("a"), report);
}

fn remove(member: &str, below_count: bool) -> Wanted {
    Wanted::Remove { member: name(member), below_count }
}

#[test]
fn a_member_leaves_the_cfgs_first_and_then_the_list_and_stays_out() {
    let mut scene = Scene::serving("a", &["b", "c"]);
    let outcome = asks(&mut scene, 1, remove("c", false));
    assert!(matches!(outcome, RequestOutcome::Started { .. }));
    assert_eq!(cfgs(&scene).last().unwrap(), "#3 {a; b; 1}");
    assert!(scene.state().members.contains_key(&name("c")), "the Cfg before still needs it");
    scene.confirms("0/4000000");
    scene.settle();
    assert!(!scene.state().members.contains_key(&name("c")));
    let id = RequestId::from_random(1);
    assert!(matches!(scene.state().request(&id).unwrap().outcome, RequestOutcome::Done { .. }));
    let plan = scene.settle();
    assert!(plan.explanation.warnings.iter().any(|w| w.contains("pgdeputy readmit")));
    let floor = scene.state().orders.removed[&name("c")].floor;
    assert!(floor.is_some());
    asks(&mut scene, 2, Wanted::Readmit { member: name("c") });
    assert_eq!(scene.state().members[&name("c")].floor, floor, "what it held is not forgotten");
    scene.pass(Duration::from_secs(2));
    scene.settle();
    assert_eq!(scene.voters(), names(&["b", "c"]));
}

#[test]
fn a_member_on_its_way_out_votes_while_too_few_others_do_and_stays_if_it_is_readmitted() {
    let mut scene = Scene::serving("a", &["b", "c"]);
    asks(&mut scene, 1, remove("c", false));
    assert_eq!(cfgs(&scene).last().unwrap(), "#3 {a; b; 1}");
    // The only one that was to be left is gone before its Cfg is proven.
    let b = scene.seen.members.remove(&name("b"));
    scene.pass(Duration::from_secs(2));
    scene.settle();
    assert_eq!(cfgs(&scene).last().unwrap(), "#4 {a; c; 1}", "commits do not wait for b");
    scene.confirms("0/4000000");
    scene.settle();
    assert!(scene.state().members.contains_key(&name("c")));
    scene.seen.members.extend(b.map(|report| (name("b"), report)));
    scene.pass(Duration::from_secs(2));
    scene.settle();
    assert_eq!(cfgs(&scene).last().unwrap(), "#5 {a; b; 1}", "now it can go");
    asks(&mut scene, 2, Wanted::Readmit { member: name("c") });
    let first = scene.state().request(&RequestId::from_random(1)).unwrap().outcome.clone();
    assert!(matches!(first, RequestOutcome::Nothing { .. }), "{first:?}");
    scene.confirms("0/5000000");
    scene.pass(Duration::from_secs(2));
    scene.settle();
    assert!(scene.state().orders.leaving.is_empty());
    assert_eq!(scene.voters(), names(&["b", "c"]));
}

#[test]
fn a_removed_name_is_free_for_a_new_member_and_not_for_the_old_one() {
    let mut scene = Scene::serving("a", &["b", "c"]);
    asks(&mut scene, 1, remove("c", false));
    scene.confirms("0/4000000");
    scene.settle();
    scene.returns("c");
    scene.settle();
    assert!(!scene.state().members.contains_key(&name("c")), "the same member files");
    scene.report("c").incarnation = proto::Incarnation("c-2".into());
    scene.settle();
    assert_eq!(scene.state().members[&name("c")].floor, None);
    assert!(scene.state().orders.removed.is_empty());
}

#[test]
fn neither_the_primary_nor_the_last_voter_nor_a_stranger_is_removed() {
    let mut scene = Scene::serving("a", &["b"]);
    assert!(refusal(&mut scene, 1, remove("a", true)).contains("switchover"));
    assert!(refusal(&mut scene, 2, remove("b", false)).contains("--below-count"));
    assert!(refusal(&mut scene, 3, remove("z", false)).contains("there is no member z"));
    assert!(refusal(&mut scene, 4, Wanted::Readmit { member: name("b") }).contains("is a member"));
    assert!(
        refusal(&mut scene, 5, Wanted::Readmit { member: name("z") }).contains("no member z was")
    );
    // Explicitly: nobody votes then, and nobody is promoted.
    asks(&mut scene, 6, remove("b", true));
    assert_eq!(cfgs(&scene).last().unwrap(), "#3 {a; ; 0}");
    scene.confirms("0/4000000");
    scene.settle();
    assert_eq!((cfgs(&scene).len(), scene.state().members.len()), (1, 1));
}

fn gives_up(members: &[&str]) -> Wanted {
    Wanted::AcceptLoss { give_up: names(members) }
}

/// a and b, who acknowledged, are gone for good; c came too late to vote.
fn stranded() -> Scene {
    let mut scene = Scene::serving("a", &["b"]);
    scene.returns("c");
    scene.settle();
    scene.streams("c");
    scene.vanishes("a");
    scene.vanishes("b");
    scene.silent("c");
    scene.pass(Duration::from_secs(20));
    assert!(matches!(scene.waits(), WaitingOn::SealSet { .. }));
    scene
}

#[test]
fn loss_is_accepted_by_name_and_ends_in_a_primary_that_needs_nobody_who_was_given_up() {
    let mut scene = stranded();
    assert!(refusal(&mut scene, 1, gives_up(&["a"])).contains("now it is a, b"));
    asks(&mut scene, 2, gives_up(&["a", "b"]));
    assert_eq!(scene.sealing(), Some(Epoch(2)));
    scene.seals("c", "0/4000000");
    let plan = scene.settle();
    assert_eq!((scene.primary(), cfgs(&scene)), (name("c"), vec!["#3 {c; ; 0}".to_owned()]));
    assert!(plan.explanation.warnings.iter().any(|w| w.contains("LOSS ACCEPTED by ann@north")));
    let record = &scene.history[&(Epoch(2), 0)];
    assert!(record.notes.iter().any(|n| n.text.contains("are lost")), "{record:?}");
    scene.opens("c");
    scene.settle();
    assert!(!scene.state().orders.losses.is_empty(), "until somebody takes note of it");
    asks(&mut scene, 3, Wanted::AcknowledgeLoss);
    assert!(scene.state().orders.losses.is_empty());
    assert!(scene.state().epochs.last().unwrap().with_loss, "what was lost stays on record");
    assert!(refusal(&mut scene, 4, Wanted::AcknowledgeLoss).contains("no loss waits"));
}

#[test]
fn who_comes_back_before_the_end_is_promoted_without_loss() {
    let mut scene = stranded();
    asks(&mut scene, 1, gives_up(&["a", "b"]));
    scene.returns("b");
    scene.streams("b");
    scene.seals("b", "0/5000000");
    scene.seals("c", "0/4000000");
    scene.settle();
    assert_eq!(scene.primary(), name("b"));
    assert!(scene.state().orders.losses.is_empty() && scene.state().cfgs.len() == 2);
}

#[test]
fn no_loss_is_accepted_of_a_cluster_that_needs_none() {
    let mut scene = Scene::serving("a", &["b", "c"]);
    assert!(refusal(&mut scene, 1, gives_up(&["a"])).contains("nothing says that it is lost"));
    asks(&mut scene, 2, pause(600));
    assert!(refusal(&mut scene, 3, gives_up(&["a"])).contains("paused"));
    let mut scene = Scene::serving("a", &["b"]);
    scene.vanishes("b");
    scene.dies("a");
    scene.settle();
    let said = refusal(&mut scene, 4, gives_up(&["b"]));
    assert!(said.contains("too early") || said.contains("keeper of a runs"), "{said}");
}

#[test]
fn the_checker_lets_nobody_be_given_up_but_those_named_before_the_seal() {
    let mut scene = stranded();
    asks(&mut scene, 1, gives_up(&["a", "b"]));
    scene.seals("c", "0/4000000");
    let Verdict::Change { next, .. } = scene.decide().verdict else { panic!("no promotion") };
    let refused = |change: &dyn Fn(&mut Scene, &mut proto::ClusterState)| {
        let mut scene_after = stranded();
        asks(&mut scene_after, 1, gives_up(&["a", "b"]));
        scene_after.seals("c", "0/4000000");
        let mut next = (*next).clone();
        change(&mut scene_after, &mut next);
        let broken = check(scene_after.state.as_ref(), &next, &scene_after.seen);
        broken.into_iter().map(|v| v.rule).collect::<Vec<_>>()
    };
    assert_eq!(refused(&|_, _| ()), []);
    let unnamed = refused(&|scene, next| {
        let old = scene.state.as_mut().unwrap();
        old.orders.losses[0].given_up = names(&["d"]);
        next.orders.losses[0].given_up = names(&["d"]);
    });
    assert!(unnamed.contains(&Rule::Promotion), "{unnamed:?}");
    let never_asked = refused(&|scene, _| scene.state.as_mut().unwrap().orders.losses.clear());
    assert!(never_asked.contains(&Rule::Evidence) && never_asked.contains(&Rule::Loss));
    let old_cfgs_stay = refused(&|scene, next| {
        let old = scene.state().cfgs.clone();
        next.cfgs.splice(0..0, old);
    });
    assert!(old_cfgs_stay.contains(&Rule::Loss), "{old_cfgs_stay:?}");
}

#[test]
fn who_may_not_be_promoted_is_not_even_with_loss() {
    let mut scene = stranded();
    let never = MemberSpec { promote: Permission::Never, ..MemberSpec::default() };
    scene.spec.members.insert(name("c"), never);
    assert!(refusal(&mut scene, 1, gives_up(&["a", "b"])).contains("change promote"));
    scene.report("c").server = Server::Stopped;
    assert!(refusal(&mut scene, 2, gives_up(&["a", "b"])).contains("change promote"));
}
