//! `pgdeputy demo` as others script it: one document on stdout, a status that can be trusted, nothing left behind.

#![allow(clippy::unwrap_used, reason = "a test may panic, also in its helpers")]

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use system_tests::{pgdeputy, turn};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

/// A run takes some 20 s, with a debug build on a busy machine more.
const BOUND: Duration = Duration::from_secs(240);

fn demo(directory: &tempfile::TempDir, arguments: &[&str]) -> Command {
    let mut command = program(directory);
    command.arg("demo").args(arguments);
    command
}

fn program(directory: &tempfile::TempDir) -> Command {
    let mut command = Command::new(pgdeputy());
    command.env("TMPDIR", directory.path()).env_remove("PGDEPUTY_BIN");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

/// A directory of the test's own for the demo's, so that what is left behind is seen.
fn temporary() -> tempfile::TempDir {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir_in("/tmp").unwrap();
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    directory
}

/// Writes wait for the lost one of two members, which therefore has to be given back before they are waited for.
#[tokio::test]
#[ignore = "half a minute for each fault: make test-long"]
async fn of_two_members_the_lost_one_is_given_back_and_writes_with_it() {
    for fault in ["member", "standby"] {
        let _turn = turn().await;
        let directory = temporary();
        let run = demo(&directory, &["--members", "2", "--fault", fault, "--json"]).output();
        let output = tokio::time::timeout(BOUND, run).await.unwrap().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{fault}: {errors}");
        let document: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(document["lost"], 0, "{document:#}");
        // It stays away for three seconds.
        assert!(document["write_gap_ms"].as_f64().unwrap() > 3000.0, "{document:#}");
    }
}

#[tokio::test]
async fn json_is_one_document_with_everything_that_is_promised() {
    let _turn = turn().await;
    let directory = temporary();
    let run = demo(&directory, &["--fault", "crash", "--json"]).output();
    let output = tokio::time::timeout(BOUND, run).await.unwrap().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{errors}");
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    for field in [
        "fault",
        "recovered_by",
        "epoch_before",
        "epoch_after",
        "write_gap_ms",
        "acknowledged",
        "lost",
        "redundant_after_ms",
        "old_primary_rejoined_by",
        "phases",
    ] {
        assert!(!document[field].is_null(), "{field} is missing in {document:#}");
    }
    assert_eq!((&document["fault"], &document["lost"]), (&"crash".into(), &0.into()));
    assert!(document["acknowledged"].as_u64() >= Some(1000), "{document:#}");
    let phases = document["phases"].as_array().unwrap();
    let names: BTreeSet<&str> = phases.iter().filter_map(|p| p["name"].as_str()).collect();
    assert!(names.contains("seal") && names.contains("promote"), "{names:?}");
    assert!(phases.iter().all(|p| p["start_ms"].is_i64() && p["end_ms"].is_i64()), "{phases:?}");
    assert_nothing_left(&directory);
}

#[tokio::test]
async fn an_interrupted_demo_ends_everything_and_so_does_one_that_is_killed() {
    let _turn = turn().await;
    for (signal, status) in [("INT", Some(130)), ("KILL", None)] {
        let directory = temporary();
        let mut child = demo(&directory, &[]).spawn().unwrap();
        let _open = until_line(&mut child, "fault:").await;
        let pid = child.id().unwrap().to_string();
        assert!(Command::new("kill").args(["-s", signal, &pid]).status().await.unwrap().success());
        let ended = tokio::time::timeout(BOUND, child.wait()).await.unwrap().unwrap();
        assert_eq!(ended.code(), status, "{ended}");
        // A killed demo is cleaned up after by its guard.
        let until = store::clock::now() + Duration::from_secs(30);
        while !left(&directory).is_empty() && store::clock::now() < until {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert_nothing_left(&directory);
    }
}

#[tokio::test]
async fn a_kept_cluster_serves_until_the_printed_command_stops_it() {
    let _turn = turn().await;
    let directory = temporary();
    let run = demo(&directory, &["--fault", "standby", "--down-for", "0s", "--keep"]).output();
    let output = tokio::time::timeout(BOUND, run).await.unwrap().unwrap();
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{printed}\n{}", String::from_utf8_lossy(&output.stderr));
    let [lab] = left(&directory).try_into().expect("one lab is left");
    let lab: PathBuf = lab;
    assert!(!chaos::lab::cleanup::processes(&lab).is_empty());
    let dsn = printed.split("psql '").nth(1).and_then(|rest| rest.split('\'').next());
    let dsn = dsn.expect("a connection string is printed");
    let target: tokio_postgres::Config = dsn.parse().unwrap();
    let session = chaos::session::Session::open(&target, Duration::from_secs(10)).await.unwrap();
    session.client().batch_execute("INSERT INTO load (id) VALUES (-1)").await.unwrap();
    let stop = printed.lines().last().expect("the last line stops it").trim().to_owned();
    let words: Vec<&str> = stop.split_whitespace().collect();
    let stopped = Command::new(words[0]).args(&words[1..]).output().await.unwrap();
    assert!(stopped.status.success(), "{stopped:?}");
    assert!(chaos::lab::cleanup::processes(&lab).is_empty());
    assert_nothing_left(&directory);
}

#[tokio::test]
async fn a_lab_in_networks_of_its_own_is_left_running_and_leaves_nothing_when_it_is_ended() {
    let _turn = turn().await;
    let directory = temporary();
    let mut up = program(&directory);
    up.args(["lab", "up", "--members", "2", "--etcd-members", "1", "--netns"]);
    let output = tokio::time::timeout(BOUND, up.output()).await.unwrap().unwrap();
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{printed}\n{}", String::from_utf8_lossy(&output.stderr));
    let [lab] = left(&directory).try_into().expect("one lab is left");
    let lab: PathBuf = lab;
    let number = std::fs::read_to_string(lab.join("network")).unwrap();
    let namespaces = || {
        let all = std::fs::read_dir("/run/netns").unwrap().flatten();
        let prefix = format!("pgdeputy-lab-{}-", number.trim());
        all.filter(|e| e.file_name().to_string_lossy().starts_with(&prefix)).count()
    };
    // Two members, three sentinels, etcd, and the switch.
    assert_eq!(namespaces(), 7);
    let stop = printed.lines().last().expect("the last line stops it").trim().to_owned();
    let words: Vec<&str> = stop.split_whitespace().collect();
    let stopped = Command::new(words[0]).args(&words[1..]).output().await.unwrap();
    assert!(stopped.status.success(), "{stopped:?}");
    assert_eq!(namespaces(), 0);
    assert_nothing_left(&directory);
}

/// Returns the open end of the pipe: the demo is not to notice that nobody reads on.
async fn until_line(child: &mut Child, word: &str) -> Lines<BufReader<ChildStdout>> {
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let found = async {
        while let Some(line) = lines.next_line().await.unwrap() {
            if line.contains(word) {
                return true;
            }
        }
        false
    };
    assert!(tokio::time::timeout(BOUND, found).await.unwrap(), "the demo never said {word:?}");
    lines
}

fn left(directory: &tempfile::TempDir) -> Vec<PathBuf> {
    std::fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().path()).collect()
}

#[track_caller]
fn assert_nothing_left(directory: &tempfile::TempDir) {
    assert_eq!(left(directory), Vec::<PathBuf>::new());
    assert_eq!(chaos::lab::cleanup::processes(directory.path()), []);
}
