//! The control file, judged by `pg_controldata`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use keeper::postgres::control::ControlFile;

use crate::cluster::{Cluster, judge};

fn fields(cluster: &Cluster) -> BTreeMap<String, String> {
    let (text, _) = judge("pg_controldata", &["-D", cluster.data.to_str().unwrap()]);
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.trim().to_owned(), value.trim().to_owned()))
        .collect()
}

fn assert_same(cluster: &Cluster) -> ControlFile {
    let control = ControlFile::read(&cluster.data).unwrap();
    let judged = fields(cluster);
    for (name, ours) in [
        ("Database system identifier", control.system_identifier.to_string()),
        ("pg_control version number", control.control_version.to_string()),
        ("Catalog version number", control.catalog_version.to_string()),
        ("Database cluster state", control.state.describe().to_owned()),
        ("Latest checkpoint location", control.checkpoint.to_string()),
        ("Latest checkpoint's REDO location", control.redo.to_string()),
        ("Latest checkpoint's TimeLineID", control.checkpoint_timeline.to_string()),
        ("Latest checkpoint's PrevTimeLineID", control.previous_timeline.to_string()),
        ("Minimum recovery ending location", control.min_recovery_point.to_string()),
        ("Min recovery ending loc's timeline", control.min_recovery_timeline.to_string()),
        ("Bytes per WAL segment", control.wal_segment_size.to_string()),
        ("Data page checksum version", u32::from(control.data_checksums).to_string()),
        ("wal_log_hints setting", if control.wal_log_hints { "on" } else { "off" }.to_owned()),
    ] {
        assert_eq!(judged[name], ours, "{name}");
    }
    control
}

#[tokio::test]
async fn the_control_file_says_what_pg_controldata_says_in_every_state() {
    let mut primary = Cluster::new(1).await;
    assert!(assert_same(&primary).is_clean());
    primary.start().await;
    primary.sql("CREATE TABLE t AS SELECT generate_series(1, 1000) AS i; CHECKPOINT");
    assert_same(&primary);
    primary.crash();
    let crashed = assert_same(&primary);
    assert!(!crashed.is_clean() && crashed.wal_log_hints && crashed.wal_segment_size == 1 << 20);
    assert_eq!(u32::from(crashed.data_checksums), 1);
}

#[tokio::test]
async fn a_control_file_is_read_whole_while_the_server_writes_it() {
    let mut primary = Cluster::new(1).await;
    primary.start().await;
    let (data, done) = (primary.data.clone(), Arc::new(AtomicBool::new(false)));
    let is_done = done.clone();
    let reader = tokio::task::spawn_blocking(move || {
        let mut checkpoints = BTreeSet::new();
        while !is_done.load(Ordering::Relaxed) {
            checkpoints.insert(ControlFile::read(&data).unwrap().checkpoint);
        }
        checkpoints.len()
    });
    for _ in 0..20 {
        primary.sql("SELECT pg_logical_emit_message(false, '', 'x')");
        primary.sql("CHECKPOINT");
    }
    done.store(true, Ordering::Relaxed);
    assert!(reader.await.unwrap() > 10, "the file changed while it was read");
}
