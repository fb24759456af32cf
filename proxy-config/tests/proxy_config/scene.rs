//! States and reports to put in front of `route`.

use std::collections::BTreeMap;
use std::time::Duration;

use proto::report::{Server, Stream};
use proto::{ClusterSpec, ClusterState, Epoch, MemberName, MemberReport, Moment, Phase, Timeline};
use proxy_config::route::{Answers, Known, Routes, route};
use serde_json::json;

pub type Reports = BTreeMap<MemberName, MemberReport>;

/// Returns the routes of a cluster with the default spec whose keepers answer nothing.
pub fn routed(
    state: Option<&ClusterState>,
    reports: &Reports,
    previous: Option<&Routes>,
) -> Routes {
    let (spec, answers) = (ClusterSpec::default(), Answers::new());
    let known = Known { spec: &spec, state, reports, answers: &answers };
    route(&known, previous, Moment::since_boot(Duration::from_secs(1000)))
}

pub fn name(text: &str) -> MemberName {
    text.parse().unwrap()
}

/// Returns an open state of `members`, the first of which is the primary.
pub fn open(epoch: u64, members: &[&str]) -> ClusterState {
    let admitted: BTreeMap<&str, _> =
        members.iter().map(|m| (*m, json!({"incarnation": "i", "floor": null}))).collect();
    serde_json::from_value(json!({
        "number": epoch * 10, "etcd_cluster_id": "e", "system_identifier": "1", "epoch": epoch,
        "phase": {"name": "open"}, "primary": members[0], "sealing": null, "cfgs": [], "last_cfg": 1,
        "timeline": epoch, "highest_timeline": epoch, "chosen": null, "open_at_once": true, "epochs": [],
        "members": admitted, "restart": null
    }))
    .unwrap()
}

pub fn sealing(mut state: ClusterState) -> ClusterState {
    state.sealing = Some(state.epoch.next());
    state
}

pub fn promoting(mut state: ClusterState) -> ClusterState {
    state.phase = Phase::Promoting;
    state
}

/// Returns the report of a member that has just started, at ports that its name decides.
pub fn report(member: &str) -> MemberReport {
    let number = member.as_bytes()[0];
    serde_json::from_value(json!({
        "member": member, "incarnation": "i", "understands_format": 1, "pgdeputy_version": "0.1.0",
        "postgres_version": 150018, "postgres_address": format!("10.0.0.{number}:5432"),
        "http_address": format!("10.0.0.{number}:8008"), "zone": null, "promise": 0, "data": "present",
        "system_identifier": "1", "complete": true, "server": {"state": "unknown"}, "opened": null,
        "confirmed": null, "stream": {"state": "none"}, "seal": null, "rejoin": null, "problems": []
    }))
    .unwrap()
}

pub fn primary(member: &str) -> MemberReport {
    MemberReport { server: Server::Primary { timeline: Timeline(1) }, ..report(member) }
}

/// Returns the report of a standby that streams in `epoch`.
pub fn standby(member: &str, epoch: u64) -> MemberReport {
    let timeline = Timeline(1);
    let stream = Stream::Live { epoch: Epoch(epoch), timeline, voter: true };
    MemberReport { server: Server::Standby { timeline }, stream, ..report(member) }
}

pub fn silent(member: &str, epoch: u64) -> MemberReport {
    MemberReport { stream: Stream::Silent { epoch: Epoch(epoch) }, ..standby(member, epoch) }
}

pub fn reports(list: impl IntoIterator<Item = MemberReport>) -> Reports {
    list.into_iter().map(|r| (r.member.clone(), r)).collect()
}
