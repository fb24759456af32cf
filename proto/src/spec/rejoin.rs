//! How members that were away come back: the part of the spec that `docs/rejoin.md` explains.

use serde::{Deserialize, Serialize};

use super::{Permission, SpecError};

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
    /// How many megabytes a second a fresh copy takes from its source at most; 0 is without a limit.
    pub copy_rate_mb: u32,
    /// Whom a fresh copy is taken from.
    #[serde(skip_serializing_if = "CopyFrom::is_default")]
    pub copy_from: CopyFrom,
    /// What becomes of data that a fresh copy has replaced, once the copy streams.
    pub replaced: Replaced,
}

/// Whom a fresh copy is taken from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CopyFrom {
    /// A standby that commits do not wait for, where there is one; else the primary.
    #[default]
    Standby,
    Primary,
}

impl CopyFrom {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// What becomes of a data directory that a fresh copy has replaced.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Replaced {
    /// It stays beside the new one, for a person to look at and to remove.
    #[default]
    Keep,
    /// It goes once the new one streams and is complete.
    Remove,
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
            copy_rate_mb: 0,
            copy_from: CopyFrom::Standby,
            replaced: Replaced::Keep,
        }
    }
}

impl RejoinSpec {
    pub(super) fn is_default(&self) -> bool {
        *self == Self::default()
    }

    pub(super) fn check(&self) -> Result<(), SpecError> {
        match self.copy_rate_mb {
            // What pg_basebackup takes.
            0..=1024 => Ok(()),
            rate => Err(SpecError(format!(
                "rejoin.copy_rate_mb is {rate}: use 1 to 1024 megabytes a second, or 0 for no limit"
            ))),
        }
    }
}
