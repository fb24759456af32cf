//! What should happen at least sometimes: every fault in every phase of the cluster, and every branch of the deciders. A
//! search that never gets somewhere says nothing about it.

use keeper::action::{Action, ActionKind, FenceReason, Hold};
use sentinel::plan::{Verdict, WaitingOn};

use super::executor::Sim;
use super::faults::Kind;
use super::world::World;

/// One thing that should happen, by name.
pub type Cell = String;

/// What the cluster is about when a fault strikes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    Steady,
    Joint,
    Sealing,
    Promoting,
    Opening,
    Rewinding,
    SwitchingOver,
}

impl Phase {
    pub const ALL: &[Phase] = &[
        Phase::Steady,
        Phase::Joint,
        Phase::Sealing,
        Phase::Promoting,
        Phase::Opening,
        Phase::Rewinding,
        Phase::SwitchingOver,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Phase::Steady => "steady",
            Phase::Joint => "joint",
            Phase::Sealing => "sealing",
            Phase::Promoting => "promoting",
            Phase::Opening => "opening",
            Phase::Rewinding => "rewinding",
            Phase::SwitchingOver => "switching-over",
        }
    }

    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|phase| phase.name() == name)
    }
}

impl World {
    /// Returns what the cluster is about; nothing before it is founded.
    pub fn phase(&self) -> Option<Phase> {
        let state = self.oracle.state()?;
        let rejoining = self.members.iter().any(|m| {
            m.disk.files.as_ref().and_then(|f| f.rejoin.as_ref()).is_some_and(|r| !r.may_start())
        });
        let stops = state.handing_over().is_some();
        Some(match (&state.sealing, &state.phase) {
            _ if stops => Phase::SwitchingOver,
            (Some(_), _) => Phase::Sealing,
            (None, proto::Phase::Promoting) => Phase::Promoting,
            (None, proto::Phase::Restarting) => Phase::Opening,
            (None, proto::Phase::Founding { .. }) => return None,
            (None, proto::Phase::Switchover(_)) => Phase::SwitchingOver,
            (None, proto::Phase::Open) if rejoining => Phase::Rewinding,
            (None, proto::Phase::Open) if state.cfgs.len() > 1 => Phase::Joint,
            (None, proto::Phase::Open) => Phase::Steady,
        })
    }
}

/// Returns the name of a fault in a phase.
pub fn fault(kind: Kind, phase: Phase) -> Cell {
    format!("{kind:?} x {}", phase.name())
}

/// Returns all that should happen at least sometimes.
pub fn all() -> Vec<Cell> {
    let faults = Kind::ALL.iter().flat_map(|kind| Phase::ALL.iter().map(|p| fault(*kind, *p)));
    let branches = [WAITS, CHANGES, ACTIONS, HOLDS, FENCES].concat();
    faults.chain(branches.into_iter().map(str::to_owned)).collect()
}

const WAITS: &[&str] = &[
    "wait: nothing",
    "wait: other store",
    "wait: set back",
    "wait: empty member",
    "wait: named founder",
    "wait: initdb",
    "wait: founder report",
    "wait: primary report",
    "wait: own probe",
    "wait: stream",
    "wait: primary key",
    "wait: isolation grace",
    "wait: seal set",
    "wait: candidate",
    "wait: seals",
    "wait: seal patience",
    "wait: promotable holder",
    "wait: promotion",
    "wait: next promotion",
    "wait: promotion pause",
    "wait: restart",
    "wait: next restart",
    "wait: voters hold",
    "wait: checkpoint",
    "wait: held",
    "wait: hand over",
    "wait: voters",
    "wait: reduced",
    "wait: resume",
    "wait: more loss",
    "wait: settle",
    "wait: confirmation",
    "wait: redundancy",
];

const HOLDS: &[&str] = &[
    "hold: no state",
    "hold: not admitted",
    "hold: removed",
    "hold: paused",
    "hold: newer format",
    "hold: frozen",
    "hold: stale epoch",
    "hold: sealed",
    "hold: incomplete",
    "hold: waiting for primary",
    "hold: waiting for processes",
    "hold: waiting for server",
    "hold: waiting for restart order",
    "hold: waiting for replacement",
    "hold: promotion was cut",
    "hold: following",
    "hold: leading",
    "hold: backing off",
    "hold: refused",
    "hold: waiting for etcd",
];

const FENCES: &[&str] = &[
    "fence: sealing",
    "fence: replaced",
    "fence: removed",
    "fence: past the fork",
    "fence: not our epoch",
    "fence: unreached",
];

const ACTIONS: &[&str] = &[
    "do: found",
    "do: seal",
    "do: scan",
    "do: start standby",
    "do: start sealed",
    "do: repoint",
    "do: mark complete",
    "do: promote",
    "do: start primary",
    "do: open",
    "do: open by signs",
    "do: take right",
    "do: confirm",
    "do: take settings",
    "do: keep slots",
    "do: prepare hand over",
    "do: hand over",
    "do: rewind",
    "do: copy",
];

/// What the leader changes, by what differs between two states.
const CHANGES: &[&str] = &[
    "change: found",
    "change: admit",
    "change: seal",
    "change: promote",
    "change: restart",
    "change: open",
    "change: more voters",
    "change: voters proven",
    "change: switchover begins",
    "change: switchover stops",
    "change: switchover called off",
    "change: orders",
    "change: answer",
    "change: record",
];

fn wait(of: &WaitingOn) -> &'static str {
    match of {
        WaitingOn::Nothing { .. } => "wait: nothing",
        WaitingOn::OtherStore { .. } => "wait: other store",
        WaitingOn::SetBack { .. } => "wait: set back",
        WaitingOn::EmptyMember => "wait: empty member",
        WaitingOn::NamedFounder { .. } => "wait: named founder",
        WaitingOn::Initdb { .. } => "wait: initdb",
        WaitingOn::FounderReport { .. } => "wait: founder report",
        WaitingOn::PrimaryReport { .. } => "wait: primary report",
        WaitingOn::OwnProbe { .. } => "wait: own probe",
        WaitingOn::Stream { .. } => "wait: stream",
        WaitingOn::PrimaryKey { .. } => "wait: primary key",
        WaitingOn::IsolationGrace { .. } => "wait: isolation grace",
        WaitingOn::SealSet { .. } => "wait: seal set",
        WaitingOn::Candidate { .. } => "wait: candidate",
        WaitingOn::Seals { .. } => "wait: seals",
        WaitingOn::SealPatience { .. } => "wait: seal patience",
        WaitingOn::PromotableHolder { .. } => "wait: promotable holder",
        WaitingOn::Promotion { .. } => "wait: promotion",
        WaitingOn::NextPromotion { .. } => "wait: next promotion",
        WaitingOn::PromotionPause { .. } => "wait: promotion pause",
        WaitingOn::Restart { .. } => "wait: restart",
        WaitingOn::NextRestart { .. } => "wait: next restart",
        WaitingOn::VotersHold { .. } => "wait: voters hold",
        WaitingOn::Checkpoint { .. } => "wait: checkpoint",
        WaitingOn::Held { .. } => "wait: held",
        WaitingOn::HandOver { .. } => "wait: hand over",
        WaitingOn::Voters { .. } => "wait: voters",
        WaitingOn::Reduced { .. } => "wait: reduced",
        WaitingOn::Resume { .. } => "wait: resume",
        WaitingOn::MoreLoss { .. } => "wait: more loss",
        WaitingOn::Settle { .. } => "wait: settle",
        WaitingOn::Confirmation { .. } => "wait: confirmation",
        WaitingOn::Redundancy { .. } => "wait: redundancy",
    }
}

fn hold(of: &Hold) -> &'static str {
    match of {
        Hold::NoState => "hold: no state",
        Hold::NotAdmitted => "hold: not admitted",
        Hold::Removed => "hold: removed",
        Hold::Paused => "hold: paused",
        Hold::NewerFormat => "hold: newer format",
        Hold::Frozen(_) => "hold: frozen",
        Hold::StaleEpoch => "hold: stale epoch",
        Hold::Sealed(_) => "hold: sealed",
        Hold::Incomplete => "hold: incomplete",
        Hold::WaitingForPrimary => "hold: waiting for primary",
        Hold::WaitingForProcesses => "hold: waiting for processes",
        Hold::WaitingForServer => "hold: waiting for server",
        Hold::WaitingForRestartOrder => "hold: waiting for restart order",
        Hold::WaitingForReplacement => "hold: waiting for replacement",
        Hold::PromotionWasCut => "hold: promotion was cut",
        Hold::Following => "hold: following",
        Hold::Leading => "hold: leading",
        Hold::BackingOff(_) => "hold: backing off",
        Hold::Refused(_) => "hold: refused",
        Hold::WaitingForEtcd => "hold: waiting for etcd",
    }
}

fn fence(of: &FenceReason) -> &'static str {
    match of {
        FenceReason::Sealing(_) => "fence: sealing",
        FenceReason::Replaced { .. } => "fence: replaced",
        FenceReason::Removed => "fence: removed",
        FenceReason::PastTheFork => "fence: past the fork",
        FenceReason::NotOurEpoch => "fence: not our epoch",
        FenceReason::Unreached(_) => "fence: unreached",
        FenceReason::LeftBehind => "fence: left behind",
    }
}

fn kind(of: ActionKind) -> &'static str {
    match of {
        ActionKind::Hold => "do: hold",
        ActionKind::Fence => "do: fence",
        ActionKind::Found => "do: found",
        ActionKind::Seal => "do: seal",
        ActionKind::Scan => "do: scan",
        ActionKind::StartStandby => "do: start standby",
        ActionKind::StartSealed => "do: start sealed",
        ActionKind::Repoint => "do: repoint",
        ActionKind::MarkComplete => "do: mark complete",
        ActionKind::Promote => "do: promote",
        ActionKind::StartPrimary => "do: start primary",
        ActionKind::Open => "do: open",
        ActionKind::OpenBySigns => "do: open by signs",
        ActionKind::TakeRight => "do: take right",
        ActionKind::Confirm => "do: confirm",
        ActionKind::TakeSettings => "do: take settings",
        ActionKind::KeepSlots => "do: keep slots",
        ActionKind::PrepareHandOver => "do: prepare hand over",
        ActionKind::HandOver => "do: hand over",
        ActionKind::Compare => "do: compare",
        ActionKind::DropUnreplayed => "do: drop unreplayed",
        ActionKind::Rewind => "do: rewind",
        ActionKind::Copy => "do: copy",
    }
}

fn change(before: Option<&proto::ClusterState>, next: &proto::ClusterState) -> &'static str {
    let Some(before) = before else { return "change: found" };
    let steps = (before.switchover().map(|s| &s.step), next.switchover().map(|s| &s.step));
    if next.epoch > before.epoch {
        return "change: promote";
    }
    if next.sealing != before.sealing {
        return "change: seal";
    }
    if next.restart != before.restart {
        return "change: restart";
    }
    match steps {
        (None, Some(_)) => return "change: switchover begins",
        (Some(_), None) => return "change: switchover called off",
        (Some(old), Some(new)) if old != new => return "change: switchover stops",
        (Some(_), Some(_)) | (None, None) => {}
    }
    if next.phase != before.phase {
        return "change: open";
    }
    if next.members.len() != before.members.len() {
        return "change: admit";
    }
    if next.last_cfg > before.last_cfg {
        return "change: more voters";
    }
    if next.cfgs != before.cfgs {
        return "change: voters proven";
    }
    if next.orders != before.orders {
        return "change: orders";
    }
    "change: answer"
}

impl Sim {
    fn count(&self, cell: &str) {
        self.with(|w| match w.counts.cells.get_mut(cell) {
            Some(count) => *count += 1,
            None => drop(w.counts.cells.insert(cell.to_owned(), 1)),
        });
    }

    /// Counts what the leader decided.
    pub fn count_verdict(&self, before: Option<&proto::ClusterState>, verdict: &Verdict) {
        self.count(match verdict {
            Verdict::Change { next, .. } => change(before, next),
            Verdict::Record { .. } => "change: record",
            Verdict::Wait(on) => wait(on),
        });
    }

    /// Counts what a keeper decided.
    pub fn count_action(&self, action: &Action) {
        self.count(match action {
            Action::Hold(why) => hold(why),
            Action::Fence(why) => fence(why),
            other => kind(other.kind()),
        });
    }

    /// Counts a fault that strikes now.
    pub fn count_fault(&self, of: Kind) {
        if let Some(phase) = self.with(|w| w.phase()) {
            self.count(&fault(of, phase));
        }
    }
}
