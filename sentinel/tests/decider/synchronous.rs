//! Who acknowledges commits.

use std::time::Duration;

use proto::report::{Server, Stream};
use proto::spec::{MemberSpec, Permission};
use proto::state::Floor;
use proto::{CfgId, ClusterSpec, Epoch, Lsn, Phase, Timeline};
use sentinel::plan::WaitingOn;

use crate::scene::{Scene, millis, name, names};

#[test]
fn a_cfg_leaves_only_by_proof_of_a_later_one() {
    let mut scene = Scene::serving("a", &["b"]);
    scene.returns("c");
    scene.settle();
    scene.streams("c");
    scene.pass(Duration::from_secs(1));
    assert!(matches!(scene.waits(), WaitingOn::Confirmation { .. }));
    assert_eq!(scene.state().cfgs.len(), 2);
    // Proof of the earlier one, or by too few voters, takes nothing away.
    scene.pass(Duration::from_secs(60));
    scene.settle();
    scene.confirms("0/4000000");
    scene.report("a").confirmed.as_mut().unwrap().voters.clear();
    scene.settle();
    assert_eq!(scene.state().cfgs.len(), 2);
    scene.confirms("0/4000000");
    scene.settle();
    assert_eq!((scene.state().cfgs.len(), scene.voters()), (1, names(&["b", "c"])));
    let floor = Some(Floor { epoch: Epoch(1), lsn: Lsn(0x400_0000) });
    assert!(scene.state().members.values().all(|m| m.floor == floor));
}

#[test]
fn the_first_voter_comes_in_at_once_and_the_next_when_settled() {
    let mut scene = Scene::empty(&["a", "b", "c"]);
    scene.settle();
    scene.founds("a");
    scene.settle();
    scene.opens("a");
    scene.settle();
    scene.streams("b");
    scene.settle();
    assert_eq!(scene.voters(), names(&["b"]), "commits wait: there was no voter at all");
    scene.confirms("0/3000000");
    scene.settle();
    scene.streams("c");
    assert_eq!(scene.waits(), WaitingOn::Settle { voters: vec![name("b"), name("c")] });
    scene.pass(millis(900));
    scene.silent("c");
    scene.settle();
    scene.streams("c");
    scene.pass(millis(900));
    scene.settle();
    assert_eq!(scene.voters(), names(&["b"]), "c flapped: it settles anew");
    scene.pass(millis(200));
    scene.settle();
    assert_eq!(scene.voters(), names(&["b", "c"]));
}

#[test]
fn who_streams_under_its_joining_name_or_another_epoch_is_no_voter() {
    let mut scene = Scene::serving("a", &["b"]);
    scene.returns("c");
    scene.settle();
    scene.streams("c");
    let (epoch, timeline) = (Epoch(1), Timeline(1));
    for stream in [
        Stream::Live { epoch, timeline, voter: false },
        Stream::Live { epoch: Epoch(0), timeline, voter: true },
        Stream::Live { epoch, timeline: Timeline(9), voter: true },
        Stream::Silent { epoch },
        Stream::None,
    ] {
        scene.report("c").stream = stream;
        scene.pass(Duration::from_secs(2));
        scene.settle();
        assert_eq!(scene.voters(), names(&["b"]), "{stream:?}");
    }
}

#[test]
fn a_dead_voter_is_taken_out_at_once_and_a_quiet_one_when_settled() {
    let mut scene = Scene::serving("a", &["b", "c", "d"]);
    scene.report("b").server = Server::Dead { noticed: scene.wall(), gone: true };
    scene.settle();
    assert_eq!(scene.voters(), names(&["c", "d"]));
    scene.silent("c");
    scene.settle();
    assert_eq!(scene.voters(), names(&["c", "d"]));
    scene.pass(Duration::from_secs(1));
    scene.settle();
    assert_eq!(scene.voters(), names(&["d"]));
    assert_eq!(scene.state().cfgs.len(), 3, "nothing was proven meanwhile");
}

#[test]
fn the_last_voter_stays_when_it_dies_so_that_commits_wait() {
    let mut scene = Scene::serving("a", &["b"]);
    scene.vanishes("b");
    scene.pass(Duration::from_secs(600));
    assert_eq!(scene.waits(), WaitingOn::Voters { present: vec![], wanted: 1 });
    assert_eq!((scene.voters(), scene.state().cfgs.len()), (names(&["b"]), 1));
}

#[test]
fn a_change_that_cannot_finish_is_left_by_appending() {
    let mut scene = Scene::serving("a", &["b"]);
    scene.returns("c");
    scene.settle();
    scene.streams("c");
    scene.vanishes("b");
    scene.settle();
    assert_eq!(scene.voters(), names(&["c"]));
    // c dies before its Cfg is proven; b comes back.
    scene.vanishes("c");
    scene.returns("b");
    scene.streams("b");
    scene.settle();
    let listed: Vec<String> = scene.state().cfgs.iter().map(|c| c.to_string()).collect();
    assert_eq!(listed, ["#2 {a; b; 1}", "#3 {a; c; 1}", "#4 {a; b; 1}"]);
    scene.confirms("0/5000000");
    scene.settle();
    assert_eq!(scene.state().cfgs.len(), 1);
}

#[test]
fn when_k_rises_the_names_are_fresh() {
    let mut scene = Scene::serving("a", &["b", "c"]);
    scene.spec.synchronous.count = 2;
    scene.pass(Duration::from_secs(1));
    scene.settle();
    let newest = scene.state().newest_cfg().unwrap().clone();
    assert_eq!((newest.k, newest.round), (2, 1));
    scene.confirms("0/5000000");
    scene.spec.synchronous.count = 1;
    scene.settle();
    scene.pass(Duration::from_secs(1));
    scene.settle();
    let newest = scene.state().newest_cfg().unwrap();
    assert_eq!(
        (newest.k, newest.round, newest.id),
        (1, 1, CfgId(4)),
        "a smaller k keeps the names"
    );
}

#[test]
fn a_member_that_may_not_vote_never_votes() {
    let mut spec = ClusterSpec::default();
    let limits = MemberSpec { vote: Permission::Never, ..MemberSpec::default() };
    spec.members.insert(name("c"), limits);
    let mut scene = Scene::serving_with(spec, "a", &["b", "c"]);
    assert_eq!(scene.voters(), names(&["b"]));
    let plan = scene.settle();
    assert_eq!(scene.waits(), WaitingOn::Nothing { primary: name("a") });
    assert_eq!(plan.explanation.promotable, [name("b")]);
}

#[test]
fn an_incomplete_voter_leaves_the_voters() {
    let mut scene = Scene::serving("a", &["b", "c"]);
    scene.report("c").complete = false;
    scene.pass(Duration::from_secs(2));
    scene.settle();
    assert_eq!(scene.voters(), names(&["b"]));
}

#[test]
fn promotable_are_the_live_voters_only_if_together_they_seal_every_cfg() {
    let mut scene = Scene::serving("a", &["b", "c"]);
    assert_eq!(scene.settle().explanation.promotable, [name("b"), name("c")]);
    scene.vanishes("c");
    let plan = scene.decide();
    assert_eq!(plan.explanation.promotable, []);
    assert!(plan.explanation.promotable_reason.contains("could lack commits"));
    scene.settle();
    scene.confirms("0/4000000");
    assert_eq!(scene.settle().explanation.promotable, [name("b")]);
}

#[test]
fn a_primary_that_waits_to_open_for_a_lost_voter_gets_one_that_streams() {
    let mut scene = Scene::serving("a", &["b"]);
    scene.returns("c");
    scene.settle();
    // b, the only voter, is lost for good. a dies and is started again, and c has caught up meanwhile.
    scene.vanishes("b");
    scene.dies("a");
    scene.settle();
    scene.report("a").server = Server::Primary { timeline: Timeline(1) };
    scene.holds_right("a");
    assert_eq!(scene.waits(), WaitingOn::VotersHold { primary: name("a") });
    scene.streams("c");
    let plan = scene.settle();
    assert_eq!(scene.voters(), names(&["b"]), "b may be back in a moment");
    assert!(plan.wake_at.is_some());
    scene.pass(Duration::from_secs(1));
    scene.settle();
    let listed: Vec<String> = scene.state().cfgs.iter().map(|c| c.to_string()).collect();
    assert_eq!(listed, ["#2 {a; b; 1}", "#3 {a; c; 1}"]);
    scene.pass(Duration::from_secs(60));
    assert_eq!(scene.waits(), WaitingOn::VotersHold { primary: name("a") });
    scene.opens("a");
    scene.confirms("0/5000000");
    scene.settle();
    assert_eq!((scene.state().phase.clone(), scene.voters()), (Phase::Open, names(&["c"])));
    assert_eq!(scene.state().cfgs.len(), 1);
}

#[test]
fn voters_that_come_in_time_are_not_replaced_while_a_primary_waits_to_open() {
    let mut scene = Scene::serving("a", &["b", "c"]);
    scene.vanishes("c");
    scene.settle();
    scene.confirms("0/4000000");
    scene.settle();
    scene.vanishes("b");
    scene.dies("a");
    scene.settle();
    scene.report("a").server = Server::Primary { timeline: Timeline(1) };
    scene.returns("c");
    scene.streams("c");
    scene.settle();
    scene.pass(millis(900));
    scene.returns("b");
    scene.streams("b");
    scene.pass(Duration::from_secs(60));
    scene.settle();
    assert_eq!((scene.voters(), scene.state().cfgs.len()), (names(&["b"]), 1));
}

#[test]
fn a_member_that_flaps_does_not_keep_others_from_voting_while_commits_wait() {
    let mut scene = Scene::serving("a", &["b"]);
    for member in ["c", "d"] {
        scene.returns(member);
    }
    scene.settle();
    // The stream of the only voter hangs; its keeper lives.
    scene.silent("b");
    scene.streams("c");
    for turn in 0..4 {
        match turn % 2 {
            0 => scene.streams("d"),
            _ => scene.silent("d"),
        }
        scene.settle();
        scene.pass(millis(400));
    }
    scene.settle();
    assert!(scene.voters().contains(&name("c")), "{:?}", scene.voters());
}
