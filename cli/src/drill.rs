//! `drill`: breaks one thing of a live cluster on purpose, within guard rails, and says what became of it.

mod canary;
mod coverage;
mod crew;
mod fence;
mod guard;
mod lock;
mod orders;
mod random;
mod reboot;
mod report;
mod run;
mod runner;
mod schedule;
mod seen;
mod standing;
mod turn;
mod way;

use clap::{Args, Subcommand};
use proto::drill::{LiveFault, Verdict};
use proto::{ClusterSpec, RequestId, WallTime};
use serde::Serialize;
use std::convert::Infallible;
use std::fmt;
use std::time::Duration;

use crate::args::OutputArgs;
use crate::failure::Failure;
use crate::table::Table;
use crate::target::Target;
use crate::{output, read, runtime};

#[derive(Debug, Args)]
pub struct DrillArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List what can be drilled, and what clients notice of it
    List(OutputArgs),
    /// Run one drill now, if the guard rails allow it; its keeper undoes it, also when this command is killed
    Run(RunArgs),
    /// Drills that come again and again: add, list or remove them
    #[command(subcommand)]
    Schedule(schedule::Command),
    /// Run the drills of the schedule when it is their turn, until told to stop; of any number of runners one acts
    Runner(runner::RunnerArgs),
    /// Reboot every member by a hook: standbys one by one, the primary last and as a standby
    RebootAll(reboot::RebootArgs),
    /// End the drill that is under way: its keeper undoes it; or reboots: no other member is begun
    Abort(AbortArgs),
    /// Show what came of past drills, what was refused and why, and what was never tried
    Report(AskArgs),
}

#[derive(Debug, Args)]
pub struct RunArgs {
    /// What to break; `pgdeputy drill list` names all
    #[arg(value_name = "NAME", value_parser = fault, required_unless_present = "random")]
    fault: Option<LiveFault>,
    /// One drill after the other, drawn from --seed, until --for is over or one fails
    #[arg(long, conflicts_with_all = ["fault", "on"], requires = "lasting")]
    random: bool,
    /// How long with --random: the last one begins before, such as 30m
    #[arg(long = "for", value_name = "DURATION", value_parser = within, requires = "random")]
    lasting: Option<Duration>,
    #[command(flatten)]
    target: Target,
    /// Whom to hit: a member, or the sentinel or proxy-config of this id [default: drawn from --seed among those that it
    /// may hit]
    #[arg(long, value_name = "NAME")]
    on: Option<String>,
    /// What every choice is drawn from [default: drawn, and told]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    #[command(flatten)]
    limits: Limits,
    #[command(flatten)]
    output: OutputArgs,
}

/// One drill, as it is to be run.
#[derive(Debug, Clone)]
pub struct One {
    fault: LiveFault,
    target: Target,
    /// Drawn from the seed where none is named.
    on: Option<String>,
    seed: u64,
    limits: Limits,
}

/// What a drill may cost, and how that is seen.
#[derive(Debug, Clone, Args)]
pub struct Limits {
    #[command(flatten)]
    way: way::WayArgs,
    /// How long the canary may go without a commit, or the drill has failed [default: the spec's, else 30s]
    #[arg(long, value_name = "DURATION", value_parser = within)]
    write_gap_within: Option<Duration>,
    /// How soon the cluster must be fully redundant again, or the drill has failed [default: the spec's, else 60s]
    #[arg(long, value_name = "DURATION", value_parser = within)]
    redundant_within: Option<Duration>,
    /// How soon after its loss an old primary must be unable to acknowledge, or the drill has failed [default: the spec's,
    /// else lease_ttl and silent_after together]
    #[arg(long, value_name = "DURATION", value_parser = within)]
    fence_within: Option<Duration>,
    /// How far a standby may be behind at the beginning
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = within)]
    most_lag: Duration,
    /// For how long no drill may begin after a failover that was none
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = within)]
    calm_before: Duration,
    /// How long all drills of the last 30 days together may have kept writes away, by their canaries [default: no bound]
    #[arg(long, value_name = "DURATION", value_parser = within)]
    budget: Option<Duration>,
    /// No drill begins in these times, FROM/TO as in 2026-12-20T00:00:00Z/2027-01-03T00:00:00Z, divided by commas
    #[arg(long, value_name = "TIMES", value_delimiter = ',', value_parser = freeze)]
    freeze: Vec<Freeze>,
}

/// What the cluster has to keep in a drill.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Objectives {
    pub write_gap: Duration,
    pub redundant: Duration,
    pub fence: Duration,
}

impl Limits {
    /// Returns what is to be kept: by these flags, else by the cluster's spec.
    pub fn objectives(&self, spec: &ClusterSpec) -> Objectives {
        let (gap, redundant) = (spec.drills.write_gap_within, spec.drills.redundant_within);
        Objectives {
            write_gap: self.write_gap_within.or(gap).unwrap_or(Duration::from_secs(30)),
            redundant: self.redundant_within.or(redundant).unwrap_or(Duration::from_secs(60)),
            fence: self.fence_within.unwrap_or(spec.fence_within()),
        }
    }
}

#[derive(Debug, Args)]
pub struct AskArgs {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Args)]
pub struct AbortArgs {
    /// End this one or nothing [default: whichever is under way]
    #[arg(value_name = "ID", value_parser = id)]
    id: Option<RequestId>,
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    output: OutputArgs,
}

/// Runs the command.
pub fn run(args: DrillArgs) -> Result<u8, Failure> {
    match args.command {
        Command::List(output) => output::show(&List::all(), output).map(|()| 0),
        Command::Run(args) => {
            let seed = args.seed.unwrap_or_else(rand::random);
            let (on, limits) = (args.on, args.limits);
            let one = |fault| One { fault, target: args.target, on, seed, limits };
            match args.fault {
                Some(fault) => {
                    let record = runtime::run(|stop| run::run(one(fault), stop))?;
                    let passed = record.verdict == Verdict::Passed;
                    output::show(&report::One(record), args.output).map(|()| u8::from(!passed))
                }
                None => {
                    let lasting = args.lasting.unwrap_or_default();
                    let first = one(LiveFault::StandbyKeeper);
                    let many = runtime::run(|stop| random::run(first, lasting, stop))?;
                    let good = many.is_good();
                    output::show(&many, args.output).map(|()| u8::from(!good))
                }
            }
        }
        Command::Schedule(command) => schedule::run(command),
        Command::Runner(args) => {
            runtime::run(|stop| runner::run(args, stop))?;
            Ok(0)
        }
        Command::RebootAll(args) => reboot::run(args),
        Command::Abort(args) => {
            let ended = runtime::answer(async {
                let store = read::connect(&args.target.store).await?;
                orders::abort(&store, &args.target, args.id.as_ref()).await
            })?;
            output::show(&ended, args.output).map(|()| 0)
        }
        Command::Report(args) => {
            let report = runtime::answer(async {
                let store = read::connect(&args.target.store).await?;
                report::gather(&store, &args.target).await
            })?;
            output::show(&report, args.output).map(|()| 0)
        }
    }
}

fn id(given: &str) -> Result<RequestId, Infallible> {
    Ok(RequestId(given.to_owned()))
}

fn fault(given: &str) -> Result<LiveFault, String> {
    given.parse()
}

/// A time in which nobody wants a drill.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Freeze {
    pub from: WallTime,
    pub to: WallTime,
}

fn freeze(given: &str) -> Result<Freeze, String> {
    let form = "write it as 2026-12-20T00:00:00Z/2027-01-03T00:00:00Z";
    let time = |text: &str| match text.parse::<jiff::Timestamp>() {
        Ok(at) => Ok(WallTime(at.as_millisecond())),
        Err(error) => Err(format!("{error}; {form}")),
    };
    let (from, to) = given.split_once('/').ok_or_else(|| format!("no / in it; {form}"))?;
    let freeze = Freeze { from: time(from)?, to: time(to)? };
    match freeze.from < freeze.to {
        true => Ok(freeze),
        false => Err(format!("it ends before it begins; {form}")),
    }
}

fn within(given: &str) -> Result<Duration, String> {
    humantime::parse_duration(given).map_err(|e| format!("not a duration such as 30s: {e}"))
}

/// All faults.
#[derive(Debug, Serialize)]
struct List(Vec<Listed>);

#[derive(Debug, Serialize)]
struct Listed {
    name: LiveFault,
    what: &'static str,
    clients: &'static str,
}

impl List {
    fn all() -> Self {
        let listed = |name: LiveFault| Listed { name, what: name.what(), clients: name.clients() };
        Self(LiveFault::ALL.into_iter().map(listed).collect())
    }
}

impl fmt::Display for List {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new(&["drill", "what is done", "what clients notice"]);
        for one in &self.0 {
            table.row([one.name.to_string(), one.what.into(), one.clients.into()]);
        }
        write!(f, "{table}")
    }
}
