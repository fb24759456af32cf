//! Starts the postmaster so that it cannot outlive the fencer: the kernel sends it SIGQUIT, PostgreSQL's immediate
//! stop, when the fencer dies.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::{Pid, getppid, setsid};

use super::cage::Cage;
use super::processes::Process;
use super::protocol::{Postmaster, StartPostgres};
use super::shelter;

/// Starts PostgreSQL in `data_dir`, and in `cage` where there is one, as a child of this thread, which must be the
/// process's only one: the kernel counts the end of the *thread* that started a child as its parent's death.
pub fn launch(
    start: &StartPostgres,
    data_dir: &Path,
    cage: Option<&Cage>,
) -> Result<Postmaster, String> {
    let mut command = command(start, data_dir, cage)
        .map_err(|e| format!("open {}: {e}", start.log_file.display()))?;
    let child = command.spawn().map_err(|e| format!("run {}: {e}", start.program.display()))?;
    let pid = child.id();
    shelter::normal_priority(pid);
    // The child cannot be reaped but by us, so it is there, alive or a zombie. A zombie has no start time for us,
    // and nobody will need it: its exit is the next thing that is noticed.
    let start_ticks = Process::with_pid(pid).map_or(0, |p| p.start_ticks);
    Ok(Postmaster { pid, start_ticks, started: store::clock::wall() })
}

fn command(start: &StartPostgres, data_dir: &Path, cage: Option<&Cage>) -> io::Result<Command> {
    let log = OpenOptions::new().append(true).create(true).mode(0o600).open(&start.log_file)?;
    let fencer = Pid::this();
    let door = cage.map(Cage::door);
    let mut command = Command::new(&start.program);
    command.args(&start.args).env_clear().envs(&start.env).current_dir(data_dir);
    if shelter::oom_score_adj() < 0 {
        // PostgreSQL's own way to keep the postmaster exempt and its children not.
        command
            .env("PG_OOM_ADJUST_FILE", "/proc/self/oom_score_adj")
            .env("PG_OOM_ADJUST_VALUE", "0");
    }
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    // SAFETY: between fork and exec the closure only makes system calls: no allocation, no lock.
    unsafe {
        command.pre_exec(move || {
            setsid()?;
            if let Some(door) = door {
                // 0 is whoever writes. Refused, it is started all the same: who is in the cage is looked at afterwards.
                nix::libc::write(door, c"0".as_ptr().cast(), 1);
            }
            prctl::set_pdeathsig(Signal::SIGQUIT)?;
            // The fencer may have died before the line above, and then no signal will ever come.
            if getppid() == fencer { Ok(()) } else { Err(io::ErrorKind::NotFound.into()) }
        });
    }
    Ok(command)
}
