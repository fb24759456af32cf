//! When to decide again: at a change by keepers or operators, or at a moment, whichever comes
//! first.
//!
//! The one rule: a watch is a hint. What it says is forgotten before each read, and the read is
//! what counts.

use std::time::Duration;

use proto::Moment;
use store::keys::Keys;
use store::{Snapshot, Store, Watch, WatchEvent, clock};
use tokio::sync::mpsc::error::TryRecvError;
use tracing::warn;

/// Without a watch the cluster is read this often, until there is one again.
const WITHOUT_WATCH: Duration = Duration::from_millis(100);

/// The watch of one cluster; broken ones are replaced at the next read.
#[derive(Default)]
pub(super) struct Wake {
    watch: Option<Watch>,
}

impl Wake {
    /// Forgets hints that came before the read that follows.
    pub(super) fn drain(&mut self) {
        while let Some(watch) = self.watch.as_mut() {
            match watch.events.try_recv() {
                Ok(_) => {}
                Err(TryRecvError::Empty) => return,
                Err(TryRecvError::Disconnected) => self.watch = None,
            }
        }
    }

    /// Makes sure that there is a watch of all that comes after `snapshot`.
    pub(super) async fn follow(&mut self, store: &dyn Store, keys: &Keys, snapshot: &Snapshot) {
        if self.watch.is_none() {
            match store.watch(keys.prefix(), snapshot.revision + 1).await {
                Ok(watch) => self.watch = Some(watch),
                Err(problem) => warn!(prefix = keys.prefix(), %problem, "watch the cluster"),
            }
        }
    }

    /// Returns when something happened that matters. Without a watch nothing is seen to happen.
    pub(super) async fn happens(&mut self, keys: &Keys) {
        while let Some(watch) = self.watch.as_mut() {
            match watch.events.recv().await {
                Some(batch) if batch.iter().any(|event| matters(keys, event)) => return,
                Some(_) => {}
                None => self.watch = None,
            }
        }
        std::future::pending().await
    }

    /// Returns true when something happened that matters, false at `until`.
    pub(super) async fn woken(&mut self, keys: &Keys, until: Moment) -> bool {
        // Just past the moment: a timer that fires early would decide the same again.
        let left = until.since(clock::now()) + Duration::from_millis(1);
        let deadline = tokio::time::sleep(left);
        tokio::pin!(deadline);
        loop {
            let Some(watch) = self.watch.as_mut() else {
                tokio::time::sleep(WITHOUT_WATCH.min(left)).await;
                return true;
            };
            tokio::select! {
                batch = watch.events.recv() => match batch {
                    Some(batch) if batch.iter().any(|event| matters(keys, event)) => return true,
                    Some(_) => {}
                    None => self.watch = None,
                },
                () = &mut deadline => return false,
            }
        }
    }
}

/// What keepers, proxies and operators write. The leader's own writes are followed by a read anyway.
fn matters(keys: &Keys, event: &WatchEvent) -> bool {
    let key = keys.strip(event.key()).unwrap_or_default();
    key == "spec"
        || key == "primary"
        || key.starts_with("members/")
        || key.starts_with("proxies/")
        // One that ends needs no answer any more.
        || key.starts_with("scheduled/")
        || key.starts_with("requests/") && matches!(event, WatchEvent::Put { .. })
}
