//! The violent part: ends every process of a data directory, in the order in which none can escape.
//!
//! The postmaster is stopped first, so that it forks no more and its children's pids stay theirs; then its children
//! are killed one by one, because each is a session and a process group of its own and a group kill would reach
//! the postmaster only; the postmaster is killed last, which works on stopped processes too.

use std::path::Path;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::processes::{Process, but_for, roots};

/// How long an immediate stop may take before processes are killed. Without a stuck process it takes 15 to 20 ms;
/// with one PostgreSQL itself waits 5 s, and all of a fence has to fit into 0.5 s.
pub const QUIT_PATIENCE: Duration = Duration::from_millis(250);

/// How long the children of a postmaster that has died by itself may live. They end within 20 ms once they notice;
/// one that computes can take 1.4 s, which a restart must not wait for.
pub const ORPHAN_PATIENCE: Duration = Duration::from_millis(50);

/// Returns the living processes of `data_dir`, with all that descend from this process,
/// but for the keeper that the fencer has started.
pub fn left(data_dir: &Path, keeper: Option<u32>) -> Vec<Process> {
    but_for(data_dir, Some(std::process::id()), keeper)
}

/// Asks the postmasters among `processes` for an immediate stop.
pub fn quit(processes: &[Process]) -> Vec<String> {
    let mut problems = Vec::new();
    send(&roots(processes), Signal::SIGQUIT, &mut problems);
    problems
}

/// Kills `processes`. Returns what went wrong; the caller looks again until none is left.
pub fn kill(processes: &[Process]) -> Vec<String> {
    let mut problems = Vec::new();
    let roots = roots(processes);
    let children: Vec<Process> = processes.iter().filter(|p| !roots.contains(p)).copied().collect();
    send(&roots, Signal::SIGSTOP, &mut problems);
    send(&children, Signal::SIGKILL, &mut problems);
    send(&roots, Signal::SIGKILL, &mut problems);
    problems
}

fn send(processes: &[Process], signal: Signal, problems: &mut Vec<String>) {
    for process in processes {
        if let Err(errno) = process.signal(signal) {
            problems.push(format!("{signal} to pid {}: {}", process.pid, errno.desc()));
        }
    }
}
