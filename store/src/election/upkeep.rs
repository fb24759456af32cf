//! Keeps a leadership and tells when it is over: renewals on one side, the key itself on the other.

use std::sync::Arc;
use std::time::Duration;

use proto::Moment;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::Backoff;
use crate::clock;
use crate::lease::OwnLease;
use crate::types::{Entry, LeaseId, Store, StoreError, WatchEvent};

/// Five renewals in a time to live: the store may miss some for a leader change and the lease still
/// stands.
const RENEWALS_PER_TTL: u32 = 5;

/// What a leadership rests on.
pub(super) struct Upkeep {
    pub(super) store: Arc<dyn Store>,
    pub(super) key: String,
    pub(super) create_revision: i64,
    pub(super) lease: LeaseId,
}

impl Upkeep {
    /// Runs until the leadership is lost, then cancels `lost`. Never takes it back.
    pub(super) async fn run(
        self,
        lease: OwnLease,
        expires: watch::Sender<Moment>,
        lost: CancellationToken,
    ) {
        // Also when this task is aborted or panics: nobody would renew any more.
        let _cancel = lost.drop_guard();
        let why = tokio::select! {
            why = self.renew_until_expired(lease, expires) => why,
            why = self.key_taken() => why,
        };
        tracing::info!(key = %self.key, why, "leadership lost");
    }

    async fn renew_until_expired(
        &self,
        mut lease: OwnLease,
        expires: watch::Sender<Moment>,
    ) -> &'static str {
        let pause = lease.ttl() / RENEWALS_PER_TTL;
        loop {
            // Timers stand still while the machine sleeps and the lease's clock does not, so the
            // deadline is looked at after each pause and not only slept for.
            tokio::time::sleep(pause.min(left(&lease))).await;
            if !lease.is_live(clock::now()) {
                return "lease expired by our own clock";
            }
            let limit = left(&lease);
            match tokio::time::timeout(limit, lease.renew(&*self.store)).await {
                Ok(Ok(())) => {
                    expires.send_replace(lease.expires());
                }
                Ok(Err(StoreError::LeaseExpired)) => return "the store ended the lease",
                Ok(Err(error)) => tracing::warn!(key = %self.key, %error, "lease not renewed"),
                Err(_) => tracing::warn!(key = %self.key, "lease not renewed in its time"),
            }
        }
    }

    /// Returns when the key is no longer the one that we created under our lease.
    async fn key_taken(&self) -> &'static str {
        let mut backoff = Backoff::default();
        loop {
            // While the store cannot be watched, the lease's own deadline bounds the leadership.
            if let Err(error) = self.watch_key(&mut backoff).await {
                tracing::debug!(key = %self.key, %error, "leader key not watched");
                backoff.wait().await;
            } else {
                return "the key is no longer ours";
            }
        }
    }

    async fn watch_key(&self, backoff: &mut Backoff) -> Result<(), StoreError> {
        let snapshot = self.store.read(&self.key).await?;
        if !snapshot.entries.get(&self.key).is_some_and(|entry| self.is_ours(entry)) {
            return Ok(());
        }
        let mut watch = self.store.watch(&self.key, snapshot.revision + 1).await?;
        while let Some(batch) = watch.events.recv().await {
            *backoff = Backoff::default();
            if batch.iter().any(|event| self.takes_the_key(event)) {
                return Ok(());
            }
        }
        Err(StoreError::Unavailable("watch of the leader key closed".to_owned()))
    }

    fn takes_the_key(&self, event: &WatchEvent) -> bool {
        match event {
            WatchEvent::Put { key, entry } => *key == self.key && !self.is_ours(entry),
            WatchEvent::Delete { key, .. } => *key == self.key,
        }
    }

    fn is_ours(&self, entry: &Entry) -> bool {
        entry.create_revision == self.create_revision && entry.lease == Some(self.lease)
    }
}

fn left(lease: &OwnLease) -> Duration {
    lease.expires().since(clock::now())
}
