//! Sealing, choosing and promoting.

use std::time::Duration;

use proto::Assignment;
use proto::assignment::assignment;
use proto::report::Server;
use proto::spec::{MemberSpec, Permission};
use proto::{ClusterSpec, Epoch, Lsn, Phase, Timeline};
use sentinel::plan::WaitingOn;

use crate::scene::{Scene, millis, name, names};

/// a served and died; the leader asks for seals.
fn sealing() -> Scene {
    let mut scene = Scene::serving("a", &["b", "c"]);
    scene.dies("a");
    scene.settle();
    assert_eq!(scene.sealing(), Some(Epoch(2)));
    scene
}

fn never_promote(scene: &mut Scene, member: &str) {
    let limits = MemberSpec { promote: Permission::Never, ..MemberSpec::default() };
    scene.spec.members.insert(name(member), limits);
}

#[test]
fn a_dead_primary_is_replaced_by_who_holds_the_most() {
    let mut scene = sealing();
    scene.seals("b", "0/5000000");
    assert!(
        matches!(scene.waits(), WaitingOn::Seals { .. }),
        "b alone may lack what a and c acknowledged"
    );
    scene.seals("c", "0/5000148");
    scene.settle();
    let state = scene.state();
    assert_eq!((state.primary.clone(), state.epoch), (Some(name("c")), Epoch(2)));
    assert_eq!((state.phase.clone(), state.sealing), (Phase::Promoting, None));
    assert_eq!((state.timeline, state.highest_timeline), (Timeline(2), Timeline(2)));
    assert_eq!(state.chosen.unwrap().lsn, Lsn(0x500_0148));
    assert!(state.open_at_once, "k voters of the old Cfg hold all that c holds");
    assert_eq!(state.cfgs.len(), 2, "the old Cfg stays until the new one is proven");
    assert_eq!(scene.voters(), names(&["b"]));
}

#[test]
fn equal_holders_are_ranked_by_replay_then_priority_then_name() {
    let mut scene = sealing();
    scene.spec.members.insert(name("c"), MemberSpec { priority: 9, ..MemberSpec::default() });
    scene.seals("b", "0/5000000");
    scene.seals("c", "0/5000000");
    scene.report("c").seal.as_mut().unwrap().replayed = Lsn(0x4FF_FFFF);
    let mut by_replay = scene;
    by_replay.settle();
    assert_eq!(by_replay.primary(), name("b"));

    for (priority, winner) in [(9, "c"), (0, "b")] {
        let mut scene = sealing();
        scene.spec.members.insert(name("c"), MemberSpec { priority, ..MemberSpec::default() });
        scene.seals("b", "0/5000000");
        scene.seals("c", "0/5000000");
        scene.settle();
        assert_eq!(scene.primary(), name(winner));
    }
}

#[test]
fn a_seal_for_another_number_counts_for_nothing() {
    let mut scene = sealing();
    scene.seals("b", "0/5000000");
    scene.seals("c", "0/5000000");
    scene.report("c").seal.as_mut().unwrap().sealing = Epoch(1);
    assert_eq!(
        scene.waits(),
        WaitingOn::Seals { sealing: Epoch(2), missing: vec![name("a"), name("c")] }
    );
}

#[test]
fn a_seal_without_the_promise_counts_for_nothing() {
    let mut scene = sealing();
    scene.seals("b", "0/5000000");
    scene.seals("c", "0/5000000");
    scene.report("c").promise = Epoch(1);
    assert!(matches!(scene.waits(), WaitingOn::Seals { .. }));
}

#[test]
fn an_incomplete_member_counts_in_no_base() {
    let mut scene = sealing();
    scene.seals("b", "0/5000000");
    scene.seals("c", "0/6000000");
    scene.report("c").complete = false;
    assert!(matches!(scene.waits(), WaitingOn::Seals { .. }));
    assert_eq!(scene.sealing(), Some(Epoch(2)), "begun sealing is only completed");
}

#[test]
fn a_member_below_its_floor_counts_in_no_base_and_is_warned_of() {
    let mut scene = sealing();
    scene.seals("b", "0/5000000");
    scene.seals("c", "0/2FFFFFF");
    let plan = scene.settle();
    assert_eq!(scene.state().epoch, Epoch(1), "c once held 0/3000000");
    assert!(
        plan.explanation.warnings.iter().any(|w| w.starts_with("c ") && w.contains("lost data"))
    );
}

#[test]
fn the_longer_tail_of_the_old_primary_is_left_when_the_others_form_a_base() {
    let mut scene = sealing();
    scene.seals("a", "0/9000000");
    scene.seals("b", "0/5000000");
    scene.seals("c", "0/5000000");
    scene.settle();
    assert_eq!(scene.primary(), name("b"));
    let record = &scene.history[&(Epoch(2), 0)];
    let a = record.rejected.iter().find(|r| r.member == name("a")).unwrap();
    assert!(a.reason.contains("form a base without it"), "{}", a.reason);
}

#[test]
fn where_the_old_primary_is_needed_nobody_who_holds_less_is_promoted() {
    let mut scene = sealing();
    scene.vanishes("b");
    scene.seals("c", "0/5000000");
    scene.seals("a", "0/5000001");
    scene.settle();
    assert_eq!(scene.primary(), name("a"), "a alone is a seal set, so its tail is the measure");
    assert_eq!(scene.state().epoch, Epoch(2));
}

#[test]
fn a_base_that_needs_the_dead_primary_waits_longer_for_a_standby_that_would_do_without_it() {
    let mut scene = sealing();
    scene.seals("a", "0/5000300");
    scene.seals("b", "0/5000148");
    scene.pass(millis(100));
    assert!(matches!(scene.waits(), WaitingOn::SealPatience { .. }), "c lives and may seal");
    scene.seals("c", "0/5000100");
    scene.settle();
    assert_eq!(scene.primary(), name("b"));

    let mut scene = sealing();
    scene.seals("a", "0/5000300");
    scene.seals("b", "0/5000148");
    scene.settle();
    scene.pass(millis(600));
    scene.settle();
    assert_eq!(scene.primary(), name("a"), "c does not seal: the tail of a is the measure");
}

#[test]
fn a_base_waits_seal_patience_for_a_live_standby_and_never_for_the_old_primary() {
    let mut scene = Scene::serving("a", &["b", "c", "d"]);
    // Two of three must acknowledge: two seals of three are a base.
    scene.spec.synchronous.count = 2;
    scene.pass(Duration::from_secs(1));
    scene.settle();
    scene.confirms("0/4000000");
    scene.settle();
    assert_eq!(scene.state().newest_cfg().unwrap().k, 2);
    scene.dies("a");
    scene.settle();
    scene.seals("b", "0/5000000");
    scene.seals("c", "0/5000000");
    let plan = scene.settle();
    assert_eq!(
        scene.waits(),
        WaitingOn::SealPatience { sealing: Epoch(2), missing: vec![name("d")] }
    );
    assert!(plan.wake_at.is_some());
    scene.pass(millis(20));
    scene.settle();
    assert_eq!(scene.primary(), name("b"));
}

#[test]
fn who_may_not_be_promoted_counts_in_the_base_and_is_not_chosen() {
    let mut scene = sealing();
    never_promote(&mut scene, "b");
    scene.seals("b", "0/5000000");
    scene.seals("c", "0/5000000");
    scene.settle();
    assert_eq!(scene.primary(), name("c"));
}

#[test]
fn when_only_such_a_member_holds_the_most_another_holder_is_waited_for() {
    let mut scene = sealing();
    never_promote(&mut scene, "b");
    scene.seals("b", "0/5000001");
    scene.seals("c", "0/5000000");
    assert_eq!(
        scene.waits(),
        WaitingOn::PromotableHolder { sealing: Epoch(2), holders: vec![name("b")] }
    );
    scene.seals("a", "0/5000001");
    scene.settle();
    assert_eq!(scene.primary(), name("a"), "the old primary holds as much and may be promoted");
}

#[test]
fn too_few_ready_standbys_make_all_others_voters_so_that_commits_wait() {
    let mut scene = sealing();
    scene.seals("b", "0/5000000");
    scene.seals("c", "0/5000000");
    scene.report("c").seal.as_mut().unwrap().clean = false;
    scene.settle();
    let cfg = scene.state().newest_cfg().unwrap();
    assert_eq!((scene.voters(), cfg.k), (names(&["a", "c"]), 1));
}

#[test]
fn k_never_exceeds_the_voters() {
    let spec = ClusterSpec::default();
    let mut scene = Scene::serving_with(spec, "a", &["b"]);
    scene.spec.synchronous.count = 3;
    scene.dies("a");
    scene.settle();
    scene.seals("b", "0/5000000");
    scene.settle();
    let cfg = scene.state().newest_cfg().unwrap();
    assert_eq!((cfg.k, cfg.voters.len()), (1, 1));
    assert!(cfg.is_well_formed());
}

#[test]
fn a_primary_opens_at_once_only_if_k_voters_hold_what_it_holds() {
    let mut scene = Scene::serving("a", &["b", "c", "d"]);
    scene.spec.synchronous.count = 2;
    scene.pass(Duration::from_secs(1));
    scene.settle();
    scene.confirms("0/4000000");
    scene.settle();
    scene.dies("a");
    scene.settle();
    for (member, lsn) in [("b", "0/5000001"), ("c", "0/5000000"), ("d", "0/5000000")] {
        scene.seals(member, lsn);
    }
    scene.settle();
    assert_eq!(scene.primary(), name("b"));
    assert!(!scene.state().open_at_once, "one of two voters holds the last record");
}

#[test]
fn wal_of_a_later_epoch_does_not_hold_what_was_left_behind_at_its_fork() {
    let mut scene = Scene::serving("a", &["b", "c"]);
    scene.dies("a");
    scene.settle();
    scene.seals_with_wal_of("b", "0/4000000", Epoch(1));
    scene.seals_with_wal_of("c", "0/3800000", Epoch(1));
    scene.settle();
    assert_eq!(scene.primary(), name("b"));
    // It dies as well, with WAL of its own, and the first primary is back with more than b had taken over.
    scene.opens("b");
    scene.settle();
    scene.streams("c");
    scene.dies("b");
    scene.settle();
    scene.seals_with_wal_of("a", "0/5000000", Epoch(1));
    scene.seals_with_wal_of("c", "0/3800000", Epoch(1));
    scene.seals_with_wal_of("b", "0/6000000", Epoch(2));
    scene.settle();
    assert_eq!((scene.primary(), scene.state().epoch), (name("a"), Epoch(3)));
    assert!(!scene.state().open_at_once, "nobody else holds 0/5000000 of epoch 1");
}

#[test]
fn a_standby_that_neither_votes_nor_leads_and_holds_the_most_holds_up_no_failover() {
    let mut spec = ClusterSpec::default();
    let never = spec.members.entry(name("c")).or_default();
    never.vote = Permission::Never;
    never.promote = Permission::Never;
    let mut scene = Scene::serving_with(spec, "a", &["b", "c"]);
    assert_eq!(scene.voters(), names(&["b"]));
    scene.vanishes("a");
    for member in ["b", "c"] {
        scene.silent(member);
    }
    scene.settle();
    scene.seals("b", "0/4000000");
    // What b has not acknowledged, nobody was told.
    scene.seals("c", "0/5000000");
    scene.settle();
    assert_eq!(scene.primary(), name("b"));
    let Assignment::Follow(follow) = assignment(scene.state(), &name("c")) else {
        panic!("c follows")
    };
    assert_eq!(follow.chosen.map(|p| p.lsn), Some("0/4000000".parse().unwrap()), "c is past it");
}

#[test]
fn a_promotion_that_dies_takes_its_timeline_with_it() {
    let mut scene = sealing();
    scene.seals("a", "0/5000000");
    scene.seals("b", "0/5000000");
    scene.seals("c", "0/5000000");
    scene.settle();
    assert_eq!((scene.primary(), scene.state().timeline), (name("b"), Timeline(2)));
    scene.pass(millis(100));
    scene.dies("b");
    scene.settle();
    assert_eq!(scene.sealing(), Some(Epoch(3)), "a and c form a base without b");
    scene.seals_with_wal_of("a", "0/5000000", Epoch(1));
    scene.seals_with_wal_of("c", "0/5000000", Epoch(1));
    scene.settle();
    let state = scene.state();
    assert_eq!((state.epoch, state.timeline), (Epoch(3), Timeline(3)));
    assert_eq!(
        state.epochs.last().unwrap().parent,
        Some(Timeline(1)),
        "nothing of timeline 2 was written"
    );
    assert_eq!(state.epochs.iter().map(|r| r.timeline.0).collect::<Vec<_>>(), [1, 2, 3]);
}

#[test]
fn a_promotion_that_may_have_to_be_repeated_by_the_same_member_is_not_repeated_at_once() {
    let mut scene = sealing();
    scene.vanishes("a");
    scene.seals("b", "0/5000001");
    scene.seals("c", "0/5000000");
    scene.settle();
    scene.dies("b");
    assert!(matches!(scene.waits(), WaitingOn::NextPromotion { .. }), "c alone is no base");
    scene.pass(scene.spec.promote_patience);
    scene.settle();
    assert_eq!(scene.sealing(), Some(Epoch(3)));
    scene.seals_with_wal_of("b", "0/5000001", Epoch(1));
    scene.seals_with_wal_of("c", "0/5000000", Epoch(1));
    scene.settle();
    assert_eq!((scene.primary(), scene.state().epoch), (name("b"), Epoch(3)));
    scene.settle();
    assert_eq!(scene.sealing(), None, "the same report of the same death is not answered twice");
}

#[test]
fn a_promotion_without_progress_is_given_up() {
    let mut scene = sealing();
    scene.seals("b", "0/5000000");
    scene.seals("c", "0/5000000");
    scene.settle();
    scene.pass(millis(4000));
    scene.report("b").seal.as_mut().unwrap().replayed = Lsn(0x4FF_0000);
    assert!(matches!(scene.waits(), WaitingOn::Promotion { .. }));
    scene.pass(millis(4000));
    assert!(matches!(scene.waits(), WaitingOn::Promotion { .. }), "replay moved 4 s ago");
    scene.pass(millis(1000));
    scene.settle();
    assert_eq!(scene.sealing(), Some(Epoch(3)));
}

#[test]
fn a_promoted_primary_that_waits_for_voters_is_left_alone() {
    let mut scene = sealing();
    scene.seals("b", "0/5000000");
    scene.seals("c", "0/5000000");
    scene.settle();
    scene.report("b").server = Server::Primary { timeline: Timeline(2) };
    scene.pass(Duration::from_secs(60));
    assert_eq!(scene.waits(), WaitingOn::VotersHold { primary: name("b") });
}

#[test]
fn a_chosen_member_that_vanishes_is_given_up_when_the_others_form_a_base() {
    let mut scene = sealing();
    for member in ["a", "b", "c"] {
        scene.seals(member, "0/5000000");
    }
    scene.settle();
    scene.vanishes("b");
    assert!(matches!(scene.waits(), WaitingOn::PrimaryReport { .. }));
    scene.pass(Duration::from_secs(1));
    scene.settle();
    assert_eq!(scene.sealing(), Some(Epoch(3)));
}

#[test]
fn cascading_failovers_need_a_seal_set_of_every_recorded_cfg() {
    let mut scene = sealing();
    scene.seals("b", "0/5000000");
    scene.seals("c", "0/5000000");
    scene.settle();
    scene.opens("b");
    scene.settle();
    assert_eq!(scene.state().cfgs.len(), 2);
    // b is gone before c ever followed it: c alone could lack what a and b acknowledged in epoch 1.
    scene.vanishes("a");
    scene.vanishes("b");
    scene.pass(Duration::from_secs(60));
    assert!(matches!(scene.waits(), WaitingOn::SealSet { .. }));
    assert_eq!(scene.sealing(), None);
}

#[test]
fn promotions_that_all_come_to_nothing_are_tried_ever_more_slowly() {
    let mut scene = Scene::serving("a", &["b", "c"]);
    scene.dies("a");
    for _ in 0..6000 {
        scene.settle();
        if scene.sealing().is_some() {
            for member in ["a", "b", "c"] {
                scene.seals_with_wal_of(member, "0/5000000", Epoch(1));
            }
            scene.settle();
            let primary = scene.primary();
            scene.dies(primary.as_str());
        }
        scene.pass(millis(100));
    }
    // Each member has its try at once; then 5, 10, 20 .. 300 s.
    let epoch = scene.state().epoch;
    assert!((Epoch(9)..=Epoch(12)).contains(&epoch), "{epoch} epochs in ten minutes");
    assert!(matches!(scene.waits(), WaitingOn::PromotionPause { .. }));
    let later = scene.decide().wake_at.expect("it goes on");
    scene.pass(later.since(scene.now()));
    scene.settle();
    assert_eq!(scene.sealing(), Some(epoch.next()));
}

#[test]
fn the_record_of_epochs_does_not_grow_for_ever() {
    let mut scene = Scene::serving("a", &["b", "c"]);
    for turn in 0..130_u64 {
        let old = scene.primary();
        scene.dies(old.as_str());
        scene.settle();
        let lsn = format!("0/{:X}", 0x500_0000 + turn * 0x1000);
        for member in ["a", "b", "c"].into_iter().filter(|m| *m != old.as_str()) {
            scene.seals(member, &lsn);
        }
        scene.settle();
        let new = scene.primary();
        scene.opens(new.as_str());
        for member in ["a", "b", "c"].into_iter().filter(|m| *m != new.as_str()) {
            scene.streams(member);
        }
        scene.settle();
        scene.pass(Duration::from_secs(1));
        scene.settle();
        scene.confirms(&lsn);
        scene.settle();
    }
    let state = scene.state();
    assert_eq!((state.epoch, state.epochs.len()), (Epoch(131), 101));
    assert_eq!(state.shared_until(Timeline(1)), None, "too long ago to tell");
    assert!(state.shared_until(Timeline(40)).is_some());
}
