//! `switchover`: asks for another primary, waits for the end, and says what happened.

use std::fmt;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use proto::request::{Terms, Wanted};
use proto::{ClusterName, Epoch, MemberName};
use serde::Serialize;

use crate::args::OutputArgs;
use crate::failure::Failure;
use crate::history::Change;
use crate::table::milliseconds;
use crate::target::Target;
use crate::{ask, output, read, runtime};

#[derive(Debug, Args)]
pub struct SwitchoverArgs {
    #[command(flatten)]
    target: Target,
    /// Member that is to be the primary [default: the best standby]
    #[arg(long, value_name = "MEMBER")]
    to: Option<MemberName>,
    /// How long it may take until the primary is stopped; after that nothing is changed
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = timeout)]
    timeout: Duration,
    #[command(flatten)]
    output: OutputArgs,
}

/// What a switchover has come to.
#[derive(Debug, Serialize)]
struct Switched {
    cluster: ClusterName,
    from: Option<MemberName>,
    to: Option<MemberName>,
    epoch: Epoch,
    /// From the order to stop the old primary until the new one served; clients see a little more.
    writes_away_ms: Option<i64>,
    outcome: String,
}

/// Runs the command.
pub fn run(args: SwitchoverArgs) -> Result<u8, Failure> {
    let switched = runtime::answer(switch(&args))?;
    output::show(&switched, args.output).map(|()| 0)
}

async fn switch(args: &SwitchoverArgs) -> anyhow::Result<Switched> {
    let store = read::connect(&args.target.store).await?;
    let documents = read::documents(&store, &args.target).await?;
    let wanted = Wanted::Switchover(Terms::to(args.to.clone()));
    let answered = ask::until_done(&store, &args.target, &documents, wanted, args.timeout).await?;
    let documents = read::documents(&store, &args.target).await?;
    let state = documents.state.context("the state is gone")?;
    let record = documents.history.iter().rev().find(|r| r.epoch == state.epoch && r.restart == 0);
    let change = record.map(Change::of);
    Ok(Switched {
        cluster: args.target.cluster.clone(),
        from: change.as_ref().and_then(Change::from),
        to: state.primary,
        epoch: state.epoch,
        writes_away_ms: change.and_then(|c| c.writes_away_ms()),
        outcome: answered.outcome.text().to_owned(),
    })
}

impl fmt::Display for Switched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name =
            |member: &Option<MemberName>| member.as_ref().map_or("?".into(), ToString::to_string);
        writeln!(f, "cluster {}: {}", self.cluster, self.outcome)?;
        writeln!(f, "from {} to {}, epoch {}", name(&self.from), name(&self.to), self.epoch)?;
        let away = self.writes_away_ms.map_or("not known".into(), milliseconds);
        write!(
            f,
            "writes were away for {away}, from the order to stop until the new primary served"
        )
    }
}

fn timeout(given: &str) -> Result<Duration, String> {
    let (least, most) = (Duration::from_secs(2), Duration::from_secs(3600));
    match humantime::parse_duration(given) {
        Ok(within) if (least..=most).contains(&within) => Ok(within),
        Ok(_) => Err("use 2s to 1h".into()),
        Err(e) => Err(format!("not a duration such as 30s: {e}")),
    }
}
