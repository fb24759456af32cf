//! `topology`: where clients find the primary, and whom they may read from; `--watch`: again after every change.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::Args;
use proto::status::MemberStatus;
use proto::topology::{Epochs, Role, Topology};
use proto::{ClusterName, Epoch, Lsn, MemberName, document};
use serde::Serialize;
use store::{Store, Watch};
use tokio_util::sync::CancellationToken;

use crate::args::OutputArgs;
use crate::failure::Failure;
use crate::output::Reader;
use crate::table::{Table, bytes, milliseconds};
use crate::target::Target;
use crate::{output, read, runtime, status};

/// Positions move without any change in etcd. Nothing is learnt of a change by waiting for this.
const POSITIONS_EVERY: Duration = Duration::from_secs(2);

/// Between tries while etcd is away.
const RETRY_EVERY: Duration = Duration::from_secs(1);

#[derive(Debug, Args)]
pub struct TopologyArgs {
    #[command(flatten)]
    target: Target,
    /// Show it again after every change, until interrupted; with --json one document a line
    #[arg(long)]
    watch: bool,
    #[command(flatten)]
    output: OutputArgs,
}

/// The topology with what the keepers say of themselves. Field names are scripted against: they stay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Shown {
    cluster: ClusterName,
    epoch: Epoch,
    /// Absent while the primary is being replaced.
    primary: Option<MemberName>,
    members: Vec<Member>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Member {
    name: MemberName,
    role: Role,
    address: Option<String>,
    zone: Option<String>,
    replay_lsn: Option<Lsn>,
    /// How much of the primary's WAL it has not replayed.
    lag_bytes: Option<u64>,
    /// For how long the oldest of that has been known to it; 0 while all that it has heard of is replayed.
    lag_ms: Option<u64>,
}

/// Runs the command.
pub fn run(args: TopologyArgs) -> Result<u8, Failure> {
    if args.watch {
        runtime::run(|stop| watch(args.target, args.output, stop))?;
        return Ok(0);
    }
    let shown = runtime::answer(async {
        let store = read::connect(&args.target.store).await?;
        gather(&store, &args.target).await.map(|(shown, _)| shown)
    })?;
    output::show(&shown, args.output).map(|()| 0)
}

/// Returns the topology, and the revision of etcd that it is of.
async fn gather(store: &dyn Store, target: &Target) -> anyhow::Result<(Shown, i64)> {
    let keys = target.keys();
    // The reports are asked for their keepers' addresses only; what stands in them does not matter.
    let snapshot = store.read(keys.prefix()).await.context("read the topology")?;
    let entry = snapshot.entries.get(&keys.topology()).with_context(|| {
        format!(
            "no sentinel has told the topology of cluster {} yet: check --cluster, and start a sentinel",
            target.cluster
        )
    })?;
    let topology: Topology = document::decode(&entry.value)?;
    let documents = read::Documents::of(&snapshot, &keys)?;
    let answers = status::ask::all(&documents.reports).await;
    Ok((shown(target.cluster.clone(), topology, &answers), snapshot.revision))
}

fn shown(
    cluster: ClusterName,
    topology: Topology,
    answers: &BTreeMap<MemberName, MemberStatus>,
) -> Shown {
    let positions = |name: &MemberName| answers.get(name).and_then(|a| a.positions);
    let end = topology.primary.as_ref().and_then(positions).map(|p| p.flush_lsn);
    let members = topology.members.into_iter().map(|(name, place)| {
        let replay_lsn = positions(&name).and_then(|p| p.replay_lsn);
        let lag_bytes = end.zip(replay_lsn).map(|(end, at)| end.bytes_ahead_of(at));
        let lag_ms = answers.get(&name).and_then(|a| a.lag).map(|lag| lag.ms);
        Member {
            role: place.role,
            address: place.postgres,
            zone: place.zone,
            replay_lsn,
            lag_bytes: lag_bytes.filter(|_| place.role == Role::Standby),
            lag_ms: lag_ms.filter(|_| place.role == Role::Standby),
            name,
        }
    });
    Shown { cluster, epoch: topology.epoch, primary: topology.primary, members: members.collect() }
}

/// Shows until `stop`. An etcd that goes away later is waited for, and said to be away.
async fn watch(target: Target, output: OutputArgs, stop: CancellationToken) -> anyhow::Result<()> {
    let showing = async {
        let store = read::connect(&target.store).await?;
        // What is wrong from the start, such as an unknown cluster, ends it.
        gather(&store, &target).await?;
        let (mut epochs, mut last) = (Epochs::default(), None);
        loop {
            match follow(&store, &target, output, (&mut epochs, &mut last)).await {
                Ok(()) => return Ok(()),
                Err(error) => eprintln!("pgdeputy: {error:#}; trying again"),
            }
            tokio::time::sleep(RETRY_EVERY).await;
        }
    };
    tokio::select! {
        ended = showing => ended,
        () = stop.cancelled() => Ok(()),
    }
}

/// Shows every change: until nobody reads, or with an error until the watch breaks. A lower epoch is a store that was set
/// back, and is not shown (I19).
async fn follow(
    store: &dyn Store,
    target: &Target,
    output: OutputArgs,
    (epochs, last): (&mut Epochs, &mut Option<Shown>),
) -> anyhow::Result<()> {
    let (mut shown, revision) = gather(store, target).await?;
    let key = target.keys().topology();
    let mut changes = store.watch(&key, revision + 1).await.context("watch the topology")?;
    loop {
        if epochs.admit(shown.epoch) && last.as_ref() != Some(&shown) {
            let text = match output.json {
                true => serde_json::to_string(&shown).context("write JSON")?,
                false => format!("{shown}\n----"),
            };
            if output::write(&text)? == Reader::Gone {
                return Ok(());
            }
            *last = Some(shown);
        }
        ensure!(changed(&mut changes).await, "the watch of the topology broke off");
        shown = gather(store, target).await?.0;
    }
}

/// Waits for a change, or for positions to have moved; false once the watch is broken.
async fn changed(changes: &mut Watch) -> bool {
    match tokio::time::timeout(POSITIONS_EVERY, changes.events.recv()).await {
        Ok(None) => false,
        Err(_) | Ok(Some(_)) => true,
    }
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let primary = self.primary.as_ref().map_or("none, it is being replaced", |p| p.as_str());
        writeln!(f, "cluster {}: epoch {}, primary {primary}", self.cluster, self.epoch)?;
        let mut table = Table::new(&["member", "role", "address", "zone", "lag", "behind for"]);
        for member in &self.members {
            let role = match member.role {
                Role::Primary => "primary",
                Role::Standby => "standby",
                Role::Away => "away",
            };
            let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".into());
            table.row([
                member.name.to_string(),
                role.into(),
                or_dash(&member.address),
                or_dash(&member.zone),
                member.lag_bytes.map_or("-".into(), bytes),
                member
                    .lag_ms
                    .map_or("-".into(), |ms| milliseconds(i64::try_from(ms).unwrap_or(i64::MAX))),
            ]);
        }
        write!(f, "{table}")
    }
}
