//! A store as one process sees it whose own network fails while everybody else's works.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use store::{LeaseId, Snapshot, Store, StoreError, Txn, TxnOutcome, Watch};

pub struct LossyStore {
    inner: Arc<dyn Store>,
    lost: CancellationToken,
}

impl LossyStore {
    pub fn over(inner: Arc<dyn Store>) -> Self {
        Self { inner, lost: CancellationToken::new() }
    }

    /// From now on no call and no event gets through.
    pub fn lose_everything(&self) {
        self.lost.cancel();
    }

    fn check(&self) -> Result<(), StoreError> {
        match self.lost.is_cancelled() {
            true => Err(StoreError::Unavailable("injected: nothing gets through".to_owned())),
            false => Ok(()),
        }
    }
}

#[async_trait::async_trait]
impl Store for LossyStore {
    async fn read(&self, prefix: &str) -> Result<Snapshot, StoreError> {
        self.check()?;
        self.inner.read(prefix).await
    }

    async fn commit(&self, txn: Txn) -> Result<TxnOutcome, StoreError> {
        self.check()?;
        self.inner.commit(txn).await
    }

    async fn grant(&self, ttl: Duration) -> Result<(LeaseId, Duration), StoreError> {
        self.check()?;
        self.inner.grant(ttl).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.check()?;
        self.inner.keep_alive(lease).await
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.check()?;
        self.inner.revoke(lease).await
    }

    async fn watch(&self, prefix: &str, from_revision: i64) -> Result<Watch, StoreError> {
        self.check()?;
        let mut inner = self.inner.watch(prefix, from_revision).await?;
        let (sender, events) = mpsc::channel(1);
        let lost = self.lost.clone();
        tokio::spawn(lost.run_until_cancelled_owned(async move {
            while let Some(batch) = inner.events.recv().await {
                if sender.send(batch).await.is_err() {
                    return;
                }
            }
        }));
        Ok(Watch { events })
    }
}
