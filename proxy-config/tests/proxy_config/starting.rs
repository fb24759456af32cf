//! What proxy-config does at start, and what it refuses.

use std::fs;
use std::time::Duration;

use proto::document;
use proxy_config::{Config, HaproxyConfig};
use store::{Operation, Store, Txn, clock};
use tokio_util::sync::CancellationToken;

use crate::scene::{open, primary, routed};
use crate::waiting::{bounded, eventually};
use crate::world::{Etcd, Haproxy, Member, World};

async fn error_of(world: &World, config: Config) -> String {
    let store = std::sync::Arc::new(world.store.clone());
    let run = proxy_config::run_on(store, config, CancellationToken::new());
    format!("{:#}", bounded("proxy-config refuses", run).await.unwrap_err())
}

#[tokio::test]
async fn a_file_of_somebody_else_is_refused_and_left_as_it_is() {
    let world = World::new().await;
    let text = "global\n    maxconn 5\n";
    fs::write(&world.haproxy().file, text).unwrap();
    let error = error_of(&world, world.config.clone()).await;
    assert!(error.contains("was not written by pgdeputy: move it away"), "{error}");
    assert_eq!(fs::read_to_string(&world.haproxy().file).unwrap(), text);
}

#[tokio::test]
async fn a_file_of_another_cluster_is_refused() {
    let world = World::new().await;
    let other = "other".parse().unwrap();
    let text = proxy_config::haproxy::render(&other, world.haproxy(), &Default::default()).text;
    fs::write(&world.haproxy().file, text).unwrap();
    let error = error_of(&world, world.config.clone()).await;
    assert!(error.contains("belongs to cluster other, not main"), "{error}");
}

#[tokio::test]
async fn bad_settings_are_refused_with_the_remedy_before_any_file_is_written() {
    let world = World::new().await;
    let good = || world.haproxy().clone();
    let long = format!("/{}", "x".repeat(100));
    let cases = [
        (HaproxyConfig { read_port: good().write_port, ..good() }, "choose two ports"),
        (HaproxyConfig { file: "relative.cfg".into(), ..good() }, "absolute path"),
        (HaproxyConfig { socket: "/tmp/a b.sock".into(), ..good() }, "absolute path"),
        (HaproxyConfig { socket: long.into(), ..good() }, "shorter path"),
        (HaproxyConfig { bind: "*:5000 ssl".into(), ..good() }, "use an address of this host"),
    ];
    for (haproxy, remedy) in cases {
        let config = Config { haproxy: Some(haproxy), ..world.config.clone() };
        let error = error_of(&world, config).await;
        assert!(error.contains(remedy), "{error}");
    }
    assert_eq!(fs::read_dir(world.directory.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn an_unreachable_store_is_an_error_on_the_first_start_and_waited_for_later() {
    let world = World::new().await;
    let first = proxy_config::run(world.config.clone(), CancellationToken::new());
    let error = format!("{:#}", bounded("the first start fails", first).await.unwrap_err());
    assert!(error.contains("connect to etcd at http://127.0.0.1:1"), "{error}");
    assert!(!world.haproxy().file.exists());

    let routes = routed(Some(&open(7, &["a"])), &Default::default(), None);
    let text = proxy_config::haproxy::render(&world.config.cluster, world.haproxy(), &routes).text;
    fs::write(&world.haproxy().file, &text).unwrap();
    let stop = CancellationToken::new();
    let mut later = tokio::spawn(proxy_config::run(world.config.clone(), stop.clone()));
    let early = tokio::time::timeout(std::time::Duration::from_secs(6), &mut later).await;
    assert!(early.is_err(), "it waits for longer than a failing connect takes");
    assert_eq!(fs::read_to_string(&world.haproxy().file).unwrap(), text);
    stop.cancel();
    bounded("it stops", later).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn started_before_the_cluster_and_before_haproxy_it_gets_there() {
    let world = World::new().await;
    let (_proxy, _haproxy) = world.start().await;
    let a = Member::start("a").await;
    world.report(&a.at(primary("a"))).await;
    world.agree(&open(1, &["a"])).await;
    world.expect_writes_at("a").await;
    world.expect_reads_at("a").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_given_command_reloads() {
    let mut world = World::new().await;
    let pid_file = world.directory.path().join("master.pid");
    let said = world.directory.path().join("said");
    let (pid, said_path) = (pid_file.display(), said.display());
    world.config.haproxy.as_mut().unwrap().reload =
        Some(format!("kill -USR2 $(cat {pid}) && echo reloaded >> {said_path}"));
    let proxy = world.proxy();
    world.installed("# pgdeputy epoch").await;
    let haproxy = Haproxy::start(&world.config);
    fs::write(&pid_file, haproxy.pid().to_string()).unwrap();
    let a = Member::start("a").await;
    world.report(&a.at(primary("a"))).await;
    world.agree(&open(1, &["a"])).await;
    world.expect_writes_at("a").await;
    eventually("the command has run once", || async {
        fs::read_to_string(&said).is_ok_and(|s| s == "reloaded\n")
    })
    .await;
    proxy.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_etcd_is_followed_and_its_death_stops_no_session() {
    let mut world = World::new().await;
    let etcd = Etcd::start(world.directory.path()).await;
    let store = etcd.store().await;
    world.config.etcd = vec![etcd.url.clone()].into();
    let a = Member::start("a").await;
    a.answers_as_primary(true);
    let put = |key, value: String| Operation::Put { key, value: value.into_bytes(), lease: None };
    let report = a.at(primary("a"));
    let member = put(world.keys().member(&report.member), document::encode(&report));
    let state = put(world.keys().state(), document::encode(&open(1, &["a"])));
    store.commit(Txn { when: Vec::new(), then: vec![member, state] }).await.unwrap();

    let stop = CancellationToken::new();
    let ended = tokio::spawn(proxy_config::run(world.config.clone(), stop.clone()));
    world.installed("# pgdeputy epoch 1\n# pgdeputy write a\n").await;
    let _haproxy = Haproxy::start(&world.config);
    world.expect_writes_at("a").await;
    let writer = world.write_session().await.unwrap();

    store
        .commit(Txn {
            when: Vec::new(),
            then: vec![put(world.keys().state(), document::encode(&open(2, &["a"])))],
        })
        .await
        .unwrap();
    world.installed("# pgdeputy epoch 2\n").await;
    drop(etcd);
    // Longer than the last known state is trusted.
    let until = clock::now() + Duration::from_secs(7);
    while clock::now() < until {
        assert_eq!(world.write_session().await.unwrap().member, "a");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(writer.is_open());
    stop.cancel();
    bounded("it stops", ended).await.unwrap().unwrap();
}
