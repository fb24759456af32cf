//! `history`: past changes of primary and restarts, one line each; `history N`: one of them, phase by phase.

mod rejoined;
mod text;

use std::fmt;
use std::str::FromStr;

use anyhow::ensure;
use clap::Args;
use proto::explanation::Rejection;
use proto::history::{HistoryKind, HistoryRecord, Note, PhaseRecord, RejoinRecord};
use proto::{ClusterName, Epoch, MemberName, WalPosition, WallTime};
use serde::Serialize;

use crate::args::OutputArgs;
use crate::failure::Failure;
use crate::read::Documents;
use crate::table::milliseconds;
use crate::target::Target;
use crate::{output, read, runtime};

#[derive(Debug, Args)]
pub struct HistoryArgs {
    #[command(flatten)]
    target: Target,
    /// Show this one with its phases, evidence and rejected members: an epoch such as 7, a restart such as 7.1
    #[arg(value_name = "N")]
    number: Option<Number>,
    #[command(flatten)]
    output: OutputArgs,
}

/// Which change: an epoch, and of it one restart or all changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Number {
    epoch: Epoch,
    restart: Option<u64>,
}

/// The phase that comes after writes are back.
const AFTER_WRITES: &str = "redundancy";

/// One change in one line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Change {
    /// The epoch, or epoch and restart: what `history N` takes.
    pub number: String,
    pub kind: HistoryKind,
    pub from: Option<MemberName>,
    pub to: Option<MemberName>,
    pub cause: String,
    pub start: Option<WallTime>,
    /// From the first phase's start until writes were back; absent while they are not.
    pub total_ms: Option<i64>,
    /// From the same start until the cluster was fully redundant again.
    pub redundant_after_ms: Option<i64>,
}

/// One change with everything that was recorded of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Details {
    #[serde(flatten)]
    change: Change,
    evidence: Vec<String>,
    chosen: Option<WalPosition>,
    rejected: Vec<Rejection>,
    phases: Vec<PhaseTimes>,
    rejoined: Vec<RejoinRecord>,
    notes: Vec<Note>,
}

/// One phase of a change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PhaseTimes {
    name: String,
    start: WallTime,
    end: Option<WallTime>,
    ms: Option<i64>,
}

/// All changes, or those that were asked for.
#[derive(Debug, Serialize)]
struct History {
    cluster: ClusterName,
    changes: Vec<Details>,
    /// Records that this pgdeputy cannot read.
    unreadable: Vec<String>,
    /// Whether particular ones were asked for, so that the text is long.
    #[serde(skip)]
    particular: bool,
}

/// Runs the command.
pub fn run(args: HistoryArgs) -> Result<u8, Failure> {
    let documents = runtime::answer(async {
        let store = read::connect(&args.target.store).await?;
        read::documents(&store, &args.target).await
    })?;
    output::show(&history(args.target.cluster, args.number, documents)?, args.output).map(|()| 0)
}

fn history(
    cluster: ClusterName,
    number: Option<Number>,
    documents: Documents,
) -> anyhow::Result<History> {
    let wanted = |r: &&HistoryRecord| number.is_none_or(|n| n.is_of(r));
    let changes: Vec<Details> = documents.history.iter().filter(wanted).map(Details::of).collect();
    ensure!(
        number.is_none() || !changes.is_empty(),
        "there is no such record; `pgdeputy history --cluster {cluster} --etcd ...` lists them all"
    );
    let is_record = |line: &String| line.starts_with("history/");
    let unreadable = documents.unreadable.into_iter().filter(is_record).collect();
    Ok(History { cluster, changes, unreadable, particular: number.is_some() })
}

impl Change {
    /// Sums up `record`.
    pub fn of(record: &HistoryRecord) -> Self {
        let start = record.phases.first().map(|p| p.start);
        let before: Vec<_> = record.phases.iter().filter(|p| p.name != AFTER_WRITES).collect();
        let back = match before.iter().all(|p| p.end.is_some()) {
            true => before.last().and_then(|p| p.end),
            false => None,
        };
        let stop = record.phases.iter().find(|p| p.name == "stop").map(|p| p.start);
        let after_start = |time: Option<WallTime>| Some(time?.ms_since(start?));
        Self {
            number: match record.restart {
                0 => record.epoch.to_string(),
                n => format!("{}.{n}", record.epoch),
            },
            kind: record.kind,
            from: record.from.clone(),
            to: record.to.clone(),
            cause: record.cause.clone(),
            start,
            total_ms: match record.kind {
                // Clients write on while the checkpoint is written.
                HistoryKind::Switchover => back.zip(stop).map(|(back, stop)| back.ms_since(stop)),
                HistoryKind::Founding | HistoryKind::Failover | HistoryKind::Restart => {
                    after_start(back)
                }
            },
            redundant_after_ms: after_start(record.redundant),
        }
    }
}

impl Change {
    /// Returns whom it took the primary's part from.
    pub fn from(&self) -> Option<MemberName> {
        self.from.clone()
    }

    /// Returns how long writes were away, once they were back.
    pub fn writes_away_ms(&self) -> Option<i64> {
        self.total_ms
    }
}

impl PhaseTimes {
    fn of(phase: &PhaseRecord) -> Self {
        Self {
            name: phase.name.clone(),
            start: phase.start,
            end: phase.end,
            ms: phase.end.map(|end| end.ms_since(phase.start)),
        }
    }

    /// Returns the phases of `record` until writes were back.
    pub fn before_redundancy(record: &HistoryRecord) -> Vec<Self> {
        record.phases.iter().filter(|p| p.name != AFTER_WRITES).map(Self::of).collect()
    }
}

impl fmt::Display for PhaseTimes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.name, self.ms.map_or("under way".into(), milliseconds))
    }
}

impl Details {
    fn of(record: &HistoryRecord) -> Self {
        Self {
            change: Change::of(record),
            evidence: record.evidence.clone(),
            chosen: record.chosen,
            rejected: record.rejected.clone(),
            phases: record.phases.iter().map(PhaseTimes::of).collect(),
            rejoined: record.rejoined.clone(),
            notes: record.notes.clone(),
        }
    }
}

impl Number {
    fn is_of(&self, record: &HistoryRecord) -> bool {
        self.epoch == record.epoch && self.restart.is_none_or(|n| n == record.restart)
    }
}

impl FromStr for Number {
    type Err = String;
    fn from_str(given: &str) -> Result<Self, String> {
        let error = |_| format!("{given:?} is no epoch such as 7, nor a restart such as 7.1");
        let (epoch, restart) = match given.split_once('.') {
            Some((epoch, restart)) => (epoch, Some(restart.parse().map_err(error)?)),
            None => (given, None),
        };
        Ok(Self { epoch: Epoch(epoch.parse().map_err(error)?), restart })
    }
}

#[cfg(test)]
mod tests;
