//! What a keeper can do: one thing at a time, chosen afresh by `reconcile` whenever a fact changes.

use std::fmt;
use std::time::Duration;

use proto::assignment::{Follow, HandOver, Lead};
use proto::spec::PostgresSpec;
use proto::{Cfg, Epoch, MemberName, RequestId, Timeline, WalPosition};

use crate::member_files::Fork;
use crate::postgres::settings::StreamName;

/// The next thing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    Hold(Hold),
    /// Make sure that no process of this data directory lives.
    Fence(FenceReason),
    /// Create the cluster.
    Found,
    /// Stop receiving, promise, find the position.
    Seal {
        sealing: Epoch,
    },
    /// Find the end of the WAL of a stopped member.
    Scan,
    /// Start PostgreSQL as a standby that receives from the primary of `follow`.
    StartStandby {
        follow: Follow,
        name: StreamName,
    },
    /// Start PostgreSQL as a standby that receives from nobody: it was chosen while it was down, and is promoted next.
    StartSealed {
        position: WalPosition,
    },
    /// Point the running standby at the primary of `follow`.
    Repoint {
        follow: Follow,
        name: StreamName,
    },
    /// Take the mark *incomplete* away: the member holds all that its epoch began with.
    MarkComplete {
        epoch: Epoch,
    },
    /// Become the primary of an epoch out of a running standby.
    Promote(Lead),
    /// Start PostgreSQL as the primary of its own epoch, closed.
    StartPrimary {
        lead: Lead,
        restart: u64,
    },
    /// Take the right, prove that backends wait, and let clients in.
    Open(Lead),
    /// The same without an order: etcd is away, and the flush of the voters will show that nobody has taken over.
    StartAlone(Lead),
    /// Let clients in, or find them let in, by a sign of the voters instead of the right in etcd, which is away.
    OpenBySigns(Lead),
    /// Take the right again, under a new lease: the old one has expired.
    TakeRight {
        epoch: Epoch,
        restart: u64,
    },
    /// Put the names of a Cfg in force and prove it.
    Confirm {
        cfg: Cfg,
        proof: Proof,
    },
    /// Take PostgreSQL's settings over from a new spec, if PostgreSQL itself finds them possible.
    TakeSettings(PostgresSpec),
    /// Bring the members' replication slots in order.
    KeepSlots {
        members: Vec<MemberName>,
        primary: bool,
    },
    /// Write a checkpoint, so that the stop of this primary is short, and see that the target is near.
    PrepareHandOver {
        request: RequestId,
        /// The name under which the target streams, if it was asked for by name.
        target: Option<String>,
        patience: Duration,
    },
    /// Stop this primary, promise the next epoch and seal for it.
    HandOver(HandOver),
    /// Ask the primary for its timelines, and whether its WAL is this stopped member's up to where they part.
    Compare {
        follow: Follow,
    },
    /// Set aside WAL that a stopped standby received past the fork and never replayed.
    DropUnreplayed(Dropping),
    /// Bring a diverged former primary back by pg_rewind.
    Rewind {
        follow: Follow,
        reason: String,
    },
    /// Make a fresh copy beside the data directory, and put it in its place.
    Copy {
        follow: Follow,
        /// The standby that is copied if it turns out to be fit; else the primary is.
        from: Option<MemberName>,
        reason: String,
    },
}

/// WAL to be set aside, from `fork` on, and why that is enough.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dropping {
    pub follow: Follow,
    pub fork: Fork,
    pub reason: String,
}

/// How it is proved that a Cfg's names are in force (design: joint configurations).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// The names are in force already: written before the promotion over a list that nobody satisfies, or proven
    /// by an earlier action that did not get to see the voters' positions.
    Given,
    /// From a list that nobody satisfies: a canary commit is seen to wait, and then released.
    Canary,
    /// From a list that is empty, or was for a while: the voters have caught up before anybody waits for them, a canary
    /// commit is seen to wait, and every walsender shows its own place.
    FromNone,
    /// To no voters: nobody is waited for, and nobody can be promoted over this primary.
    Alone,
    /// To no voters, with commits that wait until somebody has joined.
    Closed,
    /// From the names of another Cfg: step through `FIRST k`, where each walsender shows its own place.
    Priorities,
}

/// Why PostgreSQL must not run on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FenceReason {
    Sealing(Epoch),
    Replaced {
        by: MemberName,
        epoch: Epoch,
    },
    /// This member was taken out of the cluster.
    Removed,
    /// A standby holds WAL that its primary's history does not have.
    PastTheFork,
    NotOurEpoch,
    /// A standby holds pieces of a timeline that its log never got to: they are set aside while it is down.
    Unreached(Timeline),
    /// A standby that lets nobody in waits for WAL of a primary that was replaced.
    LeftBehind,
}

/// Why nothing is done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hold {
    NoState,
    NotAdmitted,
    /// This member was taken out of the cluster, and comes back only when it is readmitted.
    Removed,
    /// The cluster is paused: what does not run is not started.
    Paused,
    NewerFormat,
    /// The state is older than one this member acted on, or comes from another etcd.
    Frozen(String),
    StaleEpoch,
    Sealed(Epoch),
    Incomplete,
    WaitingForPrimary,
    WaitingForProcesses,
    WaitingForServer,
    WaitingForRestartOrder,
    WaitingForReplacement,
    PromotionWasCut,
    Following,
    Leading,
    BackingOff(ActionKind),
    Refused(String),
    /// The view is a copy that may be old, and this needs more than a copy.
    WaitingForEtcd,
}

/// An action without its arguments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ActionKind {
    Hold,
    Fence,
    Found,
    Seal,
    Scan,
    StartStandby,
    StartSealed,
    Repoint,
    MarkComplete,
    Promote,
    StartPrimary,
    Open,
    OpenBySigns,
    TakeRight,
    Confirm,
    TakeSettings,
    KeepSlots,
    PrepareHandOver,
    HandOver,
    Compare,
    DropUnreplayed,
    Rewind,
    Copy,
}

impl Action {
    /// Returns the kind of this action.
    pub fn kind(&self) -> ActionKind {
        match self {
            Action::Hold(_) => ActionKind::Hold,
            Action::Fence(_) => ActionKind::Fence,
            Action::Found => ActionKind::Found,
            Action::Seal { .. } => ActionKind::Seal,
            Action::Scan => ActionKind::Scan,
            Action::StartStandby { .. } => ActionKind::StartStandby,
            Action::StartSealed { .. } => ActionKind::StartSealed,
            Action::TakeRight { .. } => ActionKind::TakeRight,
            Action::Repoint { .. } => ActionKind::Repoint,
            Action::MarkComplete { .. } => ActionKind::MarkComplete,
            Action::Promote(_) => ActionKind::Promote,
            Action::StartPrimary { .. } | Action::StartAlone(_) => ActionKind::StartPrimary,
            Action::OpenBySigns(_) => ActionKind::OpenBySigns,
            Action::Open(_) => ActionKind::Open,
            Action::Confirm { .. } => ActionKind::Confirm,
            Action::TakeSettings(_) => ActionKind::TakeSettings,
            Action::KeepSlots { .. } => ActionKind::KeepSlots,
            Action::PrepareHandOver { .. } => ActionKind::PrepareHandOver,
            Action::HandOver(_) => ActionKind::HandOver,
            Action::Compare { .. } => ActionKind::Compare,
            Action::DropUnreplayed(_) => ActionKind::DropUnreplayed,
            Action::Rewind { .. } => ActionKind::Rewind,
            Action::Copy { .. } => ActionKind::Copy,
        }
    }

    /// Returns whether this action, under way, is cut short for `other`. Each one is safe when cut anywhere (I20).
    ///
    /// Work on an incomplete member's data goes on: it counts in no seal set, so it is never asked to seal, and cutting
    /// a rewind means doing it again or copying everything. Before the mark is set, while the source is waited for, the
    /// member counts, and its seal may be the one that is needed; so it does all the time while a copy is made beside
    /// complete data.
    pub fn yields_to(&self, other: &Action) -> bool {
        let takes_the_power_away =
            matches!(other.kind(), ActionKind::Fence | ActionKind::Seal | ActionKind::HandOver)
                && self != other;
        match (self, other) {
            (Action::Fence(_) | Action::Hold(_) | Action::Found, _) => false,
            // A copy that was begun because this member's own WAL was still needed is not, once that may be rewound.
            (Action::Copy { .. }, Action::Rewind { .. }) => true,
            (Action::DropUnreplayed(_) | Action::Rewind { .. } | Action::Copy { .. }, other) => {
                other.kind() == ActionKind::Seal
            }
            // It may wait for voters that never come; the next Cfg is the way out.
            (Action::Confirm { cfg, .. }, Action::Confirm { cfg: newer, .. }) => cfg.id != newer.id,
            (Action::Confirm { .. }, Action::KeepSlots { .. }) => true,
            // It may take minutes, and the primary's own affairs do not wait for it.
            (Action::PrepareHandOver { .. }, other) => self != other,
            // So may an opening that waits for the voters of a Cfg that has a successor.
            // A promotion that has come so far that it may be opened is over but for that.
            (Action::Promote(lead) | Action::Open(lead), Action::Open(newer)) => {
                lead.cfgs.last().map(|c| c.id) != newer.cfgs.last().map(|c| c.id)
            }
            // What waits for the right in etcd, or for voters by what is only a copy, has another way now.
            (Action::Open(_), Action::OpenBySigns(_))
            | (Action::OpenBySigns(_), Action::Open(_)) => true,
            _ => takes_the_power_away,
        }
    }
}

/// How long an action that failed `times` times in a row is left alone: a second failure right after the first
/// says nothing new, and five seconds is what an operator who mends the cause can wait.
pub fn backoff(times: u32) -> Duration {
    Duration::from_millis(100 << times.min(6)).min(Duration::from_secs(5))
}

impl fmt::Display for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Hold::NoState => write!(f, "waiting for a sentinel to create the cluster's state"),
            Hold::NotAdmitted => write!(f, "waiting to be admitted by the leader"),
            Hold::Removed => write!(
                f,
                "this member was removed from the cluster: stop this keeper, or take it back with pgdeputy readmit"
            ),
            Hold::Paused => {
                write!(f, "the cluster is paused: PostgreSQL stays down until pgdeputy resume")
            }
            Hold::NewerFormat => {
                write!(f, "standing by: etcd holds a newer format, upgrade pgdeputy on this host")
            }
            Hold::Frozen(why) => write!(f, "frozen: {why}"),
            Hold::StaleEpoch => write!(f, "the state's epoch is below this member's promise"),
            Hold::Sealed(epoch) => write!(f, "sealed for epoch {epoch}"),
            Hold::Incomplete => write!(f, "incomplete: nothing to seal"),
            Hold::WaitingForPrimary => write!(f, "waiting for the primary to open"),
            Hold::WaitingForProcesses => {
                write!(f, "waiting until no process of the data directory lives")
            }
            Hold::WaitingForServer => write!(f, "waiting for PostgreSQL to answer"),
            Hold::WaitingForRestartOrder => {
                write!(f, "PostgreSQL is down, waiting for the leader's decision")
            }
            Hold::WaitingForReplacement => {
                write!(f, "waiting until no Cfg of an older epoch is recorded")
            }
            Hold::PromotionWasCut => {
                write!(f, "the promotion was cut short, waiting for the next epoch")
            }
            Hold::Following => write!(f, "following"),
            Hold::Leading => write!(f, "leading"),
            Hold::BackingOff(kind) => write!(f, "waiting before {kind:?} is tried again"),
            Hold::WaitingForEtcd => write!(f, "waiting for etcd to answer"),
            Hold::Refused(why) => write!(f, "refused: {why}"),
        }
    }
}

impl fmt::Display for FenceReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FenceReason::Sealing(epoch) => write!(f, "epoch {epoch} is being sealed"),
            FenceReason::Replaced { by, epoch } => {
                write!(f, "{by} is the primary of epoch {epoch}")
            }
            FenceReason::Removed => write!(f, "this member was removed from the cluster"),
            FenceReason::PastTheFork => {
                write!(f, "this standby holds WAL that the primary's history does not have")
            }
            FenceReason::NotOurEpoch => write!(f, "a primary of another epoch runs here"),
            FenceReason::Unreached(timeline) => {
                write!(f, "this standby was on its way to timeline {timeline} and never got there")
            }
            FenceReason::LeftBehind => write!(
                f,
                "this standby is not consistent yet, and the primary that it waits for was replaced"
            ),
        }
    }
}
