//! What the order of a promotion rests on: commits wait for the names that PostgreSQL was started with, whatever has become
//! of the checkpointer. Before the releases of May 2025 they did not, until the checkpointer had looked.

use std::fs;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cluster::{Cluster, binaries, own};

/// How often the checkpointer is stopped: each time at another of its first instructions.
const STARTS: usize = 5;

const BOUND: Duration = Duration::from_secs(60);

#[tokio::test]
async fn commits_wait_also_while_the_checkpointer_is_stopped_from_its_start() {
    let mut cluster = Cluster::new(1).await;
    cluster.start().await;
    cluster.sql("CREATE TABLE t (i int)");
    cluster.stop().await;
    let conf = cluster.data.join("postgresql.auto.conf");
    // From 18 on the first children are workers for I/O, unless there are none.
    let io = if binaries().major() >= 18 { "io_method = sync\n" } else { "" };
    fs::write(&conf, format!("synchronous_standby_names = 'nobody'\n{io}")).unwrap();
    own(&conf);
    for _ in 0..STARTS {
        let postmaster = cluster.spawn();
        let first = first_child(postmaster);
        kill(first, Signal::SIGSTOP).unwrap();
        // Its title tells what it is once it has run; stopped before that it is called as the postmaster is.
        let command = fs::read_to_string(format!("/proc/{first}/cmdline")).unwrap();
        assert!(!command.contains("io worker"), "stopped: {command}");
        cluster.eventually("it answers", |c| c.try_sql("SELECT 1").status.success()).await;
        assert!(!command.contains("writer") && !command.contains("startup"), "stopped: {command}");
        let waited = std::thread::scope(|scope| {
            let commit = scope.spawn(|| cluster.sql("INSERT INTO t VALUES (1)"));
            let deadline = store::clock::now() + BOUND;
            let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
            while cluster.sql(waits) == "0" && !commit.is_finished() {
                assert!(store::clock::now() < deadline, "it neither commits nor waits");
            }
            let waits = !commit.is_finished();
            cluster.sql(
                "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'",
            );
            waits
        });
        assert!(waited, "a commit waited for nobody");
        kill(first, Signal::SIGCONT).unwrap();
        cluster.stop().await;
    }
}

/// The postmaster's first child is the checkpointer: it is seen within microseconds, with nothing behind it.
fn first_child(postmaster: i32) -> Pid {
    let children = format!("/proc/{postmaster}/task/{postmaster}/children");
    let deadline = store::clock::now() + BOUND;
    loop {
        let text = fs::read_to_string(&children).unwrap();
        if let Some(first) = text.split_whitespace().next() {
            return Pid::from_raw(first.parse().unwrap());
        }
        assert!(store::clock::now() < deadline, "PostgreSQL starts nothing");
    }
}
