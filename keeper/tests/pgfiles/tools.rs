//! initdb, pg_basebackup and pg_rewind as the keeper runs them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::Mutex;

use keeper::postgres::binaries::PostgresBinaries;
use keeper::postgres::control::{ControlFile, ControlState};
use keeper::postgres::copy::{CopyPhase, CopyTerms, base_backup};
use keeper::postgres::initdb::initdb;
use keeper::postgres::rewind::{Damage, RewindOutcome, rewind};
use keeper::postgres::wal_scan::scan;
use proto::Timeline;
use proto::spec::{CrashRecovery, Initdb};

use crate::cluster::{Cluster, PASSWORD, SUPERUSER, binaries, directory, processes_with};
use crate::delta::target_of;

#[tokio::test]
async fn a_new_cluster_has_checksums_asks_for_the_password_and_trusts_nobody() {
    let mut cluster = Cluster::new(1).await;
    let control = ControlFile::read(&cluster.data).unwrap();
    assert!(control.data_checksums && control.is_clean());
    assert_eq!(control.wal_segment_size, 1 << 20);
    let hba = fs::read_to_string(cluster.data.join("pg_hba.conf")).unwrap();
    let rules: Vec<&str> = hba.lines().filter(|l| !l.starts_with('#') && !l.is_empty()).collect();
    assert!(!rules.is_empty() && rules.iter().all(|l| l.ends_with("scram-sha-256")), "{rules:?}");
    cluster.start().await;
    assert_eq!(cluster.sql("SELECT current_user"), SUPERUSER);
    let explicit = binaries().dir().to_owned();
    let found = PostgresBinaries::for_data_directory(Some(&explicit), &cluster.data);
    let mut major = found.unwrap().major();
    assert_eq!(major, control.major);
    fs::write(cluster.data.join("PG_VERSION"), "12\n").unwrap();
    major = 12;
    let error = PostgresBinaries::for_data_directory(None, &cluster.data).unwrap_err();
    assert!(error.to_string().contains(&format!("PostgreSQL {major}")), "{error}");
}

#[tokio::test]
async fn initdb_refuses_a_directory_with_anything_in_it_and_says_what_is_wrong() {
    let dir = directory();
    let file = dir.path().join("precious");
    fs::write(&file, "data").unwrap();
    let spec = Initdb::default();
    let error = initdb(&binaries(), &spec, dir.path(), SUPERUSER, PASSWORD).await.unwrap_err();
    assert!(error.to_string().contains("not empty"), "{error}");
    assert_eq!(fs::read_to_string(&file).unwrap(), "data");
    let wrong = Initdb { locale: "xx_XX.nonsense".into(), ..Initdb::default() };
    let fresh = dir.path().join("fresh");
    let error = initdb(&binaries(), &wrong, &fresh, SUPERUSER, PASSWORD).await.unwrap_err();
    assert!(error.to_string().contains("xx_XX.nonsense"), "{error}");
    assert!(!error.to_string().contains(PASSWORD));
}

#[tokio::test]
async fn a_copy_reports_progress_and_both_ends_of_its_wal() {
    let mut primary = Cluster::new(1).await;
    primary.start().await;
    primary.sql("CREATE TABLE t AS SELECT repeat('x', 1000) FROM generate_series(1, 20000)");
    let flushed = primary.lsn("SELECT pg_current_wal_flush_lsn()");
    let dir = directory();
    let into = dir.path().join("copy");
    let phases = Mutex::new(Vec::new());
    let copied =
        base_backup(&binaries(), &primary.source(), &into, &CopyTerms::default(), |progress| {
            phases.lock().unwrap().push(progress);
        })
        .await
        .unwrap();
    assert_eq!(copied.timeline, Timeline(1));
    assert!(copied.end >= flushed && copied.start < copied.end, "{copied:?}");
    let phases = phases.into_inner().unwrap();
    let most = phases.iter().map(|p| p.copied_bytes).max().unwrap();
    assert!(most > 20 << 20, "{phases:?}");
    assert_eq!(phases.last().unwrap().phase, CopyPhase::Syncing);
    assert!(scan(&into).unwrap().lsn >= copied.end);
    assert_eq!(fs::metadata(&into).unwrap().permissions().mode() & 0o777, 0o700);
    // A second copy does not go over the first.
    let error = base_backup(&binaries(), &primary.source(), &into, &CopyTerms::default(), |_| {})
        .await
        .unwrap_err();
    assert!(error.to_string().contains("not empty"), "{error}");
    // At 20 MB a second it takes longer than a second.
    let slow = dir.path().join("slow");
    let begun = store::clock::now();
    base_backup(
        &binaries(),
        &primary.source(),
        &slow,
        &CopyTerms { rate_mb: 20, ..CopyTerms::default() },
        |_| {},
    )
    .await
    .unwrap();
    let took = store::clock::now().since(begun);
    assert!(took.as_secs_f64() > 0.8 * most as f64 / f64::from(20 << 20), "{took:?} for {most}");
}

#[tokio::test]
async fn a_copy_that_cannot_log_in_says_so_and_an_abandoned_one_leaves_no_process() {
    let mut primary = Cluster::new(1).await;
    primary.start().await;
    let dir = directory();
    let mut stranger = primary.source();
    stranger.user = "stranger".into();
    let into = dir.path().join("copy");
    let error = base_backup(&binaries(), &stranger, &into, &CopyTerms::default(), |_| {})
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("stranger") && !error.contains(PASSWORD), "{error}");

    primary.sql("CREATE TABLE t AS SELECT repeat('x', 1000) FROM generate_series(1, 100000)");
    let into = dir.path().join("abandoned");
    let (begun, is_copying) = tokio::sync::oneshot::channel();
    let begun = Mutex::new(Some(begun));
    let (source, to) = (primary.source(), into.clone());
    let copying = tokio::spawn(async move {
        base_backup(&binaries(), &source, &to, &CopyTerms::default(), |progress| {
            if progress.phase == CopyPhase::Copying
                && let Some(begun) = begun.lock().unwrap().take()
            {
                let _ = begun.send(());
            }
        })
        .await
    });
    is_copying.await.unwrap();
    assert!(!processes_with(into.to_str().unwrap()).is_empty());
    copying.abort();
    assert!(copying.await.unwrap_err().is_cancelled());
    assert!(processes_with(into.to_str().unwrap()).is_empty());
}

/// An old primary with commits that nobody else has, and the promoted standby with others.
async fn diverged() -> (Cluster, Cluster) {
    let mut old = Cluster::new(1).await;
    old.start().await;
    old.sql(
        "CREATE TABLE t AS SELECT i, repeat('x', 500) AS text FROM generate_series(1, 2000) AS i",
    );
    old.sql("CHECKPOINT");
    let mut new = Cluster::empty();
    base_backup(&binaries(), &old.source(), &new.data, &CopyTerms::default(), |_| {})
        .await
        .unwrap();
    new.follow(&old);
    new.start().await;
    new.caught_up(&old).await;
    new.sql("ALTER SYSTEM SET primary_conninfo = ''");
    new.sql("SELECT pg_reload_conf()");
    new.eventually("it receives nothing", |c| {
        c.sql("SELECT 1 FROM pg_stat_wal_receiver").is_empty()
    })
    .await;
    old.sql("UPDATE t SET text = 'lost' WHERE i <= 100");
    old.crash();
    new.sql("SELECT pg_promote(wait => true)");
    new.sql("UPDATE t SET text = 'kept' WHERE i > 1900");
    (old, new)
}

#[tokio::test]
async fn a_rewound_primary_follows_the_new_one_and_its_lost_rows_are_gone() {
    let (mut old, new) = diverged().await;
    new.sql("CHECKPOINT");
    new.sql("CREATE ROLE rewinder LOGIN PASSWORD 'se''cret:\\x'");
    for function in [
        "pg_ls_dir(text, boolean, boolean)",
        "pg_stat_file(text, boolean)",
        "pg_read_binary_file(text)",
        "pg_read_binary_file(text, bigint, bigint, boolean)",
    ] {
        new.sql(&format!("GRANT EXECUTE ON FUNCTION pg_catalog.{function} TO rewinder"));
    }
    let end = scan(&old.data).unwrap();
    let source = keeper::postgres::source::Source { user: "rewinder".into(), ..new.source() };
    let target = target_of(&old, &source, CrashRecovery::Run);
    let outcome = rewind(&binaries(), &target, |_| {}).await;
    let RewindOutcome::Rewound(rewound) = outcome else { panic!("{outcome:?}") };
    assert_eq!((rewound.diverged_timeline, rewound.timeline), (Timeline(1), Timeline(2)));
    assert!(rewound.from_checkpoint < rewound.diverged_at && rewound.diverged_at < end.lsn);
    assert!(rewound.consistent_at > rewound.diverged_at);
    old.follow(&new);
    old.start().await;
    old.caught_up(&new).await;
    old.eventually("it has replayed", |c| {
        c.sql("SELECT count(*) FROM t WHERE text = 'kept'") == "100"
    })
    .await;
    assert_eq!(old.sql("SELECT count(*) FROM t WHERE text = 'lost'"), "0");
}

#[tokio::test]
async fn exit_status_0_without_a_checkpoint_on_the_new_timeline_is_not_taken_for_a_rewind() {
    let mut old = Cluster::new(1).await;
    old.start().await;
    old.sql("CREATE TABLE t (i int)");
    // The same server as source: one timeline, nothing to do, status 0.
    let mut other = Cluster::empty();
    base_backup(&binaries(), &old.source(), &other.data, &CopyTerms::default(), |_| {})
        .await
        .unwrap();
    other.start().await;
    other.sql("INSERT INTO t VALUES (1)");
    other.stop().await;
    let source = old.source();
    let target = target_of(&other, &source, CrashRecovery::Run);
    assert_eq!(rewind(&binaries(), &target, |_| {}).await, RewindOutcome::NotRequired);
}

#[tokio::test]
async fn a_rewind_that_cannot_begin_leaves_the_data_but_for_its_crash_recovery() {
    let (mut old, new) = diverged().await;
    let source = keeper::postgres::source::Source { user: "stranger".into(), ..new.source() };
    let target = target_of(&old, &source, CrashRecovery::Run);
    let outcome = rewind(&binaries(), &target, |_| {}).await;
    let RewindOutcome::Failed(failure) = outcome else { panic!("{outcome:?}") };
    assert_eq!(failure.damage, Damage::None);
    assert!(failure.problem.contains("stranger"), "{}", failure.problem);
    assert_eq!(ControlFile::read(&old.data).unwrap().state, ControlState::ShutDown);
    old.start().await;
    assert_eq!(old.sql("SELECT count(*) FROM t WHERE text = 'lost'"), "100");
    old.stop().await;

    let label = old.data.join("backup_label");
    fs::write(&label, "").unwrap();
    let source = new.source();
    let target = target_of(&old, &source, CrashRecovery::Run);
    let outcome = rewind(&binaries(), &target, |_| {}).await;
    let RewindOutcome::Failed(failure) = outcome else { panic!("{outcome:?}") };
    assert!(failure.problem.contains("backup_label"), "{}", failure.problem);
    assert_eq!(failure.damage, Damage::None);
}
