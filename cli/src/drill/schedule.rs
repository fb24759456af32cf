//! The schedule: drills that come again and again.

use std::fmt;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use cronexpr::Crontab;
use proto::document::{decode, encode};
use proto::drill::Undertaking;
use proto::drill_plan::DrillPlan;
use proto::{ClusterName, RequestId, WallTime};
use serde::Serialize;
use store::{Guard, Operation, Store, Txn, TxnOutcome, clock};

use super::{AskArgs, within};
use crate::args::OutputArgs;
use crate::failure::Failure;
use crate::table::Table;
use crate::target::Target;
use crate::{ask, output, read, runtime};

/// More than anybody needs.
const MOST: usize = 50;

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Add a drill that comes again and again; a `pgdeputy drill runner` takes each turn
    Add(AddArgs),
    /// List them, with the next turn of each
    List(AskArgs),
    /// Remove one
    Remove(RemoveArgs),
}

#[derive(Debug, Args)]
pub struct AddArgs {
    /// When, as in a crontab, with a time zone: "0 3 * * TUE Europe/Berlin"
    #[arg(value_name = "CRON", value_parser = cron)]
    cron: String,
    /// What to break, or reboot-all [default: a fault is drawn each time]
    #[arg(value_name = "NAME", value_parser = undertaking)]
    fault: Option<Undertaking>,
    /// How late a turn may still begin; after that it is missed
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = within)]
    window: Duration,
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Args)]
pub struct RemoveArgs {
    /// Its id; `pgdeputy drill schedule list` tells it
    #[arg(value_name = "ID")]
    id: String,
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    output: OutputArgs,
}

/// Runs the command.
pub fn run(command: Command) -> Result<u8, Failure> {
    let (plans, output) = runtime::answer(async {
        Ok(match command {
            Command::Add(args) => {
                let store = read::connect(&args.target.store).await?;
                (Plans::with(&args.target, vec![add(&store, &args).await?])?, args.output)
            }
            Command::List(args) => {
                let store = read::connect(&args.target.store).await?;
                let plans = all(&store, &args.target).await?;
                let plans = plans.into_iter().map(|(plan, _)| plan).collect();
                (Plans::with(&args.target, plans)?, args.output)
            }
            Command::Remove(args) => {
                let store = read::connect(&args.target.store).await?;
                (Plans::with(&args.target, vec![remove(&store, &args).await?])?, args.output)
            }
        })
    })?;
    output::show(&plans, output).map(|()| 0)
}

async fn add(store: &dyn Store, args: &AddArgs) -> anyhow::Result<DrillPlan> {
    // Of a cluster that is not there it would never be heard again.
    read::documents(store, &args.target).await?;
    if all(store, &args.target).await?.len() >= MOST {
        bail!("{MOST} drills are scheduled already: remove some");
    }
    let plan = DrillPlan {
        id: RequestId::from_random(rand::random()),
        cron: args.cron.clone(),
        fault: args.fault,
        window: args.window,
        by: ask::who(),
        added: clock::wall(),
        last: None,
    };
    let key = args.target.keys().drill_plan(&plan.id);
    let put = Operation::Put { key, value: encode(&plan).into_bytes(), lease: None };
    let txn = Txn { when: Vec::new(), then: vec![put] };
    store.commit(txn).await.context("schedule a drill")?;
    Ok(plan)
}

async fn remove(store: &dyn Store, args: &RemoveArgs) -> anyhow::Result<DrillPlan> {
    let found = all(store, &args.target).await?.into_iter().find(|(p, _)| p.id.0 == args.id);
    let (plan, revision) = found.with_context(|| format!("no drill {} is scheduled", args.id))?;
    let key = args.target.keys().drill_plan(&plan.id);
    let when = vec![Guard::ModRevision(key.clone(), revision)];
    let txn = Txn { when, then: vec![Operation::Delete { key }] };
    match store.commit(txn).await.context("remove a drill")? {
        TxnOutcome::Committed { .. } => Ok(plan),
        TxnOutcome::Conflict => bail!("its turn was taken just now: try again"),
    }
}

/// Returns all plans with the revisions that guard them. One that cannot be read is passed over, and named.
pub async fn all(store: &dyn Store, target: &Target) -> anyhow::Result<Vec<(DrillPlan, i64)>> {
    let prefix = target.keys().all_drill_plans();
    let snapshot = store.read(&prefix).await.context("read the schedule of drills")?;
    let mut plans = Vec::new();
    for (key, entry) in snapshot.entries {
        match decode::<DrillPlan>(&entry.value) {
            Ok(plan) => plans.push((plan, entry.mod_revision)),
            Err(error) => tracing::error!(key, %error, "read a scheduled drill"),
        }
    }
    Ok(plans)
}

/// Returns the first turn of `plan` that was neither taken nor missed.
pub fn next_turn(plan: &DrillPlan) -> anyhow::Result<WallTime> {
    let after = plan.last.as_ref().map_or(plan.added, |turn| turn.due);
    let crontab: Crontab = cronexpr::parse_crontab(&plan.cron).map_err(anyhow::Error::msg)?;
    let after = jiff::Timestamp::from_millisecond(after.0).context("a time of the schedule")?;
    let next = crontab.find_next(after.to_string().as_str()).map_err(anyhow::Error::msg)?;
    Ok(WallTime(next.timestamp().as_millisecond()))
}

fn undertaking(given: &str) -> Result<Undertaking, String> {
    given.parse()
}

fn cron(given: &str) -> Result<String, String> {
    match cronexpr::parse_crontab(given) {
        Ok(_) => Ok(given.to_owned()),
        Err(error) => {
            Err(format!("{error}; write it as \"0 3 * * TUE Europe/Berlin\", with a time zone"))
        }
    }
}

/// Plans, for people and programs. Field names are scripted against: they stay.
#[derive(Debug, Serialize)]
struct Plans {
    cluster: ClusterName,
    scheduled: Vec<Planned>,
}

#[derive(Debug, Serialize)]
struct Planned {
    #[serde(flatten)]
    plan: DrillPlan,
    next: WallTime,
}

impl Plans {
    fn with(target: &Target, plans: Vec<DrillPlan>) -> anyhow::Result<Self> {
        let planned = plans.into_iter().map(|plan| Ok(Planned { next: next_turn(&plan)?, plan }));
        let scheduled = planned.collect::<anyhow::Result<_>>()?;
        Ok(Self { cluster: target.cluster.clone(), scheduled })
    }
}

impl fmt::Display for Plans {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new(&["id", "when", "drill", "next turn", "by"]);
        for Planned { plan, next } in &self.scheduled {
            table.row([
                plan.id.to_string(),
                plan.cron.clone(),
                plan.fault.map_or("any".into(), |fault| fault.to_string()),
                next.to_string(),
                plan.by.clone(),
            ]);
        }
        write!(f, "cluster {}\n{table}", self.cluster)
    }
}

#[cfg(test)]
mod tests {
    use proto::drill_plan::Turn;

    use super::*;

    fn at(text: &str) -> WallTime {
        WallTime(text.parse::<jiff::Timestamp>().unwrap().as_millisecond())
    }

    #[test]
    fn turns_follow_the_clocks_of_their_zone() {
        let mut plan = DrillPlan {
            id: RequestId::from_random(1),
            cron: "0 3 * * TUE Europe/Berlin".into(),
            fault: None,
            window: Duration::from_secs(600),
            by: "ann@north".into(),
            added: at("2026-10-14T00:00:00Z"),
            last: None,
        };
        // Summer time ends in the night of the 25th.
        let turns =
            ["2026-10-20T01:00:00Z", "2026-10-27T02:00:00Z", "2026-11-03T02:00:00Z"].map(at);
        for due in turns {
            assert_eq!(next_turn(&plan).unwrap(), due);
            plan.last = Some(Turn { due, runner: "north:1".into() });
        }
    }

    #[test]
    fn what_is_no_crontab_is_refused_with_an_example() {
        for given in ["", "tomorrow", "0 3 * * TUE", "0 25 * * * UTC", "0 3 * * * Atlantis/City"] {
            assert!(cron(given).unwrap_err().contains("Europe/Berlin"), "{given}");
        }
        assert!(cron("0 3 * * TUE Europe/Berlin").is_ok());
    }
}
