//! How long a rewind takes and what it copies, against stock pg_rewind on an equal pair in the same run.

use std::sync::Mutex;

use keeper::postgres::rewind::{RewindOutcome, Target, rewind};

use crate::cluster::{Cluster, binaries};
use crate::delta::{Notes, diverged_with, fork, rejoin, through_gateway};

/// `make bench-rejoin`; `REJOIN_MB="2048 8192"` for more rows.
#[tokio::test]
#[ignore = "a measurement that takes many gigabytes of disk"]
async fn ours_against_stock() {
    let rows = std::env::var("PGDEPUTY_REJOIN_MB").unwrap_or_else(|_| "2048".into());
    for retained in rows.split_whitespace().map(|mb| mb.parse::<u32>().unwrap()) {
        let (our_bytes, our_ms) = ours(retained).await;
        let (stock_bytes, stock_ms) = stock(retained).await;
        println!(
            "rejoin: retained_mb={retained} used=gateway ours_bytes={our_bytes} stock_bytes={stock_bytes} \
             ours_ms={our_ms} stock_ms={stock_ms}"
        );
        // Times depend on the machine; what is copied does not.
        assert!(stock_bytes > u64::from(retained) * 900_000, "stock copied {stock_bytes} bytes");
        assert!(our_bytes < 128 << 20, "ours grows with the retained WAL");
    }
}

/// From the crashed member to the rewound one that streams.
async fn ours(retained: u32) -> (u64, u128) {
    let (mut old, new) = diverged_with(16, retained).await;
    let (notes, expected) = (Notes::default(), fork(&old, &new));
    let begun = store::clock::now();
    let (_, traffic) = through_gateway(rejoin(&old, &new, expected, &notes, |_| {}).await);
    streams(&mut old, &new).await;
    let took = store::clock::now().since(begun).as_millis();
    let fork = notes.fork.lock().unwrap().unwrap();
    assert!(traffic.before(&fork).is_empty(), "{:?}", traffic.before(&fork));
    (traffic.bytes, took)
}

async fn stock(retained: u32) -> (u64, u128) {
    let (mut old, new) = diverged_with(16, retained).await;
    let copied = Mutex::new(0);
    let source = new.source();
    let target = Target { data_dir: &old.data, config_file: None, source: &source };
    let begun = store::clock::now();
    let outcome = rewind(&binaries(), &target, |p| *copied.lock().unwrap() = p.copied_bytes).await;
    assert!(matches!(outcome, RewindOutcome::Rewound(_)), "{outcome:?}");
    streams(&mut old, &new).await;
    let took = store::clock::now().since(begun).as_millis();
    (copied.into_inner().unwrap(), took)
}

async fn streams(old: &mut Cluster, new: &Cluster) {
    old.follow(new);
    old.start().await;
    old.eventually("it streams", |c| {
        c.sql("SELECT status FROM pg_stat_wal_receiver") == "streaming"
    })
    .await;
}
