//! The trait that etcd and its in-memory twin both keep, and the values that pass through it.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::sync::mpsc;

/// A lease's identity in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(pub i64);

/// One key's value, with the revisions that guards compare.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub value: Vec<u8>,
    pub create_revision: i64,
    pub mod_revision: i64,
    pub lease: Option<LeaseId>,
}

/// One consistent, linearizable read of all keys under a prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    pub revision: i64,
    /// The identity of the etcd cluster that answered, in hexadecimal.
    pub cluster_id: String,
    pub entries: BTreeMap<String, Entry>,
}

/// A condition of a transaction on one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Guard {
    /// The key does not exist.
    Absent(String),
    /// The key's last change is the one at this revision.
    ModRevision(String, i64),
    /// The key was created at this revision and has existed ever since.
    CreateRevision(String, i64),
    /// The key is held by this lease.
    Lease(String, LeaseId),
}

impl Guard {
    /// Returns the key that is compared.
    pub fn key(&self) -> &str {
        match self {
            Guard::Absent(key)
            | Guard::ModRevision(key, _)
            | Guard::CreateRevision(key, _)
            | Guard::Lease(key, _) => key,
        }
    }
}

/// A change that a transaction makes if all its guards hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    Put { key: String, value: Vec<u8>, lease: Option<LeaseId> },
    Delete { key: String },
}

/// A guarded transaction.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Txn {
    pub when: Vec<Guard>,
    pub then: Vec<Operation>,
}

/// What became of a transaction that the store answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TxnOutcome {
    Committed {
        revision: i64,
    },
    /// A guard did not hold; nothing changed.
    Conflict,
}

/// A change seen by a watch. A hint that wakes a loop: decisions read again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WatchEvent {
    Put { key: String, entry: Entry },
    Delete { key: String, revision: i64 },
}

impl WatchEvent {
    /// Returns the key that changed.
    pub fn key(&self) -> &str {
        match self {
            WatchEvent::Put { key, .. } | WatchEvent::Delete { key, .. } => key,
        }
    }
}

/// A running watch. The channel closes when the watch is broken (cancelled, compacted, connection lost):
/// read a snapshot and watch again. Dropping it ends the watch.
pub struct Watch {
    pub events: mpsc::Receiver<Vec<WatchEvent>>,
}

/// Why the store did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// It certainly did nothing: no connection, no quorum for a read, deadline of a read.
    #[error("store unavailable: {0}")]
    Unavailable(String),
    /// A write may or may not have been applied: read again before acting.
    #[error("outcome unknown: {0}")]
    Unknown(String),
    /// The lease does not exist any more.
    #[error("lease expired")]
    LeaseExpired,
    /// The store refuses: no space, no permission, bad request. Trying again does not help by itself.
    #[error("store refuses: {0}")]
    Refused(String),
}

/// A linearizable key-value store with revisions, leases, guarded transactions and watches.
#[async_trait::async_trait]
pub trait Store: Send + Sync + 'static {
    /// Reads all keys that begin with `prefix`, linearizably.
    async fn read(&self, prefix: &str) -> Result<Snapshot, StoreError>;

    /// Commits `txn` if all its guards hold. Never retries by itself.
    async fn commit(&self, txn: Txn) -> Result<TxnOutcome, StoreError>;

    /// Grants a lease of `ttl` (whole seconds). Returns it with the time to live that was granted, which may be longer.
    async fn grant(&self, ttl: Duration) -> Result<(LeaseId, Duration), StoreError>;

    /// Renews a lease once. `StoreError::LeaseExpired` if there is none.
    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError>;

    /// Ends a lease and deletes its keys. Ending one that does not exist is no error.
    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError>;

    /// Watches all keys that begin with `prefix`, from `from_revision` on, without a gap.
    async fn watch(&self, prefix: &str, from_revision: i64) -> Result<Watch, StoreError>;
}
