//! What may be vouched for, and what not.

use proto::report::{Frozen, Opened};
use proto::{Epoch, Lsn, Timeline};

use super::*;

fn name(name: &str) -> MemberName {
    name.parse().unwrap()
}

/// State `number` of `epoch`, in which a leads and one of b and c acknowledges.
fn state(number: u64, epoch: u64) -> ClusterState {
    let text = format!(
        r#"{{"format_version":1,"number":{number},"etcd_cluster_id":"old","system_identifier":null,"epoch":{epoch},
        "phase":{{"name":"open"}},"primary":"a","sealing":null,"cfgs":[{{"id":4,"epoch":{epoch},"leader":"a",
        "voters":["b","c"],"k":1,"round":0}}],"last_cfg":4,"timeline":{epoch},"highest_timeline":{epoch},"chosen":null,
        "open_at_once":true,"epochs":[{{"epoch":{epoch},"timeline":{epoch},"primary":"a","start_lsn":null}}],
        "members":{{"a":{{"incarnation":"a","floor":null}},"b":{{"incarnation":"b","floor":null}},
        "c":{{"incarnation":"c","floor":null}}}},"restart":null}}"#
    );
    proto::document::decode(text.as_bytes()).unwrap()
}

fn report(member: &str, promise: u64) -> MemberReport {
    let text = format!(
        r#"{{"format_version":1,"member":"{member}","incarnation":"{member}","understands_format":1,
        "pgdeputy_version":"0","postgres_version":150018,"postgres_address":"h:1","http_address":"h:2","zone":null,
        "promise":{promise},"data":"present","system_identifier":null,"complete":true,
        "server":{{"state":"unknown"}},"opened":null,"confirmed":null,"stream":{{"state":"none"}},"seal":null,
        "rejoin":null,"problems":[]}}"#
    );
    proto::document::decode(text.as_bytes()).unwrap()
}

struct Scene(BTreeMap<MemberName, MemberReport>);

impl Scene {
    fn new() -> Self {
        Self(BTreeMap::new())
    }

    /// A member that has promised `promise` and acted on `acted_on`.
    fn frozen(mut self, member: &str, promise: u64, acted_on: ClusterState) -> Self {
        let frozen = Frozen { why: "set back".into(), acted_on: Box::new(acted_on) };
        let report = MemberReport { frozen: Some(frozen), ..report(member, promise) };
        self.0.insert(name(member), report);
        self
    }

    fn serving(mut self, member: &str, epoch: u64) -> Self {
        let report = self.0.get_mut(&name(member)).unwrap();
        let timeline = Timeline(epoch as u32);
        report.opened =
            Some(Opened { epoch: Epoch(epoch), timeline, start_lsn: Lsn(1), restart: 0 });
        self
    }

    fn truth(&self) -> Result<Truth, String> {
        truth(Some(&state(5, 1)), &self.0, "new")
    }
}

#[test]
fn the_last_state_acted_on_is_written_above_all_and_not_what_the_backup_says() {
    let scene = Scene::new()
        .frozen("a", 2, state(40, 2))
        .serving("a", 2)
        .frozen("b", 2, state(39, 2))
        .frozen("c", 1, state(12, 1));
    let truth = scene.truth().unwrap();
    assert_eq!((truth.acted_on, truth.by), (StateNumber(40), name("a")));
    assert!(truth.next.number > StateNumber(40));
    assert_eq!(truth.next.adopted, Some(truth.next.number));
    assert_eq!(truth.next.etcd_cluster_id, "new");
    let same = ClusterState {
        number: StateNumber(40),
        adopted: None,
        etcd_cluster_id: "old".into(),
        ..truth.next
    };
    assert_eq!(same, state(40, 2), "epoch, primary and Cfgs are what they were");
}

#[test]
fn the_primary_and_k_voters_are_enough_without_the_others() {
    let scene = Scene::new().frozen("a", 2, state(40, 2)).frozen("c", 2, state(40, 2));
    assert_eq!(scene.truth().unwrap().vouched_by, [name("a"), name("c")].into());
}

#[test]
fn without_the_primary_or_without_voters_it_is_refused_with_who_is_missing() {
    let standbys = Scene::new().frozen("b", 2, state(40, 2)).frozen("c", 2, state(40, 2));
    let why = standbys.truth().unwrap_err();
    assert!(why.contains("nothing is known of a") && why.contains("a and 1 of b, c"), "{why}");
    let alone = Scene::new().frozen("a", 2, state(40, 2)).serving("a", 2);
    let why = alone.truth().unwrap_err();
    assert!(why.contains("nothing is known of b and c"), "{why}");
}

#[test]
fn voters_that_have_sealed_vouch_for_nothing_and_all_members_do() {
    let mut sealing = state(41, 2);
    sealing.sealing = Some(Epoch(3));
    let two = Scene::new().frozen("a", 2, state(40, 2)).frozen("b", 3, sealing.clone());
    assert!(two.truth().unwrap_err().contains("nothing is known of c"));
    let all = Scene::new()
        .frozen("a", 2, state(40, 2))
        .frozen("b", 3, sealing.clone())
        .frozen("c", 3, sealing);
    assert_eq!(all.truth().unwrap().next.sealing, Some(Epoch(3)), "a seal is completed");
}

#[test]
fn a_promise_beyond_all_that_is_remembered_is_refused() {
    let scene = Scene::new().frozen("a", 2, state(40, 2)).frozen("b", 2, state(40, 2)).frozen(
        "c",
        4,
        state(40, 2),
    );
    assert!(scene.truth().unwrap_err().contains("c has promised epoch 4"));
}

/// The store was set back in the middle of a switchover: the primary has stopped, and promised what only it was asked to.
#[test]
fn the_promise_of_a_primary_that_hands_over_contradicts_nothing_and_anybody_elses_does() {
    let mut handing_over = state(40, 2);
    let stops = r#"{"name":"switchover","target":"b","named":false,"request":"5128d579ba78acdf","by":"ann",
        "started":"2026-01-01T00:00:00Z","within":"10s","step":{"name":"stop"}}"#;
    handing_over.phase = serde_json::from_str(stops).unwrap();
    let all = Scene::new()
        .frozen("a", 3, handing_over.clone())
        .frozen("b", 2, handing_over.clone())
        .frozen("c", 2, state(39, 2));
    let truth = all.truth().unwrap();
    assert_eq!(truth.next.phase, handing_over.phase);
    assert_eq!(truth.vouched_by, [name("a"), name("b"), name("c")].into());
    let two =
        Scene::new().frozen("a", 3, handing_over.clone()).frozen("b", 2, handing_over.clone());
    assert!(two.truth().unwrap_err().contains("nothing is known of c"));
    let other = Scene::new()
        .frozen("a", 3, handing_over.clone())
        .frozen("b", 3, handing_over.clone())
        .frozen("c", 2, handing_over);
    assert!(other.truth().unwrap_err().contains("b has promised epoch 3"));
}

#[test]
fn two_that_serve_are_refused() {
    let scene = Scene::new()
        .frozen("a", 2, state(40, 2))
        .serving("a", 2)
        .frozen("b", 2, state(40, 2))
        .serving("b", 1);
    assert!(scene.truth().unwrap_err().contains("b serves as primary"));
}

#[test]
fn where_nobody_is_frozen_or_nobody_reports_there_is_nothing_to_adopt() {
    assert!(Scene::new().truth().unwrap_err().contains("start the keepers"));
    let mut calm = Scene::new().frozen("a", 2, state(40, 2));
    calm.0.get_mut(&name("a")).unwrap().frozen = None;
    assert!(calm.truth().unwrap_err().contains("nothing to adopt"));
}

#[test]
fn another_incarnation_of_a_name_vouches_for_nothing() {
    let mut scene = Scene::new().frozen("a", 2, state(40, 2)).frozen("c", 2, state(40, 2));
    scene.0.get_mut(&name("c")).unwrap().incarnation = proto::Incarnation("other".into());
    assert!(scene.truth().is_err());
}
