//! A store that may not be there yet: every call fails at once until it has answered for the first time.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::Context;
use store::{LeaseId, Snapshot, Store, StoreError, Txn, TxnOutcome, Watch};
use tokio::time::{sleep, timeout};

use crate::config::Config;
use crate::facts::ClusterView;
use crate::kept;

/// A keeper that finds its primary running has to prove the right to serve within a lease: etcd is not waited for longer
/// where there is a copy to go on with.
const WITH_A_COPY: Duration = Duration::from_millis(500);

/// Between two tries to reach a store that does not answer.
const RETRY: Duration = Duration::from_millis(200);

/// What a keeper knows of its cluster when it starts.
pub enum Known {
    Read(Snapshot),
    /// etcd does not answer; this is what it said last.
    Copy(Box<ClusterView>),
}

/// Connects to etcd, or goes on with this member's copy if it does not answer. A first start needs etcd.
pub async fn reach(config: &Config) -> anyhow::Result<(Arc<dyn Store>, Known)> {
    let Some(view) = kept::load(&config.state_dir) else {
        let (store, snapshot) = connect(config).await?;
        return Ok((store, Known::Read(snapshot)));
    };
    let problem = match timeout(WITH_A_COPY, connect(config)).await {
        Ok(Ok((store, snapshot))) => return Ok((store, Known::Read(snapshot))),
        Ok(Err(error)) => format!("{error:#}"),
        Err(_) => format!("no answer in {WITH_A_COPY:?}"),
    };
    tracing::warn!(problem, "etcd is away: starting with this member's copy of what was agreed");
    Ok((Arc::new(LateStore::new(config.clone())), Known::Copy(Box::new(view))))
}

async fn connect(config: &Config) -> anyhow::Result<(Arc<dyn Store>, Snapshot)> {
    let store = store::etcd::EtcdStore::connect(&config.etcd).await?;
    let keys = store::keys::Keys::of(&config.cluster);
    let snapshot = store.read(keys.prefix()).await.context("read the cluster from etcd")?;
    Ok((Arc::new(store), snapshot))
}

struct LateStore {
    store: Arc<OnceLock<Arc<dyn Store>>>,
}

impl LateStore {
    /// Tries to connect until it works.
    fn new(config: Config) -> Self {
        let found: Arc<OnceLock<Arc<dyn Store>>> = Arc::default();
        let slot = Arc::clone(&found);
        tokio::spawn(async move {
            loop {
                match connect(&config).await {
                    Ok((store, _)) => {
                        tracing::info!("etcd answers");
                        let _ = slot.set(store);
                        return;
                    }
                    Err(_) => sleep(RETRY).await,
                }
            }
        });
        Self { store: found }
    }

    fn get(&self) -> Result<&Arc<dyn Store>, StoreError> {
        let away = || StoreError::Unavailable("it has not answered since this start".into());
        self.store.get().ok_or_else(away)
    }
}

#[async_trait::async_trait]
impl Store for LateStore {
    async fn read(&self, prefix: &str) -> Result<Snapshot, StoreError> {
        self.get()?.read(prefix).await
    }

    async fn commit(&self, txn: Txn) -> Result<TxnOutcome, StoreError> {
        self.get()?.commit(txn).await
    }

    async fn grant(&self, ttl: Duration) -> Result<(LeaseId, Duration), StoreError> {
        self.get()?.grant(ttl).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.get()?.keep_alive(lease).await
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.get()?.revoke(lease).await
    }

    async fn watch(&self, prefix: &str, from_revision: i64) -> Result<Watch, StoreError> {
        self.get()?.watch(prefix, from_revision).await
    }
}
