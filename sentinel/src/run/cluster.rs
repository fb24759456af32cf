//! One cluster's loop: campaign, then read, decide, commit, until the leadership is lost.
//!
//! The one rule: every decision rests on a read of its own. The watch only says when to read again.

use std::sync::Arc;
use std::time::Duration;

use proto::document::encode;
use proto::explanation::Explanation;
use proto::{ClusterName, ClusterSpec, ClusterState, LeaderKey, Moment};
use store::election::{Election, Leadership};
use store::keys::Keys;
use store::{Guard, Operation, Store, StoreError, Txn, TxnOutcome, Watch, WatchEvent, clock};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::listen::Counters;
use super::presence;
use crate::decide::decide;
use crate::invariant;
use crate::observe::{Stored, Timers, World, observe};
use crate::plan::{HistoryWrite, Plan, Verdict};

/// A leader that dies costs this long only if the primary dies with it; nothing of safety rests on it.
const LEADER_TTL: Duration = Duration::from_secs(3);
/// Read at least this often: a watch can be deaf without being broken.
const SAFETY_TICK: Duration = Duration::from_secs(2);
/// Explanations are for people: they are written once nothing has happened for this long.
const QUIET: Duration = Duration::from_millis(50);
/// The pause after a store error or a lost race, so that neither becomes a tight loop.
const AFTER_TROUBLE: Duration = Duration::from_millis(100);
/// How long a sentinel that cannot read the state leaves the field to a newer one.
const STAND_BY: Duration = Duration::from_secs(10);

/// One cluster and what is needed to care for it.
pub(super) struct Care {
    store: Arc<dyn Store>,
    cluster: ClusterName,
    keys: Keys,
    me: LeaderKey,
    counters: Counters,
}

/// Why leading ended.
enum End {
    Stopped,
    Lost,
    /// Something in the store is not for this binary to judge.
    StandBy(String),
}

/// What one leader remembers between decisions.
#[derive(Default)]
struct Memory {
    timers: Timers,
    watch: Option<Watch>,
    explained: Option<Explanation>,
    /// The last spec that could be read.
    spec: Option<ClusterSpec>,
    complained: Option<String>,
}

impl Memory {
    /// Logs a problem once, not each time that it is met.
    fn complain(&mut self, cluster: &ClusterName, problem: String) {
        if self.complained.as_ref() != Some(&problem) {
            error!(%cluster, %problem, "cannot go on");
            self.complained = Some(problem);
        }
    }
}

/// What became of one decision.
enum Next {
    /// Read and decide again at once.
    Again,
    /// The store did not do as asked.
    AfterPause,
    Wait(Box<Plan>),
}

impl Care {
    pub(super) fn new(
        store: Arc<dyn Store>,
        cluster: ClusterName,
        me: LeaderKey,
        counters: Counters,
    ) -> Self {
        let keys = Keys::of(&cluster);
        Self { store, cluster, keys, me, counters }
    }

    pub(super) async fn run(self, stop: CancellationToken) {
        tokio::join!(
            presence::keep(&*self.store, &self.keys, &self.me, &stop),
            self.campaign(&stop)
        );
    }

    async fn campaign(&self, stop: &CancellationToken) {
        let value = encode(&self.me).into_bytes();
        let election =
            Election::new(Arc::clone(&self.store), self.keys.leader(), value, LEADER_TTL);
        let cluster = &self.cluster;
        while !stop.is_cancelled() {
            let leadership = tokio::select! {
                leadership = election.campaign() => leadership,
                () = stop.cancelled() => return,
            };
            self.counters.update(cluster, |c| c.leading = true);
            let end = self.lead(&leadership, stop).await;
            self.counters.update(cluster, |c| c.leading = false);
            leadership.resign().await;
            match end {
                End::Stopped => return,
                End::Lost => warn!(%cluster, "leadership lost, campaigning again"),
                End::StandBy(problem) => {
                    error!(%cluster, %problem, "stands by: another sentinel may lead");
                    tokio::select! {
                        () = tokio::time::sleep(STAND_BY) => {}
                        () = stop.cancelled() => return,
                    }
                }
            }
        }
    }

    async fn lead(&self, leadership: &Leadership, stop: &CancellationToken) -> End {
        let mut memory = Memory::default();
        loop {
            let step = async {
                match self.step(leadership, &mut memory).await {
                    Ok(Next::Again) => None,
                    Ok(Next::AfterPause) => {
                        tokio::time::sleep(AFTER_TROUBLE).await;
                        None
                    }
                    Ok(Next::Wait(plan)) => {
                        self.wait(leadership, &mut memory, *plan).await;
                        None
                    }
                    Err(end) => Some(end),
                }
            };
            // A commit that is cut here is an unknown outcome like any other: whoever leads next reads first.
            tokio::select! {
                ended = step => if let Some(end) = ended { return end },
                () = stop.cancelled() => return End::Stopped,
                () = leadership.lost.cancelled() => return End::Lost,
            }
        }
    }

    /// Reads, decides and commits once.
    async fn step(&self, leadership: &Leadership, memory: &mut Memory) -> Result<Next, End> {
        self.drain(memory);
        let snapshot = match self.store.read(self.keys.prefix()).await {
            Ok(snapshot) => snapshot,
            Err(problem) => {
                memory.complain(&self.cluster, format!("read the cluster: {problem}"));
                return Ok(Next::AfterPause);
            }
        };
        if memory.watch.is_none() {
            match self.store.watch(self.keys.prefix(), snapshot.revision + 1).await {
                Ok(watch) => memory.watch = Some(watch),
                Err(problem) => warn!(cluster = %self.cluster, %problem, "watch the cluster"),
            }
        }
        let mut world = observe(&snapshot, &self.keys, &self.me.id);
        let spec = self.spec(&world, memory)?;
        let (now, wall) = (clock::now(), clock::wall());
        world.mark(&spec, &mut memory.timers, now);
        let state = self.state(&world)?;
        let mut plan = decide(&spec, state, &world.seen, now, wall);
        match plan.verdict.clone() {
            Verdict::Change { next, history, why } => {
                let broken = invariant::check(state, &next, &world.seen);
                if !broken.is_empty() {
                    let broken: Vec<String> = broken.iter().map(ToString::to_string).collect();
                    let problem = format!("refused to commit \"{why}\": {}", broken.join("; "));
                    self.counters.update(&self.cluster, |c| c.refused += 1);
                    memory.complain(&self.cluster, problem.clone());
                    plan.explanation.warnings.push(problem);
                    return Ok(Next::Wait(Box::new(plan)));
                }
                let txn = self.change(leadership, &world, &next, &history);
                Ok(self.commit(txn, memory, next.number.0, &why).await)
            }
            Verdict::Record { history, why } => {
                let number = state.map_or(0, |s| s.number.0);
                let txn = self.record(leadership, &world, &history);
                Ok(self.commit(txn, memory, number, &why).await)
            }
            Verdict::Wait(_) => Ok(Next::Wait(Box::new(plan))),
        }
    }

    /// A spec that cannot be read must not stop failovers: the last good one goes on.
    fn spec(&self, world: &World, memory: &mut Memory) -> Result<ClusterSpec, End> {
        let problem = match &world.spec {
            Stored::Known(spec) => {
                memory.spec = Some(spec.clone());
                return Ok(spec.clone());
            }
            Stored::Absent => {
                "there is no spec: create the cluster with `pgdeputy init`".to_owned()
            }
            Stored::Newer(problem) | Stored::Malformed(problem) => problem.to_string(),
        };
        match memory.spec.clone() {
            Some(last) if !matches!(world.spec, Stored::Newer(_)) => {
                memory.complain(&self.cluster, format!("{problem}; the last good spec goes on"));
                Ok(last)
            }
            Some(_) | None => Err(End::StandBy(problem)),
        }
    }

    fn state<'a>(&self, world: &'a World) -> Result<Option<&'a ClusterState>, End> {
        match &world.state {
            Stored::Known(state) => Ok(Some(state)),
            Stored::Absent => Ok(None),
            Stored::Newer(problem) | Stored::Malformed(problem) => {
                Err(End::StandBy(problem.to_string()))
            }
        }
    }

    fn change(
        &self,
        leadership: &Leadership,
        world: &World,
        next: &ClusterState,
        history: &[HistoryWrite],
    ) -> Txn {
        let key = self.keys.state();
        let when = vec![leadership.guard.clone(), unchanged(&key, world.state_revision)];
        let mut then = vec![Operation::Put { key, value: encode(next).into_bytes(), lease: None }];
        then.extend(history.iter().map(|write| self.put_record(write)));
        Txn { when, then }
    }

    fn record(&self, leadership: &Leadership, world: &World, history: &[HistoryWrite]) -> Txn {
        let mut when =
            vec![leadership.guard.clone(), unchanged(&self.keys.state(), world.state_revision)];
        when.extend(history.iter().map(|write| {
            unchanged(&self.keys.history(write.epoch, write.restart), world.history_revision)
        }));
        Txn { when, then: history.iter().map(|write| self.put_record(write)).collect() }
    }

    fn put_record(&self, write: &HistoryWrite) -> Operation {
        let key = self.keys.history(write.epoch, write.restart);
        Operation::Put { key, value: encode(&write.record).into_bytes(), lease: None }
    }

    /// Losing the race changes nothing, and neither does an unknown outcome: the next read tells.
    async fn commit(&self, txn: Txn, memory: &mut Memory, number: u64, why: &str) -> Next {
        let cluster = &self.cluster;
        match self.store.commit(txn).await {
            Ok(TxnOutcome::Committed { revision }) => {
                info!(%cluster, number, revision, %why, "committed");
                self.counters.update(cluster, |c| c.commits += 1);
                memory.complained = None;
                Next::Again
            }
            Ok(TxnOutcome::Conflict) => {
                info!(%cluster, number, %why, "superseded, looking again");
                Next::AfterPause
            }
            Err(StoreError::Unknown(problem)) => {
                warn!(%cluster, number, %why, %problem, "outcome unknown, looking again");
                Next::AfterPause
            }
            Err(problem) => {
                warn!(%cluster, number, %why, %problem, "commit");
                Next::AfterPause
            }
        }
    }

    /// Forgets hints that came before the read that follows.
    fn drain(&self, memory: &mut Memory) {
        use tokio::sync::mpsc::error::TryRecvError;
        while let Some(watch) = memory.watch.as_mut() {
            match watch.events.try_recv() {
                Ok(_) => {}
                Err(TryRecvError::Empty) => return,
                Err(TryRecvError::Disconnected) => memory.watch = None,
            }
        }
    }

    /// Waits for something that matters, and explains the plan once it is quiet.
    async fn wait(&self, leadership: &Leadership, memory: &mut Memory, plan: Plan) {
        let tick = clock::now() + SAFETY_TICK;
        let until = plan.wake_at.map_or(tick, |at| at.min(tick));
        if memory.explained.as_ref() != Some(&plan.explanation) {
            let quiet = (clock::now() + QUIET).min(until);
            if self.woken(memory, quiet).await {
                return;
            }
            self.explain(leadership, memory, plan.explanation).await;
        }
        self.woken(memory, until).await;
    }

    /// Returns true when something happened, false at `until`.
    async fn woken(&self, memory: &mut Memory, until: Moment) -> bool {
        // Just past the moment: a timer that fires early would decide the same again.
        let left = until.since(clock::now()) + Duration::from_millis(1);
        let deadline = tokio::time::sleep(left);
        tokio::pin!(deadline);
        loop {
            let Some(watch) = memory.watch.as_mut() else {
                tokio::time::sleep(AFTER_TROUBLE.min(left)).await;
                return true;
            };
            tokio::select! {
                batch = watch.events.recv() => match batch {
                    Some(batch) if batch.iter().any(|event| self.matters(event)) => return true,
                    Some(_) => {}
                    None => memory.watch = None,
                },
                () = &mut deadline => return false,
            }
        }
    }

    /// What keepers and operators write. The leader's own writes are followed by a read anyway.
    fn matters(&self, event: &WatchEvent) -> bool {
        let key = self.keys.strip(event.key()).unwrap_or_default();
        key == "spec" || key == "primary" || key.starts_with("members/")
    }

    async fn explain(
        &self,
        leadership: &Leadership,
        memory: &mut Memory,
        explanation: Explanation,
    ) {
        let put = Operation::Put {
            key: self.keys.explanation(),
            value: encode(&explanation).into_bytes(),
            lease: Some(leadership.lease),
        };
        let txn = Txn { when: vec![leadership.guard.clone()], then: vec![put] };
        match self.store.commit(txn).await {
            Ok(TxnOutcome::Committed { .. }) => {
                info!(cluster = %self.cluster, verdict = %explanation.verdict, "waiting");
                memory.explained = Some(explanation);
            }
            Ok(TxnOutcome::Conflict) => {}
            Err(problem) => warn!(cluster = %self.cluster, %problem, "write the explanation"),
        }
    }
}

fn unchanged(key: &str, revision: Option<i64>) -> Guard {
    match revision {
        Some(revision) => Guard::ModRevision(key.to_owned(), revision),
        None => Guard::Absent(key.to_owned()),
    }
}
