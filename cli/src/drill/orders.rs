//! What a drill asks of others: a switchover of the leader, and the end of a drill that somebody else runs.

use std::fmt;
use std::time::Duration;

use anyhow::{Context, bail};
use proto::document::decode;
use proto::drill::Drill;
use proto::drill_lock::{DrillLock, DrillWork};
use proto::request::{Terms, Unheld, Wanted};
use proto::{ClusterName, RequestId};
use serde::Serialize;
use store::etcd::EtcdStore;
use store::keys::Keys;
use store::{Guard, Operation, Store, Txn, TxnOutcome};

use crate::target::Target;
use crate::{ask, read};

/// How long a switchover may take until the primary is stopped.
const SWITCH_WITHIN: Duration = Duration::from_secs(60);

/// Asks the leader for a switchover to the best standby, as an operator does, and waits for its end.
pub async fn switch_over(store: &EtcdStore, target: &Target) -> anyhow::Result<()> {
    let documents = read::documents(store, target).await?;
    let hold = Duration::from_secs(5);
    let terms = Terms { to: None, away_from: None, hold, unheld: Unheld::CallOff };
    ask::until_done(store, target, &documents, Wanted::Switchover(terms), SWITCH_WITHIN).await?;
    Ok(())
}

/// What an abort has done.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Ended {
    cluster: ClusterName,
    drill: Option<RequestId>,
    /// What comes of it.
    then: &'static str,
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.drill {
            Some(drill) => write!(f, "cluster {}: drill {drill} {}", self.cluster, self.then),
            None => write!(f, "cluster {}: {}", self.cluster, self.then),
        }
    }
}

/// Ends the drill or the reboots that are under way, whoever runs them: those with `only` this id, if it is given.
pub async fn abort(
    store: &dyn Store,
    target: &Target,
    only: Option<&RequestId>,
) -> anyhow::Result<Ended> {
    let ended = |drill, then| Ended { cluster: target.cluster.clone(), drill, then };
    let Some(mut stands) = Stands::find(store, &target.keys()).await? else {
        return Ok(ended(None, "no drill is under way"));
    };
    if let Some(only) = only.filter(|only| **only != stands.id) {
        bail!("{} is under way, and not {only}: nothing is ended", stands.id);
    }
    loop {
        if stands.end(store).await? {
            return Ok(ended(Some(stands.id), stands.then));
        }
        // A lock is written anew at each member's turn. Another drill is not the one that was to end.
        match Stands::find(store, &target.keys()).await? {
            Some(now) if now.id == stands.id => stands = now,
            _ => bail!("drill {} has just ended by itself: nothing else is ended", stands.id),
        }
    }
}

/// What an abort has seen, and how to end just that.
struct Stands {
    id: RequestId,
    /// The key whose end is the end of it, at the revision that was seen. None where there is nothing left to end.
    entry: Option<(String, i64)>,
    then: &'static str,
}

impl Stands {
    async fn find(store: &dyn Store, keys: &Keys) -> anyhow::Result<Option<Self>> {
        let snapshot = store.read(&keys.all_of_drills()).await.context("look for drills")?;
        let entry = |key: String| snapshot.entries.get(&key).map(|entry| (key, entry));
        if let Some((key, entry)) = entry(keys.drill()) {
            let id = decode::<Drill>(&entry.value)?.id;
            let entry = Some((key, entry.mod_revision));
            return Ok(Some(Self { id, entry, then: "is ended, its keeper undoes it" }));
        }
        let Some((key, entry)) = entry(keys.drill_lock()) else { return Ok(None) };
        let DrillLock { id, work, .. } = decode(&entry.value)?;
        Ok(Some(match work {
            DrillWork::Drill { .. } => Self {
                id,
                entry: None,
                then: "is undone already, its runner looks what comes of it",
            },
            DrillWork::Reboots { .. } => {
                let entry = Some((key, entry.mod_revision));
                Self { id, entry, then: "is ended: no other member will be rebooted" }
            }
        }))
    }

    /// Ends it if it still is as it was seen; returns whether that is so.
    async fn end(&self, store: &dyn Store) -> anyhow::Result<bool> {
        let Some((key, revision)) = &self.entry else { return Ok(true) };
        let when = vec![Guard::ModRevision(key.clone(), *revision)];
        let then = vec![Operation::Delete { key: key.clone() }];
        let outcome = store.commit(Txn { when, then }).await.context("end the drill")?;
        Ok(matches!(outcome, TxnOutcome::Committed { .. }))
    }
}

#[cfg(test)]
mod tests;
