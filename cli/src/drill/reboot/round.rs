//! One member after the other, up to the first surprise.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use proto::drill_lock::DrillWork;
use proto::topology::Role;
use proto::{Epoch, MemberName, Moment, RequestId};
use store::etcd::EtcdStore;
use store::{Store, clock};
use tokio::process::Command;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::super::canary::Watch;
use super::super::guard::unfit;
use super::super::lock::Lock;
use super::super::orders::switch_over;
use super::super::seen::{Seen, until_calm};
use super::super::way::WayArgs;
use super::{Done, Rebooted, Reboots};
use crate::target::Target;

/// So often the cluster is looked at while it becomes whole again.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Reboots all that are left, up to the first surprise.
pub(super) async fn all(mut round: Round<'_>, rebooted: &mut Rebooted, stop: CancellationToken) {
    for member in rebooted.order.clone() {
        let done = tokio::select! {
            done = round.one(&member) => done,
            () = stop.cancelled() => Err(anyhow::anyhow!("asked to stop while {member} was its turn")),
        };
        match done {
            Ok(ms) => {
                eprintln!("pgdeputy: {member} is back, all is redundant after {ms} ms");
                rebooted.left.retain(|left| *left != member);
                rebooted.done.push(Done { member, ms });
            }
            Err(surprise) => {
                rebooted.surprise = Some(format!("{surprise:#}"));
                return;
            }
        }
    }
}

/// Returns why nobody may be sent away now, if so.
pub(super) fn stands_in_the_way(seen: &Seen, own: Option<&RequestId>) -> Option<String> {
    let problems = unfit(seen, own);
    (!problems.is_empty()).then(|| problems.join("; "))
}

/// Returns the standbys, of each zone in turn, and last the primary.
pub(super) fn order(seen: &Seen, only: &[MemberName]) -> anyhow::Result<Vec<MemberName>> {
    let known = &seen.state.members;
    if let Some(stranger) = only.iter().find(|m| !known.contains_key(*m)) {
        bail!("--only {stranger}: there is no such member");
    }
    let wanted = |m: &MemberName| only.is_empty() || only.contains(m);
    let mut zones: BTreeMap<Option<String>, usize> = BTreeMap::new();
    let standbys = seen.with_role(Role::Standby).into_iter().filter(&wanted);
    let mut ranked: Vec<(usize, MemberName)> = standbys
        .map(|m| {
            let zone = seen.observed.members.get(&m).and_then(|r| r.zone.clone());
            let turn = zones.entry(zone).or_default();
            *turn += 1;
            (*turn, m)
        })
        .collect();
    ranked.sort();
    let primary = seen.with_role(Role::Primary).into_iter().filter(wanted);
    Ok(ranked.into_iter().map(|(_, m)| m).chain(primary).collect())
}

/// What one round goes by.
pub(super) struct Round<'a> {
    pub(super) store: &'a EtcdStore,
    pub(super) how: (&'a Target, &'a WayArgs, &'a Reboots),
    pub(super) lock: &'a Lock<'a>,
    /// Another one is a surprise, but for our own switchover.
    pub(super) epoch: Epoch,
    pub(super) canary: &'a Watch,
}

impl Round<'_> {
    /// Reboots one member, and returns after how many milliseconds all was redundant again.
    async fn one(&mut self, member: &MemberName) -> anyhow::Result<u64> {
        let turn = || DrillWork::Reboots { member: Some(member.clone()) };
        self.lock.go_on(turn()).await?;
        // Whole it was after the one before; a problem that has come since may pass.
        let mut seen = self.whole(clock::now() + self.how.2.member_within).await?;
        if seen.state.primary.as_ref() == Some(member) {
            self.lock.go_on(turn()).await?;
            self.hand_over().await?;
            seen = self.whole(clock::now() + self.how.2.member_within).await?;
        }
        // What was waited for may have taken minutes.
        self.lock.go_on(turn()).await?;
        let begun = clock::now();
        let deadline = begun + self.how.2.member_within;
        let before = self.put_at(member).await?;
        self.hook(&seen, member).await?;
        self.whole(deadline).await?;
        ensure!(
            self.put_at(member).await? != before,
            "the hook for {member} returned, and nothing has changed there: it has to wait until the host is up again"
        );
        Ok(u64::try_from(clock::now().since(begun).as_millis()).unwrap_or(u64::MAX))
    }

    async fn hook(&self, seen: &Seen, member: &MemberName) -> anyhow::Result<()> {
        let address = seen.observed.members.get(member).map(|r| r.postgres_address.clone());
        let hook = self.how.2.hook.as_deref().context("no hook is given")?;
        let mut command = Command::new("sh");
        command.arg("-c").arg(hook).env("PGDEPUTY_MEMBER", member.as_str());
        command.env("PGDEPUTY_ADDRESS", address.unwrap_or_default()).kill_on_drop(true);
        let ended = timeout(self.how.2.member_within, command.status()).await;
        let status = ended
            .with_context(|| format!("the hook for {member} did not end in time"))?
            .context("start the hook")?;
        ensure!(status.success(), "the hook for {member} failed: {status}");
        Ok(())
    }

    async fn hand_over(&mut self) -> anyhow::Result<()> {
        switch_over(self.store, self.how.0).await?;
        self.epoch = Seen::look_patiently(self.store, self.how.0).await?.state.epoch;
        Ok(())
    }

    /// Waits until the cluster is whole, by several looks.
    async fn whole(&self, deadline: Moment) -> anyhow::Result<Seen> {
        let what = format!("not whole again within {:?}", self.how.2.member_within);
        let times = (LOOK_EVERY, deadline);
        let wrong = |seen: &Seen| stands_in_the_way(seen, Some(&self.lock.held().id));
        until_calm(async || self.look().await, wrong, times, &what).await
    }

    /// Looks, and finds what must not happen meanwhile.
    async fn look(&self) -> anyhow::Result<Seen> {
        let seen = Seen::look_patiently(self.store, self.how.0).await?;
        ensure!(
            seen.state.epoch == self.epoch,
            "the primary was replaced meanwhile (epoch {}): see `pgdeputy history`",
            seen.state.epoch
        );
        if let Some(losses) = self.canary.losses() {
            bail!(losses);
        }
        Ok(seen)
    }

    /// Returns the revision at which the member's report was put last, if there is one.
    async fn put_at(&self, member: &MemberName) -> anyhow::Result<Option<i64>> {
        let key = self.how.0.keys().member(member);
        let snapshot = self.store.read(&key).await.context("read a report")?;
        Ok(snapshot.entries.get(&key).map(|entry| entry.mod_revision))
    }
}
