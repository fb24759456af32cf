//! The end of a keeper that was asked to stop: PostgreSQL first, then the keys.

use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use crate::fencer::FencerEvent;
use crate::worker::Worker;

/// A fast stop waits for the walsenders' last handshake; a standby that hangs is not waited for longer.
const FAST_STOP_AT_MOST: Duration = Duration::from_secs(10);

/// Long enough for the last report to be put, and for the leader to read it before the lease is gone.
const LAST_WORD: Duration = Duration::from_millis(300);

/// Stops PostgreSQL fast, and fences it where that takes too long. Returns whether no process of it lives.
pub async fn stop_postgres(
    worker: &Worker,
    events: &mut mpsc::UnboundedReceiver<FencerEvent>,
) -> bool {
    if worker.local().process.is_gone() {
        return true;
    }
    let gone = async {
        if worker.fencer.signal(Signal::SIGINT).await.is_err() {
            return;
        }
        while let Some(event) = events.recv().await {
            if matches!(event, FencerEvent::Gone | FencerEvent::Lost) {
                return;
            }
        }
    };
    if timeout(FAST_STOP_AT_MOST, gone).await.is_err() {
        tracing::warn!("the fast stop took too long");
    }
    match worker.fence("the keeper stops").await {
        Ok(()) => true,
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "stop PostgreSQL");
            false
        }
    }
}

/// Ends the lease, so that nobody waits for it, and the fencer.
pub async fn give_back(worker: &Worker) {
    sleep(LAST_WORD).await;
    let lease = *worker.lease.borrow();
    if let Some(lease) = lease
        && let Err(error) = worker.store.revoke(lease.id).await
    {
        tracing::warn!(%error, "give the lease back");
    }
    if let Err(error) = worker.fencer.exit().await {
        tracing::warn!(%error, "end the fencer");
    }
}
