//! Switchovers for a later time: `--at`, `--list` and `--cancel`.

use std::fmt;
use std::time::Duration;

use anyhow::Context;
use proto::request::{RequestId, Terms};
use proto::schedule::Scheduled;
use proto::{ClusterName, WallTime};
use serde::Serialize;
use store::{Store, clock, schedule};

use crate::table::Table;
use crate::target::Target;
use crate::{ask, read};

/// When, and how late at most.
#[derive(Debug, Clone, Copy)]
pub struct When {
    pub at: WallTime,
    pub window: Duration,
    pub within: Duration,
}

/// What was put down.
#[derive(Debug, Serialize)]
pub struct PutDown {
    cluster: ClusterName,
    scheduled: Scheduled,
}

/// All that wait for their time.
#[derive(Debug, Serialize)]
pub struct Waiting {
    cluster: ClusterName,
    scheduled: Vec<Scheduled>,
    /// What this pgdeputy cannot read, and no leader of its version begins.
    unreadable: Vec<String>,
}

#[derive(Debug, Serialize)]
pub struct Cancelled {
    cluster: ClusterName,
    cancelled: RequestId,
}

/// Puts a switchover down for later.
pub async fn put(
    store: &dyn Store,
    target: &Target,
    terms: Terms,
    when: When,
) -> anyhow::Result<PutDown> {
    // Of a cluster that is not there it would never be heard again.
    read::documents(store, target).await?;
    let scheduled = Scheduled {
        id: RequestId::from_random(rand::random()),
        by: ask::who(),
        asked: clock::wall(),
        at: when.at,
        window: when.window,
        within: when.within,
        terms,
    };
    schedule::put(store, &target.keys(), &scheduled).await.context("schedule a switchover")?;
    Ok(PutDown { cluster: target.cluster.clone(), scheduled })
}

/// Returns what waits for its time, soonest first.
pub async fn list(store: &dyn Store, target: &Target) -> anyhow::Result<Waiting> {
    let (mut scheduled, mut unreadable) = (Vec::new(), Vec::new());
    for (key, found) in schedule::list(store, &target.keys()).await.context("read the schedule")? {
        match found {
            Ok(found) => scheduled.push(found),
            Err(problem) => unreadable.push(format!("{key}: {problem}")),
        }
    }
    scheduled.sort_by_key(|s| (s.at, s.id.clone()));
    Ok(Waiting { cluster: target.cluster.clone(), scheduled, unreadable })
}

/// Takes one back.
pub async fn cancel(store: &dyn Store, target: &Target, id: &str) -> anyhow::Result<Cancelled> {
    let id = RequestId(id.to_owned());
    schedule::cancel(store, &target.keys(), &id).await.context("cancel a switchover")?;
    Ok(Cancelled { cluster: target.cluster.clone(), cancelled: id })
}

impl fmt::Display for PutDown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let s = &self.scheduled;
        writeln!(
            f,
            "cluster {}: a switchover to {} begins at {} (or up to {} later)",
            self.cluster,
            s.terms.whom(),
            s.at,
            humantime::format_duration(s.window)
        )?;
        write!(f, "its id is {0}: pgdeputy switchover --cancel {0} takes it back", s.id)
    }
}

impl fmt::Display for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.scheduled.is_empty() {
            writeln!(f, "cluster {}: no switchover is scheduled", self.cluster)?;
        } else {
            let mut table = Table::new(&["id", "at", "not after", "to", "asked for by"]);
            for s in &self.scheduled {
                table.row([
                    s.id.to_string(),
                    s.at.to_string(),
                    s.until().to_string(),
                    s.terms.whom(),
                    s.by.clone(),
                ]);
            }
            write!(f, "{table}")?;
        }
        self.unreadable.iter().try_for_each(|line| writeln!(f, "cannot be read: {line}"))
    }
}

impl fmt::Display for Cancelled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cluster {}: the switchover {} is cancelled", self.cluster, self.cancelled)
    }
}
