//! `drill reboot-all`: each member is rebooted by a hook command, one at a time and never two, the primary last.
//!
//! The one rule: it stops at the first surprise, and leaves the cluster as it then is. Nothing is rebooted that the
//! cluster could not spare a moment before.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::Args;
use proto::drill_lock::{DrillLock, DrillWork};
use proto::topology::Role;
use proto::{ClusterName, Epoch, MemberName, RequestId};
use serde::Serialize;
use store::etcd::EtcdStore;
use store::{Store, Txn, clock};
use tokio::process::Command;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::canary::Watch;
use super::guard::unfit;
use super::lock::{Lock, kept};
use super::orders::switch_over;
use super::seen::{Seen, until_calm};
use super::way::WayArgs;
use super::within;
use crate::args::OutputArgs;
use crate::failure::Failure;
use crate::target::Target;
use crate::{ask, output, read, runtime};

/// How long the lock outlives this process, and etcd may be away: hosts of etcd are rebooted, too. Whole seconds.
const LEASE: Duration = Duration::from_secs(60);

/// So often the cluster is looked at while it becomes whole again.
const LOOK_EVERY: Duration = Duration::from_millis(500);

#[derive(Debug, Args)]
pub struct RebootArgs {
    #[command(flatten)]
    target: Target,
    /// Command that reboots one member and returns when its host is up again; run by `sh -c` with PGDEPUTY_MEMBER and
    /// PGDEPUTY_ADDRESS (of its PostgreSQL) in the environment
    #[arg(long, value_name = "COMMAND")]
    hook: String,
    #[command(flatten)]
    way: WayArgs,
    /// How long one member may take, from the hook's beginning until the cluster is fully redundant again
    #[arg(long, value_name = "DURATION", default_value = "15m", value_parser = within)]
    member_within: Duration,
    /// Only these, as when a run before was stopped: divided by commas
    #[arg(long, value_name = "MEMBERS", value_delimiter = ',')]
    only: Vec<MemberName>,
    /// Say in which order, and whether it could begin now; reboot nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    output: OutputArgs,
}

/// What was done. Field names are scripted against: they stay.
#[derive(Debug, Serialize)]
struct Rebooted {
    cluster: ClusterName,
    order: Vec<MemberName>,
    done: Vec<Done>,
    /// Those that were not rebooted, by `--dry-run` or because of the surprise.
    left: Vec<MemberName>,
    surprise: Option<String>,
    canaries_acknowledged: Option<u64>,
    canaries_lost: Option<u64>,
}

#[derive(Debug, Serialize)]
struct Done {
    member: MemberName,
    /// From the hook's beginning until the cluster was fully redundant again.
    ms: u64,
}

/// Runs the command.
pub fn run(args: RebootArgs) -> Result<u8, Failure> {
    let rebooted = runtime::run(|stop| reboot(&args, stop))?;
    let code = u8::from(rebooted.surprise.is_some());
    output::show(&rebooted, args.output).map(|()| code)
}

async fn reboot(args: &RebootArgs, stop: CancellationToken) -> anyhow::Result<Rebooted> {
    let store = read::connect(&args.target.store).await?;
    let seen = Seen::ask(&store, &args.target).await?;
    let order = order(&seen, &args.only)?;
    let mut rebooted = Rebooted {
        cluster: args.target.cluster.clone(),
        left: order.clone(),
        order,
        done: Vec::new(),
        surprise: stands_in_the_way(&seen, None),
        canaries_acknowledged: None,
        canaries_lost: None,
    };
    if args.dry_run || rebooted.surprise.is_some() {
        return Ok(rebooted);
    }
    let work = DrillWork::Reboots { member: None };
    let held = DrillLock { id: RequestId::from_random(rand::random()), by: ask::who(), work };
    let key = args.target.keys().drill_lock();
    let (lease, _) = store.grant(LEASE).await.context("ask for a lease")?;
    let lock = Lock::take(&store, key, (held, lease, LEASE), Txn::default());
    let lock = lock.await.map_err(|(_, error)| error)?;
    let canary = Watch::start(&args.way).await.context("the canary cannot write")?;
    let epoch = seen.state.epoch;
    let round = Round { store: &store, args, lock: &lock, epoch, canary: &canary };
    kept(&store, (lease, LEASE), all(round, &mut rebooted, stop)).await;
    if let Some(shown) = canary.end().await {
        rebooted.canaries_acknowledged = shown.acknowledged;
        rebooted.canaries_lost = shown.lost;
        rebooted.surprise = rebooted.surprise.or(shown.problem);
    }
    lock.release().await.context("give up the lock")?;
    Ok(rebooted)
}

/// Reboots all that are left, up to the first surprise.
async fn all(mut round: Round<'_>, rebooted: &mut Rebooted, stop: CancellationToken) {
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
fn stands_in_the_way(seen: &Seen, own: Option<&RequestId>) -> Option<String> {
    let problems = unfit(seen, own);
    (!problems.is_empty()).then(|| problems.join("; "))
}

/// Returns the standbys, of each zone in turn, and last the primary.
fn order(seen: &Seen, only: &[MemberName]) -> anyhow::Result<Vec<MemberName>> {
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
struct Round<'a> {
    store: &'a EtcdStore,
    args: &'a RebootArgs,
    lock: &'a Lock<'a>,
    /// Another one is a surprise, but for our own switchover.
    epoch: Epoch,
    canary: &'a Watch,
}

impl Round<'_> {
    /// Reboots one member, and returns after how many milliseconds all was redundant again.
    async fn one(&mut self, member: &MemberName) -> anyhow::Result<u64> {
        let turn = || DrillWork::Reboots { member: Some(member.clone()) };
        self.lock.go_on(turn()).await?;
        // Whole it was after the one before; a problem that has come since may pass.
        let mut seen = self.whole(clock::now() + self.args.member_within).await?;
        if seen.state.primary.as_ref() == Some(member) {
            self.lock.go_on(turn()).await?;
            self.hand_over().await?;
            seen = self.whole(clock::now() + self.args.member_within).await?;
        }
        // What was waited for may have taken minutes.
        self.lock.go_on(turn()).await?;
        let begun = clock::now();
        let deadline = begun + self.args.member_within;
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
        let mut command = Command::new("sh");
        command.arg("-c").arg(&self.args.hook).env("PGDEPUTY_MEMBER", member.as_str());
        command.env("PGDEPUTY_ADDRESS", address.unwrap_or_default()).kill_on_drop(true);
        let ended = timeout(self.args.member_within, command.status()).await;
        let status = ended
            .with_context(|| format!("the hook for {member} did not end in time"))?
            .context("start the hook")?;
        ensure!(status.success(), "the hook for {member} failed: {status}");
        Ok(())
    }

    async fn hand_over(&mut self) -> anyhow::Result<()> {
        switch_over(self.store, &self.args.target).await?;
        self.epoch = Seen::look_patiently(self.store, &self.args.target).await?.state.epoch;
        Ok(())
    }

    /// Waits until the cluster is whole, by several looks.
    async fn whole(&self, deadline: proto::Moment) -> anyhow::Result<Seen> {
        let what = format!("not whole again within {:?}", self.args.member_within);
        let times = (LOOK_EVERY, deadline);
        let wrong = |seen: &Seen| stands_in_the_way(seen, Some(&self.lock.held().id));
        until_calm(async || self.look().await, wrong, times, &what).await
    }

    /// Looks, and finds what must not happen meanwhile.
    async fn look(&self) -> anyhow::Result<Seen> {
        let seen = Seen::look_patiently(self.store, &self.args.target).await?;
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
        let key = self.args.target.keys().member(member);
        let snapshot = self.store.read(&key).await.context("read a report")?;
        Ok(snapshot.entries.get(&key).map(|entry| entry.mod_revision))
    }
}

impl fmt::Display for Rebooted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names =
            |all: &[MemberName]| all.iter().map(MemberName::as_str).collect::<Vec<_>>().join(", ");
        write!(f, "cluster {}: order {}", self.cluster, names(&self.order))?;
        for done in &self.done {
            write!(f, "\n{} rebooted, fully redundant again after {} ms", done.member, done.ms)?;
        }
        if let (Some(told), Some(lost)) = (self.canaries_acknowledged, self.canaries_lost) {
            write!(f, "\ncanaries acknowledged: {told}, lost: {lost}")?;
        }
        let Some(surprise) = &self.surprise else { return Ok(()) };
        write!(f, "\nSTOPPED: {surprise}")?;
        match self.left.is_empty() {
            true => Ok(()),
            false => write!(
                f,
                "\nnot rebooted: {0} (go on with --only {0})",
                self.left.iter().map(MemberName::as_str).collect::<Vec<_>>().join(",")
            ),
        }
    }
}
