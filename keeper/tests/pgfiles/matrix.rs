//! Each way in which two members part, and the way back from it: afterwards all rows, pages and kept WAL are those of the
//! primary. With every version by `make test-versions`.
//!
//! Elsewhere: five timelines of failing back (`delta.rs`), received and never replayed (`prefix.rs`), interruptions
//! (`interrupted.rs`).

use keeper::postgres::copy::{CopyTerms, base_backup};
use keeper::postgres::stopped::{self, Pages};
use keeper::postgres::wal_scan::scan;
use proto::Timeline;
use proto::spec::CrashRecovery;

use crate::cluster::{Cluster, binaries};
use crate::delta::{
    Notes, cut_off, diverge, diverged, fork, joined, joins_equal, promote, rejoin, segments_before,
    through_gateway,
};
use crate::scan_real::crash_in_a_load;

const BOTH: [CrashRecovery; 2] = [CrashRecovery::Run, CrashRecovery::Skip];

/// Commits what nobody else will have, until its server is gone.
const LOSE: &str = "DO $$ BEGIN LOOP
     INSERT INTO t SELECT -7, 'lost' FROM generate_series(1, 50);
     UPDATE t SET text = 'lost' WHERE i = (SELECT (200 + random() * 3000)::int);
     COMMIT; END LOOP; END $$";

/// Rewinds `old`, and shows that nothing of it is left and that its WAL from before the fork is the source's.
async fn is_rewound(case: &str, old: &mut Cluster, new: &Cluster, crash_recovery: CrashRecovery) {
    let notes = Notes { crash_recovery, ..Notes::default() };
    let expected = fork(old, new);
    let (rewound, traffic) = through_gateway(rejoin(old, new, expected, &notes, |_| {}).await);
    assert_eq!((rewound.diverged_timeline, rewound.diverged_at), expected, "{case}");
    let fork = notes.fork.lock().unwrap().unwrap();
    assert!(traffic.before(&fork).is_empty(), "{case}: {:?}", traffic.before(&fork));
    let (ours, theirs) = (segments_before(old, &fork), segments_before(new, &fork));
    let both: Vec<_> = ours.keys().filter(|name| theirs.contains_key(*name)).collect();
    assert!(!both.is_empty() && both.iter().all(|name| ours[*name] == theirs[*name]), "{case}");
    joins_equal(old, new).await;
    println!("matrix: case={case} crash_recovery={crash_recovery:?} way=rewind equal");
}

/// A primary and a standby of it, not yet parted.
async fn pair() -> (Cluster, Cluster) {
    let mut old = Cluster::new(1).await;
    old.start().await;
    let new = joined(&old, 0, 5).await;
    (old, new)
}

#[tokio::test]
#[ignore = "make test-versions"]
async fn a_primary_that_crashed_idle_or_in_a_load_is_rewound() {
    for crash_recovery in BOTH {
        let (mut old, new) = diverged(5).await;
        is_rewound("crash-idle", &mut old, &new, crash_recovery).await;

        let (mut old, new) = pair().await;
        cut_off(&new).await;
        diverge(&old);
        crash_in_a_load(&mut old, LOSE);
        promote(&new);
        is_rewound("crash-in-a-load", &mut old, &new, crash_recovery).await;
    }
}

#[tokio::test]
#[ignore = "make test-versions"]
async fn a_primary_that_was_stopped_past_the_fork_is_rewound() {
    let (mut old, new) = pair().await;
    cut_off(&new).await;
    diverge(&old);
    old.stop().await;
    promote(&new);
    let disk = stopped::read(&old.data, Timeline(1)).unwrap();
    assert_eq!(disk.pages, Pages::Primary { timeline: Timeline(1), clean: true });
    is_rewound("clean-stop", &mut old, &new, CrashRecovery::Run).await;
}

#[tokio::test]
#[ignore = "make test-versions"]
async fn a_primary_that_handed_over_has_nothing_to_take_back_and_follows() {
    let (mut old, new) = pair().await;
    // It ends once its standby has all of its WAL, the checkpoint of the end included.
    old.stop().await;
    new.eventually("it has replayed to the end", |c| {
        c.sql("SELECT pg_last_wal_replay_lsn() = pg_last_wal_receive_lsn()") == "t"
    })
    .await;
    promote(&new);
    let end = scan(&old.data).unwrap();
    let expected = fork(&old, &new);
    assert!(end.lsn <= expected.1 && end.timeline == expected.0, "{end:?} {expected:?}");
    joins_equal(&mut old, &new).await;
    println!("matrix: case=switchover way=follow equal");
}

#[tokio::test]
#[ignore = "make test-versions"]
async fn a_standby_that_replayed_past_the_fork_is_rewound() {
    let (mut primary, next) = pair().await;
    let mut ahead = Cluster::empty();
    base_backup(&binaries(), &primary.source(), &ahead.data, &CopyTerms::default(), |_| {})
        .await
        .unwrap();
    ahead.follow(&primary);
    ahead.start().await;
    cut_off(&next).await;
    diverge(&primary);
    ahead.caught_up(&primary).await;
    ahead
        .eventually("it has replayed what is lost", |c| {
            c.sql("SELECT to_regclass('lost') IS NOT NULL") == "t"
        })
        .await;
    // A restartpoint writes its pages, and is the common checkpoint's successor on its own timeline.
    ahead.stop().await;
    primary.crash();
    promote(&next);
    let end = scan(&ahead.data).unwrap();
    let disk = stopped::read(&ahead.data, end.timeline).unwrap();
    let (_, fork) = fork(&ahead, &next);
    let Pages::Replayed { lsn, .. } = disk.pages else { panic!("{disk:?}") };
    assert!(lsn > fork && disk.cannot_rewind.is_none(), "{lsn} {fork} {disk:?}");
    is_rewound("standby-ahead-of-the-fork", &mut ahead, &next, CrashRecovery::Run).await;
}
