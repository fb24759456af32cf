//! `failover --accept-data-loss`: a primary without the members that may hold acknowledged commits, when those never
//! come back.
//!
//! The one rule: nobody loses data by a habit. What would be lost is shown first, by member, and the name of the
//! cluster has to be typed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::{BufRead, IsTerminal};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::Args;
use proto::request::{Answered, Wanted};
use proto::state::Floor;
use proto::{Cfg, ClusterName, MemberName};
use serde::Serialize;

use crate::args::OutputArgs;
use crate::ask;
use crate::failure::Failure;
use crate::members::{Outcome, ask as ask_for};
use crate::read::{self, Documents};
use crate::table::wrapped;
use crate::target::Target;
use crate::{output, runtime};

/// The leader answers within moments; the seals that follow are waited for longer.
const VALID_FOR: Duration = Duration::from_secs(10);

#[derive(Debug, Args)]
pub struct FailoverArgs {
    /// Promote the best live member although acknowledged commits may be lost by it
    #[arg(long, required_unless_present = "acknowledge_loss", conflicts_with = "acknowledge_loss")]
    accept_data_loss: bool,
    /// The name of the cluster, instead of typing it when asked
    #[arg(long, value_name = "CLUSTER", conflicts_with = "acknowledge_loss")]
    confirm: Option<String>,
    /// Take note of what was accepted: `status` stops showing it
    #[arg(long)]
    acknowledge_loss: bool,
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    output: OutputArgs,
}

/// What would be lost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Price {
    cluster: ClusterName,
    /// Members that are given up, with what each was last known to hold.
    given_up: BTreeMap<MemberName, Option<Floor>>,
    /// Live members, one of which is promoted, with what each was last known to hold.
    live: BTreeMap<MemberName, Option<Floor>>,
    /// The Cfgs under which commits were acknowledged that the live members may lack.
    unmet: Vec<Cfg>,
}

/// Runs the command.
pub fn run(args: FailoverArgs) -> Result<u8, Failure> {
    if args.acknowledge_loss {
        return ask_for(args.target, Wanted::AcknowledgeLoss, args.output);
    }
    if let Some(typed) = &args.confirm {
        confirmed(&args.target.cluster, typed).map_err(|e| Failure::usage(e.to_string()))?;
    }
    let answered = runtime::answer(accept(&args))?;
    output::show(&Outcome::of(args.target.cluster, answered), args.output).map(|()| 0)
}

async fn accept(args: &FailoverArgs) -> anyhow::Result<Answered> {
    let store = read::connect(&args.target.store).await?;
    let documents = read::documents(&store, &args.target).await?;
    let price = price(&args.target.cluster, &documents)?;
    eprint!("{price}");
    if args.confirm.is_none() {
        confirmed(&args.target.cluster, &typed(&args.target.cluster)?)?;
    }
    let wanted = Wanted::AcceptLoss { give_up: price.given_up.into_keys().collect() };
    ask::until_done(&store, &args.target, &documents, wanted, VALID_FOR).await
}

fn typed(cluster: &ClusterName) -> anyhow::Result<String> {
    ensure!(
        std::io::stdin().is_terminal(),
        "nobody can be asked here: give --confirm {cluster} if that is what you want"
    );
    eprint!("type the name of the cluster to go on: ");
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line).context("read the name")?;
    Ok(line.trim().to_owned())
}

fn confirmed(cluster: &ClusterName, typed: &str) -> anyhow::Result<()> {
    ensure!(
        typed == cluster.as_str(),
        "{typed:?} is not the name of the cluster, {cluster}: nothing was changed"
    );
    Ok(())
}

/// Returns what would be lost; an error where nothing has to be. The leader judges it again by its own eyes.
fn price(cluster: &ClusterName, documents: &Documents) -> anyhow::Result<Price> {
    let state = documents.state.as_ref().with_context(|| {
        format!("cluster {cluster} has not been founded yet: there is nothing to lose")
    })?;
    let is_live = |name: &MemberName| {
        let admitted = state.members.get(name);
        documents
            .reports
            .get(name)
            .is_some_and(|r| r.complete && admitted.is_some_and(|a| a.incarnation == r.incarnation))
    };
    let live: BTreeSet<MemberName> = state.members.keys().filter(|m| is_live(m)).cloned().collect();
    let unmet: Vec<Cfg> = state.cfgs.iter().filter(|c| !c.is_sealed_by(&live)).cloned().collect();
    if unmet.is_empty() {
        let who = state.primary.as_ref().map_or("nobody", MemberName::as_str);
        bail!(
            "nothing has to be lost: the live members hold every acknowledged commit (the primary is {who}); see \
             pgdeputy explain, or use pgdeputy switchover"
        );
    }
    let named = unmet.iter().flat_map(|c| c.voters.iter().chain([&c.leader]));
    let floor = |name: &MemberName| state.members.get(name).and_then(|m| m.floor);
    let given_up = named.filter(|m| !live.contains(*m)).map(|m| (m.clone(), floor(m))).collect();
    let live = live.iter().map(|m| (m.clone(), floor(m))).collect();
    Ok(Price { cluster: cluster.clone(), given_up, live, unmet })
}

impl fmt::Display for Price {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let held = |floor: &Option<Floor>| match floor {
            Some(floor) => format!("was seen to hold {} of epoch {}", floor.lsn, floor.epoch),
            None => "nothing is known of what it held".to_owned(),
        };
        let mut lines = vec![format!(
            "cluster {}: acknowledged commits that only these members hold WILL BE LOST:",
            self.cluster
        )];
        lines.extend(self.given_up.iter().map(|(m, floor)| format!("  {m}: {}", held(floor))));
        lines.push("one of these is promoted, the one that holds the most:".to_owned());
        lines.extend(self.live.iter().map(|(m, floor)| format!("  {m}: {}", held(floor))));
        lines.extend(self.unmet.iter().map(|c| format!("commits were acknowledged by Cfg {c}")));
        lines.push(
            "Each acknowledged commit of after what was seen may be among the lost ones. If one of the given up \
             members still runs somewhere without etcd, it may go on acknowledging: make sure that it does not. \
             Started again, it is brought back as a standby, and what only it held is dropped then."
                .to_owned(),
        );
        for line in lines {
            writeln!(f, "{}", wrapped(&line))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_very_name_of_the_cluster_confirms() {
        let cluster: ClusterName = "shop".parse().unwrap();
        assert!(confirmed(&cluster, "shop").is_ok());
        for typed in ["", "Shop", "yes", "shop "] {
            let error = confirmed(&cluster, typed).unwrap_err().to_string();
            assert!(error.contains("nothing was changed"), "{error}");
        }
    }
}
