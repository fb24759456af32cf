//! What a keeper answers when asked directly: its report, and the positions that move with every commit.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Epoch, Lsn, MemberName, MemberReport, Timeline, WallTime};

/// The answer of `GET /status` on a keeper's HTTP address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberStatus {
    pub report: MemberReport,
    pub positions: Option<Positions>,
    /// On a primary, its walsenders.
    pub standbys: Vec<StandbyPositions>,
    /// How long this primary may go on serving without renewing its right, in milliseconds.
    pub serve_for_ms: Option<u64>,
    /// How far this standby is behind its primary, where that can be known.
    #[serde(default)]
    pub lag: Option<StandbyLag>,
    /// A read on this standby sees every commit that was acknowledged before it, by all that its keeper knows.
    #[serde(default)]
    pub fresh: bool,
    /// Whether commits here wait until they are replayed, by PostgreSQL's settings and those of its roles and databases.
    /// Asked only where the spec wants it.
    #[serde(default)]
    pub remote_apply: Option<bool>,
    /// How its fencer ends PostgreSQL's processes where they do not end by themselves.
    #[serde(default)]
    pub fenced_by: Option<String>,
    /// How far the copying of a rejoin is, while it lasts.
    #[serde(default)]
    pub rejoin_progress: Option<RejoinProgress>,
    /// What a change of primary needs of this member beside its WAL.
    #[serde(default)]
    pub prepared: Prepared,
    pub asked: WallTime,
}

/// How far a copy or rewind is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RejoinProgress {
    pub copied_bytes: u64,
    pub total_bytes: u64,
    /// Since copying began; absent until that can be told.
    pub bytes_per_second: Option<u64>,
    /// The time left at this rate, in milliseconds.
    pub left_ms: Option<u64>,
}

/// How this member is prepared to be the next primary, or to follow one, as far as its keeper has looked.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prepared {
    /// Whether pg_rewind could take it back: data checksums or wal_log_hints are on, by its control file.
    pub rewindable: Option<bool>,
    /// The members for which it has a replication slot.
    pub slots: Option<Vec<MemberName>>,
    /// The disks of its data directory and of its WAL, by what an operator calls them.
    pub disks: BTreeMap<String, Space>,
}

/// A disk, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Space {
    pub available: u64,
    pub size: u64,
    pub read_only: bool,
}

/// How far a standby is behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StandbyLag {
    /// WAL that is known to exist and is not replayed.
    pub bytes: u64,
    /// For how long the oldest of it has been known, in milliseconds; 0 while all is replayed and the stream lives.
    pub ms: u64,
}

/// Where this member's WAL stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Positions {
    pub timeline: Timeline,
    /// On a primary what it has flushed, on a standby what its receiver has.
    pub flush_lsn: Lsn,
    pub replay_lsn: Option<Lsn>,
}

/// One walsender of the primary.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StandbyPositions {
    pub wire_name: String,
    /// The member and epoch read out of the name, if it is one of ours.
    pub member: Option<MemberName>,
    pub epoch: Option<Epoch>,
    pub state: String,
    pub sync_state: String,
    pub flush_lsn: Option<Lsn>,
    pub replay_lsn: Option<Lsn>,
}
