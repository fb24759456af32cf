//! Readies the server that a fresh copy is taken from: a standby that spares the primary, or the primary.
//!
//! The rule: a copy of a standby holds as much as one of the primary would. So the primary is asked first how far it has
//! flushed, the standby has to have replayed that and to have it in its control file before the copy begins, and the
//! finished copy is checked for it. Whoever turns out not to be fit costs nothing but a question: the primary is copied.

use std::time::Duration;

use anyhow::{Context, ensure};
use proto::assignment::Follow;
use proto::{Lsn, MemberName, Timeline};
use tokio::time::timeout;
use tokio_postgres::{Client, Row};

use super::rejoin::{
    SOURCE_ANSWERS_WITHIN, SOURCE_CHECKPOINT_AT_MOST, session_with, source_at, source_of,
};
use super::{Patience, Worker};
use crate::postgres::session::describe;
use crate::postgres::settings::{REPLICATION_ROLE, REWIND_ROLE};
use crate::postgres::source::Source;

/// A standby that is further behind than that is no place for a copy: what it lacks would have to come from the primary.
const REPLAYS_WITHIN: Duration = Duration::from_secs(10);

/// A server that can be copied.
pub struct CopySource {
    pub source: Source,
    /// The standby that it is; `None` for the primary.
    pub standby: Option<MemberName>,
    /// What the copy has to hold for certain beyond its own end.
    pub at_least: Lsn,
}

/// Returns `from` if it is fit to be copied, else the primary.
pub async fn ready(
    worker: &Worker,
    follow: &Follow,
    from: Option<&MemberName>,
) -> anyhow::Result<CopySource> {
    if let Some(standby) = from {
        match ready_standby(worker, follow, standby).await {
            Ok(ready) => return Ok(ready),
            Err(error) => {
                let why = format!("{error:#}");
                tracing::info!(%standby, why, "this standby is not fit to be copied, the primary is");
            }
        }
    }
    let source = source_of(worker, follow, REPLICATION_ROLE, &worker.secrets.replication)?;
    Ok(CopySource { source, standby: None, at_least: Lsn(0) })
}

async fn ready_standby(
    worker: &Worker,
    follow: &Follow,
    standby: &MemberName,
) -> anyhow::Result<CopySource> {
    let at_least = flushed_by_primary(worker, follow).await?;
    let rewind = (REWIND_ROLE, worker.secrets.rewind.as_str());
    let asked = source_at(worker, standby, follow.epoch, rewind)?;
    let (client, connection) = session_with(worker, &asked).await?;
    let readying = bring_up_to(&client, follow.timeline, at_least).await;
    connection.abort();
    readying?;
    let replication = (REPLICATION_ROLE, worker.secrets.replication.as_str());
    let source = source_at(worker, standby, follow.epoch, replication)?;
    Ok(CopySource { source, standby: Some(standby.clone()), at_least })
}

/// Returns how far the primary of `follow` has flushed now, while this member is stopped: all that anybody has of its
/// timeline, this member included.
async fn flushed_by_primary(worker: &Worker, follow: &Follow) -> anyhow::Result<Lsn> {
    let primary = source_of(worker, follow, REWIND_ROLE, &worker.secrets.rewind)?;
    let (client, connection) = session_with(worker, &primary).await?;
    // Fails on a standby. Of the name of the WAL file the first eight digits are the timeline.
    let question = "SELECT lsn::text, ('x' || left(pg_walfile_name(lsn), 8))::bit(32)::int
                      FROM pg_current_wal_flush_lsn() AS lsn";
    let row = ask(&client, question).await;
    connection.abort();
    let row = row.context("ask the primary how far it has flushed")?;
    let timeline = Timeline(row.get::<_, i32>(1) as u32);
    ensure!(timeline == follow.timeline, "the primary is on timeline {timeline}");
    Ok(row.get::<_, &str>(0).parse::<Lsn>()?)
}

/// Waits until the standby has replayed `at_least`, and has its control file say so: that is what a copy of a standby
/// takes for its end. The restartpoint that pg_basebackup asks for does not do it by itself where there is a checkpoint
/// from before that position to be caught up with.
async fn bring_up_to(client: &Client, timeline: Timeline, at_least: Lsn) -> anyhow::Result<()> {
    let patience = Patience::of(REPLAYS_WITHIN, "the standby to replay what the primary has");
    let question = "SELECT pg_is_in_recovery(), coalesce(pg_last_wal_replay_lsn(), '0/0')::text";
    loop {
        let row = ask(client, question).await?;
        ensure!(row.get::<_, bool>(0), "it is no standby any more");
        if row.get::<_, &str>(1).parse::<Lsn>()? >= at_least {
            break;
        }
        patience.soon().await?;
    }
    timeout(SOURCE_CHECKPOINT_AT_MOST, client.batch_execute("CHECKPOINT"))
        .await
        .context("its restartpoint takes too long")?
        .map_err(|e| anyhow::anyhow!("ask it for a restartpoint: {}", describe(&e)))?;
    let row = ask(client, "SELECT timeline_id FROM pg_control_checkpoint()").await?;
    let of = Timeline(row.get::<_, i32>(0) as u32);
    // A backup begins there, and has to begin on the timeline that it is to end on.
    ensure!(of == timeline, "its last restartpoint is on timeline {of}");
    Ok(())
}

async fn ask(client: &Client, question: &str) -> anyhow::Result<Row> {
    timeout(SOURCE_ANSWERS_WITHIN, client.query_one(question, &[]))
        .await
        .context("it does not answer")?
        .map_err(|e| anyhow::anyhow!("{}", describe(&e)))
}
