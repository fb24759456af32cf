//! Every rule of the checker refuses a state that breaks it. The states are made by hand, not by
//! the decider.

use proto::cfg::Cfg;
use proto::report::Confirmed;
use proto::state::{EpochRecord, Floor, RestartOrder};
use proto::{CfgId, ClusterState, Epoch, Lsn, Phase, StateNumber, Timeline};
use sentinel::invariant::{Rule, check};
use sentinel::plan::Verdict;

use crate::scene::{Scene, name, names};

/// The rules that committing what `change` makes of the present state would break.
fn broken(scene: &Scene, change: impl FnOnce(&mut ClusterState)) -> Vec<Rule> {
    let old = scene.state();
    let mut next = old.clone();
    next.number = next.number.next();
    change(&mut next);
    let mut rules: Vec<Rule> =
        check(Some(old), &next, &scene.seen).into_iter().map(|v| v.rule).collect();
    rules.dedup();
    rules
}

/// b and c have sealed, a is dead, and nothing is decided yet.
fn sealed() -> Scene {
    let mut scene = Scene::serving("a", &["b", "c"]);
    scene.dies("a");
    scene.settle();
    scene.seals("b", "0/5000000");
    scene.seals("c", "0/4000000");
    scene
}

/// The promotion that the decider would commit in `scene`.
fn promotion(scene: &mut Scene) -> ClusterState {
    match scene.decide().verdict {
        Verdict::Change { next, .. } => *next,
        other => panic!("no promotion but {other:?}"),
    }
}

fn cfg(id: u64, voters: &[&str], k: usize) -> Cfg {
    let leader = name("a");
    Cfg { id: CfgId(id), epoch: Epoch(1), leader, voters: names(voters), k, round: 0 }
}

#[test]
fn numbers_epochs_and_identities_only_go_forward() {
    let scene = Scene::serving("a", &["b", "c"]);
    assert_eq!(broken(&scene, |_| ()), []);
    assert_eq!(broken(&scene, |s| s.number = StateNumber(1)), [Rule::Counters]);
    assert_eq!(broken(&scene, |s| s.etcd_cluster_id = "0ther".into()), [Rule::Counters]);
    assert_eq!(broken(&scene, |s| s.system_identifier = None), [Rule::Counters]);
    assert!(broken(&scene, |s| s.primary = Some(name("b"))).contains(&Rule::Counters));
    assert!(broken(&scene, |s| s.epoch = Epoch(3)).contains(&Rule::Counters));
    assert!(broken(&scene, |s| s.epoch = Epoch(0)).contains(&Rule::Counters));
}

#[test]
fn sealing_is_never_taken_back_changed_or_begun_for_nothing() {
    let mut scene = Scene::serving("a", &["b", "c"]);
    assert_eq!(broken(&scene, |s| s.sealing = Some(Epoch(2))), []);
    assert_eq!(broken(&scene, |s| s.sealing = Some(Epoch(3))), [Rule::Sealing]);
    scene.vanishes("a");
    scene.vanishes("c");
    assert_eq!(broken(&scene, |s| s.sealing = Some(Epoch(2))), [Rule::Sealing]);

    let sealed = sealed();
    assert_eq!(broken(&sealed, |s| s.sealing = None), [Rule::Sealing]);
    assert_eq!(broken(&sealed, |s| s.sealing = Some(Epoch(3))), [Rule::Sealing]);
}

#[test]
fn a_cfg_is_not_dropped_without_proof_of_a_later_one() {
    let mut scene = Scene::serving("a", &["b"]);
    scene.returns("c");
    scene.settle();
    scene.streams("c");
    scene.pass(std::time::Duration::from_secs(1));
    scene.settle();
    assert_eq!(scene.state().cfgs.len(), 2);
    let drop_first = |s: &mut ClusterState| drop(s.cfgs.remove(0));
    assert_eq!(broken(&scene, drop_first), [Rule::Evidence]);
    assert!(
        broken(&scene, |s| drop(s.cfgs.pop())).contains(&Rule::Evidence),
        "to cancel is to lose"
    );
    let newest = scene.state().newest_cfg().unwrap().id;
    let proof =
        |id, voters: &[&str]| Some(Confirmed { cfg: id, lsn: Lsn(1), voters: names(voters) });
    scene.report("a").confirmed = proof(newest, &["d"]);
    assert_eq!(broken(&scene, drop_first), [Rule::Evidence], "d is no voter of it");
    scene.report("a").confirmed = proof(CfgId(newest.0 - 1), &["b"]);
    assert_eq!(broken(&scene, drop_first), [Rule::Evidence], "proof of the earlier one");
    scene.report("a").confirmed = proof(newest, &["c"]);
    assert_eq!(broken(&scene, drop_first), []);
    scene.report("a").incarnation = proto::Incarnation("a-2".into());
    assert_eq!(broken(&scene, drop_first), [Rule::Evidence], "the word of a namesake");
}

#[test]
fn cfgs_are_well_formed_numbered_and_led_by_their_primary() {
    let scene = Scene::serving("a", &["b", "c"]);
    let append = |cfg: Cfg| {
        broken(&scene, |s| {
            s.last_cfg = s.last_cfg.max(cfg.id);
            s.cfgs.push(cfg);
        })
    };
    assert_eq!(append(cfg(9, &["b"], 1)), []);
    assert_eq!(append(cfg(9, &["b"], 2)), [Rule::Cfgs], "more asked than there are");
    assert_eq!(append(cfg(9, &["b", "c"], 0)), [Rule::Cfgs]);
    assert_eq!(append(cfg(9, &["a", "b"], 1)), [Rule::Cfgs], "its leader votes");
    assert_eq!(append(cfg(9, &["b", "z"], 1)), [Rule::Cfgs], "z was never admitted");
    assert_eq!(append(cfg(1, &["b"], 1)), [Rule::Cfgs], "a used number");
    assert_eq!(append(cfg(9, &[], 0)), [Rule::Cfgs], "the primary would acknowledge alone");
    assert_eq!(append(Cfg { leader: name("b"), ..cfg(9, &["c"], 1) }), [Rule::Cfgs]);
    assert_eq!(append(cfg(9, &["b", "c"], 2)), [Rule::Cfgs], "k rises under the same names");
    assert_eq!(append(Cfg { round: 1, ..cfg(9, &["b", "c"], 2) }), []);
}

#[test]
fn nobody_is_promoted_who_could_lack_an_acknowledged_commit() {
    let judge = |scene: &Scene, next: &ClusterState| -> Vec<Rule> {
        let mut rules: Vec<Rule> =
            check(Some(scene.state()), next, &scene.seen).into_iter().map(|v| v.rule).collect();
        rules.dedup();
        rules
    };
    let mut scene = sealed();
    let next = promotion(&mut scene);
    assert_eq!(judge(&scene, &next), []);

    // c holds less than b, which counts in the base.
    let mut other = next.clone();
    other.primary = Some(name("c"));
    other.chosen = scene.report("c").seal.map(|s| s.position);
    other.epochs.last_mut().unwrap().primary = name("c");
    let newest = other.cfgs.last_mut().unwrap();
    (newest.leader, newest.voters) = (name("c"), names(&["b"]));
    assert_eq!(judge(&scene, &other), [Rule::Promotion]);

    type Spoil = fn(&mut Scene);
    let spoils: [Spoil; 5] = [
        |s| s.report("c").complete = false,
        |s| s.report("c").seal.as_mut().unwrap().sealing = Epoch(3),
        |s| s.report("c").promise = Epoch(1),
        |s| s.report("c").seal.as_mut().unwrap().position.lsn = Lsn(1),
        |s| s.vanishes("c"),
    ];
    for spoil in spoils {
        let mut scene = sealed();
        let next = promotion(&mut scene);
        spoil(&mut scene);
        assert_eq!(judge(&scene, &next), [Rule::Promotion]);
    }
    let mut elsewhere = next.clone();
    elsewhere.chosen.as_mut().unwrap().lsn = Lsn(0x600_0000);
    assert_eq!(
        judge(&scene, &elsewhere),
        [Rule::Promotion],
        "chosen at a position that it did not seal"
    );
}

#[test]
fn an_epoch_has_a_timeline_of_its_own_above_all_named_before() {
    let mut scene = sealed();
    let next = promotion(&mut scene);
    let mut again = next.clone();
    (again.timeline, again.highest_timeline) = (Timeline(1), Timeline(1));
    again.epochs.last_mut().unwrap().timeline = Timeline(1);
    let rules: Vec<Rule> =
        check(Some(scene.state()), &again, &scene.seen).into_iter().map(|v| v.rule).collect();
    assert_eq!(rules, [Rule::Timelines, Rule::Timelines]);

    let mut forgotten = next.clone();
    forgotten.cfgs.remove(0);
    forgotten.epochs.remove(0);
    let rules: Vec<Rule> =
        check(Some(scene.state()), &forgotten, &scene.seen).into_iter().map(|v| v.rule).collect();
    assert!(rules.contains(&Rule::Timelines), "few epochs are on record: none is forgotten");

    let serving = Scene::serving("a", &["b"]);
    assert!(broken(&serving, |s| s.timeline = Timeline(2)).contains(&Rule::Timelines));
    assert!(broken(&serving, |s| s.highest_timeline = Timeline(0)).contains(&Rule::Timelines));
    assert!(broken(&serving, |s| s.epochs[0].start_lsn = Some(Lsn(7))).contains(&Rule::Timelines));
    let second = EpochRecord {
        epoch: Epoch(2),
        timeline: Timeline(1),
        primary: name("b"),
        parent: None,
        start_lsn: None,
        with_loss: false,
    };
    assert!(broken(&serving, |s| s.epochs.push(second)).contains(&Rule::Timelines));
}

#[test]
fn members_stay_and_their_floors_never_fall() {
    let scene = Scene::serving("a", &["b", "c"]);
    let b = name("b");
    let low = Some(Floor { epoch: Epoch(1), lsn: Lsn(1) });
    assert_eq!(broken(&scene, |s| s.members.get_mut(&b).unwrap().floor = low), [Rule::Members]);
    assert_eq!(broken(&scene, |s| s.members.get_mut(&b).unwrap().floor = None), [Rule::Members]);
    assert!(broken(&scene, |s| drop(s.members.remove(&b))).contains(&Rule::Members));
    let other = proto::Incarnation("b-2".into());
    let adopt = |s: &mut ClusterState| s.members.get_mut(&b).unwrap().incarnation = other.clone();
    assert_eq!(broken(&scene, adopt), [Rule::Members], "its report claims to be complete");
}

#[test]
fn a_restart_is_for_the_present_primary_and_not_while_sealing() {
    let order =
        |member: &str, number| RestartOrder { member: name(member), epoch: Epoch(1), number };
    let scene = Scene::serving("a", &["b", "c"]);
    let set = |order: RestartOrder| {
        move |s: &mut ClusterState| {
            s.phase = Phase::Restarting;
            s.restart = Some(order);
        }
    };
    assert_eq!(broken(&scene, set(order("a", 2))), []);
    assert_eq!(broken(&scene, set(order("b", 2))), [Rule::Restart]);
    assert_eq!(broken(&scene, set(order("a", 1))), [Rule::Restart], "the number of the founding");
    assert_eq!(broken(&scene, |s| s.phase = Phase::Restarting), [Rule::Restart]);
    assert_eq!(broken(&sealed(), set(order("a", 2))), [Rule::Restart]);
}

#[test]
fn only_the_word_of_its_keeper_opens_a_primary() {
    let mut scene = sealed();
    scene.settle();
    assert_eq!(broken(&scene, |s| s.phase = Phase::Open), [Rule::Opening]);
    scene.opens("b");
    assert_eq!(broken(&scene, |s| s.phase = Phase::Open), []);
    scene.report("b").opened.as_mut().unwrap().epoch = Epoch(1);
    assert_eq!(broken(&scene, |s| s.phase = Phase::Open), [Rule::Opening]);
}
