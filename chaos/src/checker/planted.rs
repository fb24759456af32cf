//! The checkers are checked: a good record passes, and each anomaly that is planted in it is found and called by its name.

use std::time::Duration;

use proto::Moment;

use super::*;
use crate::verdict::Ack;

fn at(ms: u64) -> Moment {
    Moment::since_boot(Duration::from_millis(ms))
}

fn operation(client: u32, ms: u64, outcome: Outcome, what: What) -> Operation {
    Operation { client, invoked: at(ms), ended: at(ms + 3), outcome, what }
}

fn append(key: i64, value: i64) -> Step {
    Step::Append { key, value }
}

fn read(key: i64, values: &[i64]) -> Step {
    Step::Read { key, values: values.to_vec() }
}

/// Ten seconds of a run in which nothing went wrong: every kind of operation, refused and unknown ones too.
fn good() -> Record {
    let ack =
        |id: i64| Ack { id, invoked: at(id.unsigned_abs()), acked: at(id.unsigned_abs() + 2) };
    let inserts = Told {
        acknowledged: (1..=1000).filter(|id| id % 100 != 0).map(ack).collect(),
        refused_ids: vec![100],
        tried: std::iter::once(1..1010).collect(),
        ..Told::default()
    };
    let mut operations = vec![
        operation(1, 500, Outcome::Done, What::Newest((450..=499).rev().collect())),
        operation(2, 900, Outcome::Done, What::Newest((850..=899).rev().collect())),
        operation(9, 100, Outcome::Done, What::Transfer),
        operation(9, 200, Outcome::Unknown, What::Transfer),
        operation(9, 300, Outcome::Done, What::Total(1600)),
    ];
    for number in 1..=5 {
        let outcome = if number == 5 { Outcome::Unknown } else { Outcome::Done };
        let next = What::Next { stream: 7, number };
        operations.push(operation(3, 100 * number.unsigned_abs(), outcome, next));
    }
    let lists = [
        (Outcome::Done, vec![append(1, 11), read(1, &[11]), append(2, 21), read(2, &[21])]),
        (Outcome::Done, vec![read(1, &[11]), append(2, 22), read(2, &[21, 22])]),
        (Outcome::Refused, vec![append(1, 99)]),
        (Outcome::Unknown, vec![append(1, 12)]),
        (Outcome::Unknown, vec![append(1, 98)]),
        (Outcome::Done, vec![append(1, 13), read(1, &[11, 12, 13]), read(2, &[21, 22])]),
        (Outcome::Done, vec![append(2, 23), append(2, 24), read(2, &[21, 22, 23, 24])]),
    ];
    for (number, (outcome, steps)) in lists.into_iter().enumerate() {
        operations.push(operation(4, 1000 + 10 * number as u64, outcome, What::Lists(steps)));
    }
    let held = Final {
        // Of those that were unknown some are there: 200, 400, ... 1005.
        ids: (1..=1000).filter(|id| id % 100 != 0 || id % 200 == 0).chain([1005]).collect(),
        streams: [(7, vec![1, 2, 3, 4])].into(),
        lists: [(1, vec![11, 12, 13]), (2, vec![21, 22, 23, 24])].into(),
        total: 1600,
    };
    let members = ["a", "b", "c"].map(|name| (name.parse().unwrap(), held.clone())).into();
    Record { inserts, operations, members, money: 1600 }
}

const LEAST: Counts =
    Counts { inserts: 900, reads: 2, streams: 4, lists: 4, transfers: 1, totals: 1, members: 3 };

fn kinds(record: &Record) -> Vec<Kind> {
    let mut kinds: Vec<Kind> = check(record, LEAST).into_iter().map(|found| found.kind).collect();
    kinds.sort_unstable();
    kinds.dedup();
    kinds
}

/// Changes what every member holds.
fn everywhere(record: &mut Record, change: impl Fn(&mut Final)) {
    record.members.values_mut().for_each(change);
}

/// Replaces the steps of the transaction over lists with this number.
fn steps(record: &mut Record, number: usize, new: Vec<Step>) {
    let mut lists = record.operations.iter_mut().filter(|o| matches!(o.what, What::Lists(_)));
    lists.nth(number).unwrap().what = What::Lists(new);
}

#[test]
fn a_good_record_passes() {
    assert_eq!(check(&good(), LEAST), []);
}

#[test]
fn an_id_that_was_read_and_is_gone_has_vanished() {
    let mut record = good();
    everywhere(&mut record, |held| assert!(held.ids.remove(&460)));
    assert_eq!(kinds(&record), [Kind::Vanished]);
    let mut one = good();
    one.members.values_mut().next().unwrap().ids.remove(&460);
    assert_eq!(kinds(&one), [Kind::Vanished, Kind::Diverged]);
}

#[test]
fn ids_that_nobody_wrote_or_that_were_refused_are_phantoms() {
    for id in [100, 5000, 0] {
        let mut record = good();
        everywhere(&mut record, |held| assert!(held.ids.insert(id)));
        assert_eq!(kinds(&record), [Kind::Phantom], "{id}");
    }
}

#[test]
fn a_read_that_misses_what_was_acknowledged_before_is_stale() {
    for missing in [470, 499 - 3] {
        let mut record = good();
        let What::Newest(ids) = &mut record.operations[0].what else { unreachable!() };
        ids.retain(|id| *id != missing);
        assert_eq!(kinds(&record), [Kind::Stale], "{missing}");
    }
    let mut old = good();
    old.operations[1].what = What::Newest((750..=798).rev().collect());
    assert_eq!(kinds(&old), [Kind::Stale], "it is of a tenth of a second before");
}

#[test]
fn a_read_need_not_show_what_was_acknowledged_while_it_ran() {
    let mut record = good();
    // 499 was acknowledged at 501 ms.
    let What::Newest(ids) = &mut record.operations[0].what else { unreachable!() };
    ids.retain(|id| *id != 499);
    assert_eq!(kinds(&record), []);
}

#[test]
fn streams_are_beginnings_as_long_as_was_acknowledged() {
    for (numbers, kind) in [
        (vec![1, 2, 3], Kind::Lost),
        (vec![1, 2, 4, 5], Kind::Hole),
        (vec![1, 2, 3, 4, 5, 6], Kind::Phantom),
    ] {
        let mut record = good();
        everywhere(&mut record, |held| drop(held.streams.insert(7, numbers.clone())));
        assert_eq!(kinds(&record), [kind], "{numbers:?}");
    }
    let mut record = good();
    everywhere(&mut record, |held| held.streams.clear());
    assert_eq!(kinds(&record), [Kind::Lost]);
    everywhere(&mut record, |held| drop(held.streams.insert(7, vec![1, 2, 3, 4, 5])));
    assert_eq!(kinds(&record), [], "the last one was unknown and may be there");
}

#[test]
fn money_that_is_made_or_lost_is_found_in_a_sum_and_at_the_end() {
    let mut record = good();
    record.operations[4].what = What::Total(1599);
    assert_eq!(kinds(&record), [Kind::Bank]);
    let mut record = good();
    everywhere(&mut record, |held| held.total = 1610);
    assert_eq!(kinds(&record), [Kind::Bank]);
}

#[test]
fn an_append_that_was_acknowledged_and_is_gone_is_lost() {
    let mut record = good();
    everywhere(&mut record, |held| drop(held.lists.insert(2, vec![21, 22])));
    assert!(kinds(&record).contains(&Kind::Lost), "{:?}", check(&record, LEAST));
}

#[test]
fn what_was_refused_or_never_written_shows_in_a_list() {
    let mut record = good();
    everywhere(&mut record, |held| held.lists.get_mut(&1).unwrap().push(99));
    assert_eq!(kinds(&record), [Kind::G1a]);
    let mut record = good();
    everywhere(&mut record, |held| held.lists.get_mut(&1).unwrap().push(77));
    assert_eq!(kinds(&record), [Kind::Phantom]);
}

#[test]
fn half_of_a_transaction_is_read() {
    let mut record = good();
    let half = vec![read(2, &[21, 22, 23])];
    record.operations.push(operation(5, 3000, Outcome::Done, What::Lists(half)));
    assert!(kinds(&record).contains(&Kind::G1b), "{:?}", check(&record, LEAST));
}

#[test]
fn reads_that_fork_and_reads_that_miss_their_own_write_are_found() {
    let mut record = good();
    steps(&mut record, 1, vec![read(1, &[13, 11]), append(2, 22), read(2, &[21, 22])]);
    assert!(kinds(&record).contains(&Kind::Forked));
    let mut record = good();
    steps(&mut record, 1, vec![read(1, &[11]), append(2, 22), read(2, &[21])]);
    assert!(kinds(&record).contains(&Kind::Internal));
    let mut record = good();
    everywhere(&mut record, |held| drop(held.lists.insert(1, vec![11, 12, 13, 11])));
    assert!(kinds(&record).contains(&Kind::Forked));
}

/// Two transactions over keys 3 and 4, and what the lists come to.
fn pair(one: Vec<Step>, two: Vec<Step>, lists: [Vec<i64>; 2]) -> Vec<Kind> {
    let mut record = good();
    for (client, steps) in [(5, one), (6, two)] {
        record.operations.push(operation(client, 3000, Outcome::Done, What::Lists(steps)));
    }
    everywhere(&mut record, |held| {
        for (key, list) in [3, 4].into_iter().zip(&lists) {
            held.lists.insert(key, list.clone());
        }
    });
    kinds(&record)
}

#[test]
fn circles_are_called_by_their_names() {
    let writes = |one: i64, two: i64| vec![append(3, one), append(4, two)];
    let g0 = pair(writes(31, 41), writes(32, 42), [vec![31, 32], vec![42, 41]]);
    assert_eq!(g0, [Kind::G0]);
    let g1c = pair(
        vec![append(3, 31), read(4, &[41])],
        vec![append(4, 41), read(3, &[31])],
        [vec![31], vec![41]],
    );
    assert_eq!(g1c, [Kind::G1c]);
    // It reads one list before and the other one after the second has written both.
    let single = pair(vec![read(3, &[]), read(4, &[42])], writes(32, 42), [vec![32], vec![42]]);
    assert_eq!(single, [Kind::GSingle]);
    // Each reads what the other is about to overwrite: write skew.
    let g2 = pair(
        vec![read(3, &[]), append(4, 41)],
        vec![read(4, &[]), append(3, 32)],
        [vec![32], vec![41]],
    );
    assert_eq!(g2, [Kind::G2]);
}

#[test]
fn a_lost_update_is_a_circle_with_one_read() {
    // Both read the same and appended to it.
    let lost = pair(
        vec![read(3, &[]), append(3, 31)],
        vec![read(3, &[]), append(3, 32)],
        [vec![31, 32], vec![]],
    );
    assert_eq!(lost, [Kind::GSingle]);
}

#[test]
fn a_circle_over_many_transactions_is_found_though_each_pair_is_innocent() {
    let mut record = good();
    let length = 50;
    for number in 0..length {
        let steps = vec![
            append(100 + number, number + 1000),
            read(100 + (number + 1) % length, &[(number + 1) % length + 1000]),
        ];
        record.operations.push(operation(5, 3000, Outcome::Done, What::Lists(steps)));
    }
    everywhere(&mut record, |held| {
        held.lists.extend((0..length).map(|number| (100 + number, vec![number + 1000])));
    });
    assert_eq!(kinds(&record), [Kind::G1c]);
}

#[test]
fn a_record_that_shows_too_little_is_inconclusive() {
    assert_eq!(check(&Record::default(), LEAST).len(), 7);
    let mut record = good();
    record.operations.retain(|o| !matches!(o.what, What::Newest(_)));
    assert_eq!(kinds(&record), [Kind::Inconclusive]);
}

#[test]
fn members_that_differ_in_anything_have_diverged() {
    for change in [
        |held: &mut Final| held.total += 1,
        |held: &mut Final| drop(held.lists.insert(9, vec![])),
        |held: &mut Final| drop(held.streams.insert(9, vec![])),
    ] {
        let mut record = good();
        change(record.members.values_mut().last().unwrap());
        assert!(kinds(&record).contains(&Kind::Diverged));
    }
}
