//! The fencer: PostgreSQL's parent, and the one that stops it when its keeper has not said in time that it may serve.
//!
//! A tiny process of the same binary (`pgdeputy fencer`), apart from the keeper so that it outlives it: without an
//! async runtime, with one thread, one `poll` loop and memory that is locked, so that it needs nothing but a CPU
//! to act. Its rules:
//!
//! - PostgreSQL gets SIGQUIT from the kernel when the fencer dies, whatever it died of.
//! - Once "serve until T" has passed on CLOCK_BOOTTIME, no process of the data directory is left to live.
//! - *Gone* is only said when no process of the data directory lives; zombies do not count.
//! - A keeper that dies is started again, if it has asked for that.
//! - SIGTERM fences PostgreSQL and then ends the fencer; SIGHUP and SIGINT do nothing.

mod cage;
mod client;
mod connection;
mod fence;
mod launch;
pub mod limit;
mod log;
mod processes;
pub(crate) mod protocol;
mod revival;
mod server;
mod shelter;
mod stale_lock;
mod ward;

use std::path::{Path, PathBuf};

pub use client::{Fencer, FencerCommand, FencerError};
pub use processes::Process;
pub use protocol::{
    Exit, FenceReason, FenceWay, Fenced, FencerEvent, KeeperCommand, PROTOCOL, Postmaster, Refusal,
    StartPostgres, Watched,
};
pub use server::main;
pub use stale_lock::clear_stale_locks;

/// What `pgdeputy fencer` is started with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FencerArgs {
    /// Holds the socket, the lock and the log.
    pub state_dir: PathBuf,
    /// The data directory whose processes it starts and fences. It need not exist yet.
    pub data_dir: PathBuf,
}

/// Returns where the fencer of a state directory listens.
pub fn socket_path(state_dir: &Path) -> PathBuf {
    state_dir.join("fencer.sock")
}

/// Returns the file that the living fencer holds locked; it contains the fencer's pid.
pub fn lock_path(state_dir: &Path) -> PathBuf {
    state_dir.join("fencer.lock")
}

/// Returns where the fencer says what it did.
pub fn log_path(state_dir: &Path) -> PathBuf {
    state_dir.join("fencer.log")
}

/// Returns the living processes of a data directory, also if `data_dir` is a symbolic link to it, and, where
/// `ancestor` is given, every descendant of that process.
pub fn of_data_directory(data_dir: &Path, ancestor: Option<u32>) -> Vec<Process> {
    processes::of_real_directory(&ward::real_path(data_dir), ancestor)
}
