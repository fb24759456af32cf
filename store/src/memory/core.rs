//! What etcd does to keys, revisions and leases, step by step, without tokio and on a given clock.
//!
//! The one rule: the same calls in the same order give the same answers, and they are etcd's answers.

use std::collections::BTreeMap;
use std::time::Duration;

use proto::Moment;

use super::rules;
use crate::types::{
    Entry, Guard, LeaseId, Operation, Snapshot, StoreError, Txn, TxnOutcome, WatchEvent,
};

/// The shortest lease that etcd grants with its default election timeout of 1 s: one and a half of
/// it, in whole seconds.
pub const SHORTEST_LEASE: Duration = Duration::from_secs(2);

/// One etcd cluster as a value: clone it to take a backup, assign the clone to restore it.
#[derive(Debug, Clone)]
pub struct MemoryCore {
    now: Moment,
    revision: i64,
    compacted: i64,
    entries: BTreeMap<String, Entry>,
    leases: BTreeMap<LeaseId, HeldLease>,
    last_lease: i64,
    history: BTreeMap<i64, Vec<WatchEvent>>,
    cluster_id: String,
}

#[derive(Debug, Clone)]
struct HeldLease {
    granted: Duration,
    expires: Moment,
}

/// The history from the asked revision on is gone: read a snapshot and start from there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("history before revision {compacted} is compacted; read again")]
pub struct Compacted {
    /// The oldest revision whose events are still known.
    pub compacted: i64,
}

impl Default for MemoryCore {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryCore {
    /// Makes an empty store whose clock stands at zero. Like a new etcd it is at revision 1.
    pub fn new() -> Self {
        Self {
            now: Moment::default(),
            revision: 1,
            compacted: 0,
            entries: BTreeMap::new(),
            leases: BTreeMap::new(),
            last_lease: 0,
            history: BTreeMap::new(),
            cluster_id: "cdf818194e3a8c32".to_owned(),
        }
    }

    /// Sets the identity that snapshots carry, as when another etcd answers at the same address.
    pub fn set_cluster_id(&mut self, id: &str) {
        self.cluster_id = id.to_owned();
    }

    /// Returns the store's own clock.
    pub fn now(&self) -> Moment {
        self.now
    }

    /// Returns the revision of the last change.
    pub fn revision(&self) -> i64 {
        self.revision
    }

    /// Returns when the next lease expires unless it is renewed, so that a simulator can step there.
    pub fn next_expiry(&self) -> Option<Moment> {
        self.leases.values().map(|lease| lease.expires).min()
    }

    /// Moves the clock on and ends every lease that is due, the earliest first.
    pub fn advance(&mut self, by: Duration) {
        self.now = self.now + by;
        while let Some(due) = self.first_due() {
            self.end_lease(due);
        }
    }

    /// Moves the clock on without ending leases, then gives each one its full time again, as a new leader of etcd does
    /// that cannot know how much of it was left.
    pub fn change_leader(&mut self, after: Duration) {
        self.now = self.now + after;
        for lease in self.leases.values_mut() {
            lease.expires = self.now + lease.granted;
        }
    }

    /// Reads all keys that begin with `prefix`.
    pub fn read(&self, prefix: &str) -> Snapshot {
        let entries = self
            .entries
            .range(prefix.to_owned()..)
            .take_while(|(key, _)| key.starts_with(prefix))
            .map(|(key, entry)| (key.clone(), entry.clone()))
            .collect();
        Snapshot { revision: self.revision, cluster_id: self.cluster_id.clone(), entries }
    }

    /// Commits `txn` if all its guards hold; all its changes share one revision.
    ///
    /// Like etcd it looks at the guards first, so a lost race with a dead lease is a conflict.
    pub fn commit(&mut self, txn: Txn) -> Result<TxnOutcome, StoreError> {
        rules::check(&txn)?;
        if !txn.when.iter().all(|guard| self.holds(guard)) {
            return Ok(TxnOutcome::Conflict);
        }
        self.check_leases(&txn.then)?;
        let revision = self.revision + 1;
        let mut events = Vec::new();
        for operation in txn.then {
            match operation {
                Operation::Put { key, value, lease } => {
                    events.push(self.put(revision, key, value, lease));
                }
                Operation::Delete { key } => events.extend(self.delete(revision, key)),
            }
        }
        self.record(revision, events);
        Ok(TxnOutcome::Committed { revision: self.revision })
    }

    /// Grants a lease: the time asked for in whole seconds, but at least `SHORTEST_LEASE`.
    pub fn grant(&mut self, ttl: Duration) -> (LeaseId, Duration) {
        let granted = Duration::from_secs(rules::whole_seconds(ttl)).max(SHORTEST_LEASE);
        self.last_lease += 1;
        let id = LeaseId(self.last_lease);
        self.leases.insert(id, HeldLease { granted, expires: self.now + granted });
        (id, granted)
    }

    /// Renews a lease to its full time.
    pub fn keep_alive(&mut self, id: LeaseId) -> Result<(), StoreError> {
        let lease = self.leases.get_mut(&id).ok_or(StoreError::LeaseExpired)?;
        lease.expires = self.now + lease.granted;
        Ok(())
    }

    /// Ends a lease and deletes its keys in one revision. Ending one that does not exist is no error.
    pub fn revoke(&mut self, id: LeaseId) {
        if self.leases.contains_key(&id) {
            self.end_lease(id);
        }
    }

    /// Forgets the history before `revision`, as etcd's compaction does.
    pub fn compact(&mut self, revision: i64) {
        self.compacted = self.compacted.max(revision.min(self.revision));
        self.history = self.history.split_off(&self.compacted);
        if let Some(events) = self.history.get_mut(&self.compacted) {
            // etcd keeps what a key was at the compacted revision, but not that it was deleted there.
            // Until it has removed that in the background, it may still tell; the twin never does.
            events.retain(|event| matches!(event, WatchEvent::Put { .. }));
        }
    }

    /// Returns the changes under `prefix` from `revision` on, one batch for each revision.
    pub fn events_since(
        &self,
        prefix: &str,
        revision: i64,
    ) -> Result<Vec<Vec<WatchEvent>>, Compacted> {
        if revision < self.compacted {
            return Err(Compacted { compacted: self.compacted });
        }
        let under_prefix = |events: &Vec<WatchEvent>| -> Vec<WatchEvent> {
            events.iter().filter(|event| event.key().starts_with(prefix)).cloned().collect()
        };
        Ok(self
            .history
            .range(revision..)
            .map(|(_, events)| under_prefix(events))
            .filter(|batch| !batch.is_empty())
            .collect())
    }

    /// A key that does not exist has revisions and lease 0, as in etcd.
    fn holds(&self, guard: &Guard) -> bool {
        match guard {
            Guard::Absent(key) => !self.entries.contains_key(key),
            Guard::ModRevision(key, wanted) => {
                self.entries.get(key).map_or(0, |entry| entry.mod_revision) == *wanted
            }
            Guard::CreateRevision(key, wanted) => {
                self.entries.get(key).map_or(0, |entry| entry.create_revision) == *wanted
            }
            Guard::Lease(key, wanted) => {
                self.entries.get(key).and_then(|entry| entry.lease).unwrap_or(LeaseId(0)) == *wanted
            }
        }
    }

    fn check_leases(&self, operations: &[Operation]) -> Result<(), StoreError> {
        let dead = operations.iter().any(|operation| match operation {
            Operation::Put { lease: Some(id), .. } => !self.leases.contains_key(id),
            Operation::Put { lease: None, .. } | Operation::Delete { .. } => false,
        });
        if dead { Err(StoreError::LeaseExpired) } else { Ok(()) }
    }

    fn put(
        &mut self,
        revision: i64,
        key: String,
        value: Vec<u8>,
        lease: Option<LeaseId>,
    ) -> WatchEvent {
        let create_revision = self.entries.get(&key).map_or(revision, |old| old.create_revision);
        let entry = Entry { value, create_revision, mod_revision: revision, lease };
        self.entries.insert(key.clone(), entry.clone());
        WatchEvent::Put { key, entry }
    }

    fn delete(&mut self, revision: i64, key: String) -> Option<WatchEvent> {
        self.entries.remove(&key).map(|_| WatchEvent::Delete { key, revision })
    }

    /// Something that changed nothing takes no revision.
    fn record(&mut self, revision: i64, events: Vec<WatchEvent>) {
        if !events.is_empty() {
            self.revision = revision;
            self.history.insert(revision, events);
        }
    }

    fn first_due(&self) -> Option<LeaseId> {
        self.leases
            .iter()
            .filter(|(_, lease)| lease.expires <= self.now)
            .min_by_key(|(id, lease)| (lease.expires, **id))
            .map(|(id, _)| *id)
    }

    fn end_lease(&mut self, id: LeaseId) {
        self.leases.remove(&id);
        let revision = self.revision + 1;
        let keys: Vec<String> = self
            .entries
            .iter()
            .filter(|(_, entry)| entry.lease == Some(id))
            .map(|(key, _)| key.clone())
            .collect();
        let events = keys.into_iter().filter_map(|key| self.delete(revision, key)).collect();
        self.record(revision, events);
    }
}
