//! How a cluster begins.

use proto::report::DataDirectory;
use proto::spec::{MemberSpec, Permission};
use proto::{Epoch, Phase, SystemIdentifier, Timeline};
use sentinel::plan::WaitingOn;

use crate::scene::{Scene, name};

fn founder(scene: &Scene) -> Option<&str> {
    match &scene.state().phase {
        Phase::Founding { founder } => Some(founder.as_str()),
        Phase::Promoting | Phase::Restarting | Phase::Open | Phase::Switchover(_) => None,
    }
}

#[test]
fn the_first_empty_member_by_name_founds() {
    let mut scene = Scene::empty(&["c", "b"]);
    assert_eq!(scene.waits(), WaitingOn::Initdb { founder: name("b") });
    assert_eq!(founder(&scene), Some("b"));
}

#[test]
fn a_member_that_may_not_be_promoted_never_founds() {
    let mut scene = Scene::empty(&["a", "b"]);
    let limits = MemberSpec { promote: Permission::Never, ..MemberSpec::default() };
    scene.spec.members.insert(name("a"), limits);
    scene.settle();
    assert_eq!(founder(&scene), Some("b"));
}

#[test]
fn a_member_with_data_never_founds() {
    let mut scene = Scene::empty(&["a", "b"]);
    scene.report("a").data = DataDirectory::Present;
    scene.report("b").data = DataDirectory::Building;
    assert_eq!(scene.waits(), WaitingOn::EmptyMember);
    assert!(scene.state.is_none());
}

#[test]
fn the_founder_that_the_spec_names_is_waited_for() {
    let mut scene = Scene::empty(&["a", "b"]);
    scene.spec.founder = Some(name("c"));
    assert_eq!(scene.waits(), WaitingOn::NamedFounder { founder: name("c") });
    scene.returns("c");
    scene.settle();
    assert_eq!(founder(&scene), Some("c"));
}

#[test]
fn a_founder_that_vanishes_before_its_report_is_replaced() {
    let mut scene = Scene::empty(&["a", "b"]);
    scene.settle();
    scene.vanishes("a");
    scene.pass(std::time::Duration::from_secs(9));
    assert_eq!(scene.waits(), WaitingOn::FounderReport { founder: name("a") });
    scene.pass(std::time::Duration::from_secs(1));
    scene.settle();
    assert_eq!(founder(&scene), Some("b"));
    scene.vanishes("b");
    assert_eq!(scene.waits(), WaitingOn::FounderReport { founder: name("b") });
}

#[test]
fn a_founder_whose_lease_lapsed_in_a_stall_goes_on() {
    let mut scene = Scene::empty(&["a", "b"]);
    scene.settle();
    // All leases are gone at the first look, and b is back before the founder, which has run initdb meanwhile.
    scene.outage(std::time::Duration::from_secs(6));
    scene.vanishes("a");
    scene.settle();
    scene.pass(std::time::Duration::from_secs(1));
    scene.settle();
    scene.returns("a");
    scene.founds("a");
    scene.settle();
    assert_eq!((scene.primary(), scene.state().epoch), (name("a"), Epoch(1)));
}

#[test]
fn a_founder_that_reported_its_identifier_is_never_replaced() {
    let mut scene = Scene::empty(&["a", "b"]);
    scene.settle();
    scene.founds("a");
    scene.settle();
    scene.vanishes("a");
    scene.pass(std::time::Duration::from_secs(60));
    scene.settle();
    assert_eq!((scene.primary(), scene.state().epoch), (name("a"), Epoch(1)));
    assert_eq!(scene.sealing(), None);
}

#[test]
fn the_founder_starts_by_order_and_others_are_admitted_meanwhile() {
    let mut scene = Scene::empty(&["a", "b"]);
    scene.settle();
    scene.founds("a");
    assert_eq!(scene.waits(), WaitingOn::Restart { primary: name("a"), number: 1 });
    let state = scene.state();
    assert_eq!(state.phase, Phase::Restarting);
    assert_eq!(state.cfgs[0].to_string(), "#1 {a; ; 0}");
    assert_eq!((state.timeline, state.highest_timeline), (Timeline(1), Timeline(1)));
    assert!(state.members.contains_key(&name("b")));
    scene.opens("a");
    scene.settle();
    assert_eq!(scene.state().phase, Phase::Open);
}

#[test]
fn a_member_of_another_cluster_is_refused_with_a_warning() {
    let mut scene = Scene::serving("a", &["b"]);
    scene.returns("c");
    scene.report("c").system_identifier = Some(SystemIdentifier(1));
    let plan = scene.settle();
    assert!(!scene.state().members.contains_key(&name("c")));
    assert!(
        plan.explanation
            .warnings
            .iter()
            .any(|w| w.contains("c is refused") && w.contains("another cluster"))
    );
}

#[test]
fn a_state_of_another_etcd_cluster_is_left_alone() {
    let mut scene = Scene::serving("a", &["b", "c"]);
    scene.seen.etcd_cluster_id = "0ther".into();
    scene.dies("a");
    assert!(matches!(scene.waits(), WaitingOn::OtherStore { .. }));
    assert_eq!(scene.sealing(), None);
}
