//! The lock of all that breaks something on purpose: `drill/runner`, under the lease of whoever runs it.
//!
//! The one rule: nothing more is begun by a runner that cannot show that the lock is still its own.

use std::convert::Infallible;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use proto::document::encode;
use proto::drill_lock::{DrillLock, DrillWork};
use store::{Guard, LeaseId, Operation, Store, StoreError, Txn, TxnOutcome, clock};
use tokio::time::{sleep, timeout};

use super::seen::{ASK_AGAIN, PATIENCE};

/// How long a drill, or a turn that was taken, outlives its runner. Whole seconds, as etcd grants them.
pub const LEASE: Duration = Duration::from_secs(5);

/// Whether an error came after something may have been broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begun {
    No,
    Perhaps,
}

/// A lock that was taken. One that is dropped ends with its lease.
pub struct Lock<'a> {
    store: &'a dyn Store,
    key: String,
    lease: LeaseId,
    lasts: Duration,
    held: DrillLock,
}

impl<'a> Lock<'a> {
    /// Takes the lock under `lease`, which lasts for `lasts`, and commits `txn` with it. Fails where somebody else holds
    /// it. After a failure the lease is ended.
    pub async fn take(
        store: &'a dyn Store,
        key: String,
        (held, lease, lasts): (DrillLock, LeaseId, Duration),
        Txn { mut when, mut then }: Txn,
    ) -> Result<Self, (Begun, anyhow::Error)> {
        when.push(Guard::Absent(key.clone()));
        then.push(put(&key, &held, lease));
        let taken = store.commit(Txn { when, then }).await;
        if let Ok(TxnOutcome::Committed { .. }) = taken {
            return Ok(Self { store, key, lease, lasts, held });
        }
        // It may be there all the same.
        if let Err(error) = store.revoke(lease).await {
            tracing::warn!(%error, "a lease is left to end by itself");
        }
        match taken {
            Ok(_) => Err((
                Begun::No,
                anyhow!("another drill has just begun: see `pgdeputy drill report`"),
            )),
            Err(error) => {
                let unknown = matches!(error, StoreError::Unknown(_));
                let begun = if unknown { Begun::Perhaps } else { Begun::No };
                Err((begun, anyhow::Error::new(error).context("begin the drill")))
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
        keep(self.store, self.lease, self.lasts).await;
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

/// Renews a lease of `lasts` until it has ended.
pub async fn keep(store: &dyn Store, lease: LeaseId, lasts: Duration) {
    loop {
        sleep(lasts / 5).await;
        match timeout(lasts, store.keep_alive(lease)).await {
            Ok(Ok(())) => {}
            Ok(Err(StoreError::LeaseExpired)) => return,
            Ok(Err(error)) => tracing::warn!(%error, "renew the drill's lease"),
            Err(_) => tracing::warn!("renew the drill's lease: no answer"),
        }
    }
}

/// Does `work` while a lease is renewed. What is under way is not cut off when the lease has ended.
pub async fn kept<T>(
    store: &dyn Store,
    (lease, lasts): (LeaseId, Duration),
    work: impl Future<Output = T>,
) -> T {
    let renewed = async {
        keep(store, lease, lasts).await;
        tracing::warn!("the drill's lease has ended");
        std::future::pending::<Infallible>().await
    };
    tokio::select! {
        done = work => done,
        never = renewed => match never {},
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

    async fn take(store: &MemoryStore, number: u64) -> Result<Lock<'_>, (Begun, anyhow::Error)> {
        let work = DrillWork::Reboots { member: None };
        let held = DrillLock { id: RequestId::from_random(number), by: "ann@north".into(), work };
        let (lease, lasts) = store.grant(LEASE).await.unwrap();
        Lock::take(store, "lock".into(), (held, lease, lasts), Txn::default()).await
    }

    fn turn() -> DrillWork {
        DrillWork::Reboots { member: Some("b".parse().unwrap()) }
    }

    #[tokio::test]
    async fn of_two_one_holds_the_lock_and_the_other_one_when_that_has_given_it_up() {
        let store = MemoryStore::new();
        let first = take(&store, 1).await.unwrap();
        let (begun, refused) = take(&store, 2).await.err().unwrap();
        assert!(refused.to_string().contains("another drill has just begun"), "{refused}");
        assert_eq!(begun, Begun::No);
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
        store.advance(2 * LEASE);
        assert!(other.go_on(turn()).await.unwrap_err().to_string().contains("its lock is gone"));
        assert!(store.read("lock").await.unwrap().entries.is_empty(), "and it is not put again");
    }
}
