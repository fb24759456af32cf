//! `init`: writes what the operator wants of a cluster, and passwords for its keepers.
//!
//! The one rule: what is there is never overwritten unless `--update` asks for it, and then only the spec that
//! was just read. A spec is checked before anything is opened.

mod spec_file;

use std::fmt;
use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::Args;
use proto::document::{decode, encode};
use proto::right::Secrets;
use proto::{ClusterName, ClusterSpec};
use serde::Serialize;
use store::{Guard, Operation, Snapshot, Store, StoreError, Txn, TxnOutcome};

use crate::args::OutputArgs;
use crate::failure::Failure;
use crate::target::Target;
use crate::{output, read, runtime};

#[derive(Debug, Args)]
pub struct InitArgs {
    #[command(flatten)]
    target: Target,
    /// What is wanted of the cluster, as TOML or JSON by its ending; the defaults where it is absent
    #[arg(long, value_name = "FILE")]
    spec: Option<PathBuf>,
    /// Replace the spec of a cluster that is initialised already
    #[arg(long, requires = "spec")]
    update: bool,
    #[command(flatten)]
    output: OutputArgs,
}

/// What was done.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Done {
    cluster: ClusterName,
    spec: Spec,
    secrets: Passwords,
    /// The revision of etcd with which it took effect.
    revision: i64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Spec {
    Written,
    Replaced,
    Unchanged,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Passwords {
    Generated,
    Kept,
}

/// Runs the command.
pub fn run(args: InitArgs) -> Result<u8, Failure> {
    let spec = match &args.spec {
        Some(path) => spec_file::read(path)?,
        None => ClusterSpec::default(),
    };
    let done = runtime::answer(async {
        let store = read::connect(&args.target.store).await?;
        init(&store, &args.target, &spec, args.update).await
    })?;
    output::show(&done, args.output).map(|()| 0)
}

async fn init(
    store: &dyn Store,
    target: &Target,
    spec: &ClusterSpec,
    update: bool,
) -> anyhow::Result<Done> {
    let keys = target.keys();
    let seen = store.read(keys.prefix()).await.context("read what is there")?;
    let (spec_done, spec_change) = spec_change(target, &seen, spec, update)?;
    let (secrets_done, secrets_change) = secrets_change(target, &seen);
    let done = |revision| Done {
        cluster: target.cluster.clone(),
        spec: spec_done,
        secrets: secrets_done,
        revision,
    };
    let changes: Vec<(Guard, Operation)> =
        [spec_change, secrets_change].into_iter().flatten().collect();
    if changes.is_empty() {
        return Ok(done(seen.revision));
    }
    let (when, then): (Vec<Guard>, Vec<Operation>) = changes.into_iter().unzip();
    match store.commit(Txn { when, then: then.clone() }).await {
        Ok(TxnOutcome::Committed { revision }) => Ok(done(revision)),
        Ok(TxnOutcome::Conflict) => {
            bail!(
                "cluster {} was changed by somebody else just now: nothing was written, look and try again",
                target.cluster
            )
        }
        Err(StoreError::Unknown(why)) => match applied(store, target, &then).await? {
            Some(revision) => Ok(done(revision)),
            None => bail!("the write did not reach etcd ({why}): nothing was written, try again"),
        },
        Err(e) => Err(e).context("write the spec"),
    }
}

/// Returns what to do about the spec; an error if there is one that was not to be replaced.
fn spec_change(
    target: &Target,
    seen: &Snapshot,
    spec: &ClusterSpec,
    update: bool,
) -> anyhow::Result<(Spec, Option<(Guard, Operation)>)> {
    let key = target.keys().spec();
    let cluster = &target.cluster;
    let put = Operation::Put { key: key.clone(), value: encode(spec).into_bytes(), lease: None };
    match seen.entries.get(&key) {
        None if update => {
            bail!("cluster {cluster} has no spec to update: leave out --update to initialise it")
        }
        None => Ok((Spec::Written, Some((Guard::Absent(key), put)))),
        Some(_) if !update => {
            bail!(
                "cluster {cluster} is initialised already, nothing was changed: give --update to replace its spec"
            )
        }
        Some(entry) => {
            // Not written over if a newer pgdeputy wrote it.
            let present: ClusterSpec =
                decode(&entry.value).context("read the present spec, which stays as it is")?;
            match present == *spec {
                true => Ok((Spec::Unchanged, None)),
                false => {
                    Ok((Spec::Replaced, Some((Guard::ModRevision(key, entry.mod_revision), put))))
                }
            }
        }
    }
}

/// Returns what to do about the passwords: they are made once and stay.
fn secrets_change(target: &Target, seen: &Snapshot) -> (Passwords, Option<(Guard, Operation)>) {
    let key = target.keys().secrets();
    if seen.entries.contains_key(&key) {
        return (Passwords::Kept, None);
    }
    let secrets = Secrets { superuser: password(), replication: password(), rewind: password() };
    let put =
        Operation::Put { key: key.clone(), value: encode(&secrets).into_bytes(), lease: None };
    (Passwords::Generated, Some((Guard::Absent(key), put)))
}

/// 128 random bits: nobody types these, and nobody guesses them.
fn password() -> String {
    format!("{:032x}", rand::random::<u128>())
}

/// Returns the revision at which all of `then` is in the store, if it is.
async fn applied(
    store: &dyn Store,
    target: &Target,
    then: &[Operation],
) -> anyhow::Result<Option<i64>> {
    let keys = target.keys();
    let seen = store.read(keys.prefix()).await.context("look whether the write took effect")?;
    let there = then.iter().all(|operation| match operation {
        Operation::Put { key, value, .. } => {
            seen.entries.get(key).is_some_and(|e| e.value == *value)
        }
        Operation::Delete { key } => !seen.entries.contains_key(key),
    });
    Ok(there.then_some(seen.revision))
}

impl fmt::Display for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cluster = &self.cluster;
        match self.spec {
            Spec::Written => writeln!(f, "cluster {cluster}: spec written")?,
            Spec::Replaced => writeln!(f, "cluster {cluster}: spec replaced")?,
            Spec::Unchanged => {
                writeln!(f, "cluster {cluster}: spec is the same as before, left as it is")?
            }
        }
        match self.secrets {
            Passwords::Generated => {
                writeln!(f, "passwords of the keepers' roles generated, under the key `secrets`")?;
            }
            Passwords::Kept => {
                writeln!(f, "passwords of the keepers' roles are there already, kept")?
            }
        }
        if self.spec == Spec::Replaced {
            writeln!(
                f,
                "members take PostgreSQL's settings over within seconds; what PostgreSQL refuses is a problem in status"
            )?;
        }
        if self.spec == Spec::Written {
            writeln!(
                f,
                "next: start a sentinel (pgdeputy sentinel) and the keepers (pgdeputy keeper)"
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_32_hexadecimal_digits_and_differ() {
        let (one, other) = (password(), password());
        assert!(one.len() == 32 && one.bytes().all(|b| b.is_ascii_hexdigit()), "{one}");
        assert_ne!(one, other);
    }
}
