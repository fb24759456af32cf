//! A drill that comes again and again, stored under `drill/plans/<id>`.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::drill::Undertaking;
use crate::time::duration;
use crate::{Document, RequestId, WallTime};

/// When, what, and which turn was taken last. A runner takes a turn by writing that, guarded by the revision that it
/// read: so each turn has one runner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DrillPlan {
    pub id: RequestId,
    /// A crontab expression with its time zone, such as `0 3 * * TUE Europe/Berlin`.
    pub cron: String,
    /// Absent: a fault is drawn each time.
    pub fault: Option<Undertaking>,
    /// How late a turn may still be taken; after that it is missed.
    #[serde(with = "duration")]
    pub window: Duration,
    /// Who wants it, for people: `user@host`.
    pub by: String,
    pub added: WallTime,
    /// The last turn that was taken or missed.
    pub last: Option<Turn>,
}

/// One turn of a plan; under `drill/turns/<drill>`, with its runner's lease, the right to begin it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Turn {
    /// When it was due.
    pub due: WallTime,
    /// The runner that took it: `host:pid` and what tells it from a later one.
    pub runner: String,
}

impl Document for Turn {
    const KIND: &'static str = "turn of a drill plan";
}

impl Document for DrillPlan {
    const KIND: &'static str = "drill plan";
}
