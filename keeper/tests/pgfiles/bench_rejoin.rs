//! How long a rewind takes and what it copies, against stock pg_rewind on an equal pair in the same run.

use std::sync::Mutex;

use keeper::postgres::gateway::Traffic;
use keeper::postgres::rewind::{RewindOutcome, rewind};
use proto::spec::CrashRecovery;

use crate::cluster::{Cluster, binaries, directory};
use crate::delta::{Notes, diverged_from, fork, part, rejoin, target_of, through_gateway};
use crate::link::{self, ADDRESSES};

/// How often ours is measured; stock pg_rewind, which writes all WAL, is measured a third as often.
const RUNS: usize = 5;

/// What one rejoin took, from the crashed member to the one that streams.
#[derive(Clone, Copy)]
struct Measured {
    bytes: u64,
    ms: u128,
}

/// What a pair has besides the retained WAL, in megabytes: the WAL of eight changes of primary, tables, files that are made
/// ahead, and what a checkpoint has not yet given back.
const BESIDES_MB: u64 = 3072;

/// Rows up to this are never left out.
const ALWAYS_MB: u32 = 2048;

/// `make bench-rejoin`; `REJOIN_MB="2048 8192"` for more rows, `REJOIN_LINK_MB` for those over the link.
#[tokio::test]
#[ignore = "a measurement that takes many gigabytes of disk"]
async fn ours_against_stock() {
    let sizes = |name: &str| -> Vec<u32> {
        let rows = std::env::var(name).unwrap_or_else(|_| "2048".into());
        rows.split_whitespace().map(|mb| mb.parse().unwrap()).collect()
    };
    let link = link::enter();
    for retained in sizes("PGDEPUTY_REJOIN_MB") {
        row(retained, None).await;
    }
    for retained in sizes("PGDEPUTY_REJOIN_LINK_MB") {
        match &link {
            Ok(mbit) => row(retained, Some(*mbit)).await,
            Err(why) => println!("rejoin: retained_mb={retained} link=1gbit skipped={why:?}"),
        }
    }
}

/// Measures one row and prints it; `mbit` is what the link has, if it is over the link.
async fn row(retained: u32, mbit: Option<u64>) {
    let link = mbit.map_or(String::new(), |mbit| format!(" link=1gbit link_mbit={mbit}"));
    let (needs, free) = (needs_mb(retained), free_mb());
    if free < needs {
        assert!(retained > ALWAYS_MB, "{needs} MB of disk are needed, {free} MB are free");
        println!(
            "rejoin: retained_mb={retained}{link} skipped=disk needs_mb={needs} free_mb={free}"
        );
        return;
    }
    let is_linked = mbit.is_some();
    let (ours, recovered) = ours(retained, is_linked).await;
    let stock = median(stock(retained, is_linked, 1 + RUNS / 3).await);
    println!("with crash recovery in single-user mode: ours_ms={}", recovered.ms);
    println!(
        "rejoin: retained_mb={retained} used=gateway ours_bytes={} stock_bytes={} ours_ms={} stock_ms={}{link}",
        ours.bytes, stock.bytes, ours.ms, stock.ms
    );
    // Times depend on the machine; what is copied does not.
    assert!(stock.bytes > u64::from(retained) * 900_000, "stock copied {} bytes", stock.bytes);
    assert!(ours.bytes < 128 << 20, "ours grows with the retained WAL");
}

/// Returns how much disk a row needs: both servers of a pair have the WAL, whose `retained_mb` are of a million bytes. One
/// pair is there at a time. Stock pg_rewind needs no more: it writes over what the target has.
fn needs_mb(retained_mb: u32) -> u64 {
    2 * ((u64::from(retained_mb) * 1_000_000) >> 20) + BESIDES_MB
}

/// Returns how many megabytes the disk has left for the servers.
fn free_mb() -> u64 {
    // A file system may give back what was removed only when it syncs.
    nix::unistd::sync();
    let found = nix::sys::statvfs::statvfs(directory().path()).unwrap();
    (found.blocks_available() * found.fragment_size()) >> 20
}

/// A pair that has parted, which reaches each other over the link if it is linked.
async fn parted(retained: u32, is_linked: bool) -> (Cluster, Cluster) {
    let mut old = Cluster::new(16).await;
    old.link = is_linked.then_some(ADDRESSES[0]);
    diverged_from(old, retained, retained + 256).await
}

/// Lets a pair fail over back and forth: first without crash recovery, then with it, because PostgreSQL in single-user mode
/// retains no WAL. Returns the medians of both.
async fn ours(retained: u32, is_linked: bool) -> (Measured, Measured) {
    let mut pair = parted(retained, is_linked).await;
    let skipped = back_and_forth(&mut pair, CrashRecovery::Skip, RUNS).await;
    let recovered = back_and_forth(&mut pair, CrashRecovery::Run, 1 + RUNS / 2).await;
    (median(skipped), median(recovered))
}

/// Rejoins the one that is down, `runs` times, after each with the roles changed. Panics where a rewind did not go through the
/// gateway.
async fn back_and_forth(
    (down, up): &mut (Cluster, Cluster),
    crash_recovery: CrashRecovery,
    runs: usize,
) -> Vec<Measured> {
    let mut measured = Vec::new();
    for _ in 0..runs {
        let notes = Notes { crash_recovery, ..Notes::default() };
        let expected = fork(down, up);
        // The WAL of a server that syncs is on disk, and these do not sync.
        nix::unistd::sync();
        let begun = store::clock::now();
        let (rewound, traffic) = through_gateway(rejoin(down, up, expected, &notes, |_| {}).await);
        streams(down, up).await;
        let ms = store::clock::now().since(begun).as_millis();
        let fork = notes.fork.lock().unwrap().unwrap();
        assert!(traffic.before(&fork).is_empty(), "{:?}", traffic.before(&fork));
        println!("{crash_recovery:?}: {ms} ms, {:?}, {}", rewound.took, by_kind(&traffic));
        measured.push(Measured { bytes: traffic.bytes, ms });
        up.sql("DROP TABLE kept");
        up.sql("CHECKPOINT");
        down.caught_up(up).await;
        part(up, down).await;
        std::mem::swap(up, down);
    }
    measured
}

async fn stock(retained: u32, is_linked: bool, runs: usize) -> Vec<Measured> {
    let mut measured = Vec::new();
    while measured.len() < runs {
        let (mut old, new) = parted(retained, is_linked).await;
        let copied = Mutex::new(0);
        let source = new.source();
        let target = target_of(&old, &source, CrashRecovery::Run);
        nix::unistd::sync();
        let begun = store::clock::now();
        let outcome =
            rewind(&binaries(), &target, |p| *copied.lock().unwrap() = p.copied_bytes).await;
        let RewindOutcome::Rewound(rewound) = outcome else { panic!("{outcome:?}") };
        streams(&mut old, &new).await;
        let ms = store::clock::now().since(begun).as_millis();
        println!("stock: {ms} ms, {:?}", rewound.took);
        measured.push(Measured { bytes: copied.into_inner().unwrap(), ms });
    }
    measured
}

/// Returns the lower one of the two in the middle: of two runs of stock pg_rewind the faster one counts.
fn median(mut measured: Vec<Measured>) -> Measured {
    measured.sort_by_key(|m| m.ms);
    measured[(measured.len() - 1) / 2]
}

/// Says of what the bytes are.
fn by_kind(traffic: &Traffic) -> String {
    let of = |prefix: &str| -> u64 {
        let files = traffic.files.iter().filter(|(path, _)| path.starts_with(prefix));
        files.map(|(_, bytes)| bytes).sum()
    };
    let all: u64 = traffic.files.values().sum();
    let (wal, tables) = (of("pg_wal/"), of("base/"));
    let rest = all - wal - tables;
    format!("WAL {wal}, tables {tables}, other files {rest}, messages {}", traffic.bytes - all)
}

async fn streams(old: &mut Cluster, new: &Cluster) {
    old.follow(new);
    old.start().await;
    old.eventually("it streams", |c| {
        c.sql("SELECT status FROM pg_stat_wal_receiver") == "streaming"
    })
    .await;
}

#[test]
fn a_row_needs_room_for_the_wal_of_two_servers() {
    assert_eq!(needs_mb(2048), 2 * 1953 + BESIDES_MB);
    assert_eq!(needs_mb(32_768), 65_572);
}
