//! Freezes processes of a member, and thaws them. A frozen process holds its sockets, its locks and its leases as they
//! are: nobody is told that it is gone, and after the thaw it goes on with what it believed before.
//!
//! The one rule: a freeze that cannot be seen in /proc is an error and no fault. Only what the kernel shows as stopped
//! counts.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use proto::MemberName;
use store::clock;

use super::cleanup::Found;
use super::{Lab, Struck};

/// A stop signal takes effect at once, on a busy machine within some milliseconds.
const BITE_BOUND: Duration = Duration::from_secs(5);

/// Which processes of a member are frozen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Keeper, fencer and all of PostgreSQL: what a frozen host is to the others.
    Member,
    /// All of PostgreSQL, and neither keeper nor fencer.
    Postgres,
    /// The postmaster alone: open sessions go on, new ones hang.
    Postmaster,
}

impl Lab {
    /// Freezes this part of `name`, the keeper first, and proves by /proc that every process of it is stopped.
    pub async fn freeze(&self, name: &MemberName, part: Part) -> anyhow::Result<Struck> {
        let first = self.part(name, part)?;
        ensure!(!first.is_empty(), "nothing of member {name} runs that could be frozen");
        let struck = Struck::now();
        let deadline = struck.at + BITE_BOUND;
        let mut awake = first;
        loop {
            for process in &awake {
                // It may have ended since it was looked up.
                let _ = kill(Pid::from_raw(process.pid), Signal::SIGSTOP);
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
            // What the postmaster had forked in the last moment is found at the second look.
            awake = self.part(name, part)?.into_iter().filter(|p| !is_stopped(p.pid)).collect();
            if awake.is_empty() {
                return Ok(struck);
            }
            ensure!(clock::now() < deadline, "the freeze of {name} did not bite: {awake:?} run");
        }
    }

    /// Freezes one process, by its id, and proves it.
    pub async fn freeze_process(&self, pid: i32) -> anyhow::Result<Struck> {
        let struck = Struck::now();
        kill(Pid::from_raw(pid), Signal::SIGSTOP).with_context(|| format!("freeze {pid}"))?;
        while !is_stopped(pid) {
            ensure!(clock::now() < struck.at + BITE_BOUND, "process {pid} does not stop");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Ok(struck)
    }

    /// Lets every stopped process of `name` go on: PostgreSQL first, so that it runs before anybody could fence it.
    pub fn thaw(&self, name: &MemberName) -> anyhow::Result<Struck> {
        let (servers, deputies): (Vec<_>, Vec<_>) = self
            .processes_of(name)
            .into_iter()
            .filter(|process| is_stopped(process.pid))
            .partition(Found::is_postgres);
        ensure!(!servers.is_empty() || !deputies.is_empty(), "nothing of member {name} is frozen");
        let struck = Struck::now();
        for process in servers.iter().chain(&deputies) {
            let _ = kill(Pid::from_raw(process.pid), Signal::SIGCONT);
        }
        Ok(struck)
    }

    /// Returns the processes of this part, in the order in which they are frozen.
    fn part(&self, name: &MemberName, part: Part) -> anyhow::Result<Vec<Found>> {
        let mut found = self.processes_of(name);
        match part {
            Part::Member => {}
            Part::Postgres => found.retain(Found::is_postgres),
            Part::Postmaster => {
                let postmaster = self.postmaster(name)?;
                found.retain(|process| process.pid == postmaster);
            }
        }
        // Keeper and fencer first: they must not see that PostgreSQL stands still. Then postmasters before their
        // children, so that nothing new is forked.
        let servers: BTreeSet<i32> =
            found.iter().filter(|p| p.is_postgres()).map(|p| p.pid).collect();
        found.sort_by_key(|p| (p.is_postgres(), servers.contains(&p.parent)));
        Ok(found)
    }
}

/// Returns whether the kernel shows the process as stopped; one that is gone is as still as can be.
pub fn is_stopped(pid: i32) -> bool {
    is_dead(pid) || matches!(state(pid).as_deref(), Some("T" | "t"))
}

/// Returns whether the process is gone, or a zombie that its parent has yet to reap.
pub fn is_dead(pid: i32) -> bool {
    matches!(state(pid).as_deref(), None | Some("Z" | "X"))
}

/// Returns the letter by which the kernel tells the process's state.
fn state(pid: i32) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, tail) = stat.rsplit_once(')')?;
    tail.split_whitespace().next().map(str::to_owned)
}
