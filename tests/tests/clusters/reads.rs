//! Clients that read through the proxy: on standbys that are near enough, on those alone, and where they see what they
//! have just written.

#![allow(clippy::unwrap_used, reason = "a test may panic, also in its helpers")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use chaos::lab::{Lab, Port};
use chaos::load::Load;
use proto::spec::{MemberSpec, Permission};
use proto::{MemberName, PoolName};
use store::clock;
use system_tests::{Scene, scene};
use tokio_postgres::{Client, Config, NoTls};

const BOUND: Duration = Duration::from_secs(120);

const MAX_LAG_BYTES: u64 = 64 << 10;

/// Longer than HAProxy's checks and the routes take to settle.
const STAYS: Duration = Duration::from_secs(3);

/// Write-then-read pairs, and how many clients make them.
const PAIRS: i64 = 10_000;
const CLIENTS: usize = 16;

async fn session(target: &Config) -> Option<Client> {
    let (client, connection) = target.connect(NoTls).await.ok()?;
    tokio::spawn(connection);
    Some(client)
}

/// Returns the member at which a new session through `port` ends, and whether that is a standby.
async fn landed(lab: &Lab, port: &Port) -> Option<(MemberName, bool)> {
    let session = session(&lab.application_by(port).unwrap()).await?;
    let question = "SELECT inet_server_port(), pg_is_in_recovery()";
    let row = session.query_one(question, &[]).await.ok()?;
    let number: i32 = row.get(0);
    let here = |m: &MemberName| i32::from(lab.address(m).unwrap().postgres) == number;
    Some((lab.members().into_iter().find(here).unwrap(), row.get(1)))
}

/// Opens `count` sessions through `port`, and returns how many ended at each member; prints it.
async fn spread(lab: &Lab, port: &Port, count: usize) -> BTreeMap<MemberName, usize> {
    let mut spread = BTreeMap::new();
    for _ in 0..count {
        if let Some((member, _)) = landed(lab, port).await {
            *spread.entry(member).or_default() += 1;
        }
    }
    eprintln!("{count} sessions by {port:?}: {spread:?}");
    spread
}

/// Waits until 20 sessions in a row through `port` end at members of `expected`, and each of these gets some.
async fn expect_spread(lab: &Lab, port: &Port, expected: &[&MemberName]) {
    let deadline = clock::now() + BOUND;
    loop {
        let spread = spread(lab, port, 20).await;
        let all = spread.values().sum::<usize>() == 20;
        if all && spread.keys().collect::<Vec<_>>() == expected {
            return;
        }
        assert!(clock::now() < deadline, "{port:?} leads to {spread:?} and not to {expected:?}");
    }
}

/// Whether the standby's own keeper says that it is too far behind for readers.
async fn lags(lab: &Lab, standby: &MemberName) -> bool {
    let status = lab.status().await.unwrap();
    let lag = status.keepers.get(standby).and_then(|keeper| keeper.lag);
    lag.is_some_and(|lag| lag.bytes > MAX_LAG_BYTES)
}

async fn replay(lab: &Lab, standby: &MemberName, verb: &str) {
    let session = lab.superuser(standby).await.unwrap();
    session.client().batch_execute(&format!("SELECT pg_wal_replay_{verb}()")).await.unwrap();
}

/// Writes a row through the write port and asks for it through the port of fresh reads, over and over. Returns how many
/// were asked for at each member, and how many were not there.
async fn read_what_was_written(lab: &Lab) -> (BTreeMap<i32, i64>, i64) {
    let (next, stale) = (Arc::new(AtomicI64::new(0)), Arc::new(AtomicI64::new(0)));
    let (write, fresh) = (Port::Write, Port::Fresh);
    let (write, fresh) = (lab.application_by(&write).unwrap(), lab.application_by(&fresh).unwrap());
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..CLIENTS {
        let (next, stale) = (next.clone(), stale.clone());
        let (write, fresh) = (write.clone(), fresh.clone());
        clients.spawn(async move {
            let writer = session(&write).await.unwrap();
            let insert = writer.prepare("INSERT INTO fresh VALUES ($1)").await.unwrap();
            let reader = session(&fresh).await.unwrap();
            let read = "SELECT inet_server_port(), EXISTS (SELECT FROM fresh WHERE id = $1)";
            let read = reader.prepare(read).await.unwrap();
            let mut at: BTreeMap<i32, i64> = BTreeMap::new();
            loop {
                let id = next.fetch_add(1, Ordering::SeqCst);
                if id >= PAIRS {
                    return at;
                }
                writer.execute(&insert, &[&id]).await.unwrap();
                let row = reader.query_one(&read, &[&id]).await.unwrap();
                *at.entry(row.get(0)).or_default() += 1;
                stale.fetch_add(i64::from(!row.get::<_, bool>(1)), Ordering::SeqCst);
            }
        });
    }
    let mut all: BTreeMap<i32, i64> = BTreeMap::new();
    while let Some(at) = clients.join_next().await {
        for (member, count) in at.unwrap() {
            *all.entry(member).or_default() += count;
        }
    }
    let stale = stale.load(Ordering::SeqCst);
    eprintln!("{PAIRS} pairs, {stale} stale; asked at these ports: {all:?}");
    (all, stale)
}

/// Three members with a table for pairs, and short waits before a standby may come back.
async fn readers(
    change: impl FnOnce(&mut proto::ClusterSpec),
) -> (Scene, MemberName, [MemberName; 2]) {
    let scene = scene(|config| {
        config.spec.reads.max_lag_bytes = MAX_LAG_BYTES;
        config.spec.reads.return_after = Duration::from_secs(1);
        change(&mut config.spec);
    })
    .await;
    let lab = &scene.lab;
    lab.wait_redundant(BOUND).await.unwrap();
    lab.prepare_database().await.unwrap();
    let primary = lab.primary().await.unwrap();
    let standbys: Vec<_> = lab.members().into_iter().filter(|m| *m != primary).collect();
    let writer = session(&lab.application_by(&Port::Write).unwrap()).await.unwrap();
    writer.batch_execute("CREATE TABLE fresh (id bigint PRIMARY KEY)").await.unwrap();
    lab.holdings(BOUND).await.unwrap();
    (scene, primary, standbys.try_into().unwrap())
}

#[tokio::test]
async fn a_standby_that_lags_leaves_the_readers_and_comes_back_and_writes_are_read_back_meanwhile()
{
    let (scene, primary, [b, c]) = readers(|_| {}).await;
    let lab = &scene.lab;
    let load = Load::start(lab.load_config(4)).unwrap();
    load.acknowledged_count(100, BOUND).await.unwrap();
    expect_spread(lab, &Port::Read, &[&b, &c]).await;
    let all = spread(lab, &Port::Read, 200).await;
    let standbys = all.iter().filter(|(m, _)| **m != primary).map(|(_, n)| n).sum::<usize>();
    assert!(standbys >= 180, "{standbys} of 200 sessions were on standbys");

    replay(lab, &b, "pause").await;
    expect_spread(lab, &Port::Read, &[&c]).await;
    // One of two is enough for an acknowledgement, and the other does not know of it.
    let (at, stale) = read_what_was_written(lab).await;
    assert_eq!((stale, at.len()), (0, 1), "{at:?}");
    assert!(at.contains_key(&i32::from(lab.address(&primary).unwrap().postgres)), "{at:?}");
    // Out is out: not one session in all that time.
    assert_eq!(spread(lab, &Port::Read, 100).await.keys().collect::<Vec<_>>(), [&c]);

    replay(lab, &b, "resume").await;
    expect_spread(lab, &Port::Read, &[&b, &c]).await;
    for _ in 0..5 {
        assert_eq!(spread(lab, &Port::Read, 20).await.len(), 2, "it stays");
    }
    // Both lag: the readers are not sent away.
    replay(lab, &b, "pause").await;
    replay(lab, &c, "pause").await;
    let behind = load.count() + 500;
    load.acknowledged_count(behind, BOUND).await.unwrap();
    // One is out before the other, and HAProxy's own checks may be faster than the new routes, for a moment: what counts
    // is what then stays.
    let (deadline, mut since) = (clock::now() + BOUND, clock::now());
    while clock::now().since(since) < STAYS {
        let seen = spread(lab, &Port::Read, 20).await;
        let standbys = !seen.contains_key(&primary) && seen.values().sum::<usize>() == 20;
        if !standbys || !lags(lab, &b).await || !lags(lab, &c).await {
            since = clock::now();
        }
        assert!(clock::now() < deadline, "the readers are at {seen:?}");
    }
    replay(lab, &b, "resume").await;
    replay(lab, &c, "resume").await;
    drop(load);
}

#[tokio::test]
async fn where_every_commit_waits_for_both_standbys_they_answer_fresh_reads_too() {
    let (scene, _, _) = readers(|spec| {
        spec.synchronous.count = 2;
        spec.postgres.parameters.insert("synchronous_commit".into(), "remote_apply".into());
    })
    .await;
    let lab = &scene.lab;
    let members = lab.members();
    expect_spread(lab, &Port::Fresh, &members.iter().collect::<Vec<_>>()).await;
    let (at, stale) = read_what_was_written(lab).await;
    assert_eq!((stale, at.len()), (0, 3), "{at:?}");
    // A role that asks for less: its commits do not wait for replay, and nobody else can tell.
    let primary = lab.superuser(&lab.primary().await.unwrap()).await.unwrap();
    let less = "ALTER ROLE demo SET synchronous_commit = 'on'";
    primary.client().batch_execute(less).await.unwrap();
    expect_spread(lab, &Port::Fresh, &[&lab.primary().await.unwrap()]).await;
}

/// Six members: e and f do not vote, and f is for analysts.
#[tokio::test]
async fn analysts_have_a_member_of_their_own_and_nobody_else_is_sent_there() {
    let pool: PoolName = "analysts".parse().unwrap();
    let mut scene = scene(|config| {
        config.members = 6;
        let never = Permission::Never;
        for (member, pool) in [("e", None), ("f", Some(pool.clone()))] {
            let spec = MemberSpec { promote: never, vote: never, pool, ..MemberSpec::default() };
            config.spec.members.insert(member.parse().unwrap(), spec);
        }
    })
    .await;
    let lab = &mut scene.lab;
    let voters = ["a", "b", "c", "d"].map(|name| name.parse().unwrap());
    lab.wait_redundant_among(&voters.into(), BOUND).await.unwrap();
    lab.prepare_database().await.unwrap();
    lab.holdings(BOUND).await.unwrap();
    let primary = lab.primary().await.unwrap();
    let f: MemberName = "f".parse().unwrap();
    let all = lab.members();
    let readers: Vec<_> = all.iter().filter(|m| **m != primary && **m != f).collect();
    assert_eq!(readers.len(), 4);
    expect_spread(lab, &Port::Read, &readers).await;
    expect_spread(lab, &Port::Pool(pool.clone()), &[&f]).await;
    let cluster = lab.cluster().await.unwrap();
    let cfg = cluster.state.unwrap().newest_cfg().unwrap().clone();
    assert!(!cfg.voters.contains(&f) && cfg.voters.len() == 3, "{cfg}");
    // Patroni's users come with the configuration that Patroni documents.
    patroni::their_configuration_works(lab, &primary, &all).await;
}

mod patroni;
