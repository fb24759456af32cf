//! What cannot be is refused at the start: one line names the cause and the remedy, and nothing on disk changes.

#![allow(clippy::unwrap_used, reason = "a test may panic, also in its helpers")]

use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::time::Duration;

use chaos::lab::{Lab, LabConfig};
use keeper::postgres::binaries::PostgresBinaries;
use store::{Operation, Txn};
use system_tests::attempt::{Files, Intruder, assert_unchanged, attempt, files};
use system_tests::{Scene, scene};

const USAGE: i32 = 64;
const FAILURE: i32 = 1;

const BOUND: Duration = Duration::from_secs(120);

/// Nobody listens on the port of the discard service.
const NO_ETCD: &str = "http://127.0.0.1:9";

fn alone(config: &mut LabConfig) {
    config.members = 1;
    config.sentinels = 1;
}

/// A cluster of one member that has its data.
async fn founded() -> Scene {
    let scene = scene(alone).await;
    scene
        .lab
        .await_cluster("the cluster is founded", BOUND, |c| c.service().map(drop))
        .await
        .unwrap();
    scene
}

#[tokio::test]
async fn a_spec_with_an_unknown_field_or_impossible_timings_is_refused_before_any_socket_opens() {
    let directory = tempfile::tempdir().unwrap();
    for (text, words) in [
        ("lease_tll = \"4s\"\n", &["lease_tll", "unknown field"][..]),
        ("[synchronous]\ncuont = 1\n", &["cuont", "unknown field"]),
        ("lease_ttl = \"1s\"\n", &["lease_ttl is 1s", "use 2s to 60s"]),
        (
            "lease_ttl = \"2s\"\nfence_time = \"1s\"\n",
            &["lease_ttl 2s less fence_time 1s", "lower fence_time to 800ms"],
        ),
        ("lease_ttl = \"2500ms\"\n", &["lease_ttl is 2s 500ms", "whole seconds"]),
        ("[synchronous]\ncount = 0\n", &["synchronous.count must be at least 1"]),
        ("[postgres.parameters]\nfsync = \"off\"\n", &["fsync is pgdeputy's own"]),
        (
            "[postgres]\npg_hba = [\"host all all all trust\"]\n",
            &["use scram-sha-256, cert or reject"],
        ),
        ("format_version = 99\n", &["format_version 99", "upgrade pgdeputy"]),
    ] {
        let spec = directory.path().join("spec.toml");
        std::fs::write(&spec, text).unwrap();
        let before = files(directory.path());
        let refusal = attempt(&[
            "init",
            "--cluster",
            "x",
            "--etcd",
            NO_ETCD,
            "--spec",
            spec.to_str().unwrap(),
        ])
        .await;
        refusal.says(USAGE, words);
        assert_eq!(refusal.stderr.lines().count(), 1, "{}", refusal.stderr);
        assert_unchanged(directory.path(), &before);
    }
}

#[tokio::test]
async fn a_bad_value_of_a_flag_is_refused_with_status_64_in_one_line() {
    let keeper = ["keeper", "--cluster", "x", "--etcd", NO_ETCD, "--data-dir", "/nonexistent/data"];
    let member = ["--member", "a", "--listen", "127.0.0.1:5", "--http", "127.0.0.1:6"];
    let with = |more: &[&'static str]| [keeper.as_slice(), more].concat();
    for (arguments, words) in [
        (
            with(&["--member", "A", "--listen", "127.0.0.1:5", "--http", "127.0.0.1:6"]),
            &["--member", "use 1 to 40"][..],
        ),
        (with(&["--member", "a", "--listen", "127.0.0.1", "--http", "127.0.0.1:6"]), &["--listen"]),
        (
            with(&["--member", "a", "--listen", "127.0.0.1:6", "--http", "127.0.0.1:6"]),
            &["use two ports"],
        ),
        (
            [with(&member), vec!["--postgres-bin", "/nonexistent"]].concat(),
            &["/nonexistent", "no program `postgres`"],
        ),
        (
            [with(&member), vec!["--postgres-user", "nobody-has-this"]].concat(),
            &["nobody-has-this", "no such user"],
        ),
        (vec!["sentinel", "--etcd", NO_ETCD], &["--cluster"]),
        (vec!["demo", "--fault", "meteor"], &["meteor", "crash-twice"]),
        (vec!["demo", "--members", "1"], &["--members", "2 to 7"]),
    ] {
        let refusal = attempt(&arguments).await;
        refusal.says(USAGE, words);
        assert_eq!(refusal.stderr.lines().count(), 1, "{}", refusal.stderr);
    }
}

#[tokio::test]
async fn an_etcd_that_does_not_answer_ends_every_role_at_its_start_and_is_named() {
    let directory = tempfile::tempdir_in("/tmp").unwrap();
    // The keepers' user can make its directories in it, so that nothing has to be made for it as root.
    if let Some(user) = nix::unistd::User::from_name("postgres").unwrap().filter(|_| is_root()) {
        chown(directory.path(), Some(user.uid.as_raw()), None).unwrap();
    }
    let path = |name: &str| directory.path().join(name).display().to_string();
    let (data, config, socket) = (path("data"), path("haproxy.cfg"), path("haproxy.sock"));
    let cluster = ["--cluster", "x", "--etcd", NO_ETCD];
    let keeper =
        ["--member", "a", "--data-dir", &data, "--listen", "127.0.0.1:7", "--http", "127.0.0.1:8"];
    let ports = ["--write-port", "7", "--read-port", "8"];
    let proxy = ["--haproxy-config", &config, "--haproxy-socket", &socket];
    for arguments in [
        [&["keeper"][..], &cluster, &keeper].concat(),
        [&["sentinel"][..], &cluster].concat(),
        [&["proxy-config"][..], &cluster, &proxy, &ports].concat(),
        [&["init"][..], &cluster].concat(),
        [&["status"][..], &cluster].concat(),
    ] {
        let refusal = attempt(&arguments).await;
        refusal.says(FAILURE, &[NO_ETCD]);
        assert_unchanged(directory.path(), &Files::new());
    }
}

#[tokio::test]
async fn a_keeper_does_not_take_what_is_anothers() {
    let mut scene = founded().await;
    let lab = &mut scene.lab;
    let living = Intruder::new(lab, "a").is_refused().await;
    living.says(FAILURE, &["name a is taken by a living keeper", "choose another --member"]);

    let data = data_of_another_cluster(lab);
    let foreign = data.is_refused().await;
    foreign.says(FAILURE, &["system identifier", "belongs to another cluster", "name another"]);

    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = listener.local_addr().unwrap();
    let on_listen = Intruder::new(lab, "y").with("--listen", taken).is_refused().await;
    on_listen.says(FAILURE, &["--listen", &taken.to_string(), "another process"]);
    let on_http = Intruder::new(lab, "z").with("--http", taken).is_refused().await;
    on_http.says(FAILURE, &["--http", &taken.to_string(), "another process"]);

    assert_eq!(lab.keeper_ended(&"a".parse().unwrap()), None);
    lab.primary().await.expect("the cluster was not disturbed");
}

#[tokio::test]
async fn a_postgresql_that_is_too_old_or_unknown_is_refused_by_its_version() {
    let mut scene = scene(alone).await;
    for (version, member) in [("14.9", "old"), ("15.10", "unpatched"), ("19.1", "new")] {
        let bin = tempfile::tempdir().unwrap();
        std::fs::set_permissions(bin.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        for program in
            ["postgres", "initdb", "pg_basebackup", "pg_rewind", "pg_controldata", "pg_ctl"]
        {
            write_program(
                &bin.path().join(program),
                &format!("echo '{program} (PostgreSQL) {version}'"),
            );
        }
        let intruder =
            Intruder::new(&mut scene.lab, member).with("--postgres-bin", bin.path().display());
        intruder.is_refused().await.says(FAILURE, &[version, "supported are"]);
    }
}

#[tokio::test]
async fn documents_of_a_newer_format_are_neither_acted_on_nor_written_over() {
    let mut scene = founded().await;
    let lab = &mut scene.lab;
    let a = "a".parse().unwrap();
    let (spec, state) = (lab.keys().spec(), lab.keys().state());
    let newer = br#"{"format_version":99,"wishes":"of a later release"}"#.to_vec();
    let put = Operation::Put { key: spec.clone(), value: newer.clone(), lease: None };
    lab.store().commit(Txn { when: Vec::new(), then: vec![put] }).await.unwrap();
    let refusal = Intruder::new(lab, "late").is_refused().await;
    refusal.says(FAILURE, &["spec has format_version 99", "upgrade pgdeputy on this host"]);
    lab.kill_member(&a).unwrap();
    lab.member_gone(&a).await.unwrap();
    let member_file = lab.layout().state(&a).join("member.json");
    let text = std::fs::read_to_string(&member_file).unwrap();
    let text = text.replacen("\"format_version\":1", "\"format_version\":99", 1);
    assert!(text.contains(":99"), "{text}");
    std::fs::write(&member_file, &text).unwrap();
    lab.start_member(&a).unwrap();
    let ended = lab.keeper_ends(&a, Duration::from_secs(30)).await.unwrap();
    assert_eq!(ended, "exit status: 1");
    assert_eq!(std::fs::read_to_string(&member_file).unwrap(), text);
    let kept = lab.store().read(lab.keys().prefix()).await.unwrap();
    assert_eq!(kept.entries[&spec].value, newer);
    assert!(kept.entries.contains_key(&state));
}

/// A keeper whose data directory somebody else has made by initdb.
fn data_of_another_cluster(lab: &mut Lab) -> Intruder {
    let intruder = Intruder::new(lab, "x");
    let owner = std::fs::metadata(intruder.directory()).unwrap();
    let mut initdb = std::process::Command::new(PostgresBinaries::find(None).unwrap().initdb());
    initdb.arg("--no-sync").arg("--pgdata").arg(intruder.directory().join("data"));
    initdb.current_dir("/").uid(owner.uid()).gid(owner.gid());
    let made = initdb.output().unwrap();
    assert!(made.status.success(), "{made:?}");
    intruder
}

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

fn write_program(path: &Path, script: &str) {
    std::fs::write(path, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}
