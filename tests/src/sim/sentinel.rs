//! A simulated sentinel: the product's `observe`, `decide`, `invariant` and transactions, with a shell that campaigns and
//! reads as the product's does.

use std::cell::Cell;
use std::time::Duration;

use proto::ClusterSpec;
use sentinel::decide::decide;
use sentinel::observe::{Probe, Stored, Timers, World as Seen, observe_by};
use sentinel::plan::{Verdict, WaitingOn};
use sentinel::{invariant, write};
use store::{Guard, LeaseId, Operation, Snapshot, StoreError, Txn, TxnOutcome, WatchEvent};
use tokio::sync::mpsc;

use super::calm;
use super::executor::{Node, ProcId, Sim};
use super::net::Host;

const LEADER_TTL: Duration = Duration::from_secs(3);
const SAFETY_TICK: Duration = Duration::from_secs(2);
const AFTER_TROUBLE: Duration = Duration::from_millis(100);
/// Questions in a row that a leader may leave unanswered.
const SILENT_AFTER: u32 = 6;
const ANSWER_WITHIN: Duration = Duration::from_millis(100);

impl Sim {
    /// Starts a sentinel.
    pub fn sentinel_start(&self, number: usize) {
        let proc = self.start_process(Node::Sentinel(number));
        self.with(|w| w.sentinels[number] = Some(proc));
        let sentinel = Sentinel {
            host: self.host(Node::Sentinel(number)),
            number,
            proc,
            stood_with: Cell::default(),
        };
        self.spawn(proc, sentinel.campaign());
    }

    /// Whether a sentinel answers a candidate's question.
    async fn sentinel_answers(&self, from: Node, number: usize) -> bool {
        let to = Node::Sentinel(number);
        let Some(proc) = self.with(|w| w.sentinels[number]) else { return false };
        self.datagram(from, to).await
            && self.call(proc, async {}).1.await.is_ok()
            && self.datagram(to, from).await
    }

    /// The same where the answer takes no time that matters; else `None`.
    fn sentinel_answers_at_once(&self, from: Node, number: usize) -> Option<bool> {
        let to = Node::Sentinel(number);
        let proc = self.with(|w| w.sentinels[number])?;
        (self.is_near(from, to) && self.runs(proc)).then_some(true)
    }

    pub fn sentinel_dies(&self, number: usize) {
        if let Some(proc) = self.with(|w| w.sentinels[number].take()) {
            self.kill(proc);
        }
    }
}

struct Sentinel {
    host: Host,
    number: usize,
    proc: ProcId,
    stood_with: Cell<Option<LeaseId>>,
}

/// A leadership as this sentinel believes it.
struct Leading {
    guard: Guard,
    lease: LeaseId,
    expires: proto::Moment,
}

#[derive(Default)]
struct Memory {
    timers: Timers,
    watch: Option<mpsc::UnboundedReceiver<Vec<WatchEvent>>>,
    probe: Option<Probe>,
    spec: Option<ClusterSpec>,
    observed: Option<(Snapshot, Seen)>,
}

impl Memory {
    /// Returns what a snapshot shows: the same as the last one, where it is the same.
    fn observed(&mut self, snapshot: Snapshot, of: &Sentinel) -> Seen {
        match &self.observed {
            Some((known, seen)) if *known == snapshot => seen.clone(),
            _ => {
                let id = format!("s{}", of.number);
                let seen = of.host.sim.with(|w| {
                    let keys = w.keys.clone();
                    observe_by(&mut w.read, &snapshot, &keys, &id)
                });
                self.observed = Some((snapshot, seen.clone()));
                seen
            }
        }
    }
}

impl Sentinel {
    async fn campaign(self) {
        loop {
            match self.stand().await {
                Ok(Some(leading)) => self.lead(leading).await,
                Ok(None) => self.host.sleep(Duration::from_millis(20)).await,
                Err(_) => self.host.sleep(Duration::from_millis(300)).await,
            }
        }
    }

    /// Waits until the key is free and tries to take it.
    async fn stand(&self) -> Result<Option<Leading>, StoreError> {
        let (sim, node) = (&self.host.sim, self.host.node);
        let key = sim.with(|w| w.keys.leader());
        let snapshot = sim.etcd_read(node, &key).await?;
        let held = snapshot.entries.get(&key);
        let own = held.and_then(|held| held.lease.filter(|l| self.stood_with.get() == Some(*l)));
        if let Some(left) = own {
            sim.etcd_revoke(node, left).await?;
        } else if held.is_some() {
            let watch = sim.etcd_watch(node, &key, snapshot.revision + 1).await?;
            if !self.until_free(&snapshot.entries[&key], watch).await {
                return Ok(None);
            }
        }
        let sent = self.host.now();
        let (lease, granted) = sim.etcd_grant(node, LEADER_TTL).await?;
        self.stood_with.set(Some(lease));
        let expires = sent + LEADER_TTL.min(granted);
        let value = format!("s{}", self.number).into_bytes();
        let put = Operation::Put { key: key.clone(), value, lease: Some(lease) };
        let txn = Txn { when: vec![Guard::Absent(key.clone())], then: vec![put] };
        let created = match sim.etcd_commit(node, txn).await {
            Ok(TxnOutcome::Committed { revision }) => Some(revision),
            Ok(TxnOutcome::Conflict) => None,
            Err(StoreError::Unknown(_)) => {
                let snapshot = sim.etcd_read(node, &key).await?;
                let entry = snapshot.entries.get(&key).filter(|e| e.lease == Some(lease));
                entry.map(|e| e.create_revision)
            }
            Err(error) => return Err(error),
        };
        let Some(created) = created else {
            let _ = sim.etcd_revoke(node, lease).await;
            return Ok(None);
        };
        sim.trace(|| format!("s{} leads", self.number));
        sim.with(|w| w.counts.elections += 1);
        Ok(Some(Leading { guard: Guard::CreateRevision(key, created), lease, expires }))
    }

    /// Waits until the leader's key is gone, at most for a while. A leader that was heard and is heard no more is deposed.
    async fn until_free(
        &self,
        held: &store::Entry,
        mut watch: mpsc::UnboundedReceiver<Vec<WatchEvent>>,
    ) -> bool {
        let (sim, node) = (&self.host.sim, self.host.node);
        let leader = std::str::from_utf8(&held.value).ok().and_then(|s| s[1..].parse().ok());
        let (mut heard, mut unanswered) = (false, 0);
        for _ in 0..30 {
            let batch = tokio::select! {
                biased;
                batch = watch.recv() => Some(batch),
                () = self.host.rest(ANSWER_WITHIN, calm::LOOK) => None,
            };
            match batch {
                Some(Some(batch))
                    if batch.iter().any(|e| matches!(e, WatchEvent::Delete { .. })) =>
                {
                    return true;
                }
                Some(Some(_)) => continue,
                Some(None) => return false,
                None => {}
            }
            let Some(leader) = leader else { continue };
            let answer = match sim.sentinel_answers_at_once(node, leader) {
                None => sim.within(100_000, sim.sentinel_answers(node, leader)).await,
                answer => answer,
            };
            match answer {
                Some(true) => (heard, unanswered) = (true, 0),
                Some(false) | None => unanswered += 1,
            }
            if heard && unanswered >= SILENT_AFTER {
                let key = sim.with(|w| w.keys.leader());
                let when = vec![Guard::CreateRevision(key.clone(), held.create_revision)];
                let then = vec![Operation::Delete { key }];
                let deposed = sim.etcd_commit(node, Txn { when, then }).await;
                sim.trace(|| format!("s{} deposes s{leader}: {deposed:?}", self.number));
                return false;
            }
        }
        false
    }

    /// The leader's own question to the primary's keeper.
    async fn probe(&self, seen: &Seen, primary: &proto::MemberName) -> Option<Probe> {
        let Stored::Known(state) = &seen.state else { return None };
        let (sim, epoch) = (&self.host.sim, state.epoch);
        let member = sim.with(|w| w.index_of(primary))?;
        let (here, there) = (self.host.node, Node::Member(member));
        for _ in 0..5 {
            let asked = async {
                sim.datagram(here, there).await
                    && sim.echo_answers(member, epoch).await
                    && sim.datagram(there, here).await
            };
            let begun = self.host.now();
            if self.host.within(ANSWER_WITHIN, asked).await == Some(true) {
                return Some(Probe { epoch, answered: true, at: self.host.now() });
            }
            self.host.sleep_until(begun + ANSWER_WITHIN).await;
        }
        Some(Probe { epoch, answered: false, at: self.host.now() })
    }

    /// Decides until the lease is over by this sentinel's own clock.
    async fn lead(&self, leading: Leading) {
        let sim = self.host.sim.clone();
        let expires = crate::sim::watch::Sender::new(leading.expires);
        let (host, lease, sent_to) = (self.host.clone(), leading.lease, expires.clone());
        let upkeep = sim.spawn(self.proc, async move {
            loop {
                host.sleep(LEADER_TTL / 3).await;
                let sent = host.now();
                match host.sim.etcd_keep_alive(host.node, lease).await {
                    Ok(()) => drop(sent_to.send_replace(sent + LEADER_TTL)),
                    Err(StoreError::LeaseExpired) => {
                        sent_to.send_replace(proto::Moment::default());
                        return;
                    }
                    Err(_) => {}
                }
            }
        });
        let mut memory = Memory::default();
        let mut known = expires.subscribe();
        loop {
            let until = *known.borrow_and_update();
            if self.host.now() >= until {
                break;
            }
            tokio::select! {
                biased;
                _ = known.changed() => {}
                () = self.host.sleep_until(until) => {}
                () = self.turn(&leading, &mut memory) => {}
            }
        }
        sim.cut(upkeep);
        let _ = sim.etcd_revoke(self.host.node, leading.lease).await;
        self.host.sleep(Duration::from_millis(100)).await;
    }

    async fn turn(&self, leading: &Leading, memory: &mut Memory) {
        let (sim, node) = (&self.host.sim, self.host.node);
        let keys = sim.with(|w| w.keys.clone());
        if let Some(watch) = &mut memory.watch {
            while watch.try_recv().is_ok() {}
            if watch.is_closed() {
                memory.watch = None;
            }
        }
        let Ok(snapshot) = sim.etcd_read(node, keys.prefix()).await else {
            return self.host.sleep(AFTER_TROUBLE).await;
        };
        if memory.watch.is_none() {
            memory.watch = sim.etcd_watch(node, keys.prefix(), snapshot.revision + 1).await.ok();
        }
        let mut seen = memory.observed(snapshot, self);
        sim.mutate_seen(&mut seen);
        seen.seen.probe = memory.probe;
        let spec = match (&seen.spec, &memory.spec) {
            (Stored::Known(spec), _) => spec.clone(),
            (_, Some(spec)) => spec.clone(),
            (_, None) => return self.host.sleep(AFTER_TROUBLE).await,
        };
        memory.spec = Some(spec.clone());
        let now = self.host.now();
        seen.mark(&spec, &mut memory.timers, now);
        match self.decided(&spec, &seen, leading) {
            Decided::Commit(txn, why) => {
                let committed = sim.etcd_commit(node, txn).await;
                sim.trace(|| format!("s{} commits {why}: {committed:?}", self.number));
                if !matches!(committed, Ok(TxnOutcome::Committed { .. })) {
                    self.host.sleep(AFTER_TROUBLE).await;
                }
            }
            Decided::Probe(primary) => memory.probe = self.probe(&seen, &primary).await,
            Decided::Wait(until) => self.wait(memory, until, &keys).await,
        }
    }

    fn decided(&self, spec: &ClusterSpec, seen: &Seen, leading: &Leading) -> Decided {
        let sim = &self.host.sim;
        let (now, wall) = (self.host.now(), self.host.wall());
        let state = match &seen.state {
            Stored::Known(state) => Some(state),
            Stored::Absent => None,
            Stored::Newer(_) | Stored::Malformed(_) => return Decided::Wait(now + SAFETY_TICK),
        };
        let mut plan = decide(spec, state, &seen.seen, now, wall);
        let mutated = sim.mutate_plan(state, &seen.seen, &mut plan);
        let tick = now + SAFETY_TICK;
        let until = plan.wake_at.map_or(tick, |at| at.min(tick));
        sim.count_verdict(state, &plan.verdict);
        let why = match &plan.verdict {
            Verdict::Change { next, why, .. } => {
                let broken = invariant::check(state, next, &seen.seen);
                if !broken.is_empty() && !mutated {
                    sim.with(|w| {
                        w.counts.refused += 1;
                        let texts: Vec<String> = broken.iter().map(ToString::to_string).collect();
                        w.oracle.note_refusal(format!("{why}: {}", texts.join("; ")));
                    });
                    return Decided::Wait(until);
                }
                why.clone()
            }
            Verdict::Record { why, .. } => why.clone(),
            Verdict::Wait(WaitingOn::OwnProbe { primary }) => {
                return Decided::Probe(primary.clone());
            }
            Verdict::Wait(_) => return Decided::Wait(until),
        };
        let keys = sim.with(|w| w.keys.clone());
        match write::decided(&keys, &leading.guard, seen, &plan.verdict) {
            Some(mut txn) => {
                if sim.mutant("stale-sentinel-without-guard") {
                    txn.when.clear();
                }
                if sim.mutant("request-is-forgotten") {
                    txn.then.retain(|operation| matches!(operation, Operation::Put { .. }));
                }
                Decided::Commit(txn, why)
            }
            None => Decided::Wait(until),
        }
    }

    /// Waits for something that matters, or for `until`.
    async fn wait(&self, memory: &mut Memory, until: proto::Moment, keys: &store::keys::Keys) {
        let matters = |event: &WatchEvent| {
            let key = keys.strip(event.key()).unwrap_or_default();
            key == "spec" || key == "primary" || key.starts_with("members/")
        };
        loop {
            let Some(watch) = &mut memory.watch else {
                return self.host.sleep(AFTER_TROUBLE).await;
            };
            tokio::select! {
                biased;
                batch = watch.recv() => match batch {
                    Some(batch) if batch.iter().any(matters) => return,
                    Some(_) => {}
                    None => memory.watch = None,
                },
                () = self.host.sleep_until(until + Duration::from_millis(1)) => return,
            }
        }
    }
}

enum Decided {
    Commit(Txn, String),
    Probe(proto::MemberName),
    Wait(proto::Moment),
}
