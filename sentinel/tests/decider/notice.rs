//! When a primary counts as lost, and when it does not.

use std::time::Duration;

use proto::report::{Ended, Server, Stream, Unresponsive};
use proto::spec::Permission;
use proto::{ClusterSpec, Epoch};
use sentinel::observe::{Probe, Stored};
use sentinel::plan::WaitingOn;

use crate::scene::{Scene, name, names};

#[test]
fn a_lapse_counts_at_once_when_all_who_count_are_silent() {
    let mut scene = Scene::serving("a", &["b", "c"]);
    scene.vanishes("a");
    scene.silent("b");
    scene.silent("c");
    scene.settle();
    assert_eq!(scene.sealing(), Some(Epoch(2)));
    assert!(scene.is_asked_to_seal("b") && scene.is_asked_to_seal("a"));
}

#[test]
fn a_missing_report_is_not_silence() {
    let mut scene = Scene::serving("a", &["b", "c"]);
    scene.vanishes("a");
    scene.silent("b");
    scene.vanishes("c");
    scene.pass(Duration::from_secs(600));
    assert!(
        matches!(scene.waits(), WaitingOn::SealSet { .. }),
        "c could know of commits that b lacks"
    );
    assert_eq!(scene.sealing(), None);
}

#[test]
fn after_an_etcd_stall_every_lease_is_gone_and_nobody_is_failed_over() {
    let mut scene = Scene::serving("a", &["b", "c"]);
    let reports = scene.seen.members.clone();
    for member in ["a", "b", "c"] {
        scene.vanishes(member);
    }
    scene.outage(Duration::from_secs(30));
    scene.waits();
    // Keepers come back one after the other, the primary's last; streams never broke.
    for member in ["b", "c"] {
        scene.seen.members.insert(name(member), reports[&name(member)].clone());
        assert!(matches!(scene.waits(), WaitingOn::IsolationGrace { .. }));
    }
    scene.seen.members.insert(name("a"), reports[&name("a")].clone());
    scene.holds_right("a");
    scene.settle();
    let state = scene.state();
    assert_eq!((state.sealing, state.epoch), (None, Epoch(1)));
}

#[test]
fn a_stall_does_not_use_up_the_grace() {
    let mut scene = Scene::serving("a", &["b", "c"]);
    scene.vanishes("a");
    scene.pass(Duration::from_secs(9));
    scene.outage(Duration::from_secs(20));
    assert!(matches!(scene.waits(), WaitingOn::IsolationGrace { .. }));
    scene.pass(scene.spec.isolation_grace);
    scene.settle();
    assert_eq!(scene.sealing(), Some(Epoch(2)));
}

#[test]
fn a_voter_that_hears_the_primary_gives_it_grace_and_a_new_leader_gives_it_anew() {
    let mut scene = Scene::serving("a", &["b", "c"]);
    scene.vanishes("a");
    scene.silent("b");
    assert_eq!(
        scene.waits(),
        WaitingOn::IsolationGrace { primary: name("a"), heard_by: vec![name("c")] }
    );
    scene.pass(Duration::from_secs(9));
    scene.leader_changes();
    scene.settle();
    scene.pass(Duration::from_secs(9));
    assert!(matches!(scene.waits(), WaitingOn::IsolationGrace { .. }));
    scene.pass(Duration::from_secs(1));
    scene.settle();
    assert_eq!(scene.sealing(), Some(Epoch(2)));
}

#[test]
fn members_that_were_all_away_from_etcd_and_come_back_before_the_primary_replace_nobody() {
    let mut scene = Scene::serving("a", &["b", "c"]);
    let reports = scene.seen.members.clone();
    for member in ["a", "b", "c"] {
        scene.vanishes(member);
    }
    // The leader itself could read all the time.
    scene.pass(Duration::from_secs(60));
    for member in ["b", "c"] {
        scene.seen.members.insert(name(member), reports[&name(member)].clone());
        scene.settle();
        assert_eq!(scene.sealing(), None, "the keeper of a needs some tries too");
    }
    scene.pass(Duration::from_secs(9));
    assert!(matches!(scene.waits(), WaitingOn::IsolationGrace { .. }));
    scene.pass(Duration::from_secs(1));
    scene.settle();
    assert_eq!(scene.sealing(), Some(Epoch(2)), "it had its time");
}

#[test]
fn who_never_heard_this_primary_cannot_call_it_silent() {
    let mut scene = Scene::serving("a", &["b", "c"]);
    scene.vanishes("a");
    for member in ["b", "c"] {
        scene.report(member).stream = Stream::Silent { epoch: Epoch(0) };
    }
    assert!(matches!(scene.waits(), WaitingOn::IsolationGrace { .. }));
    for member in ["b", "c"] {
        scene.report(member).stream = Stream::None;
    }
    assert!(matches!(scene.waits(), WaitingOn::IsolationGrace { .. }));
}

#[test]
fn a_keeper_that_lives_takes_its_right_back_while_voters_hear_its_primary() {
    let mut scene = Scene::serving("a", &["b", "c"]);
    scene.seen.primary_key = Stored::Absent;
    scene.pass(Duration::from_secs(600));
    assert!(matches!(scene.waits(), WaitingOn::PrimaryKey { .. }));
    scene.silent("b");
    scene.silent("c");
    scene.settle();
    assert_eq!(scene.sealing(), Some(Epoch(2)), "its keeper lives, but nobody hears the primary");
}

#[test]
fn silence_alone_is_nothing_while_the_right_is_held() {
    let mut scene = Scene::serving("a", &["b", "c"]);
    scene.silent("b");
    scene.silent("c");
    scene.pass(Duration::from_secs(600));
    scene.settle();
    assert_eq!(scene.sealing(), None);
}

#[test]
fn sealing_is_never_for_nothing() {
    let mut scene = Scene::serving("a", &["b", "c"]);
    scene.vanishes("c");
    scene.vanishes("a");
    scene.silent("b");
    scene.pass(Duration::from_secs(600));
    let WaitingOn::SealSet { primary, unmet } = scene.waits() else { panic!("no seal set lives") };
    assert_eq!((primary, unmet.len()), (name("a"), 1));
    scene.returns("c");
    scene.report("c").incarnation = scene.state().members[&name("c")].incarnation.clone();
    scene.streams("c");
    scene.silent("c");
    scene.settle();
    assert_eq!(scene.sealing(), Some(Epoch(2)));
}

#[test]
fn a_right_that_cannot_be_read_counts_as_held() {
    let mut scene = Scene::serving("a", &["b", "c"]);
    scene.vanishes("a");
    scene.silent("b");
    scene.silent("c");
    let problem = proto::DecodeError::NewerFormat { kind: "primary key", found: 9, known: 1 };
    scene.seen.primary_key = Stored::Newer(problem);
    let plan = scene.settle();
    assert_eq!(scene.sealing(), None);
    assert!(plan.explanation.warnings.iter().any(|w| w.contains("counts as held")));
}

#[test]
fn a_keeper_that_just_started_is_given_time_and_one_whose_postgresql_is_stopped_is_not() {
    let mut scene = Scene::serving("a", &["b", "c"]);
    scene.report("a").server = Server::Unknown;
    scene.report("a").opened = None;
    assert_eq!(scene.waits(), WaitingOn::PrimaryReport { primary: name("a") });
    scene.report("a").server = Server::Stopped;
    scene.settle();
    assert_eq!(scene.sealing(), Some(Epoch(2)));
}

#[test]
fn a_dead_primary_is_sealed_although_its_keeper_holds_the_right() {
    let mut scene = Scene::serving("a", &["b", "c"]);
    scene.dies("a");
    scene.settle();
    assert_eq!(scene.sealing(), Some(Epoch(2)));
    let record = &scene.history[&(Epoch(2), 0)];
    assert!(record.cause.contains("PostgreSQL of primary a died"), "{}", record.cause);
}

/// a serves and holds its right; the voters say what they hear.
fn unheard_by(silent: &[&str]) -> Scene {
    let mut scene = Scene::serving("a", &["b", "c"]);
    for member in silent {
        scene.silent(member);
        scene.report(member).silence = Some(Epoch(1));
    }
    scene
}

#[test]
fn a_primary_that_no_live_voter_hears_is_replaced_before_its_lease_lapses() {
    let mut scene = unheard_by(&["b", "c"]);
    scene.settle();
    assert_eq!(scene.sealing(), Some(Epoch(2)));
    let record = &scene.history[&(Epoch(2), 0)];
    assert_eq!(record.cause, "nobody hears primary a any more");
}

#[test]
fn a_primary_that_one_live_voter_hears_stays() {
    let mut scene = unheard_by(&["b"]);
    scene.settle();
    assert_eq!(scene.sealing(), None);
}

/// The leader has asked the primary's keeper itself, just now.
fn probed(scene: &mut Scene, answered: bool) {
    scene.seen.probe = Some(Probe { epoch: scene.state().epoch, answered, at: scene.now() });
}

#[test]
fn a_single_observer_is_believed_when_the_leader_gets_no_answer_either() {
    let mut scene = Scene::serving("a", &["b"]);
    scene.silent("b");
    scene.report("b").silence = Some(Epoch(1));
    let mut third_is_away = unheard_by(&["b"]);
    third_is_away.vanishes("c");
    third_is_away.spec.settle = Duration::ZERO;
    assert_eq!(scene.waits(), WaitingOn::OwnProbe { primary: name("a") });
    probed(&mut scene, true);
    assert_ne!(scene.waits(), WaitingOn::OwnProbe { primary: name("a") });
    assert_eq!(scene.sealing(), None, "the link of b may be the one that is cut");
    scene.pass(Duration::from_secs(1));
    assert_eq!(scene.waits(), WaitingOn::OwnProbe { primary: name("a") }, "asked again");
    probed(&mut scene, false);
    scene.settle();
    assert_eq!(scene.sealing(), Some(Epoch(2)));
    let evidence = &scene.history[&(Epoch(2), 0)].evidence;
    assert!(evidence.iter().any(|e| e.contains("does not answer the leader")), "{evidence:?}");
    // b alone is no seal set of {a; b,c}: an answer would change nothing, and none is asked for.
    probed(&mut third_is_away, false);
    third_is_away.settle();
    assert_eq!(third_is_away.sealing(), None);
}

#[test]
fn the_leaders_own_question_alone_is_nothing_and_one_about_another_epoch_neither() {
    let mut scene = Scene::serving("a", &["b"]);
    probed(&mut scene, false);
    scene.settle();
    assert_eq!(scene.sealing(), None);
    scene.silent("b");
    scene.report("b").silence = Some(Epoch(1));
    probed(&mut scene, false);
    scene.seen.probe.as_mut().unwrap().epoch = Epoch(7);
    assert_eq!(scene.waits(), WaitingOn::OwnProbe { primary: name("a") });
}

/// Keepers hear the primary's, but its streams are gone; the standbys hear each other.
fn deserted() -> Scene {
    let mut scene = Scene::serving("a", &["b", "c"]);
    for (member, other) in [("b", "c"), ("c", "b")] {
        scene.silent(member);
        scene.report(member).hears = names(&[other]);
    }
    scene
}

#[test]
fn commits_that_wait_because_no_voter_receives_are_not_waited_for_for_ever() {
    let mut scene = deserted();
    scene.pass(Duration::from_secs(9));
    assert_eq!(scene.waits(), WaitingOn::Stream { primary: name("a") });
    assert_eq!(scene.sealing(), None, "streams come back");
    scene.pass(Duration::from_secs(1));
    scene.settle();
    assert_eq!(scene.sealing(), Some(Epoch(2)));
    let record = &scene.history[&(Epoch(2), 0)];
    assert!(record.cause.contains("no voter receives from primary a"), "{}", record.cause);
}

#[test]
fn a_primary_whose_voters_receive_nothing_stays_where_another_one_would_not_help() {
    type Change = fn(&mut Scene);
    let changes: [(&str, Change); 5] = [
        ("one receives", |scene| scene.streams("c")),
        ("nobody hears another", |scene| {
            for member in ["b", "c"] {
                scene.report(member).hears.clear();
            }
        }),
        ("one is not well", |scene| scene.report("c").server = Server::Starting),
        ("they never received from it", |scene| {
            for member in ["b", "c"] {
                scene.report(member).stream = Stream::Silent { epoch: Epoch(0) };
            }
        }),
        ("nobody may be promoted", |scene| {
            for member in ["b", "c"] {
                scene.spec.members.entry(name(member)).or_default().promote = Permission::Never;
            }
        }),
    ];
    for (why, change) in changes {
        let mut scene = deserted();
        change(&mut scene);
        scene.pass(Duration::from_secs(600));
        scene.settle();
        assert_eq!(scene.sealing(), None, "{why}");
    }
}

#[test]
fn silence_about_another_epoch_is_nothing() {
    let mut scene = unheard_by(&["b", "c"]);
    scene.report("b").silence = Some(Epoch(7));
    scene.settle();
    assert_eq!(scene.sealing(), None);
}

fn unwell(scene: &mut Scene, epoch: u64) {
    let problem = "a new session is not accepted: no answer".into();
    scene.report("a").unresponsive = Some(Unresponsive { epoch: Epoch(epoch), problem });
}

#[test]
fn a_primary_that_does_not_do_its_work_is_replaced_though_it_holds_its_right_and_is_heard() {
    let mut scene = Scene::serving("a", &["b", "c"]);
    unwell(&mut scene, 1);
    scene.settle();
    assert_eq!(scene.sealing(), Some(Epoch(2)));
    let record = &scene.history[&(Epoch(2), 0)];
    assert_eq!(record.cause, "PostgreSQL of primary a does not do its work");
    let noticed = record.phases.first().unwrap();
    let took = noticed.end.unwrap().ms_since(noticed.start);
    assert!(took >= 10_000, "it counts from when it stopped working: {took} ms");
}

#[test]
fn what_was_said_of_an_older_epoch_or_where_nobody_can_take_over_replaces_nobody() {
    let mut scene = Scene::serving("a", &["b", "c"]);
    unwell(&mut scene, 0);
    scene.settle();
    assert_eq!(scene.sealing(), None);
    unwell(&mut scene, 1);
    scene.vanishes("b");
    scene.vanishes("c");
    scene.pass(Duration::from_secs(600));
    assert_eq!(scene.sealing(), None, "a primary that works a little is better than none");
    assert_eq!(scene.state().restart.as_ref().map(|r| r.number), Some(1), "nor is it restarted");
}

/// a serves, holds its right and is heard; these members see no new WAL of it.
fn still_to(watching: &[&str]) -> Scene {
    let mut scene = Scene::serving("a", &["b", "c"]);
    for member in watching {
        scene.report(member).standstill = Some(Epoch(1));
    }
    scene
}

#[test]
fn a_primary_that_writes_nothing_by_the_word_of_all_its_voters_is_replaced_though_it_is_heard() {
    let mut scene = still_to(&["b", "c"]);
    scene.settle();
    assert_eq!(scene.sealing(), Some(Epoch(2)));
    let record = &scene.history[&(Epoch(2), 0)];
    assert_eq!(record.cause, "primary a is heard and does not get on, its voters say");
    let noticed = record.phases.first().unwrap();
    let took = noticed.end.unwrap().ms_since(noticed.start);
    assert!(took >= 10_000, "it counts from when it stopped working: {took} ms");
}

#[test]
fn a_voter_whose_stream_broke_off_and_that_hears_nothing_either_is_no_objection() {
    let mut scene = still_to(&["b"]);
    scene.silent("c");
    scene.report("c").silence = Some(Epoch(1));
    scene.settle();
    assert_eq!(scene.sealing(), Some(Epoch(2)));
}

#[test]
fn without_the_word_of_all_or_somebody_to_take_over_a_standstill_replaces_nobody() {
    type Change = fn(&mut Scene);
    let cases: [(&str, Change); 5] = [
        ("one voter sees it move", |scene| scene.report("c").standstill = None),
        ("it is said of an older epoch", |scene| {
            scene.report("b").standstill = Some(Epoch(0));
        }),
        ("nobody may be promoted", |scene| {
            for member in ["b", "c"] {
                scene.spec.members.entry(name(member)).or_default().promote = Permission::Never;
            }
        }),
        ("who says so misses WAL", |scene| scene.report("b").complete = false),
        ("one voter is gone, so that commits of the other may be what nobody else has", |scene| {
            scene.vanishes("c");
            scene.spec.settle = Duration::from_secs(3600);
        }),
    ];
    for (why, change) in cases {
        let mut scene = still_to(&["b", "c"]);
        change(&mut scene);
        scene.pass(Duration::from_secs(60));
        scene.settle();
        assert_eq!(scene.sealing(), None, "{why}");
    }
}

#[test]
fn where_fewer_voters_stream_than_acknowledge_its_keeper_commits_nothing_and_that_is_no_standstill()
{
    let mut spec = ClusterSpec::default();
    (spec.synchronous.count, spec.settle) = (2, Duration::from_secs(3600));
    let mut scene = Scene::serving_with(spec, "a", &["b", "c"]);
    assert_eq!(scene.state().newest_cfg().unwrap().k, 2);
    scene.vanishes("b");
    scene.report("c").standstill = Some(Epoch(1));
    scene.settle();
    assert_eq!(scene.sealing(), None);
}

#[test]
fn a_single_voter_is_believed_of_a_standstill_when_the_leader_gets_no_answer_either() {
    let mut scene = Scene::serving("a", &["b"]);
    scene.report("b").standstill = Some(Epoch(1));
    assert_eq!(scene.waits(), WaitingOn::OwnProbe { primary: name("a") });
    probed(&mut scene, true);
    scene.settle();
    assert_eq!(scene.sealing(), None, "the only voter may be what does not get on");
    probed(&mut scene, false);
    scene.settle();
    assert_eq!(scene.sealing(), Some(Epoch(2)));
}

#[test]
fn the_record_says_how_postgres_ended() {
    for (ended, cause) in [
        (None, "PostgreSQL of primary a died"),
        (Some(Ended::Died), "PostgreSQL of primary a died"),
        (Some(Ended::Stopped), "PostgreSQL of primary a was stopped"),
        (Some(Ended::Expired), "primary a could not renew its right in time and was fenced"),
        (Some(Ended::Fenced), "PostgreSQL of primary a was fenced"),
    ] {
        let mut scene = Scene::serving("a", &["b", "c"]);
        scene.dies("a");
        scene.report("a").ended = ended;
        scene.settle();
        assert_eq!(scene.history[&(Epoch(2), 0)].cause, cause);
    }
}
