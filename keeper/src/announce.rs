//! Puts the member's report into etcd under the keeper's lease. The newest one counts; older ones are skipped.

use std::sync::Arc;
use std::time::Duration;

use proto::document::encode;
use proto::{Incarnation, MemberName, MemberReport};
use store::keys::Keys;
use store::{Guard, LeaseId, Operation, Store, StoreError, Txn, TxnOutcome};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::facts::ClusterView;
use crate::worker::LeaseView;

/// What the announcing task works with.
pub struct Announcing {
    pub store: Arc<dyn Store>,
    pub keys: Keys,
    pub member: MemberName,
    pub incarnation: Incarnation,
    pub report: watch::Receiver<Option<MemberReport>>,
    pub lease: watch::Receiver<Option<LeaseView>>,
    pub view: watch::Receiver<Arc<ClusterView>>,
}

/// Puts each new report, and the last one again under each new lease and whenever the store was read anew, until `stop`:
/// one that was set back to a backup holds the report of that time, under a lease that lives again.
pub async fn announce(mut announcing: Announcing, stop: CancellationToken) {
    let mut put: Option<(MemberReport, LeaseId)> = None;
    let mut last: Option<i64> = None;
    let mut fails = false;
    let mut reads = announcing.view.borrow().reads;
    loop {
        let reads_now = announcing.view.borrow_and_update().reads;
        if std::mem::replace(&mut reads, reads_now) != reads_now {
            put = None;
        }
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
            changed = announcing.view.changed() => if changed.is_err() { return },
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

    /// A task that announces the report of `a`, with what it is told by.
    struct Scene {
        store: MemoryStore,
        keys: Keys,
        well: MemberReport,
        said: watch::Sender<Option<MemberReport>>,
        read: watch::Sender<Arc<ClusterView>>,
        _lease: watch::Sender<Option<LeaseView>>,
        stop: CancellationToken,
        task: tokio::task::JoinHandle<()>,
    }

    fn scene() -> Scene {
        let store = MemoryStore::new();
        let (id, _) = store.with_core(|core| core.grant(Duration::from_secs(60)));
        let keys = Keys::of(&"c".parse().unwrap());
        let well = report("a");
        let (said, report) = watch::channel(Some(well.clone()));
        let (_lease, lease) = watch::channel(Some(LeaseView { id, expires: Moment::default() }));
        let (read, view) = watch::channel(Arc::default());
        let announcing = Announcing {
            store: Arc::new(store.clone()),
            keys: keys.clone(),
            member: well.member.clone(),
            incarnation: well.incarnation.clone(),
            report,
            lease,
            view,
        };
        let stop = CancellationToken::new();
        let task = tokio::spawn(announce(announcing, stop.clone()));
        Scene { store, keys, well, said, read, _lease, stop, task }
    }

    impl Scene {
        async fn stored(&self, wanted: &MemberReport) {
            let key = self.keys.member(&wanted.member);
            let looking = async {
                loop {
                    let entries = self.store.read(&key).await.unwrap().entries;
                    if entries.get(&key).is_some_and(|e| e.value == encode(wanted).into_bytes()) {
                        return;
                    }
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            };
            tokio::time::timeout(Duration::from_secs(10), looking).await.expect("it is put")
        }

        async fn ends(self) {
            self.stop.cancel();
            self.task.await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_report_that_goes_back_after_a_lost_answer_is_put_again() {
        let scene = scene();
        let dead = Server::Dead { noticed: WallTime(1), gone: true };
        let dead = MemberReport { server: dead, ..scene.well.clone() };
        scene.stored(&scene.well).await;
        scene.store.fail_next_commit(CommitFault::AnswerLost);
        scene.said.send_replace(Some(dead.clone()));
        scene.stored(&dead).await;
        scene.said.send_replace(Some(scene.well.clone()));
        scene.stored(&scene.well).await;
        scene.ends().await;
    }

    #[tokio::test]
    async fn a_report_that_a_backup_has_brought_back_does_not_stay() {
        let scene = scene();
        scene.stored(&scene.well).await;
        let backup = scene.store.with_core(|core| core.clone());
        let leaving = MemberReport { leaving: true, ..scene.well.clone() };
        scene.said.send_replace(Some(leaving.clone()));
        scene.stored(&leaving).await;
        scene.store.with_core(|core| *core = backup);
        scene.read.send_replace(Arc::new(ClusterView { reads: 1, ..ClusterView::default() }));
        scene.stored(&leaving).await;
        scene.ends().await;
    }
}
