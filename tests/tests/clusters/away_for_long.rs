//! A member is away for longer than its primary may hold WAL back for it: the disk does not fill up, and the member comes
//! back by a fresh copy instead of waiting for WAL that is nowhere.

#![allow(clippy::unwrap_used, reason = "a test may panic, also in its helpers")]

use std::time::Duration;

use proto::report::RejoinBy;
use store::clock;
use system_tests::scene;

const BOUND: Duration = Duration::from_secs(120);

/// What a slot holds back at most, and what is written while the member is away.
const SLOT_MB: i64 = 128;
const WRITTEN_MB: i64 = 768;

#[tokio::test]
#[ignore = "writes much WAL: make test-long"]
async fn a_member_that_is_away_for_too_long_fills_no_disk_and_is_copied_when_it_is_back() {
    let mut scene = scene(|config| {
        // Versions differ in who may stream by a slot that has lost WAL.
        config.postgres_bin = std::env::var_os("PGDEPUTY_TEST_POSTGRES").map(Into::into);
        let parameters = &mut config.spec.postgres.parameters;
        parameters.insert("max_slot_wal_keep_size".into(), format!("{SLOT_MB}MB"));
        for setting in ["max_wal_size", "wal_keep_size"] {
            parameters.insert(setting.into(), "64MB".into());
        }
    })
    .await;
    let lab = &mut scene.lab;
    lab.wait_redundant(BOUND).await.unwrap();
    let (_, primary) = lab.cluster().await.unwrap().service().unwrap();
    let away = lab.members().into_iter().find(|m| *m != primary).unwrap();
    lab.kill_member(&away).unwrap();
    lab.member_gone(&away).await.unwrap();

    let session = lab.superuser(&primary).await.unwrap();
    let write = "SELECT count(pg_logical_emit_message(false, '', repeat('w', 1000000))) FROM generate_series(1, 64)";
    session.client().simple_query("CREATE TABLE t (i int)").await.unwrap();
    for _ in 0..WRITTEN_MB / 64 {
        session.client().simple_query(write).await.unwrap();
        // Waits for the standby that is there: it must not fall behind as far.
        session.client().simple_query("INSERT INTO t VALUES (1)").await.unwrap();
    }
    let slot = format!("pgdeputy_{away}");
    let status = "SELECT wal_status FROM pg_replication_slots WHERE slot_name = $1";
    let deadline = clock::now() + BOUND;
    loop {
        session.client().simple_query("CHECKPOINT").await.unwrap();
        let row = session.client().query_one(status, &[&slot]).await.unwrap();
        if row.get::<_, String>(0) == "lost" {
            break;
        }
        assert!(clock::now() < deadline, "the slot holds WAL back without a bound");
    }
    let kept = "SELECT sum(size)::bigint >> 20 FROM pg_ls_waldir()";
    let kept: i64 = session.client().query_one(kept, &[]).await.unwrap().get(0);
    assert!(kept < WRITTEN_MB / 2, "{kept} MB of {WRITTEN_MB} are kept");

    lab.start_member(&away).unwrap();
    let cluster = lab.wait_redundant(BOUND).await.unwrap();
    let rejoin = cluster.reports[&away].rejoin.as_ref().expect("it was brought back");
    assert_eq!(rejoin.by, RejoinBy::Copy, "{rejoin:?}");
    assert!(rejoin.reason.contains("the primary has removed the WAL"), "{rejoin:?}");
    let row = session.client().query_one(status, &[&slot]).await.unwrap();
    assert_ne!(row.get::<_, String>(0), "lost");
}
