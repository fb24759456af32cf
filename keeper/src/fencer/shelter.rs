//! What the fencer does for itself before it takes PostgreSQL into its care: leave the keeper's session, take the
//! signals as events, adopt orphans, and lower the odds of not running when it matters.

use nix::sys::mman::{MlockAllFlags, mlockall};
use nix::sys::prctl;
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::stat::{Mode, umask};

/// Nice enough to be ahead of any load on PostgreSQL, not so much as to be ahead of the system's own services.
const RAISED_PRIORITY: i32 = -10;

/// Takes the signals that the fencer reads as events. They are blocked, not ignored: children started by
/// `std::process::Command` begin with an empty mask, but would inherit ignored signals.
pub fn signals() -> nix::Result<SignalFd> {
    let mut mask = SigSet::empty();
    for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        mask.add(signal);
    }
    mask.thread_block()?;
    SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
}

/// Makes the fencer independent of its keeper, and the adoptive parent of all that PostgreSQL leaves behind: once
/// it has no child left, no descendant of its PostgreSQL lives.
pub fn detach() -> nix::Result<()> {
    // It may run as /proc/self/exe.
    prctl::set_name(c"pgdeputy-fencer")?;
    // Refused only to a process that leads its group already, and then it was started detached.
    let _ = nix::unistd::setsid();
    umask(Mode::from_bits_truncate(0o077));
    std::env::set_current_dir("/").ok();
    prctl::set_child_subreaper(true)
}

/// Does what it may against being swapped out, killed for memory, or left without a CPU. Returns what it may not.
pub fn harden() -> Vec<String> {
    let mut refused = Vec::new();
    if let Err(errno) = lock_memory() {
        refused.push(format!(
            "memory not locked, raise its limit (LimitMEMLOCK, ulimit -l): {}",
            errno.desc()
        ));
    }
    if oom_score_adj() > -1000
        && let Err(error) = std::fs::write("/proc/self/oom_score_adj", "-1000")
    {
        refused.push(format!("not exempt from the OOM killer (OOMScoreAdjust=-1000): {error}"));
    }
    if nice() > RAISED_PRIORITY && !set_nice(0, RAISED_PRIORITY) {
        refused.push("priority not raised (LimitNICE=-10)".into());
    }
    refused
}

/// Gives back, in a child, what was taken: the priority and the exemption from the OOM killer.
pub fn unharden() {
    if nice() < 0 {
        set_nice(0, 0);
    }
    if oom_score_adj() < 0 {
        let _ = std::fs::write("/proc/self/oom_score_adj", "0");
    }
}

/// Returns this process's adjustment for the OOM killer, 0 where it cannot be read.
pub fn oom_score_adj() -> i32 {
    let text = std::fs::read_to_string("/proc/self/oom_score_adj").unwrap_or_default();
    text.trim().parse().unwrap_or(0)
}

/// Gives the process `pid` the priority that everything else has, if the fencer has more.
pub fn normal_priority(pid: u32) {
    if nice() < 0 {
        set_nice(pid, 0);
    }
}

fn lock_memory() -> nix::Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_MEMLOCK)?;
    setrlimit(Resource::RLIMIT_MEMLOCK, hard, hard)?;
    // Under a limit later allocations would fail instead of being left unlocked, and a failed one ends the fencer.
    let future =
        if hard == RLIM_INFINITY { MlockAllFlags::MCL_FUTURE } else { MlockAllFlags::empty() };
    mlockall(MlockAllFlags::MCL_CURRENT | future)
}

fn nice() -> i32 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit(')').next().unwrap_or_default();
    fields.split_ascii_whitespace().nth(16).and_then(|f| f.parse().ok()).unwrap_or(0)
}

/// Sets the nice value of `pid`, 0 for this process; returns whether that was allowed.
fn set_nice(pid: u32, nice: i32) -> bool {
    // SAFETY: setpriority takes plain numbers and touches no memory of ours.
    unsafe { nix::libc::setpriority(nix::libc::PRIO_PROCESS, pid, nice) == 0 }
}
