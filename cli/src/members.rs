//! `remove` and `readmit`: who belongs to the cluster. No command ever deletes data.

use std::fmt;
use std::time::Duration;

use clap::Args;
use proto::request::{Answered, RequestOutcome, Wanted};
use proto::{ClusterName, MemberName};
use serde::Serialize;

use crate::args::OutputArgs;
use crate::ask;
use crate::failure::Failure;
use crate::target::Target;
use crate::{output, read, runtime};

/// The change of voters that a removal needs takes a second; a voter that hangs may take longer.
const VALID_FOR: Duration = Duration::from_secs(30);

#[derive(Debug, Args)]
pub struct RemoveArgs {
    /// The member to take out
    #[arg(value_name = "MEMBER")]
    member: MemberName,
    /// Also where fewer voters are left than must acknowledge a commit; with strict durability commits then wait
    #[arg(long)]
    below_count: bool,
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Args)]
pub struct ReadmitArgs {
    /// The removed member to take back
    #[arg(value_name = "MEMBER")]
    member: MemberName,
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    output: OutputArgs,
}

/// Runs `remove`.
pub fn remove(args: RemoveArgs) -> Result<u8, Failure> {
    let RemoveArgs { member, below_count, target, output } = args;
    ask(target, Wanted::Remove { member, below_count }, output)
}

/// Runs `readmit`.
pub fn readmit(args: ReadmitArgs) -> Result<u8, Failure> {
    ask(args.target, Wanted::Readmit { member: args.member }, args.output)
}

/// Asks for something that needs nothing to be shown first, and prints what came of it.
pub fn ask(target: Target, wanted: Wanted, output: OutputArgs) -> Result<u8, Failure> {
    let answered = runtime::answer(async {
        let store = read::connect(&target.store).await?;
        let documents = read::documents(&store, &target).await?;
        ask::until_done(&store, &target, &documents, wanted, VALID_FOR).await
    })?;
    output::show(&Outcome::of(target.cluster, answered), output).map(|()| 0)
}

/// What came of a request.
#[derive(Debug, Serialize)]
pub struct Outcome {
    cluster: ClusterName,
    #[serde(flatten)]
    answered: Answered,
}

impl Outcome {
    /// Makes it of the leader's answer.
    pub fn of(cluster: ClusterName, answered: Answered) -> Self {
        Self { cluster, answered }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match &self.answered.outcome {
            RequestOutcome::Started { what } | RequestOutcome::Done { what } => what,
            RequestOutcome::Refused { reason } | RequestOutcome::Nothing { reason } => reason,
        };
        writeln!(f, "cluster {}: {what}", self.cluster)
    }
}
