//! A rewind among as many WAL segments as a terabyte has.

use std::fs::File;
use std::path::Path;

use keeper::postgres::wal_files::Segment;
use proto::Timeline;

use crate::cluster::{Cluster, judge, own};
use crate::delta::{Notes, diverged_from, fork, joins_equal, rejoin, through_gateway};

const SEGMENT: u32 = 1 << 20;

/// A terabyte in segments of 16 MB.
const SEGMENTS: u64 = 65_536;

/// Gives `pg_wal` that many segments from before `number`, as long as real ones and empty.
fn retain(pg_wal: &Path, number: u64) {
    for number in number - SEGMENTS..number {
        let path = pg_wal.join(Segment { timeline: Timeline(1), number }.file_name(SEGMENT));
        if !path.exists() {
            File::create(&path).unwrap().set_len(u64::from(SEGMENT)).unwrap();
            own(&path);
        }
    }
}

/// Lets a pair with such a log part and come together. Returns how long that took, in milliseconds.
async fn comes_back(retained: bool) -> u128 {
    let old = Cluster::new(1).await;
    let first = Segment { timeline: Timeline(1), number: 2 * SEGMENTS }.file_name(SEGMENT);
    judge("pg_resetwal", &["-l", &first, "-D", old.data.to_str().unwrap()]);
    let (mut old, new) = diverged_from(old, 2, 3 * SEGMENTS as u32).await;
    let expected = fork(&old, &new);
    assert!(expected.1.0 / u64::from(SEGMENT) >= 2 * SEGMENTS, "{expected:?}");
    if retained {
        retain(&old.pg_wal(), 2 * SEGMENTS);
        retain(&new.pg_wal(), 2 * SEGMENTS);
    }
    nix::unistd::sync();
    let notes = Notes::default();
    let begun = store::clock::now();
    let (rewound, traffic) = through_gateway(rejoin(&old, &new, expected, &notes, |_| {}).await);
    let ms = store::clock::now().since(begun).as_millis();
    println!("retained: {retained}, {ms} ms, {:?}", rewound.took);
    let fork = notes.fork.lock().unwrap().unwrap();
    assert!(traffic.before(&fork).is_empty());
    if retained {
        let last = Segment { timeline: Timeline(1), number: 2 * SEGMENTS - 1 };
        assert!(old.pg_wal().join(last.file_name(SEGMENT)).exists(), "it stays where it was");
    }
    joins_equal(&mut old, &new).await;
    ms
}

#[tokio::test]
#[ignore = "make test-long: 131,072 files"]
async fn a_rewind_among_65_536_segments_costs_a_few_seconds_more() {
    let (few, many) = (comes_back(false).await, comes_back(true).await);
    println!("ladder: segments={SEGMENTS} few_ms={few} many_ms={many}");
    assert!(many < few + 10_000, "{few} ms, {many} ms");
}
