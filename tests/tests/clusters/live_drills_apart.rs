//! Drills on a live cluster whose runner shares neither network nor processes with whom it drills, and drills of services.

#![allow(clippy::unwrap_used, reason = "a test may panic, also in its helpers")]

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use chaos::lab::network::Placement;
use chaos::lab::{Lab, Port};
use store::clock;
use system_tests::{dsn, scene};
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

use crate::live_drills::{BOUND, UNDONE_WITHIN, becomes, drill, no_problem, ran, stands};

/// The same command in a pid namespace of its own. It ends with `unshare`.
fn apart(command: &Command) -> Command {
    let command = command.as_std();
    let mut outer = Command::new("unshare");
    outer.args(["--pid", "--fork", "--mount-proc", "--kill-child", "--"]);
    outer.arg(command.get_program()).args(command.get_args());
    outer.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    outer
}

/// Returns the namespace of this kind in which a process is.
fn namespace(pid: impl std::fmt::Display, kind: &str) -> PathBuf {
    std::fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap()
}

/// Returns the process that `unshare` has started.
fn inner(outer: &Child) -> u32 {
    let pid = outer.id().unwrap();
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    children.trim().parse().expect("one child")
}

#[tokio::test]
#[ignore = "takes half a minute, needs root: make test-long"]
async fn a_runner_drills_members_whose_network_and_processes_it_does_not_share() {
    let scene = scene(|config| {
        config.placement = Placement::Namespaces;
        for name in ["a", "b", "c"] {
            config.refused_drills.insert(name.parse().unwrap(), "walreceiver,backend".into());
        }
    })
    .await;
    let lab = &scene.lab;
    lab.wait_redundant(BOUND).await.unwrap();
    no_problem(lab).await;
    let refused = ran(lab, &["run", "walreceiver"]).await;
    assert_eq!(refused["verdict"], "refused", "{refused}");
    assert!(refused["reasons"].to_string().contains("--refuse-drills"), "{refused}");

    let (_, primary) = lab.cluster().await.unwrap().service().unwrap();
    let standby = lab.members().into_iter().find(|m| *m != primary).unwrap();
    let freeze = drill(lab, &["run", "standby-freeze", "--on", standby.as_str()]);
    let mut runner = apart(&freeze).spawn().unwrap();
    becomes(lab, &standby, true, BOUND).await;
    let (runs, target) = (inner(&runner), lab.postmaster(&standby).unwrap());
    for kind in ["pid", "net"] {
        assert_ne!(namespace(runs, kind), namespace(target, kind), "nothing of {kind} is shared");
    }
    runner.kill().await.unwrap();
    becomes(lab, &standby, false, UNDONE_WITHIN).await;
    lab.wait_redundant(BOUND).await.unwrap();
    no_problem(lab).await;

    let mut crash = apart(&drill(lab, &["run", "standby-crash", "--on", standby.as_str()]));
    let output = timeout(BOUND, crash.output()).await.expect("it ends").unwrap();
    let record: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(record["verdict"], "passed", "{record}");
    assert!(!stands(lab, &standby));
    let report = ran(lab, &["report"]).await;
    let drills = report["drills"].as_array().unwrap();
    let verdicts: Vec<&str> = drills.iter().map(|d| d["verdict"].as_str().unwrap()).collect();
    assert_eq!(verdicts, ["refused", "abandoned", "passed"], "{report}");
}

/// Runs a drill while whatever ends is started again, as by a service manager; returns its record and what ended.
async fn managed(lab: &mut Lab, fault: &str, way: &str) -> (serde_json::Value, Vec<String>) {
    no_problem(lab).await;
    let mut runner = drill(lab, &["run", fault, "--dsn", way]).spawn().unwrap();
    let (deadline, mut ended) = (clock::now() + BOUND, Vec::new());
    while runner.try_wait().unwrap().is_none() {
        ended.extend(lab.restart_services().unwrap());
        assert!(clock::now() < deadline, "{fault} does not end");
        sleep(Duration::from_millis(50)).await;
    }
    let output = runner.wait_with_output().await.unwrap();
    let record: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    eprintln!("{fault}: {ended:?} {record}");
    (record, ended)
}

#[tokio::test]
#[ignore = "takes half a minute: make test-long"]
async fn sentinel_proxy_config_haproxy_and_pgbouncer_are_drilled_and_come_back() {
    let mut scene = scene(|config| {
        config.services_restart = true;
        config.pgbouncers = 1;
    })
    .await;
    let lab = &mut scene.lab;
    lab.wait_redundant(BOUND).await.unwrap();
    lab.prepare_database().await.unwrap();
    let way = dsn(&lab.application_by(&Port::Write).unwrap());
    let pooled = dsn(&lab.pooled_application(0).unwrap());
    for (fault, who) in [
        ("sentinel-resign", ""),
        ("sentinel", "sentinel"),
        ("proxy-config", "proxy-config"),
        ("haproxy", "haproxy"),
        ("pgbouncer", "pgbouncer"),
    ] {
        let leader = lab.leading_sentinel().await.unwrap();
        // A canary goes by what is restarted.
        let way = if fault == "pgbouncer" { &pooled } else { &way };
        let (record, ended) = managed(lab, fault, way).await;
        assert_eq!(record["verdict"], "passed", "{record}");
        assert_eq!(record["figures"]["canaries_lost"], 0, "{record}");
        assert!(ended.iter().all(|name| name.starts_with(who)), "{ended:?}");
        assert_eq!(ended.len(), usize::from(!who.is_empty()), "{ended:?}");
        if fault.starts_with("sentinel") {
            assert_ne!(lab.leading_sentinel().await.unwrap(), leader, "another one leads");
        }
    }
}
