//! Switchovers for a later time: put down, listed and taken back.
//!
//! The one rule: one is begun or cancelled, never both. Either deletes its key, guarded by the key's revision.

use proto::document::{decode, encode};
use proto::schedule::Scheduled;
use proto::{DecodeError, RequestId};

use crate::keys::Keys;
use crate::types::{Guard, Operation, Store, StoreError, Txn, TxnOutcome};

/// More than anybody plans ahead. Every decision of the leader reads them all.
pub const MOST_SCHEDULED: usize = 50;

/// Why a switchover was not put down or not taken back.
#[derive(Debug, thiserror::Error)]
pub enum ScheduleError {
    #[error("{MOST_SCHEDULED} switchovers are scheduled already: cancel some")]
    TooMany,
    #[error(
        "no switchover {0} is scheduled: it has begun, was missed or was cancelled (pgdeputy history, \
         pgdeputy switchover --list)"
    )]
    NotThere(RequestId),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Those that wait for their time, by their keys; what cannot be read is an error of its own.
pub type Listed = Vec<(String, Result<Scheduled, DecodeError>)>;

/// Puts `scheduled` down. Where the outcome stays unknown nothing tells but `list`.
pub async fn put(
    store: &dyn Store,
    keys: &Keys,
    scheduled: &Scheduled,
) -> Result<(), ScheduleError> {
    if list(store, keys).await?.len() >= MOST_SCHEDULED {
        return Err(ScheduleError::TooMany);
    }
    let key = keys.scheduled(&scheduled.id);
    let value = encode(scheduled).into_bytes();
    let put = Operation::Put { key: key.clone(), value, lease: None };
    let txn = Txn { when: vec![Guard::Absent(key)], then: vec![put] };
    // The id is random: what stands there already is this very document, put by an earlier try of the client.
    store.commit(txn).await?;
    Ok(())
}

/// Returns all that wait for their time.
pub async fn list(store: &dyn Store, keys: &Keys) -> Result<Listed, StoreError> {
    let snapshot = store.read(&keys.all_scheduled()).await?;
    let entries = snapshot.entries.into_iter();
    Ok(entries.map(|(key, entry)| (key, decode(&entry.value))).collect())
}

/// Takes `id` back; afterwards nobody begins it. Also one that cannot be read.
pub async fn cancel(store: &dyn Store, keys: &Keys, id: &RequestId) -> Result<(), ScheduleError> {
    let key = keys.scheduled(id);
    let snapshot = store.read(&key).await?;
    let Some(entry) = snapshot.entries.get(&key) else {
        return Err(ScheduleError::NotThere(id.clone()));
    };
    let when = vec![Guard::ModRevision(key.clone(), entry.mod_revision)];
    match store.commit(Txn { when, then: vec![Operation::Delete { key }] }).await? {
        TxnOutcome::Committed { .. } => Ok(()),
        TxnOutcome::Conflict => Err(ScheduleError::NotThere(id.clone())),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proto::WallTime;
    use proto::request::Terms;

    use super::*;
    use crate::memory::MemoryStore;

    #[tokio::test]
    async fn what_is_cancelled_is_gone_and_cannot_be_cancelled_again() {
        let (store, keys) = (MemoryStore::new(), Keys::of(&"c1".parse().expect("a name")));
        let scheduled = Scheduled {
            id: RequestId::from_random(1),
            by: "ann@north".into(),
            asked: WallTime(0),
            at: WallTime(1),
            window: Duration::from_secs(60),
            within: Duration::from_secs(30),
            terms: Terms::default(),
        };
        put(&store, &keys, &scheduled).await.unwrap();
        let listed = list(&store, &keys).await.unwrap();
        assert_eq!(listed[0].1.as_ref(), Ok(&scheduled));
        cancel(&store, &keys, &scheduled.id).await.unwrap();
        assert!(list(&store, &keys).await.unwrap().is_empty());
        let again = cancel(&store, &keys, &scheduled.id).await;
        assert!(matches!(again, Err(ScheduleError::NotThere(_))), "{again:?}");
    }
}
