//! Asks the primary what a stopped member's way back depends on: its timelines, and whether both have the same WAL.

use std::time::Duration;

use anyhow::Context;
use proto::assignment::Follow;
use tokio::time::timeout;

use super::Worker;
use super::rejoin::source_of;
use crate::facts::{Compared, Room};
use crate::postgres::compare::{self, SourceSays};
use crate::postgres::fork::fork_of;
use crate::postgres::settings::REPLICATION_ROLE;
use crate::postgres::stopped::data_bytes;
use crate::prerequisites::available;
use crate::reconcile::way::{LONG_REWIND, wal_of_a_rewind};

/// A few round trips and the login. A member that is to follow does so without an answer rather than wait for one.
const ANSWERS_WITHIN: Duration = Duration::from_secs(1);

/// Asks, and notes the answer, or that there was none.
pub async fn compare(worker: &Worker, follow: &Follow) -> anyhow::Result<()> {
    let end = worker.local().end_of_wal.context("where this member's WAL ends is not known")?;
    let password = &worker.secrets.replication;
    let source = source_of(worker, follow, REPLICATION_ROLE, password)?;
    let data_dir = &worker.place.data_dir;
    let asking = compare::compare(&source, password, data_dir, (end.lsn, end.timeline));
    let says = match timeout(ANSWERS_WITHIN, asking).await {
        Ok(says) => says,
        Err(_) => Err(anyhow::anyhow!("the primary does not answer")),
    };
    if let Ok(says) = &says {
        tracing::info!(proof = ?says.proof, end = %end, "compared this member's WAL with the primary's");
    }
    let room = match &says {
        Ok(says) => room_for_a_copy(worker, says).await,
        Err(_) => None,
    };
    let compared = Compared { epoch: follow.epoch, says: says.as_ref().ok().cloned(), room };
    worker.update(|local| local.compared = Some(compared));
    says.map(drop).context("ask the primary for its timelines and WAL")
}

/// Returns how much data there is and the room beside it, where a copy may be cheaper than a rewind. To look at every
/// file takes too long to do it where that is not so.
async fn room_for_a_copy(worker: &Worker, says: &SourceSays) -> Option<Room> {
    let local = worker.local();
    let (end, disk) = (local.end_of_wal?, local.stopped?);
    let fork = fork_of(&disk.history, &says.history)?.until?;
    if end.lsn <= fork || wal_of_a_rewind(end.lsn, says.flushed, fork) < LONG_REWIND {
        return None;
    }
    let available = available(worker)?;
    let data_dir = worker.place.data_dir.clone();
    let sized = tokio::task::spawn_blocking(move || data_bytes(&data_dir)).await.ok()?;
    match sized {
        Ok(data) => Some(Room { data, available }),
        Err(error) => {
            tracing::warn!(%error, "how much data a copy would have is not known");
            None
        }
    }
}
