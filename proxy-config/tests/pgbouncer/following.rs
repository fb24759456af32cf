//! Real PgBouncers that follow the agreed state.

use std::collections::BTreeSet;
use std::time::Duration;

use nix::sys::signal::Signal;
use proto::proxy::Clients;
use proto::{ClusterSpec, Epoch};
use store::clock;

use crate::scene::open;
use crate::server::Server;
use crate::waiting::{bounded, eventually};
use crate::world::{Pgbouncer, Proxy, World, three};

struct Cluster {
    world: World,
    pgbouncer: Pgbouncer,
    proxy: Proxy,
    servers: [Server; 3],
}

/// Epoch 7: `a` is the primary, `b` and `c` are its standbys.
async fn cluster(settings: &str) -> Cluster {
    let mut world = World::new("main");
    let servers = three().await;
    let [a, b, c] = &servers;
    world.open(7, &[("a", a), ("b", b), ("c", c)]).await;
    let mut pgbouncer = world.add_pgbouncer(settings).await;
    let proxy = world.start(&mut pgbouncer).await;
    pgbouncer.expect("main", "a").await;
    Cluster { world, pgbouncer, proxy, servers }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_follow_within_moments_and_who_was_idle_keeps_the_session() {
    let Cluster { world, pgbouncer, proxy: _proxy, servers: [a, b, c] } = cluster("").await;
    let idle = pgbouncer.client("main").await.unwrap();
    assert_eq!(idle.ask("who").await.unwrap(), "a");
    let begun = clock::now();
    world.open(8, &[("b", &b), ("a", &a), ("c", &c)]).await;
    eventually("the session leads to b", || async { idle.ask("who").await.unwrap() == "b" }).await;
    eprintln!("from the state to the first answer: {:?}", clock::now().since(begun));
    world.reports("epoch 8 is reported", |r| r.epoch == Epoch(8)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_for_a_host_that_has_vanished_is_cut_and_new_sessions_reach_the_next_primary() {
    let Cluster { world, pgbouncer, proxy: _proxy, servers: [a, b, c] } = cluster("").await;
    let waiting = pgbouncer.client("main").await.unwrap();
    waiting.ask("BEGIN").await.unwrap();
    a.vanish();
    let answer = tokio::spawn(async move { waiting.ask("who").await });
    world.open(8, &[("b", &b), ("c", &c)]).await;
    pgbouncer.expect("main", "b").await;
    assert!(bounded("the session ends", answer).await.unwrap().is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_login_retry_of_pgbouncer_is_not_waited_for() {
    let Cluster { world, pgbouncer, proxy: _proxy, servers: [a, b, c] } =
        cluster("server_login_retry = 30").await;
    drop(a);
    // PgBouncer makes no other attempt for 30 s by itself: longer than anything is waited for here. The first question
    // may still go to a session of `a` that is just ending, and end with it: then nobody would wait.
    eventually("a connection has failed", || async {
        if let Some(waiting) = pgbouncer.client("main").await {
            tokio::spawn(async move { waiting.ask("who").await });
        }
        pgbouncer.log().contains("connect failed")
    })
    .await;
    world.open(8, &[("b", &b), ("c", &c)]).await;
    pgbouncer.expect("main", "b").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_go_round_the_standbys_and_follow_them() {
    let Cluster { world, pgbouncer, proxy: _proxy, servers: [a, b, c] } = cluster("").await;
    let mut sessions = Vec::new();
    for _ in 0..4 {
        let session = pgbouncer.client("main_ro").await.unwrap();
        // Each in a transaction, so that each has a server connection of its own.
        session.ask("BEGIN").await.unwrap();
        sessions.push(session);
    }
    let mut seen = BTreeSet::new();
    for session in &sessions {
        seen.insert(session.ask("who").await.unwrap());
    }
    assert_eq!(seen, BTreeSet::from(["b".to_owned(), "c".to_owned()]));
    world.open(8, &[("b", &b), ("a", &a)]).await;
    pgbouncer.expect("main_ro", "a").await;
    for session in &sessions {
        session.ask("COMMIT").await.expect("reads are not cut: they drain");
    }
    drop(c);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_that_hangs_on_a_standby_that_has_vanished_ends_after_the_drain_and_no_sooner() {
    let Cluster { world, pgbouncer, proxy: _proxy, servers: [a, b, c] } = cluster("").await;
    let mut spec = ClusterSpec::default();
    spec.reads.drain = Duration::from_secs(2);
    world.specify(&spec).await;
    // Both of them read, so that one of them reads from c.
    let (one, other) = (pgbouncer.client("main_ro").await, pgbouncer.client("main_ro").await);
    let mut sessions = Vec::new();
    for session in [one.unwrap(), other.unwrap()] {
        session.ask("BEGIN").await.unwrap();
        let server = session.ask("who").await.unwrap();
        sessions.push((server, session));
    }
    sessions.sort_by(|(one, _), (other, _)| one.cmp(other));
    let [(first, lags), (second, hangs)] = sessions.try_into().ok().expect("two sessions");
    assert_eq!((first.as_str(), second.as_str()), ("b", "c"));
    c.vanish();
    let asked = tokio::spawn(async move { hangs.ask("who").await });
    // Of b the reads leave too, but it answers: its transaction goes on until nothing else is left to be ended for.
    let left = clock::now();
    world.open(8, &[("b", &b), ("a", &a)]).await;
    pgbouncer.expect("main_ro", "a").await;
    assert_eq!(lags.ask("who").await.unwrap(), "b");
    assert!(bounded("the read ends", asked).await.unwrap().is_err());
    assert!(clock::now().since(left) >= spec.reads.drain);
    pgbouncer.expect("main_ro", "a").await;
    pgbouncer.expect("main", "b").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pgbouncer_that_was_killed_comes_back_at_the_present_primary() {
    let Cluster { world, mut pgbouncer, proxy: _proxy, servers: [a, b, c] } = cluster("").await;
    pgbouncer.end();
    world.open(8, &[("b", &b), ("a", &a), ("c", &c)]).await;
    world.installed("; pgdeputy write b").await;
    pgbouncer.start().await;
    pgbouncer.expect("main", "b").await;
    world.open(9, &[("c", &c), ("a", &a), ("b", &b)]).await;
    pgbouncer.expect("main", "c").await;
    world.reports("it can hold again", |r| r.clients == Clients::Held && r.epoch == Epoch(9)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_pgbouncer_that_is_stuck_holds_up_no_other() {
    let mut world = World::new("main");
    let [a, b, c] = three().await;
    world.open(7, &[("a", &a), ("b", &b), ("c", &c)]).await;
    let mut one = world.add_pgbouncer("").await;
    let mut other = world.add_pgbouncer("").await;
    let _proxy = world.start(&mut one).await;
    other.start().await;
    one.expect("main", "a").await;
    other.expect("main", "a").await;
    world.reports("both follow", |r| r.clients == Clients::Held && r.epoch == Epoch(7)).await;
    one.signal(Signal::SIGSTOP);
    world.open(8, &[("b", &b), ("a", &a), ("c", &c)]).await;
    other.expect("main", "b").await;
    world.reports("it is named", |r| r.refusing.len() == 1 && r.clients == Clients::Held).await;
    one.signal(Signal::SIGCONT);
    one.expect("main", "b").await;
    world.reports("both follow", |r| r.refusing.is_empty() && r.epoch == Epoch(8)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_news_lead_nobody_back() {
    let Cluster { world, pgbouncer, proxy, servers: [a, b, c] } = cluster("").await;
    world.open(8, &[("b", &b), ("a", &a), ("c", &c)]).await;
    pgbouncer.expect("main", "b").await;
    // A store that was restored from an old copy, also for a proxy-config that starts with it.
    world.agree(&open(7, &["a", "b", "c"])).await;
    proxy.stop().await;
    let _proxy = world.proxy();
    eventually("it has read the store", || async { world.told().await.is_some() }).await;
    world.reports("it reports the higher epoch", |r| r.epoch == Epoch(8)).await;
    pgbouncer.expect("main", "b").await;
    world.installed("; pgdeputy epoch 8\n; pgdeputy write b\n").await;
}
