//! Crashes at moments that matter: while a standby lacks commits.
//!
//! The one rule: that it was the moment is seen before anything counts.

use std::time::Duration;

use anyhow::{Context, ensure};
use proto::{Lsn, MemberName};
use store::clock;

use super::network::cut::{Cut, Others};
use super::{Lab, Struck};
use crate::session::Session;

/// Load writes many commits a second; this is for a machine under load.
const SEEN_BOUND: Duration = Duration::from_secs(30);

/// How far a standby has to be behind, in bytes: some commits.
const BEHIND: u64 = 4_096;

/// Between two looks.
const SOON: Duration = Duration::from_millis(2);

impl Lab {
    /// Resets what one standby has with the other members, waits until it lacks what another standby has, kills the postmaster
    /// of `primary` and mends the link. A receiver that only stood still would find the rest in its socket.
    pub async fn crash_ahead_of_a_standby(
        &mut self,
        primary: &MemberName,
    ) -> anyhow::Result<Struck> {
        let standby = self.members().into_iter().find(|name| name != primary);
        let standby = standby.context("there is no standby")?;
        let (ahead, behind) = (self.superuser(primary).await?, self.superuser(&standby).await?);
        let deadline = clock::now() + SEEN_BOUND;
        self.cut(&Cut::between(&standby, Others::Members).reset())?;
        loop {
            let held = lsn(&behind, "SELECT pg_last_wal_receive_lsn()::text").await?;
            let acknowledged = lsn(&ahead, ACKNOWLEDGED).await?;
            if acknowledged.0 >= held.0 + BEHIND {
                break;
            }
            ensure!(clock::now() < deadline, "{standby} holds {held} of {acknowledged}");
            tokio::time::sleep(SOON).await;
        }
        let struck = self.kill_postgres(primary)?;
        self.heal().await?;
        Ok(struck)
    }
}

/// What at least one standby has flushed, and clients were told of.
const ACKNOWLEDGED: &str = "SELECT COALESCE(max(flush_lsn), '0/0')::text \
     FROM pg_stat_replication WHERE state = 'streaming'";

async fn lsn(session: &Session, query: &str) -> anyhow::Result<Lsn> {
    let row = session.client().query_one(query, &[]).await?;
    Ok(row.try_get::<_, &str>(0)?.parse()?)
}
