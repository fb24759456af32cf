//! `version`: what this binary is and which documents it understands.

use std::fmt;

use clap::Args;
use serde::Serialize;

use crate::args::OutputArgs;
use crate::failure::Failure;
use crate::output;

#[derive(Debug, Args)]
pub struct VersionArgs {
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Serialize)]
struct Version {
    pgdeputy: &'static str,
    /// The newest format of documents that it writes and understands.
    format_version: u32,
}

/// Runs the command.
pub fn run(args: VersionArgs) -> Result<u8, Failure> {
    let version = Version {
        pgdeputy: env!("CARGO_PKG_VERSION"),
        format_version: proto::document::FORMAT_VERSION,
    };
    output::show(&version, args.output).map(|()| 0)
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "pgdeputy {} (documents up to format_version {})",
            self.pgdeputy, self.format_version
        )
    }
}
