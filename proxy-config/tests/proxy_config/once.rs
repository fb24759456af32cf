//! What a person asks proxy-config to do once, and what stands in its way.

use std::fs;
use std::os::unix::net::UnixListener;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use proxy_config::once::{Done, once_on, preview_on};
use proxy_config::push::push;
use proxy_config::{Config, HaproxyConfig};
use store::Store;
use tokio::net::TcpListener;

use crate::scene::{open, primary, standby};
use crate::waiting::eventually;
use crate::world::{Haproxy, Member, World};

async fn once(world: &World) -> anyhow::Result<Done> {
    let store: Arc<dyn Store> = Arc::new(world.store.clone());
    once_on(store, &world.config).await
}

async fn preview(world: &World) -> Vec<String> {
    let store: Arc<dyn Store> = Arc::new(world.store.clone());
    preview_on(store, &world.config).await.unwrap().lines
}

async fn error(world: &World) -> String {
    format!("{:#}", once(world).await.unwrap_err())
}

/// Epoch 7 of a and b; nothing is installed.
async fn agreed() -> (World, Member, Member) {
    let world = World::new().await;
    let (a, b) = (Member::start("a").await, Member::start("b").await);
    a.answers_as_primary(true);
    world.report(&a.at(primary("a"))).await;
    world.report(&b.at(standby("b", 7))).await;
    world.agree(&open(7, &["a", "b"])).await;
    (world, a, b)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn once_installs_and_switches_and_a_dry_run_only_says_what_it_would() {
    let (world, _a, _b) = agreed().await;
    let shown = preview(&world).await;
    assert!(shown.iter().any(|line| line == "+# pgdeputy write a"), "{shown:?}");
    assert_eq!(fs::read_dir(world.directory.path()).unwrap().count(), 0, "nothing is written");

    let done = once(&world).await.unwrap();
    assert!(done.lines.contains(&"epoch 7: writes to a".to_owned()), "{done:?}");
    assert!(done.lines.last().unwrap().ends_with("HAProxy does not run yet"), "{done:?}");
    assert_eq!(preview(&world).await, Vec::<String>::new(), "nothing is left to do");

    let _haproxy = Haproxy::start(&world.config);
    let socket = world.haproxy().socket.clone();
    eventually("HAProxy answers", || async { socket.exists() }).await;
    world.agree(&open(8, &["b", "a"])).await;
    let shown = preview(&world).await;
    assert!(shown.contains(&"-# pgdeputy write a".to_owned()), "{shown:?}");
    assert!(shown.contains(&"+# pgdeputy write b".to_owned()), "{shown:?}");
    let done = once(&world).await.unwrap();
    assert!(done.lines.last().unwrap().contains(" follows "), "{done:?}");
    assert_eq!(world.write_session().await.unwrap().member, "b");
    // Nor does it go back.
    world.agree(&open(7, &["a", "b"])).await;
    assert!(error(&world).await.contains("epoch 8 was routed by already"));
}

#[tokio::test]
async fn what_haproxy_refuses_is_not_installed_and_the_file_before_stays() {
    let (world, _a, b) = agreed().await;
    once(&world).await.unwrap();
    let before = fs::read_to_string(&world.haproxy().file).unwrap();
    let mut nowhere = b.at(standby("b", 7));
    nowhere.http_address = "no-such-host.invalid:8008".into();
    world.report(&nowhere).await;
    let said = error(&world).await;
    assert!(said.contains("HAProxy refuses") && said.contains("the file before stays"), "{said}");
    assert!(said.contains("no-such-host.invalid"), "HAProxy's own words are in it: {said}");
    assert_eq!(fs::read_to_string(&world.haproxy().file).unwrap(), before);
}

#[tokio::test]
async fn a_path_that_cannot_be_written_is_said_with_what_to_do() {
    let (world, _a, _b) = agreed().await;
    fs::create_dir(format!("{}.new", world.haproxy().file.display())).unwrap();
    let said = error(&world).await;
    assert!(said.contains("haproxy.cfg.new: its directory must be there, and writable"), "{said}");
}

#[tokio::test]
async fn ports_and_sockets_of_another_cluster_on_the_host_are_refused() {
    let (world, _a, _b) = agreed().await;
    let other = "other".parse().unwrap();
    let own = world.haproxy().clone();
    let beside = HaproxyConfig { file: world.directory.path().join("other.cfg"), ..own.clone() };
    let text = |config: &HaproxyConfig| {
        proxy_config::haproxy::render(&other, config, &Default::default()).text
    };
    let (socket, port) = ("/nowhere/h.sock".into(), own.read_port);
    let same_port = HaproxyConfig { write_port: port, read_port: 1, socket, ..beside.clone() };
    let same_socket = HaproxyConfig { write_port: 1, read_port: 2, ..beside.clone() };
    let elsewhere = HaproxyConfig { bind: "127.0.0.2".into(), ..same_port.clone() };
    for (taken, remedy) in [(same_port, "belongs to cluster other"), (same_socket, "another path")]
    {
        fs::write(&beside.file, text(&taken)).unwrap();
        let said = error(&world).await;
        assert!(said.contains(remedy) && said.contains("other.cfg"), "{said}");
    }
    fs::write(&beside.file, text(&elsewhere)).unwrap();
    once(&world).await.unwrap();
}

#[tokio::test]
async fn a_port_on_which_another_program_listens_is_refused_at_the_first_installation() {
    let (mut world, _a, _b) = agreed().await;
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let read_port = taken.local_addr().unwrap().port();
    let haproxy = HaproxyConfig { read_port, ..world.haproxy().clone() };
    world.config = Config { haproxy: Some(haproxy), ..world.config.clone() };
    let said = error(&world).await;
    assert!(said.contains("--read-port") && said.contains("choose another port"), "{said}");
}

/// Ends with the test.
struct Other(Child);

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn a_socket_that_is_dead_or_may_only_look_is_told_apart() {
    let world = World::new().await;
    let socket = &world.haproxy().socket;
    let lines = ["set server pgdeputy_write/a health up".to_owned()];
    drop(UnixListener::bind(socket).unwrap());
    let dead = push(socket, &lines).await.unwrap_err().to_string();
    assert!(dead.contains("socket does not answer"), "{dead}");
    fs::remove_file(socket).unwrap();

    let file = world.directory.path().join("operator.cfg");
    let port = world.haproxy().write_port;
    let listen = format!("frontend f\n    mode tcp\n    bind 127.0.0.1:{port}\n");
    let text = format!("global\n    stats socket {} level operator\n", socket.display());
    fs::write(&file, format!("{text}defaults\n    timeout client 1s\n{listen}")).unwrap();
    let mut command = Command::new("haproxy");
    command.arg("-db").arg("-f").arg(&file).stdin(Stdio::null());
    let _haproxy = Other(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    eventually("it says that it may only look", || async {
        let said = push(socket, &lines).await.err().map(|e| e.to_string());
        said.is_some_and(|said| said.contains("has no admin level"))
    })
    .await;
}
