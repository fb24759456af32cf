//! `adopt-store`: vouches for an etcd that was restored from a backup, emptied or swapped, so that decisions go on.
//!
//! The one rule: what is written is the last state that a member acted on, never what the backup says. Nothing is written
//! without `--confirm`, and only over what was shown.

mod truth;

use std::fmt;

use anyhow::{Context, bail};
use clap::Args;
use proto::document::{decode, encode};
use proto::{ClusterName, ClusterState, Epoch, MemberName, StateNumber};
use serde::Serialize;
use store::{Guard, Operation, Snapshot, Store, StoreError, Txn, TxnOutcome};

use self::truth::{Truth, truth};
use crate::args::OutputArgs;
use crate::failure::{BadValue, Failure};
use crate::read::Documents;
use crate::target::Target;
use crate::{output, read, runtime};

#[derive(Debug, Args)]
pub struct AdoptStoreArgs {
    #[command(flatten)]
    target: Target,
    /// The cluster's name once more: do it, after having read what it does
    #[arg(long, value_name = "NAME")]
    confirm: Option<ClusterName>,
    #[command(flatten)]
    output: OutputArgs,
}

/// What would be, or was, written.
#[derive(Debug, Serialize)]
struct Adoption {
    cluster: ClusterName,
    /// What etcd holds: none if it has no state.
    found: Option<StateNumber>,
    found_primary: Option<MemberName>,
    /// The last state that a member acted on, and one that did.
    acted_on: StateNumber,
    by: MemberName,
    vouched_by: Vec<MemberName>,
    primary: Option<MemberName>,
    epoch: Epoch,
    /// The epoch for which members are being sealed: the primary is being replaced.
    sealing: Option<Epoch>,
    cfgs: Vec<String>,
    /// The number of the state that is written.
    number: StateNumber,
    done: bool,
}

/// Runs the command.
pub fn run(args: AdoptStoreArgs) -> Result<u8, Failure> {
    let cluster = &args.target.cluster;
    if let Some(other) = args.confirm.as_ref().filter(|name| *name != cluster) {
        return Err(BadValue(format!("--confirm {other} is not the cluster {cluster}")).into());
    }
    let adoption = runtime::answer(async {
        let store = read::connect(&args.target.store).await?;
        adopt(&store, &args.target, args.confirm.is_some()).await
    })?;
    output::show(&adoption, args.output).map(|()| 0)
}

async fn adopt(store: &dyn Store, target: &Target, confirmed: bool) -> anyhow::Result<Adoption> {
    let keys = target.keys();
    let mut seen = store.read(keys.prefix()).await.context("read the cluster's documents")?;
    let mut documents = Documents::of(&seen, &keys)?;
    let Some(spec) = &documents.spec else {
        bail!(
            "this etcd holds no spec of cluster {}: restore a backup of etcd, of whatever age, first",
            target.cluster
        );
    };
    if confirmed {
        // The leases in a backup live again for their whole time: reports of that time have lapsed by then.
        tokio::time::sleep(spec.lease_ttl * 2).await;
        seen = store.read(keys.prefix()).await.context("read the cluster's documents again")?;
        documents = Documents::of(&seen, &keys)?;
    }
    let found = seen.entries.get(&keys.state()).map(|e| decode::<ClusterState>(&e.value));
    let found = found.transpose().context("read the state that etcd holds")?;
    let truth = truth(found.as_ref(), &documents.reports, &seen.cluster_id)
        .map_err(|why| anyhow::anyhow!("{why}. Nothing was changed"))?;
    if confirmed {
        write(store, target, &seen, &truth).await?;
    }
    Ok(adoption(target, found.as_ref(), truth, confirmed))
}

/// Writes over what was read, and over nothing else: the state, and the reports that it rests on.
async fn write(
    store: &dyn Store,
    target: &Target,
    seen: &Snapshot,
    truth: &Truth,
) -> anyhow::Result<()> {
    let keys = target.keys();
    let guard = |key: String| match seen.entries.get(&key) {
        Some(entry) => Guard::ModRevision(key, entry.mod_revision),
        None => Guard::Absent(key),
    };
    let mut when = vec![guard(keys.state())];
    when.extend(truth.vouched_by.iter().map(|member| guard(keys.member(member))));
    let value = encode(&truth.next).into_bytes();
    let then = vec![Operation::Put { key: keys.state(), value, lease: None }];
    match store.commit(Txn { when, then }).await {
        Ok(TxnOutcome::Committed { .. }) => Ok(()),
        Ok(TxnOutcome::Conflict) => bail!(
            "the state or a member's report changed meanwhile: nothing was written, look and try again"
        ),
        Err(StoreError::Unknown(why)) => bail!(
            "whether it was written is not known ({why}): look with `pgdeputy status` whether members are still frozen"
        ),
        Err(error) => Err(error).context("write the state; nothing was changed"),
    }
}

fn adoption(target: &Target, found: Option<&ClusterState>, truth: Truth, done: bool) -> Adoption {
    let Truth { next, acted_on, by, vouched_by } = truth;
    Adoption {
        cluster: target.cluster.clone(),
        found: found.map(|f| f.number),
        found_primary: found.and_then(|f| f.primary.clone()),
        acted_on,
        by,
        vouched_by: vouched_by.into_iter().collect(),
        primary: next.primary.clone(),
        epoch: next.epoch,
        sealing: next.sealing,
        cfgs: next.cfgs.iter().map(ToString::to_string).collect(),
        number: next.number,
        done,
    }
}

impl fmt::Display for Adoption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |member: &Option<MemberName>| {
            member.as_ref().map_or("nobody".to_owned(), ToString::to_string)
        };
        match self.found {
            Some(number) => writeln!(
                f,
                "etcd holds:     state {number}, primary {}",
                name(&self.found_primary)
            )?,
            None => writeln!(f, "etcd holds:     no state")?,
        }
        let vouched: Vec<String> = self.vouched_by.iter().map(ToString::to_string).collect();
        writeln!(f, "members know:   state {} (from {})", self.acted_on, self.by)?;
        writeln!(f, "vouched for by: {}", vouched.join(", "))?;
        writeln!(f, "primary:        {} of epoch {}", name(&self.primary), self.epoch)?;
        writeln!(f, "acknowledge:    {}", self.cfgs.join("; "))?;
        if let Some(sealing) = self.sealing {
            writeln!(
                f,
                "sealing:        epoch {sealing} was under way and is completed: sessions are cut"
            )?;
        }
        match self.done {
            true => writeln!(
                f,
                "written as state {}: members believe this store again, look with `pgdeputy status`",
                self.number
            ),
            false => writeln!(
                f,
                "nothing was changed. To write what members know as state {}: give --confirm {}",
                self.number, self.cluster
            ),
        }
    }
}
