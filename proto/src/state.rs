//! ClusterState: what was agreed. One document, written only by the leader sentinel, in a guarded transaction.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::orders::Orders;
use crate::request::{Answered, RequestId, Unheld, is_usual_hold, usual_hold};
use crate::time::duration;
use crate::{
    Cfg, CfgId, Document, Epoch, Incarnation, Lsn, MemberName, StateNumber, SystemIdentifier,
    Timeline, WalPosition, WallTime,
};

/// The agreed state of one cluster, stored under `state`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterState {
    /// Rises by one with each commit.
    pub number: StateNumber,
    /// The etcd cluster in which this state was made, in hexadecimal: another one means a restored store.
    pub etcd_cluster_id: String,
    /// Known once the founder has run initdb.
    pub system_identifier: Option<SystemIdentifier>,
    /// The epoch of `primary`; zero while founding.
    pub epoch: Epoch,
    pub phase: Phase,
    /// The primary of `epoch`; it stays named while a seal of the next epoch is under way.
    pub primary: Option<MemberName>,
    /// The epoch for which members are asked to seal. Never taken back, only completed.
    pub sealing: Option<Epoch>,
    /// Every Cfg under which a commit may have been acknowledged, oldest first. Names in force are the last one's.
    pub cfgs: Vec<Cfg>,
    pub last_cfg: CfgId,
    /// The timeline of `epoch`, named when its primary was chosen.
    pub timeline: Timeline,
    /// The highest timeline ever named in this cluster.
    pub highest_timeline: Timeline,
    /// The position with which the primary of `epoch` was chosen: who holds more must not follow it as a voter.
    pub chosen: Option<WalPosition>,
    /// Whether the primary may open without waiting for its own voters (design 4.4, invariant I16).
    pub open_at_once: bool,
    /// All epochs with their timelines, oldest first; the last one is `epoch`.
    pub epochs: Vec<EpochRecord>,
    pub members: BTreeMap<MemberName, Admitted>,
    /// The last order to start the primary's PostgreSQL again in its own epoch.
    pub restart: Option<RestartOrder>,
    /// The last death of the primary's PostgreSQL that was answered (by a seal, a restart order or a promotion of
    /// the very member): a later leader does not take the same report for another death.
    #[serde(default)]
    pub answered: Option<Death>,
    /// The number of the state with which an operator vouched for a store that was restored or swapped: who has acted
    /// on a lower one only may believe this store again.
    #[serde(default)]
    pub adopted: Option<StateNumber>,
    /// The last requests that were answered, oldest first: at most `REQUESTS_KEPT`, and all that are under way.
    #[serde(default)]
    pub requests: Vec<Answered>,
    /// What operators have ordered: a pause, members that leave, accepted loss.
    #[serde(default)]
    pub orders: Orders,
}

/// How many answered requests are remembered at least: enough for whoever asked to read what came of it, and for people
/// to see what was asked of late.
pub const REQUESTS_KEPT: usize = 16;

/// How far the present epoch has come. Sealing is apart from it: see `ClusterState::sealing`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "name", deny_unknown_fields)]
pub enum Phase {
    /// `founder` is to run initdb.
    Founding { founder: MemberName },
    /// The primary is named and on its way out of recovery.
    Promoting,
    /// The primary's PostgreSQL is being started again in its own epoch, see `ClusterState::restart`.
    Restarting,
    /// The primary serves.
    Open,
    /// The primary is to hand over to another member, in this epoch still.
    Switchover(Switchover),
}

/// A planned change of primary that is under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Switchover {
    pub target: MemberName,
    /// Whether the target was asked for by name; else a better one may still be taken before the stop.
    pub named: bool,
    /// The zone that the target must not be in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub away_from: Option<String>,
    /// The request that it carries out.
    pub request: RequestId,
    pub by: String,
    pub started: WallTime,
    /// How long after its start it may still be stopped for; past that it ends with nothing done.
    #[serde(with = "duration")]
    pub within: Duration,
    /// How long its step `hold` may last.
    #[serde(with = "duration", default = "usual_hold", skip_serializing_if = "is_usual_hold")]
    pub hold: Duration,
    #[serde(default, skip_serializing_if = "Unheld::is_usual")]
    pub unheld: Unheld,
    pub step: SwitchoverStep,
}

/// How far a switchover has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "name", deny_unknown_fields)]
pub enum SwitchoverStep {
    /// The primary serves on, and writes a checkpoint so that its stop is short.
    Checkpoint,
    /// The primary serves on, and every live proxy that can makes its clients wait (`ProxyReport::held`). Left out where
    /// there is no such proxy.
    Hold {
        since: WallTime,
        /// Counted by everybody from when it sees this step, by its own clock: see `Switchover::hold_for`.
        #[serde(with = "duration")]
        within: Duration,
    },
    /// The primary stops, promises the next epoch and seals for it. From here on every outcome is a new epoch.
    Stop,
    /// The next epoch is being sealed; `position` is where the stopped primary's WAL ends: what the next one must hold.
    Sealed { position: WalPosition },
}

/// The leader has this much to say how a hold ends before proxies let their clients go by themselves.
const HOLD_GRACE: Duration = Duration::from_secs(1);

/// How long a proxy goes on holding once the primary is told to stop. A keeper gives its stop 10 s and the leader that
/// keeper 15 s; a failover that follows has its time too. PgBouncer gives its waiting clients 120 s.
const HOLD_THROUGH_STOP: Duration = Duration::from_secs(45);

impl SwitchoverStep {
    /// Returns whether the primary serves on, and nothing has been done that would have to be undone.
    pub fn can_be_called_off(&self) -> bool {
        match self {
            Self::Checkpoint | Self::Hold { .. } => true,
            Self::Stop | Self::Sealed { .. } => false,
        }
    }
}

impl Switchover {
    /// Returns for how long a proxy holds its clients at most while it sees this step and hears of no later one, counted
    /// from when it saw the first step of the kind (`Hold`, or one past recall) by its own clock; `None`: it does not.
    ///
    /// It also lets them go when it sees a state without this switchover, unless that is of a later epoch whose primary
    /// has not opened yet: then what counts is the time since the stop.
    pub fn hold_for(&self) -> Option<Duration> {
        match self.step {
            SwitchoverStep::Checkpoint => None,
            SwitchoverStep::Hold { within, .. } => Some(within + HOLD_GRACE),
            SwitchoverStep::Stop | SwitchoverStep::Sealed { .. } => Some(HOLD_THROUGH_STOP),
        }
    }
}

/// One epoch, its timeline, and where that timeline begins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EpochRecord {
    pub epoch: Epoch,
    pub timeline: Timeline,
    pub primary: MemberName,
    /// The timeline that this one branched from: `chosen.timeline` of its promotion. `None` for the first.
    #[serde(default)]
    pub parent: Option<Timeline>,
    /// The switch point from the timeline before; known once the primary has opened.
    pub start_lsn: Option<Lsn>,
    /// Its primary was chosen without a base: an operator had accepted the loss of what others may have acknowledged.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub with_loss: bool,
}

/// A member that belongs to the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Admitted {
    pub incarnation: Incarnation,
    /// What this member was seen to hold: a report of less means a disk that lost data (I11).
    pub floor: Option<Floor>,
}

/// The least WAL that a member must still hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Floor {
    pub epoch: Epoch,
    pub lsn: Lsn,
}

/// The leave to start the primary's PostgreSQL again as primary of its epoch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RestartOrder {
    pub member: MemberName,
    pub epoch: Epoch,
    /// Rises with each order of this cluster.
    pub number: u64,
}

/// One death of a PostgreSQL, told apart from others by when its keeper noticed it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Death {
    pub member: MemberName,
    pub noticed: WallTime,
}

impl Document for ClusterState {
    const KIND: &'static str = "state";
}

impl ClusterState {
    /// Returns the member to which clients may send writes: an open primary that is not being replaced.
    pub fn writable_primary(&self) -> Option<&MemberName> {
        self.is_open().then_some(self.primary.as_ref()).flatten()
    }

    /// Returns whether the primary serves as far as is agreed, and is not being replaced.
    pub fn is_open(&self) -> bool {
        let serves = match &self.phase {
            Phase::Open => true,
            Phase::Switchover(switchover) => switchover.step.can_be_called_off(),
            Phase::Founding { .. } | Phase::Promoting | Phase::Restarting => false,
        };
        serves && self.sealing.is_none()
    }

    /// Returns the switchover that is under way.
    pub fn switchover(&self) -> Option<&Switchover> {
        match &self.phase {
            Phase::Switchover(switchover) => Some(switchover),
            Phase::Founding { .. } | Phase::Promoting | Phase::Restarting | Phase::Open => None,
        }
    }

    /// Returns the switchover that is past recall: its primary is to stop, or has.
    pub fn handing_over(&self) -> Option<&Switchover> {
        self.switchover().filter(|s| !s.step.can_be_called_off())
    }

    /// Returns the answered request `id`, if it is remembered.
    pub fn request(&self, id: &RequestId) -> Option<&Answered> {
        self.requests.iter().find(|r| r.id == *id)
    }

    /// Returns the record of `epoch`.
    pub fn epoch_record(&self, epoch: Epoch) -> Option<&EpochRecord> {
        self.epochs.iter().find(|r| r.epoch == epoch)
    }

    /// Returns the epoch that wrote `timeline` (they map one to one, I9).
    pub fn epoch_of(&self, timeline: Timeline) -> Option<Epoch> {
        self.epochs.iter().find(|r| r.timeline == timeline).map(|r| r.epoch)
    }

    /// Returns how far WAL of `timeline` belongs to the present timeline: without bound for the present one itself,
    /// up to the switch point for an ancestor. `None`: not an ancestor, or its switch point is not known.
    ///
    /// For the last switch the bound is the position with which the primary was chosen. It may lie a torn record
    /// beyond the switch point, and whoever holds no more than it holds no complete record past that point either:
    /// both received the same bytes.
    pub fn shared_until(&self, timeline: Timeline) -> Option<Lsn> {
        let mut at = self.timeline;
        let mut until = Lsn(u64::MAX);
        // Bounded by the number of epochs: each step goes to a lower timeline.
        while at > timeline {
            let record = self.epochs.iter().find(|r| r.timeline == at)?;
            let chosen = self.chosen.filter(|_| at == self.timeline).map(|c| c.lsn);
            until = until.min(chosen.or(record.start_lsn)?);
            at = record.parent?;
        }
        (at == timeline).then_some(until)
    }

    /// Returns whether every set that can acknowledge a commit contains `member`, by every Cfg on record.
    pub fn always_acknowledges(&self, member: &MemberName) -> bool {
        !self.cfgs.is_empty() && self.cfgs.iter().all(|cfg| cfg.always_acknowledges(member))
    }

    /// Returns the Cfg whose names the present primary has to enforce.
    pub fn newest_cfg(&self) -> Option<&Cfg> {
        self.cfgs.last()
    }
}
