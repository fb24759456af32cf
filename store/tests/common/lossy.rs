//! A store as one process sees it whose own network fails while everybody else's works.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use store::{LeaseId, Snapshot, Store, StoreError, Txn, TxnOutcome, Watch};

pub struct LossyStore {
    inner: Arc<dyn Store>,
    lost: AtomicBool,
}

impl LossyStore {
    pub fn over(inner: Arc<dyn Store>) -> Self {
        Self { inner, lost: AtomicBool::new(false) }
    }

    /// From now on no call gets through; watches that run go on.
    pub fn lose_everything(&self) {
        self.lost.store(true, Ordering::SeqCst);
    }

    fn check(&self) -> Result<(), StoreError> {
        match self.lost.load(Ordering::SeqCst) {
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
        self.inner.watch(prefix, from_revision).await
    }
}
