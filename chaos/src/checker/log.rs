//! The log of operations: what a client asked for, when, and what came of it, on one monotonic clock.
//!
//! The one rule: it is appended to when an operation has ended, and nothing in it is ever changed.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex};

use anyhow::Context;
use proto::Moment;
use serde::{Serialize, Serializer};

/// One operation of one client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Operation {
    pub client: u32,
    /// Before it was sent, in nanoseconds since boot.
    #[serde(serialize_with = "nanoseconds")]
    pub invoked: Moment,
    /// When its answer was read, or it was given up.
    #[serde(serialize_with = "nanoseconds")]
    pub ended: Moment,
    pub outcome: Outcome,
    pub what: What,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    Done,
    /// For certain it has not happened, and will not.
    Refused,
    /// Nobody was told.
    Unknown,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    /// The highest ids that there are, in falling order.
    Newest(Vec<i64>),
    /// The next number of a stream is inserted, after all before it were acknowledged.
    Next { stream: i64, number: i64 },
    /// One serializable transaction over lists.
    Lists(Vec<Step>),
    /// Money goes from one account to another.
    Transfer,
    /// The money in all accounts.
    Total(i64),
}

/// A step of a transaction over lists. Values are used once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    Append { key: i64, value: i64 },
    Read { key: i64, values: Vec<i64> },
}

/// Takes operations from all clients; in memory for the judgement, in a file for people.
#[derive(Clone)]
pub struct Recorder(Arc<Mutex<(File, Vec<Operation>)>>);

impl Recorder {
    /// Starts an empty log in this file, one JSON document a line.
    pub fn create(file: &Path) -> anyhow::Result<Self> {
        let opened = File::create(file).with_context(|| format!("create {}", file.display()))?;
        Ok(Self(Arc::new(Mutex::new((opened, Vec::new())))))
    }

    /// Appends an operation that has ended.
    pub fn note(&self, operation: Operation) {
        let line = serde_json::to_string(&operation).unwrap_or_default();
        let mut log = self.0.lock().expect("no holder of this lock panics");
        // The list in memory is what is judged; a full disk must not stop a client.
        let _ = writeln!(log.0, "{line}");
        log.1.push(operation);
    }

    /// Returns all that was noted so far.
    pub fn all(&self) -> Vec<Operation> {
        self.0.lock().expect("no holder of this lock panics").1.clone()
    }
}

fn nanoseconds<S: Serializer>(at: &Moment, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_u64(u64::try_from(at.boot_time().as_nanos()).unwrap_or(u64::MAX))
}
