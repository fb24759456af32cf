//! Fences by a cgroup of PostgreSQL's own, on whatever kinds of cgroups this machine has. The test is root and hands the
//! fencer a cgroup, as `Delegate=yes` does.

use std::path::{Path, PathBuf};

use keeper::fencer::{FenceWay, Process};
use nix::unistd::{User, chown, geteuid};

use super::claims::fence;
use super::scene::{Cluster, POSTGRES_USER, Scene, freeze, number, until};

/// A cgroup that belongs to PostgreSQL's user.
struct Delegated(PathBuf);

impl Delegated {
    fn in_hierarchy(mount: &Path) -> Option<Self> {
        let dir = mount.join(format!("pgd-fencer-{}", std::process::id()));
        std::fs::create_dir(&dir).ok()?;
        let made = Self(dir);
        let user = User::from_name(POSTGRES_USER).unwrap().unwrap();
        for path in [made.0.clone(), made.0.join("cgroup.procs")] {
            chown(&path, Some(user.uid), Some(user.gid)).unwrap();
        }
        Some(made)
    }

    fn children(&self) -> usize {
        let entries = std::fs::read_dir(&self.0).unwrap().flatten();
        entries.filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).count()
    }
}

impl Drop for Delegated {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.0);
    }
}

/// Where cgroups of each kind are mounted.
fn hierarchies() -> Vec<(PathBuf, FenceWay)> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    let found = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (point, kind, options) = (fields.next()?, fields.next()?, fields.next()?);
        let way = match kind {
            "cgroup2" => FenceWay::CgroupKill,
            "cgroup" if options.split(',').any(|o| o == "freezer") => FenceWay::CgroupFreezer,
            _ => return None,
        };
        Some((PathBuf::from(point), way))
    });
    found.collect()
}

pub async fn a_fence_by_cgroup_reaches_stopped_processes_and_leaves_nothing(cluster: Cluster) {
    if !geteuid().is_root() {
        println!("       not root: no cgroup can be handed over");
        return;
    }
    for (mount, way) in hierarchies() {
        let Some(cgroup) = Delegated::in_hierarchy(&mount) else {
            println!("       {} is read-only", mount.display());
            continue;
        };
        let mut scene = Scene::caged(&cluster, &cgroup.0).await;
        assert_eq!(scene.watched.way, way, "{}", scene.log());
        for part in ["postmaster", "checkpointer", "backend"] {
            let postmaster = scene.serving(None).await;
            let backend = scene.busy_backend().await;
            let session = scene.session().await;
            let checkpointer =
                "select pid from pg_stat_activity where backend_type = 'checkpointer'";
            let checkpointer = number(&session, checkpointer).await;
            freeze(match part {
                "postmaster" => postmaster,
                "checkpointer" => checkpointer,
                _ => backend,
            })
            .await;
            let (took, killed) = fence(&mut scene).await;
            println!("       {way}, {part} stopped: {} ms, {killed} killed", took.as_millis());
            assert!(killed >= 2 || part == "checkpointer", "{part}: {killed}");
            assert_eq!(cluster.processes(), []);
        }
        assert_eq!(cgroup.children(), 1, "PostgreSQL's own, for the next start");
        scene.fencer.exit().await.unwrap();
        let fencer = scene.watched.fencer_pid;
        until("the fencer has ended", || Process::with_pid(fencer).is_none()).await;
        assert_eq!(cgroup.children(), 0);
    }
}

pub async fn a_fencer_that_may_make_no_cgroup_says_so_and_fences_all_the_same(cluster: Cluster) {
    let mut scene = Scene::fresh(&cluster).await;
    if scene.watched.way != FenceWay::Processes {
        println!("       this test runs where cgroups may be made");
        return;
    }
    assert!(scene.log().contains("fences by killing process by process: "), "{}", scene.log());
    let pid = scene.serving(None).await;
    freeze(pid).await;
    fence(&mut scene).await;
}
