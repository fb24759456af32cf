//! WAL from before the fault that both members hold on to: what stock pg_rewind would copy.

use std::time::Duration;

use anyhow::Context;
use proto::{ClusterSpec, MemberName};
use store::clock;

use crate::lab::Lab;

/// One terabyte; PostgreSQL's own limit is far above.
pub const MOST_MB: u32 = 1 << 20;

/// What `wal_keep_size` has beyond what is asked for: what the runs themselves write.
const BEYOND_MB: u32 = 2048;

/// A statement makes its messages in memory, one by one.
const AT_ONCE_MB: u32 = 128;

/// For one statement, which the standby has to confirm.
const WRITE_BOUND: Duration = Duration::from_secs(120);

/// Gives members the settings by which they hold on to that much.
pub fn keep(spec: &mut ClusterSpec, megabytes: u32) {
    if megabytes > 0 {
        let keep = format!("{}MB", megabytes + BEYOND_MB);
        for setting in ["wal_keep_size", "max_slot_wal_keep_size"] {
            spec.postgres.parameters.insert(setting.into(), keep.clone());
        }
    }
}

/// Writes WAL until both members have that much, and the standby has replayed it.
pub async fn write(lab: &Lab, megabytes: u32) -> anyhow::Result<()> {
    let session = lab.superuser(&lab.primary().await?).await?;
    let messages = format!(
        "SELECT count(pg_logical_emit_message(false, '', repeat('w', 1000000))) FROM generate_series(1, {AT_ONCE_MB})"
    );
    let begun = clock::now();
    while megabytes_of_all(lab).await? < u64::from(megabytes) {
        let written = tokio::time::timeout(WRITE_BOUND, session.client().simple_query(&messages));
        written.await.context("WAL is written too slowly")??;
        let flushed = "SELECT pg_switch_wal()";
        session.client().simple_query(flushed).await?;
    }
    if megabytes > 0 {
        eprintln!(
            "{megabytes} MB of WAL written in {:.1} s",
            clock::now().since(begun).as_secs_f64()
        );
    }
    lab.holdings(WRITE_BOUND).await.context("have the standby replay it").map(drop)
}

/// Returns how much WAL the primary, from which a member is rewound, has.
pub async fn megabytes(lab: &Lab) -> anyhow::Result<u64> {
    megabytes_of(lab, &lab.primary().await?).await
}

async fn megabytes_of_all(lab: &Lab) -> anyhow::Result<u64> {
    let mut least = u64::MAX;
    for member in lab.members() {
        least = least.min(megabytes_of(lab, &member).await?);
    }
    Ok(least)
}

/// Counts the segments that hold something: those recycled for later have a number after the newest one.
async fn megabytes_of(lab: &Lab, member: &MemberName) -> anyhow::Result<u64> {
    // pg_walfile_name does not answer in recovery, so the number is read from the name, of segments of any size.
    const WRITTEN: &str = "
        SELECT coalesce(sum(size), 0)::bigint / (1 << 20)
        FROM pg_ls_waldir(),
             (SELECT setting::bigint AS segment FROM pg_settings WHERE name = 'wal_segment_size') AS of_all,
             (SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END
                     - '0/0'::pg_lsn AS newest) AS written
        WHERE name ~ '^[0-9A-F]{24}$'
          AND ('x' || substr(name, 9, 8))::bit(32)::bigint * ((1::bigint << 32) / segment)
              + ('x' || substr(name, 17, 8))::bit(32)::bigint <= newest / segment";
    let session = lab.superuser(member).await?;
    let row = session.client().query_one(WRITTEN, &[]).await.context("list the WAL")?;
    let megabytes: i64 = row.try_get(0)?;
    u64::try_from(megabytes).with_context(|| format!("{member} has {megabytes} MB of WAL"))
}
