//! Starts a dead keeper again, as it asked for when it connected: at once the first time, later and later if it dies
//! again and again. Not one that has let go, that ended with success, or that found its configuration to be wrong.
//!
//! It waits for nothing: not for the new program to run, which may have to be read from a hung disk.

use std::ffi::CString;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::SigSet;
use nix::unistd::{ForkResult, Pid, fork};
use proto::Moment;

use super::processes::Process;
use super::protocol::KeeperCommand;
use super::shelter;

/// Long enough for whoever kills a whole member, process by process, to reach the fencer too; the right to serve
/// outlives a keeper by seconds.
const FIRST_PAUSE: Duration = Duration::from_millis(50);

/// What an operator who mends the cause can wait.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// A keeper that has lived this long was well: the pause before its next start is the first one again.
const WELL_AFTER: Duration = Duration::from_secs(30);

/// How often it is looked whether the old keeper has ended; it takes microseconds once its connection is closed.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// `EX_USAGE`: what it was started with is wrong, and does not get better by trying again.
const USAGE_STATUS: i32 = 64;

/// The keeper that is, was, or is to be.
#[derive(Default)]
pub struct Revival {
    command: Option<KeeperCommand>,
    /// Where it writes its log.
    output: Option<OwnedFd>,
    /// The one that connected last.
    last: Option<Process>,
    /// The one that was started here, until it is reaped.
    child: Option<u32>,
    begun: Moment,
    times: u32,
    due: Option<Moment>,
}

impl Revival {
    /// A keeper has connected. Nothing is known of how to start it again until it says so.
    pub fn connected(&mut self, keeper: Option<Process>, now: Moment) {
        if self.child.is_none() || keeper.map(|k| k.pid) != self.child {
            self.begun = now;
        }
        (self.command, self.output, self.due) = (None, None, None);
        self.last = keeper;
    }

    /// The connected keeper says how to start it again, or that it is not to be started (`None`).
    pub fn asked(&mut self, command: Option<KeeperCommand>, output: Option<OwnedFd>) {
        self.command = command;
        self.output = output.filter(|_| self.command.is_some());
    }

    /// The keeper has died, or its connection has ended.
    pub fn lost(&mut self, now: Moment) {
        if self.command.is_some() && self.due.is_none() {
            let well = now.since(self.begun) >= WELL_AFTER;
            self.times = if well { 0 } else { self.times };
            self.due = Some(now + pause(self.times));
            self.times += 1;
        }
    }

    /// The child `pid` was reaped; returns whether it was the keeper.
    pub fn reaped(&mut self, pid: u32, code: Option<i32>, now: Moment) -> bool {
        if self.child != Some(pid) {
            return false;
        }
        self.child = None;
        if matches!(code, Some(0 | USAGE_STATUS)) {
            (self.command, self.due) = (None, None);
        } else {
            self.lost(now);
        }
        true
    }

    /// Returns the keeper that was started here and lives: it is no part of PostgreSQL.
    pub fn child(&self) -> Option<u32> {
        self.child
    }

    /// Returns whether a keeper is to be started.
    pub fn is_under_way(&self) -> bool {
        self.due.is_some() || self.child.is_some()
    }

    pub fn wake_at(&self) -> Option<Moment> {
        self.due
    }

    /// Starts the keeper if it is due. Returns a line for the log.
    pub fn advance(&mut self, now: Moment) -> Option<String> {
        if self.due.is_none_or(|due| now < due) {
            return None;
        }
        // Its connection may have been cut because it is stuck: only a dead one is replaced.
        let lives = self.last.is_some_and(|k| {
            Process::with_pid(k.pid).is_some_and(|p| p.start_ticks == k.start_ticks)
        });
        if lives || self.child.is_some() {
            self.due = Some(now + LOOK_AGAIN);
            return None;
        }
        self.due = None;
        let command = self.command.as_ref()?;
        self.begun = now;
        match start(command, self.output.as_ref()) {
            Ok(pid) => {
                self.child = Some(pid);
                Some(format!(
                    "the keeper has died: started it again with pid {pid}, time {}",
                    self.times
                ))
            }
            Err(problem) => {
                self.lost(now);
                Some(format!("start the keeper again: {problem}"))
            }
        }
    }
}

fn pause(times: u32) -> Duration {
    (FIRST_PAUSE * (1 << times.min(10))).min(LONGEST_PAUSE)
}

/// Forks a child that becomes the keeper.
fn start(command: &KeeperCommand, output: Option<&OwnedFd>) -> Result<u32, String> {
    let text = |s: &str| CString::new(s).map_err(|_| format!("{s:?} holds a zero byte"));
    let program = text(&command.program.to_string_lossy())?;
    let args = command.args.iter().map(|s| text(s)).collect::<Result<Vec<_>, _>>()?;
    let env = command.env.iter().map(|(k, v)| text(&format!("{k}={v}")));
    let env = env.collect::<Result<Vec<_>, _>>()?;
    // SAFETY: this process has one thread, so the child may do whatever its parent may.
    match unsafe { fork() }.map_err(|e| e.desc().to_string())? {
        ForkResult::Parent { child } => Ok(child.as_raw().unsigned_abs()),
        ForkResult::Child => {
            let problem = become_keeper(&command.directory, output)
                .and_then(|()| nix::unistd::execve(&program, &args, &env));
            eprintln!("pgdeputy-fencer: start {program:?}: {problem:?}");
            // SAFETY: _exit ends this child only; what its parent would do at its end is not its to do.
            unsafe { libc::_exit(127) }
        }
    }
}

/// Gives back what the fencer has taken for itself.
fn become_keeper(directory: &Path, output: Option<&OwnedFd>) -> Result<(), Errno> {
    let _ = nix::unistd::setsid();
    SigSet::empty().thread_set_mask()?;
    if let Some(output) = output {
        // SAFETY: both numbers are open, and nothing here owns the standard ones.
        for standard in [libc::STDOUT_FILENO, libc::STDERR_FILENO] {
            Errno::result(unsafe { libc::dup2(output.as_raw_fd(), standard) })?;
        }
    }
    shelter::unharden();
    // Without its directory it still finds all that was given with an absolute path.
    let _ = nix::unistd::chdir(directory);
    Ok(())
}

/// Returns the process at the other end of a connection.
pub fn peer(stream: &std::os::unix::net::UnixStream) -> Option<Process> {
    let of = nix::sys::socket::getsockopt(stream, nix::sys::socket::sockopt::PeerCredentials);
    Process::with_pid(Pid::from_raw(of.ok()?.pid()).as_raw().unsigned_abs())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn at(ms: u64) -> Moment {
        Moment::since_boot(Duration::from_millis(1_000_000 + ms))
    }

    fn asked_for() -> Revival {
        let mut revival = Revival::default();
        revival.connected(None, at(0));
        let command = KeeperCommand {
            program: "/bin/true".into(),
            args: vec!["true".into()],
            env: BTreeMap::new(),
            directory: "/".into(),
        };
        revival.asked(Some(command), None);
        revival
    }

    #[test]
    fn a_keeper_that_dies_again_and_again_is_waited_for_longer_each_time() {
        let mut revival = asked_for();
        let mut now = at(100);
        let mut pauses = Vec::new();
        for _ in 0..9 {
            revival.lost(now);
            let due = revival.wake_at().unwrap();
            pauses.push(due.since(now).as_millis());
            (revival.due, now) = (None, due);
        }
        assert_eq!(pauses, [50, 100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        revival.begun = now;
        revival.lost(now + WELL_AFTER);
        assert_eq!(revival.wake_at(), Some(now + WELL_AFTER + FIRST_PAUSE), "it was well");
    }

    #[test]
    fn a_keeper_that_has_let_go_or_is_wrongly_configured_is_not_started_again() {
        let mut revival = asked_for();
        revival.asked(None, None);
        revival.lost(at(100));
        assert_eq!(revival.wake_at(), None);
        for code in [0, USAGE_STATUS] {
            let mut revival = asked_for();
            revival.child = Some(7);
            assert!(!revival.reaped(8, Some(1), at(100)), "another process");
            assert!(revival.reaped(7, Some(code), at(100)));
            assert!(!revival.is_under_way(), "{code}");
        }
        let mut revival = asked_for();
        revival.child = Some(7);
        assert!(revival.reaped(7, None, at(100)), "killed");
        assert_eq!(revival.wake_at(), Some(at(150)));
    }

    #[test]
    fn a_keeper_that_lives_is_not_doubled() {
        let mut revival = asked_for();
        revival.last = Process::with_pid(std::process::id());
        revival.lost(at(0));
        assert_eq!(revival.advance(at(60)), None);
        assert_eq!(revival.wake_at(), Some(at(65)));
    }
}
