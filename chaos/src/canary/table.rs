//! The canary's table, and the three things that are asked of it. Nothing is prepared, so that a pooler may hand each
//! statement to another session.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::Context;
use proto::{Lsn, Timeline};
use tokio_postgres::Row;
use tokio_postgres::types::{ToSql, Type};

use super::judge::Origin;
use crate::session::Session;

/// So many rows are kept of one run, at one a second nearly three hours: a change of primary is judged in seconds.
pub const KEEP: i64 = 10_000;

/// How long connecting may take.
pub const CONNECT_DEADLINE: Duration = Duration::from_secs(2);

/// How long an answer may take. A pooler that holds its clients in a planned change keeps them for less, by default.
pub const ANSWER_DEADLINE: Duration = Duration::from_secs(5);

/// Not in a schema `pgdeputy`: that is the keeper's superuser's own, first in its `search_path`, and an application's user
/// who owned it could put functions of its choice before a superuser.
const CREATE: &str = "CREATE SCHEMA IF NOT EXISTS pgdeputy_drill; \
     CREATE TABLE IF NOT EXISTS pgdeputy_drill.canary \
     (run bigint, id bigint, written timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (run, id))";

/// Rows that earlier runs have left; none of them runs for so long without trimming its own.
const FORGET: &str = "DELETE FROM pgdeputy_drill.canary WHERE written < now() - interval '1 day'";

/// Writes one canary, trims the one that is too much, and says who did it. Fails on a standby.
const INSERT: &str = "WITH trimmed AS (DELETE FROM pgdeputy_drill.canary WHERE run = $1 AND id <= $2 - $3) \
     INSERT INTO pgdeputy_drill.canary (run, id) VALUES ($1, $2) RETURNING \
     left(pg_walfile_name(pg_current_wal_lsn()), 8), \
     (extract(epoch FROM pg_postmaster_start_time()) * 1000000)::bigint";

/// What is there of one run, and who says so. Fails on a standby, which has no position of writing.
const READ: &str = "SELECT left(pg_walfile_name(pg_current_wal_lsn()), 8), \
     (extract(epoch FROM pg_postmaster_start_time()) * 1000000)::bigint, pg_current_wal_lsn()::text, \
     coalesce((SELECT array_agg(id) FROM pgdeputy_drill.canary WHERE run = $1), '{}')";

/// One run's part of the table.
pub struct Table {
    run: i64,
}

impl Table {
    /// Names the run by a number that no other has.
    pub fn of_a_new_run(run: i64) -> Self {
        Self { run }
    }

    /// Creates the table where there is none, and forgets what is older than a day.
    pub async fn prepare(&self, session: &Session) -> anyhow::Result<()> {
        let prepare = async {
            let there = "SELECT to_regclass('pgdeputy_drill.canary') IS NOT NULL";
            let row = session.client().query_typed(there, &[]).await?;
            if !row.first().context("no answer")?.try_get::<_, bool>(0)? {
                session.client().batch_execute(CREATE).await.context(
                    "create pgdeputy_drill.canary: its user needs CREATE on the database, or create it beforehand",
                )?;
            }
            session.client().batch_execute(FORGET).await.context("forget old canaries")
        };
        tokio::time::timeout(ANSWER_DEADLINE, prepare).await.context("no answer in time")?
    }

    /// Deletes all rows of this run.
    pub async fn forget(&self, session: &Session) -> anyhow::Result<()> {
        let delete = "DELETE FROM pgdeputy_drill.canary WHERE run = $1";
        session.client().query_typed(delete, &[(&self.run, Type::INT8)]).await?;
        Ok(())
    }

    /// Writes one canary; returns who acknowledged it.
    pub async fn insert(&self, session: &Session, id: i64) -> anyhow::Result<Origin> {
        let values: [(&(dyn ToSql + Sync), Type); 3] =
            [(&self.run, Type::INT8), (&id, Type::INT8), (&KEEP, Type::INT8)];
        let rows = session.client().query_typed(INSERT, &values).await?;
        origin(rows.first().context("no answer")?)
    }

    /// Returns who answered, how far it had written, and which canaries it holds.
    pub async fn read(&self, session: &Session) -> anyhow::Result<(Origin, Lsn, BTreeSet<i64>)> {
        let rows = session.client().query_typed(READ, &[(&self.run, Type::INT8)]).await?;
        let row = rows.first().context("no answer")?;
        let lsn: String = row.try_get(2)?;
        let ids: Vec<i64> = row.try_get(3)?;
        Ok((origin(row)?, lsn.parse()?, ids.into_iter().collect()))
    }
}

fn origin(row: &Row) -> anyhow::Result<Origin> {
    let timeline = u32::from_str_radix(row.try_get(0)?, 16).context("a timeline")?;
    Ok(Origin { timeline: Timeline(timeline), started_us: row.try_get(1)? })
}
