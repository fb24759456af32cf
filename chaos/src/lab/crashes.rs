//! Crashes at moments that matter: while a standby lacks commits, while voters change, while a member is copied.
//!
//! The one rule: that it was the moment is seen before anything counts.

use std::time::Duration;

use anyhow::{Context, ensure};
use proto::report::{RejoinBy, RejoinOutcome};
use proto::{Cfg, Lsn, MemberName};
use store::clock;

use super::network::cut::{Cut, Others};
use super::{Cluster, Lab, Struck};
use crate::session::Session;

/// Load writes many commits a second; this is for a machine under load.
const SEEN_BOUND: Duration = Duration::from_secs(30);

/// A standby comes back, and votes, within two seconds; this is for a machine under load.
const BEGUN_BOUND: Duration = Duration::from_secs(60);

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

    /// Kills all of `primary` while a Cfg with one more voter is on record and not in force: a standby comes back, and the
    /// primary's keeper is frozen before it can have proven that Cfg.
    pub async fn crash_in_a_change_of_voters(
        &mut self,
        primary: &MemberName,
    ) -> anyhow::Result<Struck> {
        let standby = self.members().into_iter().find(|name| name != primary);
        let standby = standby.context("there is no standby")?;
        self.kill_member(&standby)?;
        self.member_gone(&standby).await?;
        let left = |cluster: &Cluster| {
            let cfgs = cfgs(cluster)?;
            (cfgs.len() == 1 && !cfgs[0].voters.contains(&standby)).then_some(())
        };
        self.await_cluster("it votes no more", BEGUN_BOUND, left).await?;
        self.start_member(&standby)?;
        let keeper = self.keeper_process(primary).context("the primary's keeper does not run")?;
        self.streams_again(primary, &standby).await?;
        self.freeze_process(keeper).await?;
        self.await_cluster("it is to vote again", BEGUN_BOUND, |cluster| {
            is_to_join(cluster, primary, &standby).then_some(())
        })
        .await?;
        let struck = self.kill_member(primary)?;
        let record = self.cluster().await?;
        ensure!(is_to_join(&record, primary, &standby), "the new voters were in force");
        Ok(struck)
    }

    /// Waits until `primary` streams to `standby`, by PostgreSQL: the report of a keeper that was killed outlives it.
    async fn streams_again(
        &self,
        primary: &MemberName,
        standby: &MemberName,
    ) -> anyhow::Result<()> {
        let session = self.superuser(primary).await?;
        let deadline = clock::now() + BEGUN_BOUND;
        loop {
            let rows = session.client().query(STREAMS_TO, &[&format!("{standby}.%")]).await?;
            if !rows.is_empty() {
                return Ok(());
            }
            ensure!(clock::now() < deadline, "{standby} does not stream");
            tokio::time::sleep(SOON).await;
        }
    }

    /// Kills `standby`, takes its data and its keeper's files away as a new disk does, starts it, and kills it again while
    /// it is copied.
    pub async fn crash_in_a_copy(&mut self, standby: &MemberName) -> anyhow::Result<Struck> {
        let struck = self.kill_member(standby)?;
        self.member_gone(standby).await?;
        self.clear(standby)?;
        // A keeper with other files is refused the name until the lease of the one before has ended.
        let is_unheard = |cluster: &Cluster| (!cluster.reports.contains_key(standby)).then_some(());
        self.await_cluster("its report is gone", BEGUN_BOUND, is_unheard).await?;
        self.start_member(standby)?;
        let is_copied = |cluster: &Cluster| {
            let rejoin = cluster.reports.get(standby)?.rejoin.as_ref()?;
            let runs = matches!(rejoin.outcome, RejoinOutcome::Running { .. });
            (runs && rejoin.by == RejoinBy::Copy).then_some(())
        };
        self.await_cluster("a copy for it has begun", BEGUN_BOUND, is_copied).await?;
        let deadline = clock::now() + SEEN_BOUND;
        while !self.holds_half_a_copy(standby)? {
            ensure!(clock::now() < deadline, "nothing is copied for {standby}");
            tokio::time::sleep(SOON).await;
        }
        self.kill_member(standby)?;
        self.member_gone(standby).await?;
        ensure!(self.holds_half_a_copy(standby)?, "the copy for {standby} was complete");
        Ok(struck)
    }

    /// Leaves nothing in the directory of a member that does not run.
    #[expect(
        clippy::disallowed_methods,
        reason = "a lab's own files, of a member that is to lose them"
    )]
    fn clear(&self, member: &MemberName) -> anyhow::Result<()> {
        let (data, state) = (self.home.layout.data(member), self.home.layout.state(member));
        for directory in [data, state] {
            let shown = directory.display().to_string();
            std::fs::remove_dir_all(directory).with_context(|| format!("remove {shown}"))?;
        }
        Ok(())
    }

    /// Returns whether blocks of a copy lie beside the data directory, and none has become the data directory.
    fn holds_half_a_copy(&self, member: &MemberName) -> anyhow::Result<bool> {
        let (directory, data) = (self.home.layout.member(member), self.home.layout.data(member));
        let entries = std::fs::read_dir(&directory)
            .with_context(|| format!("read {}", directory.display()))?;
        let is_copy = |name: &str| name.starts_with("data.copy-e");
        let begun = entries.flatten().any(|entry| {
            entry.file_name().to_str().is_some_and(is_copy) && entry.path().join("base").exists()
        });
        Ok(begun && !data.join("PG_VERSION").exists())
    }
}

fn cfgs(cluster: &Cluster) -> Option<&Vec<Cfg>> {
    cluster.state.as_ref().map(|state| &state.cfgs)
}

/// Returns whether a Cfg of `primary` in which `standby` votes is on record beside one in which it does not.
fn is_to_join(cluster: &Cluster, primary: &MemberName, standby: &MemberName) -> bool {
    let Some([before, .., after]) = cfgs(cluster).map(Vec::as_slice) else { return false };
    [before, after].iter().all(|cfg| cfg.leader == *primary)
        && !before.voters.contains(standby)
        && after.voters.contains(standby)
}

/// What at least one standby has flushed, and clients were told of.
const ACKNOWLEDGED: &str = "SELECT COALESCE(max(flush_lsn), '0/0')::text \
     FROM pg_stat_replication WHERE state = 'streaming'";

const STREAMS_TO: &str = "SELECT pid FROM pg_stat_replication \
     WHERE state = 'streaming' AND application_name LIKE $1";

async fn lsn(session: &Session, query: &str) -> anyhow::Result<Lsn> {
    let row = session.client().query_one(query, &[]).await?;
    Ok(row.try_get::<_, &str>(0)?.parse()?)
}
