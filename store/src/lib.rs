//! The agreed store: the trait, real etcd, an in-memory twin, and what is built on them once.
//!
//! The one rule: every write names what it was derived from, and losing the race changes nothing (I7).

pub mod clock;
pub mod drills;
pub mod election;
pub mod etcd;
pub mod keys;
pub mod lease;
pub mod memory;
#[cfg(feature = "mistakes")]
pub mod mistake;
pub mod requests;
pub mod schedule;
mod types;

pub use election::{Election, Leadership};
pub use etcd::{EtcdAccess, EtcdStore};
pub use lease::OwnLease;
pub use memory::{MemoryCore, MemoryStore};
pub use types::{
    Entry, Guard, LeaseId, Operation, Snapshot, Store, StoreError, Txn, TxnOutcome, Watch,
    WatchEvent,
};
