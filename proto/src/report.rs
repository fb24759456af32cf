//! MemberReport: what a keeper says of its member, stored under `members/<name>` with the keeper's lease.
//!
//! Rewritten only when something that matters changed. Positions that move with every commit are asked of the
//! keeper directly (see `status`).

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::rejoin::RejoinDetails;
use crate::request::RequestId;
use crate::{
    CfgId, ClusterState, Document, Epoch, Incarnation, Lsn, MemberName, SystemIdentifier, Timeline,
    WalPosition, WallTime,
};

/// One member, as its keeper sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemberReport {
    pub member: MemberName,
    pub incarnation: Incarnation,
    /// The newest document format that this keeper understands.
    pub understands_format: u32,
    pub pgdeputy_version: String,
    /// As `server_version_num`, such as 150018.
    pub postgres_version: u32,
    /// Where PostgreSQL listens and other members connect, `host:port`.
    pub postgres_address: String,
    /// Where the keeper serves HTTP and gRPC, `host:port`.
    pub http_address: String,
    pub zone: Option<String>,
    /// The epoch below which this member serves nobody (I5).
    pub promise: Epoch,
    pub data: DataDirectory,
    pub system_identifier: Option<SystemIdentifier>,
    /// False while WAL or data of this member may be missing: it counts in no seal set and is no candidate.
    pub complete: bool,
    pub server: Server,
    /// The primary's service, once its PostgreSQL is open.
    pub opened: Option<Opened>,
    /// The last Cfg that the primary proved to be in force.
    pub confirmed: Option<Confirmed>,
    pub stream: Stream,
    /// Its PostgreSQL has received from nobody since it started: that it hears no primary says nothing of that one.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub never_received: bool,
    /// The epoch whose primary this member has not heard for `silent_after`, neither by echo nor by its stream.
    #[serde(default)]
    pub silence: Option<Epoch>,
    /// The epoch whose primary has written no WAL, by this member's stream of it, or granted this member no session, for
    /// longer than its own keeper would have let pass.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub standstill: Option<Epoch>,
    /// While this standby's stream is silent: the other standbys that it hears, by echo.
    #[serde(default)]
    pub hears: BTreeSet<MemberName>,
    /// What this primary's PostgreSQL has not done for `unresponsive_after`, though it runs.
    #[serde(default)]
    pub unresponsive: Option<Unresponsive>,
    /// Why PostgreSQL last ended, while it is down.
    #[serde(default)]
    pub ended: Option<Ended>,
    pub seal: Option<Seal>,
    /// How ready the primary is for the switchover that is under way.
    #[serde(default)]
    pub handover: Option<Handover>,
    /// Its keeper was asked to stop: it is chosen for nothing that another could do.
    #[serde(default)]
    pub leaving: bool,
    pub rejoin: Option<Rejoin>,
    /// This member distrusts the store and acts on nothing in it.
    #[serde(default)]
    pub frozen: Option<Frozen>,
    /// What an operator should know, sorted; empty when all is well.
    pub problems: BTreeSet<String>,
}

/// What stands in the data directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DataDirectory {
    /// Absent or empty.
    Empty,
    /// A fresh copy or initdb is being made beside it.
    Building,
    Present,
}

/// What PostgreSQL does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "state", deny_unknown_fields)]
pub enum Server {
    /// The keeper has just started and does not know yet.
    Unknown,
    /// It has not been started since the keeper's start, or was stopped on purpose.
    Stopped,
    Starting,
    /// It runs as a standby, in `timeline`.
    Standby {
        timeline: Timeline,
    },
    /// It runs as a primary in `timeline`; `MemberReport::opened` says whether it serves.
    Primary {
        timeline: Timeline,
    },
    /// The postmaster has died by itself. `gone`: no process of the data directory lives any more.
    Dead {
        noticed: WallTime,
        gone: bool,
    },
}

/// A primary that runs and does not do its work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Unresponsive {
    pub epoch: Epoch,
    /// What does not work, and how that shows.
    pub problem: String,
}

/// Why a PostgreSQL process is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ended {
    /// By itself, or killed by somebody else.
    Died,
    /// Its keeper was told to stop, and stopped it.
    Stopped,
    /// Its fencer ended it, because nobody had renewed its right in time.
    Expired,
    /// It was fenced for another reason, such as a newer epoch.
    Fenced,
}

/// A primary that serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Opened {
    pub epoch: Epoch,
    pub timeline: Timeline,
    /// Where `timeline` begins.
    pub start_lsn: Lsn,
    /// The number of the restart order that this opening follows; 0 after a promotion.
    pub restart: u64,
}

/// Proof that the names of a Cfg are in force and that its voters hold all before `lsn` (I4).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Confirmed {
    pub cfg: CfgId,
    /// A flush position taken after all walsenders had reloaded and backends were seen to wait.
    pub lsn: Lsn,
    /// The voters that were seen to have flushed past `lsn`: at least k of the Cfg.
    pub voters: BTreeSet<MemberName>,
}

/// A standby's stream from the primary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "state", deny_unknown_fields)]
pub enum Stream {
    /// Not a standby, or nothing is known yet: evidence for nothing.
    None,
    /// Connected and heard within `wal_receiver_timeout`. `voter`: connected under a voter's name of `epoch`.
    Live { epoch: Epoch, timeline: Timeline, voter: bool },
    /// No stream, or none that was heard in time; the last WAL of this member is of `epoch`.
    Silent { epoch: Epoch },
}

/// A member's word that it receives nothing below epoch `sealing` any more, and how far its WAL reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seal {
    /// The epoch that was asked for; a seal counts for this one only.
    pub sealing: Epoch,
    pub position: WalPosition,
    /// Where replay stands; equal to the position's LSN when nothing is left to replay.
    pub replayed: Lsn,
    /// Whether PostgreSQL runs as a standby, or stopped cleanly at `position`: else it may hold a torn tail.
    pub clean: bool,
}

/// The primary's word on the switchover of one request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Handover {
    pub request: RequestId,
    pub readiness: Readiness,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "state", deny_unknown_fields)]
pub enum Readiness {
    /// The checkpoint is written. `left`: how many bytes each standby that streams had left to replay then.
    Ready { left: BTreeMap<MemberName, u64> },
    /// The target would take too long, `reason` says why.
    Impossible { reason: String },
}

/// A target with more than this many bytes left to receive and to replay is waited for. That much is replayed within the
/// time in which clients hardly notice: at the 100 MB/s that a replay reaches at least, it takes a third of a second.
pub const NEAR: u64 = 32 << 20;

/// Why a member distrusts the store, and what it has acted on last: what an operator vouches for by `adopt-store`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Frozen {
    pub why: String,
    pub acted_on: Box<ClusterState>,
}

/// The last return of this member to the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rejoin {
    /// The epoch it came back to.
    pub epoch: Epoch,
    pub by: RejoinBy,
    /// Why this way and no cheaper one.
    pub reason: String,
    pub started: WallTime,
    pub outcome: RejoinOutcome,
    /// The directory in which the data from before a copy is kept.
    pub kept: Option<String>,
    #[serde(default, skip_serializing_if = "RejoinDetails::is_empty")]
    pub details: RejoinDetails,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RejoinBy {
    Follow,
    Rewind,
    Copy,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "state", deny_unknown_fields)]
pub enum RejoinOutcome {
    Running {
        progress: Option<String>,
    },
    /// It streamed again at `ended`.
    Done {
        ended: WallTime,
    },
    Failed {
        ended: WallTime,
        problem: String,
    },
}

impl Document for MemberReport {
    const KIND: &'static str = "member report";
}

impl MemberReport {
    /// Returns the position sealed for `sealing`, if this member has sealed for just that.
    pub fn sealed_for(&self, sealing: Epoch) -> Option<&Seal> {
        self.seal.as_ref().filter(|s| s.sealing == sealing)
    }

    /// Returns whether PostgreSQL runs.
    pub fn is_running(&self) -> bool {
        matches!(self.server, Server::Standby { .. } | Server::Primary { .. })
    }
}
