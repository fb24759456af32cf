//! How members that were away come back: the part of the spec that `docs/rejoin.md` explains.

use serde::{Deserialize, Serialize};

use super::Permission;

/// How members come back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RejoinSpec {
    /// What is done with a primary that crashed before it is rewound.
    pub crash_recovery: CrashRecovery,
    /// Whether data that cannot be rewound is replaced by a fresh copy; `never`: that waits for a person.
    pub copy: Permission,
    /// How much of the WAL that a member gives up is kept, in megabytes; only the last rejoin's is.
    pub keep_diverged_mb: u32,
}

/// What is done with a primary that crashed before it is rewound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CrashRecovery {
    /// The end of its WAL, found by a scan, is recorded in its control file: a second for each gigabyte.
    Skip,
    /// PostgreSQL replays its WAL in single-user mode: several times as long.
    Run,
}

impl Default for RejoinSpec {
    fn default() -> Self {
        Self {
            // PostgreSQL's own way, until the other one has been shown to be right over all versions and interruptions.
            crash_recovery: CrashRecovery::Run,
            copy: Permission::Allowed,
            // A synchronous cluster's unacknowledged tail is a few segments; more is an asynchronous standby's lag.
            keep_diverged_mb: 256,
        }
    }
}

impl RejoinSpec {
    pub(super) fn is_default(&self) -> bool {
        *self == Self::default()
    }
}
