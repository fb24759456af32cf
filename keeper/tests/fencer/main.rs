//! The fencer on real processes: PostgreSQL is stopped in time, whole, and whatever state its processes are in.
//!
//! Without the usual harness, because this program also is the fencer that it tests: called with `fencer` as its
//! first argument it becomes one, in a process that must have a single thread. Other arguments are parts of names.

#![expect(
    clippy::unwrap_used,
    reason = "clippy cannot tell that a program without the usual harness is a test"
)]

mod caged;
mod claims;
mod scene;

use std::process::ExitCode;

use keeper::fencer::FencerArgs;
use nix::sys::prctl;
use nix::sys::signal::Signal;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["fencer", "--state-dir", state_dir, "--data-dir", data_dir] => {
            ExitCode::from(be_the_fencer(state_dir, data_dir))
        }
        ["fencer", "--cgroup", cgroup, "--state-dir", state_dir, "--data-dir", data_dir] => {
            std::fs::write(format!("{cgroup}/cgroup.procs"), "0").expect("enter the cgroup");
            ExitCode::from(be_the_fencer(state_dir, data_dir))
        }
        _ => scene::run_all(&args),
    }
}

fn be_the_fencer(state_dir: &str, data_dir: &str) -> u8 {
    keeper::privileges::drop_to(scene::POSTGRES_USER).expect("drop privileges");
    // A test that is cut short leaves nothing behind: the fencer dies with it, and PostgreSQL with the fencer.
    prctl::set_pdeathsig(Signal::SIGKILL).expect("die with the test");
    keeper::fencer::main(FencerArgs { state_dir: state_dir.into(), data_dir: data_dir.into() })
        as u8
}
