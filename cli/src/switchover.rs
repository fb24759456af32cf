//! `switchover`: asks for another primary now, waits for the end, and says what happened; or says beforehand whether it
//! could work, or puts it down for later.

mod checks;
mod dry_run;
mod later;
mod time;

use std::fmt;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use proto::request::{Terms, Unheld, Wanted};
use proto::{ClusterName, Epoch, MemberName};
use serde::Serialize;

use crate::args::OutputArgs;
use crate::failure::Failure;
use crate::history::{Change, PhaseTimes};
use crate::table::milliseconds;
use crate::target::Target;
use crate::{ask, output, read, runtime};

#[derive(Debug, Args)]
pub struct SwitchoverArgs {
    #[command(flatten)]
    target: Target,
    /// Member that is to be the primary [default: the best standby]
    #[arg(long, value_name = "MEMBER", conflicts_with = "away_from_zone")]
    to: Option<MemberName>,
    /// Evacuate this zone: the best standby outside of it takes over
    #[arg(long, value_name = "ZONE")]
    away_from_zone: Option<String>,
    /// How long it may take until the primary is stopped; after that nothing is changed
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = deadline)]
    deadline: Duration,
    /// How long proxies may keep clients waiting for transactions that still run
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = hold)]
    hold: Duration,
    /// Go on where proxies do not get hold of all clients in time: transactions that still run are cut
    #[arg(long)]
    cut: bool,
    /// Only say whether it could work now, and why not; changes nothing
    #[arg(long, group = "what")]
    dry_run: bool,
    /// Begin at this time: 2026-11-28T03:00:00+01:00, 03:00Z or "03:00 Europe/Berlin"
    #[arg(long, value_name = "TIME", group = "what")]
    at: Option<String>,
    /// How late it may still begin after --at; after that it is missed
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = window)]
    window: Duration,
    /// List the switchovers that wait for their time
    #[arg(long, group = "what")]
    list: bool,
    /// Take back a switchover that waits for its time
    #[arg(long, value_name = "ID", group = "what")]
    cancel: Option<String>,
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
    phases: Vec<PhaseTimes>,
    outcome: String,
}

/// Runs the command.
pub fn run(args: SwitchoverArgs) -> Result<u8, Failure> {
    if args.away_from_zone.as_deref() == Some("") {
        return Err(Failure::usage("--away-from-zone is empty: name a zone or leave it out"));
    }
    let at = args.at.as_deref().map(|at| time::parse(at, store::clock::wall()));
    let at = at.transpose().map_err(Failure::Usage)?;
    if let Some(at) = at {
        let when = later::When { at, window: args.window, within: args.deadline };
        return say(&args, async |store| later::put(store, &args.target, terms(&args), when).await);
    }
    if let Some(id) = &args.cancel {
        return say(&args, async |store| later::cancel(store, &args.target, id).await);
    }
    if args.list {
        return say(&args, async |store| later::list(store, &args.target).await);
    }
    if args.dry_run {
        let answer = runtime::answer(async {
            let store = read::connect(&args.target.store).await?;
            dry_run::ask(&store, &args.target, &terms(&args)).await
        })?;
        return output::show(&answer, args.output).map(|()| u8::from(!answer.possible));
    }
    say(&args, async |store| switch(store, &args).await)
}

/// Connects, and prints what `body` answers.
fn say<T: Serialize + fmt::Display>(
    args: &SwitchoverArgs,
    body: impl AsyncFnOnce(&store::etcd::EtcdStore) -> anyhow::Result<T>,
) -> Result<u8, Failure> {
    let answer = runtime::answer(async {
        let store = read::connect(&args.target.store).await?;
        body(&store).await
    })?;
    output::show(&answer, args.output).map(|()| 0)
}

fn terms(args: &SwitchoverArgs) -> Terms {
    Terms {
        to: args.to.clone(),
        away_from: args.away_from_zone.clone(),
        hold: args.hold,
        unheld: if args.cut { Unheld::Cut } else { Unheld::CallOff },
    }
}

async fn switch(store: &dyn store::Store, args: &SwitchoverArgs) -> anyhow::Result<Switched> {
    let documents = read::documents(store, &args.target).await?;
    for cut in documents.proxies.iter().flat_map(|proxy| proxy.cut()) {
        eprintln!("pgdeputy: {cut}");
    }
    let wanted = Wanted::Switchover(terms(args));
    let answered = ask::until_done(store, &args.target, &documents, wanted, args.deadline).await?;
    let documents = read::documents(store, &args.target).await?;
    let state = documents.state.context("the state is gone")?;
    let record = documents.history.iter().rev().find(|r| r.epoch == state.epoch && r.restart == 0);
    let change = record.map(Change::of);
    Ok(Switched {
        cluster: args.target.cluster.clone(),
        from: change.as_ref().and_then(Change::from),
        to: state.primary,
        epoch: state.epoch,
        writes_away_ms: change.and_then(|c| c.writes_away_ms()),
        phases: record.map(PhaseTimes::before_redundancy).unwrap_or_default(),
        outcome: answered.outcome.text().to_owned(),
    })
}

impl fmt::Display for Switched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name =
            |member: &Option<MemberName>| member.as_ref().map_or("?".into(), ToString::to_string);
        writeln!(f, "cluster {}: {}", self.cluster, self.outcome)?;
        writeln!(f, "from {} to {}, epoch {}", name(&self.from), name(&self.to), self.epoch)?;
        let phases: Vec<String> = self.phases.iter().map(ToString::to_string).collect();
        writeln!(f, "phases: {}", phases.join(", "))?;
        let away = self.writes_away_ms.map_or("not known".into(), milliseconds);
        write!(
            f,
            "writes were away for {away}, from the order to stop until the new primary served"
        )
    }
}

fn deadline(given: &str) -> Result<Duration, String> {
    between(given, (Duration::from_secs(2), "2s"), (Duration::from_secs(3600), "1h"))
}

fn hold(given: &str) -> Result<Duration, String> {
    // PgBouncer itself cuts clients that have waited for `query_wait_timeout`, 120 s.
    between(given, (Duration::from_millis(100), "100ms"), (Duration::from_secs(100), "100s"))
}

fn window(given: &str) -> Result<Duration, String> {
    // A leader that dies just then is replaced within seconds.
    between(given, (Duration::from_secs(10), "10s"), (Duration::from_secs(86_400), "1day"))
}

fn between(
    given: &str,
    least: (Duration, &str),
    most: (Duration, &str),
) -> Result<Duration, String> {
    match humantime::parse_duration(given) {
        Ok(within) if (least.0..=most.0).contains(&within) => Ok(within),
        Ok(_) => Err(format!("use {} to {}", least.1, most.1)),
        Err(e) => Err(format!("not a duration such as 30s: {e}")),
    }
}
