//! Drills on a live cluster: a fault is asked for in etcd, carried out and undone by the keeper beside it, and refused by
//! the guard rails.

#![allow(clippy::unwrap_used, reason = "a test may panic, also in its helpers")]

use std::process::Stdio;
use std::time::Duration;

use chaos::lab::{CLUSTER, Lab, Port};
use proto::MemberName;
use store::clock;
use system_tests::{UnderLoad, dsn, pgdeputy};
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

const BOUND: Duration = Duration::from_secs(120);

/// From the death of a runner on: its lease, and what a busy machine adds.
const UNDONE_WITHIN: Duration = Duration::from_secs(10);

fn drill(lab: &Lab, arguments: &[&str]) -> Command {
    let mut command = Command::new(pgdeputy());
    command.args(["drill", arguments[0], "--json", "--cluster", CLUSTER]);
    command.args(["--etcd", &lab.etcd_urls().join(",")]).args(&arguments[1..]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

/// Runs a drill to its end and returns its record.
async fn ran(lab: &Lab, arguments: &[&str]) -> serde_json::Value {
    let output = timeout(BOUND, drill(lab, arguments).output()).await.expect("it ends").unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    let record: serde_json::Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {said}"));
    eprintln!("drill {}: {record}", arguments[0]);
    record
}

fn stands(lab: &Lab, member: &MemberName) -> bool {
    let pid = lab.postmaster(member).expect("PostgreSQL runs");
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("it lives");
    stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('T'))
}

async fn becomes(lab: &Lab, member: &MemberName, standing: bool, bound: Duration) {
    let deadline = clock::now() + bound;
    while stands(lab, member) != standing {
        assert!(clock::now() < deadline, "{member} stands still: {}, after {bound:?}", !standing);
        sleep(Duration::from_millis(20)).await;
    }
}

/// Freezes a standby by a runner that is killed, and one whose drill is aborted.
async fn undone(lab: &Lab, standby: &MemberName) {
    let freeze = ["run", "standby-freeze", "--member", standby.as_str()];
    let mut runner: Child = drill(lab, &freeze).spawn().unwrap();
    becomes(lab, standby, true, BOUND).await;
    let second = ran(lab, &["run", "walreceiver"]).await;
    assert_eq!(second["verdict"], "refused");
    assert!(second["reasons"].to_string().contains("is under way"), "{second}");
    runner.start_kill().unwrap();
    let killed = clock::now();
    becomes(lab, standby, false, UNDONE_WITHIN).await;
    eprintln!("undone {:?} after its runner was killed", clock::now().since(killed));
    runner.wait().await.unwrap();
    lab.wait_redundant(BOUND).await.unwrap();

    let mut runner = drill(lab, &freeze).spawn().unwrap();
    becomes(lab, standby, true, BOUND).await;
    let aborted = ran(lab, &["abort"]).await;
    assert!(aborted["drill"].is_string(), "{aborted}");
    becomes(lab, standby, false, UNDONE_WITHIN).await;
    let ended = timeout(BOUND, runner.wait()).await.expect("it ends").unwrap();
    assert_eq!(ended.code(), Some(1), "an aborted drill has not passed");
    lab.wait_redundant(BOUND).await.unwrap();
}

#[tokio::test]
async fn a_live_cluster_is_drilled_within_guard_rails_and_loses_nothing() {
    let loaded = UnderLoad::start(|_| {}, 300).await;
    let (_, primary) = loaded.served().await;
    let lab = &loaded.scene.lab;
    let standby = lab.members().into_iter().find(|m| *m != primary).unwrap();
    undone(lab, &standby).await;
    let way = dsn(&lab.application_by(&Port::Write).unwrap());
    for fault in ["walreceiver", "crash", "switchover"] {
        let record = ran(lab, &["run", fault, "--seed", "7", "--dsn", &way]).await;
        assert_eq!(record["verdict"], "passed", "{record}");
        let figures = &record["figures"];
        assert_eq!(figures["canaries_lost"], 0, "{record}");
        assert!(figures["canaries_acknowledged"].as_u64().unwrap() > 0, "{record}");
        lab.wait_redundant(BOUND).await.unwrap();
    }
    let mut pause = Command::new(pgdeputy());
    pause.args(["pause", "--reason", "by hand", "--for", "1m", "--cluster", CLUSTER]);
    pause.args(["--etcd", &lab.etcd_urls().join(",")]);
    assert!(pause.status().await.unwrap().success());
    let refused = ran(lab, &["run", "crash"]).await;
    assert_eq!(refused["verdict"], "refused");
    assert!(refused["reasons"].to_string().contains("by hand"), "{refused}");

    let report = ran(lab, &["report"]).await;
    let verdicts = report["drills"].as_array().unwrap().iter().map(|d| d["verdict"].to_string());
    let verdicts: Vec<String> = verdicts.collect();
    for verdict in ["abandoned", "aborted", "passed", "refused"] {
        assert!(verdicts.contains(&format!("{verdict:?}")), "{verdict}: {report}");
    }
    assert!(report["never_passed"].to_string().contains("standby-crash"), "{report}");
    let verdict = loaded.verdict().await;
    assert!(verdict.lost.is_empty() && verdict.dual.is_empty(), "{verdict:?}");
}
