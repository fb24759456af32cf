//! What is said of past changes.

use proto::rejoin::{Discarded, RejoinDetails, RelationChanges};
use proto::report::RejoinBy;
use proto::{Lsn, Timeline};

use super::*;

/// 2025-11-20T18:03:01.000Z.
const START: i64 = 1_763_661_781_000;

fn record(phases: &[(&str, i64, Option<i64>)]) -> HistoryRecord {
    let at = |ms: i64| WallTime(START + ms);
    let phases = phases
        .iter()
        .map(|(name, start, end)| PhaseRecord {
            name: (*name).into(),
            start: at(*start),
            end: end.map(at),
        })
        .collect();
    HistoryRecord {
        kind: HistoryKind::Failover,
        epoch: Epoch(7),
        restart: 0,
        from: Some("a".parse().unwrap()),
        to: Some("b".parse().unwrap()),
        cause: "a's PostgreSQL died".into(),
        evidence: vec!["a reported the death".into()],
        chosen: None,
        rejected: vec![Rejection { member: "c".parse().unwrap(), reason: "it holds less".into() }],
        phases,
        rejoined: vec![RejoinRecord {
            member: "a".parse().unwrap(),
            by: RejoinBy::Rewind,
            reason: "it wrote past the fork".into(),
            start: at(3000),
            end: at(4250),
            details: details(),
            acknowledged: Some("none of it was acknowledged: so says the test".into()),
        }],
        notes: Vec::new(),
        redundant: None,
    }
}

fn details() -> RejoinDetails {
    let at = |ms| WallTime(START + ms);
    let step = |name: &str, start, end| PhaseRecord {
        name: name.into(),
        start: at(start),
        end: Some(at(end)),
    };
    let changes = RelationChanges { database: 5, tablespace: 1663, filenode: 16384, records: 12 };
    RejoinDetails {
        steps: vec![step("ask", 3000, 3040), step("copy", 3040, 4200)],
        copied_bytes: Some(21_072_493),
        without_gateway: None,
        discarded: Some(Discarded {
            timeline: Timeline(1),
            from: Lsn(0x300_0060),
            to: Lsn(0x300_3060),
            read_to: Lsn(0x300_3060),
            records: 40,
            commits: 7,
            rollbacks: 1,
            first_commit: Some(Lsn(0x300_0100)),
            relations: vec![changes],
            more_relations: 3,
            kept: Some("/state/diverged/e7".into()),
        }),
    }
}

fn of(records: Vec<HistoryRecord>, number: Option<&str>) -> anyhow::Result<History> {
    let documents = Documents { history: records, ..Documents::default() };
    history("demo".parse().unwrap(), number.map(|n| n.parse().unwrap()), documents)
}

#[test]
fn the_total_ends_when_writes_are_back_and_not_with_redundancy() {
    let mut done = record(&[
        ("notice", 0, Some(10)),
        ("promote", 10, Some(83)),
        ("redundancy", 83, Some(4300)),
    ]);
    done.redundant = Some(WallTime(START + 4300));
    let change = Change::of(&done);
    assert_eq!((change.total_ms, change.redundant_after_ms), (Some(83), Some(4300)));
    let under_way = Change::of(&record(&[("notice", 0, Some(10)), ("seal", 10, None)]));
    assert_eq!((under_way.total_ms, under_way.redundant_after_ms), (None, None));
    assert_eq!(Change::of(&record(&[])).total_ms, None);
}

#[test]
fn the_list_has_one_line_a_change() {
    let phases = [("notice", 0, Some(10)), ("promote", 10, Some(83))];
    let restart = HistoryRecord {
        kind: HistoryKind::Restart,
        restart: 2,
        to: Some("b".parse().unwrap()),
        from: None,
        ..record(&[("notice", 0, None)])
    };
    let text = of(vec![record(&phases), restart], None).unwrap().to_string();
    let expected = "\
n    start                     what      from -> to  writes back  cause
7    2025-11-20T18:03:01.000Z  failover  a -> b      83 ms        a's PostgreSQL died
7.2  2025-11-20T18:03:01.000Z  restart   b           not yet      a's PostgreSQL died
";
    assert_eq!(text, expected);
}

#[test]
fn one_change_is_told_phase_by_phase() {
    let text = of(vec![record(&[("notice", 0, Some(10)), ("seal", 10, None)])], Some("7"))
        .unwrap()
        .to_string();
    let expected = "\
failover 7: a -> b
cause: a's PostgreSQL died
  seen: a reported the death
  not c: it holds less
  phase   start                     end                       took
  notice  2025-11-20T18:03:01.000Z  2025-11-20T18:03:01.010Z  10 ms
  seal    2025-11-20T18:03:01.010Z  under way                 -
writes back: not yet
redundant:   not yet
  a was rewound in 1.25 s: it wrote past the fork
    ask 40 ms, copy 1.16 s; 20.1 MB came over
    gave up 12.0 kB of WAL, from 0/3000060 of timeline 1 to 0/3003060: 7 committed and 1 rolled back;
      none of it was acknowledged: so says the test
    most changed, by tablespace, database and filenode: 1663/5/16384 (12 records), and 3 more
    its WAL is kept in /state/diverged/e7

";
    assert_eq!(text, expected);
}

#[test]
fn a_number_names_all_changes_of_an_epoch_or_one_restart() {
    let restart = HistoryRecord { restart: 1, ..record(&[]) };
    let records = || vec![record(&[]), restart.clone()];
    assert_eq!(of(records(), Some("7")).unwrap().changes.len(), 2);
    assert_eq!(of(records(), Some("7.1")).unwrap().changes[0].change.number, "7.1");
    assert!(of(records(), Some("8")).unwrap_err().to_string().contains("no such record"));
    assert!("x".parse::<Number>().is_err() && "7.".parse::<Number>().is_err());
    let json = serde_json::to_value(of(records(), Some("7.1")).unwrap()).unwrap();
    assert_eq!(json["changes"][0]["number"], "7.1");
}
