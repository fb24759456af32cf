//! `sentinels/<id>`: that this sentinel lives, under a lease of its own. Nothing is decided by it.

use std::time::Duration;

use proto::document::encode;
use proto::{Document, LeaderKey};
use store::keys::Keys;
use store::lease::OwnLease;
use store::{Operation, Store, StoreError, Txn};
use tokio_util::sync::CancellationToken;
use tracing::debug;

/// Long enough that many clusters cost etcd little; people look at it, not failovers.
const TTL: Duration = Duration::from_secs(10);
/// Three tries within the time to live.
const RENEW_EVERY: Duration = Duration::from_secs(3);

/// Keeps the key until `stop`, then takes it away.
pub(super) async fn keep(store: &dyn Store, keys: &Keys, me: &LeaderKey, stop: &CancellationToken) {
    let mut lease: Option<OwnLease> = None;
    loop {
        let renewed = match lease.as_mut() {
            Some(held) => held.renew(store).await,
            None => announce(store, keys, me).await.map(|granted| lease = Some(granted)),
        };
        match renewed {
            Ok(()) => {}
            Err(StoreError::LeaseExpired) => {
                lease = None;
                continue;
            }
            Err(error) => debug!(%error, "renew the presence of this sentinel"),
        }
        tokio::select! {
            () = tokio::time::sleep(RENEW_EVERY) => {}
            () = stop.cancelled() => break,
        }
    }
    if let Some(lease) = lease
        && let Err(error) = store.revoke(lease.id()).await
    {
        debug!(%error, "the presence of this sentinel is left to expire");
    }
}

async fn announce(store: &dyn Store, keys: &Keys, me: &LeaderKey) -> Result<OwnLease, StoreError> {
    let lease = OwnLease::grant(store, TTL).await?;
    debug!(kind = LeaderKey::KIND, id = %me.id, "announce");
    let put = Operation::Put {
        key: keys.sentinel(&me.id),
        value: encode(me).into_bytes(),
        lease: Some(lease.id()),
    };
    store.commit(Txn { when: Vec::new(), then: vec![put] }).await?;
    Ok(lease)
}
