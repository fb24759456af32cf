//! Says under a lease that this proxy-config lives, and which epoch HAProxy has been switched to. Its renewals are
//! also how a store that is away is noticed; they cost no revision, and the document is written on change only.

use std::sync::Arc;
use std::time::Duration;

use proto::proxy::{Clients, ProxyReport};
use proto::{Epoch, document};
use store::{LeaseId, Operation, Store, StoreError, Txn, clock};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::follow::Heard;

/// Long enough for a store that elects a leader; nothing waits for this lease to lapse but status.
const LEASE: Duration = Duration::from_secs(10);
/// Two may be lost before the store counts as silent (see `run`).
pub const RENEW_EVERY: Duration = Duration::from_secs(2);
const REVOKE_WITHIN: Duration = Duration::from_secs(1);

/// Keeps `key` in line with `epoch` until `stop`, then takes it away.
pub async fn announce(
    store: Arc<dyn Store>,
    key: String,
    report: (String, watch::Receiver<Epoch>),
    heard: Heard,
    stop: CancellationToken,
) {
    let (id, mut epoch) = report;
    let mut held: Option<(LeaseId, Epoch)> = None;
    let mut refused = false;
    loop {
        let wanted = ProxyReport {
            id: id.clone(),
            epoch: *epoch.borrow_and_update(),
            clients: Clients::Cut,
            held: None,
        };
        let sent = clock::now();
        match say(store.as_ref(), &key, &mut held, wanted).await {
            Ok(()) => heard.answered(sent),
            // A new lease is taken at the next turn.
            Err(StoreError::LeaseExpired) => held = None,
            Err(StoreError::Refused(problem)) if !refused => {
                warn!(%key, %problem, "this proxy-config cannot announce itself");
                refused = true;
            }
            // The follower says that the store is away.
            Err(StoreError::Refused(_) | StoreError::Unavailable(_) | StoreError::Unknown(_)) => {}
        }
        tokio::select! {
            () = stop.cancelled() => break,
            changed = epoch.changed() => if changed.is_err() { break },
            () = tokio::time::sleep(RENEW_EVERY) => {}
        }
    }
    if let Some((lease, _)) = held {
        // Where this fails the lease ends by itself.
        let _ = tokio::time::timeout(REVOKE_WITHIN, store.revoke(lease)).await;
    }
}

/// Renews the lease, or writes the document under it where the epoch has changed.
async fn say(
    store: &dyn Store,
    key: &str,
    held: &mut Option<(LeaseId, Epoch)>,
    report: ProxyReport,
) -> Result<(), StoreError> {
    let lease = match *held {
        Some((lease, written)) => {
            store.keep_alive(lease).await?;
            if written == report.epoch {
                return Ok(());
            }
            lease
        }
        None => store.grant(LEASE).await?.0,
    };
    let value = document::encode(&report).into_bytes();
    let put = Operation::Put { key: key.to_owned(), value, lease: Some(lease) };
    store.commit(Txn { when: Vec::new(), then: vec![put] }).await?;
    *held = Some((lease, report.epoch));
    Ok(())
}
