//! Clients wait while the primary is changed as planned, and never longer than agreed.

use std::time::Duration;

use nix::sys::signal::Signal;
use proto::proxy::{Clients, ProxyReport};
use proto::{ClusterState, Phase};
use serde_json::json;
use store::clock;

use crate::scene::open;
use crate::server::Server;
use crate::waiting::{bounded, eventually};
use crate::world::{Pgbouncer, Proxy, World, three};

/// Far longer than a step of these tests takes.
const LONG: &str = "60s";

fn switching(epoch: u64, step: serde_json::Value) -> ClusterState {
    let mut state = open(epoch, &["a", "b", "c"]);
    state.phase = Phase::Switchover(
        serde_json::from_value(json!({
            "target": "b", "named": true, "request": REQUEST, "by": "a test", "started": "2026-01-01T00:00:00.000Z",
            "within": "60s", "step": step
        }))
        .unwrap(),
    );
    state
}

const REQUEST: &str = "0123456789abcdef";

fn hold(within: &str) -> ClusterState {
    let step = json!({"name": "hold", "since": "2026-01-01T00:00:00.000Z", "within": within});
    switching(7, step)
}

async fn held(world: &World) {
    let is_held =
        |r: &proto::proxy::ProxyReport| r.held.as_ref().is_some_and(|h| h.to_string() == REQUEST);
    world.reports("the clients are held", is_held).await;
}

struct Cluster {
    world: World,
    pgbouncers: Vec<Pgbouncer>,
    proxy: Proxy,
    a: Server,
    b: Server,
    c: Server,
}

async fn cluster(pgbouncers: usize) -> Cluster {
    let mut world = World::new("main");
    let [a, b, c] = three().await;
    world.open(7, &[("a", &a), ("b", &b), ("c", &c)]).await;
    let mut all = Vec::new();
    for _ in 0..pgbouncers {
        all.push(world.add_pgbouncer("").await);
    }
    let proxy = world.proxy();
    world.installed("; pgdeputy epoch").await;
    for pgbouncer in &mut all {
        pgbouncer.start().await;
        pgbouncer.expect("main", "a").await;
    }
    world.reports("it can hold", |r| r.clients == Clients::Held).await;
    Cluster { world, pgbouncers: all, proxy, a, b, c }
}

async fn is_paused(pgbouncer: &Pgbouncer) -> bool {
    pgbouncer.rows("SHOW DATABASES").await.iter().any(|row| row.get("paused") == Some("1"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transactions_end_then_clients_wait_and_go_on_at_the_new_primary_without_an_error() {
    let Cluster { world, pgbouncers, proxy: _proxy, a, b, c } = cluster(2).await;
    let running = pgbouncers[0].client("main").await.unwrap();
    let waiting = pgbouncers[1].client("main").await.unwrap();
    running.ask("BEGIN").await.unwrap();
    assert_eq!(waiting.ask("who").await.unwrap(), "a");
    // While the checkpoint is written nobody waits, and consoles are made ready for the pause.
    world.agree(&switching(7, json!({"name": "checkpoint"}))).await;
    let consoles = async || {
        let clients = pgbouncers[0].rows("SHOW CLIENTS").await;
        clients.iter().filter(|row| row.get("database") == Some("pgbouncer")).count()
    };
    // The one of proxy-config, the one that asks, and the one for the pause.
    eventually("a console is ready", async || consoles().await == 3).await;
    assert!(!is_paused(&pgbouncers[0]).await);
    world.agree(&hold(LONG)).await;
    eventually("it is paused", || is_paused(&pgbouncers[0])).await;
    assert_eq!(world.told().await.unwrap().held, None, "a transaction runs");
    running.ask("COMMIT").await.unwrap();
    held(&world).await;
    let (first, second) = (
        tokio::spawn(async move { running.ask("who").await }),
        tokio::spawn(async move { waiting.ask("who").await }),
    );
    // Reads go on at the standbys.
    pgbouncers[0].expect("main_ro", "b").await;
    world.agree(&switching(7, json!({"name": "stop"}))).await;
    let mut promoting = open(8, &["b", "a", "c"]);
    promoting.phase = Phase::Promoting;
    world.agree(&promoting).await;
    drop(a);
    assert!(
        !first.is_finished() && !second.is_finished(),
        "nobody is let go before there is a primary"
    );
    world.open(8, &[("b", &b), ("c", &c)]).await;
    assert_eq!(bounded("an answer", first).await.unwrap(), Ok("b".into()));
    assert_eq!(bounded("an answer", second).await.unwrap(), Ok("b".into()));
    world.reports("nobody is held", |r| r.held.is_none() && r.epoch.0 == 8).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_switchover_that_is_called_off_lets_clients_go_where_they_were() {
    let Cluster { world, pgbouncers, proxy: _proxy, a: _a, b: _b, c: _c } = cluster(1).await;
    world.agree(&hold(LONG)).await;
    held(&world).await;
    let client = pgbouncers[0].client("main").await;
    assert!(client.is_some() || is_paused(&pgbouncers[0]).await);
    world.agree(&open(7, &["a", "b", "c"])).await;
    pgbouncers[0].expect("main", "a").await;
    world.reports("nobody is held", |r| r.held.is_none()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_are_let_go_when_time_is_up_and_are_not_held_again() {
    let Cluster { world, pgbouncers, proxy: _proxy, a: _a, b: _b, c: _c } = cluster(1).await;
    let running = pgbouncers[0].client("main").await.unwrap();
    running.ask("BEGIN").await.unwrap();
    let begun = clock::now();
    world.agree(&hold("200ms")).await;
    eventually("it is paused", || is_paused(&pgbouncers[0])).await;
    // The store says the same for ever: nobody hears how it ends.
    let other = pgbouncers[0].client("main").await.unwrap();
    assert_eq!(other.ask("who").await.unwrap(), "a");
    assert!(clock::now().since(begun) < Duration::from_secs(10));
    assert_eq!(world.told().await.unwrap().held, None);
    running.ask("COMMIT").await.unwrap();
    world.agree(&hold("201ms")).await;
    for _ in 0..20 {
        assert_eq!(other.ask("who").await.unwrap(), "a");
    }
    assert!(!is_paused(&pgbouncers[0]).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_dead_proxy_config_left_paused_is_let_go_by_the_next_and_a_persons_pause_is_not() {
    let Cluster { world, pgbouncers, proxy, a: _a, b: _b, c: _c } = cluster(1).await;
    world.agree(&hold(LONG)).await;
    held(&world).await;
    proxy.kill().await;
    world.agree(&open(7, &["a", "b", "c"])).await;
    assert!(is_paused(&pgbouncers[0]).await);
    let next = world.proxy();
    pgbouncers[0].expect("main", "a").await;
    pgbouncers[0].command("PAUSE main").await;
    world.open(8, &[("a", &_a), ("b", &_b)]).await;
    world.reports("it follows", |r| r.epoch.0 == 8).await;
    assert!(is_paused(&pgbouncers[0]).await, "that was somebody else's");
    pgbouncers[0].command("RESUME main").await;
    next.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_config_that_is_stopped_leaves_nobody_waiting() {
    let Cluster { world, pgbouncers, proxy, a: _a, b: _b, c: _c } = cluster(1).await;
    world.agree(&hold(LONG)).await;
    held(&world).await;
    proxy.stop().await;
    assert!(!is_paused(&pgbouncers[0]).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pgbouncer_that_does_not_answer_is_named_and_the_others_hold_their_clients() {
    let Cluster { world, pgbouncers, proxy: _proxy, a: _a, b: _b, c: _c } = cluster(2).await;
    pgbouncers[1].signal(Signal::SIGSTOP);
    let name = format!("127.0.0.1:{}", pgbouncers[1].port);
    let is_named = |r: &ProxyReport| r.clients == Clients::Held && r.refusing.contains_key(&name);
    world.reports("it is named beforehand", is_named).await;
    world.agree(&hold(LONG)).await;
    held(&world).await;
    assert!(is_paused(&pgbouncers[0]).await);
    assert!(is_named(&world.told().await.unwrap()));
    pgbouncers[1].signal(Signal::SIGCONT);
    world.reports("all follow", |r| r.refusing.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_reported_held_while_one_does_not_answer_that_did_when_the_hold_began() {
    let Cluster { world, pgbouncers, proxy: _proxy, a: _a, b: _b, c: _c } = cluster(2).await;
    pgbouncers[1].signal(Signal::SIGSTOP);
    world.agree(&hold(LONG)).await;
    eventually("the other is paused", || is_paused(&pgbouncers[0])).await;
    let is_named =
        |r: &ProxyReport| r.clients == Clients::Held && r.held.is_none() && r.refusing.len() == 1;
    world.reports("it is named", is_named).await;
    pgbouncers[1].signal(Signal::SIGCONT);
    held(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_clusters_behind_one_pgbouncer_only_the_one_that_switches_waits() {
    let (mut one, mut two) = (World::new("one"), World::new("two"));
    let [a, b, c] = three().await;
    one.open(7, &[("a", &a), ("b", &b), ("c", &c)]).await;
    two.open(3, &[("c", &c)]).await;
    let (file_one, file_two) = (one.file(), two.file());
    let mut pgbouncer = Pgbouncer::new(one.directory.path(), &[&file_one, &file_two], "").await;
    for world in [&mut one, &mut two] {
        world.pgbouncer().consoles.push(pgbouncer.console());
    }
    let _proxies = (one.proxy(), two.proxy());
    one.installed("; pgdeputy epoch").await;
    two.installed("; pgdeputy epoch").await;
    pgbouncer.start().await;
    pgbouncer.expect("one", "a").await;
    pgbouncer.expect("two", "c").await;
    one.reports("it can hold", |r| r.clients == Clients::Held).await;
    one.agree(&hold(LONG)).await;
    held(&one).await;
    let waits = pgbouncer.client("two").await.unwrap();
    assert_eq!(waits.ask("who").await.unwrap(), "c");
}
