//! What people read afterwards.

use std::time::Duration;

use proto::history::HistoryKind;
use proto::rejoin::{Discarded, RejoinDetails};
use proto::report::{Rejoin, RejoinBy, RejoinOutcome};
use proto::{Epoch, Timeline};

use crate::scene::{Scene, millis, name};

#[test]
fn a_failover_is_recorded_phase_by_phase_until_all_are_back() {
    let mut scene = Scene::serving("a", &["b", "c"]);
    scene.dies("a");
    scene.pass(millis(10));
    scene.settle();
    scene.pass(millis(15));
    scene.seals("b", "0/5000000");
    scene.seals("c", "0/5000000");
    scene.settle();
    scene.pass(millis(30));
    scene.opens("b");
    scene.streams("c");
    scene.settle();
    scene.confirms("0/5000100");
    scene.settle();
    assert_eq!(scene.history[&(Epoch(2), 0)].redundant, None, "a is not back");

    scene.pass(Duration::from_secs(2));
    let (started, ended) = (scene.wall(), scene.wall());
    scene.streams("a");
    scene.report("a").rejoin = Some(Rejoin {
        epoch: Epoch(2),
        by: RejoinBy::Rewind,
        reason: "its WAL ends past the fork".into(),
        started,
        outcome: RejoinOutcome::Done { ended },
        kept: None,
        details: RejoinDetails { discarded: Some(discarded()), ..RejoinDetails::default() },
    });
    scene.pass(Duration::from_secs(1));
    scene.settle();
    scene.confirms("0/6000000");
    scene.settle();

    let record = &scene.history[&(Epoch(2), 0)];
    assert_eq!(record.kind, HistoryKind::Failover);
    assert_eq!((record.from.clone(), record.to.clone()), (Some(name("a")), Some(name("b"))));
    let phases: Vec<(&str, i64)> = record
        .phases
        .iter()
        .map(|p| (p.name.as_str(), p.end.expect("every phase ended").ms_since(p.start)))
        .collect();
    let expected =
        [("notice", 10), ("seal", 15), ("choose", 0), ("promote", 30), ("redundancy", 3000)];
    assert_eq!(phases, expected);
    assert_eq!(record.rejoined.len(), 1);
    assert_eq!(record.rejoined[0].by, RejoinBy::Rewind);
    let proof = record.rejoined[0].acknowledged.as_ref().unwrap();
    assert!(
        proof.starts_with("none of it was acknowledged: the first commit ends at 0/9"),
        "{proof}"
    );
    assert!(record.redundant.is_some());
    assert!(record.rejected.iter().any(|r| r.member == name("c")));
}

#[test]
fn a_return_that_failed_is_noted_once_for_each_reason() {
    let mut scene = Scene::serving("a", &["b", "c"]);
    scene.dies("a");
    scene.settle();
    scene.seals("b", "0/5000000");
    scene.seals("c", "0/5000000");
    scene.settle();
    scene.opens("b");
    scene.streams("c");
    scene.settle();
    let mut fails = |why: String, epoch: u64| {
        let ended = scene.wall();
        scene.report("a").rejoin = Some(Rejoin {
            epoch: Epoch(epoch),
            by: RejoinBy::Rewind,
            reason: "its WAL ends past the fork".into(),
            started: ended,
            outcome: RejoinOutcome::Failed { ended, problem: why },
            kept: None,
            details: RejoinDetails::default(),
        });
        scene.settle();
        scene.pass(millis(20));
        let notes = scene.history[&(Epoch(2), 0)].notes.iter();
        notes.filter(|n| n.text.contains("rewound")).map(|n| n.text.clone()).collect::<Vec<_>>()
    };
    assert!(fails("of an older epoch".into(), 1).is_empty());
    let told = fails("disk full; it is tried again".into(), 2);
    assert_eq!(told, ["a could not be rewound: disk full; it is tried again"]);
    assert_eq!(fails("disk full; it is tried again".into(), 2).len(), 1);
    for position in 0..10 {
        fails(format!("ended at 0/{position}"), 2);
    }
    assert_eq!(fails("ended at 0/77".into(), 2).len(), 5, "an epoch may last for years");
}

fn discarded() -> Discarded {
    Discarded {
        timeline: Timeline(1),
        from: "0/5000000".parse().unwrap(),
        to: "0/9001000".parse().unwrap(),
        read_to: "0/9001000".parse().unwrap(),
        records: 7,
        commits: 2,
        rollbacks: 1,
        first_commit: Some("0/9000100".parse().unwrap()),
        relations: Vec::new(),
        more_relations: 0,
        kept: None,
    }
}

#[test]
fn the_founding_and_a_restart_have_records_of_their_own() {
    let mut scene = Scene::serving("a", &["b"]);
    let founding = &scene.history[&(Epoch(1), 0)];
    assert_eq!(founding.kind, HistoryKind::Founding);
    assert!(founding.redundant.is_some());
    scene.vanishes("b");
    scene.dies("a");
    scene.settle();
    scene.opens("a");
    scene.settle();
    let restart = &scene.history[&(Epoch(1), 2)];
    assert_eq!(restart.kind, HistoryKind::Restart);
    let names: Vec<&str> = restart.phases.iter().map(|p| p.name.as_str()).collect();
    assert_eq!(names, ["notice", "restart", "redundancy"]);
}
