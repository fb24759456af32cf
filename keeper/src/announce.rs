//! Puts the member's report into etcd under the keeper's lease. The newest one counts; older ones are skipped.

use std::sync::Arc;
use std::time::Duration;

use proto::document::encode;
use proto::{Incarnation, MemberName, MemberReport};
use store::keys::Keys;
use store::{Guard, LeaseId, Operation, Store, StoreError, Txn, TxnOutcome};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::worker::LeaseView;

/// What the announcing task works with.
pub struct Announcing {
    pub store: Arc<dyn Store>,
    pub keys: Keys,
    pub member: MemberName,
    pub incarnation: Incarnation,
    pub report: watch::Receiver<Option<MemberReport>>,
    pub lease: watch::Receiver<Option<LeaseView>>,
}

/// Puts each new report, and the last one again under each new lease, until `stop`.
pub async fn announce(mut announcing: Announcing, stop: CancellationToken) {
    let mut put: Option<(MemberReport, LeaseId)> = None;
    let mut fails = false;
    loop {
        let report = announcing.report.borrow_and_update().clone();
        let lease = *announcing.lease.borrow_and_update();
        if let (Some(report), Some(lease)) = (report, lease)
            && put.as_ref() != Some(&(report.clone(), lease.id))
        {
            match announcing.put(&report, lease.id).await {
                Ok(()) => {
                    fails = false;
                    put = Some((report, lease.id));
                }
                Err(error) => {
                    if !fails {
                        tracing::warn!(%error, "put the report");
                    }
                    fails = true;
                    tokio::select! {
                        () = tokio::time::sleep(Duration::from_millis(100)) => continue,
                        () = stop.cancelled() => return,
                    }
                }
            }
        }
        tokio::select! {
            changed = announcing.report.changed() => if changed.is_err() { return },
            changed = announcing.lease.changed() => if changed.is_err() { return },
            () = stop.cancelled() => return,
        }
    }
}

impl Announcing {
    /// Puts `report`, unless another incarnation's keeper holds the name.
    async fn put(&self, report: &MemberReport, lease: LeaseId) -> anyhow::Result<()> {
        let key = self.keys.member(&self.member);
        let operation = Operation::Put {
            key: key.clone(),
            value: encode(report).into_bytes(),
            lease: Some(lease),
        };
        // The usual case in one round trip: the key is ours already.
        let held =
            Txn { when: vec![Guard::Lease(key.clone(), lease)], then: vec![operation.clone()] };
        if let TxnOutcome::Committed { .. } = self.store.commit(held).await? {
            return Ok(());
        }
        let snapshot = self.store.read(&key).await?;
        let guard = match snapshot.entries.get(&key) {
            None => Guard::Absent(key),
            Some(entry) => {
                let holder: MemberReport = proto::document::decode(&entry.value)?;
                anyhow::ensure!(
                    holder.incarnation == self.incarnation,
                    "another keeper lives under the name {} (at {}): stop one of them",
                    self.member,
                    holder.http_address
                );
                Guard::ModRevision(key, entry.mod_revision)
            }
        };
        match self.store.commit(Txn { when: vec![guard], then: vec![operation] }).await? {
            TxnOutcome::Committed { .. } => Ok(()),
            TxnOutcome::Conflict => {
                Err(StoreError::Unavailable("the report changed meanwhile".into()).into())
            }
        }
    }
}
