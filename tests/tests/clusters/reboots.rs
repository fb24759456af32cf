//! `pgdeputy drill reboot-all`: every member away once, one at a time, the primary last, under load and with a canary.

#![allow(clippy::unwrap_used, reason = "a test may panic, also in its helpers")]

use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use chaos::lab::{CLUSTER, Cluster, Lab, Port, Service};
use chaos::pgbench::{self, Pgbench};
use proto::MemberName;
use proto::drill::Undertaking;
use proto::report::Stream;
use proto::spec::Permission;
use store::etcd::EtcdStore;
use store::{EtcdAccess, clock};
use system_tests::{UnderLoad, dsn, pgdeputy, scene};
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

use crate::live_drills;

const BOUND: Duration = Duration::from_secs(120);

/// Tells the test which member is meant, and returns when the test says that its host is up again.
const HOOK: &str = "touch $DIR/asked-$PGDEPUTY_MEMBER; \
     while [ ! -e $DIR/up-$PGDEPUTY_MEMBER ]; do sleep 0.05; done";

fn reboot_all(lab: &Lab, dir: &Path, more: &[&str]) -> Command {
    let mut command = drill(lab, &["reboot-all", "--hook", HOOK]);
    command.args(more).env("DIR", dir);
    command
}

fn drill(lab: &Lab, arguments: &[&str]) -> Command {
    let mut command = Command::new(pgdeputy());
    command.arg("drill").args(arguments).args(["--json", "--cluster", CLUSTER]);
    command.args(["--etcd", &lab.etcd_urls().join(",")]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

/// Returns the member that the hook asks for, when it does.
async fn asked(lab: &Lab, dir: &Path, before: &[MemberName], command: &mut Child) -> MemberName {
    let deadline = clock::now() + BOUND;
    loop {
        let next = lab
            .members()
            .into_iter()
            .find(|m| !before.contains(m) && dir.join(format!("asked-{m}")).exists());
        if let Some(member) = next {
            return member;
        }
        assert!(command.try_wait().unwrap().is_none(), "it ended after {before:?}");
        assert!(clock::now() < deadline, "nobody is asked for after {before:?}");
        sleep(Duration::from_millis(20)).await;
    }
}

async fn ended(command: Child) -> serde_json::Value {
    let output = timeout(BOUND, command.wait_with_output()).await.expect("it ends").unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    let answer = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {said}"));
    eprintln!("{answer}");
    answer
}

/// Loses each member that the hook asks for with its processes, and starts it again; returns them in their order.
async fn rebooted(
    lab: &mut Lab,
    dir: &Path,
    command: &mut Child,
    members: usize,
) -> Vec<MemberName> {
    let mut done = Vec::new();
    while done.len() < members {
        let member = asked(lab, dir, &done, command).await;
        let cluster = lab.cluster().await.unwrap();
        // By the members themselves: nobody else is away when one is sent away.
        let others = lab.members().into_iter().filter(|m| *m != member);
        let away: Vec<MemberName> = others
            .filter(|m| Some(m) != cluster.primary())
            .filter(|m| {
                let report = cluster.reports.get(m);
                !report.is_some_and(|r| matches!(r.stream, Stream::Live { .. }) && r.complete)
            })
            .collect();
        assert!(away.is_empty(), "{away:?} are away when {member} is to be rebooted");
        assert_ne!(cluster.primary(), Some(&member), "no primary is rebooted");
        lab.kill_member(&member).unwrap();
        lab.member_gone(&member).await.unwrap();
        lab.start_member(&member).unwrap();
        std::fs::write(dir.join(format!("up-{member}")), "").unwrap();
        done.push(member);
    }
    done
}

#[tokio::test]
#[ignore = "takes a minute: make test-long"]
async fn six_members_are_rebooted_under_pgbench_and_no_transaction_fails() {
    let mut scene = scene(|config| {
        config.members = 6;
        config.pgbouncers = 1;
        for outside in ["e", "f"] {
            let member = config.spec.members.entry(outside.parse().unwrap()).or_default();
            (member.vote, member.promote) = (Permission::Never, Permission::Never);
        }
    })
    .await;
    let lab = &mut scene.lab;
    let whole = |cluster: &Cluster| cluster.history.last()?.redundant;
    lab.await_cluster("six members are in their places", BOUND, whole).await.unwrap();
    lab.prepare_database().await.unwrap();
    pgbench::initialise(lab, 5).await.unwrap();
    let (before, primary) = lab.cluster().await.unwrap().service().unwrap();
    let pooler = (Ipv4Addr::LOCALHOST, lab.pgbouncer_port(0).unwrap());
    let load = Pgbench::start(lab, pooler, 8).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let way = dsn(&lab.pooled_application(0).unwrap());
    let mut command = reboot_all(lab, dir.path(), &["--dsn", &way]).spawn().unwrap();
    let done = rebooted(lab, dir.path(), &mut command, 6).await;
    let answer = ended(command).await;
    assert_eq!(load.ended(lab), None, "pgbench goes on");
    let benched = load.finish(lab).await.unwrap();
    eprintln!("{} transactions, {} failed", benched.transactions.len(), benched.failed);
    assert_eq!((benched.failed, benched.aborted), (0, 0));
    assert!(benched.transactions.len() > 1000, "too few to tell");
    all_came_back(lab, &answer, &done, 6, (before, &primary)).await;
}

/// Demands that so many members were rebooted without a surprise or a loss, the primary last.
async fn all_came_back(
    lab: &Lab,
    answer: &serde_json::Value,
    done: &[MemberName],
    members: usize,
    (before, primary): (Service, &MemberName),
) {
    assert_eq!(answer["surprise"], serde_json::Value::Null, "{answer}");
    assert_eq!(
        (answer["done"].as_array().unwrap().len(), &answer["canaries_lost"]),
        (members, &0.into())
    );
    assert_eq!(done[members - 1], *primary, "the primary comes last");
    let (after, _) = lab.cluster().await.unwrap().service().unwrap();
    assert_eq!(after.epoch.0, before.epoch.0 + 1, "one switchover and no failover");
}

#[tokio::test]
#[ignore = "takes half a minute: make test-long"]
async fn reboots_come_on_a_schedule_and_a_runner_without_a_hook_leaves_them_to_another() {
    let mut scene = scene(|_| {}).await;
    let lab = &mut scene.lab;
    lab.wait_redundant(BOUND).await.unwrap();
    lab.prepare_database().await.unwrap();
    let access = EtcdAccess::from(lab.etcd_urls());
    let store = EtcdStore::connect(access).await.unwrap();
    let way = dsn(&lab.application_by(&Port::Write).unwrap());
    let dir = tempfile::tempdir().unwrap();
    let quiet =
        |mut command: Command| command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let _without = quiet(live_drills::drill(lab, &["runner"]));
    let mut with = live_drills::drill(lab, &["runner", "--dsn", &way, "--hook", HOOK]);
    with.env("DIR", dir.path());
    let mut with = quiet(with);
    live_drills::schedule(&store, &live_drills::due_now(Undertaking::RebootAll)).await;
    let (_, primary) = lab.cluster().await.unwrap().service().unwrap();
    let done = rebooted(lab, dir.path(), &mut with, 3).await;
    assert_eq!(done[2], primary, "the primary comes last");
    let deadline = clock::now() + BOUND;
    let report = loop {
        let report = live_drills::ran(lab, &["report"]).await;
        if report["drills"][0]["verdict"] != "running" {
            break report;
        }
        assert!(clock::now() < deadline, "{report}");
        sleep(Duration::from_millis(500)).await;
    };
    let record = &report["drills"][0];
    assert_eq!((&record["fault"], &record["verdict"]), (&"reboot-all".into(), &"passed".into()));
    assert_eq!(record["figures"]["canaries_lost"], 0, "{record}");
    assert_eq!(report["drills"].as_array().unwrap().len(), 1, "one record of one turn: {report}");
    assert!(!report["never_passed"].to_string().contains("reboot-all"), "{report}");
}

/// While one reboots, a second one, a drill, and the drills of a schedule are told whose turn it is.
async fn nobody_else_breaks_anything(lab: &Lab) {
    let unused = tempfile::tempdir().unwrap();
    let second = ended(reboot_all(lab, unused.path(), &[]).spawn().unwrap()).await;
    let why = second["surprise"].to_string();
    assert!(why.contains("(reboot-all, ") && why.contains("is under way"), "{second}");
    let drill = ended(drill(lab, &["run", "walreceiver"]).spawn().unwrap()).await;
    assert_eq!(drill["verdict"], "refused", "{drill}");
    assert!(drill["reasons"].to_string().contains("(reboot-all, "), "{drill}");
    assert_eq!(std::fs::read_dir(unused.path()).unwrap().count(), 0, "no hook was run");
}

/// An abort lets the member whose turn it is come back, and nobody else is asked for.
async fn aborted_before_the_next(lab: &mut Lab) {
    let dir = tempfile::tempdir().unwrap();
    let mut command = reboot_all(lab, dir.path(), &[]).spawn().unwrap();
    let first = asked(lab, dir.path(), &[], &mut command).await;
    let said = ended(drill(lab, &["abort"]).spawn().unwrap()).await;
    assert!(said["then"].to_string().contains("no other member"), "{said}");
    assert_eq!(rebooted(lab, dir.path(), &mut command, 1).await, [first]);
    let answer = ended(command).await;
    assert!(answer["surprise"].to_string().contains("its lock is gone"), "{answer}");
    assert_eq!(answer["left"].as_array().unwrap().len(), 2, "{answer}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2, "one was asked for, and is up");
    lab.wait_redundant(BOUND).await.unwrap();
}

#[tokio::test]
async fn every_member_is_rebooted_once_and_never_two_are_away() {
    let mut loaded = UnderLoad::start(|config| config.pgbouncers = 1, 200).await;
    let (before, primary) = loaded.served().await;
    let dir = tempfile::tempdir().unwrap();
    let lab = &mut loaded.scene.lab;
    let way = dsn(&lab.pooled_application(0).unwrap());
    let mut command = reboot_all(lab, dir.path(), &["--dsn", &way]).spawn().unwrap();
    asked(lab, dir.path(), &[], &mut command).await;
    nobody_else_breaks_anything(lab).await;
    let done = rebooted(lab, dir.path(), &mut command, 3).await;
    let answer = ended(command).await;
    all_came_back(lab, &answer, &done, 3, (before, &primary)).await;

    // A hook that only pretends is a surprise, and nobody else is touched.
    let again = tempfile::tempdir().unwrap();
    let standby = done[0].clone();
    std::fs::write(again.path().join(format!("up-{standby}")), "").unwrap();
    let only = ["--only", standby.as_str()];
    let answer = ended(reboot_all(lab, again.path(), &only).spawn().unwrap()).await;
    assert!(answer["surprise"].to_string().contains("nothing has changed there"), "{answer}");
    assert_eq!(answer["left"], serde_json::json!([standby]));
    lab.wait_redundant(BOUND).await.unwrap();
    aborted_before_the_next(lab).await;
    let verdict = loaded.verdict().await;
    assert!(verdict.lost.is_empty() && verdict.dual.is_empty(), "{verdict:?}");
}
