//! `sentinels/<id>`: that this sentinel lives, under a lease of its own. Nothing is decided by it.

use std::time::Duration;

use proto::document::encode;
use proto::{LeaderKey, Moment};
use store::keys::Keys;
use store::lease::OwnLease;
use store::{Guard, Operation, Store, StoreError, Txn, TxnOutcome, clock};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

/// Long enough that many clusters cost etcd little; people look at it, not failovers.
const TTL: Duration = Duration::from_secs(10);
/// Three tries within the time to live.
const RENEW_EVERY: Duration = Duration::from_secs(3);
/// The key of a sentinel that was killed and started again under its name is gone by then.
const SURELY_ANOTHERS: Duration = Duration::from_secs(20);

/// Keeps the key until `stop`, then takes it away. Says so when another living sentinel has the same identity.
pub(super) async fn keep(store: &dyn Store, keys: &Keys, me: &LeaderKey, stop: &CancellationToken) {
    let mut lease: Option<OwnLease> = None;
    let mut taken: Option<Taken> = None;
    loop {
        let renewed = match lease.as_mut() {
            Some(held) => held.renew(store).await,
            None => announce(store, keys, me).await.map(|granted| lease = granted),
        };
        match renewed {
            Ok(()) if lease.is_some() => taken = None,
            Ok(()) => taken.get_or_insert_with(Taken::now).complain(me),
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

/// Since when the key is somebody else's.
struct Taken {
    since: Moment,
    said: bool,
}

impl Taken {
    fn now() -> Self {
        Self { since: clock::now(), said: false }
    }

    fn complain(&mut self, me: &LeaderKey) {
        if !self.said && clock::now().since(self.since) >= SURELY_ANOTHERS {
            warn!(id = %me.id, "another sentinel runs under this --id: give each its own");
            self.said = true;
        }
    }
}

/// Returns the lease under which the key is ours now; none where it is another's.
async fn announce(
    store: &dyn Store,
    keys: &Keys,
    me: &LeaderKey,
) -> Result<Option<OwnLease>, StoreError> {
    let lease = OwnLease::grant(store, TTL).await?;
    let key = keys.sentinel(&me.id);
    let value = encode(me).into_bytes();
    let put = Operation::Put { key: key.clone(), value, lease: Some(lease.id()) };
    let outcome = store.commit(Txn { when: vec![Guard::Absent(key)], then: vec![put] }).await;
    if matches!(outcome, Ok(TxnOutcome::Committed { .. })) {
        return Ok(Some(lease));
    }
    // Also after an answer that was lost: the next try then finds the key gone, or another's.
    store.revoke(lease.id()).await?;
    outcome.map(|_| None)
}
