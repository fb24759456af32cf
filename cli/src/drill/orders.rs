//! What a drill asks of others: a switchover of the leader, and the end of a drill that somebody else runs.

use std::fmt;
use std::time::Duration;

use anyhow::Context;
use proto::request::{Terms, Unheld, Wanted};
use proto::{ClusterName, RequestId};
use serde::Serialize;
use store::etcd::EtcdStore;
use store::{Operation, Store, Txn};

use super::seen::Seen;
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
#[derive(Debug, Serialize)]
pub struct Ended {
    cluster: ClusterName,
    drill: Option<RequestId>,
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.drill {
            Some(drill) => {
                write!(f, "cluster {}: drill {drill} is ended, its keeper undoes it", self.cluster)
            }
            None => write!(f, "cluster {}: no drill is under way", self.cluster),
        }
    }
}

/// Ends the drill that is under way, whoever runs it.
pub async fn abort(store: &EtcdStore, target: &Target) -> anyhow::Result<Ended> {
    let seen = Seen::look(store, target).await?;
    let drill = seen.drill.map(|drill| drill.id);
    if drill.is_some() {
        let then = vec![Operation::Delete { key: target.keys().drill() }];
        store.commit(Txn { when: Vec::new(), then }).await.context("end the drill")?;
    }
    Ok(Ended { cluster: target.cluster.clone(), drill })
}
