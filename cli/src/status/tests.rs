//! What a status says, and how it looks. The scene: a leads epoch 7; b votes, c is silent, d is being copied.

use std::collections::BTreeMap;

use proto::explanation::Explanation;
use proto::history::HistoryKind;
use proto::report::{DataDirectory, Opened, RejoinBy, RejoinOutcome, Server, Stream};
use proto::state::Admitted;
use proto::status::Positions;
use proto::{CfgId, ClusterState, Incarnation, LeaderKey, MemberReport, Phase, WallTime};

use super::*;
use crate::read::Documents;

const ASKED: WallTime = WallTime(1_763_661_781_123);

fn name(text: &str) -> MemberName {
    text.parse().unwrap()
}

fn lsn(text: &str) -> Lsn {
    text.parse().unwrap()
}

fn state() -> ClusterState {
    let admitted =
        |n: &str| (name(n), Admitted { incarnation: Incarnation(n.into()), floor: None });
    let voters = [name("b"), name("c")].into();
    ClusterState {
        number: StateNumber(41),
        epoch: Epoch(7),
        phase: Phase::Open,
        primary: Some(name("a")),
        cfgs: vec![Cfg {
            id: CfgId(9),
            epoch: Epoch(7),
            leader: name("a"),
            voters,
            k: 1,
            round: 0,
        }],
        timeline: Timeline(3),
        members: [admitted("a"), admitted("b"), admitted("c"), admitted("d")].into(),
        ..empty_state()
    }
}

/// Read from JSON, so that fields which this file does not speak of may come and go.
fn empty_state() -> ClusterState {
    let text = include_str!("tests/state.json");
    proto::document::decode(text.as_bytes()).unwrap()
}

fn report(member: &str, port: u16, server: Server, stream: Stream) -> MemberReport {
    MemberReport {
        member: name(member),
        incarnation: Incarnation(member.into()),
        understands_format: 1,
        pgdeputy_version: "0.1.0".into(),
        postgres_version: 150_018,
        postgres_address: format!("127.0.0.1:{port}"),
        http_address: format!("127.0.0.1:{}", port + 1000),
        zone: None,
        promise: Epoch(7),
        data: DataDirectory::Present,
        system_identifier: None,
        complete: true,
        server,
        opened: None,
        confirmed: None,
        stream,
        seal: None,
        rejoin: None,
        unresponsive: None,
        ended: None,
        never_received: false,
        silence: None,
        standstill: None,
        hears: Default::default(),
        handover: None,
        leaving: false,
        frozen: None,
        problems: Default::default(),
    }
}

fn reports() -> BTreeMap<MemberName, MemberReport> {
    let (epoch, timeline) = (Epoch(7), Timeline(3));
    let opened = Opened { epoch, timeline, start_lsn: lsn("0/3000060"), restart: 0 };
    let a = MemberReport {
        opened: Some(opened),
        ..report("a", 5432, Server::Primary { timeline }, Stream::None)
    };
    let live = Stream::Live { epoch, timeline, voter: true };
    let b = report("b", 5433, Server::Standby { timeline }, live);
    let c = report("c", 5434, Server::Standby { timeline }, Stream::Silent { epoch });
    let copying = Rejoin {
        epoch,
        by: RejoinBy::Copy,
        reason: "it has no data yet".into(),
        started: ASKED,
        outcome: RejoinOutcome::Running { progress: Some("12 of 40 MB".into()) },
        kept: None,
        details: Default::default(),
    };
    let d = MemberReport {
        complete: false,
        rejoin: Some(copying),
        never_received: false,
        silence: None,
        standstill: None,
        hears: Default::default(),
        handover: None,
        leaving: false,
        frozen: None,
        problems: ["WAL disk is 91 % full".to_owned()].into(),
        ..report("d", 5435, Server::Stopped, Stream::None)
    };
    [a, b, c, d].into_iter().map(|r| (r.member.clone(), r)).collect()
}

fn documents() -> Documents {
    let explanation = Explanation {
        leader: "s1".into(),
        state: StateNumber(41),
        epoch: Epoch(7),
        verdict: "waiting for d to be copied".into(),
        primary: "a was chosen".into(),
        promotable: vec![name("b")],
        promotable_reason: "b is live and alone is a seal set of every Cfg".into(),
        rejected: Vec::new(),
        warnings: vec!["c hears nothing of a".into()],
    };
    let leader = LeaderKey {
        id: "s1".into(),
        host: "h".into(),
        listen: None,
        echo: Some("10.0.0.4:40123".into()),
        pgdeputy_version: "0.1.0".into(),
    };
    Documents {
        state: Some(state()),
        reports: reports(),
        leader: Some(leader),
        sentinels: vec!["s1".into(), "s2".into(), "s3".into()],
        explanation: Some(explanation),
        ..Documents::default()
    }
}

fn answers() -> Answers {
    let at = |n: &str, flush: &str, serve_for_ms| {
        let positions =
            Positions { timeline: Timeline(3), flush_lsn: lsn(flush), replay_lsn: None };
        let report = reports()[&name(n)].clone();
        let status = MemberStatus {
            report,
            positions: Some(positions),
            standbys: Vec::new(),
            serve_for_ms,
            lag: None,
            fresh: false,
            remote_apply: None,
            fenced_by: Some("cgroup.kill".into()),
            rejoin_progress: None,
            prepared: Default::default(),
            asked: ASKED,
        };
        (name(n), status)
    };
    [at("a", "0/5000748", Some(3200)), at("b", "0/5000148", None)].into()
}

fn built() -> Status {
    let mut status = build::status("demo".parse().unwrap(), documents(), &answers());
    status.last_change = Some(Change {
        number: "7".into(),
        kind: HistoryKind::Failover,
        from: Some(name("c")),
        to: Some(name("a")),
        cause: "c's PostgreSQL died".into(),
        start: Some(ASKED),
        total_ms: Some(83),
        redundant_after_ms: None,
    });
    status
}

#[test]
fn the_table_is_aligned_and_every_line_fits_into_100_columns() {
    let text = built().to_string();
    assert_eq!(text, include_str!("tests/status.txt"));
    assert!(text.lines().all(|l| l.chars().count() <= 100), "{text}");
}

#[test]
fn members_are_healthy_only_if_they_do_what_was_agreed() {
    let status = built();
    let healthy: Vec<_> =
        status.members.iter().filter(|m| m.healthy).map(|m| m.name.as_str()).collect();
    assert_eq!(healthy, ["a", "b"]);
    let states: Vec<_> = status.members.iter().map(|m| m.state).collect();
    assert_eq!(states, ["running", "streaming", "silent", "copying"]);
    let synchronous: Vec<_> =
        status.members.iter().filter(|m| m.synchronous).map(|m| m.name.as_str()).collect();
    assert_eq!(synchronous, ["b"]);
    assert_eq!(status.members[1].lag_bytes, Some(0x600));
    assert_eq!((status.members[2].lsn, status.members[2].lag_bytes), (None, None));
}

#[test]
fn a_member_whose_report_is_gone_is_still_shown_with_what_was_agreed() {
    let mut documents = documents();
    documents.reports.remove(&name("b"));
    let status = build::status("demo".parse().unwrap(), documents, &answers());
    let b = &status.members[1];
    assert_eq!((b.role, b.state, b.healthy, b.synchronous), ("standby", "no-report", false, false));
    assert_eq!(b.postgres_address, None);
}

#[test]
fn an_open_primary_that_the_state_does_not_name_is_not_healthy() {
    let mut documents = documents();
    documents.state.as_mut().unwrap().primary = Some(name("b"));
    let status = build::status("demo".parse().unwrap(), documents, &Answers::new());
    let a = &status.members[0];
    assert_eq!((a.role, a.state, a.healthy), ("standby", "not-agreed", false));
}

#[test]
fn sealing_shows_as_the_phase_and_ends_writability() {
    let mut documents = documents();
    documents.state.as_mut().unwrap().sealing = Some(Epoch(8));
    let status = build::status("demo".parse().unwrap(), documents, &Answers::new());
    assert_eq!((status.phase, status.writable, status.sealing), ("sealing", false, Some(Epoch(8))));
    assert!(
        status.to_string().contains("sealing for epoch 8, epoch 7, primary a, not open for writes")
    );
}

#[test]
fn who_could_take_over_is_the_leaders_word_on_this_very_state_or_nobody_with_the_reason() {
    assert_eq!(built().promotable, [name("b")]);
    let mut old = documents();
    old.state.as_mut().unwrap().number = StateNumber(42);
    let status = build::status("demo".parse().unwrap(), old, &Answers::new());
    assert!(status.promotable.is_empty());
    assert!(
        status.promotable_reason.contains("s1 has not explained state 42 yet"),
        "{}",
        status.promotable_reason
    );
    let mut leaderless = documents();
    (leaderless.leader, leaderless.explanation) = (None, None);
    let status = build::status("demo".parse().unwrap(), leaderless, &Answers::new());
    assert!(status.promotable_reason.contains("no sentinel leads"));
    assert!(status.warnings[0].contains("no sentinel leads"));
}

#[test]
fn a_copy_that_its_keeper_tells_of_is_shown_with_rate_and_time_left() {
    let mut status = built();
    let copied = status.members.iter_mut().find(|m| m.name == name("d")).unwrap();
    copied.rejoin_progress = Some(RejoinProgress {
        copied_bytes: 12 << 20,
        total_bytes: 40 << 20,
        bytes_per_second: Some(6 << 20),
        left_ms: Some(4_667),
    });
    let line = "d is to be copied since 2025-11-20T18:03:01.123Z, 12.0 MB of 40.0 MB, 6.0 MB/s, 4.67 s left";
    assert!(status.to_string().replace("\n  ", " ").contains(line), "{status}");
}

#[test]
fn json_has_the_fields_that_scripts_rely_on() {
    let json = serde_json::to_value(built()).unwrap();
    for field in [
        "cluster",
        "epoch",
        "phase",
        "primary",
        "promotable",
        "promotable_reason",
        "sealing",
        "cfgs",
    ] {
        assert!(json.get(field).is_some(), "{field}");
    }
    let member = json["members"][1].as_object().unwrap();
    assert_eq!(member["lsn"], "0/5000148");
    for field in ["name", "role", "state", "healthy", "timeline", "lsn", "lag_bytes", "synchronous"]
    {
        assert!(member.contains_key(field), "{field}");
    }
    assert!(json["members"][2]["lsn"].is_null());
}

#[test]
fn the_headline_says_that_the_primary_is_not_well() {
    let mut documents = documents();
    documents.reports.remove(&name("a"));
    let text = build::status("demo".parse().unwrap(), documents, &Answers::new()).to_string();
    assert!(
        text.starts_with("cluster demo: open, epoch 7, primary a, which is not well (no-report)\n"),
        "{text}"
    );
}
