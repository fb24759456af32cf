//! Which requests etcd refuses before it looks at a key. The twin refuses them with the same error.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::types::{Guard, Operation, StoreError, Txn};

/// etcd's default `--max-txn-ops`.
const MOST_PER_TXN: usize = 128;

/// Refuses a transaction that etcd would refuse whatever the keys hold.
pub(super) fn check(txn: &Txn) -> Result<(), StoreError> {
    if txn.when.len() > MOST_PER_TXN || txn.then.len() > MOST_PER_TXN {
        return refuse("too many operations in txn request");
    }
    let guarded = txn.when.iter().map(guarded_key);
    let changed = txn.then.iter().map(|operation| changed_key(operation).0);
    if guarded.chain(changed).any(str::is_empty) {
        return refuse("key is not provided");
    }
    if writes_a_key_twice(&txn.then) {
        return refuse("duplicate key given in txn request");
    }
    Ok(())
}

/// Returns the whole seconds in which a lease is asked for: never fewer than `ttl`.
pub(crate) fn whole_seconds(ttl: Duration) -> u64 {
    ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0)
}

fn refuse(why: &str) -> Result<(), StoreError> {
    Err(StoreError::Refused(format!("etcdserver: {why}")))
}

fn guarded_key(guard: &Guard) -> &str {
    match guard {
        Guard::Absent(key)
        | Guard::ModRevision(key, _)
        | Guard::CreateRevision(key, _)
        | Guard::Lease(key, _) => key,
    }
}

enum Change {
    Put,
    Delete,
}

fn changed_key(operation: &Operation) -> (&str, Change) {
    match operation {
        Operation::Put { key, .. } => (key, Change::Put),
        Operation::Delete { key } => (key, Change::Delete),
    }
}

/// Two puts of a key, or a put and a delete of it. Two deletes are allowed.
fn writes_a_key_twice(operations: &[Operation]) -> bool {
    let mut put = BTreeSet::new();
    let mut deleted = BTreeSet::new();
    operations.iter().any(|operation| match changed_key(operation) {
        (key, Change::Put) => deleted.contains(key) || !put.insert(key),
        (key, Change::Delete) => {
            deleted.insert(key);
            put.contains(key)
        }
    })
}
