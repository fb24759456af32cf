//! `lab` and `drills`: a cluster to break by hand, and one that is broken in every way that is known, and judged.

use std::path::PathBuf;

use chaos::drills;
use chaos::fault::Fault;
use chaos::lab::kept;
use clap::{Args, Subcommand};

use crate::args::OutputArgs;
use crate::demo::PostgresArgs;
use crate::failure::Failure;
use crate::runtime;

#[derive(Debug, Args)]
pub struct LabArgs {
    #[command(subcommand)]
    what: Lab,
}

#[derive(Debug, Subcommand)]
enum Lab {
    /// Start a whole cluster in a temporary directory, leave it running, and print how to use and how to stop it
    Up(UpArgs),
    /// End a cluster that `lab up` left running in DIR, and remove it
    Down {
        /// The directory that `lab up` printed
        #[arg(value_name = "DIR")]
        directory: PathBuf,
    },
}

#[derive(Debug, Args)]
struct UpArgs {
    /// Number of members
    #[arg(long, value_name = "N", default_value_t = 3)]
    members: usize,
    /// Number of etcd members [default: 1, with --netns 3]
    #[arg(long, value_name = "N")]
    etcd_members: Option<usize>,
    /// Number of PgBouncers beside HAProxy
    #[arg(long, value_name = "N", default_value_t = 0)]
    pgbouncers: usize,
    /// Give each member, sentinel and etcd member a network namespace and an address of its own (root)
    #[arg(long)]
    netns: bool,
    #[command(flatten)]
    postgres: PostgresArgs,
}

#[derive(Debug, Args)]
pub struct DrillsArgs {
    /// Strike these faults, in this order; `pgdeputy demo --help` lists them [default: one of every class, or more]
    #[arg(long, value_name = "FAULT", value_delimiter = ',')]
    only: Vec<Fault>,
    /// Strike faults at random, in the order that this number makes
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// How many faults a seed makes
    #[arg(long, value_name = "N", default_value_t = 300)]
    faults: usize,
    /// Write a report with a picture of the run there, as one HTML file
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Copy all logs there if something was wrong
    #[arg(long, value_name = "DIR")]
    evidence: Option<PathBuf>,
    #[command(flatten)]
    postgres: PostgresArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// Runs `lab`.
pub fn run(args: LabArgs) -> Result<u8, Failure> {
    match args.what {
        Lab::Up(up) => {
            let config = kept::Config {
                members: up.members,
                etcd_members: up.etcd_members.unwrap_or(if up.netns { 3 } else { 1 }),
                pgbouncers: up.pgbouncers,
                namespaces: up.netns,
                postgres_bin: up.postgres.postgres_bin,
                postgres_user: up.postgres.postgres_user,
            };
            config.check().map_err(|e| Failure::usage(format!("{e:#}")))?;
            Ok(runtime::run(|stop| kept::up(config, stop))?)
        }
        Lab::Down { directory } => Ok(kept::down(&directory)?),
    }
}

/// Runs `drills`.
pub fn drills(args: DrillsArgs) -> Result<u8, Failure> {
    let config = drills::Config {
        only: args.only,
        seed: args.seed,
        faults: args.faults,
        report: args.report,
        evidence: args.evidence,
        json: args.output.json,
        postgres_bin: args.postgres.postgres_bin,
        postgres_user: args.postgres.postgres_user,
    };
    config.check().map_err(|e| Failure::usage(format!("{e:#}")))?;
    Ok(runtime::run(|stop| drills::run(config, stop))?)
}
