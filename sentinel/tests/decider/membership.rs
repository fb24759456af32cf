//! Who belongs to the cluster.

use proto::Incarnation;
use sentinel::plan::WaitingOn;

use crate::scene::{Scene, name, names};

#[test]
fn a_new_member_is_admitted_without_a_floor() {
    let mut scene = Scene::serving("a", &["b"]);
    scene.returns("c");
    scene.settle();
    assert_eq!(scene.state().members[&name("c")].floor, None);
    assert_eq!(scene.waits(), WaitingOn::Redundancy { missing: vec![name("c")] });
}

#[test]
fn new_member_files_under_a_known_name_keep_its_floor_and_come_in_as_incomplete() {
    let mut scene = Scene::serving("a", &["b", "c"]);
    let floor = scene.state().members[&name("c")].floor;
    assert!(floor.is_some());
    scene.returns("c");
    scene.report("c").incarnation = Incarnation("c-2".into());
    scene.settle();
    let admitted = &scene.state().members[&name("c")];
    assert_eq!((admitted.incarnation.0.as_str(), admitted.floor), ("c-2", floor));
    assert_eq!(scene.voters(), names(&["b"]), "the old files are gone, and with them their vote");
}

#[test]
fn other_files_that_claim_to_be_complete_are_refused() {
    let mut scene = Scene::serving("a", &["b", "c"]);
    scene.report("c").incarnation = Incarnation("c-2".into());
    let plan = scene.settle();
    assert_eq!(scene.state().members[&name("c")].incarnation.0, "c-1");
    assert!(plan.explanation.warnings.iter().any(|w| w.contains("c is refused")));
    assert!(plan.explanation.rejected.iter().any(|r| r.member == name("c")));
}

#[test]
fn seals_of_other_member_files_count_for_nothing() {
    let mut scene = Scene::serving("a", &["b", "c"]);
    scene.dies("a");
    scene.settle();
    scene.seals("b", "0/5000000");
    scene.seals("c", "0/5000000");
    scene.report("c").incarnation = Incarnation("c-2".into());
    assert!(matches!(scene.waits(), WaitingOn::Seals { .. }));
}

#[test]
fn the_explanation_changes_only_with_the_reason() {
    let mut scene = Scene::serving("a", &["b", "c"]);
    let before = scene.settle().explanation;
    scene.pass(std::time::Duration::from_secs(3600));
    assert_eq!(scene.settle().explanation, before);
}
