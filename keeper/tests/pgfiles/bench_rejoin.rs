//! How long a rewind takes and what it copies, against stock pg_rewind on an equal pair in the same run.

use std::sync::Mutex;

use keeper::postgres::gateway::Traffic;
use keeper::postgres::rewind::{RewindOutcome, rewind};
use proto::spec::CrashRecovery;

use crate::cluster::{Cluster, binaries};
use crate::delta::{Notes, diverged_with, fork, part, rejoin, target_of, through_gateway};

/// How often ours is measured; stock pg_rewind, which writes all WAL, is measured a third as often.
const RUNS: usize = 5;

/// What one rejoin took, from the crashed member to the one that streams.
#[derive(Clone, Copy)]
struct Measured {
    bytes: u64,
    ms: u128,
}

/// `make bench-rejoin`; `REJOIN_MB="2048 8192"` for more rows.
#[tokio::test]
#[ignore = "a measurement that takes many gigabytes of disk"]
async fn ours_against_stock() {
    let rows = std::env::var("PGDEPUTY_REJOIN_MB").unwrap_or_else(|_| "2048".into());
    for retained in rows.split_whitespace().map(|mb| mb.parse::<u32>().unwrap()) {
        let recovered = median(ours(retained, CrashRecovery::Run, 1 + RUNS / 2).await);
        let ours = median(ours(retained, CrashRecovery::Skip, RUNS).await);
        let stock = median(stock(retained, 1 + RUNS / 3).await);
        println!("with crash recovery in single-user mode: ours_ms={}", recovered.ms);
        println!(
            "rejoin: retained_mb={retained} used=gateway ours_bytes={} stock_bytes={} \
             ours_ms={} stock_ms={}",
            ours.bytes, stock.bytes, ours.ms, stock.ms
        );
        // Times depend on the machine; what is copied does not.
        assert!(stock.bytes > u64::from(retained) * 900_000, "stock copied {} bytes", stock.bytes);
        assert!(ours.bytes < 128 << 20, "ours grows with the retained WAL");
    }
}

/// Lets a pair fail over back and forth. Panics where a rewind did not go through the gateway.
async fn ours(retained: u32, crash_recovery: CrashRecovery, runs: usize) -> Vec<Measured> {
    let (mut down, mut up) = diverged_with(16, retained).await;
    let mut measured = Vec::new();
    loop {
        let notes = Notes { crash_recovery, ..Notes::default() };
        let expected = fork(&down, &up);
        // The WAL of a server that syncs is on disk, and these do not sync.
        nix::unistd::sync();
        let begun = store::clock::now();
        let (rewound, traffic) =
            through_gateway(rejoin(&down, &up, expected, &notes, |_| {}).await);
        streams(&mut down, &up).await;
        let ms = store::clock::now().since(begun).as_millis();
        let fork = notes.fork.lock().unwrap().unwrap();
        assert!(traffic.before(&fork).is_empty(), "{:?}", traffic.before(&fork));
        println!("{crash_recovery:?}: {ms} ms, {:?}, {}", rewound.took, by_kind(&traffic));
        measured.push(Measured { bytes: traffic.bytes, ms });
        if measured.len() == runs {
            return measured;
        }
        up.sql("DROP TABLE kept");
        up.sql("CHECKPOINT");
        down.caught_up(&up).await;
        part(&mut up, &down).await;
        std::mem::swap(&mut up, &mut down);
    }
}

async fn stock(retained: u32, runs: usize) -> Vec<Measured> {
    let mut measured = Vec::new();
    while measured.len() < runs {
        let (mut old, new) = diverged_with(16, retained).await;
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

fn median(mut measured: Vec<Measured>) -> Measured {
    measured.sort_by_key(|m| m.ms);
    measured[measured.len() / 2]
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
