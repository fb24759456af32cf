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
    let mut last: Option<i64> = None;
    let mut fails = false;
    loop {
        let report = announcing.report.borrow_and_update().clone();
        let lease = *announcing.lease.borrow_and_update();
        if let (Some(report), Some(lease)) = (report, lease)
            && put.as_ref() != Some(&(report.clone(), lease.id))
        {
            match announcing.put(&report, lease.id, last.take()).await {
                Ok(revision) => {
                    fails = false;
                    last = Some(revision);
                    put = Some((report, lease.id));
                }
                Err(error) => {
                    // It may be there all the same: what was put before is not put any more, also where the facts go
                    // back to it.
                    put = None;
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
    /// Puts `report`, unless another incarnation's keeper holds the name. Returns the revision of the put.
    ///
    /// The guard is the revision of our own last put: one whose outcome is unknown, and which is still on its way, then
    /// cannot land on top of a newer one.
    async fn put(
        &self,
        report: &MemberReport,
        lease: LeaseId,
        last: Option<i64>,
    ) -> anyhow::Result<i64> {
        let key = self.keys.member(&self.member);
        let value = encode(report).into_bytes();
        let operation = Operation::Put { key: key.clone(), value, lease: Some(lease) };
        if let Some(revision) = last {
            // The usual case in one round trip.
            let when = vec![Guard::ModRevision(key.clone(), revision)];
            let held = Txn { when, then: vec![operation.clone()] };
            if let TxnOutcome::Committed { revision } = self.store.commit(held).await? {
                return Ok(revision);
            }
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
            TxnOutcome::Committed { revision } => Ok(revision),
            TxnOutcome::Conflict => {
                Err(StoreError::Unavailable("the report changed meanwhile".into()).into())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proto::report::Server;
    use proto::{Moment, WallTime};
    use store::MemoryStore;
    use store::memory::CommitFault;

    use super::*;
    use crate::reconcile::tests::report;

    #[tokio::test]
    async fn a_report_that_goes_back_after_a_lost_answer_is_put_again() {
        let store = MemoryStore::new();
        let (id, _) = store.with_core(|core| core.grant(Duration::from_secs(60)));
        let keys = Keys::of(&"c".parse().unwrap());
        let well = report("a");
        let dead = Server::Dead { noticed: WallTime(1), gone: true };
        let dead = MemberReport { server: dead, ..well.clone() };
        let (said, report) = watch::channel(Some(well.clone()));
        let (_lease, lease) = watch::channel(Some(LeaseView { id, expires: Moment::default() }));
        let announcing = Announcing {
            store: Arc::new(store.clone()),
            keys: keys.clone(),
            member: well.member.clone(),
            incarnation: well.incarnation.clone(),
            report,
            lease,
        };
        let stop = CancellationToken::new();
        let task = tokio::spawn(announce(announcing, stop.clone()));
        let stored = async |wanted: &MemberReport| {
            let key = keys.member(&wanted.member);
            let looking = async {
                loop {
                    let entries = store.read(&key).await.unwrap().entries;
                    if entries.get(&key).is_some_and(|e| e.value == encode(wanted).into_bytes()) {
                        return;
                    }
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            };
            tokio::time::timeout(Duration::from_secs(10), looking).await.expect("it is put")
        };
        stored(&well).await;
        store.fail_next_commit(CommitFault::AnswerLost);
        said.send_replace(Some(dead.clone()));
        stored(&dead).await;
        said.send_replace(Some(well.clone()));
        stored(&well).await;
        stop.cancel();
        task.await.unwrap();
    }
}
