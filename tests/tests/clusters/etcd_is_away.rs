//! etcd is taken away from a cluster under load. A primary whose voters stream goes on; one that has neither etcd nor
//! voters stops in time.

#![allow(clippy::unwrap_used, reason = "a test may panic, also in its helpers")]

use std::collections::BTreeSet;
use std::time::Duration;

use chaos::demo::{Config, RecoveredBy};
use chaos::evidence::Watchers;
use chaos::fault::Fault;
use chaos::lab::Port;
use chaos::lab::cleanup::Found;
use proto::MemberName;
use system_tests::{minutes, scene};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

/// Asks which server answers, by its port.
async fn asked(session: &Client) -> String {
    let answer = timeout(Duration::from_secs(5), session.simple_query("SHOW port"));
    let rows = answer.await.expect("an answer in time").expect("no error");
    let port = rows.iter().find_map(|m| match m {
        SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    });
    port.expect("a row")
}

async fn session(target: &tokio_postgres::Config) -> Client {
    let (client, connection) = target.connect(NoTls).await.expect("a session");
    tokio::spawn(connection);
    client
}

/// Asks by a session that is kept and by new ones, until `stopped`: no session may be cut, and each is led to one of `to`.
/// Returns how many were asked.
async fn is_led(
    target: tokio_postgres::Config,
    to: BTreeSet<String>,
    mut stopped: watch::Receiver<()>,
) -> usize {
    let kept = session(&target).await;
    let mut asks = 0;
    loop {
        for at in [asked(&kept).await, asked(&session(&target).await).await] {
            assert!(to.contains(&at), "led to {at}, and not to one of {to:?}");
            asks += 1;
        }
        if timeout(Duration::from_millis(250), stopped.changed()).await.is_ok() {
            return asks;
        }
    }
}

async fn without_etcd_no_transaction_fails_for(down_for: Duration) {
    let mut scene = scene(|config| config.pgbouncers = 1).await;
    let lab = &scene.lab;
    lab.wait_redundant(Duration::from_secs(120)).await.unwrap();
    lab.prepare_database().await.unwrap();
    // The standbys have replayed that before they are asked.
    lab.holdings(Duration::from_secs(60)).await.unwrap();
    let primary = lab.primary().await.unwrap();
    let port = |m: &MemberName| lab.address(m).unwrap().postgres.to_string();
    let (writes, reads): (BTreeSet<_>, BTreeSet<_>) =
        lab.members().into_iter().partition(|m| *m == primary);
    let ports = |members: &BTreeSet<MemberName>| members.iter().map(port).collect();
    let routers = [
        (lab.application_by(&Port::Write).unwrap(), ports(&writes)),
        (lab.application_by(&Port::Read).unwrap(), ports(&reads)),
        (lab.pooled_application(0).unwrap(), ports(&writes)),
        (lab.pooled_reader(0).unwrap(), ports(&reads)),
    ];
    let (stop, stopped) = watch::channel(());
    let led = routers.map(|(target, to)| tokio::spawn(is_led(target, to, stopped.clone())));
    let away = Config { fault: Fault::Etcd, down_for, ..Config::default() };
    let report = scene.survives_as(away).await;
    drop(stop);
    for led in led {
        let asks = led.await.expect("no session was cut, and no pool has changed");
        eprintln!("{asks} questions by one router");
        assert!(asks as u64 > down_for.as_secs(), "{asks} questions");
    }
    assert_eq!(report.recovered_by, RecoveredBy::None);
    assert_eq!(
        (report.epoch_after, &report.primary_after),
        (report.epoch_before, &report.primary_before)
    );
    assert_eq!(report.unknown, report.overdue, "no session is cut");
    // A disk that is busy for a second makes every writer give up once. A lease would be over after 4 s.
    assert!(report.overdue <= 4, "{} commits had no answer within a second", report.overdue);
    assert!(report.write_gap_ms < 4_000.0, "{} ms", report.write_gap_ms);
}

/// Whatever is timed is over by then: a lease lapses after 4 s, and a primary without etcd has 10 s of grace.
#[tokio::test]
async fn with_etcd_gone_for_twenty_seconds_no_transaction_fails_and_no_role_changes() {
    without_etcd_no_transaction_fails_for(Duration::from_secs(20)).await;
}

/// `PGDEPUTY_ETCD_AWAY_MINUTES` says for how long, 10 by default.
#[tokio::test]
#[ignore = "takes ten minutes: make test-long"]
async fn with_etcd_gone_for_ten_minutes_no_transaction_fails_and_no_role_changes() {
    without_etcd_no_transaction_fails_for(minutes("PGDEPUTY_ETCD_AWAY_MINUTES", 10.0)).await;
}

#[tokio::test]
async fn a_primary_without_etcd_and_without_voters_stops_within_lease_ttl() {
    let mut scene = scene(|_| {}).await;
    let lab = &mut scene.lab;
    lab.wait_redundant(Duration::from_secs(120)).await.unwrap();
    let (_, primary) = lab.cluster().await.unwrap().service().unwrap();
    let standbys = ["a", "b", "c"].map(|name| name.parse().unwrap());
    lab.kill_etcd().unwrap();
    // The signs of its voters let it serve on for longer than any lease.
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert!(
        lab.processes_of(&primary).iter().any(Found::is_postgres),
        "it serves by its voters' signs"
    );
    let mut cut = store::clock::now();
    for standby in standbys.iter().filter(|name| **name != primary) {
        cut = lab.kill_member(standby).unwrap().at;
        lab.member_gone(standby).await.unwrap();
    }
    // lease_ttl is 4 s; what is above it is for a busy machine.
    let deadline = cut + Duration::from_secs(6);
    while lab.processes_of(&primary).iter().any(Found::is_postgres) {
        assert!(store::clock::now() < deadline, "PostgreSQL of {primary} still runs");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    eprintln!("stopped {:?} after the last voter was killed", store::clock::now().since(cut));
    lab.start_etcd().await.unwrap();
    for standby in standbys.iter().filter(|name| **name != primary) {
        lab.start_member(standby).unwrap();
    }
    lab.wait_redundant(Duration::from_secs(120)).await.unwrap();
}

/// Waits until `standby` streams from `primary` as one of its voters, by the primary's own word.
async fn streams(lab: &chaos::lab::Lab, primary: &MemberName, standby: &MemberName) {
    let session = lab.superuser(primary).await.unwrap();
    let deadline = store::clock::now() + Duration::from_secs(60);
    let query = "SELECT count(*) FROM pg_stat_replication
                  WHERE state = 'streaming' AND sync_state <> 'async' AND application_name LIKE $1";
    let names = format!("{standby}.e%");
    while session.client().query_one(query, &[&names]).await.unwrap().get::<_, i64>(0) == 0 {
        assert!(store::clock::now() < deadline, "{standby} does not stream");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Writes go on by whichever two of three are up, whatever died meanwhile, and nobody asks etcd.
#[tokio::test]
async fn without_etcd_every_member_can_die_and_come_back_in_its_place() {
    let mut scene = scene(|_| {}).await;
    let lab = &mut scene.lab;
    let bound = Duration::from_secs(60);
    lab.wait_redundant(bound).await.unwrap();
    let (_, primary) = lab.cluster().await.unwrap().service().unwrap();
    let before = lab.cluster().await.unwrap().service().unwrap();
    let standbys: Vec<_> = lab.members().into_iter().filter(|m| *m != primary).collect();
    let watchers = Watchers::start(lab, 4).await.unwrap();
    watchers.load.acknowledged_count(200, bound).await.unwrap();
    let steady = (store::clock::now() - Duration::from_secs(1), store::clock::now());
    lab.kill_etcd().unwrap();

    // The keeper alone: its PostgreSQL is found, and goes on by signs before its old time has passed.
    let postmaster = lab.postmaster(&primary).unwrap();
    let struck = lab.kill_keeper(&primary).await.unwrap();
    lab.start_member(&primary).unwrap();
    watchers.load.acknowledged_after(struck.at + Duration::from_secs(5), bound).await.unwrap();
    assert_eq!(lab.postmaster(&primary).unwrap(), postmaster, "PostgreSQL was left alone");
    assert_eq!(watchers.load.told().unknown, 0, "no session was cut");

    // Both standbys, one after the other: the second one's death shows that the first is a voter again.
    for standby in &standbys {
        lab.kill_member(standby).unwrap();
        lab.member_gone(standby).await.unwrap();
        lab.start_member(standby).unwrap();
        streams(lab, &primary, standby).await;
    }
    watchers.load.acknowledged_after(store::clock::now(), bound).await.unwrap();
    assert_eq!(watchers.load.told().unknown, 0, "the primary served on");

    // The primary's PostgreSQL, then all of the primary: started closed, open once a voter holds all of it.
    let struck = lab.kill_postgres(&primary).unwrap();
    watchers.load.acknowledged_after(struck.at + Duration::from_secs(1), bound).await.unwrap();
    eprintln!("writes after {:?}", store::clock::now().since(struck.at));
    let struck = lab.kill_member(&primary).unwrap();
    lab.member_gone(&primary).await.unwrap();
    lab.start_member(&primary).unwrap();
    watchers.load.acknowledged_after(struck.at + Duration::from_secs(1), bound).await.unwrap();
    eprintln!("writes after {:?}", store::clock::now().since(struck.at));

    lab.start_etcd().await.unwrap();
    lab.wait_redundant(Duration::from_secs(120)).await.unwrap();
    assert_eq!(lab.cluster().await.unwrap().service().unwrap(), before, "no role changed");
    let (evidence, _) = watchers.finish(lab, steady).await.unwrap();
    let verdict = chaos::verdict::judge(&evidence);
    assert!(verdict.lost.is_empty() && verdict.dual.is_empty(), "{verdict:?}");
}
