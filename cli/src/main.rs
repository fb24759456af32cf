//! The one binary: reads what it is asked to do, and hands over to the role or command.
//!
//! A bad value ends with status 64 and one line before any socket is opened; whatever fails later with 1.

mod adopt_store;
mod args;
mod ask;
mod demo;
mod drill;
mod drillable;
mod dsn;
mod explain;
mod failover;
mod failure;
mod history;
mod init;
mod keeper_role;
mod lab;
mod layers;
mod logging;
mod members;
mod output;
mod pause;
mod proxy_role;
mod read;
mod runtime;
mod sentinel_role;
mod status;
mod switchover;
mod table;
mod target;
mod topology;
mod version;

use std::process::ExitCode;

use args::Command;
use failure::Failure;

fn main() -> ExitCode {
    let mut given = std::env::args_os().skip(1);
    // The fencer must start whatever the environment and the configuration file say, so it comes before both.
    if given.next().is_some_and(|first| first == "fencer") {
        return keeper_role::fencer(given.collect());
    }
    match run() {
        Ok(code) => ExitCode::from(code),
        Err(failure) => failure.report(),
    }
}

fn run() -> Result<u8, Failure> {
    let cli = match layers::parse(std::env::args_os().collect())? {
        layers::Parsed::Asked(cli) => *cli,
        layers::Parsed::Help(text) => return output::print(&text).map(|()| 0),
    };
    logging::init(&cli.common, cli.command.is_role())?;
    match cli.command {
        Command::Init(args) => init::run(args),
        Command::Status(args) => status::run(args),
        Command::History(args) => history::run(args),
        Command::Explain(args) => explain::run(args),
        Command::Switchover(args) => switchover::run(args),
        Command::Pause(args) => pause::pause(args),
        Command::Resume(args) => pause::resume(args),
        Command::Remove(args) => members::remove(args),
        Command::Readmit(args) => members::readmit(args),
        Command::Failover(args) => failover::run(args),
        Command::Dsn(args) => dsn::run(args),
        Command::Topology(args) => topology::run(args),
        Command::Drill(args) => drill::run(args),
        Command::AdoptStore(args) => adopt_store::run(args),
        Command::Keeper(args) => keeper_role::run(args),
        Command::Sentinel(args) => sentinel_role::run(args),
        Command::ProxyConfig(args) => proxy_role::run(args),
        Command::Demo(args) => demo::run(args),
        Command::Lab(args) => lab::run(args),
        Command::Drills(args) => lab::drills(args),
        Command::Bench(args) => demo::bench(args),
        Command::BenchSwitchover(args) => demo::bench_switchover(args),
        Command::BenchTwoMembers(args) => demo::bench_two_members(args),
        Command::Version(args) => version::run(args),
    }
}
