//! A real HAProxy that follows the agreed state.

use std::time::Duration;

use proto::proxy::ProxyReport;
use proto::{ClusterSpec, Epoch, document};
use store::{Store, clock};

use crate::scene::{open, primary, sealing, standby};
use crate::waiting::{bounded, eventually};
use crate::world::{Haproxy, Member, Proxy, World};

struct Cluster {
    world: World,
    proxy: Proxy,
    haproxy: Haproxy,
    a: Member,
    b: Member,
}

/// Epoch 7: `a` is the primary, `b` its standby, and clients are led to both.
async fn cluster() -> Cluster {
    let world = World::new().await;
    let (a, b) = (Member::start("a").await, Member::start("b").await);
    a.answers_as_primary(true);
    world.report(&a.at(primary("a"))).await;
    world.report(&b.at(standby("b", 7))).await;
    world.agree(&open(7, &["a", "b"])).await;
    let (proxy, haproxy) = world.start().await;
    world.expect_writes_at("a").await;
    world.expect_reads_at("b").await;
    Cluster { world, proxy, haproxy, a, b }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_switch_within_milliseconds_and_the_old_session_is_cut() {
    let Cluster { world, proxy: _proxy, haproxy: _haproxy, a: _a, b: _b } = cluster().await;
    let old = world.write_session().await.unwrap();
    let begun = clock::now();
    // Neither member's own answer has changed: the agreed state alone switches.
    world.agree(&open(8, &["b", "a"])).await;
    old.expect_cut().await;
    let cut_after = clock::now().since(begun);
    world.expect_writes_at("b").await;
    let switched_after = clock::now().since(begun);
    println!("cut after {cut_after:?}, switched after {switched_after:?}");
    // Quicker than any check could be; a few milliseconds on an idle machine.
    assert!(switched_after < Duration::from_millis(400), "{switched_after:?}");
    world.installed("# pgdeputy epoch 8\n# pgdeputy write b\n").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_primary_that_still_answers_gets_no_writes() {
    let Cluster { world, proxy: _proxy, haproxy: _haproxy, a: _a, b: _b } = cluster().await;
    world.agree(&open(8, &["b", "a"])).await;
    world.expect_writes_at("b").await;
    // Long enough for five good checks of `a` and five bad ones of `b`.
    let until = clock::now() + Duration::from_millis(2500);
    while clock::now() < until {
        assert_eq!(world.write_session().await.unwrap().member, "b");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_sealing_nobody_gets_writes_and_readers_stay() {
    let Cluster { world, proxy: _proxy, haproxy: _haproxy, a: _a, b: _b } = cluster().await;
    let (writer, reader) =
        (world.write_session().await.unwrap(), world.read_session().await.unwrap());
    world.agree(&sealing(open(7, &["a", "b"]))).await;
    writer.expect_cut().await;
    let until = clock::now() + Duration::from_millis(1500);
    while clock::now() < until {
        assert!(world.write_session().await.is_none());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(reader.is_open());
    assert_eq!(world.read_session().await.unwrap().member, "b");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lower_epoch_changes_nothing_also_after_a_restart() {
    let Cluster { world, proxy, haproxy: _haproxy, a: _a, b: _b } = cluster().await;
    world.installed("# pgdeputy epoch 7").await;
    let writer = world.write_session().await.unwrap();
    let before = std::fs::read_to_string(&world.haproxy().file).unwrap();
    world.agree(&open(6, &["b", "a"])).await;
    proxy.stop().await;
    let _proxy = world.proxy();
    let until = clock::now() + Duration::from_millis(1500);
    while clock::now() < until {
        assert_eq!(world.write_session().await.unwrap().member, "a");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(writer.is_open());
    assert_eq!(std::fs::read_to_string(&world.haproxy().file).unwrap(), before);
    // It is alive and goes on with the next higher epoch.
    world.agree(&open(8, &["b", "a"])).await;
    world.expect_writes_at("b").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_is_added_is_read_from_after_the_reload() {
    let Cluster { world, proxy: _proxy, haproxy, a: _a, b: _b } = cluster().await;
    let (writer, master) = (world.write_session().await.unwrap(), haproxy.pid());
    let c = Member::start("c").await;
    world.report(&c.at(standby("c", 7))).await;
    world.agree(&open(7, &["a", "b", "c"])).await;
    world.expect_reads_at("c").await;
    world.expect_reads_at("b").await;
    world.expect_writes_at("a").await;
    assert!(writer.is_open(), "a reload cuts nobody");
    assert!(std::fs::exists(format!("/proc/{master}")).unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_haproxy_that_starts_again_sends_no_write_to_a_standby() {
    let Cluster { world, proxy: _proxy, haproxy, a: _a, b: _b } = cluster().await;
    world.agree(&open(8, &["b", "a"])).await;
    world.installed("# pgdeputy epoch 8").await;
    drop(haproxy);
    let _haproxy = Haproxy::start(&world.config);
    // From the first session that is let in on: not one may land elsewhere.
    let mut landed = 0;
    bounded("sessions are let in again", async {
        while landed < 50 {
            if let Some(session) = world.write_session().await {
                assert_eq!(session.member, "b");
                landed += 1;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_proxy_config_dead_the_checks_find_the_next_primary() {
    let Cluster { world, proxy, haproxy: _haproxy, a, b } = cluster().await;
    proxy.stop().await;
    a.answers_as_primary(false);
    b.answers_as_primary(true);
    world.expect_writes_at("b").await;
    assert_eq!(world.read_session().await.unwrap().member, "b", "no standby is left to read from");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_the_store_away_sessions_stay_and_no_file_changes() {
    let Cluster { world, proxy: _proxy, haproxy: _haproxy, a: _a, b: _b } = cluster().await;
    let writer = world.write_session().await.unwrap();
    let before = std::fs::read_to_string(&world.haproxy().file).unwrap();
    world.store.make_reads_unavailable();
    world.store.cancel_watches();
    let until = clock::now() + Duration::from_millis(1500);
    while clock::now() < until {
        assert_eq!(world.write_session().await.unwrap().member, "a");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(writer.is_open());
    assert_eq!(std::fs::read_to_string(&world.haproxy().file).unwrap(), before);
    // What happened meanwhile is seen as soon as the store is back.
    world.agree(&open(8, &["b", "a"])).await;
    world.store.make_reads_available();
    writer.expect_cut().await;
    world.expect_writes_at("b").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_the_store_away_for_longer_the_checks_find_the_next_primary() {
    let Cluster { world, proxy: _proxy, haproxy: _haproxy, a, b } = cluster().await;
    let short_lease = ClusterSpec { lease_ttl: Duration::from_secs(2), ..ClusterSpec::default() };
    world.put(world.keys().spec(), &short_lease).await;
    world.store.make_reads_unavailable();
    world.store.cancel_watches();
    a.answers_as_primary(false);
    b.answers_as_primary(true);
    world.expect_writes_at("b").await;
    world.installed("# pgdeputy epoch 7\n# pgdeputy write a\n").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_of_a_newer_format_is_stood_by() {
    let Cluster { world, proxy: _proxy, haproxy: _haproxy, a: _a, b: _b } = cluster().await;
    let newer = document::encode(&open(8, &["b", "a"]))
        .replace("\"format_version\":1", "\"format_version\":99");
    world.put_text(world.keys().state(), newer).await;
    let until = clock::now() + Duration::from_millis(1500);
    while clock::now() < until {
        assert_eq!(world.write_session().await.unwrap().member, "a");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_epoch_that_haproxy_follows_is_announced_and_taken_away_at_the_end() {
    let Cluster { world, proxy, haproxy: _haproxy, a: _a, b: _b } = cluster().await;
    let key = world.keys().proxy("proxy-1");
    let announced = || async {
        let snapshot = world.store.read(&key).await.unwrap();
        snapshot.entries.get(&key).map(|e| document::decode::<ProxyReport>(&e.value).unwrap().epoch)
    };
    eventually("epoch 7 is announced", || async { announced().await == Some(Epoch(7)) }).await;
    world.agree(&open(8, &["b", "a"])).await;
    eventually("epoch 8 is announced", || async { announced().await == Some(Epoch(8)) }).await;
    proxy.stop().await;
    assert_eq!(announced().await, None);
}
