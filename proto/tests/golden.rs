//! Every document in every format that was ever released must decode in every later release, and is written today as
//! its newest golden file says. `UPDATE_GOLDEN=1 cargo test -p pgdeputy-proto` writes new ones; never change an old one.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use proto::document::{DecodeError, Document, decode, encode};
use proto::explanation::{Explanation, Rejection};
use proto::history::{HistoryKind, HistoryRecord, Note, PhaseRecord, RejoinRecord};
use proto::orders::{AcceptedLoss, Leaving, Orders, Pause, Removed};
use proto::proxy::{Clients, ProxyReport};
use proto::rejoin::RejoinDetails;
use proto::report::{
    Confirmed, DataDirectory, Ended, Handover, MemberReport, Opened, Readiness, Rejoin, RejoinBy,
    RejoinOutcome, Seal, Server, Stream, Unresponsive,
};
use proto::request::{
    Answered, Request, RequestId, RequestKind, RequestOutcome, Terms, Unheld, Wanted,
};
use proto::right::Secrets;
use proto::schedule::Scheduled;
use proto::spec::{MemberSpec, Permission, ReadFallback};
use proto::state::{Admitted, Death, EpochRecord, Floor, RestartOrder, Switchover, SwitchoverStep};
use proto::topology::{Place, Role, Topology};
use proto::*;

fn name(text: &str) -> MemberName {
    text.parse().unwrap()
}

fn position() -> WalPosition {
    WalPosition { epoch: Epoch(1), lsn: Lsn(0x300_0148), timeline: Timeline(1) }
}

fn cfg() -> Cfg {
    Cfg {
        id: CfgId(4),
        epoch: Epoch(2),
        leader: name("b"),
        voters: [name("a"), name("c")].into(),
        k: 1,
        round: 0,
    }
}

fn spec() -> ClusterSpec {
    let mut spec = ClusterSpec { founder: Some(name("a")), ..ClusterSpec::default() };
    spec.postgres.parameters.insert("work_mem".into(), "8MB".into());
    spec.postgres.pg_hba.push("host all all 10.0.0.0/8 scram-sha-256".into());
    let (promote, vote) = (Permission::Never, Permission::Never);
    let analyst = MemberSpec { promote, vote, priority: 3, pool: None };
    spec.members.insert(name("c"), analyst);
    spec
}

/// The same with pools and limits of reads.
fn spec_of_readers() -> ClusterSpec {
    let mut spec = spec();
    spec.reads.max_lag_bytes = 512 << 10;
    spec.reads.fallback = ReadFallback::Primary;
    spec.members.entry(name("c")).or_default().pool = "analysts".parse().ok();
    spec
}

fn state() -> ClusterState {
    let floor = Floor { epoch: Epoch(2), lsn: Lsn(0x300_0200) };
    let admitted = Admitted { incarnation: Incarnation::from_random(7), floor: Some(floor) };
    ClusterState {
        number: StateNumber(12),
        etcd_cluster_id: "cdf818194e3a8c32".into(),
        system_identifier: Some(SystemIdentifier(7_710_323_754_179_064_190)),
        epoch: Epoch(2),
        phase: Phase::Open,
        primary: Some(name("b")),
        sealing: Some(Epoch(3)),
        cfgs: vec![cfg()],
        last_cfg: CfgId(4),
        timeline: Timeline(2),
        highest_timeline: Timeline(2),
        chosen: Some(position()),
        open_at_once: true,
        epochs: vec![EpochRecord {
            epoch: Epoch(2),
            timeline: Timeline(2),
            primary: name("b"),
            parent: Some(Timeline(1)),
            start_lsn: Some(Lsn(0x300_0148)),
            with_loss: false,
        }],
        members: BTreeMap::from([(name("a"), admitted)]),
        restart: Some(RestartOrder { member: name("b"), epoch: Epoch(2), number: 3 }),
        adopted: None,
        answered: Some(Death { member: name("a"), noticed: WallTime(1_795_000_000_123) }),
        requests: vec![Answered {
            id: RequestId::from_random(9),
            kind: RequestKind::Switchover,
            by: "ann@north".into(),
            asked: WallTime(1_795_000_000_123),
            at: WallTime(1_795_000_000_150),
            outcome: RequestOutcome::Started { what: "switchover from b to a".into() },
        }],
        orders: orders(),
    }
}

fn orders() -> Orders {
    Orders {
        pause: Some(Pause {
            id: RequestId::from_random(0x51),
            by: "ann@north".into(),
            reason: "new disks".into(),
            since: WallTime(1_790_000_000_000),
            until: WallTime(1_790_000_600_000),
            lasting: Duration::from_secs(600),
        }),
        leaving: [(
            name("c"),
            Leaving {
                request: RequestId::from_random(0x52),
                by: "ann@north".into(),
                below_count: false,
            },
        )]
        .into(),
        removed: [(
            name("d"),
            Removed {
                incarnation: Incarnation("d-1".into()),
                floor: Some(Floor { epoch: Epoch(7), lsn: Lsn(0x5000148) }),
                by: "ann@north".into(),
                at: WallTime(1_790_000_000_000),
            },
        )]
        .into(),
        losses: vec![AcceptedLoss {
            request: RequestId::from_random(0x53),
            by: "ann@north".into(),
            at: WallTime(1_790_000_000_000),
            sealing: Epoch(7),
            given_up: [name("a")].into(),
            promoted: None,
        }],
    }
}

fn report() -> MemberReport {
    MemberReport {
        member: name("a"),
        incarnation: Incarnation::from_random(7),
        understands_format: 1,
        pgdeputy_version: "0.1.0".into(),
        postgres_version: 150_018,
        postgres_address: "10.0.0.1:5432".into(),
        http_address: "10.0.0.1:8008".into(),
        zone: Some("north".into()),
        promise: Epoch(3),
        data: DataDirectory::Present,
        system_identifier: Some(SystemIdentifier(7_710_323_754_179_064_190)),
        complete: true,
        server: Server::Dead { noticed: WallTime(1_795_000_000_123), gone: true },
        opened: Some(Opened {
            epoch: Epoch(2),
            timeline: Timeline(2),
            start_lsn: Lsn(0x300_0148),
            restart: 3,
        }),
        confirmed: Some(Confirmed {
            cfg: CfgId(4),
            lsn: Lsn(0x300_0200),
            voters: [name("c")].into(),
        }),
        stream: Stream::Live { epoch: Epoch(2), timeline: Timeline(2), voter: true },
        never_received: false,
        silence: Some(Epoch(2)),
        standstill: None,
        hears: ["c".parse().unwrap()].into(),
        unresponsive: Some(Unresponsive { epoch: Epoch(7), problem: "no answer".into() }),
        ended: Some(Ended::Expired),
        seal: Some(Seal {
            sealing: Epoch(3),
            position: position(),
            replayed: Lsn(0x300_0100),
            clean: true,
        }),
        handover: Some(Handover {
            request: RequestId::from_random(9),
            readiness: Readiness::Ready { left: BTreeMap::from([(name("c"), 4096)]) },
        }),
        leaving: true,
        rejoin: Some(Rejoin {
            epoch: Epoch(2),
            by: RejoinBy::Rewind,
            reason: "its WAL ends past the fork".into(),
            started: WallTime(1_795_000_000_500),
            outcome: RejoinOutcome::Done { ended: WallTime(1_795_000_001_000) },
            kept: None,
            details: Default::default(),
        }),
        frozen: None,
        problems: BTreeSet::from(["the disk is nearly full".to_owned()]),
    }
}

fn history() -> HistoryRecord {
    let (start, end) = (WallTime(1_795_000_000_123), WallTime(1_795_000_000_200));
    HistoryRecord {
        kind: HistoryKind::Failover,
        epoch: Epoch(2),
        restart: 0,
        from: Some(name("a")),
        to: Some(name("b")),
        cause: "PostgreSQL of primary a died".into(),
        evidence: vec!["the keeper of a saw PostgreSQL die".into()],
        chosen: Some(position()),
        rejected: vec![Rejection { member: name("c"), reason: "the name broke the tie".into() }],
        phases: vec![PhaseRecord { name: "seal".into(), start, end: Some(end) }],
        rejoined: vec![RejoinRecord {
            member: name("a"),
            by: RejoinBy::Follow,
            reason: "its WAL ends before the fork".into(),
            start,
            end,
            details: RejoinDetails::default(),
            acknowledged: None,
        }],
        notes: vec![Note { at: end, text: "paused by ann@north".into() }],
        redundant: Some(end),
    }
}

fn request() -> Request {
    Request {
        id: RequestId::from_random(9),
        by: "ann@north".into(),
        asked: WallTime(1_795_000_000_123),
        valid_for: std::time::Duration::from_secs(30),
        wanted: Wanted::Switchover(Terms::to(Some(name("a")))),
    }
}

fn scheduled() -> Scheduled {
    Scheduled {
        id: RequestId::from_random(9),
        by: "ann@north".into(),
        asked: WallTime(1_795_000_000_123),
        at: WallTime(1_795_000_600_000),
        window: Duration::from_secs(600),
        within: Duration::from_secs(30),
        terms: Terms {
            to: None,
            away_from: Some("north".into()),
            hold: Duration::from_secs(7),
            unheld: Unheld::Cut,
        },
    }
}

fn topology() -> Topology {
    let place = |role, zone: Option<&str>| Place {
        role,
        postgres: Some("10.0.0.1:5432".into()),
        http: Some("10.0.0.1:8008".into()),
        zone: zone.map(Into::into),
    };
    let unknown = Place { role: Role::Away, postgres: None, http: None, zone: None };
    let members = [
        (name("a"), place(Role::Standby, Some("north"))),
        (name("b"), place(Role::Primary, None)),
        (name("c"), unknown),
    ];
    Topology { epoch: Epoch(2), primary: Some(name("b")), members: members.into() }
}

#[test]
fn a_topology_shows_no_primary_while_one_is_replaced_and_keeps_what_was_known() {
    let reports = BTreeMap::from([(name("a"), report())]);
    let sealing = state();
    let before = topology();
    let of = |state: &ClusterState, reports: &_| Topology::of(state, reports, Some(&before));
    let shown = of(&sealing, &reports);
    assert_eq!((shown.epoch, shown.primary.as_ref()), (Epoch(2), None));
    assert_eq!(shown.members[&name("a")].role, Role::Standby, "it can be read from meanwhile");
    let open = ClusterState { sealing: None, ..sealing };
    let shown = of(&open, &reports);
    assert_eq!(shown.primary, Some(name("b")));
    assert_eq!(shown.members[&name("a")].role, Role::Away, "its PostgreSQL is dead");
    let standby = Server::Standby { timeline: Timeline(2) };
    let streams = BTreeMap::from([(name("a"), MemberReport { server: standby, ..report() })]);
    assert_eq!(of(&open, &streams).members[&name("a")].role, Role::Standby);
    let away = &of(&open, &BTreeMap::new()).members[&name("a")];
    assert_eq!((away.role, away.postgres.as_deref()), (Role::Away, Some("10.0.0.1:5432")));
}

fn explanation() -> Explanation {
    Explanation {
        leader: "sentinel-1".into(),
        state: StateNumber(12),
        epoch: Epoch(2),
        verdict: "nothing is to be done".into(),
        primary: "b holds the most".into(),
        promotable: vec![name("a")],
        promotable_reason: "they seal every recorded Cfg".into(),
        rejected: vec![],
        warnings: vec![],
    }
}

/// Checks one kind of document: all its golden files decode, and today's text is the newest one's.
fn check<D: Document + PartialEq + std::fmt::Debug>(file: &str, document: &D) {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let path = folder.join(format!("{file}.v{}.json", proto::document::FORMAT_VERSION));
    let text = encode(document);
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    let pretty = serde_json::to_string_pretty(&value).unwrap() + "\n";
    if std::env::var_os("UPDATE_GOLDEN").is_some() && !path.exists() {
        std::fs::write(&path, &pretty).unwrap();
    }
    let golden =
        std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    assert_eq!(
        golden, pretty,
        "{file} is written otherwise than its golden file says: raise FORMAT_VERSION"
    );
    assert_eq!(&decode::<D>(golden.as_bytes()).unwrap(), document);
    // Those of earlier releases.
    let mut version = 1;
    while version < proto::document::FORMAT_VERSION {
        let old = std::fs::read(folder.join(format!("{file}.v{version}.json"))).unwrap();
        decode::<D>(&old).unwrap_or_else(|e| panic!("{file}.v{version}: {e}"));
        version += 1;
    }
}

#[test]
fn every_document_is_written_as_its_golden_file_says_and_every_released_format_decodes() {
    check("spec", &spec());
    check("spec-reads", &spec_of_readers());
    check("state", &state());
    check("report", &report());
    check("history", &history());
    check("explanation", &explanation());
    check("request", &request());
    check("scheduled", &scheduled());
    let incarnation = Incarnation::from_random(7);
    check("primary", &PrimaryKey { member: name("b"), epoch: Epoch(2), incarnation });
    let leader = LeaderKey {
        id: "sentinel-1".into(),
        host: "north-1".into(),
        listen: None,
        echo: Some("10.0.0.4:40123".into()),
        pgdeputy_version: "0.1.0".into(),
    };
    check("leader", &leader);
    let proxy = ProxyReport {
        id: "proxy-1".into(),
        epoch: Epoch(2),
        clients: Clients::Cut,
        held: None,
        refusing: BTreeMap::new(),
    };
    check("proxy", &proxy);
    let held = Some(RequestId::from_random(9));
    let proxy = ProxyReport { clients: Clients::Held, held, ..proxy };
    check("proxy-holding", &proxy);
    let refusing = [("127.0.0.1:6433".into(), "it does not answer RELOAD".into())].into();
    check("proxy-refusing", &ProxyReport { refusing, ..proxy });
    let secrets = Secrets { superuser: "s".into(), replication: "r".into(), rewind: "w".into() };
    check("secrets", &secrets);
    check("topology", &topology());
}

#[test]
fn a_switchover_under_way_is_read_as_it_was_written() {
    let step = SwitchoverStep::Sealed { position: position() };
    let since = WallTime(1_795_000_000_123);
    let hold = SwitchoverStep::Hold { since, within: std::time::Duration::from_secs(5) };
    for step in [SwitchoverStep::Checkpoint, hold, SwitchoverStep::Stop, step] {
        let switchover = Switchover {
            target: name("c"),
            named: true,
            away_from: Some("north".into()),
            request: RequestId::from_random(9),
            by: "ann@north".into(),
            started: WallTime(1_795_000_000_123),
            within: std::time::Duration::from_secs(30),
            hold: std::time::Duration::from_secs(7),
            unheld: Unheld::Cut,
            step,
        };
        let state = ClusterState { phase: Phase::Switchover(switchover), ..state() };
        assert_eq!(decode::<ClusterState>(encode(&state).as_bytes()).unwrap(), state);
    }
}

#[test]
fn a_newer_format_is_told_apart_from_a_damaged_one() {
    let newer = r#"{"format_version": 99, "what": "ever"}"#;
    assert!(matches!(
        decode::<ClusterState>(newer.as_bytes()),
        Err(DecodeError::NewerFormat { found: 99, .. })
    ));
    for damaged in ["", "[]", "{}", r#"{"format_version": 1}"#, r#"{"format_version": "1"}"#] {
        assert!(matches!(
            decode::<ClusterState>(damaged.as_bytes()),
            Err(DecodeError::Malformed { .. })
        ));
    }
}

#[test]
fn an_unknown_field_of_the_spec_is_an_error_that_names_it() {
    let text = encode(&spec()).replace("\"durability\"", "\"durabilty\"");
    let error = decode::<ClusterSpec>(text.as_bytes()).unwrap_err().to_string();
    assert!(error.contains("durabilty"), "{error}");
}

#[test]
fn impossible_settings_are_refused_with_a_remedy() {
    let refused = |change: fn(&mut ClusterSpec)| {
        let mut spec = ClusterSpec::default();
        spec.check().expect("the defaults are possible");
        change(&mut spec);
        spec.check().expect_err("it cannot be").to_string()
    };
    let seconds = std::time::Duration::from_secs;
    for (problem, remedy) in [
        (refused(|s| s.lease_ttl = std::time::Duration::from_secs(1)), "use 2s to 60s"),
        (refused(|s| s.fence_time = s.lease_ttl / 2), "lower fence_time to"),
        (refused(|s| s.synchronous.count = 0), "at least 1"),
        (refused(|s| s.initdb.wal_segment_size_mb = 3), "power of two"),
        (
            refused(|s| drop(s.postgres.parameters.insert("fsync".into(), "off".into()))),
            "take it out",
        ),
        (refused(|s| s.postgres.pg_hba.push("host all all all trust".into())), "use scram-sha-256"),
        (
            refused(|s| {
                drop(s.postgres.parameters.insert("synchronous_commit".into(), "off".into()))
            }),
            "use on",
        ),
    ] {
        assert!(problem.contains(remedy), "{problem}");
    }
    assert_eq!(ClusterSpec::default().lease_ttl, seconds(4));
}
