//! The process: connects to etcd, and cares for each cluster in a task of its own.
//!
//! The one rule: it only carries. What is read goes to the decider as it is, and what was decided
//! is committed as it is, guarded by the leadership and by the state that it was decided on.

mod cluster;
mod drill;
mod hearing;
mod listen;
mod presence;
mod probe;
mod wake;
pub mod write;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use proto::{ClusterName, LeaderKey};
use store::keys::{Keys, ROOT};
use store::{EtcdStore, Store, WatchEvent};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use self::cluster::Care;
use self::hearing::Hearing;
use self::listen::Counters;
use crate::{Clusters, Config};

/// Runs a sentinel until `stop`. Fails at the start only: when etcd does not answer or does not show it its clusters, or
/// `listen` cannot be bound.
pub async fn run(config: Config, stop: CancellationToken) -> anyhow::Result<()> {
    let prefixes = match &config.clusters {
        Clusters::Named(names) => names.iter().map(|n| Keys::of(n).prefix().to_owned()).collect(),
        Clusters::All => vec![ROOT.to_owned()],
    };
    let connecting = EtcdStore::connect_to_read(&config.etcd, &prefixes).await;
    let store = connecting.with_context(|| {
        format!(
            "connect to etcd at {}: check --etcd and that etcd runs",
            config.etcd.endpoints.join(",")
        )
    })?;
    run_on(Arc::new(store), config, stop).await
}

/// Runs a sentinel on a given store until `stop`.
pub async fn run_on(
    store: Arc<dyn Store>,
    config: Config,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let counters = Counters::default();
    let mut tasks = JoinSet::new();
    if let Some(address) = &config.listen {
        tasks.spawn(listen::serve(address, counters.clone(), stop.clone()).await?);
    }
    let hearing = Hearing::open(config.id.clone(), &config.etcd.endpoints).await?;
    tasks.spawn(Arc::clone(&hearing).run(stop.clone()));
    let me = LeaderKey {
        id: config.id.clone(),
        host: host(),
        listen: config.listen.clone(),
        echo: hearing.address(),
        pgdeputy_version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let (sender, mut clusters) = mpsc::channel(16);
    match config.clusters {
        Clusters::Named(names) => {
            tasks.spawn(async move {
                for name in names {
                    let _ = sender.send(name).await;
                }
            });
        }
        Clusters::All => {
            tasks.spawn(discover(Arc::clone(&store), sender, stop.clone()));
        }
    }
    while let Some(cluster) = tokio::select! {
        found = clusters.recv() => found,
        () = stop.cancelled() => None,
    } {
        info!(%cluster, id = %me.id, "caring for cluster");
        let about_us = (me.clone(), counters.clone(), Arc::clone(&hearing));
        let care = Care::new(Arc::clone(&store), cluster, about_us, config.drills.clone());
        tasks.spawn(care.run(stop.clone()));
    }
    stop.cancelled().await;
    // Each task ends by itself: it resigns first, so that another sentinel leads at once.
    while let Some(ended) = tasks.join_next().await {
        if let Err(error) = ended {
            warn!(%error, "a task of the sentinel ended badly");
        }
    }
    Ok(())
}

/// Sends the name of each cluster that has a spec, once, also of those created later.
async fn discover(
    store: Arc<dyn Store>,
    found: mpsc::Sender<ClusterName>,
    stop: CancellationToken,
) {
    let mut known = BTreeSet::new();
    while !stop.is_cancelled() {
        tokio::select! {
            result = watch_specs(&*store, &found, &mut known) => {
                if let Err(error) = result {
                    warn!(%error, "look for clusters, trying again");
                }
            }
            () = stop.cancelled() => return,
        }
        // A pause, so that a store that refuses at once is not asked in a tight loop.
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

async fn watch_specs(
    store: &dyn Store,
    found: &mpsc::Sender<ClusterName>,
    known: &mut BTreeSet<ClusterName>,
) -> Result<(), store::StoreError> {
    let snapshot = store.read(ROOT).await?;
    let mut watch = store.watch(ROOT, snapshot.revision + 1).await?;
    let mut keys: Vec<String> = snapshot.entries.into_keys().collect();
    loop {
        for cluster in keys.iter().filter_map(|key| cluster_of_spec(key)) {
            if known.insert(cluster.clone()) {
                // The receiver ends with the process only.
                let _ = found.send(cluster).await;
            }
        }
        let Some(batch) = watch.events.recv().await else { return Ok(()) };
        keys = batch.iter().map(WatchEvent::key).map(str::to_owned).collect();
    }
}

fn cluster_of_spec(key: &str) -> Option<ClusterName> {
    key.strip_prefix(ROOT)?.strip_suffix("/spec")?.parse().ok()
}

fn host() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim().to_owned()
}
