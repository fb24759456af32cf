//! Drills on a live cluster: a fault is asked for in etcd, carried out and undone by the keeper beside it, and refused by
//! the guard rails.

#![allow(clippy::unwrap_used, reason = "a test may panic, also in its helpers")]

use std::net::Ipv4Addr;
use std::process::Stdio;
use std::time::Duration;

use chaos::lab::{CLUSTER, Cluster, Lab, Port};
use proto::document::{decode, encode};
use proto::drill::{LiveFault, Undertaking};
use proto::drill_plan::DrillPlan;
use proto::{MemberName, RequestId, WallTime};
use store::etcd::EtcdStore;
use store::keys::Keys;
use store::{EtcdAccess, Operation, Store, Txn, clock};
use system_tests::{UnderLoad, dsn, pgdeputy, scene};
use tokio::net::TcpListener;
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

pub const BOUND: Duration = Duration::from_secs(120);

/// From the death of a runner on: its lease, and what a busy machine adds.
pub const UNDONE_WITHIN: Duration = Duration::from_secs(10);

pub fn drill(lab: &Lab, arguments: &[&str]) -> Command {
    let mut command = Command::new(pgdeputy());
    command.args(["drill", arguments[0], "--cluster", CLUSTER]);
    if arguments[0] != "runner" {
        command.arg("--json");
    }
    command.args(lab.etcd_flags().into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]));
    command.args(&arguments[1..]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

/// Runs a drill to its end and returns its record.
pub async fn ran(lab: &Lab, arguments: &[&str]) -> serde_json::Value {
    let output = timeout(BOUND, drill(lab, arguments).output()).await.expect("it ends").unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    let record: serde_json::Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {said}"));
    eprintln!("drill {}: {record}", arguments[0]);
    record
}

pub fn stands(lab: &Lab, member: &MemberName) -> bool {
    let pid = lab.postmaster(member).expect("PostgreSQL runs");
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("it lives");
    stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('T'))
}

pub async fn becomes(lab: &Lab, member: &MemberName, standing: bool, bound: Duration) {
    let deadline = clock::now() + bound;
    while stands(lab, member) != standing {
        assert!(clock::now() < deadline, "{member} stands still: {}, after {bound:?}", !standing);
        sleep(Duration::from_millis(20)).await;
    }
}

/// Waits until no member tells of a problem, such as a slow disk on a busy machine: a drill would be refused.
pub async fn no_problem(lab: &Lab) {
    let well = |cluster: &Cluster| {
        cluster.reports.values().all(|report| report.problems.is_empty()).then_some(())
    };
    lab.await_cluster("no member has a problem", BOUND, well).await.unwrap();
}

/// Freezes a standby by a runner that is killed, and one whose drill is aborted.
async fn undone(lab: &Lab, standby: &MemberName) {
    let freeze = ["run", "standby-freeze", "--on", standby.as_str()];
    no_problem(lab).await;
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
    no_problem(lab).await;

    let mut runner = drill(lab, &freeze).spawn().unwrap();
    becomes(lab, standby, true, BOUND).await;
    let aborted = ran(lab, &["abort"]).await;
    assert!(aborted["drill"].is_string(), "{aborted}");
    becomes(lab, standby, false, UNDONE_WITHIN).await;
    let ended = timeout(BOUND, runner.wait()).await.expect("it ends").unwrap();
    assert_eq!(ended.code(), Some(1), "an aborted drill has not passed");
    lab.wait_redundant(BOUND).await.unwrap();
}

/// Asks for a drill that a guard rail stands in the way of.
async fn refused(lab: &Lab, arguments: &[&str], why: &str) {
    let record = ran(lab, &[&["run", "walreceiver"], arguments].concat()).await;
    assert_eq!(record["verdict"], "refused", "{record}");
    assert!(record["reasons"].to_string().contains(why), "{record}");
}

/// A standby that replays nothing under load, a time in which nothing is to be broken, what earlier drills have used up, and
/// a person's work.
async fn guarded(lab: &Lab) {
    let (_, primary) = lab.cluster().await.unwrap().service().unwrap();
    let standby = lab.members().into_iter().find(|m| *m != primary).unwrap();
    let session = lab.superuser(&standby).await.unwrap();
    session.client().batch_execute("SELECT pg_wal_replay_pause()").await.unwrap();
    const BEHIND: &str = "SELECT now() - pg_last_xact_replay_timestamp() > interval '3 s'";
    let deadline = clock::now() + BOUND;
    while !session.client().query_one(BEHIND, &[]).await.unwrap().get::<_, bool>(0) {
        assert!(clock::now() < deadline, "{standby} is not behind");
        sleep(Duration::from_millis(50)).await;
    }
    refused(lab, &["--most-lag", "1s"], "behind, more than").await;
    session.client().batch_execute("SELECT pg_wal_replay_resume()").await.unwrap();
    let frozen = "2020-01-01T00:00:00Z/2200-01-01T00:00:00Z";
    refused(lab, &["--freeze", frozen], "no drill is wanted").await;
    refused(lab, &["--budget", "1ms"], "the budget is spent").await;
    let mut pause = Command::new(pgdeputy());
    pause.args(["pause", "--reason", "by hand", "--for", "1m", "--cluster", CLUSTER]);
    pause.args(["--etcd", &lab.etcd_urls().join(",")]);
    assert!(pause.status().await.unwrap().success());
    refused(lab, &[], "by hand").await;
}

#[tokio::test]
async fn a_live_cluster_is_drilled_within_guard_rails_and_loses_nothing() {
    let loaded = UnderLoad::start(|_| {}, 300).await;
    let (_, primary) = loaded.served().await;
    let lab = &loaded.scene.lab;
    let standby = lab.members().into_iter().find(|m| *m != primary).unwrap();
    undone(lab, &standby).await;
    let way = dsn(&lab.application_by(&Port::Write).unwrap());
    for fault in ["walreceiver", "sentinel-resign", "crash", "switchover"] {
        no_problem(lab).await;
        let record = ran(lab, &["run", fault, "--seed", "7", "--dsn", &way]).await;
        assert_eq!(record["verdict"], "passed", "{record}");
        let figures = &record["figures"];
        assert_eq!(figures["canaries_lost"], 0, "{record}");
        assert!(figures["canaries_acknowledged"].as_u64().unwrap() > 0, "{record}");
        let was_replaced = figures["epoch_after"] != figures["epoch_before"];
        assert_eq!(figures["fence_ms"].is_u64(), was_replaced, "{record}");
        lab.wait_redundant(BOUND).await.unwrap();
    }
    guarded(lab).await;
    let report = ran(lab, &["report"]).await;
    let told = report["drills"].to_string();
    for reason in ["is under way", "behind, more than", "no drill is wanted", "budget", "by hand"] {
        assert!(told.contains(reason), "{reason}: {told}");
    }
    let verdicts = report["drills"].as_array().unwrap().iter().map(|d| d["verdict"].to_string());
    let verdicts: Vec<String> = verdicts.collect();
    for verdict in ["abandoned", "aborted", "passed", "refused"] {
        assert!(verdicts.contains(&format!("{verdict:?}")), "{verdict}: {report}");
    }
    assert!(report["never_passed"].to_string().contains("standby-crash"), "{report}");
    let covered = report["coverage"].as_array().unwrap();
    let crash = covered.iter().find(|one| one["fault"] == "crash").unwrap();
    assert_eq!((&crash["passed"], &crash["failed"]), (&1.into(), &0.into()), "{report}");
    assert!(crash["survived"].is_string() && crash["write_gap_ms"].is_u64(), "{report}");
    let verdict = loaded.verdict().await;
    assert!(verdict.lost.is_empty() && verdict.dual.is_empty(), "{verdict:?}");
}

/// Schedules a drill whose turn it is.
pub async fn schedule(store: &EtcdStore, plan: &DrillPlan) -> String {
    let key = Keys::of(&CLUSTER.parse().unwrap()).drill_plan(&plan.id);
    let put = Operation::Put { key: key.clone(), value: encode(plan).into_bytes(), lease: None };
    store.commit(Txn { when: Vec::new(), then: vec![put] }).await.unwrap();
    key
}

/// Kills a runner between taking a turn and beginning it: while its canary waits for a server that never answers.
async fn dies_before_it_begins(lab: &Lab, store: &EtcdStore) {
    let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let way = format!("host=127.0.0.1 port={} user=x", server.local_addr().unwrap().port());
    let mut runner = drill(lab, &["runner", "--dsn", &way]).spawn().unwrap();
    let plan = DrillPlan { id: RequestId::from_random(8), ..due_now(LiveFault::Crash) };
    let key = schedule(store, &plan).await;
    let canary = timeout(BOUND, server.accept()).await.expect("the turn is taken").unwrap();
    runner.kill().await.unwrap();
    drop(canary);
    let taken: DrillPlan = decode(&store.read(&key).await.unwrap().entries[&key].value).unwrap();
    assert!(taken.last.is_some(), "the turn is taken before it is begun");
    let deadline = clock::now() + BOUND;
    loop {
        let report = ran(lab, &["report"]).await;
        let record = &report["drills"][0];
        if record["verdict"] == "not-begun" {
            assert!(record["reasons"][0].to_string().contains("runner died"), "{record}");
            return;
        }
        assert_eq!(record["verdict"], "taken", "until its lease has ended");
        assert!(clock::now() < deadline, "{record}");
        sleep(Duration::from_millis(200)).await;
    }
}

/// Returns a plan whose one turn of this year is the minute that runs.
pub fn due_now(fault: impl Into<Undertaking>) -> DrillPlan {
    let now = clock::wall();
    let minute = WallTime(now.0 - now.0 % 60_000);
    // 2026-11-28T05:16:00.000Z
    let text = minute.to_string();
    let field = |from: usize| text[from..from + 2].trim_start_matches('0').to_owned();
    let or_zero = |field: String| if field.is_empty() { "0".to_owned() } else { field };
    let cron =
        [or_zero(field(14)), or_zero(field(11)), field(8), field(5), "* UTC".into()].join(" ");
    DrillPlan {
        id: RequestId::from_random(7),
        cron,
        fault: Some(fault.into()),
        window: Duration::from_secs(600),
        by: "ann@north".into(),
        added: WallTime(minute.0 - 60_000),
        last: None,
    }
}

#[tokio::test]
async fn of_three_runners_one_takes_a_turn_and_nobody_takes_it_again_when_it_dies() {
    let scene = scene(|_| {}).await;
    let lab = &scene.lab;
    lab.wait_redundant(BOUND).await.unwrap();
    let endpoints = lab.etcd_urls();
    let access = EtcdAccess { endpoints, ca: None, certificate: None, login: None };
    let store = EtcdStore::connect(access).await.unwrap();
    dies_before_it_begins(lab, &store).await;
    let mut runners: Vec<Child> =
        (0..3).map(|_| drill(lab, &["runner"]).spawn().unwrap()).collect();
    no_problem(lab).await;
    let plan = due_now(LiveFault::StandbyFreeze);
    let key = schedule(&store, &plan).await;

    let standing = async || {
        let standbys = lab.members();
        let deadline = clock::now() + BOUND;
        loop {
            if let Some(member) = standbys.iter().find(|m| stands(lab, m)) {
                return member.clone();
            }
            assert!(clock::now() < deadline, "no runner took the turn");
            sleep(Duration::from_millis(20)).await;
        }
    };
    let member = standing().await;
    let taken: DrillPlan = decode(&store.read(&key).await.unwrap().entries[&key].value).unwrap();
    let turn = taken.last.expect("the turn was taken");
    let pid: u32 = turn.runner.split(':').nth(1).unwrap().parse().unwrap();
    let acting = runners.iter_mut().find(|r| r.id() == Some(pid)).expect("it is one of the three");
    acting.kill().await.unwrap();
    becomes(lab, &member, false, UNDONE_WITHIN).await;
    lab.wait_redundant(BOUND).await.unwrap();
    // The others have looked several times since.
    sleep(Duration::from_secs(3)).await;
    let report = ran(lab, &["report"]).await;
    let drills = report["drills"].as_array().unwrap();
    let verdicts: Vec<&str> = drills.iter().map(|d| d["verdict"].as_str().unwrap()).collect();
    assert_eq!(verdicts, ["not-begun", "abandoned"], "one record of each turn: {report}");
    let after: DrillPlan = decode(&store.read(&key).await.unwrap().entries[&key].value).unwrap();
    assert_eq!(after.last, Some(turn));
    for runner in runners.iter_mut().filter(|r| r.id().is_some_and(|id| id != pid)) {
        assert!(runner.try_wait().unwrap().is_none(), "the others go on");
    }
}

#[tokio::test]
#[ignore = "takes a minute: make test-long"]
async fn random_drills_follow_one_another_and_each_is_survived() {
    // Drills kill keepers, too: the fencers start them again.
    let scene = scene(|config| config.keepers_restart = true).await;
    let lab = &scene.lab;
    lab.wait_redundant(BOUND).await.unwrap();
    lab.prepare_database().await.unwrap();
    let way = dsn(&lab.application_by(&Port::Write).unwrap());
    let seed = "3";
    let many = ran(lab, &["run", "--random", "--for", "40s", "--seed", seed, "--dsn", &way]).await;
    // Nobody starts a sentinel or a proxy-config of this lab again, nor may one restart HAProxy: they say no.
    let unwilling = ["sentinel", "proxy-config", "haproxy", "pgbouncer"];
    let (mut passed, mut refused) = (0, Vec::new());
    for drill in many["drills"].as_array().unwrap() {
        let (fault, verdict) = (drill["fault"].as_str().unwrap(), drill["verdict"].as_str());
        if unwilling.contains(&fault) {
            assert_eq!(verdict, Some("refused"), "{drill}");
            let why = drill["reasons"].to_string();
            let known = ["systemd or supervisord", "--restart", "has no PgBouncer"];
            assert!(known.iter().any(|known| why.contains(known)), "{drill}");
            refused.push(fault);
            continue;
        }
        assert_eq!(verdict, Some("passed"), "{drill}");
        assert_eq!(drill["figures"]["canaries_lost"], 0, "{drill}");
        passed += 1;
    }
    assert!(passed >= 3, "{many}");
    refused.sort_unstable();
    assert!(refused.windows(2).all(|pair| pair[0] != pair[1]), "asked for again: {refused:?}");
}
