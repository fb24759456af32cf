//! Ends every process of a lab and removes its directory.
//!
//! The one rule: only what belongs to that lab is ended, by process id, and it is looked for again until
//! nothing is left. PostgreSQL's processes are found by their working directory: each is a session and a
//! process group of its own, and none is a child of the lab.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::config::{DIRECTORY_PREFIX, Layout, MARK};
use super::{disk, network, starve};

/// PostgreSQL's immediate stop takes 20 ms and, with a stopped child, 5 s. Then everything is killed anyway.
const STOP_PATIENCE: Duration = Duration::from_secs(1);

/// Killed processes are gone within milliseconds, unless the disk hangs.
const KILL_PATIENCE: Duration = Duration::from_secs(20);

/// How often a process that is between two programs is looked at again, 5 ms apart: it takes microseconds, and
/// milliseconds where the processors are busy.
const EXEC_LOOKS: usize = 100;

/// A process that belongs to a lab.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    pub pid: i32,
    pub parent: i32,
    pub program: String,
    pub directory: PathBuf,
}

impl Found {
    /// Returns whether this is one of PostgreSQL's server processes.
    pub fn is_postgres(&self) -> bool {
        self.program.starts_with("postgres") || self.program == "postmaster"
    }
}

/// Returns the living processes that belong to the lab at `root`, without this one and without zombies.
pub fn processes(root: &Path) -> Vec<Found> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let own = std::process::id().cast_signed();
    let pids = entries.flatten().filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| *pid != own).filter_map(|pid| inspect(pid, root)).collect()
}

fn inspect(pid: i32, root: &Path) -> Option<Found> {
    let proc = PathBuf::from(format!("/proc/{pid}"));
    // A zombie has no working directory: it is dead, and only its parent can remove it.
    let directory = std::fs::read_link(proc.join("cwd")).ok()?;
    settle(&proc);
    let stat = std::fs::read_to_string(proc.join("stat")).ok()?;
    let (head, tail) = stat.rsplit_once(')')?;
    let program = head.split_once('(')?.1.to_owned();
    let parent = tail.split_whitespace().nth(1)?.parse().ok()?;
    let found = Found { pid, parent, program, directory };
    belongs(&found, &proc, root).then_some(found)
}

/// Waits while the process is between two programs: its parent already goes on, but `execve` has yet to write the
/// arguments and the environment (both read as empty). A kernel thread has neither, and no program either.
fn settle(proc: &Path) {
    let is_empty = |file: &str| std::fs::read(proc.join(file)).is_ok_and(|text| text.is_empty());
    for _ in 0..EXEC_LOOKS {
        let between = is_empty("cmdline") && std::fs::read_link(proc.join("exe")).is_ok();
        if !between {
            return;
        }
        pause();
    }
}

/// A shell or a pager that somebody runs inside the lab's directory is not the lab's. `root` is a lab or a directory in it.
fn belongs(found: &Found, proc: &Path, root: &Path) -> bool {
    let words = |file: &str| std::fs::read(proc.join(file)).unwrap_or_default();
    let environment = words("environ");
    let mark = |word: &[u8]| word.strip_prefix(MARK.as_bytes())?.strip_prefix(b"=").map(Vec::from);
    let marks = environment.split(|b| *b == 0).filter_map(mark).map(OsString::from_vec);
    let lab = marks.map(PathBuf::from).find(|lab| root.starts_with(lab));
    if lab.as_deref() == Some(root) {
        return true;
    }
    // PostgreSQL writes its title over the environment, and others may clear theirs.
    if found.is_postgres() && found.directory.starts_with(root) {
        return true;
    }
    // A program is called as its file, and a copy of pgdeputy may have any name.
    let ours = lab.is_some()
        || found.is_postgres()
        || found.program.starts_with("pg_")
        || found.program.starts_with("pgdeputy");
    let inside = [root.as_os_str().as_bytes(), b"/"].concat();
    ours && words("cmdline").split(|b| *b == 0).any(|word| word.starts_with(&inside))
}

/// Ends all processes of the lab at `root`: first all but PostgreSQL, then PostgreSQL by immediate stop, so that
/// its shared memory is given back, then whatever is left. Returns who was ended.
pub fn end_processes(root: &Path) -> anyhow::Result<BTreeSet<i32>> {
    let mut ended = BTreeSet::new();
    let mut signal = |found: &[Found], signal| {
        for process in found {
            ended.insert(process.pid);
            // It may have ended by itself since it was looked up.
            let _ = kill(Pid::from_raw(process.pid), signal);
        }
    };
    let (servers, others): (Vec<_>, Vec<_>) =
        processes(root).into_iter().partition(Found::is_postgres);
    signal(&others, Signal::SIGKILL);
    let pids: BTreeSet<i32> = servers.iter().map(|p| p.pid).collect();
    let postmasters: Vec<_> = servers.into_iter().filter(|p| !pids.contains(&p.parent)).collect();
    signal(&postmasters, Signal::SIGQUIT);
    let stop_by = store::clock::now() + STOP_PATIENCE;
    let kill_by = stop_by + KILL_PATIENCE;
    loop {
        let left = processes(root);
        if left.is_empty() {
            return Ok(ended);
        }
        if store::clock::now() >= kill_by {
            bail!("processes of {} do not end though killed: {left:?}", root.display());
        }
        if store::clock::now() >= stop_by || left.iter().any(|p| !p.is_postgres()) {
            signal(&left, Signal::SIGKILL);
        }
        pause();
    }
}

/// /proc offers nothing to wait for, so this looks again after a moment.
#[expect(
    clippy::disallowed_methods,
    reason = "the caller's loop has a bound, and runs where no runtime may exist"
)]
fn pause() {
    std::thread::sleep(Duration::from_millis(5));
}

/// Ends all processes of the lab at `root` and removes its directory. Refuses a directory that is not a lab.
pub fn end_lab(root: &Path) -> anyhow::Result<BTreeSet<i32>> {
    let name = root.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    ensure!(
        name.starts_with(DIRECTORY_PREFIX) && Layout::marker(root).is_file(),
        "{} is not the directory of a lab: give the one that `pgdeputy demo --keep` printed",
        root.display()
    );
    let root = root.canonicalize().with_context(|| format!("find {}", root.display()))?;
    disk::unhang_all(&root);
    let ended = end_processes(&root)?;
    disk::unmount_all(&root).context("unmount the members' disks")?;
    network::remove_of(&root).context("remove the lab's network")?;
    starve::remove_of(&root);
    remove(&root).with_context(|| format!("remove {}", root.display()))?;
    Ok(ended)
}

#[expect(
    clippy::disallowed_methods,
    reason = "a lab's own temporary directory, checked by its name and its marker"
)]
fn remove(root: &Path) -> std::io::Result<()> {
    std::fs::remove_dir_all(root)
}

/// Waits until the process that holds the other end of standard input is gone, then ends its lab.
///
/// The first line names the lab's directory; a second line dismisses the guard without ending anything. It is
/// told by a pipe and not by its arguments, so that it is not taken for one of the lab's processes.
pub fn guard() -> anyhow::Result<()> {
    let mut input = BufReader::new(std::io::stdin().lock());
    let mut root = String::new();
    input.read_line(&mut root).context("read the lab's directory")?;
    let mut rest = String::new();
    input.read_to_string(&mut rest).context("wait for the lab's end")?;
    let root = PathBuf::from(root.trim_end());
    if rest.is_empty() && Layout::marker(&root).is_file() {
        end_lab(&root)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    fn lab_directory() -> tempfile::TempDir {
        let directory = tempfile::Builder::new().prefix(DIRECTORY_PREFIX).tempdir().unwrap();
        std::fs::write(Layout::marker(directory.path()), "").unwrap();
        directory
    }

    #[test]
    fn marked_processes_end_and_a_bystander_in_the_directory_stays() {
        let directory = lab_directory();
        let root = directory.path().canonicalize().unwrap();
        let mut marked = Command::new("sleep").arg("60").env(MARK, &root).spawn().unwrap();
        let mut bystander = Command::new("sleep").arg("60").current_dir(&root).spawn().unwrap();
        let ended = end_processes(&root).unwrap();
        assert_eq!(ended.into_iter().collect::<Vec<_>>(), [marked.id().cast_signed()]);
        assert!(!marked.wait().unwrap().success());
        assert!(bystander.try_wait().unwrap().is_none());
        bystander.kill().unwrap();
        bystander.wait().unwrap();
    }

    #[test]
    fn a_members_fencer_is_found_by_its_arguments_though_its_name_is_its_own() {
        let directory = lab_directory();
        let (member, other) = (directory.path().join("a"), directory.path().join("b"));
        let fencer = directory.path().join("pgdeputy-fencer");
        // A process is called as the link that it was started by.
        std::os::unix::fs::symlink("/bin/sh", &fencer).unwrap();
        let mut command = Command::new(&fencer);
        command.args(["-c", "read word"]).arg(member.join("data.pgdeputy")).stdin(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let found = processes(&member);
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(
            (found[0].pid, found[0].program.as_str()),
            (child.id().cast_signed(), "pgdeputy-fencer")
        );
        assert!(processes(&other).is_empty());
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn a_members_keeper_is_found_whatever_its_program_is_called() {
        let directory = lab_directory();
        let (member, other) = (directory.path().join("a"), directory.path().join("b"));
        let program = directory.path().join("a-copy");
        std::os::unix::fs::symlink("/bin/sh", &program).unwrap();
        let mut command = Command::new(&program);
        command.args(["-c", "read word"]).arg(member.join("data")).stdin(Stdio::piped());
        let mut child = command.env(MARK, directory.path()).spawn().unwrap();
        let found = processes(&member);
        assert_eq!(found.iter().map(|f| f.pid).collect::<Vec<_>>(), [child.id().cast_signed()]);
        assert!(processes(&other).is_empty());
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn a_directory_that_is_no_lab_is_refused_and_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("lab"), "").unwrap();
        let error = end_lab(directory.path()).unwrap_err().to_string();
        assert!(error.contains("is not the directory of a lab"), "{error}");
        assert!(directory.path().exists());
    }

    #[test]
    fn a_lab_without_processes_is_removed() {
        let directory = lab_directory();
        end_lab(directory.path()).unwrap();
        assert!(!directory.path().exists());
    }

    #[test]
    fn another_labs_process_is_not_found() {
        let (one, two) = (lab_directory(), lab_directory());
        let mut child = Command::new("sleep")
            .arg("60")
            .env(MARK, one.path())
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        assert!(processes(two.path()).is_empty());
        assert_eq!(processes(one.path()).len(), 1);
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// `spawn` returns before the new program's environment can be read: nine times of ten on busy processors.
    #[test]
    fn a_process_is_found_from_its_first_instant() {
        let directory = lab_directory();
        for _ in 0..50 {
            let mut command = Command::new("sleep");
            command.arg("60").env(MARK, directory.path()).stdin(Stdio::null());
            let mut child = command.spawn().unwrap();
            let found = processes(directory.path()).len();
            child.kill().unwrap();
            child.wait().unwrap();
            assert_eq!(found, 1);
        }
    }
}
