//! One cluster's loop: campaign, then read, decide, commit, until the leadership is lost.
//!
//! The one rule: every decision rests on a read of its own. The watch only says when to read again.

use std::sync::Arc;
use std::time::Duration;

use proto::document::encode;
use proto::drill::DrillTarget;
use proto::explanation::Explanation;
use proto::{ClusterName, ClusterSpec, ClusterState, LeaderKey, Moment, Phase};
use store::drills::carry_out;
use store::election::{Election, Leadership};
use store::keys::Keys;
use store::{Store, StoreError, Txn, TxnOutcome, clock};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::drill::Drilled;
use super::hearing::{self, Hearing};
use super::listen::Counters;
use super::wake::Wake;
use super::{presence, probe, write};
use crate::Drills;
use crate::decide::decide;
use crate::invariant;
use crate::observe::{Observations, Probe, Stored, Timers, World, observe};
use crate::plan::{Plan, Verdict, WaitingOn};

/// A leader that is never heard by the others (see `hearing`) costs this long if the primary dies with it; nothing of
/// safety rests on it.
const LEADER_TTL: Duration = Duration::from_secs(3);
/// Read at least this often: a watch can be deaf without being broken.
const SAFETY_TICK: Duration = Duration::from_secs(2);
/// Explanations are for people: they wait until nothing has happened for this long, out of a
/// failover's way.
const QUIET: Duration = Duration::from_millis(50);
/// Where it never gets quiet they are written nevertheless.
const EXPLAIN_WITHIN: Duration = Duration::from_secs(1);
/// The pause after a store error or a lost race, so that neither becomes a tight loop.
const AFTER_TROUBLE: Duration = Duration::from_millis(100);
/// How long a leader that has resigned leaves the field to others: their watch tells them within milliseconds.
const STAND_BACK: Duration = Duration::from_secs(2);
/// How long a sentinel that cannot read the state leaves the field to a newer one.
const STAND_BY: Duration = Duration::from_secs(10);

/// One cluster and what is needed to care for it.
pub(super) struct Care {
    store: Arc<dyn Store>,
    cluster: ClusterName,
    keys: Keys,
    me: LeaderKey,
    counters: Counters,
    hearing: Arc<Hearing>,
    drilled: Drilled,
}

/// Why leading ended.
enum End {
    Stopped,
    Lost,
    /// By a drill, so that another one leads.
    Resigned,
    /// Something in the store is not for this binary to judge.
    StandBy(String),
}

/// What one leader remembers between decisions.
#[derive(Default)]
struct Memory {
    timers: Timers,
    wake: Wake,
    probe: Option<Probe>,
    explained: Option<Explanation>,
    /// Since when the explanation in the store is not the last one.
    unexplained: Option<Moment>,
    /// What clients have yet to be told; like the explanation it waits until it is quiet.
    news: Option<Txn>,
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
    /// The cluster has not been created.
    NoSpec,
    Wait(Box<Plan>),
    /// Ask the primary's keeper, and decide again.
    Probe(probe::Target),
}

impl Care {
    pub(super) fn new(
        store: Arc<dyn Store>,
        cluster: ClusterName,
        (me, counters, hearing): (LeaderKey, Counters, Arc<Hearing>),
        drills: Drills,
    ) -> Self {
        let keys = Keys::of(&cluster);
        let drilled = Drilled::new(drills);
        Self { store, cluster, keys, me, counters, hearing, drilled }
    }

    pub(super) async fn run(self, stop: CancellationToken) {
        let own = DrillTarget::Sentinel(self.me.id.clone());
        tokio::join!(
            presence::keep(&*self.store, &self.keys, &self.me, &stop),
            self.campaign(&stop),
            carry_out(&*self.store, &self.keys, (&own, &self.drilled), &stop),
        );
    }

    async fn campaign(&self, stop: &CancellationToken) {
        let value = encode(&self.me).into_bytes();
        let store = Arc::clone(&self.store);
        let election = Election::new(store, self.keys.leader(), value, LEADER_TTL);
        let cluster = &self.cluster;
        while !stop.is_cancelled() {
            let leadership = tokio::select! {
                leadership = election.campaign() => leadership,
                () = hearing::depose(&self.hearing, &*self.store, &self.keys) => continue,
                () = stop.cancelled() => return,
            };
            self.counters.update(cluster, |c| c.leading = true);
            // Before a drill may see that it leads.
            let resign = self.drilled.resign.subscribe();
            self.drilled.leads.send_replace(true);
            let end = self.lead(&leadership, resign, stop).await;
            self.counters.update(cluster, |c| c.leading = false);
            self.drilled.leads.send_replace(false);
            leadership.resign().await;
            match end {
                End::Stopped => return,
                End::Lost => warn!(%cluster, "leadership lost, campaigning again"),
                End::Resigned => {
                    warn!(%cluster, "a drill made this leader step down");
                    tokio::select! {
                        () = tokio::time::sleep(STAND_BACK) => {}
                        () = stop.cancelled() => return,
                    }
                }
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

    async fn lead(
        &self,
        leadership: &Leadership,
        mut resign: watch::Receiver<u64>,
        stop: &CancellationToken,
    ) -> End {
        let mut memory = Memory::default();
        loop {
            // A commit that is cut here is an unknown outcome like any other: whoever leads next
            // reads first.
            tokio::select! {
                ended = self.turn(leadership, &mut memory) => if let Err(end) = ended { return end },
                () = stop.cancelled() => return End::Stopped,
                () = leadership.lost.cancelled() => return End::Lost,
                _ = resign.changed() => return End::Resigned,
            }
        }
    }

    /// One decision, and the wait for the next.
    async fn turn(&self, leadership: &Leadership, memory: &mut Memory) -> Result<(), End> {
        match self.step(leadership, memory).await? {
            Next::Again => {}
            Next::AfterPause => tokio::time::sleep(AFTER_TROUBLE).await,
            // Leading on, because each election costs the store two revisions.
            Next::NoSpec => {
                memory.wake.woken(&self.keys, clock::now() + SAFETY_TICK).await;
            }
            Next::Wait(plan) => self.wait(leadership, memory, *plan).await,
            Next::Probe(target) => tokio::select! {
                answer = probe::ask(&target) => memory.probe = Some(answer),
                // What happens meanwhile may tell more.
                () = memory.wake.happens(&self.keys) => {}
            },
        }
        Ok(())
    }

    /// Reads, decides and commits once.
    async fn step(&self, leadership: &Leadership, memory: &mut Memory) -> Result<Next, End> {
        memory.wake.drain();
        let snapshot = match self.store.read(self.keys.prefix()).await {
            Ok(snapshot) => snapshot,
            Err(problem) => {
                memory.complain(&self.cluster, format!("read the cluster: {problem}"));
                return Ok(Next::AfterPause);
            }
        };
        memory.wake.follow(&*self.store, &self.keys, &snapshot).await;
        let mut world = observe(&snapshot, &self.keys, &self.me.id);
        let Some(spec) = self.spec(&world, memory)? else { return Ok(Next::NoSpec) };
        // Before the timers too: they are read out of the state.
        agreed(&world)?;
        world.seen.probe = memory.probe;
        let (now, wall) = (clock::now(), clock::wall());
        world.mark(&spec, &mut memory.timers, now);
        let state = agreed(&world)?;
        let mut plan = decide(&spec, state, &world.seen, now, wall);
        if let Some(problem) = refusal(state, &plan, &world.seen) {
            self.counters.update(&self.cluster, |c| c.refused += 1);
            memory.complain(&self.cluster, problem.clone());
            plan.explanation.warnings.push(problem);
            return Ok(Next::Wait(Box::new(plan)));
        }
        #[cfg(feature = "mistakes")]
        crate::mistakes::mistaken(state, &world.seen, &mut plan);
        let guard = &leadership.guard;
        memory.news = write::news(&self.keys, guard, &world, &plan.verdict);
        match write::decided(&self.keys, guard, &world, &plan.verdict) {
            Some(txn) => Ok(self.commit(txn, memory, &plan).await),
            None => Ok(match self.to_ask(&world, &plan) {
                Some(target) => Next::Probe(target),
                None => Next::Wait(Box::new(plan)),
            }),
        }
    }

    /// Whom the decider wants the leader to ask.
    fn to_ask(&self, world: &World, plan: &Plan) -> Option<probe::Target> {
        let Verdict::Wait(WaitingOn::OwnProbe { primary }) = &plan.verdict else { return None };
        let (Stored::Known(state), Some(report)) = (&world.state, world.seen.members.get(primary))
        else {
            return None;
        };
        let address = report.http_address.clone();
        let (cluster, epoch) = (self.cluster.clone(), state.epoch);
        Some(probe::Target { cluster, epoch, primary: primary.clone(), address })
    }

    /// A spec that cannot be read must not stop failovers: the last good one goes on.
    fn spec(&self, world: &World, memory: &mut Memory) -> Result<Option<ClusterSpec>, End> {
        let problem = match &world.spec {
            Stored::Known(spec) => {
                memory.spec = Some(spec.clone());
                return Ok(Some(spec.clone()));
            }
            Stored::Absent => {
                "there is no spec under this name: check --cluster and --etcd, or create the cluster with \
                 `pgdeputy init`; waiting"
                    .to_owned()
            }
            Stored::Newer(problem) | Stored::Malformed(problem) => problem.to_string(),
        };
        match memory.spec.clone() {
            Some(last) if !matches!(world.spec, Stored::Newer(_)) => {
                memory.complain(&self.cluster, format!("{problem}; the last good spec goes on"));
                Ok(Some(last))
            }
            None if world.spec == Stored::Absent => {
                memory.complain(&self.cluster, problem);
                Ok(None)
            }
            Some(_) | None => Err(End::StandBy(problem)),
        }
    }

    /// Losing the race changes nothing, and neither does an unknown outcome: the next read tells.
    async fn commit(&self, txn: Txn, memory: &mut Memory, plan: &Plan) -> Next {
        let (cluster, why) = (&self.cluster, &plan.explanation.verdict);
        match self.store.commit(txn).await {
            Ok(TxnOutcome::Committed { revision }) => {
                info!(%cluster, on = %plan.explanation.state, revision, %why, "committed");
                self.counters.update(cluster, |c| c.commits += 1);
                memory.complained = None;
                return Next::Again;
            }
            Ok(TxnOutcome::Conflict) => info!(%cluster, %why, "superseded, looking again"),
            Err(StoreError::Unknown(problem)) => {
                warn!(%cluster, %why, %problem, "outcome unknown, looking again");
            }
            Err(problem) => warn!(%cluster, %why, %problem, "not committed, looking again"),
        }
        Next::AfterPause
    }

    /// Waits for something that matters, and explains the plan once it is quiet.
    async fn wait(&self, leadership: &Leadership, memory: &mut Memory, plan: Plan) {
        let now = clock::now();
        let tick = now + SAFETY_TICK;
        let until = plan.wake_at.map_or(tick, |at| at.min(tick));
        let is_explained = memory.explained.as_ref() == Some(&plan.explanation);
        if is_explained && memory.news.is_none() {
            memory.unexplained = None;
        } else {
            let late = *memory.unexplained.get_or_insert(now) + EXPLAIN_WITHIN;
            let quiet = (now + QUIET).min(late).min(until);
            let woken = memory.wake.woken(&self.keys, quiet).await;
            if woken && clock::now() < late {
                return;
            }
            if let Some(news) = memory.news.take() {
                self.tell(news).await;
            }
            if is_explained {
                memory.unexplained = None;
            } else {
                self.explain(leadership, memory, plan.explanation).await;
            }
            // What woke it is taken out of the watch: nothing else would wake it again.
            if woken {
                return;
            }
        }
        memory.wake.woken(&self.keys, until).await;
    }

    /// What is not told now is found to be missing at the next look.
    async fn tell(&self, news: Txn) {
        if let Err(problem) = self.store.commit(news).await {
            warn!(cluster = %self.cluster, %problem, "write the topology");
        }
    }

    async fn explain(&self, leadership: &Leadership, memory: &mut Memory, reason: Explanation) {
        let cluster = &self.cluster;
        let held = (&leadership.guard, leadership.lease);
        match self.store.commit(write::explanation(&self.keys, held, &reason)).await {
            Ok(TxnOutcome::Committed { .. }) => {
                info!(%cluster, verdict = %reason.verdict, "waiting");
                memory.explained = Some(reason);
                memory.unexplained = None;
            }
            Ok(TxnOutcome::Conflict) => {}
            Err(problem) => warn!(%cluster, %problem, "write the explanation"),
        }
    }
}

/// A state that is damaged or newer is nothing to decide on, and never written over.
fn agreed(world: &World) -> Result<Option<&ClusterState>, End> {
    match &world.state {
        Stored::Known(state) => match damage(state) {
            Some(problem) => Err(End::StandBy(problem)),
            None => Ok(Some(state)),
        },
        Stored::Absent => Ok(None),
        Stored::Newer(problem) | Stored::Malformed(problem) => {
            Err(End::StandBy(problem.to_string()))
        }
    }
}

/// Returns what is wrong with a state that no sentinel has written so, such as one that was edited by hand.
fn damage(state: &ClusterState) -> Option<String> {
    let founding = matches!(state.phase, Phase::Founding { .. });
    if state.primary.is_none() && !founding {
        return Some(format!("state {} names no primary: it is damaged", state.number));
    }
    let cfg = state.cfgs.iter().find(|cfg| !cfg.is_well_formed())?;
    Some(format!("state {} holds a Cfg that cannot be, {cfg}: it is damaged", state.number))
}

/// Returns why a plan must not be committed, if so.
fn refusal(state: Option<&ClusterState>, plan: &Plan, seen: &Observations) -> Option<String> {
    let Verdict::Change { next, why, .. } = &plan.verdict else { return None };
    let broken = invariant::check(state, next, seen);
    let broken: Vec<String> = broken.iter().map(ToString::to_string).collect();
    (!broken.is_empty()).then(|| format!("refused to commit \"{why}\": {}", broken.join("; ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use store::Operation;
    use store::memory::MemoryStore;

    /// What a leader waits with whose explanation has been overdue for long.
    async fn overdue(care: &Care) -> (Leadership, Memory, Plan) {
        let election =
            Election::new(Arc::clone(&care.store), care.keys.leader(), Vec::new(), LEADER_TTL);
        let leadership = election.campaign().await;
        let mut memory = Memory { unexplained: Some(Moment::default()), ..Memory::default() };
        let snapshot = care.store.read(care.keys.prefix()).await.expect("a snapshot");
        memory.wake.follow(&*care.store, &care.keys, &snapshot).await;
        let seen = Observations::default();
        let mut plan = decide(&ClusterSpec::default(), None, &seen, clock::now(), clock::wall());
        plan.verdict = Verdict::Wait(WaitingOn::EmptyMember);
        (leadership, memory, plan)
    }

    #[tokio::test]
    async fn a_report_that_comes_when_the_explanation_is_overdue_is_looked_at_at_once() {
        let store = Arc::new(MemoryStore::new());
        let me = LeaderKey {
            id: "s1".into(),
            host: "h".into(),
            listen: None,
            echo: None,
            pgdeputy_version: "0".into(),
        };
        let cluster = "c1".parse().expect("a name");
        let hearing = Hearing::open("s1".into(), &[]).await.expect("a UDP socket");
        let care = Care::new(
            store.clone(),
            cluster,
            (me, Counters::default(), hearing),
            Drills::default(),
        );
        let (leadership, mut memory, plan) = overdue(&care).await;
        let key = format!("{}members/a", care.keys.prefix());
        let report = Operation::Put { key, value: Vec::new(), lease: None };
        store.commit(Txn { when: vec![], then: vec![report] }).await.expect("the report is put");
        let begun = clock::now();
        care.wait(&leadership, &mut memory, plan).await;
        assert!(clock::now().since(begun) < SAFETY_TICK / 2, "the report was not looked at");
        assert!(memory.explained.is_some());
    }
}
