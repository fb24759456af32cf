//! pg_rewind through the gateway: what crosses the wire, what stays, and what a cut leaves behind.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Mutex;

use keeper::postgres::control::{ControlFile, ControlState};
use keeper::postgres::copy::{CopyProgress, CopyTerms, base_backup};
use keeper::postgres::fork::fork_of;
use keeper::postgres::gateway::Traffic;
use keeper::postgres::kept_wal::{ForkSegment, KEPT};
use keeper::postgres::rewind::{
    Damage, Delta, RewindOutcome, Rewound, Route, Target, rewind, rewind_delta,
};
use keeper::postgres::source::Source;
use keeper::postgres::wal_files::{self, Segment};
use keeper::postgres::wal_scan::scan;
use proto::spec::CrashRecovery;
use proto::{Lsn, Timeline};

use crate::cluster::{Cluster, PASSWORD, binaries, judge};
use crate::link::ADDRESSES;

const SEGMENT: u32 = 1 << 20;

/// An old primary that crashed with commits of its own, the promoted one, and `retained_mb` of WAL that both have.
pub async fn diverged(retained_mb: u32) -> (Cluster, Cluster) {
    diverged_with(SEGMENT >> 20, retained_mb).await
}

/// The same with segments of another size.
pub async fn diverged_with(segment_mb: u32, retained_mb: u32) -> (Cluster, Cluster) {
    diverged_from(Cluster::new(segment_mb).await, retained_mb, retained_mb + 256).await
}

/// The same from a cluster that was made before and is stopped; both keep `keep_mb` of WAL.
pub async fn diverged_from(mut old: Cluster, retained_mb: u32, keep_mb: u32) -> (Cluster, Cluster) {
    old.keep_wal(keep_mb);
    old.start().await;
    let new = joined(&old, keep_mb, retained_mb).await;
    part(&mut old, &new).await;
    (old, new)
}

/// A standby of the running `primary`, with rows that both have, after `retained_mb` of WAL and a checkpoint.
pub async fn joined(primary: &Cluster, keep_mb: u32, retained_mb: u32) -> Cluster {
    primary.sql(
        "CREATE TABLE t AS SELECT i, repeat('x', 500) AS text FROM generate_series(1, 4000) i",
    );
    let mut new = Cluster::empty();
    new.link = primary.link.map(|_| ADDRESSES[1]);
    base_backup(&binaries(), &primary.source(), &new.data, &CopyTerms::default(), |_| {})
        .await
        .unwrap();
    new.follow(primary);
    new.keep_wal(keep_mb);
    new.start().await;
    retain(primary, &new, retained_mb).await;
    primary.sql("CHECKPOINT");
    primary.sql("INSERT INTO t VALUES (0, 'common')");
    new.caught_up(primary).await;
    new
}

/// Writes WAL, no faster than the standby receives it.
async fn retain(primary: &Cluster, standby: &Cluster, megabytes: u32) {
    // At most 256 MB in one statement: it is made in memory, message by message.
    for rest in (0..megabytes).step_by(256) {
        let messages = 256.min(megabytes - rest);
        primary.sql(&format!(
            "SELECT count(pg_logical_emit_message(false, '', repeat('w', 1000000))) FROM generate_series(1, {messages})"
        ));
        standby.caught_up(primary).await;
    }
}

/// Cuts the stream, gives the old primary commits of its own, crashes it and promotes the new one.
pub async fn part(old: &mut Cluster, new: &Cluster) {
    cut_off(new).await;
    diverge(old);
    old.crash();
    promote(new);
}

/// Has a standby receive nothing any more.
pub async fn cut_off(standby: &Cluster) {
    standby.sql("ALTER SYSTEM SET primary_conninfo = ''");
    standby.sql("SELECT pg_reload_conf()");
    standby
        .eventually("it receives nothing", |c| {
            c.sql("SELECT 1 FROM pg_stat_wal_receiver").is_empty()
        })
        .await;
}

/// Gives the old primary commits that the next one will not have.
pub fn diverge(old: &Cluster) {
    old.sql("UPDATE t SET text = 'lost' WHERE i BETWEEN 1 AND 100");
    old.sql("CREATE TABLE lost AS SELECT 1");
}

/// Promotes a standby, and gives it commits of its own.
pub fn promote(standby: &Cluster) {
    standby.sql("SELECT pg_promote(wait => true)");
    standby.sql("UPDATE t SET text = 'kept' WHERE i > 3900");
    standby.sql("CREATE TABLE kept AS SELECT i FROM generate_series(1, 1000) i");
    standby.sql("CHECKPOINT");
}

/// Returns where the histories on both disks part.
pub fn fork(old: &Cluster, new: &Cluster) -> (Timeline, Lsn) {
    let newest = ControlFile::read(&new.data).unwrap().timeline();
    let source = wal_files::history(&new.pg_wal(), newest).unwrap();
    let own = scan(&old.data).unwrap();
    let target = wal_files::history(&old.pg_wal(), own.timeline).unwrap();
    let fork = fork_of(&target, &source).unwrap();
    (fork.timeline, fork.until.unwrap())
}

/// What a keeper notes besides.
pub struct Notes {
    pub fork: Mutex<Option<ForkSegment>>,
    pub crash_recovery: CrashRecovery,
    pub saved: Mutex<BTreeMap<String, u64>>,
}

impl Default for Notes {
    /// Of the two ways that which is our own: the other one is PostgreSQL's, and `tools.rs` takes it.
    fn default() -> Self {
        Self {
            fork: Mutex::default(),
            crash_recovery: CrashRecovery::Skip,
            saved: Mutex::default(),
        }
    }
}

pub async fn rejoin(
    old: &Cluster,
    new: &Cluster,
    expected: (Timeline, Lsn),
    notes: &Notes,
    progress: impl Fn(CopyProgress) + Send,
) -> RewindOutcome {
    rejoin_by(old, &new.source(), expected, notes, progress).await
}

/// The same, reaching the source as `source` says.
pub async fn rejoin_by(
    old: &Cluster,
    source: &Source,
    expected: (Timeline, Lsn),
    notes: &Notes,
    progress: impl Fn(CopyProgress) + Send,
) -> RewindOutcome {
    let on_fork = |fork: ForkSegment| {
        *notes.fork.lock().unwrap() = Some(fork);
        Ok(())
    };
    let on_diverged = |path: &Path, name: &str| {
        notes.saved.lock().unwrap().insert(name.to_owned(), fs::metadata(path)?.len());
        Ok(())
    };
    let delta = Delta {
        password: PASSWORD,
        place: old.root(),
        expected,
        on_fork: &on_fork,
        on_diverged: &on_diverged,
    };
    let target = target_of(old, source, notes.crash_recovery);
    rewind_delta(&binaries(), &target, &delta, progress).await
}

pub fn target_of<'a>(
    member: &'a Cluster,
    source: &'a Source,
    crash_recovery: CrashRecovery,
) -> Target<'a> {
    Target { data_dir: &member.data, config_file: None, source, crash_recovery, end: None }
}

pub fn through_gateway(outcome: RewindOutcome) -> (Rewound, Traffic) {
    match outcome {
        RewindOutcome::Rewound(rewound) => match rewound.route.clone() {
            Route::Gateway(traffic) => (rewound, traffic),
            Route::Stock(why) => panic!("without the gateway: {why}"),
        },
        other => panic!("{other:?}"),
    }
}

/// Starts it as a standby and compares it with its primary, row by row and with PostgreSQL's own checkers.
pub async fn joins_equal(old: &mut Cluster, new: &Cluster) {
    old.follow(new);
    old.start().await;
    let has_amcheck = "SELECT count(*) FROM pg_available_extensions WHERE name = 'amcheck'";
    let has_amcheck = new.sql(has_amcheck) == "1";
    if has_amcheck {
        new.sql("CREATE EXTENSION IF NOT EXISTS amcheck");
    }
    new.sql("INSERT INTO t VALUES (-1, 'after')");
    let sum = "SELECT md5(string_agg(t::text, ',' ORDER BY i, text)) FROM t";
    let theirs = new.sql(sum);
    old.eventually("it has replayed to the same rows", |c| {
        // Nothing of what was given up is seen from the first answer on.
        assert_eq!(c.sql("SELECT count(*) FROM t WHERE text = 'lost'"), "0");
        c.sql(sum) == theirs
    })
    .await;
    assert_eq!(old.sql("SELECT to_regclass('lost') IS NULL, count(*) FROM kept"), "t|1000");
    if has_amcheck {
        check_pages(old);
    }
    old.stop().await;
    let (listed, errors) = judge("pg_checksums", &["--check", "-D", old.data.to_str().unwrap()]);
    assert!(listed.contains("Bad checksums:  0"), "{listed}{errors}");
    let left = fs::read_dir(old.pg_wal()).unwrap().map(|e| e.unwrap().file_name());
    let left: Vec<_> = left.filter(|n| n.to_string_lossy().ends_with(KEPT)).collect();
    assert!(left.is_empty(), "{left:?}");
}

/// Has PostgreSQL's own checkers look at every table and index.
fn check_pages(old: &Cluster) {
    let heaps =
        "SELECT count(*) FROM pg_class c, verify_heapam(c.oid) WHERE c.relkind IN ('r', 't', 'm')";
    assert_eq!(old.sql(heaps), "0");
    // An error names the index and what is wrong with it.
    old.sql(
        "SELECT count(bt_index_check(i.indexrelid, true)) FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
          JOIN pg_am a ON a.oid = c.relam WHERE a.amname = 'btree'",
    );
}

pub fn segments_before(cluster: &Cluster, fork: &ForkSegment) -> BTreeMap<String, Vec<u8>> {
    let segments = wal_files::segments(&cluster.pg_wal(), SEGMENT).unwrap();
    segments
        .into_iter()
        .filter(|s| s.number < fork.number)
        .map(|s| s.file_name(SEGMENT))
        .map(|name| (name.clone(), fs::read(cluster.pg_wal().join(name)).unwrap()))
        .collect()
}

#[tokio::test]
async fn no_wal_from_before_the_fork_is_copied_and_all_that_was_there_stays() {
    let (mut old, new) = diverged(60).await;
    let (notes, expected) = (Notes::default(), fork(&old, &new));
    let end = scan(&old.data).unwrap().lsn;
    let (rewound, traffic) = through_gateway(rejoin(&old, &new, expected, &notes, |_| {}).await);
    assert_eq!((rewound.diverged_timeline, rewound.diverged_at), expected);
    let fork = notes.fork.lock().unwrap().unwrap();
    assert!(traffic.before(&fork).is_empty(), "{:?}", traffic.before(&fork));
    assert!(traffic.files.len() > 100 && traffic.bytes < 24 << 20, "{} bytes", traffic.bytes);
    // All that diverged was handed out before it went, and nothing of it is left to be replayed.
    let diverged = Segment::at(expected.0, expected.1, SEGMENT).file_name(SEGMENT);
    assert!(notes.saved.lock().unwrap().contains_key(&diverged));
    assert!(end > expected.1 && !old.pg_wal().join(diverged).exists());
    let (ours, theirs) = (segments_before(&old, &fork), segments_before(&new, &fork));
    let both: Vec<_> = ours.keys().filter(|name| theirs.contains_key(*name)).collect();
    assert!(both.len() >= 50, "{} segments", both.len());
    assert!(both.iter().all(|name| ours[*name] == theirs[*name]));
    joins_equal(&mut old, &new).await;
}

#[tokio::test]
async fn of_the_segment_that_the_source_writes_to_only_what_is_written_comes() {
    let (mut old, new) = diverged_with(16, 2).await;
    let (notes, expected) = (Notes::default(), fork(&old, &new));
    let newest =
        format!("pg_wal/{}", new.sql("SELECT pg_walfile_name(pg_current_wal_insert_lsn())"));
    let (_, traffic) = through_gateway(rejoin(&old, &new, expected, &notes, |_| {}).await);
    let fetched = traffic.files[&newest];
    assert!(fetched < 8 << 20, "{fetched} bytes of {newest}");
    assert_eq!(fs::metadata(old.data.join(&newest)).unwrap().len(), 16 << 20);
    joins_equal(&mut old, &new).await;
}

#[tokio::test]
async fn stock_pg_rewind_copies_all_wal_that_the_source_retains_and_ours_does_not() {
    let (old, new) = diverged(80).await;
    old.keep_data();
    let expected = fork(&old, &new);
    let (_, traffic) =
        through_gateway(rejoin(&old, &new, expected, &Notes::default(), |_| {}).await);
    let ours = traffic.bytes;
    old.put_back();
    let most = Mutex::new(0);
    let source = new.source();
    let target = target_of(&old, &source, CrashRecovery::Run);
    let outcome = rewind(&binaries(), &target, |p| *most.lock().unwrap() = p.copied_bytes).await;
    assert!(matches!(outcome, RewindOutcome::Rewound(_)), "{outcome:?}");
    let stock = most.into_inner().unwrap();
    assert!(stock > ours + (60 << 20), "stock {stock}, ours {ours}");
}

#[tokio::test]
async fn members_fail_back_and_forth_over_five_timelines() {
    let (mut down, mut up) = diverged(5).await;
    for timeline in 2..=5 {
        let (notes, expected) = (Notes::default(), fork(&down, &up));
        assert_eq!(expected.0, Timeline(timeline - 1));
        let (_, traffic) = through_gateway(rejoin(&down, &up, expected, &notes, |_| {}).await);
        let fork = notes.fork.lock().unwrap().unwrap();
        assert!(traffic.before(&fork).is_empty(), "{:?}", traffic.before(&fork));
        joins_equal(&mut down, &up).await;
        if timeline == 5 {
            break;
        }
        up.sql("DROP TABLE kept");
        up.sql("CHECKPOINT");
        down.start().await;
        down.caught_up(&up).await;
        part(&mut up, &down).await;
        std::mem::swap(&mut up, &mut down);
    }
}

#[tokio::test]
async fn a_fork_that_pg_rewind_sees_elsewhere_ends_the_rewind_with_nothing_changed() {
    let (mut old, new) = diverged(2).await;
    let (timeline, lsn) = fork(&old, &new);
    let wrong = (timeline, Lsn(lsn.0 + 8));
    let before = ControlFile::read(&old.data).unwrap();
    let outcome = rejoin(&old, &new, wrong, &Notes::default(), |_| {}).await;
    let RewindOutcome::Failed(failure) = outcome else { panic!("{outcome:?}") };
    assert_eq!(failure.damage, Damage::None);
    assert!(failure.problem.contains("sees the fork at"), "{}", failure.problem);
    // The end of WAL that was recorded in it for pg_rewind is taken out again.
    assert_eq!(ControlFile::read(&old.data).unwrap(), before);
    assert_eq!(before.state, ControlState::InProduction);
    old.start().await;
    assert_eq!(old.sql("SELECT count(*) FROM t WHERE text = 'lost'"), "100");
}

#[tokio::test]
async fn a_wrong_password_and_a_source_that_is_gone_cost_nothing_but_a_retry() {
    let (old, mut new) = diverged(2).await;
    let expected = fork(&old, &new);
    let delta = Delta {
        place: old.root(),
        password: "wrong",
        expected,
        on_fork: &|_| panic!("nothing was listed"),
        on_diverged: &|_, _| panic!("nothing was rewound"),
    };
    let source = new.source();
    let target = target_of(&old, &source, CrashRecovery::Run);
    let outcome = rewind_delta(&binaries(), &target, &delta, |_| {}).await;
    let RewindOutcome::Failed(failure) = outcome else { panic!("{outcome:?}") };
    assert_eq!(failure.damage, Damage::None);
    assert!(failure.problem.contains("password"), "{}", failure.problem);
    new.stop().await;
    let outcome = rejoin(&old, &new, expected, &Notes::default(), |_| {}).await;
    let RewindOutcome::Failed(failure) = outcome else { panic!("{outcome:?}") };
    assert_eq!(failure.damage, Damage::None);
    assert!(failure.problem.contains("connect to the source"), "{}", failure.problem);
}
