//! A cgroup of PostgreSQL's own, where the fencer may make one: then a fence reaches all of it in one write, whatever state
//! a process is in and however fast it forks.
//!
//! Rule: it is a help. What it does not reach is found and killed process by process as ever, and nothing here waits
//! without a bound. Its files are the kernel's, so that no disk is waited for, and open from the start.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;
use store::clock::now;

use super::processes::Process;
use super::protocol::FenceWay;

/// How our cgroups are called; the fencer's pid follows.
const PREFIX: &str = "pgdeputy-postgres-";

/// Freezing takes 0.3 to 9 ms; what is not frozen by then is killed as it is.
const FREEZE_AT_MOST: Duration = Duration::from_millis(20);

/// A cgroup into which PostgreSQL is started.
#[derive(Debug)]
pub struct Cage {
    dir: PathBuf,
    way: FenceWay,
    /// Who writes 0 here moves itself in.
    procs: File,
    /// `cgroup.kill`, or `freezer.state`.
    lever: File,
}

impl Cage {
    /// Makes a cgroup below this process's own. Says why not where that may not be done.
    pub fn make() -> Result<Self, String> {
        let read = |path| fs::read_to_string(path).map_err(|e| format!("{path}: {e}"));
        let places = places(&read("/proc/self/cgroup")?, &read("/proc/self/mountinfo")?);
        let mut problems = Vec::new();
        for (parent, way) in places {
            match Self::make_in(&parent, way) {
                Ok(cage) => return Ok(cage),
                Err(problem) => problems.push(problem),
            }
        }
        match problems.is_empty() {
            true => Err("no cgroups are mounted".into()),
            false => Err(problems.join("; ")),
        }
    }

    fn make_in(parent: &Path, way: FenceWay) -> Result<Self, String> {
        remove_abandoned(parent);
        let dir = parent.join(format!("{PREFIX}{}", std::process::id()));
        let failed = |e: io::Error| format!("{}: {e}", dir.display());
        fs::create_dir(&dir).map_err(failed)?;
        Self::of(&dir, way).map_err(|e| {
            let _ = fs::remove_dir(&dir);
            failed(e)
        })
    }

    fn of(dir: &Path, way: FenceWay) -> io::Result<Self> {
        let open = |name| OpenOptions::new().read(name != KILL).write(true).open(dir.join(name));
        let lever = open(if way == FenceWay::CgroupKill { KILL } else { FREEZER })?;
        Ok(Self { dir: dir.to_owned(), way, procs: open("cgroup.procs")?, lever })
    }

    pub fn way(&self) -> FenceWay {
        self.way
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Returns the file by which a child moves itself in between fork and exec.
    pub fn door(&self) -> RawFd {
        self.procs.as_raw_fd()
    }

    /// Returns whether `pid` is in it.
    pub fn holds(&self, pid: u32) -> bool {
        self.pids().contains(&pid)
    }

    /// Kills all that is in it.
    pub fn kill(&self) -> io::Result<()> {
        match self.way {
            FenceWay::CgroupKill => self.lever.write_all_at(b"1", 0),
            FenceWay::CgroupFreezer => self.freeze_and_kill(),
            FenceWay::Processes => Ok(()),
        }
    }

    /// Frozen processes fork no more; the signals reach them when they are thawed.
    fn freeze_and_kill(&self) -> io::Result<()> {
        let frozen = self.lever.write_all_at(b"FROZEN", 0);
        let until = now() + FREEZE_AT_MOST;
        while frozen.is_ok() && !self.is_frozen() && now() < until {
            std::thread::yield_now();
        }
        for process in self.pids().into_iter().filter_map(Process::with_pid) {
            let _ = process.signal(Signal::SIGKILL);
        }
        self.lever.write_all_at(b"THAWED", 0)?;
        frozen
    }

    fn is_frozen(&self) -> bool {
        let mut state = [0; 6];
        self.lever.read_at(&mut state, 0).is_ok() && state == *b"FROZEN"
    }

    fn pids(&self) -> Vec<u32> {
        let text = fs::read_to_string(self.dir.join("cgroup.procs")).unwrap_or_default();
        text.lines().filter_map(|line| line.trim().parse().ok()).collect()
    }
}

impl Drop for Cage {
    fn drop(&mut self) {
        // Fails while anything lives in it, and then the next fencer takes it away.
        let _ = fs::remove_dir(&self.dir);
    }
}

const KILL: &str = "cgroup.kill";
const FREEZER: &str = "freezer.state";

/// Removes what killed fencers have left. The kernel keeps one in which a process lives.
fn remove_abandoned(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let pid = name.strip_prefix(PREFIX).and_then(|pid| pid.parse().ok());
        if pid.is_some_and(|pid| Process::with_pid(pid).is_none()) {
            let _ = fs::remove_dir(entry.path());
        }
    }
}

/// Returns the directories of this process's own cgroups, by `/proc/self/cgroup` and `/proc/self/mountinfo`: the one of
/// version 2 first, because one write kills there.
fn places(cgroups: &str, mounts: &str) -> Vec<(PathBuf, FenceWay)> {
    let mut places = Vec::new();
    for line in cgroups.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(number), Some(kinds), Some(path)) = (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let (kind, way) = match kinds {
            "" if number == "0" => ("cgroup2", FenceWay::CgroupKill),
            kinds if kinds.split(',').any(|k| k == "freezer") => {
                ("cgroup", FenceWay::CgroupFreezer)
            }
            _ => continue,
        };
        let dir = mounts.lines().find_map(|mount| place_in(mount, kind, path));
        places.extend(dir.map(|dir| (dir, way)));
    }
    places.sort_by_key(|(_, way)| *way != FenceWay::CgroupKill);
    places
}

/// Returns where the cgroup `path` stands by this line of mountinfo, if that mounts the hierarchy it is of.
fn place_in(mount: &str, kind: &str, path: &str) -> Option<PathBuf> {
    let (before, after) = mount.split_once(" - ")?;
    let mut after = after.split(' ');
    let is_it = after.next() == Some(kind)
        && (kind == "cgroup2" || after.nth(1)?.split(',').any(|option| option == "freezer"));
    let mut before = before.split(' ').skip(3);
    let (root, point) = (before.next()?, before.next()?);
    let below = Path::new(path).strip_prefix(root).ok().filter(|_| is_it)?;
    Some(Path::new(point).join(below))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
30 23 0:26 / /sys/fs/cgroup ro,nosuid shared:9 - tmpfs tmpfs ro,mode=755
31 30 0:27 / /sys/fs/cgroup/unified rw,nosuid shared:10 - cgroup2 cgroup2 rw,nsdelegate
33 30 0:29 /docker/1 /sys/fs/cgroup/freezer rw,nosuid shared:12 - cgroup cgroup rw,freezer
34 30 0:30 / /sys/fs/cgroup/cpu rw,nosuid shared:13 - cgroup cgroup rw,cpu,cpuacct
";

    #[test]
    fn its_own_cgroups_are_found_and_the_one_that_can_kill_comes_first() {
        let own = "9:freezer:/docker/1/db\n4:cpu,cpuacct:/x\n0::/system.slice/pgdeputy.service\n";
        let kill = "/sys/fs/cgroup/unified/system.slice/pgdeputy.service";
        let places: Vec<_> = places(own, MOUNTS)
            .into_iter()
            .map(|(dir, way)| (dir.display().to_string(), way))
            .collect();
        assert_eq!(
            places,
            [
                (kill.to_owned(), FenceWay::CgroupKill),
                ("/sys/fs/cgroup/freezer/db".to_owned(), FenceWay::CgroupFreezer)
            ]
        );
        assert_eq!(super::places(own, ""), [], "nothing is mounted");
        assert_eq!(
            super::places("9:freezer:/elsewhere\n", MOUNTS),
            [],
            "not below what is mounted"
        );
    }

    /// A directory that stands in for a cgroup of this kind, in which `pid` is.
    fn stand_in(way: FenceWay, pid: u32) -> (tempfile::TempDir, Cage) {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("cgroup.procs"), format!("{pid}\n")).unwrap();
        let lever = if way == FenceWay::CgroupKill { KILL } else { FREEZER };
        fs::write(dir.path().join(lever), "").unwrap();
        let cage = Cage::of(dir.path(), way).unwrap();
        (dir, cage)
    }

    #[test]
    fn a_kill_is_one_write_and_the_freezer_kills_what_it_holds_and_thaws() {
        let (dir, cage) = stand_in(FenceWay::CgroupKill, 1);
        cage.kill().unwrap();
        cage.kill().unwrap();
        assert_eq!(fs::read_to_string(dir.path().join(KILL)).unwrap(), "1");
        let mut held = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let (dir, cage) = stand_in(FenceWay::CgroupFreezer, held.id());
        assert!(cage.holds(held.id()));
        cage.kill().unwrap();
        assert!(!held.wait().unwrap().success());
        assert_eq!(fs::read_to_string(dir.path().join(FREEZER)).unwrap(), "THAWED");
    }

    #[test]
    fn where_the_kernel_has_no_such_file_nothing_is_left_behind() {
        let parent = tempfile::tempdir().unwrap();
        let problem = Cage::make_in(parent.path(), FenceWay::CgroupKill).unwrap_err();
        assert!(problem.contains(PREFIX), "{problem}");
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 0);
    }
}
