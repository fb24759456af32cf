//! Asks the primary what a stopped member's way back depends on: its timelines, and whether both have the same WAL.

use std::time::Duration;

use anyhow::Context;
use proto::assignment::Follow;
use tokio::time::timeout;

use super::Worker;
use super::rejoin::source_of;
use crate::facts::Compared;
use crate::postgres::compare;
use crate::postgres::settings::REPLICATION_ROLE;

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
    let compared = Compared { epoch: follow.epoch, says: says.as_ref().ok().cloned() };
    worker.update(|local| local.compared = Some(compared));
    says.map(drop).context("ask the primary for its timelines and WAL")
}
