//! PostgreSQL of the primary runs and does not do its work, or only seems not to. What counts is whether it commits and
//! accepts sessions; overload and one stuck process are no reason to replace it.

#![allow(clippy::unwrap_used, reason = "a test may panic, also in its helpers")]

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;

use chaos::evidence::Watchers;
use chaos::lab::{Lab, Part};
use chaos::session::Session;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use proto::MemberName;
use store::clock;
use system_tests::{Scene, scene};

const BOUND: Duration = Duration::from_secs(120);

/// The shortest that a spec allows: the tests need not wait longer.
const UNRESPONSIVE_AFTER: Duration = Duration::from_secs(3);

/// A redundant cluster and its primary.
async fn redundant() -> (Scene, MemberName) {
    let scene = scene(|config| config.spec.unresponsive_after = UNRESPONSIVE_AFTER).await;
    scene.lab.wait_redundant(BOUND).await.unwrap();
    let primary = scene.lab.primary().await.unwrap();
    (scene, primary)
}

/// Returns the process id of a server process by its kind, as in `pg_stat_activity`.
async fn backend(session: &Session, kind: &str) -> i32 {
    let question = "SELECT pid FROM pg_stat_activity WHERE backend_type = $1";
    session.client().query_one(question, &[&kind]).await.unwrap().get(0)
}

#[tokio::test]
async fn a_postmaster_that_stands_still_is_replaced_though_open_sessions_go_on() {
    let (mut scene, primary) = redundant().await;
    let lab = &mut scene.lab;
    let watchers = Watchers::start(lab, 4).await.unwrap();
    watchers.load.acknowledged_count(500, BOUND).await.unwrap();
    let steady_from = clock::now();
    let (before, _) = lab.cluster().await.unwrap().service().unwrap();
    let struck = lab.freeze(&primary, Part::Postmaster).await.unwrap();
    // It bites, and is not seen by anybody who has a session.
    watchers.load.acknowledged_after(struck.at, BOUND).await.unwrap();
    assert!(
        Session::open(&lab.application_at(&primary).unwrap(), Duration::from_secs(1))
            .await
            .is_err()
    );
    let (_, by) = lab.wait_served_after(before, BOUND).await.unwrap();
    let noticed = clock::now().since(struck.at);
    eprintln!("replaced after {noticed:?}");
    assert!(noticed >= UNRESPONSIVE_AFTER, "it is given its time");
    assert_ne!(by, primary);
    let cause = lab.history().await.unwrap().pop().unwrap().cause;
    assert_eq!(cause, format!("PostgreSQL of primary {primary} does not do its work"));
    lab.wait_redundant(BOUND).await.unwrap();
    let (evidence, _) = watchers.finish(lab, (steady_from, struck.at)).await.unwrap();
    let verdict = chaos::verdict::judge(&evidence);
    assert!(verdict.lost.is_empty() && verdict.dual.is_empty(), "{verdict:?}");
}

#[tokio::test]
async fn overload_and_a_stuck_process_replace_nobody() {
    let (mut scene, primary) = redundant().await;
    let lab = &mut scene.lab;
    let before = lab.cluster().await.unwrap().service().unwrap();
    let watchers = Watchers::start(lab, 4).await.unwrap();
    watchers.load.acknowledged_count(200, BOUND).await.unwrap();
    let session = lab.superuser(&primary).await.unwrap();
    // Writers and checkpointer stand still: backends write for themselves.
    for kind in ["checkpointer", "walwriter", "background writer"] {
        let pid = backend(&session, kind).await;
        // Stopped while it holds a lock it holds up all commits, and that is another matter.
        while !commits_go_on_without(lab, &watchers, pid).await {
            kill(Pid::from_raw(pid), Signal::SIGCONT).unwrap();
        }
    }
    // A statement that takes long, and every session that there is, the superuser's reserved ones too.
    let slow = lab.superuser(&primary).await.unwrap();
    let slow =
        tokio::spawn(async move { slow.client().batch_execute("SELECT pg_sleep(12)").await });
    let (_, crowd) = lab.exhaust(&primary).await.unwrap();
    tokio::time::sleep(3 * UNRESPONSIVE_AFTER).await;
    assert_eq!(lab.cluster().await.unwrap().service().unwrap(), before);
    watchers.load.acknowledged_after(clock::now(), BOUND).await.unwrap();
    drop(crowd);
    lab.thaw(&primary).unwrap();
    assert!(slow.await.unwrap().is_ok(), "its session was not cut");
    lab.wait_redundant(BOUND).await.unwrap();
    assert_eq!(lab.cluster().await.unwrap().service().unwrap(), before);
    assert_eq!(watchers.load.told().unknown, 0, "no session of the load was cut");
}

async fn commits_go_on_without(lab: &Lab, watchers: &Watchers, pid: i32) -> bool {
    let struck = lab.freeze_process(pid).await.unwrap();
    let later = struck.at + Duration::from_millis(100);
    watchers.load.acknowledged_after(later, Duration::from_secs(1)).await.is_ok()
}

/// A small file system of its own for one member's WAL.
struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Moves the WAL of a member that does not run to a disk of this size.
    fn for_wal_of(lab: &Lab, member: &MemberName, size_mb: u32) -> Self {
        let disk = lab.private_directory(&format!("disk-{member}")).unwrap();
        let wal = lab.layout().data(member).join("pg_wal");
        let owner = std::fs::metadata(&disk).unwrap();
        let options = format!("size={size_mb}m,mode=0700,uid={},gid={}", owner.uid(), owner.gid());
        run("mount", &["-t", "tmpfs", "-o", &options, "tmpfs", disk.to_str().unwrap()]);
        let mounted = Self(disk);
        run("cp", &["-a", wal.to_str().unwrap(), mounted.0.to_str().unwrap()]);
        std::fs::rename(&wal, wal.with_file_name("pg_wal.before")).unwrap();
        std::os::unix::fs::symlink(mounted.0.join("pg_wal"), &wal).unwrap();
        mounted
    }

    /// Fills it until this many bytes are left, or none.
    fn fill(&self, left: u64) {
        let mut file = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.0.join("ballast"))
            .unwrap();
        let block = vec![0_u8; 64 << 10];
        let free = || {
            let disk = nix::sys::statvfs::statvfs(&self.0).unwrap();
            disk.blocks_available() * disk.fragment_size()
        };
        while free() > left && std::io::Write::write_all(&mut file, &block).is_ok() {}
    }

    fn make_room(&self) {
        std::fs::remove_file(self.0.join("ballast")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily, because a test that failed leaves processes on it; they end with the lab.
        run("umount", &["-l", self.0.to_str().unwrap()]);
    }
}

fn run(program: &str, arguments: &[&str]) {
    let status = std::process::Command::new(program).args(arguments).status();
    assert!(status.unwrap().success(), "{program} {arguments:?}");
}

#[tokio::test]
#[ignore = "mounts a file system, which only root can"]
async fn a_primary_whose_wal_disk_is_full_warns_before_and_is_replaced() {
    let (mut scene, first) = redundant().await;
    let lab = &mut scene.lab;
    let member = lab.members().into_iter().find(|member| *member != first).unwrap();
    lab.kill_member(&member).unwrap();
    lab.member_gone(&member).await.unwrap();
    let disk = SmallDisk::for_wal_of(lab, &member, 300);
    lab.start_member(&member).unwrap();
    lab.wait_redundant(BOUND).await.unwrap();
    let mut spec = chaos::lab::demo_spec();
    spec.members.entry(member.clone()).or_default().priority = 9;
    lab.put_spec(&spec).await.unwrap();
    // Both hold the same, so the one that is preferred is promoted; else it is tried once more.
    while lab.primary().await.unwrap() != member {
        let (before, primary) = lab.cluster().await.unwrap().service().unwrap();
        lab.kill_postgres(&primary).unwrap();
        lab.wait_served_after(before, BOUND).await.unwrap();
        lab.wait_redundant(BOUND).await.unwrap();
    }
    let watchers = Watchers::start(lab, 4).await.unwrap();
    watchers.load.acknowledged_count(500, BOUND).await.unwrap();
    let steady_from = clock::now();
    let (before, _) = lab.cluster().await.unwrap().service().unwrap();
    disk.fill(10 << 20);
    let warns = |cluster: &chaos::lab::Cluster| {
        let problems = &cluster.reports.get(&member)?.problems;
        problems.iter().any(|p| p.contains("WAL is nearly full")).then_some(())
    };
    lab.await_cluster("a warning", BOUND, warns).await.unwrap();
    assert_eq!(lab.cluster().await.unwrap().service().unwrap().0, before, "a warning, and no more");
    let struck = clock::now();
    disk.fill(0);
    // The bite: PostgreSQL needs another segment and gets none.
    let session = lab.superuser(&member).await.unwrap();
    let _ = session.client().batch_execute("SELECT pg_switch_wal(); CHECKPOINT").await;
    let (_, by) = lab.wait_served_after(before, BOUND).await.unwrap();
    assert_ne!(by, member);
    watchers.load.acknowledged_after(clock::now(), BOUND).await.unwrap();
    disk.make_room();
    lab.wait_redundant(BOUND).await.unwrap();
    let (evidence, _) = watchers.finish(lab, (steady_from, struck)).await.unwrap();
    let verdict = chaos::verdict::judge(&evidence);
    assert!(verdict.lost.is_empty() && verdict.dual.is_empty(), "{verdict:?}");
}
