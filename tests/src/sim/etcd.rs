//! etcd as its clients meet it: linearizable, but answers come late or never, and watches lag or break.
//!
//! The one rule: a request that was given up may still be carried out later. Rules of keys, revisions and leases are
//! those of the store's own in-memory twin, which is compared with a real etcd elsewhere.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use proto::ClusterState;
use proto::document::decode;
use store::{Entry, LeaseId, MemoryCore, Snapshot, StoreError, Txn, TxnOutcome, WatchEvent};
use tokio::sync::{Notify, mpsc, oneshot};

use super::executor::{Micros, Node, Sim, micros};
use super::net::Near;
use super::rng::Stream;

/// The deadline that the real client has for a call.
const CALL_DEADLINE: Micros = 2_000_000;

/// The store, and what is wrong with it.
pub struct Etcd {
    pub core: MemoryCore,
    /// No answers while above zero: no quorum, or all of it stopped.
    pub away: u32,
    /// Puts and grants are refused.
    pub full: bool,
    /// How many of a hundred calls are answered with an error, before or after they were applied.
    pub flaky_percent: u64,
    /// Copies of it, oldest first.
    pub backups: Vec<MemoryCore>,
    pub restored_at: Micros,
    back: Rc<Notify>,
    watchers: BTreeMap<u64, Watcher>,
    /// The last state that a renewal read, and what it was made from: most renewals read the same.
    state: Option<(Vec<u8>, ClusterState)>,
}

struct Watcher {
    prefix: String,
    next_revision: i64,
    events: Rc<Near<Vec<WatchEvent>>>,
}

/// What a watcher is told.
type News = (Rc<Near<Vec<WatchEvent>>>, Vec<WatchEvent>);

impl Default for Etcd {
    fn default() -> Self {
        let (core, back) = (MemoryCore::new(), Rc::new(Notify::new()));
        Self {
            core,
            away: 0,
            full: false,
            flaky_percent: 0,
            backups: Vec::new(),
            restored_at: 0,
            back,
            watchers: BTreeMap::new(),
            state: None,
        }
    }
}

/// What a call does at the store.
type Work<R> = Box<dyn FnOnce(&mut MemoryCore) -> Result<R, StoreError>>;

/// How a call that was not answered is told.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Call {
    Read,
    KeepAlive,
    Write,
}

impl Call {
    fn unanswered(self) -> StoreError {
        match self {
            Call::Read => StoreError::Unavailable("no answer".into()),
            Call::KeepAlive | Call::Write => StoreError::Unknown("no answer".into()),
        }
    }
}

impl Sim {
    async fn etcd_call<R: 'static>(
        &self,
        from: Node,
        call: Call,
        work: Work<R>,
    ) -> Result<R, StoreError> {
        let (answer, answered) = oneshot::channel();
        let sim = self.clone();
        self.on_the_wire(async move {
            sim.pass(from, Node::Etcd).await;
            sim.until_etcd_is_back().await;
            let answered = sim.etcd_serve(call, work);
            sim.pass(Node::Etcd, from).await;
            let _ = answer.send(answered);
        });
        match self.within(CALL_DEADLINE, answered).await {
            Some(Ok(answered)) => answered,
            Some(Err(_)) | None => Err(call.unanswered()),
        }
    }

    async fn until_etcd_is_back(&self) {
        loop {
            let away = self.with(|w| (w.etcd.away > 0).then(|| w.etcd.back.clone()));
            let Some(back) = away else { return };
            back.notified().await;
            self.sleep(self.between(Stream::Store, 100, 20_000)).await;
        }
    }

    fn etcd_serve<R>(&self, call: Call, work: Work<R>) -> Result<R, StoreError> {
        let trouble = self.with(|w| w.etcd.flaky_percent);
        let (fails, after) = self.chance(Stream::Store, |r| (r.percent(trouble), r.percent(50)));
        if fails && !after {
            return Err(StoreError::Unavailable("injected: not applied".into()));
        }
        if call == Call::Write && self.with(|w| w.etcd.full) {
            return Err(StoreError::Refused("etcdserver: mvcc: database space exceeded".into()));
        }
        let done = self.with_etcd(work);
        if fails { Err(call.unanswered()) } else { done }
    }

    /// Does something with the store at its present time, and tells watchers and oracle.
    pub fn with_etcd<R>(&self, work: impl FnOnce(&mut MemoryCore) -> R) -> R {
        let now = self.now();
        let (result, changes) = self.with(|w| {
            let core = &mut w.etcd.core;
            let before = core.revision();
            let behind = now.saturating_sub(micros(core.now().boot_time()));
            core.advance(Duration::from_micros(behind));
            let result = work(core);
            let changes = match core.revision() > before {
                true => core.events_since("", before + 1).unwrap_or_default(),
                false => Vec::new(),
            };
            (result, changes)
        });
        if !changes.is_empty() {
            for event in changes.iter().flatten() {
                self.oracle_store(event);
            }
            self.tell_watchers();
        }
        result
    }

    fn tell_watchers(&self) {
        for (watcher, batch) in self.with(|w| w.etcd.news()) {
            let _ = watcher.send(batch);
        }
    }

    pub async fn etcd_read(&self, from: Node, prefix: &str) -> Result<Snapshot, StoreError> {
        let prefix = prefix.to_owned();
        let work: Work<Snapshot> = Box::new(move |core| Ok(core.read(&prefix)));
        self.etcd_call(from, Call::Read, work).await
    }

    pub async fn etcd_commit(&self, from: Node, txn: Txn) -> Result<TxnOutcome, StoreError> {
        self.etcd_call(from, Call::Write, Box::new(move |core| core.commit(txn))).await
    }

    pub async fn etcd_grant(
        &self,
        from: Node,
        ttl: Duration,
    ) -> Result<(LeaseId, Duration), StoreError> {
        self.etcd_call(from, Call::Write, Box::new(move |core| Ok(core.grant(ttl)))).await
    }

    pub async fn etcd_keep_alive(&self, from: Node, lease: LeaseId) -> Result<(), StoreError> {
        self.etcd_call(from, Call::KeepAlive, Box::new(move |core| core.keep_alive(lease))).await
    }

    pub async fn etcd_revoke(&self, from: Node, lease: LeaseId) -> Result<(), StoreError> {
        let work: Work<()> = Box::new(move |core| {
            core.revoke(lease);
            Ok(())
        });
        self.etcd_call(from, Call::KeepAlive, work).await
    }

    /// Opens a watch; its channel closes when it breaks.
    pub async fn etcd_watch(
        &self,
        from: Node,
        prefix: &str,
        from_revision: i64,
    ) -> Result<mpsc::UnboundedReceiver<Vec<WatchEvent>>, StoreError> {
        let (events, received) = self.wire(Node::Etcd, from);
        let (id, prefix, sim) = (self.fresh(), prefix.to_owned(), self.clone());
        self.etcd_call(from, Call::Read, Box::new(move |_| Ok(()))).await?;
        sim.with(|w| {
            let events = Rc::new(events);
            let watcher = Watcher { prefix, next_revision: from_revision, events };
            w.etcd.watchers.insert(id, watcher);
        });
        sim.tell_watchers();
        Ok(received)
    }

    /// Lets leases end when they are due. A store that is away ends none.
    pub fn start_etcd(&self) {
        let sim = self.clone();
        self.on_the_wire(async move {
            loop {
                sim.sleep(200_000).await;
                sim.until_etcd_is_back().await;
                let next = sim.with(|w| w.etcd.core.next_expiry());
                let next = next.map_or(u64::MAX, |at| micros(at.boot_time()));
                if next < sim.now() + 200_000 {
                    sim.sleep_until(next).await;
                    sim.until_etcd_is_back().await;
                    sim.with_etcd(|_| ());
                }
            }
        });
    }

    /// Brings the store back; a new leader of it gives every lease its full time again.
    pub fn etcd_returns(&self, new_leader: bool) {
        let now = self.now();
        self.with(|w| {
            w.etcd.away = w.etcd.away.saturating_sub(1);
            if new_leader {
                let behind = now.saturating_sub(micros(w.etcd.core.now().boot_time()));
                w.etcd.core.change_leader(Duration::from_micros(behind));
            }
            w.etcd.back.notify_waiters();
        });
    }
}

impl Etcd {
    /// Returns the state that an entry holds.
    pub fn decoded(&mut self, entry: &Entry) -> Option<ClusterState> {
        if self.state.as_ref().is_none_or(|(bytes, _)| *bytes != entry.value) {
            let state = decode(&entry.value).ok()?;
            self.state = Some((entry.value.clone(), state));
        }
        self.state.as_ref().map(|(_, state)| state.clone())
    }

    /// Returns what each watcher is to hear; one that lags behind the compaction, or is gone, hears no more.
    fn news(&mut self) -> Vec<News> {
        let (core, mut news) = (&self.core, Vec::new());
        self.watchers.retain(|_, watcher| {
            let Ok(batches) = core.events_since(&watcher.prefix, watcher.next_revision) else {
                return false;
            };
            watcher.next_revision = watcher.next_revision.max(core.revision() + 1);
            news.extend(batches.into_iter().map(|batch| (watcher.events.clone(), batch)));
            !watcher.events.is_closed()
        });
        news
    }

    /// Puts a backup in the place of the store: its keys, its revision, and its leases with their full time.
    pub fn restore(&mut self, mut backup: MemoryCore, id: Option<&str>, now: Micros) {
        if let Some(id) = id {
            backup.set_cluster_id(id);
        }
        self.restored_at = now;
        // The ids of leases are drawn by chance, and one that lives elsewhere is not granted again.
        let (beyond, _) = self.core.grant(Duration::from_secs(1));
        while let (lease, _) = backup.grant(Duration::from_secs(1))
            && lease < beyond
        {
            backup.revoke(lease);
        }
        let behind = now.saturating_sub(micros(backup.now().boot_time()));
        backup.change_leader(Duration::from_micros(behind));
        self.core = backup;
        self.watchers.clear();
    }

    /// Breaks every watch, as a restart of the member that serves them does.
    pub fn cancel_watches(&mut self) {
        self.watchers.clear();
    }

    /// Forgets the history; who watches from before has to read anew.
    pub fn compact(&mut self) {
        let revision = self.core.revision();
        self.core.compact(revision);
    }
}
