//! `pgdeputy drill reboot-all`: every member away once, one at a time, the primary last, under load and with a canary.

#![allow(clippy::unwrap_used, reason = "a test may panic, also in its helpers")]

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use chaos::lab::{CLUSTER, Lab};
use proto::MemberName;
use store::clock;
use system_tests::{UnderLoad, dsn, pgdeputy};
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

const BOUND: Duration = Duration::from_secs(120);

/// Tells the test which member is meant, and returns when the test says that its host is up again.
const HOOK: &str = "touch $DIR/asked-$PGDEPUTY_MEMBER; \
     while [ ! -e $DIR/up-$PGDEPUTY_MEMBER ]; do sleep 0.05; done";

fn reboot_all(lab: &Lab, dir: &Path, more: &[&str]) -> Command {
    let mut command = Command::new(pgdeputy());
    command.args(["drill", "reboot-all", "--json", "--cluster", CLUSTER, "--hook", HOOK]);
    command.args(["--etcd", &lab.etcd_urls().join(",")]).args(more).env("DIR", dir);
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

#[tokio::test]
async fn every_member_is_rebooted_once_and_never_two_are_away() {
    let mut loaded = UnderLoad::start(|config| config.pgbouncers = 1, 200).await;
    let (before, primary) = loaded.served().await;
    let dir = tempfile::tempdir().unwrap();
    let lab = &mut loaded.scene.lab;
    let way = dsn(&lab.pooled_application(0).unwrap());
    let mut command = reboot_all(lab, dir.path(), &["--dsn", &way]).spawn().unwrap();
    let mut done = Vec::new();
    while done.len() < 3 {
        let member = asked(lab, dir.path(), &done, &mut command).await;
        // By the members themselves: nobody else is away when one is sent away.
        lab.wait_redundant(Duration::from_secs(15)).await.unwrap();
        assert_ne!(lab.primary().await.unwrap(), member, "no primary is rebooted");
        lab.kill_member(&member).unwrap();
        lab.member_gone(&member).await.unwrap();
        lab.start_member(&member).unwrap();
        std::fs::write(dir.path().join(format!("up-{member}")), "").unwrap();
        done.push(member);
    }
    let answer = ended(command).await;
    assert_eq!(answer["surprise"], serde_json::Value::Null, "{answer}");
    assert_eq!(
        (answer["done"].as_array().unwrap().len(), &answer["canaries_lost"]),
        (3, &0.into())
    );
    assert_eq!(done[2], primary, "the primary comes last");
    let (after, _) = lab.cluster().await.unwrap().service().unwrap();
    assert_eq!(after.epoch.0, before.epoch.0 + 1, "one switchover and no failover");

    // A hook that only pretends is a surprise, and nobody else is touched.
    let again = tempfile::tempdir().unwrap();
    let standby = done[0].clone();
    std::fs::write(again.path().join(format!("up-{standby}")), "").unwrap();
    let only = ["--only", standby.as_str()];
    let answer = ended(reboot_all(lab, again.path(), &only).spawn().unwrap()).await;
    assert!(answer["surprise"].to_string().contains("nothing has changed there"), "{answer}");
    assert_eq!(answer["left"], serde_json::json!([standby]));
    lab.wait_redundant(BOUND).await.unwrap();
    let verdict = loaded.verdict().await;
    assert!(verdict.lost.is_empty() && verdict.dual.is_empty(), "{verdict:?}");
}
