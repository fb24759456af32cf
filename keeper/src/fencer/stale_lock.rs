//! Removes lock files of a dead postmaster that PostgreSQL would take for a living one.
//!
//! PostgreSQL only asks whether the pid in the file exists. A zombie's does, until its parent reaps it, and the
//! PID 1 of many containers never does; after a restart of the machine a stranger may have it. Either blocks every
//! start. Removed only when no process of the data directory lives. PostgreSQL's second guard, on the shared memory
//! segment of the directory, stays.

use std::fs;
use std::path::{Path, PathBuf};

use super::processes::of_real_directory;

/// Removes `postmaster.pid` in `data_dir`, and the lock file beside its socket, if their pid exists but belongs to
/// no process of this directory. Returns what was removed.
///
/// Also for whoever runs PostgreSQL's programs on the directory by himself, as pg_rewind does.
pub fn clear_stale_locks(data_dir: &Path) -> Vec<PathBuf> {
    let data_dir = super::ward::real_path(data_dir);
    let lock = data_dir.join("postmaster.pid");
    let Ok(text) = fs::read_to_string(&lock) else { return Vec::new() };
    let Some(pid) = pid_of(&text) else { return Vec::new() };
    // Where the pid does not exist PostgreSQL finds out by itself.
    if !Path::new(&format!("/proc/{pid}")).exists()
        || !of_real_directory(&data_dir, None).is_empty()
    {
        return Vec::new();
    }
    let socket_lock = socket_lock(&text)
        .filter(|path| fs::read_to_string(path).is_ok_and(|text| pid_of(&text) == Some(pid)));
    // The socket's first: its path stands in the other one.
    let stale = socket_lock.into_iter().chain([lock]);
    stale.filter(|path| fs::remove_file(path).is_ok()).collect()
}

fn pid_of(text: &str) -> Option<u32> {
    text.lines().next()?.trim().parse().ok()
}

/// Reads the port and the directory of the socket, lines 4 and 5.
fn socket_lock(text: &str) -> Option<PathBuf> {
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let (port, dir) = (lines.get(3)?, lines.get(4)?);
    let known = !dir.is_empty() && port.parse::<u16>().is_ok();
    known.then(|| Path::new(dir).join(format!(".s.PGSQL.{port}.lock")))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns a data directory whose lock file names `pid`, and the files that it consists of.
    fn locked_by(pid: u32) -> (tempfile::TempDir, Vec<PathBuf>) {
        let dir = tempfile::tempdir().unwrap();
        let (lock, socket) =
            (dir.path().join("postmaster.pid"), dir.path().join(".s.PGSQL.5432.lock"));
        let path = dir.path().display();
        fs::write(&lock, format!("{pid}\n{path}\n1700000000\n5432\n{path}\n\n 1 2\n")).unwrap();
        fs::write(&socket, format!("{pid}\n{path}\n")).unwrap();
        (dir, vec![socket, lock])
    }

    #[test]
    fn a_lock_that_names_a_zombie_or_a_stranger_is_removed() {
        let mut zombie = std::process::Command::new("true").spawn().unwrap();
        while super::super::processes::Process::with_pid(zombie.id()).is_some() {
            std::thread::yield_now();
        }
        for pid in [zombie.id(), std::process::id()] {
            let (dir, files) = locked_by(pid);
            let real: Vec<PathBuf> = files.iter().map(|f| f.canonicalize().unwrap()).collect();
            assert_eq!(clear_stale_locks(dir.path()).len(), 2);
            assert!(real.iter().all(|f| !f.exists()));
        }
        zombie.wait().unwrap();
    }

    #[test]
    fn a_lock_whose_pid_does_not_exist_is_left_to_postgres() {
        // Above the kernel's highest possible pid.
        let (dir, files) = locked_by(1 << 23);
        assert_eq!(clear_stale_locks(dir.path()), Vec::<PathBuf>::new());
        assert!(files.iter().all(|f| f.exists()));
    }

    #[test]
    fn the_lock_of_another_clusters_socket_is_not_touched() {
        let (dir, files) = locked_by(std::process::id());
        fs::write(&files[0], "1\n").unwrap();
        assert_eq!(clear_stale_locks(dir.path()).len(), 1);
        assert!(files[0].exists() && !files[1].exists());
    }
}
