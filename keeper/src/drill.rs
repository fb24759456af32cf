//! Carries out what a drill breaks on this member, and undoes it.
//!
//! The one rule: what was broken is mended when nobody asks for it any more, whoever is left to say so: by the end of
//! the request's lease, by the bound of the drill while etcd is away, and by the note on disk after this keeper died.

mod broken;
mod strike;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use proto::document::{decode, encode};
use proto::drill::{Carried, Drill, DrillTarget, Drilled, Hits, LiveFault};
use proto::{ClusterState, Moment, Phase};
use store::{Entry, Operation, StoreError, Txn, WatchEvent, clock};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::worker::Worker;
use broken::Broken;

/// Between two tries to read a store that does not answer.
const RETRY: Duration = Duration::from_millis(200);

/// The longest that anything stays broken, whatever a request says.
pub const LONGEST: Duration = Duration::from_secs(120);

/// What carries drills out.
pub struct Drilling {
    worker: Arc<Worker>,
    /// What the operator of this member does not want.
    refused: BTreeSet<LiveFault>,
    /// What is broken now, and until when at most.
    broken: watch::Sender<Option<(Broken, Moment)>>,
}

/// Carries out and undoes, until `stop`.
pub async fn carry_out(drilling: Drilling, stop: CancellationToken) {
    drilling.mend_what_was_left().await;
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            () = drilling.overdue() => drilling.mend("it was to end by now").await,
            broken = drilling.follow() => {
                if let Err(error) = broken {
                    tracing::debug!(%error, "watch for drills");
                }
                tokio::select! {
                    () = stop.cancelled() => break,
                    () = sleep(RETRY) => {}
                }
            }
        }
    }
    drilling.mend("the keeper was asked to stop").await;
}

impl Drilling {
    /// Nothing is broken yet.
    pub fn new(worker: Arc<Worker>, refused: BTreeSet<LiveFault>) -> Self {
        Self { worker, refused, broken: watch::Sender::new(None) }
    }

    /// Acts on every change of the request until the watch breaks.
    async fn follow(&self) -> Result<(), StoreError> {
        let key = self.worker.keys.drill();
        let snapshot = self.worker.store.read(&key).await?;
        let mut watch = self.worker.store.watch(&key, snapshot.revision + 1).await?;
        self.take(snapshot.entries.get(&key)).await;
        while let Some(events) = watch.events.recv().await {
            match events.last() {
                Some(WatchEvent::Put { entry, .. }) => self.take(Some(entry)).await,
                Some(WatchEvent::Delete { .. }) => self.take(None).await,
                None => {}
            }
        }
        Ok(())
    }

    async fn take(&self, entry: Option<&Entry>) {
        let drill = entry.map(|entry| decode::<Drill>(&entry.value));
        let drill = match drill.transpose() {
            Ok(drill) => drill.filter(|drill| drill.target == self.own()),
            Err(error) => {
                tracing::warn!(%error, "read the drill that is asked for");
                None
            }
        };
        let asked = drill.as_ref().map(|drill| &drill.id);
        let stale = self.broken.borrow().as_ref().is_some_and(|(b, _)| Some(&b.drill) != asked);
        if stale {
            self.mend("its request is gone").await;
        }
        let Some(drill) = drill else { return };
        match self.was_answered(&drill).await {
            Ok(true) => {}
            Ok(false) => self.begin(&drill).await,
            Err(error) => {
                tracing::warn!(%error, "a drill is not begun: its answers cannot be read")
            }
        }
    }

    fn own(&self) -> DrillTarget {
        DrillTarget::Member(self.worker.place.member.clone())
    }

    async fn was_answered(&self, drill: &Drill) -> Result<bool, StoreError> {
        let key = self.worker.keys.drilled(&drill.target);
        let snapshot = self.worker.store.read(&key).await?;
        let said = snapshot.entries.get(&key).and_then(|e| decode::<Drilled>(&e.value).ok());
        Ok(said.is_some_and(|said| said.id == drill.id))
    }

    /// Says that it strikes, and strikes: what was not said is not done, so that each request is carried out once.
    async fn begin(&self, drill: &Drill) {
        let allowed = {
            let view = self.worker.view.borrow();
            match &view.frozen {
                Some(why) => Err(format!("this member distrusts etcd: {why}")),
                None => judge(drill, &self.refused, view.state.as_ref()),
            }
        };
        let prepared = match allowed {
            Ok(()) => strike::prepare(&self.worker, drill).await.map_err(|e| format!("{e:#}")),
            Err(reason) => Err(reason),
        };
        let blow = match prepared {
            Ok(blow) => blow,
            Err(reason) => {
                tracing::warn!(drill = %drill.id, fault = %drill.fault, reason, "drill refused");
                return self.say(drill, Carried::Refused { reason }).await.unwrap_or_else(log);
            }
        };
        if let Err(error) = self.say(drill, Carried::Struck).await {
            return log(error);
        }
        tracing::warn!(drill = %drill.id, fault = %drill.fault, by = drill.by, "a drill strikes this member");
        match blow.strike(drill, &self.worker.place) {
            Ok(Some(broken)) => {
                let until = clock::now() + drill.bound.min(LONGEST);
                self.broken.send_replace(Some((broken, until)));
            }
            Ok(None) => {}
            Err(error) => {
                let reason = format!("{error:#}");
                self.say(drill, Carried::Refused { reason }).await.unwrap_or_else(log);
            }
        }
    }

    /// Returns when something has been broken for as long as it may.
    async fn overdue(&self) {
        let mut broken = self.broken.subscribe();
        loop {
            let until = broken.borrow_and_update().as_ref().map(|(_, until)| *until);
            let Some(until) = until else {
                // This value lives as long as its sender, which is our own.
                let _ = broken.changed().await;
                continue;
            };
            tokio::select! {
                () = sleep(until.since(clock::now())) => return,
                _ = broken.changed() => {}
            }
        }
    }

    async fn mend(&self, why: &str) {
        let Some((broken, _)) = self.broken.send_replace(None) else { return };
        self.undo(broken, why).await;
    }

    async fn mend_what_was_left(&self) {
        match Broken::left(&self.worker.place.state_dir) {
            Ok(Some(broken)) => self.undo(broken, "the keeper has died meanwhile").await,
            Ok(None) => {}
            Err(error) => tracing::error!(%error, "read what a drill has left"),
        }
    }

    async fn undo(&self, broken: Broken, why: &str) {
        if let Err(error) = broken.mend(&self.worker.place.state_dir) {
            tracing::error!(%error, "undo a drill");
        }
        tracing::warn!(drill = %broken.drill, why, "the drill on this member is undone");
        let said = Drilled {
            id: broken.drill,
            at: clock::wall(),
            what: Carried::Undone { why: why.to_owned() },
        };
        // Whoever runs the drill looks at the cluster itself.
        let put = self.put(&said);
        if !matches!(timeout(Duration::from_secs(2), put).await, Ok(Ok(()))) {
            tracing::warn!("nobody could be told that the drill is undone");
        }
    }

    async fn say(&self, drill: &Drill, what: Carried) -> Result<(), StoreError> {
        self.put(&Drilled { id: drill.id.clone(), at: clock::wall(), what }).await
    }

    async fn put(&self, said: &Drilled) -> Result<(), StoreError> {
        let key = self.worker.keys.drilled(&self.own());
        let put = Operation::Put { key, value: encode(said).into_bytes(), lease: None };
        self.worker.store.commit(Txn { when: Vec::new(), then: vec![put] }).await.map(drop)
    }
}

fn log(error: StoreError) {
    tracing::warn!(%error, "a drill's answer could not be put");
}

/// Returns why this member does not carry `drill` out, if it does not.
pub fn judge(
    drill: &Drill,
    refused: &BTreeSet<LiveFault>,
    state: Option<&ClusterState>,
) -> Result<(), String> {
    let fault = drill.fault;
    if refused.contains(&fault) {
        return Err(format!("the operator of {} refuses {fault} (--refuse-drills)", drill.target));
    }
    let Some(state) = state else { return Err("the agreed state is not known here".into()) };
    if (state.epoch, &state.phase, state.sealing) != (drill.epoch, &Phase::Open, None) {
        return Err(format!("epoch {} is not open any more", drill.epoch));
    }
    let is_primary = state.primary.as_ref().is_some_and(|p| drill.target.name() == p.as_str());
    match (fault.hits(), is_primary) {
        (Hits::Primary, _) if fault == LiveFault::Switchover => {
            Err("a switchover is the leader's".into())
        }
        (Hits::Primary, true) | (Hits::Standby, false) => Ok(()),
        (Hits::Primary, false) => Err(format!("{} is a standby", drill.target)),
        (Hits::Standby, true) => Err(format!("{} is the primary", drill.target)),
        (Hits::Leader | Hits::Proxy, _) => Err(format!("{fault} hits no member")),
    }
}

#[cfg(test)]
mod tests;
