//! How a process that is not a keeper carries out the drills that are asked of it.
//!
//! The one rule: what was not said is not done. Each request is carried out once, also by a process that its own drill has
//! killed and that finds the request again.

use std::time::Duration;

use proto::document::{decode, encode};
use proto::drill::{Carried, Drill, DrillTarget, Drilled};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::clock;
use crate::keys::Keys;
use crate::types::{Entry, Operation, Store, StoreError, Txn, WatchEvent};

/// Between two tries to read a store that does not answer.
const RETRY: Duration = Duration::from_millis(200);

/// What a process does with a request.
#[async_trait::async_trait]
pub trait Carries: Send + Sync {
    /// Returns why it is not carried out here, if so. Does nothing yet.
    async fn judge(&self, drill: &Drill) -> Result<(), String>;

    /// Carries it out, and returns once it is undone how that was seen. One that is undone by others, or by this process's
    /// successor, is none.
    async fn strike(&self, drill: &Drill) -> Option<String>;
}

/// Carries out what is asked of `target`, until `stop`.
pub async fn carry_out(
    store: &dyn Store,
    keys: &Keys,
    (target, carries): (&DrillTarget, &dyn Carries),
    stop: &CancellationToken,
) {
    let carrier = Carrier { store, keys, target, carries };
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            ended = carrier.follow() => if let Err(error) = ended {
                tracing::debug!(%error, "watch for drills");
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = sleep(RETRY) => {}
        }
    }
}

/// Ends this process at once, as if somebody had killed it: nothing is given up, and no lease is revoked.
pub fn die() {
    if let Err(error) = nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL) {
        tracing::error!(%error, "end this process");
    }
}

struct Carrier<'a> {
    store: &'a dyn Store,
    keys: &'a Keys,
    target: &'a DrillTarget,
    carries: &'a dyn Carries,
}

impl Carrier<'_> {
    /// Acts on every change of the request until the watch breaks.
    async fn follow(&self) -> Result<(), StoreError> {
        let key = self.keys.drill();
        let snapshot = self.store.read(&key).await?;
        let mut watch = self.store.watch(&key, snapshot.revision + 1).await?;
        self.take(snapshot.entries.get(&key)).await?;
        while let Some(events) = watch.events.recv().await {
            if let Some(WatchEvent::Put { entry, .. }) = events.last() {
                self.take(Some(entry)).await?;
            }
        }
        Ok(())
    }

    async fn take(&self, entry: Option<&Entry>) -> Result<(), StoreError> {
        let drill = match entry.map(|entry| decode::<Drill>(&entry.value)) {
            Some(Ok(drill)) if drill.target == *self.target => drill,
            Some(Ok(_)) | None => return Ok(()),
            Some(Err(error)) => {
                tracing::warn!(%error, "read the drill that is asked for");
                return Ok(());
            }
        };
        let key = self.keys.drilled(self.target);
        let snapshot = self.store.read(&key).await?;
        let said = snapshot.entries.get(&key).and_then(|e| decode::<Drilled>(&e.value).ok());
        if said.is_some_and(|said| said.id == drill.id) {
            return Ok(());
        }
        if let Err(reason) = self.carries.judge(&drill).await {
            tracing::warn!(drill = %drill.id, fault = %drill.fault, reason, "drill refused");
            return self.say(&drill, Carried::Refused { reason }).await;
        }
        self.say(&drill, Carried::Struck).await?;
        tracing::warn!(drill = %drill.id, fault = %drill.fault, by = drill.by, "a drill strikes");
        match self.carries.strike(&drill).await {
            Some(why) => self.say(&drill, Carried::Undone { why }).await,
            None => Ok(()),
        }
    }

    async fn say(&self, drill: &Drill, what: Carried) -> Result<(), StoreError> {
        let said = Drilled { id: drill.id.clone(), at: clock::wall(), what };
        let key = self.keys.drilled(self.target);
        let put = Operation::Put { key, value: encode(&said).into_bytes(), lease: None };
        self.store.commit(Txn { when: Vec::new(), then: vec![put] }).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use proto::drill::LiveFault;
    use proto::{Epoch, RequestId};

    use super::*;
    use crate::memory::MemoryStore;

    #[derive(Default)]
    struct Counts {
        struck: AtomicU32,
    }

    #[async_trait::async_trait]
    impl Carries for Counts {
        async fn judge(&self, drill: &Drill) -> Result<(), String> {
            match drill.fault {
                LiveFault::Sentinel => Err("not this one".into()),
                _ => Ok(()),
            }
        }
        async fn strike(&self, _: &Drill) -> Option<String> {
            self.struck.fetch_add(1, Ordering::SeqCst);
            Some("it is over".into())
        }
    }

    async fn put(store: &MemoryStore, keys: &Keys, number: u64, fault: LiveFault, id: &str) {
        let drill = Drill {
            id: RequestId::from_random(number),
            fault,
            target: DrillTarget::Sentinel(id.into()),
            by: "ann@north".into(),
            epoch: Epoch(2),
            bound: Duration::from_secs(5),
        };
        let value = encode(&drill).into_bytes();
        let then = vec![Operation::Put { key: keys.drill(), value, lease: None }];
        store.commit(Txn { when: Vec::new(), then }).await.unwrap();
    }

    #[tokio::test]
    async fn a_request_is_carried_out_once_by_whom_it_names_also_when_that_one_looks_again() {
        let store = Arc::new(MemoryStore::new());
        let keys = Keys::of(&"main".parse().unwrap());
        let (own, counts) = (DrillTarget::Sentinel("s1".into()), Counts::default());
        let carrier = Carrier { store: &*store, keys: &keys, target: &own, carries: &counts };
        let look = async || {
            let snapshot = store.read(&keys.drill()).await.unwrap();
            carrier.take(snapshot.entries.get(&keys.drill())).await.unwrap();
            let key = keys.drilled(&own);
            let snapshot = store.read(&key).await.unwrap();
            snapshot.entries.get(&key).map(|e| decode::<Drilled>(&e.value).unwrap().what)
        };
        put(&store, &keys, 1, LiveFault::SentinelResign, "s2").await;
        assert_eq!(look().await, None, "that is another's");
        put(&store, &keys, 2, LiveFault::SentinelResign, "s1").await;
        let undone = Carried::Undone { why: "it is over".into() };
        assert_eq!(look().await, Some(undone.clone()));
        assert_eq!(look().await, Some(undone));
        assert_eq!(counts.struck.load(Ordering::SeqCst), 1);
        put(&store, &keys, 3, LiveFault::Sentinel, "s1").await;
        assert_eq!(look().await, Some(Carried::Refused { reason: "not this one".into() }));
        assert_eq!(counts.struck.load(Ordering::SeqCst), 1, "what is refused is not done");
    }
}
