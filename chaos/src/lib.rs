//! Starts, breaks and judges real clusters. Demo, tests and benches share this one way of doing it.
//!
//! The one rule: what a client was told is written down when it is told, and is compared with what every
//! member holds at the end. Nothing here believes pgdeputy's own word about what was lost.

pub mod bench;
pub mod canary;
pub mod checker;
pub mod demo;
pub mod drills;
pub mod evidence;
pub mod fault;
pub mod lab;
pub mod load;
pub mod observer;
pub mod pgbench;
pub mod session;
pub mod verdict;

use std::time::Duration;

use tokio_util::sync::CancellationToken;

/// The exit status of a run that was interrupted, as shells count it.
const INTERRUPTED: u8 = 130;

/// Forming a cluster takes some seconds; this is for a machine under load.
const FORM_BOUND: Duration = Duration::from_secs(120);

/// Returns the exit status of a run that is dropped when `stop` is cancelled: its lab goes with it, which ends all processes and
/// removes the directory.
async fn until_stopped(
    stop: CancellationToken,
    run: impl Future<Output = anyhow::Result<u8>>,
) -> anyhow::Result<u8> {
    tokio::select! {
        () = stop.cancelled() => {
            eprintln!("interrupted: everything was stopped and removed");
            Ok(INTERRUPTED)
        }
        done = run => done,
    }
}
