//! Sessions on a standby that hold replay up. A failover and whoever follows it cannot wait for them: PostgreSQL asks
//! for new WAL only when it has replayed all that it has.

use std::time::Duration;

use anyhow::Context;
use proto::Lsn;
use proto::assignment::Follow;
use proto::report::Seal;

use super::Worker;
use crate::postgres::session::Session;

/// Replay that has not moved for this long is held up by somebody's session, not by its own work.
pub const PATIENCE_WITH_READERS: Duration = Duration::from_millis(200);

/// How often it is looked whether replay moves.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Sees to it that a sealed standby replays all that it had at its seal, so that it receives again: a paused replay is
/// resumed, and transactions that hold it up are ended. Has no bound of its own: a seal and a fence cut it.
pub async fn replay_what_was_sealed(worker: &Worker, follow: &Follow) -> anyhow::Result<()> {
    // Past the fork it holds something else now than it sealed.
    let before_the_fork = |seal: &Seal| {
        seal.sealing == follow.epoch && follow.chosen.is_some_and(|fork| seal.position <= fork)
    };
    let Some(seal) = worker.local().seal.filter(before_the_fork) else { return Ok(()) };
    let session = worker.admin().await.context("open a session to see replay move")?;
    let mut last = (Lsn(0), store::clock::now());
    loop {
        let replayed: String =
            session.value("SELECT coalesce(pg_last_wal_replay_lsn(), '0/0')::text").await?;
        let replayed: Lsn = replayed.parse()?;
        if replayed >= seal.position.lsn {
            return Ok(());
        }
        if replayed > last.0 {
            last = (replayed, store::clock::now());
        } else if store::clock::now().since(last.1) > PATIENCE_WITH_READERS {
            session
                .run("SELECT CASE WHEN pg_is_wal_replay_paused() THEN pg_wal_replay_resume() END")
                .await?;
            end_transactions(&session).await?;
            tracing::warn!(%replayed, until = %seal.position.lsn, "ended what held replay up");
            last.1 = store::clock::now();
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Ends the transactions of clients of a standby; sessions that are idle are in nobody's way.
async fn end_transactions(session: &Session) -> anyhow::Result<()> {
    session
        .run(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
              WHERE backend_type = 'client backend' AND pg_is_in_recovery() AND xact_start IS NOT NULL
                AND NOT (usename = current_user AND application_name = 'pgdeputy-keeper')",
        )
        .await
        .context("end transactions that hold replay up")
}
