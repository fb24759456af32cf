//! Finds the living processes of a data directory in /proc, and signals them without ever hitting a stranger.
//!
//! A process belongs to the data directory if it runs `postgres` with that directory as its working directory, as
//! each process of PostgreSQL does, or descends from one that does or from the fencer. Parents alone would miss
//! what an earlier fencer left behind; working directories alone would kill an administrator's shell.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A process that lives. Zombies do not: they hold nothing but their number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Process {
    pub pid: u32,
    pub parent: u32,
    /// When it started, in clock ticks since boot: tells it from a later process with the same pid.
    pub start_ticks: u64,
}

impl Process {
    /// Returns the living process with this pid.
    pub fn with_pid(pid: u32) -> Option<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        parse_stat(pid, &stat)
    }

    /// Sends `signal` if this process still lives; returns whether it did.
    ///
    /// It is looked at directly before, because its pid may have gone to another process since it was found.
    pub fn signal(&self, signal: Signal) -> Result<bool, Errno> {
        if Process::with_pid(self.pid).map(|p| p.start_ticks) != Some(self.start_ticks) {
            return Ok(false);
        }
        match kill(Pid::from_raw(self.pid as i32), signal) {
            Ok(()) => Ok(true),
            Err(Errno::ESRCH) => Ok(false),
            Err(errno) => Err(errno),
        }
    }

    fn is_postgres_in(&self, data_dir: &Path) -> bool {
        let link = |name| std::fs::read_link(format!("/proc/{}/{name}", self.pid));
        if !link("cwd").is_ok_and(|cwd| cwd == data_dir) {
            return false;
        }
        // After a package upgrade the kernel shows the running program as "postgres (deleted)".
        let program = link("exe")
            .ok()
            .and_then(|exe| exe.file_name().map(|n| n.to_string_lossy().into_owned()));
        program.is_some_and(|name| name.trim_end_matches(" (deleted)") == "postgres")
    }
}

/// Returns the living processes of `data_dir` and, where `ancestor` is given, every descendant of that process.
/// `data_dir` must be the real path, the one that the kernel shows; nothing here waits for a disk.
///
/// One look is no proof that none is left: a process can fork behind it. The postmaster, the one that forks, must
/// have been dead before.
pub fn of_real_directory(data_dir: &Path, ancestor: Option<u32>) -> Vec<Process> {
    but_for(data_dir, ancestor, None)
}

/// The same, without the descendants of `stranger` that are not PostgreSQL's.
pub fn but_for(data_dir: &Path, ancestor: Option<u32>, stranger: Option<u32>) -> Vec<Process> {
    let all: BTreeMap<u32, Process> = living().into_iter().map(|p| (p.pid, p)).collect();
    let mut ours: BTreeSet<u32> =
        all.values().filter(|p| p.is_postgres_in(data_dir)).map(|p| p.pid).collect();
    ours.extend(ancestor);
    let belongs = |process: &Process| {
        let mut pid = process.pid;
        // A chain of parents ends at 1 or 0; the bound is for chains that change while they are read.
        for _ in 0..all.len() {
            if ours.contains(&pid) {
                return true;
            }
            if Some(pid) == stranger {
                return false;
            }
            match all.get(&pid) {
                Some(process) => pid = process.parent,
                None => return false,
            }
        }
        false
    };
    all.values().filter(|p| Some(p.pid) != ancestor && belongs(p)).copied().collect()
}

/// Returns those of `processes` whose parent is not among them: the postmasters.
pub fn roots(processes: &[Process]) -> Vec<Process> {
    let pids: BTreeSet<u32> = processes.iter().map(|p| p.pid).collect();
    processes.iter().filter(|p| !pids.contains(&p.parent)).copied().collect()
}

fn living() -> Vec<Process> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.filter_map(|e| e.ok()?.file_name().to_str()?.parse::<u32>().ok());
    pids.filter_map(Process::with_pid).collect()
}

/// Reads `pid (name) state ppid ...`; a name may hold spaces and brackets, so fields count from its last bracket.
fn parse_stat(pid: u32, stat: &str) -> Option<Process> {
    let fields: Vec<&str> = stat.get(stat.rfind(')')? + 1..)?.split_ascii_whitespace().collect();
    let state = *fields.first()?;
    if state == "Z" || state == "X" {
        return None;
    }
    Some(Process {
        pid,
        parent: fields.get(1)?.parse().ok()?,
        start_ticks: fields.get(19)?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAT: &str =
        "42 (postgres: (a) b) S 7 42 42 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 1 0 123456 1 2 3";

    #[test]
    fn a_name_with_brackets_does_not_shift_the_fields() {
        let found = parse_stat(42, STAT);
        assert_eq!(found, Some(Process { pid: 42, parent: 7, start_ticks: 123_456 }));
    }

    #[test]
    fn a_zombie_does_not_live() {
        assert_eq!(parse_stat(42, &STAT.replace(" S 7", " Z 7")), None);
    }

    #[test]
    fn a_pid_that_went_to_another_process_is_not_signalled() {
        let myself = Process::with_pid(std::process::id()).unwrap();
        let predecessor = Process { start_ticks: myself.start_ticks - 1, ..myself };
        assert_eq!(predecessor.signal(Signal::SIGKILL), Ok(false));
    }

    #[test]
    fn roots_are_those_whose_parents_are_not_among_them() {
        let process = |pid, parent| Process { pid, parent, start_ticks: 1 };
        let found = roots(&[process(10, 1), process(11, 10), process(12, 10), process(20, 1)]);
        assert_eq!(found.iter().map(|p| p.pid).collect::<Vec<_>>(), [10, 20]);
    }

    #[test]
    fn a_program_that_is_not_postgres_does_not_belong_to_its_working_directory() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().canonicalize().unwrap();
        let mut shell =
            std::process::Command::new("sleep").arg("60").current_dir(&dir).spawn().unwrap();
        let found = of_real_directory(&dir, None);
        let as_descendant = of_real_directory(&dir, Some(std::process::id()));
        shell.kill().unwrap();
        shell.wait().unwrap();
        assert_eq!(found, []);
        assert!(as_descendant.iter().any(|p| p.pid == shell.id()));
    }
}
