//! The end-of-WAL scan on made WAL: right for every cut, calm about every byte.

use std::fs;

use keeper::postgres::wal_files::Segment;
use keeper::postgres::wal_scan::{EndOfWal, WalStart, end_of_wal, newest_end};
use proptest::prelude::*;
use proto::{Lsn, Timeline, TimelineHistory};

use crate::made_wal::{MadeWal, SEGMENT};

fn first() -> TimelineHistory {
    TimelineHistory::first(Timeline(1))
}

fn end(wal: &MadeWal) -> anyhow::Result<EndOfWal> {
    let dir = tempfile::tempdir().unwrap();
    end_of_wal(&wal.save(dir.path()), &first(), wal.checkpoint())
}

/// A step of a log's life.
#[derive(Debug, Clone)]
enum Step {
    Record(usize),
    Switch,
    Crash,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => (0_usize..400).prop_map(Step::Record),
        // Those that end at, just before and just after the end of a page.
        2 => (8000_usize..8300).prop_map(Step::Record),
        1 => (20_000_usize..3_000_000).prop_map(Step::Record),
        1 => Just(Step::Switch),
        1 => Just(Step::Crash),
    ];
    prop::collection::vec(step, 1..40)
}

fn made(steps: &[Step]) -> MadeWal {
    let mut wal = MadeWal::new();
    for step in steps {
        match step {
            Step::Record(bytes) => wal.append(&vec![3; *bytes], 10, 0x20),
            Step::Switch => wal.switch(),
            Step::Crash => wal.crash_and_overwrite(),
        }
    }
    wal
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_end_is_that_of_the_last_record_and_after_a_cut_that_of_the_last_whole_one(
        steps in steps(),
        share in 0.0_f64..1.0,
    ) {
        let mut wal = made(&steps);
        let last = *wal.records.last().unwrap();
        let found = end(&wal).unwrap();
        prop_assert_eq!((found.last_record, found.lsn), last);
        prop_assert_eq!(found.timeline, Timeline(1));

        let from = wal.records[0].1;
        let cut = Lsn(from.0 + (last.1.bytes_ahead_of(from) as f64 * share) as u64);
        wal.cut(cut);
        // A switch record is whole long before the end of its segment; padding behind a record is zero anyway.
        let whole = wal.records.iter().rev().find(|r| r.0.0 + 24 <= cut.0 && r.1 <= cut).unwrap();
        let found = end(&wal).unwrap();
        prop_assert!(found.lsn >= whole.1, "{:?} after a cut at {}, expected {:?}", found, cut, whole);
        prop_assert!(found.last_record < cut);
        prop_assert!(wal.records.contains(&(found.last_record, found.lsn)));
    }

    #[test]
    fn a_changed_byte_never_lets_a_record_behind_it_count(
        steps in steps(),
        share in 0.0_f64..1.0,
        mask in 1_u8..=255,
    ) {
        let mut wal = made(&steps);
        let (from, to) = (wal.records[0].1, wal.records.last().unwrap().1);
        let hit = Lsn(from.0 + (to.bytes_ahead_of(from) as f64 * share) as u64);
        if wal.flip(hit, mask) {
            let found = end(&wal).unwrap();
            prop_assert!(wal.records.contains(&(found.last_record, found.lsn)), "{:?}", found);
            // Bytes of a record, but for its padding, are all under its checksum.
            let struck = wal.records.iter().find(|r| r.0 <= hit && hit.0 < r.0.0 + 24);
            if let Some(struck) = struck {
                prop_assert!(found.lsn <= struck.0, "{:?} though {:?} is damaged", found, struck);
            }
        }
    }

    #[test]
    fn arbitrary_files_and_starts_never_panic(
        content in prop::collection::vec(any::<u8>(), 0..20_000),
        offset in any::<u16>(),
        start in any::<u64>(),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let wal = MadeWal::new();
        let described = wal.save(dir.path());
        let name = Segment::at(Timeline(1), wal.checkpoint(), SEGMENT).file_name(SEGMENT);
        let path = dir.path().join(name);
        let _ = end_of_wal(&described, &first(), Lsn(start));
        let mut bytes = fs::read(&path).unwrap();
        let at = usize::from(offset);
        bytes[at..at + content.len()].copy_from_slice(&content);
        fs::write(&path, &bytes).unwrap();
        let _ = end_of_wal(&described, &first(), wal.checkpoint());
        fs::write(&path, &content).unwrap();
        let _ = end_of_wal(&described, &first(), wal.checkpoint());
        let _ = end_of_wal(&described, &first(), Lsn(wal.checkpoint().0 + u64::from(offset)));
    }
}

#[test]
fn a_recycled_segment_full_of_valid_old_records_adds_nothing() {
    let mut wal = MadeWal::new();
    while wal.at.is_multiple_of(u64::from(SEGMENT)) || wal.at < 3 * u64::from(SEGMENT) {
        wal.append(&[3; 1000], 10, 0x20);
    }
    let dir = tempfile::tempdir().unwrap();
    let described = wal.save(dir.path());
    let found = end_of_wal(&described, &first(), wal.checkpoint()).unwrap();
    let size = u64::from(SEGMENT);
    let (old, here) = (Lsn(2 * size), Lsn(found.lsn.0 - found.lsn.0 % size));
    let name = |lsn| dir.path().join(Segment::at(Timeline(1), lsn, SEGMENT).file_name(SEGMENT));
    // The present segment was recycled from the first: beyond what was written stands what stood there.
    let (mut bytes, recycled) = (fs::read(name(here)).unwrap(), fs::read(name(old)).unwrap());
    let written = (found.lsn.0 % size) as usize;
    bytes[written..].copy_from_slice(&recycled[written..]);
    fs::write(name(here), bytes).unwrap();
    fs::copy(name(old), name(Lsn(here.0 + size))).unwrap();
    let again = end_of_wal(&described, &first(), wal.checkpoint()).unwrap();
    assert_eq!((again.lsn, again.last_record), (found.lsn, found.last_record));
}

/// A log on timeline 1 that a promotion left at `fork`; both sides went on.
struct Forked {
    trunk: MadeWal,
    branch: MadeWal,
    fork: Lsn,
    dir: tempfile::TempDir,
}

fn forked() -> Forked {
    let mut trunk = MadeWal::new();
    for _ in 0..5 {
        trunk.append(&[3; 500], 10, 0x20);
    }
    let mut branch = trunk.clone();
    let fork = branch.promote(Timeline(2));
    for _ in 0..3000 {
        branch.append(&[4; 400], 10, 0x20);
    }
    trunk.append(&[5; 100_000], 10, 0x20);
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("00000002.history"), format!("1\t{fork}\treason\n")).unwrap();
    Forked { trunk, branch, fork, dir }
}

fn start(wal: &MadeWal, at_least: u32) -> WalStart {
    WalStart {
        lsn: wal.checkpoint(),
        timeline: Timeline(1),
        at_least: Timeline(at_least),
        min_recovery_point: Lsn(0),
    }
}

#[test]
fn wal_of_a_newer_timeline_counts_though_the_control_file_does_not_know_it() {
    let scene = forked();
    let wal = scene.branch.save(scene.dir.path());
    for at_least in [1, 2] {
        let found = newest_end(&wal, &start(&scene.branch, at_least)).unwrap();
        assert_eq!(found.timeline, Timeline(2));
        assert_eq!((found.last_record, found.lsn), *scene.branch.records.last().unwrap());
    }
}

#[test]
fn a_diverged_tail_of_the_old_timeline_is_no_part_of_the_new_one() {
    let scene = forked();
    // Only the old timeline's files: the new one is known by its history alone.
    let wal = scene.trunk.save(scene.dir.path());
    let found = newest_end(&wal, &start(&scene.trunk, 1)).unwrap();
    assert_eq!((found.timeline, found.lsn), (Timeline(1), scene.trunk.records.last().unwrap().1));
    let along_branch = newest_end(&wal, &start(&scene.trunk, 2)).unwrap();
    assert_eq!((along_branch.timeline, along_branch.lsn), (Timeline(1), scene.fork));
}

#[test]
fn a_promotion_that_wrote_nothing_leaves_the_old_timelines_end() {
    let mut scene = forked();
    scene.branch.cut(scene.fork);
    let wal = scene.branch.save(scene.dir.path());
    let found = newest_end(&wal, &start(&scene.branch, 1)).unwrap();
    assert_eq!((found.timeline, found.lsn), (Timeline(1), scene.fork));
}

#[test]
fn a_timeline_that_left_before_what_the_data_already_holds_is_not_followed() {
    let scene = forked();
    scene.branch.save(scene.dir.path());
    let wal = scene.trunk.save(scene.dir.path());
    let beyond = WalStart { min_recovery_point: Lsn(scene.fork.0 + 8), ..start(&scene.trunk, 1) };
    assert_eq!(newest_end(&wal, &beyond).unwrap().timeline, Timeline(1));
}

#[test]
fn another_clusters_segment_or_a_missing_one_is_the_end_and_a_missing_checkpoint_an_error() {
    let mut wal = made(&[Step::Record(3_000_000), Step::Record(10)]);
    let dir = tempfile::tempdir().unwrap();
    let mut described = wal.save(dir.path());
    described.system_identifier = proto::SystemIdentifier(1);
    let error = end_of_wal(&described, &first(), wal.checkpoint()).unwrap_err().to_string();
    assert!(
        error.contains("another cluster") && error.contains("copy this member anew"),
        "{error}"
    );
    described.major = 14;
    assert!(end_of_wal(&described, &first(), wal.checkpoint()).is_err());

    wal.remove(Segment { timeline: Timeline(1), number: 3 });
    let found = end(&wal).unwrap();
    assert_eq!((found.last_record, found.lsn), wal.records[0]);
    wal.remove(Segment { timeline: Timeline(1), number: 2 });
    assert!(end(&wal).is_err());
}
