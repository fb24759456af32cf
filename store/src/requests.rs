//! Asking the leader for something: puts a request under a lease of its validity, and reads what came of it.
//!
//! The one rule: a request ends. It is answered, withdrawn, or gone with its lease; none waits for a leader of tomorrow.

use std::time::Duration;

use proto::document::{decode, encode};
use proto::request::{Answered, Request, RequestId};
use proto::{ClusterState, DecodeError};

use crate::keys::Keys;
use crate::types::{Guard, LeaseId, Operation, Store, StoreError, Txn, TxnOutcome};

/// Why a request was not put; nothing was asked for.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Another one of its kind waits for its answer.
    #[error(
        "another {} is asked for already, by {} at {}: wait for its answer (within {} s)",
        .0.wanted.kind(), .0.by, .0.asked, .0.valid_for.as_secs()
    )]
    Waiting(Box<Request>),
    /// Something else stands under its key.
    #[error(
        "what stands under {key} cannot be read ({problem}): it ends with its lease, or delete it with etcdctl"
    )]
    Unreadable { key: String, problem: DecodeError },
    /// The lease of the request ended before it could be put.
    #[error("the store was too slow: try again")]
    TooSlow,
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A request that was put.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    pub id: RequestId,
    lease: LeaseId,
}

/// How a request stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// It waits for its answer.
    Waiting,
    Answered(Answered),
    /// It ended unanswered: nothing was changed, and nothing will be.
    Gone,
}

/// Puts `request`, unless another of its kind waits.
pub async fn ask(store: &dyn Store, keys: &Keys, request: &Request) -> Result<Asked, AskError> {
    let key = keys.request(request.wanted.kind());
    // Leases are whole seconds.
    let ttl = Duration::from_secs(request.valid_for.as_secs().max(1));
    let (lease, _) = store.grant(ttl).await?;
    let value = encode(request).into_bytes();
    let put = Operation::Put { key: key.clone(), value, lease: Some(lease) };
    let txn = Txn { when: vec![Guard::Absent(key.clone())], then: vec![put] };
    let asked = Asked { id: request.id.clone(), lease };
    match store.commit(txn).await {
        Ok(TxnOutcome::Committed { .. }) => Ok(asked),
        // An unknown outcome is read: what stands there may be our own.
        Ok(TxnOutcome::Conflict) | Err(StoreError::Unknown(_)) => {
            let found = other(store, &key, &request.id).await;
            if !matches!(found, Ok(())) {
                store.revoke(lease).await?;
            }
            found.map(|()| asked)
        }
        Err(StoreError::LeaseExpired) => Err(AskError::TooSlow),
        Err(error) => Err(error.into()),
    }
}

/// Returns in what way the key is not ours.
async fn other(store: &dyn Store, key: &str, id: &RequestId) -> Result<(), AskError> {
    let snapshot = store.read(key).await?;
    let Some(entry) = snapshot.entries.get(key) else { return Err(AskError::TooSlow) };
    match decode::<Request>(&entry.value) {
        Ok(found) if found.id == *id => Ok(()),
        Ok(found) => Err(AskError::Waiting(Box::new(found))),
        Err(problem) => Err(AskError::Unreadable { key: key.to_owned(), problem }),
    }
}

impl Asked {
    /// Takes the request back, if it was not answered. What was begun goes on.
    pub async fn withdraw(&self, store: &dyn Store) -> Result<(), StoreError> {
        store.revoke(self.lease).await
    }

    /// Reads how the request stands.
    pub async fn standing(&self, store: &dyn Store, keys: &Keys) -> Result<Standing, StoreError> {
        // One snapshot holds both, so that an answer is never missed between two reads.
        let snapshot = store.read(keys.prefix()).await?;
        let state = snapshot.entries.get(&keys.state());
        let state = state.and_then(|entry| decode::<ClusterState>(&entry.value).ok());
        if let Some(answered) = state.as_ref().and_then(|state| state.request(&self.id)) {
            return Ok(Standing::Answered(answered.clone()));
        }
        let waits = snapshot.entries.values().any(|entry| entry.lease == Some(self.lease));
        Ok(if waits { Standing::Waiting } else { Standing::Gone })
    }
}

#[cfg(test)]
mod tests {
    use proto::request::{Terms, Wanted};

    use super::*;
    use crate::memory::MemoryStore;

    fn request(bits: u64) -> Request {
        Request {
            id: RequestId::from_random(bits),
            by: "ann@north".into(),
            asked: proto::WallTime(0),
            valid_for: Duration::from_secs(30),
            wanted: Wanted::Switchover(Terms::default()),
        }
    }

    fn keys() -> Keys {
        Keys::of(&"c1".parse().expect("a name"))
    }

    #[tokio::test]
    async fn a_request_ends_with_its_lease_or_when_it_is_withdrawn() {
        let (store, keys) = (MemoryStore::new(), keys());
        let first = ask(&store, &keys, &request(1)).await.unwrap();
        assert_eq!(first.standing(&store, &keys).await.unwrap(), Standing::Waiting);
        store.advance(Duration::from_secs(31));
        assert_eq!(first.standing(&store, &keys).await.unwrap(), Standing::Gone);
        let second = ask(&store, &keys, &request(2)).await.unwrap();
        second.withdraw(&store).await.unwrap();
        assert_eq!(second.standing(&store, &keys).await.unwrap(), Standing::Gone);
    }

    #[tokio::test]
    async fn only_one_request_of_a_kind_waits_and_the_other_is_named() {
        let (store, keys) = (MemoryStore::new(), keys());
        let first = ask(&store, &keys, &request(1)).await.unwrap();
        let refused = ask(&store, &keys, &request(2)).await.unwrap_err().to_string();
        assert!(refused.contains("by ann@north"), "{refused}");
        assert_eq!(first.standing(&store, &keys).await.unwrap(), Standing::Waiting);
    }
}
