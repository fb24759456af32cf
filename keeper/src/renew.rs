//! Keeps the keeper's lease, and with it the right to serve: a renewal is a keepalive *and* a linearizable read of
//! the state, both sent after the time it counts from (I17).

use std::sync::Arc;
use std::time::Duration;

use proto::ClusterState;
use proto::document::decode;
use store::keys::Keys;
use store::lease::OwnLease;
use store::{LeaseId, Store, StoreError};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::cluster::{Read, put_state};
use crate::facts::ClusterView;
use crate::worker::LeaseView;

/// Renewals per `lease_ttl`: two may be lost, and what is left after the fence still holds the third.
const RENEWALS_PER_LEASE: u32 = 5;

/// What the renewing task works with.
pub struct Renewing {
    pub store: Arc<dyn Store>,
    pub keys: Keys,
    pub view: watch::Sender<Arc<ClusterView>>,
    pub lease: watch::Sender<Option<LeaseView>>,
    /// Sent after each full renewal.
    pub renewed: watch::Sender<Option<LeaseView>>,
}

/// Renews until `stop`, beginning with `kept` if an earlier keeper of this member left a lease.
pub async fn renew(renewing: Renewing, kept: Option<LeaseId>, stop: CancellationToken) {
    let ttl =
        || renewing.view.borrow().spec.as_ref().map_or(Duration::from_secs(4), |s| s.lease_ttl);
    let mut own = kept.map(|id| OwnLease::resume(id, ttl()));
    let mut resumed = own.is_some();
    let mut fails = false;
    while !stop.is_cancelled() {
        let begun = store::clock::now();
        match once(&renewing, &mut own, ttl()).await {
            // The report and the right are put again under a new lease, at once.
            Err(StoreError::LeaseExpired) => {
                // One that an earlier keeper left is expected to be gone after a stop or a long pause.
                match resumed {
                    true => tracing::info!("the lease of the keeper before has ended"),
                    false => tracing::warn!("the lease has expired"),
                }
                resumed = false;
                continue;
            }
            Err(error) => {
                if !fails {
                    tracing::warn!(%error, "renew the lease");
                }
                fails = true;
            }
            Ok(()) => {
                if fails {
                    tracing::info!("the lease is renewed again");
                }
                fails = false;
                resumed = false;
            }
        }
        let pause = (ttl() / RENEWALS_PER_LEASE).saturating_sub(store::clock::now().since(begun));
        tokio::select! {
            () = tokio::time::sleep(pause.max(Duration::from_millis(50))) => {}
            () = stop.cancelled() => {}
        }
    }
}

async fn once(
    renewing: &Renewing,
    own: &mut Option<OwnLease>,
    ttl: Duration,
) -> Result<(), StoreError> {
    let store = renewing.store.as_ref();
    let lease = match own {
        Some(lease) => lease,
        None => own.insert(OwnLease::grant(store, ttl).await?),
    };
    let key = renewing.keys.state();
    let known = renewing.view.borrow().state.as_ref().map(|s| s.number);
    #[cfg(feature = "mistakes")]
    if crate::mistakes::makes("keepalive-alone-renews") {
        lease.renew(store).await?;
        let view = LeaseView { id: lease.id(), expires: lease.expires() };
        renewing.lease.send_replace(Some(view));
        if renewing.view.borrow().state.is_some() {
            renewing.renewed.send_replace(Some(view));
            return Ok(());
        }
    }
    let (kept, read) = tokio::join!(lease.renew(store), store.read(&key));
    if let Err(StoreError::LeaseExpired) = kept {
        *own = None;
        renewing.lease.send_replace(None);
        return Err(StoreError::LeaseExpired);
    }
    kept?;
    let view = LeaseView { id: lease.id(), expires: lease.expires() };
    renewing.lease.send_if_modified(|known| {
        let moved = *known != Some(view);
        *known = Some(view);
        moved
    });
    let snapshot = read?;
    let entry = snapshot.entries.get(&key);
    // One of a newer format is the watch's to tell of; it names nobody whom this keeper could judge.
    let Ok(state) = entry.map(|e| decode::<ClusterState>(&e.value)).transpose() else {
        return Ok(());
    };
    let revision = entry.map_or(snapshot.revision, |e| e.mod_revision);
    let etcd_cluster_id = snapshot.cluster_id;
    // A store that is not believed renews nothing: the voters' signs do.
    if put_state(&renewing.view, &Read { state, revision, etcd_cluster_id, known }) {
        renewing.renewed.send_replace(Some(view));
    }
    Ok(())
}
