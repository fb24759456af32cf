//! A real etcd of one's own, and the two worlds in which the contract must hold.
//!
//! The one rule: whatever a test starts is gone when the test ends, also when it fails.
#![allow(dead_code, reason = "every test binary uses its own part")]

pub mod etcd;
pub mod lossy;
pub mod secured;
pub mod wire;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use store::{
    EtcdStore, Guard, LeaseId, MemoryStore, Operation, Store, StoreError, Txn, TxnOutcome, Watch,
    WatchEvent,
};

use self::etcd::Etcd;
use self::secured::Secured;

/// Far above what anything here takes on a busy machine; it only ends a test that hangs.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A store and the means to make its time pass.
pub struct World {
    pub store: Arc<dyn Store>,
    kind: Kind,
}

enum Kind {
    Memory(MemoryStore),
    Etcd(Etcd),
    /// With TLS, client certificates and a user.
    Secured(Box<Secured>),
}

impl World {
    pub async fn memory() -> Self {
        let memory = MemoryStore::new();
        Self { store: Arc::new(memory.clone()), kind: Kind::Memory(memory) }
    }

    pub async fn etcd() -> Self {
        let etcd = Etcd::start().await;
        let store = EtcdStore::connect(&[etcd.url()]).await.expect("connect to own etcd");
        Self { store: Arc::new(store), kind: Kind::Etcd(etcd) }
    }

    /// An etcd that asks for all that it can ask for, with logins that end after 2 s without use.
    pub async fn secured() -> Self {
        let secured = Secured::with_users(&["--auth-token-ttl", "2"]).await;
        // The contract's keys are anywhere.
        let access = secured.access_as("root", "root-password");
        let store = EtcdStore::connect(&access).await.expect("connect to own secured etcd");
        Self { store: Arc::new(store), kind: Kind::Secured(Box::new(secured)) }
    }

    /// Lets time go by: the store's own clock, or really.
    pub async fn pass(&self, time: Duration) {
        match &self.kind {
            Kind::Memory(memory) => memory.advance(time),
            Kind::Etcd(_) | Kind::Secured(_) => tokio::time::sleep(time).await,
        }
    }

    /// Lets the store's clock run with ours for as long as the answer is kept.
    pub fn run_clock(&self) -> Option<RunningClock> {
        match &self.kind {
            Kind::Memory(memory) => Some(RunningClock::of(memory.clone())),
            Kind::Etcd(_) | Kind::Secured(_) => None,
        }
    }

    pub async fn compact(&self, revision: i64) {
        match &self.kind {
            Kind::Memory(memory) => memory.compact(revision),
            Kind::Etcd(etcd) => etcd.compact(revision).await,
            Kind::Secured(secured) => {
                secured.etcdctl_as_root(&["compaction", "--physical", &revision.to_string()])
            }
        }
    }

    pub async fn revision(&self) -> i64 {
        self.store.read("").await.unwrap().revision
    }

    /// Commits without guards and returns the revision.
    pub async fn put(&self, key: &str, value: &str) -> i64 {
        committed(self.store.commit(txn([], [put(key, value)])).await)
    }

    pub async fn lease(&self) -> LeaseId {
        self.store.grant(Duration::from_secs(2)).await.unwrap().0
    }
}

/// Moves a memory store's clock on as time goes by, until dropped. It runs a fifth slow: a store
/// ends a lease later than its owner, as etcd does, and never sooner because of our ticks.
pub struct RunningClock(tokio::task::JoinHandle<()>);

impl RunningClock {
    fn of(memory: MemoryStore) -> Self {
        Self(tokio::spawn(async move {
            let mut before = store::clock::now();
            loop {
                tokio::time::sleep(Duration::from_millis(5)).await;
                let now = store::clock::now();
                memory.advance(now.since(before) * 4 / 5);
                before = now;
            }
        }))
    }
}

impl Drop for RunningClock {
    fn drop(&mut self) {
        self.0.abort();
    }
}

pub fn txn(
    when: impl IntoIterator<Item = Guard>,
    then: impl IntoIterator<Item = Operation>,
) -> Txn {
    Txn { when: when.into_iter().collect(), then: then.into_iter().collect() }
}

pub fn put(key: &str, value: &str) -> Operation {
    Operation::Put { key: key.into(), value: value.into(), lease: None }
}

pub fn put_under(lease: LeaseId, key: &str, value: &str) -> Operation {
    Operation::Put { key: key.into(), value: value.into(), lease: Some(lease) }
}

pub fn delete(key: &str) -> Operation {
    Operation::Delete { key: key.into() }
}

#[track_caller]
pub fn committed(outcome: Result<TxnOutcome, StoreError>) -> i64 {
    match outcome {
        Ok(TxnOutcome::Committed { revision }) => revision,
        other => panic!("not committed: {other:?}"),
    }
}

#[track_caller]
pub fn assert_conflict(outcome: Result<TxnOutcome, StoreError>) {
    assert!(matches!(outcome, Ok(TxnOutcome::Conflict)), "not a conflict: {outcome:?}");
}

/// Waits for something that must come; panics with `what` where it does not.
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("waited {PATIENCE:?} for {what}"),
    }
}

pub async fn next_batch(watch: &mut Watch) -> Vec<WatchEvent> {
    within("a batch of events", watch.events.recv()).await.expect("watch closed")
}

/// Waits until the watch closes, whatever comes before.
pub async fn closing(watch: &mut Watch) {
    within("the watch to close", async { while watch.events.recv().await.is_some() {} }).await;
}

/// Returns the next `count` events, in however many batches they come.
pub async fn next_events(watch: &mut Watch, count: usize) -> Vec<WatchEvent> {
    let mut events = Vec::new();
    while events.len() < count {
        events.extend(next_batch(watch).await);
    }
    events
}

/// Writes an event as `put key=value @revision` or `delete key @revision`.
pub fn told(event: &WatchEvent) -> String {
    match event {
        WatchEvent::Put { key, entry } => {
            format!("put {key}={} @{}", String::from_utf8_lossy(&entry.value), entry.mod_revision)
        }
        WatchEvent::Delete { key, revision } => format!("delete {key} @{revision}"),
    }
}

pub fn all_told(events: &[WatchEvent]) -> Vec<String> {
    events.iter().map(told).collect()
}
