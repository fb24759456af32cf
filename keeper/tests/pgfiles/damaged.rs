//! The readers of what a crash has left, on a real server's files with random damage: they end, they do not panic, and no
//! damage makes a log longer than it is.
//!
//! `PGDEPUTY_FUZZ_MINUTES` says for how long, `PGDEPUTY_SEED` which damage; the seed is printed, and each finding has its
//! turn.

use std::collections::BTreeMap;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use keeper::postgres::control::ControlFile;
use keeper::postgres::fork::fork_of;
use keeper::postgres::wal_contents::{Span, contents};
use keeper::postgres::wal_scan::{EndOfWal, scan};
use proto::{Lsn, Timeline, TimelineHistory};

use crate::cluster::Cluster;
use crate::interrupted::{Draw, number};

/// Reading a megabyte twice takes milliseconds; this is for a loaded machine.
const LONGEST: Duration = Duration::from_secs(30);

/// A server with WAL of many kinds that crashed, and its files as they were.
async fn crashed() -> (Cluster, BTreeMap<PathBuf, Vec<u8>>) {
    let mut cluster = Cluster::new(1).await;
    cluster.start().await;
    cluster.sql(
        "CREATE TABLE t (i int PRIMARY KEY, text text);
         INSERT INTO t SELECT i, repeat('x', 300) FROM generate_series(1, 3000) AS i",
    );
    cluster.sql("CHECKPOINT");
    cluster.sql("UPDATE t SET text = repeat(md5(i::text), 100) WHERE i <= 300");
    cluster.sql("BEGIN; SAVEPOINT s; DELETE FROM t WHERE i > 2900; ROLLBACK TO s; COMMIT");
    cluster.sql("SELECT pg_switch_wal()");
    cluster.sql("BEGIN; UPDATE t SET text = 'gone' WHERE i < 50; ROLLBACK");
    cluster.sql("VACUUM t");
    cluster.crash();
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(cluster.pg_wal()).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            files.insert(path.clone(), fs::read(&path).unwrap());
        }
    }
    (cluster, files)
}

/// Damages one file in one way.
fn damage(draw: &mut Draw, files: &BTreeMap<PathBuf, Vec<u8>>, path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let size = bytes.len() as u64;
    let at = draw.below(size) as usize;
    let length = (1 + draw.below(16_384) as usize).min(bytes.len() - at);
    match draw.below(7) {
        0 => bytes[at] ^= 1 + draw.below(255) as u8,
        1 => {
            let at = (at / 8 * 8).min(bytes.len().saturating_sub(4));
            let value = [0, 1, u32::MAX, draw.below(1 << 32) as u32][draw.below(4) as usize];
            bytes.iter_mut().skip(at).zip(value.to_le_bytes()).for_each(|(to, from)| *to = from);
        }
        2 => bytes[at..at + length].fill(0),
        3 => bytes[at..at + length].iter_mut().for_each(|byte| *byte = draw.below(256) as u8),
        4 => bytes.truncate(at),
        // As a recycled segment or a torn write has it: bytes that are right elsewhere.
        5 => {
            let from = files.values().nth(draw.below(files.len() as u64) as usize).unwrap();
            let begin = draw.below((from.len() - length) as u64) as usize / 8 * 8;
            bytes[at..at + length].copy_from_slice(&from[begin..begin + length]);
        }
        _ => bytes.clone_from(files.values().nth(draw.below(files.len() as u64) as usize).unwrap()),
    }
    fs::write(path, bytes).unwrap();
}

/// Reads all, and returns the end of WAL where there is one.
fn read(data: &Path, whole: &EndOfWal, from: Lsn) -> Option<EndOfWal> {
    let found = scan(data).ok();
    let (end, at_most_bytes) = ((whole.lsn, whole.timeline), u64::MAX);
    let _ = contents(data, Span { timeline: whole.timeline, from, end, at_most_bytes });
    found
}

fn histories(draw: &mut Draw) {
    let text: String = (0..draw.below(12))
        .map(|_| {
            let number = draw.below(12);
            let lsn = Lsn(draw.below(u64::MAX) >> draw.below(64));
            match draw.below(6) {
                0 => "#\n".to_owned(),
                1 => format!("{lsn}\t{number}\n"),
                2 => format!("{number}\t"),
                _ => format!("{number}\t{lsn}\treason\n"),
            }
        })
        .collect();
    let own = TimelineHistory::parse(Timeline(draw.below(14) as u32), &text);
    let first = TimelineHistory::first(Timeline(1));
    if let Ok(own) = own {
        own.writer_of(Lsn(draw.below(u64::MAX)));
        let _ = (fork_of(&own, &first), fork_of(&first, &own));
    }
}

/// A control file with damage, half the time behind a checksum that is right.
fn control(draw: &mut Draw, image: &[u8]) {
    let mut bytes = image.to_owned();
    let used = 304;
    for _ in 0..=draw.below(4) {
        let at = draw.below(used) as usize;
        bytes[at] = draw.below(256) as u8;
    }
    if draw.below(2) == 0 {
        // The checksum's place differs between versions; it follows the last field.
        for crc_at in (280..304).step_by(4) {
            let crc = crc32c::crc32c(&bytes[..crc_at]);
            bytes[crc_at..crc_at + 4].copy_from_slice(&crc.to_le_bytes());
            let _ = ControlFile::parse(&bytes);
        }
    }
    bytes.truncate(draw.below(bytes.len() as u64 * 2) as usize);
    let _ = ControlFile::parse(&bytes);
}

#[tokio::test]
#[ignore = "takes minutes: make test-long"]
async fn damaged_files_are_read_to_an_end_and_none_makes_a_log_longer() {
    let seed = number("PGDEPUTY_SEED").unwrap_or(20_261_128);
    let minutes = number("PGDEPUTY_FUZZ_MINUTES").unwrap_or(5);
    let (cluster, files) = crashed().await;
    let whole = scan(&cluster.data).unwrap();
    let image = fs::read(cluster.data.join("global/pg_control")).unwrap();
    let from = ControlFile::parse(&image).unwrap().checkpoint;
    let mut draw = Draw(seed);
    let until = store::clock::now() + Duration::from_secs(60 * minutes);
    let (mut turns, mut read_on) = (0_u64, 0_u64);
    println!("seed={seed}, {} segments, WAL from {from} to {}", files.len(), whole.lsn);
    while store::clock::now() < until {
        turns += 1;
        let before = draw.0;
        let mut damaged = Vec::new();
        for _ in 0..=draw.below(3) {
            let path = files.keys().nth(draw.below(files.len() as u64) as usize).unwrap();
            if !fs::read(path).unwrap().is_empty() {
                damage(&mut draw, &files, path);
            }
            damaged.push(path);
        }
        let begun = store::clock::now();
        let found = catch_unwind(|| read(&cluster.data, &whole, from));
        let took = store::clock::now().since(begun);
        let Ok(found) = found else { panic!("turn {turns} of seed {seed} ({before}): a panic") };
        assert!(took < LONGEST, "turn {turns} of seed {seed}: it took {took:?}");
        if let Some(found) = found {
            read_on += 1;
            assert!(found.lsn <= whole.lsn, "turn {turns} of seed {seed}: {found:?} of {whole:?}");
        }
        for path in damaged {
            fs::write(path, &files[path]).unwrap();
        }
        for _ in 0..20 {
            let mut again = Draw(draw.below(u64::MAX));
            let parsed = catch_unwind(AssertUnwindSafe(|| histories(&mut again)));
            assert!(parsed.is_ok(), "turn {turns} of seed {seed}: a history");
            let mut again = Draw(draw.below(u64::MAX));
            let parsed = catch_unwind(AssertUnwindSafe(|| control(&mut again, &image)));
            assert!(parsed.is_ok(), "turn {turns} of seed {seed}: a control file");
        }
    }
    println!(
        "damaged: turns={turns} with_an_end={read_on} histories={0} controls={0}, none panicked or was longer",
        20 * turns
    );
    assert_eq!(scan(&cluster.data).unwrap().lsn, whole.lsn);
    assert!(turns > 100 && read_on > turns / 10, "{turns} turns, {read_on} with an end");
}
