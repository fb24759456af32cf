use nix::sys::signal::Signal;
use proto::{Epoch, RequestId};

use super::*;
use crate::fencer::Process;

fn state(primary: &str, epoch: u64, sealing: &str) -> ClusterState {
    let text = format!(
        r#"{{"format_version":1,"number":3,"etcd_cluster_id":"e","system_identifier":null,"epoch":{epoch},
        "phase":{{"name":"open"}},"primary":"{primary}","sealing":{sealing},"cfgs":[],"last_cfg":1,"timeline":2,
        "highest_timeline":2,"chosen":null,"open_at_once":true,"epochs":[],"members":{{}},"restart":null,
        "adopted":null}}"#
    );
    decode(text.as_bytes()).expect("a state")
}

fn drill(fault: LiveFault) -> Drill {
    Drill {
        id: RequestId::from_random(1),
        fault,
        target: DrillTarget::Member("b".parse().unwrap()),
        by: "ann@north".into(),
        epoch: Epoch(2),
        bound: Duration::from_secs(30),
    }
}

#[test]
fn a_member_is_struck_only_in_the_role_and_epoch_that_was_meant_and_never_against_its_operator() {
    let none = BTreeSet::new();
    let as_standby = state("a", 2, "null");
    let as_primary = state("b", 2, "null");
    assert_eq!(judge(&drill(LiveFault::StandbyFreeze), &none, Some(&as_standby)), Ok(()));
    assert_eq!(judge(&drill(LiveFault::Crash), &none, Some(&as_primary)), Ok(()));
    let refused = |fault, refused: &BTreeSet<LiveFault>, state: Option<&ClusterState>| {
        judge(&drill(fault), refused, state).unwrap_err()
    };
    assert!(refused(LiveFault::StandbyFreeze, &none, Some(&as_primary)).contains("is the primary"));
    assert!(refused(LiveFault::Crash, &none, Some(&as_standby)).contains("is a standby"));
    assert!(refused(LiveFault::Crash, &none, None).contains("not known"));
    assert!(refused(LiveFault::Crash, &none, Some(&state("b", 3, "null"))).contains("epoch 2"));
    assert!(refused(LiveFault::Crash, &none, Some(&state("b", 2, "3"))).contains("epoch 2"));
    assert!(refused(LiveFault::Switchover, &none, Some(&as_primary)).contains("the leader's"));
    assert!(refused(LiveFault::Sentinel, &none, Some(&as_standby)).contains("hits no member"));
    let own = BTreeSet::from([LiveFault::Crash]);
    assert!(refused(LiveFault::Crash, &own, Some(&as_primary)).contains("--refuse-drills"));
}

#[test]
fn what_a_dead_keeper_has_frozen_goes_on_by_the_note_that_it_left() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
    let process = Process::with_pid(child.id()).unwrap();
    let id = RequestId::from_random(1);
    let broken = Broken::freeze(id, &[process], dir.path()).unwrap();
    let stands = || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", process.pid)).unwrap();
        stat.rsplit(')').next().unwrap().trim_start().starts_with('T')
    };
    while !stands() {
        std::thread::yield_now();
    }
    let left = Broken::left(dir.path()).unwrap();
    assert_eq!(left.as_ref(), Some(&broken), "found by whoever starts next");
    left.unwrap().mend(dir.path()).unwrap();
    while stands() {
        std::thread::yield_now();
    }
    assert_eq!(Broken::left(dir.path()).unwrap(), None);
    // A pid that went to another process is not touched.
    let other = Broken { frozen: vec![(process.pid, process.start_ticks + 1)], ..broken };
    process.signal(Signal::SIGSTOP).unwrap();
    other.mend(dir.path()).unwrap();
    while !stands() {
        std::thread::yield_now();
    }
    child.kill().unwrap();
    child.wait().unwrap();
}
