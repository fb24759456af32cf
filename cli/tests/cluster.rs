//! The commands against a real etcd: what they write, what they refuse, what they show.

#![allow(clippy::unwrap_used, reason = "a test may panic, also in its helpers")]

mod common;

use std::collections::BTreeMap;

use common::{BOUND, Etcd, run};
use keeper::view::{Serving, View};
use proto::document::encode;
use proto::status::{MemberStatus, Positions};
use proto::{ClusterName, ClusterState, Lsn, MemberReport, Timeline, WallTime, document};
use serde_json::json;
use store::keys::Keys;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio_util::sync::CancellationToken;

fn keys() -> Keys {
    Keys::of(&"demo".parse::<ClusterName>().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn init_writes_a_spec_and_passwords_once_and_a_second_one_changes_nothing() {
    let etcd = Etcd::start().await;
    let first = run(etcd.ask("init", "demo", &["--json"])).await.json();
    assert_eq!((&first["spec"], &first["secrets"]), (&json!("written"), &json!("generated")));
    let written = etcd.all(keys().prefix()).await;
    assert_eq!(written.len(), 2, "{written:?}");
    let secrets: serde_json::Value = serde_json::from_str(&written[0].1).unwrap();
    let passwords: Vec<&str> = ["superuser", "replication", "rewind"]
        .iter()
        .map(|r| secrets[r].as_str().unwrap())
        .collect();
    assert!(
        passwords.iter().all(|p| p.len() == 32) && passwords[0] != passwords[1],
        "{passwords:?}"
    );

    let second = run(etcd.ask("init", "demo", &[])).await;
    assert!(
        second.complaint(1).contains("initialised already, nothing was changed"),
        "{}",
        second.stderr
    );
    assert_eq!(etcd.all(keys().prefix()).await, written);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_replaces_the_spec_and_nothing_else_and_never_a_newer_one() {
    let etcd = Etcd::start().await;
    let file = tempfile::Builder::new().suffix(".toml").tempfile().unwrap();
    std::fs::write(file.path(), "lease_ttl = '6s'\n").unwrap();
    let update = ["--update", "--json", "--spec", file.path().to_str().unwrap()];
    let too_early = run(etcd.ask("init", "demo", &update)).await;
    assert!(too_early.complaint(1).contains("leave out --update"), "{}", too_early.stderr);

    run(etcd.ask("init", "demo", &[])).await.answer();
    let before = etcd.all(keys().prefix()).await;
    let done = run(etcd.ask("init", "demo", &update)).await.json();
    assert_eq!((&done["spec"], &done["secrets"]), (&json!("replaced"), &json!("kept")));
    let after = etcd.all(keys().prefix()).await;
    assert_eq!(after[0], before[0], "the passwords stay");
    assert!(after[1].1.contains(r#""lease_ttl":"6s""#), "{}", after[1].1);
    let again = run(etcd.ask("init", "demo", &update)).await.json();
    assert_eq!(again["spec"], "unchanged");

    etcd.put(keys().spec(), r#"{"format_version":2,"novelty":true}"#.into()).await;
    let newer = etcd.all(keys().prefix()).await;
    let refused = run(etcd.ask("init", "demo", &update)).await;
    assert!(refused.complaint(1).contains("upgrade pgdeputy"), "{}", refused.stderr);
    let status = run(etcd.ask("status", "demo", &[])).await;
    assert!(status.complaint(1).contains("upgrade pgdeputy"), "{}", status.stderr);
    assert_eq!(etcd.all(keys().prefix()).await, newer);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_etcd_that_does_not_answer_and_an_unknown_cluster_are_one_clear_line() {
    let nobody = common::free_url();
    // At once: each takes its time to give up.
    let mut asked = tokio::task::JoinSet::new();
    for command in ["init", "status", "history", "explain", "dsn"] {
        asked.spawn(run(common::pgdeputy(&[command, "--cluster", "demo", "--etcd", &nobody])));
    }
    for ended in asked.join_all().await {
        assert!(ended.complaint(1).contains(&nobody), "{}", ended.stderr);
    }
    let etcd = Etcd::start().await;
    for command in ["status", "history", "explain", "dsn"] {
        let ended = run(etcd.ask(command, "demo", &[])).await;
        assert!(ended.complaint(1).contains("pgdeputy init"), "{}", ended.stderr);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_was_only_initialised_waits_for_a_sentinel_and_says_so() {
    let etcd = Etcd::start().await;
    run(etcd.ask("init", "demo", &[])).await.answer();
    let status = run(etcd.ask("status", "demo", &["--json"])).await.json();
    assert_eq!((&status["phase"], &status["primary"]), (&json!("waiting"), &json!(null)));
    assert_eq!((&status["members"], &status["promotable"]), (&json!([]), &json!([])));
    let explained = run(etcd.ask("explain", "demo", &["--json"])).await.json();
    assert!(explained["explanation"].is_null());
    assert!(explained["note"].as_str().unwrap().contains("no sentinel leads"), "{explained}");
    let history = run(etcd.ask("history", "demo", &[])).await;
    assert!(history.answer().contains("nothing has changed yet"));
    let dsn = run(etcd.ask("dsn", "demo", &[])).await;
    assert!(dsn.complaint(1).contains("start the keepers"), "{}", dsn.stderr);
}

/// A cluster of a (primary of epoch 7), b (its voter) and c (whose keeper does not answer), as its processes
/// would have written it, with endpoints of living keepers.
struct Scene {
    etcd: Etcd,
    stop: CancellationToken,
}

impl Scene {
    async fn start() -> Self {
        let etcd = Etcd::start().await;
        run(etcd.ask("init", "demo", &[])).await.answer();
        let stop = CancellationToken::new();
        let mut reports = BTreeMap::new();
        for (member, flush) in [("a", Some(0x500_0748)), ("b", Some(0x500_0148)), ("c", None)] {
            // c's port is bound and never accepted from: it connects, and no answer comes.
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let report = report(member, &listener.local_addr().unwrap().to_string());
            reports.insert(report.member.clone(), report.clone());
            match flush {
                Some(flush) => {
                    let (view, seen) = tokio::sync::watch::channel(view(report, Lsn(flush)));
                    let stop = stop.clone();
                    tokio::spawn(async move {
                        let _kept = view;
                        let more = Default::default();
                        keeper::http::serve(listener, seen, Default::default(), more, stop).await
                    });
                }
                None => {
                    let stop = stop.clone();
                    tokio::spawn(async move {
                        stop.cancelled().await;
                        drop(listener);
                    });
                }
            }
        }
        for report in reports.values() {
            etcd.put(keys().member(&report.member), encode(report)).await;
        }
        let scene = Self { etcd, stop };
        scene.agree(7).await;
        scene
    }

    /// Writes the agreed state with this epoch, and the leader's explanation of it.
    async fn agree(&self, epoch: u64) {
        let state = state(epoch);
        let explanation = json!({
            "format_version": 1, "leader": "s1", "state": state.number, "epoch": epoch,
            "verdict": "all is as it should be", "primary": "a was chosen", "promotable": ["b"],
            "promotable_reason": "b is a seal set of every Cfg", "rejected": [], "warnings": [],
        });
        let leader = json!({"format_version": 1, "id": "s1", "host": "h", "listen": null, "pgdeputy_version": "0.1.0"});
        self.etcd.put(keys().leader(), leader.to_string()).await;
        self.etcd.put(keys().sentinel("s1"), leader.to_string()).await;
        self.etcd.put(keys().explanation(), explanation.to_string()).await;
        self.etcd.put(keys().state(), encode(&state)).await;
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn state(epoch: u64) -> ClusterState {
    let admitted = |n: &str| json!({"incarnation": n, "floor": null});
    let state = json!({
        "format_version": 1, "number": epoch + 34, "etcd_cluster_id": "1", "epoch": epoch,
        "phase": {"name": "open"}, "primary": "a",
        "cfgs": [{"id": 9, "epoch": epoch, "leader": "a", "voters": ["b"], "k": 1, "round": 0}],
        "last_cfg": 9, "timeline": 3, "highest_timeline": 3, "open_at_once": true, "epochs": [],
        "members": {"a": admitted("a"), "b": admitted("b"), "c": admitted("c")},
    });
    document::decode(state.to_string().as_bytes()).unwrap()
}

fn report(member: &str, http_address: &str) -> MemberReport {
    let server = if member == "a" { "primary" } else { "standby" };
    let opened = json!({"epoch": 7, "timeline": 3, "start_lsn": "0/3000060", "restart": 0});
    let stream = match member {
        "a" => json!({"state": "none"}),
        _ => json!({"state": "live", "epoch": 7, "timeline": 3, "voter": member == "b"}),
    };
    let report = json!({
        "format_version": 1, "member": member, "incarnation": member, "understands_format": 1,
        "pgdeputy_version": "0.1.0", "postgres_version": 150018, "postgres_address": format!("10.0.0.{}:5432", member.as_bytes()[0] - b'a' + 1),
        "http_address": http_address, "zone": null, "promise": 7, "data": "present", "complete": true,
        "server": {"state": server, "timeline": 3}, "opened": if member == "a" { opened } else { json!(null) },
        "stream": stream, "problems": [],
    });
    document::decode(report.to_string().as_bytes()).unwrap()
}

fn view(report: MemberReport, flush_lsn: Lsn) -> View {
    let replay_lsn = Some(flush_lsn).filter(|_| report.member.as_str() != "a");
    let positions = Some(Positions { timeline: Timeline(3), flush_lsn, replay_lsn });
    let asked = WallTime(0);
    let status = MemberStatus {
        report,
        positions,
        standbys: Vec::new(),
        serve_for_ms: None,
        lag: None,
        fresh: false,
        remote_apply: None,
        fenced_by: None,
        rejoin_progress: None,
        prepared: Default::default(),
        asked,
    };
    View {
        status,
        cluster: None,
        serving: Serving::Nobody,
        serve_until: None,
        lag: None,
        fresh: false,
        synchronous: false,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn status_shows_what_was_agreed_and_what_the_keepers_answer() {
    let scene = Scene::start().await;
    let status = run(scene.etcd.ask("status", "demo", &["--json"])).await.json();
    assert_eq!(
        (&status["epoch"], &status["phase"], &status["primary"]),
        (&json!(7), &json!("open"), &json!("a"))
    );
    assert_eq!((&status["promotable"], &status["leader"]), (&json!(["b"]), &json!("s1")));
    let shown = |nth: usize| {
        let m = &status["members"][nth];
        json!([
            m["name"],
            m["role"],
            m["state"],
            m["healthy"],
            m["lsn"],
            m["lag_bytes"],
            m["synchronous"]
        ])
    };
    assert_eq!(shown(0), json!(["a", "primary", "running", true, "0/5000748", null, false]));
    assert_eq!(shown(1), json!(["b", "standby", "streaming", true, "0/5000148", 0x600, true]));
    assert_eq!(shown(2), json!(["c", "standby", "streaming", true, null, null, false]));

    let text = run(scene.etcd.ask("status", "demo", &[])).await;
    assert!(
        text.answer().starts_with("cluster demo: open, epoch 7, primary a\n"),
        "{}",
        text.stdout
    );
    let dsn = run(scene.etcd.ask("dsn", "demo", &["--user", "app"])).await;
    let hosts = "10.0.0.1:5432,10.0.0.2:5432,10.0.0.3:5432";
    assert_eq!(
        dsn.answer().trim(),
        format!("postgresql://app@{hosts}/postgres?target_session_attrs=read-write")
    );
    for (more, hosts, attrs) in [
        (&["--read"][..], "10.0.0.2:5432,10.0.0.3:5432", "prefer-standby"),
        (&["--role", "primary"], "10.0.0.1:5432", "read-write"),
        (&["--at-least", "0/5000148"], "10.0.0.1:5432,10.0.0.2:5432", "any"),
        (&["--at-least", "0/5000149"], "10.0.0.1:5432", "any"),
        (&["--at-least", "0/5000148", "--role", "standby"], "10.0.0.2:5432", "any"),
    ] {
        let dsn = run(scene.etcd.ask("dsn", "demo", more)).await;
        let expected = format!("postgresql://{hosts}/postgres?target_session_attrs={attrs}");
        assert_eq!(dsn.answer().trim(), expected, "{more:?}");
    }
    let dsn = run(scene.etcd.ask("dsn", "demo", &["--at-least", "0/6000000"])).await;
    assert!(dsn.complaint(1).contains("known to have replayed 0/6000000"), "{}", dsn.stderr);
    let explained = run(scene.etcd.ask("explain", "demo", &[])).await;
    assert!(
        explained
            .answer()
            .contains("could take over without loss: b (b is a seal set of every Cfg)"),
        "{}",
        explained.stdout
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn status_watch_shows_a_change_without_being_asked_again_and_ends_on_request() {
    let scene = Scene::start().await;
    let mut command =
        tokio::process::Command::from(scene.etcd.ask("status", "demo", &["--watch", "--json"]));
    command.stdout(std::process::Stdio::piped()).kill_on_drop(true);
    let mut watching = command.spawn().unwrap();
    let mut lines = BufReader::new(watching.stdout.take().unwrap()).lines();
    let mut next_epoch = async || {
        let line = tokio::time::timeout(BOUND, lines.next_line()).await.unwrap().unwrap().unwrap();
        serde_json::from_str::<serde_json::Value>(&line).unwrap()["epoch"].as_u64().unwrap()
    };
    assert_eq!(next_epoch().await, 7);
    scene.agree(8).await;
    while next_epoch().await != 8 {}
    let pid = nix::unistd::Pid::from_raw(watching.id().unwrap().try_into().unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
    let ended = tokio::time::timeout(BOUND, watching.wait()).await.unwrap().unwrap();
    assert_eq!(ended.code(), Some(0));
}
