//! Crashes at moments that matter: while a standby lacks commits.
//!
//! The one rule: that it was the moment is seen before anything counts.

use std::time::Duration;

use anyhow::{Context, ensure};
use proto::MemberName;
use store::clock;

use super::{Lab, ServerProcess, Struck};

/// Load writes many commits a second; this is for a machine under load.
const SEEN_BOUND: Duration = Duration::from_secs(30);

/// How far a standby has to be behind, in bytes: some commits.
const BEHIND: i64 = 4_096;

impl Lab {
    /// Has one standby of `primary` receive nothing, waits until it lacks what another one has, and kills the postmaster of
    /// `primary`; then it receives again.
    pub async fn crash_ahead_of_a_standby(&self, primary: &MemberName) -> anyhow::Result<Struck> {
        const BETWEEN: &str = "SELECT (max(flush_lsn) - min(flush_lsn))::bigint \
             FROM pg_stat_replication WHERE state = 'streaming'";
        let standby = self.members().into_iter().find(|name| name != primary);
        let standby = standby.context("there is no standby")?;
        let session = self.superuser(primary).await?;
        let receiver = self.server_process(&standby, ServerProcess::Walreceiver).await?;
        let begun = self.freeze_process(receiver).await?;
        loop {
            let between: Option<i64> =
                session.client().query_one(BETWEEN, &[]).await?.try_get(0)?;
            if between.is_some_and(|bytes| bytes >= BEHIND) {
                break;
            }
            ensure!(clock::now() < begun.at + SEEN_BOUND, "{standby} lacks {between:?} bytes");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let struck = self.kill_postgres(primary)?;
        self.thaw(&standby)?;
        Ok(struck)
    }
}
