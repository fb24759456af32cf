//! `status`: who is primary, how its standbys are, who could take over, and what is wrong.
//!
//! One reading of etcd and one question to each keeper. Who could take over is the leader's word, not ours.

pub mod ask;
mod build;
mod member;
mod text;
mod watch;

use std::collections::BTreeMap;

use clap::Args;
use proto::proxy::ProxyReport;
use proto::report::Rejoin;
use proto::schedule::Scheduled;
use proto::spec::Durability;
use proto::status::{MemberStatus, RejoinProgress};
use proto::{Cfg, ClusterName, Epoch, Lsn, MemberName, StateNumber, Timeline};
use serde::Serialize;
use store::Store;

use crate::args::OutputArgs;
use crate::failure::Failure;
use crate::history::Change;
use crate::target::Target;
use crate::{output, read, runtime};

#[derive(Debug, Args)]
pub struct StatusArgs {
    #[command(flatten)]
    target: Target,
    /// Show it again after every change, until interrupted
    #[arg(long)]
    watch: bool,
    #[command(flatten)]
    output: OutputArgs,
}

/// The state of one cluster. Field names are scripted against: they stay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Status {
    pub cluster: ClusterName,
    pub epoch: Epoch,
    /// `waiting` (for a sentinel), `founding`, `promoting`, `restarting`, `open`; `sealing` wins over the others.
    pub phase: &'static str,
    /// The member that the agreed state names; it stays named while another one is being chosen.
    pub primary: Option<MemberName>,
    /// Whether writes may go to `primary`.
    pub writable: bool,
    pub members: Vec<Member>,
    /// Members that could be chosen without loss if the primary vanished now.
    pub promotable: Vec<MemberName>,
    pub promotable_reason: String,
    /// The epoch for which members are being sealed.
    pub sealing: Option<Epoch>,
    pub timeline: Option<Timeline>,
    pub state_number: StateNumber,
    pub cfgs: Vec<Cfg>,
    /// What the spec says of a cluster whose primary has no voter.
    pub durability: Option<Durability>,
    /// The sentinel that decides.
    pub leader: Option<String>,
    pub sentinels: Vec<String>,
    pub proxies: Vec<ProxyReport>,
    /// Switchovers that wait for their time, soonest first.
    pub scheduled: Vec<Scheduled>,
    /// What the leader does or waits for.
    pub verdict: Option<String>,
    pub warnings: Vec<String>,
    pub last_change: Option<Change>,
}

/// One member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Member {
    pub name: MemberName,
    /// What was agreed: `primary`, `standby`, or `none` while it is not admitted.
    pub role: &'static str,
    /// What it does, in one word.
    pub state: &'static str,
    /// Whether it does what was agreed, completely and reported by a living keeper.
    pub healthy: bool,
    pub timeline: Option<Timeline>,
    /// What it holds durably; `null` when its keeper did not answer.
    pub lsn: Option<Lsn>,
    /// How far `lsn` is behind the primary's.
    pub lag_bytes: Option<u64>,
    /// Whether it acknowledges commits as a standby.
    pub synchronous: bool,
    pub complete: bool,
    pub zone: Option<String>,
    pub postgres_address: Option<String>,
    pub http_address: Option<String>,
    /// How long this primary may go on without renewing its right.
    pub serve_for_ms: Option<u64>,
    /// How its fencer ends PostgreSQL's processes where they do not end by themselves.
    pub fenced_by: Option<String>,
    pub rejoin: Option<Rejoin>,
    /// How far its copying is, by its keeper's own word just now.
    pub rejoin_progress: Option<RejoinProgress>,
    pub problems: Vec<String>,
}

/// What the keepers that were asked directly have answered.
pub type Answers = BTreeMap<MemberName, MemberStatus>;

/// Runs the command.
pub fn run(args: StatusArgs) -> Result<u8, Failure> {
    if args.watch {
        runtime::run(|stop| watch::watch(args.target, args.output, stop))?;
        return Ok(0);
    }
    let status = runtime::answer(async {
        let store = read::connect(&args.target.store).await?;
        gather(&store, &args.target).await.map(|(status, _)| status)
    })?;
    output::show(&status, args.output).map(|()| 0)
}

/// Returns the status, and the revision of etcd that it is of.
async fn gather(store: &dyn Store, target: &Target) -> anyhow::Result<(Status, i64)> {
    let documents = read::documents(store, target).await?;
    let answers = ask::all(&documents.reports).await;
    let revision = documents.revision;
    Ok((build::status(target.cluster.clone(), documents, &answers), revision))
}

#[cfg(test)]
mod tests;
