use super::*;

const KEEP: i64 = 10;

fn at(seconds: i64) -> Moment {
    Moment::since_boot(Duration::from_secs(seconds.cast_unsigned()))
}

fn origin(timeline: u32) -> Origin {
    Origin { timeline: Timeline(timeline), started_us: i64::from(timeline) }
}

/// Sent and answered in the second of its id.
fn acknowledged(id: i64, timeline: u32) -> Acknowledged {
    let wall = WallTime(id * 1000);
    Acknowledged { id, sent: at(id), answered: at(id), wall, origin: origin(timeline) }
}

fn read(asked: i64, timeline: u32, ids: impl IntoIterator<Item = i64>) -> ReadBack {
    ReadBack {
        asked: at(asked),
        wall: WallTime(asked * 1000),
        origin: origin(timeline),
        lsn: Lsn::default(),
        ids: ids.into_iter().collect(),
        highest_sent: asked,
    }
}

/// Ids 1 to 3 in timeline 1, 4 is unknown, 5 to 6 in timeline 2, and the new primary was asked twice.
fn a_failover() -> Evidence {
    let first = (1..=3).map(|id| acknowledged(id, 1));
    let second = (5..=6).map(|id| acknowledged(id, 2));
    Evidence {
        acknowledged: first.chain(second).collect(),
        unknown: 1,
        read_back: vec![read(5, 2, [1, 2, 3, 5]), read(6, 2, [1, 2, 3, 5, 6])],
        keep: KEEP,
    }
}

#[test]
fn a_failover_that_keeps_everything_is_proven() {
    let verdict = judge(&a_failover());
    assert!(verdict.is_good(), "{verdict}");
    let last = verdict.proofs.last().unwrap();
    assert_eq!((last.expected, last.first, last.last), (5, Some(1), Some(6)));
    assert_eq!(verdict.write_gap_ms, Some(2000.0));
}

#[test]
fn what_was_unknown_may_be_there_or_not() {
    let mut evidence = a_failover();
    evidence.read_back[0].ids.insert(4);
    evidence.read_back[1].ids.insert(4);
    assert!(judge(&evidence).is_good());
}

#[test]
fn a_planted_loss_is_found_also_when_only_one_answer_shows_it() {
    for at_read in 0..2 {
        let mut evidence = a_failover();
        evidence.read_back[at_read].ids.remove(&3);
        let verdict = judge(&evidence);
        assert_eq!(verdict.lost, [3]);
        assert_eq!(verdict.proofs[at_read].missing, [3]);
        assert!(!verdict.is_good());
    }
}

#[test]
fn what_the_old_primary_acknowledged_beside_the_new_one_is_lost() {
    let mut evidence = a_failover();
    evidence.acknowledged.push(acknowledged(7, 1));
    evidence.read_back.push(read(8, 2, [1, 2, 3, 5, 6]));
    assert_eq!(judge(&evidence).lost, [7]);
}

#[test]
fn an_old_primary_need_not_have_what_its_successor_acknowledged() {
    let mut evidence = a_failover();
    evidence.read_back.insert(1, read(6, 1, [1, 2, 3]));
    assert!(judge(&evidence).is_good());
}

#[test]
fn what_nobody_sent_is_a_phantom() {
    for phantom in [0, 7] {
        let mut evidence = a_failover();
        evidence.read_back[1].ids.insert(phantom);
        assert_eq!(judge(&evidence).phantom, [phantom]);
    }
}

#[test]
fn without_an_answer_from_the_last_primary_nothing_is_proven() {
    let mut evidence = a_failover();
    evidence.read_back = vec![read(3, 1, [1, 2, 3])];
    let verdict = judge(&evidence);
    assert_eq!(verdict.thin.len(), 2, "{verdict}");
    assert!(!judge(&Evidence::default()).is_good());
    evidence.read_back.clear();
    assert!(!judge(&evidence).is_good());
}

#[test]
fn what_came_after_the_last_answer_is_not_proven() {
    let mut evidence = a_failover();
    evidence.acknowledged.push(acknowledged(9, 2));
    let verdict = judge(&evidence);
    assert!(verdict.lost.is_empty() && !verdict.is_good(), "{verdict}");
}

#[test]
fn what_was_trimmed_is_neither_lost_nor_expected_but_must_have_been_asked_for_before() {
    let mut evidence = a_failover();
    evidence.acknowledged.extend((7..=14).map(|id| acknowledged(id, 2)));
    evidence.read_back.push(read(14, 2, 5..=14));
    let verdict = judge(&evidence);
    assert!(verdict.is_good(), "{verdict}");
    assert_eq!(verdict.proofs[2].first, Some(5));
    evidence.read_back.drain(..2);
    assert!(!judge(&evidence).is_good());
}
