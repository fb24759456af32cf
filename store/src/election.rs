//! Campaigning for a key under a lease: the leader's writes are guarded by the key's create revision.
//!
//! The one rule: the guard, not the clock, makes a leader the only one. `lost` merely tells it early:
//! it comes no later than the lease's own deadline, and a write that races it ends as a conflict.

mod upkeep;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use proto::Moment;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use self::upkeep::Upkeep;
use crate::lease::OwnLease;
use crate::types::{
    Guard, LeaseId, Operation, Snapshot, Store, StoreError, Txn, TxnOutcome, WatchEvent,
};

/// One candidate for the leadership that a key stands for.
pub struct Election {
    store: Arc<dyn Store>,
    key: String,
    value: Vec<u8>,
    ttl: Duration,
    /// The lease that this candidate stood with last: a store that was away may still hold the key under it.
    stood_with: Mutex<Option<LeaseId>>,
}

/// A leadership won. It is renewed in the background until it is lost, resigned or dropped; a dropped
/// one lapses in the store after its time to live.
pub struct Leadership {
    /// Holds exactly while the key is the one that this candidate created. Put it into every write.
    pub guard: Guard,
    /// The lease that holds the key.
    pub lease: LeaseId,
    /// Cancelled once the lease has expired by our own clock or in the store, or the key is not ours.
    pub lost: CancellationToken,
    store: Arc<dyn Store>,
    expires: watch::Receiver<Moment>,
    renewals: JoinHandle<()>,
}

impl Election {
    /// Makes a candidate that writes `value` to `key` under a lease of `ttl` once it leads.
    pub fn new(store: Arc<dyn Store>, key: String, value: Vec<u8>, ttl: Duration) -> Self {
        Self { store, key, value, ttl, stood_with: Mutex::default() }
    }

    /// Waits until this candidate leads, however long that takes. May be dropped at any time; a key
    /// that was being taken then lapses after the time to live. Whoever campaigns again has given up what he led: a
    /// key that could not be freed then, because the store did not answer, is freed now.
    pub async fn campaign(&self) -> Leadership {
        let mut backoff = Backoff::default();
        loop {
            match self.stand().await {
                Ok(Some(leadership)) => return leadership,
                Ok(None) => backoff = Backoff::default(),
                Err(error) => {
                    if backoff.is_fresh() {
                        tracing::warn!(key = %self.key, %error, "campaign interrupted, trying on");
                    }
                    backoff.wait().await;
                }
            }
        }
    }

    /// Waits until the key is free and tries to take it. None where another candidate was faster.
    async fn stand(&self) -> Result<Option<Leadership>, StoreError> {
        self.wait_until_free().await?;
        let lease = OwnLease::grant(&*self.store, self.ttl).await?;
        *self.stood_with.lock().unwrap_or_else(PoisonError::into_inner) = Some(lease.id());
        let taken = self.take(lease.id()).await;
        if let Ok(Some(create_revision)) = taken {
            return Ok(Some(self.lead(lease, create_revision)));
        }
        // With the lease gone, a put of ours that is still on its way cannot take the key any more.
        if let Err(error) = self.store.revoke(lease.id()).await {
            tracing::debug!(key = %self.key, %error, "unused lease is left to expire");
        }
        taken.map(|_| None)
    }

    async fn wait_until_free(&self) -> Result<(), StoreError> {
        let snapshot = self.store.read(&self.key).await?;
        let Some(entry) = snapshot.entries.get(&self.key) else { return Ok(()) };
        let own = *self.stood_with.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(left) = own.filter(|lease| entry.lease == Some(*lease)) {
            tracing::info!(key = %self.key, lease = left.0, "freeing the key of a leadership that was lost");
            return self.store.revoke(left).await;
        }
        let mut watch = self.store.watch(&self.key, snapshot.revision + 1).await?;
        while let Some(batch) = watch.events.recv().await {
            let freed = |event: &WatchEvent| matches!(event, WatchEvent::Delete { key, .. } if *key == self.key);
            if batch.iter().any(freed) {
                return Ok(());
            }
        }
        Err(StoreError::Unavailable("watch of the leader key closed".to_owned()))
    }

    /// Returns the key's create revision if it is ours now.
    async fn take(&self, lease: LeaseId) -> Result<Option<i64>, StoreError> {
        let key = self.key.clone();
        let put =
            Operation::Put { key: key.clone(), value: self.value.clone(), lease: Some(lease) };
        let txn = Txn { when: vec![Guard::Absent(key)], then: vec![put] };
        match self.store.commit(txn).await {
            Ok(TxnOutcome::Committed { revision }) => Ok(Some(revision)),
            Ok(TxnOutcome::Conflict) => Ok(None),
            Err(StoreError::Unknown(_)) => {
                Ok(created_under(lease, &self.key, &self.store.read(&self.key).await?))
            }
            Err(error) => Err(error),
        }
    }

    fn lead(&self, lease: OwnLease, create_revision: i64) -> Leadership {
        let lost = CancellationToken::new();
        let (expires_sender, expires) = watch::channel(lease.expires());
        let id = lease.id();
        let upkeep = Upkeep {
            store: Arc::clone(&self.store),
            key: self.key.clone(),
            create_revision,
            lease: id,
        };
        tracing::info!(key = %self.key, create_revision, lease = id.0, "leading");
        Leadership {
            guard: Guard::CreateRevision(self.key.clone(), create_revision),
            lease: id,
            lost: lost.clone(),
            store: Arc::clone(&self.store),
            expires,
            renewals: tokio::spawn(upkeep.run(lease, expires_sender, lost)),
        }
    }
}

/// Returns the create revision of `key` if it is held by `lease`.
fn created_under(lease: LeaseId, key: &str, snapshot: &Snapshot) -> Option<i64> {
    let entry = snapshot.entries.get(key)?;
    (entry.lease == Some(lease)).then_some(entry.create_revision)
}

impl Leadership {
    /// Returns the moment until which the lease may be relied on, as far as renewed by now.
    pub fn expires(&self) -> Moment {
        *self.expires.borrow()
    }

    /// Gives the leadership up: `lost` first, then the key, so that another candidate leads at once.
    pub async fn resign(self) {
        self.lost.cancel();
        self.renewals.abort();
        if let Err(error) = self.store.revoke(self.lease).await {
            tracing::warn!(%error, "resigned leadership is left to expire");
        }
    }
}

impl Drop for Leadership {
    fn drop(&mut self) {
        self.lost.cancel();
        self.renewals.abort();
    }
}

/// Short enough not to be seen beside any lease.
const FIRST_WAIT: Duration = Duration::from_millis(100);

/// Long enough that a store in trouble is not kept there by those who wait for it.
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// Waits between tries, longer each time.
struct Backoff {
    next: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { next: FIRST_WAIT }
    }
}

impl Backoff {
    /// Returns whether this is the first failure in a row: the one to log.
    fn is_fresh(&self) -> bool {
        self.next == FIRST_WAIT
    }

    async fn wait(&mut self) {
        tokio::time::sleep(self.next).await;
        self.next = (self.next * 2).min(LONGEST_WAIT);
    }
}
