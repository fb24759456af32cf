//! Somebody reads on every standby in a way that holds replay up, or has paused it, when the primary is lost. A seal waits
//! for no replay, and a promotion for no reader.

#![allow(clippy::unwrap_used, reason = "a test may panic, also in its helpers")]

use std::time::Duration;

use chaos::evidence::Watchers;
use chaos::lab::Lab;
use proto::MemberName;
use store::clock;
use system_tests::scene;
use tokio_postgres::{Client, NoTls};

const BOUND: Duration = Duration::from_secs(120);

/// A session of the application that reads the table `held` in a transaction that stays open.
async fn reader(lab: &Lab, member: &MemberName) -> Client {
    let (client, connection) = lab.application_at(member).unwrap().connect(NoTls).await.unwrap();
    tokio::spawn(connection);
    client.batch_execute("BEGIN; SELECT count(*) FROM held").await.unwrap();
    client
}

/// Waits until replay on `member` stands still behind what it has received.
async fn held_up(lab: &Lab, member: &MemberName) {
    const BEHIND: &str = "SELECT pg_last_wal_replay_lsn()::text, \
         pg_last_wal_replay_lsn() < pg_last_wal_receive_lsn()";
    let session = lab.superuser(member).await.unwrap();
    let mut last = String::new();
    let deadline = clock::now() + BOUND;
    loop {
        let row = session.client().query_one(BEHIND, &[]).await.unwrap();
        let (at, is_behind): (String, bool) = (row.get(0), row.get(1));
        if is_behind && at == last {
            return;
        }
        assert!(clock::now() < deadline, "replay of {member} is not held up, it is at {at}");
        last = at;
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

#[tokio::test]
async fn a_reader_that_holds_replay_up_on_every_standby_delays_no_failover() {
    let mut scene = scene(|config| {
        // A reader may hold replay up for ever: nothing but the promotion ends it.
        let parameters = &mut config.spec.postgres.parameters;
        parameters.insert("max_standby_streaming_delay".into(), "-1".into());
    })
    .await;
    let lab = &mut scene.lab;
    lab.wait_redundant(BOUND).await.unwrap();
    let watchers = Watchers::start(lab, 4).await.unwrap();
    let steady_from = clock::now();
    watchers.load.acknowledged_count(1_000, BOUND).await.unwrap();
    let (before, primary) = lab.cluster().await.unwrap().service().unwrap();
    let standbys: Vec<_> = lab.members().into_iter().filter(|m| *m != primary).collect();
    let application = lab.application_at(&primary).unwrap().connect(NoTls).await.unwrap();
    tokio::spawn(application.1);
    application.0.batch_execute("CREATE TABLE held (id int)").await.unwrap();
    // What they are to read must have come to them first.
    lab.holdings(BOUND).await.unwrap();
    let mut readers = Vec::new();
    for standby in &standbys {
        readers.push(reader(lab, standby).await);
    }
    application.0.batch_execute("TRUNCATE held").await.unwrap();
    let session = lab.superuser(&standbys[0]).await.unwrap();
    session.client().batch_execute("SELECT pg_wal_replay_pause()").await.unwrap();
    for standby in &standbys {
        held_up(lab, standby).await;
    }
    let struck = lab.kill_member(&primary).unwrap();
    lab.member_gone(&primary).await.unwrap();
    lab.wait_served_after(before, BOUND).await.unwrap();
    watchers.load.acknowledged_after(clock::now(), BOUND).await.unwrap();
    let gap = watchers.load.told().longest_gap(struck.at, clock::now());
    eprintln!("longest write gap {gap:?}");
    // promote_patience is 5 s: nobody's patience ran out.
    assert!(gap < Duration::from_secs(5), "{gap:?}");
    // The other standby replays on when its reader is gone.
    drop(readers);
    resume(lab, &standbys).await;
    lab.start_member(&primary).unwrap();
    lab.wait_redundant(BOUND).await.unwrap();
    let (evidence, _) = watchers.finish(lab, (steady_from, struck.at)).await.unwrap();
    let verdict = chaos::verdict::judge(&evidence);
    assert!(verdict.is_good(), "{verdict:?}");
}

/// The person who paused replay on a standby lets it go on, if it still is one.
async fn resume(lab: &Lab, members: &[MemberName]) {
    const RESUME: &str = "SELECT CASE WHEN pg_is_in_recovery() AND pg_is_wal_replay_paused() \
         THEN pg_wal_replay_resume() END";
    for member in members {
        let session = lab.superuser(member).await.unwrap();
        session.client().batch_execute(RESUME).await.unwrap();
    }
}
