//! The in-memory twin: one store for tests and the simulator, on a given clock and with injected faults.
//!
//! The one rule: it never does what etcd could not do. `MemoryCore` holds the rules and knows no
//! tokio; `MemoryStore` wraps it with watches, faults and the async trait.

mod core;
pub(crate) mod rules;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use proto::Moment;
use tokio::sync::mpsc;

pub use self::core::{Compacted, MemoryCore, SHORTEST_LEASE};
use crate::types::{LeaseId, Snapshot, Store, StoreError, Txn, TxnOutcome, Watch, WatchEvent};

/// A watcher that is this many batches behind is cancelled, as one that reads no more.
const WATCH_CAPACITY: usize = 1024;

/// The in-memory store. Clones share the same data.
#[derive(Clone, Default)]
pub struct MemoryStore {
    shared: Arc<Mutex<Shared>>,
}

/// What goes wrong with the next commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CommitFault {
    /// It is never sent: `Unavailable`, nothing changed.
    NotSent,
    /// The request is lost: `Unknown`, nothing changed.
    RequestLost,
    /// The answer is lost: `Unknown`, and it was applied.
    AnswerLost,
}

#[derive(Default)]
struct Shared {
    core: MemoryCore,
    watchers: Vec<Watcher>,
    next_commit: Option<CommitFault>,
    reads_fail: bool,
}

struct Watcher {
    prefix: String,
    next_revision: i64,
    events: mpsc::Sender<Vec<WatchEvent>>,
}

impl MemoryStore {
    /// Makes an empty store whose clock stands still until `advance`.
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns the store's own clock.
    pub fn now(&self) -> Moment {
        self.lock().core.now()
    }

    /// Moves the clock on; leases that are due end and watches see it.
    pub fn advance(&self, by: Duration) {
        self.with_core(|core| core.advance(by));
    }

    /// Forgets the history before `revision`.
    pub fn compact(&self, revision: i64) {
        self.with_core(|core| core.compact(revision));
    }

    /// Does something with the core, then delivers what changed to the watches.
    pub fn with_core<R>(&self, f: impl FnOnce(&mut MemoryCore) -> R) -> R {
        let mut shared = self.lock();
        let result = f(&mut shared.core);
        shared.deliver();
        result
    }

    /// Lets the next commit fail in the given way.
    pub fn fail_next_commit(&self, how: CommitFault) {
        self.lock().next_commit = Some(how);
    }

    /// Lets every read fail until `make_reads_available`.
    pub fn make_reads_unavailable(&self) {
        self.lock().reads_fail = true;
    }

    /// Ends `make_reads_unavailable`.
    pub fn make_reads_available(&self) {
        self.lock().reads_fail = false;
    }

    /// Closes every running watch, as a lost connection does.
    pub fn cancel_watches(&self) {
        self.lock().watchers.clear();
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        // A test that panicked in `with_core` has failed already; others may look at what is there.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    fn deliver(&mut self) {
        let core = &self.core;
        self.watchers.retain_mut(|watcher| watcher.deliver(core));
    }
}

impl Watcher {
    /// Sends what is new; false where the watch must end instead of leaving a gap.
    fn deliver(&mut self, core: &MemoryCore) -> bool {
        let Ok(batches) = core.events_since(&self.prefix, self.next_revision) else {
            return false;
        };
        self.next_revision = self.next_revision.max(core.revision() + 1);
        !self.events.is_closed()
            && batches.into_iter().all(|batch| self.events.try_send(batch).is_ok())
    }
}

#[async_trait::async_trait]
impl Store for MemoryStore {
    async fn read(&self, prefix: &str) -> Result<Snapshot, StoreError> {
        let shared = self.lock();
        if shared.reads_fail {
            return Err(StoreError::Unavailable("injected: reads are unavailable".to_owned()));
        }
        Ok(shared.core.read(prefix))
    }

    async fn commit(&self, txn: Txn) -> Result<TxnOutcome, StoreError> {
        let fault = self.lock().next_commit.take();
        match fault {
            None => self.with_core(|core| core.commit(txn)),
            Some(CommitFault::NotSent) => {
                Err(StoreError::Unavailable("injected: not sent".to_owned()))
            }
            Some(CommitFault::RequestLost) => {
                Err(StoreError::Unknown("injected: request lost".to_owned()))
            }
            Some(CommitFault::AnswerLost) => {
                // Whatever the answer was, it is the one that got lost.
                let _ = self.with_core(|core| core.commit(txn));
                Err(StoreError::Unknown("injected: answer lost".to_owned()))
            }
        }
    }

    async fn grant(&self, ttl: Duration) -> Result<(LeaseId, Duration), StoreError> {
        Ok(self.with_core(|core| core.grant(ttl)))
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.with_core(|core| core.keep_alive(lease))
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.with_core(|core| core.revoke(lease));
        Ok(())
    }

    async fn watch(&self, prefix: &str, from_revision: i64) -> Result<Watch, StoreError> {
        let (events, receiver) = mpsc::channel(WATCH_CAPACITY);
        let mut shared = self.lock();
        let next_revision =
            if from_revision > 0 { from_revision } else { shared.core.revision() + 1 };
        let mut watcher = Watcher { prefix: prefix.to_owned(), next_revision, events };
        if watcher.deliver(&shared.core) {
            shared.watchers.push(watcher);
        }
        Ok(Watch { events: receiver })
    }
}
