//! `demo`: a cluster in a temporary directory loses a part under load, and is judged; also the hidden `bench`.

use std::path::PathBuf;
use std::time::Duration;

use chaos::fault::{self, Fault};
use chaos::{bench as benches, demo};
use clap::Args;
use proto::ClusterSpec;

use crate::args::OutputArgs;
use crate::failure::Failure;
use crate::runtime;

#[derive(Debug, Args)]
pub struct DemoArgs {
    /// What is broken
    #[arg(long, value_name = "FAULT", default_value = "member", value_parser = fault, long_help = fault_help())]
    fault: Fault,
    /// Number of members
    #[arg(long, value_name = "N", default_value_t = 3)]
    members: usize,
    /// Number of etcd members
    #[arg(long, value_name = "N", default_value_t = 1)]
    etcd_members: usize,
    /// Leave the cluster running, and print how to use and how to stop it
    #[arg(long)]
    keep: bool,
    /// How long what was broken stays so after writes are back
    #[arg(long, value_name = "DURATION", default_value = "3s", value_parser = humantime::parse_duration)]
    down_for: Duration,
    /// The cluster's lease_ttl
    #[arg(long, value_name = "DURATION", default_value = "4s", value_parser = humantime::parse_duration)]
    lease_ttl: Duration,
    #[command(flatten)]
    postgres: PostgresArgs,
    /// End a cluster that --keep left running in DIR, and remove it
    #[arg(long, value_name = "DIR")]
    stop: Option<PathBuf>,
    /// Started by a lab beside itself, to clean up after it
    #[arg(long, hide = true)]
    guard: bool,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Args)]
pub struct BenchArgs {
    /// How often each fault is tried
    #[arg(long, value_name = "N", default_value_t = 5)]
    runs: usize,
    /// Measure these rows only, by the names that the last lines of the output have
    #[arg(long, value_name = "ROW", value_delimiter = ',')]
    only: Vec<String>,
    #[command(flatten)]
    postgres: PostgresArgs,
}

#[derive(Debug, Args)]
pub struct BenchSwitchoverArgs {
    /// How often the primary is changed
    #[arg(long, value_name = "N", default_value_t = 20)]
    switchovers: usize,
    /// pgbench's clients
    #[arg(long, value_name = "N", default_value_t = 16)]
    clients: usize,
    #[command(flatten)]
    postgres: PostgresArgs,
}

#[derive(Debug, Args)]
pub struct BenchTwoMembersArgs {
    /// How often PostgreSQL of the primary is lost, and how often its whole member
    #[arg(long, value_name = "N", default_value_t = 10)]
    runs: usize,
    /// How much WAL from before both members hold on to
    #[arg(long, value_name = "MEGABYTES", default_value_t = 0)]
    retained_mb: u32,
    /// pgbench's clients
    #[arg(long, value_name = "N", default_value_t = 8)]
    clients: usize,
    #[command(flatten)]
    postgres: PostgresArgs,
}

#[derive(Debug, Args)]
pub struct PostgresArgs {
    /// Where PostgreSQL's programs are [default: the usual places, then PATH]
    #[arg(long, value_name = "DIR")]
    pub postgres_bin: Option<PathBuf>,
    /// Whom the keepers become when started as root
    #[arg(long, value_name = "USER", default_value = "postgres")]
    pub postgres_user: String,
}

/// Runs the command.
pub fn run(args: DemoArgs) -> Result<u8, Failure> {
    if args.guard {
        return Ok(demo::guard()?);
    }
    if let Some(directory) = &args.stop {
        return Ok(demo::stop(directory)?);
    }
    let config = demo::Config {
        fault: args.fault,
        members: args.members,
        etcd_members: args.etcd_members,
        json: args.output.json,
        keep: args.keep,
        down_for: args.down_for,
        lease_ttl: args.lease_ttl,
        postgres_bin: args.postgres.postgres_bin,
        postgres_user: args.postgres.postgres_user,
    };
    let spec = ClusterSpec { lease_ttl: config.lease_ttl, ..ClusterSpec::default() };
    spec.check().map_err(|e| Failure::usage(e.to_string()))?;
    config.check().map_err(|e| Failure::usage(format!("{e:#}")))?;
    Ok(runtime::run(|stop| demo::run(config, stop))?)
}

/// Runs the hidden command.
pub fn bench(args: BenchArgs) -> Result<u8, Failure> {
    if args.runs == 0 {
        return Err(Failure::usage("--runs is 0: measure at least once"));
    }
    benches::chosen(&args.only).map_err(Failure::usage)?;
    let config = benches::Config {
        runs: args.runs,
        only: args.only,
        postgres_bin: args.postgres.postgres_bin,
        postgres_user: args.postgres.postgres_user,
    };
    Ok(runtime::run(|stop| benches::run(config, stop))?)
}

/// Runs the other hidden command.
pub fn bench_switchover(args: BenchSwitchoverArgs) -> Result<u8, Failure> {
    let config = benches::switchover::Config {
        switchovers: args.switchovers,
        clients: args.clients,
        postgres_bin: args.postgres.postgres_bin,
        postgres_user: args.postgres.postgres_user,
    };
    Ok(runtime::run(|stop| benches::switchover::run(config, stop))?)
}

/// Runs the third hidden command.
pub fn bench_two_members(args: BenchTwoMembersArgs) -> Result<u8, Failure> {
    let config = benches::two_members::Config {
        runs: args.runs,
        retained_mb: args.retained_mb,
        clients: args.clients,
        postgres_bin: args.postgres.postgres_bin,
        postgres_user: args.postgres.postgres_user,
    };
    config.check().map_err(|e| Failure::usage(format!("{e:#}")))?;
    Ok(runtime::run(|stop| benches::two_members::run(config, stop))?)
}

/// Each fault by its name, with what is done to the cluster.
fn fault_help() -> String {
    let victim = "x".parse().expect("a letter is a name");
    let mut help = "What is broken, where x is the member that it hits:".to_owned();
    for fault in fault::ALL.map(|entry| entry.fault) {
        help.push_str(&format!("\n  {:<20} {}", fault.name(), fault.describe(&victim)));
    }
    help
}

fn fault(given: &str) -> Result<Fault, String> {
    given.parse()
}
