//! The end of WAL that real servers wrote, judged by `pg_waldump` and by PostgreSQL's own recovery.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use keeper::postgres::control::{ControlFile, ControlState};
use keeper::postgres::copy::{CopyTerms, base_backup};
use keeper::postgres::wal_files::{Segment, newest_timeline_holding};
use keeper::postgres::wal_scan::{EndOfWal, scan};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use proto::{Lsn, Timeline};

use crate::cluster::{Cluster, binaries, judge};

/// What `pg_waldump` lists: where each record begins, and where it says the log ends, if it says so.
struct Dump {
    records: Vec<Lsn>,
    end: Option<Lsn>,
}

fn dump(cluster: &Cluster, from: Lsn, timeline: Timeline) -> Dump {
    let pg_wal = cluster.pg_wal();
    let (start, timeline) = (from.to_string(), timeline.to_string());
    let args = ["-p", pg_wal.to_str().unwrap(), "-t", &timeline, "-s", &start];
    let (listed, errors) = judge("pg_waldump", &args);
    let records: Vec<Lsn> = listed
        .lines()
        .filter_map(|line| line.split_once("lsn: ")?.1.split(',').next()?.parse().ok())
        .collect();
    assert!(!records.is_empty(), "pg_waldump lists nothing from {from}: {errors}");
    let end = errors
        .split_once("invalid record length at ")
        .and_then(|(_, text)| text.split(':').next()?.parse().ok());
    Dump { records, end }
}

fn assert_judged(cluster: &Cluster, end: &EndOfWal, from: Lsn, timeline: Timeline) {
    let judged = dump(cluster, from, timeline);
    assert_eq!(judged.records.last(), Some(&end.last_record), "{end:?}");
    if let Some(judged_end) = judged.end {
        // It names the place of the next record: past the page header where the last one filled its page.
        let gap = judged_end.bytes_ahead_of(end.lsn);
        assert!(judged_end >= end.lsn && gap <= 40, "{end:?}, pg_waldump says {judged_end}");
        assert!(
            gap == 0 || end.lsn.0.is_multiple_of(8192),
            "{end:?}, pg_waldump says {judged_end}"
        );
    }
}

/// Records of all kinds: many small ones, some of megabytes, segment switches, full pages, aborted transactions.
fn load(cluster: &Cluster, rounds: u32) {
    cluster.sql("CREATE TABLE IF NOT EXISTS t (i bigserial PRIMARY KEY, text text)");
    for _ in 0..rounds {
        cluster.sql(
            "INSERT INTO t (text) SELECT repeat(md5(i::text), 10) FROM generate_series(1, 5000) AS i",
        );
        cluster.sql("UPDATE t SET text = text || 'x' WHERE i % 3 = 0");
        cluster.sql("BEGIN; DELETE FROM t; ROLLBACK");
        cluster.sql("SELECT pg_logical_emit_message(true, '', repeat('y', 3 << 20))");
        cluster.sql("SELECT pg_switch_wal()");
    }
    cluster.sql("SELECT pg_logical_emit_message(true, '', 'the last word')");
}

/// Has it compress page images by this method, if its build knows it.
fn compress(cluster: &Cluster, method: &str) {
    let known = "SELECT unnest(enumvals) FROM pg_settings WHERE name = 'wal_compression'";
    if cluster.sql(known).lines().any(|value| value == method) {
        cluster.sql(&format!("ALTER SYSTEM SET wal_compression = {method}"));
        cluster.sql("SELECT pg_reload_conf()");
    }
}

#[tokio::test]
async fn the_end_of_a_crashed_primary_is_where_its_own_recovery_ends() {
    for (segment_size_mb, method) in [(1, "pglz"), (4, "lz4"), (16, "off"), (64, "zstd")] {
        let mut primary = Cluster::new(segment_size_mb).await;
        primary.start().await;
        compress(&primary, method);
        load(&primary, 2);
        primary.sql("CHECKPOINT");
        load(&primary, 3);
        let flushed = primary.lsn("SELECT pg_current_wal_flush_lsn()");
        primary.crash();
        let end = scan(&primary.data).unwrap();
        assert!(end.lsn >= flushed, "{end:?}, flushed to {flushed}");
        let control = ControlFile::read(&primary.data).unwrap();
        assert_judged(&primary, &end, control.checkpoint, Timeline(1));
        primary.start().await;
        let redone = format!("redo done at {} ", end.last_record);
        assert!(primary.log().contains(&redone), "{end:?}\n{}", primary.log());
    }
}

/// Kills every process of `primary` while three sessions run `statement`, once they have written 3 MB.
pub fn crash_in_a_load(primary: &mut Cluster, statement: &str) {
    let size = |c: &Cluster| c.lsn("SELECT pg_current_wal_insert_lsn()");
    let before = size(primary);
    std::thread::scope(|scope| {
        let shared = &*primary;
        let workers: Vec<_> =
            (0..3).map(|_| scope.spawn(move || shared.try_sql(statement))).collect();
        let deadline = store::clock::now() + std::time::Duration::from_secs(60);
        while size(shared).bytes_ahead_of(before) < 3 << 20 {
            assert!(store::clock::now() < deadline);
        }
        // The clients end because their server is gone.
        let postmaster = fs::read_to_string(shared.data.join("postmaster.pid")).unwrap();
        let pid: i32 = postmaster.lines().next().unwrap().parse().unwrap();
        for victim in crate::cluster::children_of(pid).into_iter().chain([pid]) {
            let _ = kill(Pid::from_raw(victim), Signal::SIGKILL);
        }
        for worker in workers {
            assert!(!worker.join().unwrap().status.success(), "it ended before the crash");
        }
    });
    primary.crash();
}

#[tokio::test]
async fn crashes_in_the_middle_of_a_load_are_judged_alike() {
    let mut primary = Cluster::new(1).await;
    primary.start().await;
    primary.sql("CREATE TABLE t (text text)");
    for round in 0..5 {
        crash_in_a_load(
            &mut primary,
            "DO $$ BEGIN LOOP INSERT INTO t SELECT repeat('z', (random() * 3000)::int); COMMIT; END LOOP; END $$",
        );
        let end = scan(&primary.data).unwrap();
        let control = ControlFile::read(&primary.data).unwrap();
        assert_judged(&primary, &end, control.checkpoint, Timeline(1));
        primary.start().await;
        let redone = format!("redo done at {} ", end.last_record);
        assert!(primary.log().contains(&redone), "round {round}: {end:?}\n{}", primary.log());
    }
}

#[tokio::test]
async fn the_end_of_a_clean_shutdown_is_that_of_its_checkpoint() {
    let mut primary = Cluster::new(16).await;
    primary.start().await;
    load(&primary, 1);
    primary.stop().await;
    let end = scan(&primary.data).unwrap();
    let control = ControlFile::read(&primary.data).unwrap();
    assert_eq!(control.state, ControlState::ShutDown);
    assert_eq!(end.last_record, control.checkpoint);
    assert_judged(&primary, &end, control.checkpoint, Timeline(1));
}

#[tokio::test]
async fn a_torn_tail_ends_at_the_record_before() {
    let mut primary = Cluster::new(1).await;
    primary.start().await;
    load(&primary, 1);
    primary.crash();
    let control = ControlFile::read(&primary.data).unwrap();
    let whole = scan(&primary.data).unwrap();
    let mut records = dump(&primary, control.checkpoint, Timeline(1)).records;
    let mut end = whole;
    // Zeroes in the last record, again and again: each time one record less.
    for _ in 0..20 {
        assert_eq!(records.pop(), Some(end.last_record));
        zero(&primary.pg_wal(), Lsn(end.last_record.0 + 16), Lsn(end.last_record.0 + 24));
        let torn = scan(&primary.data).unwrap();
        assert_eq!(records.last(), Some(&torn.last_record), "{torn:?}");
        assert!(torn.lsn <= end.last_record && end.last_record.0 - torn.lsn.0 <= 40, "{torn:?}");
        end = torn;
    }
    // A file that ends early is no better than zeroes.
    let segment = Segment::at(Timeline(1), end.last_record, 1 << 20).file_name(1 << 20);
    let file = OpenOptions::new().write(true).open(primary.pg_wal().join(segment)).unwrap();
    file.set_len((end.last_record.0 + 8) % (1 << 20)).unwrap();
    assert!(scan(&primary.data).unwrap().lsn <= end.last_record);
}

fn zero(pg_wal: &Path, from: Lsn, to: Lsn) {
    for position in from.0..to.0 {
        let name = Segment::at(Timeline(1), Lsn(position), 1 << 20).file_name(1 << 20);
        let file = OpenOptions::new().write(true).open(pg_wal.join(name)).unwrap();
        file.write_all_at(&[0], position % (1 << 20)).unwrap();
    }
}

async fn pair() -> (Cluster, Cluster) {
    let mut primary = Cluster::new(1).await;
    primary.start().await;
    let standby = standby_of(&primary).await;
    (primary, standby)
}

async fn standby_of(primary: &Cluster) -> Cluster {
    let mut standby = Cluster::empty();
    base_backup(&binaries(), &primary.source(), &standby.data, &CopyTerms::default(), |_| {})
        .await
        .unwrap();
    standby.follow(primary);
    standby.start().await;
    standby
}

#[tokio::test]
async fn a_running_standby_that_receives_nothing_and_a_crashed_one_show_all_that_they_received() {
    let (primary, mut standby) = pair().await;
    standby
        .eventually("it streams", |c| !c.sql("SELECT 1 FROM pg_stat_wal_receiver").is_empty())
        .await;
    standby.sql("SELECT pg_wal_replay_pause()");
    load(&primary, 2);
    standby.caught_up(&primary).await;
    standby.sql("ALTER SYSTEM SET primary_conninfo = ''");
    // While replay is paused nobody tells the receiver to end: it is ended by its pid.
    let receiver = standby.sql("SELECT pid, pg_reload_conf() FROM pg_stat_wal_receiver");
    let pid = Pid::from_raw(receiver.split('|').next().unwrap().parse().unwrap());
    kill(pid, Signal::SIGTERM).unwrap();
    standby
        .eventually("it receives nothing", |c| {
            c.sql("SELECT 1 FROM pg_stat_wal_receiver").is_empty()
        })
        .await;
    let received = standby.lsn("SELECT pg_last_wal_receive_lsn()");
    let replayed = standby.lsn("SELECT pg_last_wal_replay_lsn()");
    let running = scan(&standby.data).unwrap();
    assert_eq!(running.lsn, received, "{running:?}");
    assert!(running.lsn > replayed);
    standby.crash();
    assert_eq!(scan(&standby.data).unwrap(), running);
    let control = ControlFile::read(&standby.data).unwrap();
    assert_judged(&standby, &running, control.checkpoint, Timeline(1));
    let newest = newest_timeline_holding(&standby.pg_wal(), running.lsn, 1 << 20).unwrap();
    assert_eq!(newest, Some(Timeline(1)));
}

#[tokio::test]
async fn the_log_is_followed_over_a_promotion_on_the_promoted_and_on_its_follower() {
    let (mut old, mut new) = pair().await;
    let mut third = standby_of(&old).await;
    load(&old, 1);
    for standby in [&new, &third] {
        standby.caught_up(&old).await;
    }
    old.crash();
    let switch_point = scan(&old.data).unwrap().lsn;
    third.stop().await;
    new.sql("SELECT pg_promote(wait => true)");
    third.follow(&new);
    third.start().await;
    new.sql("INSERT INTO t VALUES (-1, 'on timeline 2')");
    third.caught_up(&new).await;
    third.eventually("it replays", |c| !c.sql("SELECT 1 FROM t WHERE i = -1").is_empty()).await;
    for cluster in [&mut new, &mut third] {
        cluster.crash();
        let end = scan(&cluster.data).unwrap();
        assert_eq!(end.timeline, Timeline(2), "{end:?}\n{}", cluster.log());
        assert!(end.lsn > switch_point);
        assert_judged(cluster, &end, switch_point, Timeline(2));
        let newest = |lsn| newest_timeline_holding(&cluster.pg_wal(), lsn, 1 << 20).unwrap();
        assert_eq!((newest(end.lsn), newest(switch_point)), (Some(Timeline(2)), Some(Timeline(1))));
    }
    let follower = ControlFile::read(&third.data).unwrap();
    // This is why the control file's timeline is not enough: nothing of timeline 2 is in it yet.
    assert_eq!(follower.timeline(), Timeline(1));
}

/// `cargo test --release -p pgdeputy-keeper --test pgfiles -- --ignored --nocapture`
#[tokio::test]
#[ignore = "a measurement that takes a gigabyte of disk"]
async fn a_gigabyte_of_small_records_is_scanned_in_two_seconds() {
    let mut primary = Cluster::new(16).await;
    primary.start().await;
    primary.sql("CREATE TABLE t (i bigserial PRIMARY KEY, text text)");
    primary.sql("CHECKPOINT");
    let from = primary.lsn("SELECT pg_current_wal_insert_lsn()");
    while primary.lsn("SELECT pg_current_wal_insert_lsn()").bytes_ahead_of(from) < 900 << 20 {
        primary
            .sql("INSERT INTO t (text) SELECT md5(i::text) FROM generate_series(1, 300000) AS i");
    }
    primary.crash();
    for _ in 0..3 {
        let begun = store::clock::now();
        let end = scan(&primary.data).unwrap();
        let seconds = store::clock::now().since(begun).as_secs_f64();
        let megabytes = end.lsn.bytes_ahead_of(from) >> 20;
        println!("{megabytes} MB in {seconds:.2} s: {:.0} MB/s", megabytes as f64 / seconds);
        assert!(cfg!(debug_assertions) || megabytes as f64 / seconds > 500.0);
    }
}
