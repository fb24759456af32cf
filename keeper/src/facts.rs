//! What a keeper knows when it decides: gathered by the shell, and nothing but values.

use std::collections::{BTreeMap, BTreeSet};

use proto::report::{
    Confirmed, DataDirectory, Ended, Handover, MemberReport, Opened, Rejoin, Seal, Server,
};
use proto::status::Prepared;
use proto::{
    CfgId, ClusterSpec, ClusterState, Epoch, Lsn, MemberName, Moment, PrimaryKey, Timeline,
    WalPosition, WallTime,
};

use proto::spec::PostgresSpec;
use proto::status::RejoinProgress;
use store::LeaseId;

use crate::action::ActionKind;
use crate::fencer::protocol::FenceWay;
use crate::health::{Disks, Pulse};
use crate::member_files::MemberFiles;
use crate::postgres::compare::SourceSays;
use crate::postgres::probe::SqlFacts;
use crate::postgres::settings::Settings;
use crate::postgres::stopped::Stopped;
use crate::standstill::Standstill;

/// The cluster as this keeper last read it.
#[derive(Debug, Clone, Default)]
pub struct ClusterView {
    pub spec: Option<ClusterSpec>,
    /// The last one that was believed: see `trust`.
    pub state: Option<ClusterState>,
    /// Why what etcd holds now is not believed.
    pub frozen: Option<String>,
    /// The revision of `state`, which guards what rests on it.
    pub state_revision: i64,
    pub reports: BTreeMap<MemberName, MemberReport>,
    pub primary_key: Option<PrimaryKey>,
    /// The identity of the etcd cluster that answered.
    pub etcd_cluster_id: String,
    /// A document of a newer format was met: stand by.
    pub newer_format: bool,
    /// How often all of it was read anew: each time after a watch broke, and another store may have taken its place.
    pub reads: u64,
}

impl ClusterView {
    /// Returns whether this is the member's own copy: etcd has not answered since the keeper's start.
    pub fn is_copy(&self) -> bool {
        self.state.is_some() && self.state_revision == 0
    }
}

/// What is known of this member itself.
#[derive(Debug, Clone)]
pub struct Facts {
    pub member: MemberName,
    pub files: MemberFiles,
    pub data: DataDirectory,
    /// The running server's answers; `None` while it gives none.
    pub sql: Option<SqlFacts>,
    /// What the server was when it last answered, if that is no longer ago than `unresponsive_after`: overload is not
    /// death.
    pub known: Option<Server>,
    pub local: Local,
    pub lease: Option<LeaseId>,
}

/// What PostgreSQL's processes do, by the fencer's word.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Process {
    /// No process of the data directory lives.
    #[default]
    None,
    Running {
        pid: u32,
    },
    /// The postmaster is gone; `gone`: so is every other process of the data directory.
    Exited {
        noticed: WallTime,
        gone: bool,
    },
}

impl Process {
    /// Returns whether it is certain that no process of the data directory lives.
    pub fn is_gone(self) -> bool {
        matches!(self, Process::None | Process::Exited { gone: true, .. })
    }
}

/// What this keeper's actions have brought about since its start. Not stored: it is found out anew.
#[derive(Debug, Clone, Default)]
pub struct Local {
    pub process: Process,
    /// How its fencer ends PostgreSQL.
    pub fence_way: Option<FenceWay>,
    /// No renewal has reached etcd for `lease_ttl`.
    pub etcd_away: bool,
    /// The settings on disk that the server has, or will read at its start.
    pub settings: Option<Settings>,
    /// The part of the spec that PostgreSQL takes; a later one that it refuses is not put in its place.
    pub accepted: Option<PostgresSpec>,
    /// What the present PostgreSQL process was when it last answered its keeper, and when that was asked.
    pub last_answer: Option<(Server, Moment)>,
    pub seal: Option<Seal>,
    /// Timelines beyond the sealed position's of which this member holds pieces: see `wal_files::unreached`.
    pub unreached: BTreeSet<Timeline>,
    pub opened: Option<Opened>,
    pub confirmed: Option<Confirmed>,
    /// The end of this member's WAL, scanned while no process lived; forgotten when PostgreSQL starts.
    pub end_of_wal: Option<WalPosition>,
    /// What else the disk showed then.
    pub stopped: Option<Stopped>,
    /// What the primary of an epoch said to this stopped member.
    pub compared: Option<Compared>,
    /// Where the WAL ends of a server that was started without an upstream, to be promoted: it stays there.
    pub started_sealed: Option<WalPosition>,
    /// The timeline of the last streaming receiver of the present PostgreSQL process. With one its receive position is
    /// true, and its last WAL is of that timeline; pg_control may take a checkpoint to hear of it.
    pub streamed: Option<Timeline>,
    /// Where that timeline begins, by the history that its receiver has fetched.
    pub begins: Option<(Timeline, Lsn)>,
    /// The epoch whose primary is not heard, by echo and stream.
    pub silence: Option<Epoch>,
    /// When it last left several questions in a row unanswered.
    pub missed_echo: Option<Moment>,
    /// The other standbys that are heard by echo, asked only while this one's stream is silent.
    pub hears: BTreeSet<MemberName>,
    pub names: Names,
    /// What this primary has said of the switchover that is under way.
    pub handover: Option<Handover>,
    /// This keeper was asked to stop.
    pub leaving: bool,
    /// The timeline that a promotion has ended on, before the server is asked again.
    pub promoted: Option<Timeline>,
    /// A Cfg waits for voters for longer than they need to follow: they may lack their slots.
    pub voters_late: bool,
    /// When the seal's replay position was last brought up to date.
    pub replay_told: Moment,
    pub rejoin: Option<Rejoin>,
    /// How far the copying of a rejoin is, while it lasts.
    pub copying: Option<Copying>,
    /// Replication slots are as they should be for this set of members and role.
    pub slots_for: Option<(Vec<MemberName>, bool)>,
    pub failures: BTreeMap<ActionKind, Failure>,
    /// For how long an open primary's probes have had no good answer.
    pub pulse: Pulse,
    /// For how long the primary that this standby follows has written nothing.
    pub standstill: Standstill,
    pub disks: Disks,
    /// What a rewind or copy of this member would lack: see `prerequisites`.
    pub prerequisites: BTreeSet<String>,
    /// What an operator wants to know before a switchover; its slots are `slots_for`.
    pub prepared: Prepared,
    /// Commits wait until they are replayed, see `commit_level`.
    pub remote_apply: Option<bool>,
    /// Why the last PostgreSQL process ended, until the next one starts.
    pub ended: Option<Ended>,
    /// The right to run as primary was taken for this epoch, under this lease.
    pub right: Option<(Epoch, LeaseId)>,
}

/// How far a copy or rewind has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Copying {
    /// When its first bytes came, and when the count below was taken.
    pub since: Moment,
    pub last: Moment,
    pub copied_bytes: u64,
    pub total_bytes: u64,
}

impl Copying {
    /// Returns what is told of it over HTTP.
    pub fn progress(&self) -> RejoinProgress {
        let ms = u64::try_from(self.last.since(self.since).as_millis()).unwrap_or(u64::MAX);
        let per_second = self.copied_bytes.saturating_mul(1000).checked_div(ms).filter(|r| *r > 0);
        let left = self.total_bytes.saturating_sub(self.copied_bytes);
        RejoinProgress {
            copied_bytes: self.copied_bytes,
            total_bytes: self.total_bytes,
            bytes_per_second: per_second,
            left_ms: per_second.map(|rate| left.saturating_mul(1000) / rate),
        }
    }
}

/// Room beside the data directory, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    pub data: u64,
    pub available: u64,
}

/// A primary's answer to a stopped member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compared {
    pub epoch: Epoch,
    /// `None`: it gave none.
    pub says: Option<SourceSays>,
    /// How much data this member has, and how much more would fit beside it; looked at only where a copy may be cheaper
    /// than a rewind.
    pub room: Option<Room>,
}

/// What is known of the names that a running primary enforces.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Names {
    /// Names of some Cfg, of which not all walsenders were seen to have heard; also what a keeper finds that was
    /// restarted beside a running primary.
    #[default]
    Unproven,
    /// The name that nobody can have, since the server's start.
    Impossible,
    /// The name that nobody can have, put in the place of others: some walsender may still know those.
    Closed,
    /// None: commits wait for nobody.
    Free,
    /// The names of this Cfg, and nothing else, decide what is acknowledged.
    Proven(CfgId),
}

/// An action that did not do what it should.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub problem: String,
    pub times: u32,
    pub at: Moment,
}
