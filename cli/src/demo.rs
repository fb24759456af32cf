//! `demo` and the hidden `bench`: placeholders until chaos has its own.

use clap::Args;

use crate::failure::Failure;

#[derive(Debug, Args)]
pub struct DemoArgs {}

#[derive(Debug, Args)]
pub struct BenchArgs {}

/// Runs the command.
pub fn run(_args: DemoArgs) -> Result<u8, Failure> {
    Err(Failure::Runtime(anyhow::anyhow!("demo is not built in yet")))
}

/// Runs the command.
pub fn bench(_args: BenchArgs) -> Result<u8, Failure> {
    Err(Failure::Runtime(anyhow::anyhow!("bench is not built in yet")))
}
