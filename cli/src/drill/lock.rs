//! The lock of all that breaks something on purpose: `drill/runner`, under the lease of whoever runs it.
//!
//! The one rule: nothing more is begun by a runner that cannot show that the lock is still its own.

use std::time::Duration;

use anyhow::{Context, bail};
use proto::document::encode;
use proto::drill_lock::{DrillLock, DrillWork};
use store::{Guard, LeaseId, Operation, Store, StoreError, Txn, TxnOutcome, clock};
use tokio::time::{sleep, timeout};

use super::seen::{ASK_AGAIN, PATIENCE};

/// A lock that was taken. One that is dropped ends with its lease.
pub struct Lock<'a> {
    store: &'a dyn Store,
    key: String,
    lease: LeaseId,
    lasts: Duration,
    held: DrillLock,
}

impl<'a> Lock<'a> {
    /// Takes the lock under a lease of `lasts` (whole seconds), and commits `with` it what the holder begins with.
    /// Fails where somebody else holds it.
    pub async fn take(
        store: &'a dyn Store,
        key: String,
        (held, lasts): (DrillLock, Duration),
        with: impl FnOnce(LeaseId) -> Txn,
    ) -> anyhow::Result<Self> {
        let (lease, _) = store.grant(lasts).await.context("ask for a lease")?;
        let Txn { mut when, mut then } = with(lease);
        when.push(Guard::Absent(key.clone()));
        then.push(put(&key, &held, lease));
        let taken = store.commit(Txn { when, then }).await;
        let lock = Self { store, key, lease, lasts, held };
        match taken {
            Ok(TxnOutcome::Committed { .. }) => Ok(lock),
            Ok(TxnOutcome::Conflict) => {
                lock.release().await?;
                bail!("another drill has just begun: see `pgdeputy drill report`");
            }
            Err(error) => {
                // It may be there all the same.
                lock.release().await?;
                Err(error).context("begin the drill")
            }
        }
    }

    /// Returns the lease that holds it.
    pub fn lease(&self) -> LeaseId {
        self.lease
    }

    /// Returns what tells its holder from others.
    pub fn held(&self) -> &DrillLock {
        &self.held
    }

    /// Renews the lease until it has ended.
    pub async fn keep(&self) {
        loop {
            sleep(self.lasts / 5).await;
            match timeout(self.lasts, self.store.keep_alive(self.lease)).await {
                Ok(Ok(())) => {}
                Ok(Err(StoreError::LeaseExpired)) => return,
                Ok(Err(error)) => tracing::warn!(%error, "renew the drill's lease"),
                Err(_) => tracing::warn!("renew the drill's lease: no answer"),
            }
        }
    }

    /// Proves that the lock is held and will be for as long as its lease, and notes what is done with it next. Fails
    /// where it was taken away, its lease has ended, or etcd does not answer for a while.
    pub async fn go_on(&self, work: DrillWork) -> anyhow::Result<()> {
        let until = clock::now() + PATIENCE;
        let held = DrillLock { work, ..self.held.clone() };
        loop {
            match self.note(&held).await {
                Ok(TxnOutcome::Committed { .. }) => return Ok(()),
                Ok(TxnOutcome::Conflict) | Err(StoreError::LeaseExpired) => bail!(
                    "its lock is gone: somebody ended it (pgdeputy drill abort), or etcd could not be reached for {:?}",
                    self.lasts
                ),
                Err(error) if clock::now() < until => {
                    tracing::warn!(%error, "etcd does not answer");
                    sleep(ASK_AGAIN).await;
                }
                Err(error) => return Err(error).context("look whether the lock still stands"),
            }
        }
    }

    async fn note(&self, held: &DrillLock) -> Result<TxnOutcome, StoreError> {
        self.store.keep_alive(self.lease).await?;
        let when = vec![Guard::Lease(self.key.clone(), self.lease)];
        self.store.commit(Txn { when, then: vec![put(&self.key, held, self.lease)] }).await
    }

    /// Ends the lease, and with it all that it holds.
    pub async fn release(self) -> Result<(), StoreError> {
        self.store.revoke(self.lease).await
    }
}

fn put(key: &str, held: &DrillLock, lease: LeaseId) -> Operation {
    Operation::Put { key: key.to_owned(), value: encode(held).into_bytes(), lease: Some(lease) }
}

#[cfg(test)]
mod tests {
    use proto::RequestId;
    use store::MemoryStore;

    use super::*;

    const LASTS: Duration = Duration::from_secs(5);

    async fn take(store: &MemoryStore, number: u64) -> anyhow::Result<Lock<'_>> {
        let work = DrillWork::Reboots { member: None };
        let held = DrillLock { id: RequestId::from_random(number), by: "ann@north".into(), work };
        Lock::take(store, "lock".into(), (held, LASTS), |_| Txn::default()).await
    }

    fn turn() -> DrillWork {
        DrillWork::Reboots { member: Some("b".parse().unwrap()) }
    }

    #[tokio::test]
    async fn of_two_one_holds_the_lock_and_the_other_one_when_that_has_given_it_up() {
        let store = MemoryStore::new();
        let first = take(&store, 1).await.unwrap();
        let refused = take(&store, 2).await.err().unwrap().to_string();
        assert!(refused.contains("another drill has just begun"), "{refused}");
        first.go_on(turn()).await.unwrap();
        let text = &store.read("lock").await.unwrap().entries["lock"].value;
        let noted: DrillLock = proto::document::decode(text).unwrap();
        assert_eq!((noted.id, noted.work), (RequestId::from_random(1), turn()));
        first.release().await.unwrap();
        take(&store, 2).await.unwrap().go_on(turn()).await.unwrap();
    }

    #[tokio::test]
    async fn nothing_more_is_begun_when_the_lock_was_taken_away_or_its_lease_has_ended() {
        let store = MemoryStore::new();
        let aborted = take(&store, 1).await.unwrap();
        let then = vec![Operation::Delete { key: "lock".into() }];
        store.commit(Txn { when: Vec::new(), then }).await.unwrap();
        let other = take(&store, 2).await.unwrap();
        assert!(aborted.go_on(turn()).await.unwrap_err().to_string().contains("its lock is gone"));
        other.go_on(turn()).await.unwrap();
        store.advance(2 * LASTS);
        assert!(other.go_on(turn()).await.unwrap_err().to_string().contains("its lock is gone"));
        assert!(store.read("lock").await.unwrap().entries.is_empty(), "and it is not put again");
    }
}
