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

use crate::Config;
use crate::follow::Heard;
use crate::pgbouncer::Told;

/// Long enough for a store that elects a leader; nothing waits for this lease to lapse but status.
const LEASE: Duration = Duration::from_secs(10);
/// Two may be lost before the store counts as silent (see `run`).
pub const RENEW_EVERY: Duration = Duration::from_secs(2);
const REVOKE_WITHIN: Duration = Duration::from_secs(1);

/// How far the proxies of this host follow.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Followed {
    /// The epoch that HAProxy was switched to, where there is one.
    pub haproxy: Option<Epoch>,
    pub pgbouncer: Option<Told>,
}

impl Followed {
    /// Returns that of proxies which have not been told anything.
    pub fn nobody(config: &Config) -> Self {
        Self {
            haproxy: config.haproxy.as_ref().map(|_| Epoch(0)),
            pgbouncer: config.pgbouncer.as_ref().map(|_| Told::default()),
        }
    }

    fn report(&self, id: &str) -> ProxyReport {
        let pgbouncer = self.pgbouncer.clone();
        let epochs = self.haproxy.into_iter().chain(pgbouncer.iter().map(|p| p.epoch));
        let (clients, held) =
            pgbouncer.as_ref().map_or((Clients::Cut, None), |p| (p.clients, p.held.clone()));
        ProxyReport {
            id: id.to_owned(),
            epoch: epochs.min().unwrap_or(Epoch(0)),
            clients,
            held,
            refusing: pgbouncer.map(|p| p.refusing).unwrap_or_default(),
        }
    }
}

/// Keeps `key` in line with `report` until `stop`, then takes it away.
pub async fn announce(
    store: Arc<dyn Store>,
    key: String,
    report: (String, watch::Receiver<Followed>),
    heard: Heard,
    stop: CancellationToken,
) {
    let (id, mut followed) = report;
    let mut held: Option<(LeaseId, ProxyReport)> = None;
    let mut refused = false;
    loop {
        let wanted = followed.borrow_and_update().report(&id);
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
            changed = followed.changed() => if changed.is_err() { break },
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
    held: &mut Option<(LeaseId, ProxyReport)>,
    report: ProxyReport,
) -> Result<(), StoreError> {
    let lease = match held {
        Some((lease, written)) if *written == report => return store.keep_alive(*lease).await,
        Some((lease, _)) => *lease,
        None => store.grant(LEASE).await?.0,
    };
    // Written before it is renewed: a switchover waits for what it says.
    let value = document::encode(&report).into_bytes();
    let put = Operation::Put { key: key.to_owned(), value, lease: Some(lease) };
    store.commit(Txn { when: Vec::new(), then: vec![put] }).await?;
    *held = Some((lease, report));
    store.keep_alive(lease).await
}
