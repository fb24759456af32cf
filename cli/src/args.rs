//! The command line as a whole: what all commands share, and the list of commands.
//!
//! Each flag is also read from `PGDEPUTY_<FLAG>` and from the file of `--config`; `layers` does that for all.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Keeps a PostgreSQL cluster available without losing an acknowledged commit.
#[derive(Debug, Parser)]
#[command(name = "pgdeputy", version, propagate_version = true)]
#[command(
    after_help = "Each flag is also read from the environment (--data-dir from PGDEPUTY_DATA_DIR) and from \
    the TOML file of --config (data-dir = \"...\").\nA flag wins over the environment, the environment over the file. \
    In the file a key counts for every command that has it;\na table named after a command, such as [keeper], \
    counts for that command only and wins."
)]
pub struct Cli {
    #[command(flatten)]
    pub common: Common,
    #[command(subcommand)]
    pub command: Command,
}

/// What every command understands.
#[derive(Debug, Args)]
pub struct Common {
    /// TOML file to read flags from
    #[arg(long, global = true, value_name = "FILE", help_heading = "Common options")]
    pub config: Option<PathBuf>,
    /// How log lines are written to stderr
    #[arg(
        long,
        global = true,
        value_enum,
        default_value = "text",
        help_heading = "Common options"
    )]
    pub log_format: LogFormat,
    /// What is logged, such as info or info,keeper=debug [default: RUST_LOG, else info]
    #[arg(long, global = true, value_name = "FILTER", help_heading = "Common options")]
    pub log_level: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Write the wishes for a new cluster (or new ones, with --update) and make its passwords
    Init(crate::init::InitArgs),
    /// Show who is primary, how its standbys are, and who could take over
    Status(crate::status::StatusArgs),
    /// Show past changes of primary, phase by phase
    History(crate::history::HistoryArgs),
    /// Say why this primary, why not the others, and what is being waited for
    Explain(crate::explain::ExplainArgs),
    /// Hand over from the primary to another member, without loss
    Switchover(crate::switchover::SwitchoverArgs),
    /// Promote, restart and rejoin nothing for a while: people are at work
    Pause(crate::pause::PauseArgs),
    /// End a pause
    Resume(crate::pause::ResumeArgs),
    /// Take a member out of the cluster; its data stays where it is
    Remove(crate::members::RemoveArgs),
    /// Take a removed member back
    Readmit(crate::members::ReadmitArgs),
    /// Promote a member although acknowledged commits may be lost by it: the last resort
    Failover(crate::failover::FailoverArgs),
    /// Print a connection string that finds the primary by itself
    Dsn(crate::dsn::DsnArgs),
    /// Show where clients find the primary and whom they may read from
    Topology(crate::topology::TopologyArgs),
    /// Break one thing of a live cluster on purpose, within guard rails, and judge what became of it
    Drill(crate::drill::DrillArgs),
    /// Vouch for an etcd that was restored or swapped, by what the members know (shows first what it would do)
    AdoptStore(crate::adopt_store::AdoptStoreArgs),
    /// Run beside one PostgreSQL: start it, watch it, bring it in line with what was agreed
    Keeper(crate::keeper_role::KeeperArgs),
    /// Run where decisions are made: three or five of them, one leads
    Sentinel(crate::sentinel_role::SentinelArgs),
    /// Run beside HAProxy and route it to the primary at once
    ProxyConfig(crate::proxy_role::ProxyConfigArgs),
    /// Start a cluster in a temporary directory, break it under load, and judge the outcome
    Demo(crate::demo::DemoArgs),
    /// Start a whole cluster to try things on, and end it
    Lab(crate::lab::LabArgs),
    /// Break a whole cluster in every way that is known, one after the other, and judge what became of it (root)
    Drills(crate::lab::DrillsArgs),
    /// Measure how long writes are away after each fault
    #[command(hide = true)]
    Bench(crate::demo::BenchArgs),
    /// Measure what planned changes of primary cost clients of PgBouncer
    #[command(hide = true)]
    BenchSwitchover(crate::demo::BenchSwitchoverArgs),
    /// Measure how long writes are away when one of two members is lost, with `strict`, until it is back
    #[command(hide = true)]
    BenchTwoMembers(crate::demo::BenchTwoMembersArgs),
    /// Print versions
    Version(crate::version::VersionArgs),
}

impl Command {
    /// Returns whether this runs until it is told to stop, and so has a log worth reading.
    pub fn is_role(&self) -> bool {
        matches!(self, Self::Keeper(_) | Self::Sentinel(_) | Self::ProxyConfig(_))
    }
}

/// Whether the answer is for people or programs.
#[derive(Debug, Clone, Copy, Args)]
pub struct OutputArgs {
    /// Print one JSON document instead of text
    #[arg(long)]
    pub json: bool,
}
