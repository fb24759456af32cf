//! Whether two servers have the same log, asked as a receiver asks, and WAL that was received and never replayed.

use std::fs::File;
use std::os::unix::fs::FileExt;

use keeper::postgres::compare::{Proof, SourceSays, compare};
use keeper::postgres::copy::{CopyTerms, base_backup};
use keeper::postgres::stopped::{self, Pages};
use keeper::postgres::wal_files::{self, Segment};
use keeper::postgres::wal_scan::scan;
use keeper::postgres::walsender::Walsender;
use proto::{Lsn, Timeline};

use crate::cluster::{Cluster, PASSWORD, binaries};
use crate::delta::{diverged, fork, part};

async fn asked(old: &Cluster, new: &Cluster) -> SourceSays {
    let end = scan(&old.data).unwrap();
    let at = (end.lsn, end.timeline);
    compare(&new.source(), PASSWORD, &old.data, at).await.unwrap()
}

#[tokio::test]
async fn equal_bytes_before_the_fork_are_proof_and_one_other_byte_is_a_difference() {
    let (old, new) = diverged(2).await;
    let (timeline, fork) = fork(&old, &new);
    let says = asked(&old, &new).await;
    let Proof::Same { from, to } = says.proof else { panic!("{says:?}") };
    // A record ends up to 7 bytes before the next one may begin.
    assert!(to <= fork && fork.0 - to.0 < 8, "{to} {fork}");
    assert!(from < to && to.0 - from.0 <= 64 << 10, "{from} {to}");
    assert_eq!(says.history.left_at(timeline), Some(fork));
    let disk = stopped::read(&old.data, Timeline(1)).unwrap();
    assert_eq!(disk.system_identifier, says.system_identifier);
    assert_eq!(disk.pages, Pages::Primary { timeline: Timeline(1), clean: false });
    assert_eq!(disk.cannot_rewind, None);

    let name = Segment::at(timeline, fork, 1 << 20).file_name(1 << 20);
    let file = File::options().read(true).write(true).open(old.pg_wal().join(name)).unwrap();
    let (place, mut byte) = (fork.0 % (1 << 20) - 20, [0]);
    file.read_exact_at(&mut byte, place).unwrap();
    file.write_all_at(&[byte[0] ^ 1], place).unwrap();
    // By the end that it had: a scan would now find another one.
    let end = (Lsn(fork.0 + 100), timeline);
    let says = compare(&new.source(), PASSWORD, &old.data, end).await.unwrap();
    assert_eq!(says.proof, Proof::Differs { at: Lsn(fork.0 - 20), timeline });

    let mut stranger = Cluster::new(1).await;
    stranger.start().await;
    let says = asked(&old, &stranger).await;
    assert_ne!(says.system_identifier, disk.system_identifier);
    assert!(matches!(says.proof, Proof::Unknown(_)));
}

/// A member that was away for longer than its WAL was kept. A server that looks for a segment and one that has removed it do
/// not differ, so the files are taken away by hand.
#[tokio::test]
async fn wal_that_the_source_has_removed_is_told_from_wal_that_cannot_be_compared() {
    let mut primary = Cluster::new(1).await;
    primary.start().await;
    let mut standby = Cluster::empty();
    base_backup(&binaries(), &primary.source(), &standby.data, &CopyTerms::default(), |_| {})
        .await
        .unwrap();
    standby.follow(&primary);
    standby.start().await;
    // One whose WAL ends within a segment, and one whose WAL fills its last one.
    for fills in [false, true] {
        primary.sql("CREATE TABLE t (i int)");
        if fills {
            primary.sql("SELECT pg_switch_wal()");
        }
        standby.caught_up(&primary).await;
        standby.stop().await;
        primary.sql("DROP TABLE t");
        let end = scan(&standby.data).unwrap().lsn;
        assert_eq!(end.0.is_multiple_of(1 << 20), fills, "{end}");
        assert!(matches!(asked(&standby, &primary).await.proof, Proof::Same { .. }));
        primary.sql("SELECT pg_switch_wal()");
        let file = |number: u64| {
            let name = Segment { timeline: Timeline(1), number }.file_name(1 << 20);
            (primary.pg_wal().join(&name), standby.root().join(name))
        };
        let next = end.0 >> 20;
        let (last, aside) = file(next - u64::from(fills));
        std::fs::rename(&last, &aside).unwrap();
        if fills {
            let proof = asked(&standby, &primary).await.proof;
            assert!(matches!(proof, Proof::Unknown(_)), "what comes next is there: {proof:?}");
            std::fs::rename(file(next).0, file(next).1).unwrap();
        }
        let proof = asked(&standby, &primary).await.proof;
        assert_eq!(proof, Proof::Removed { at: end, timeline: Timeline(1) });
        if !fills {
            std::fs::rename(&aside, &last).unwrap();
            standby.start().await;
        }
    }
}

#[tokio::test]
async fn a_slot_that_holds_nothing_back_is_made_anew_by_the_member_itself_and_another_one_is_left()
{
    let mut primary = Cluster::new(1).await;
    primary.start().await;
    // What has lost its WAL has no position either; that takes a gigabyte here.
    primary.sql("SELECT pg_create_physical_replication_slot('pgdeputy_b')");
    let holds = "SELECT restart_lsn IS NOT NULL FROM pg_replication_slots WHERE slot_name = ";
    for (slot, before) in [("pgdeputy_b", "f"), ("pgdeputy_c", "")] {
        let holds = format!("{holds}'{slot}'");
        assert_eq!(primary.sql(&holds), before);
        let mut walsender = Walsender::connect(&primary.source(), PASSWORD).await.unwrap();
        assert!(walsender.renew_slot(slot).await.unwrap());
        assert_eq!(primary.sql(&holds), "t");
        assert!(!walsender.renew_slot(slot).await.unwrap(), "it holds WAL back");
    }
}

/// Started as it is it would replay its way past the fork, and then wait for ever for WAL that continues its own.
#[tokio::test]
async fn a_standby_that_received_past_the_fork_and_never_replayed_it_follows_once_that_wal_is_aside()
 {
    for crashes in [false, true] {
        let mut primary = Cluster::new(1).await;
        primary.start().await;
        primary.sql("CREATE TABLE t (i int, text text)");
        let (mut next, mut standby) = (Cluster::empty(), Cluster::empty());
        for member in [&mut next, &mut standby] {
            base_backup(
                &binaries(),
                &primary.source(),
                &member.data,
                &CopyTerms::default(),
                |_| {},
            )
            .await
            .unwrap();
            member.follow(&primary);
            member.start().await;
        }
        primary.sql("INSERT INTO t SELECT i, 'common' FROM generate_series(1, 1000) i");
        next.caught_up(&primary).await;
        standby.caught_up(&primary).await;
        standby.sql("SELECT pg_wal_replay_pause()");
        next.sql("ALTER SYSTEM SET primary_conninfo = ''");
        next.sql("SELECT pg_reload_conf()");
        let receives = "SELECT 1 FROM pg_stat_wal_receiver";
        next.eventually("it receives nothing", |c| c.sql(receives).is_empty()).await;
        primary.sql("INSERT INTO t SELECT i, 'lost' FROM generate_series(1, 20000) i");
        standby.caught_up(&primary).await;
        part(&mut primary, &next).await;
        match crashes {
            true => standby.crash(),
            false => standby.stop().await,
        }

        let (timeline, fork) = fork(&standby, &next);
        let end = scan(&standby.data).unwrap();
        let disk = stopped::read(&standby.data, end.timeline).unwrap();
        let Pages::Replayed { lsn, .. } = disk.pages else { panic!("{disk:?}") };
        assert!(lsn <= fork && fork < end.lsn, "{lsn} {fork} {end:?}");
        assert!(matches!(asked(&standby, &next).await.proof, Proof::Same { .. }));

        let mut taken = Vec::new();
        let take = |path: &std::path::Path, name: &str| {
            assert!(path.exists());
            taken.push(name.to_owned());
            Ok(())
        };
        let pg_wal = standby.pg_wal();
        let removed = wal_files::remove_from(&pg_wal, timeline, fork, 1 << 20, take).unwrap();
        assert!(removed.len() > 1 && removed == taken, "{removed:?}");
        standby.follow(&next);
        standby.start().await;
        let sum = "SELECT md5(string_agg(t::text, ',' ORDER BY i, text)) FROM t";
        let theirs = next.sql(sum);
        standby.eventually("it has the same rows", |c| c.sql(sum) == theirs).await;
        standby.eventually("it streams", |c| !c.sql(receives).is_empty()).await;
        assert_eq!(standby.sql("SELECT count(*) FROM t WHERE text = 'lost'"), "0");
    }
}
